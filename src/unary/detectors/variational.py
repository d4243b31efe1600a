"""A variational autoencoder with the encoder and decoder of the paper's network.

The code of a patch is not a point but a Gaussian with a variance of its own, held near the standard normal by its
Kullback-Leibler divergence (Kingma and Welling 2014). That bounds what the code can tell apart, which a plain
bottleneck does by its width alone: the two belong in one comparison. The score is the paper's, the RMSE of a
reconstruction, here of the one from the mean of the code, so that nothing is drawn at scoring; the divergence may be
added to it, by configuration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import (
    describe_config,
    export_network,
    import_network,
    read_config,
    require_fitted,
    require_size,
)
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder, to_tensor
from unary.detectors.wei2018.learning import shape_network
from unary.detectors.windows import PatchExamination, examine_windows
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.engine import StepsConfig, train_steps

_LOG_VARIANCE = (-12.0, 6.0)


@dataclass(frozen=True)
class VariationalConfig:
    """The variational network, its loss and its score.

    Attributes
    ----------
    latent
        Dimensions of the code.
    kl_weight
        Of the divergence in the loss. 1 is the evidence lower bound for errors of variance 1 in standardised
        intensity; less lets the code say more.
    score_kl
        Whether the score is the squared error plus the divergence as weighted in training, instead of the RMSE alone.
    widths
        Feature maps after each halving of the patch.
    training
        Optimisation.
    """

    latent: int = 32
    kl_weight: float = 1.0
    score_kl: bool = False
    widths: tuple[int, ...] = AutoencoderConfig.widths
    training: StepsConfig = field(default_factory=lambda: StepsConfig(steps=900, batch_size=100, weight_decay=0.0))

    def __post_init__(self) -> None:
        if self.latent < 1:
            raise ValueError(f"latent must be positive, got {self.latent}")
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be finite and not negative, got {self.kl_weight}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be one or more positive numbers, got {self.widths}")


class VariationalNetwork(nn.Module):
    """The paper's network, whose dense bottleneck is the mean of the code, and one more layer for its variance."""

    def __init__(self, config: AutoencoderConfig, *, seed: int) -> None:
        if config.bottleneck is None:
            raise ValueError("a variational network needs a dense bottleneck")
        super().__init__()
        self.body = build_autoencoder(config, seed=seed)
        assert self.body.squeeze is not None
        self.spread = nn.Linear(self.body.squeeze.in_features, config.bottleneck)
        with torch.no_grad():  # starts as a nearly certain code, so that structure is learned before noise is
            self.spread.weight.zero_()
            self.spread.bias.fill_(-4.0)

    def encode(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, channels, size, size) to mean and log variance of the code, (n, latent) each."""
        assert self.body.squeeze is not None
        hidden = (patches - self.body.config.input_mean) / self.body.config.input_scale
        for layer in self.body.encoder:
            hidden = torch.relu(layer(hidden))
        flat = hidden.flatten(1)
        mean: Tensor = self.body.squeeze(flat)
        return mean, self.spread(flat).clamp(*_LOG_VARIANCE)

    def forward(self, patches: Tensor, deviates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return reconstructions, shaped like ``patches``, and each patch's divergence, shape (n,), in nats.

        ``deviates``, (n, latent), are standard normal and draw the code; None takes its mean.
        """
        mean, log_variance = self.encode(patches)
        code = mean if deviates is None else mean + deviates * (0.5 * log_variance).exp()
        return self.body.decode(code), measure_divergence(mean, log_variance)


def measure_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a diagonal Gaussian, (n, latent), from the standard normal; shape (n,), nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def variational_loss(network: VariationalNetwork, patches: Tensor, deviates: Tensor, *, kl_weight: float) -> Tensor:
    """Negative evidence lower bound per pixel, up to a constant, in standardised intensity."""
    restored, divergence = network(patches, deviates)
    return _bound(network, patches, restored, divergence, kl_weight).mean()


def _bound(
    network: VariationalNetwork, patches: Tensor, restored: Tensor, divergence: Tensor, kl_weight: float
) -> Tensor:
    """Half the squared error and the weighted divergence of each patch, per pixel, shape (n,)."""
    error = ((restored - patches) / network.body.config.input_scale).square().flatten(1)
    return 0.5 * error.mean(dim=1) + kl_weight * divergence / error.shape[1]


@dataclass(frozen=True, eq=False)
class Variational:
    """A variational autoencoder of the paper's sizes; root mean square error of the mean reconstruction.

    Attributes
    ----------
    config
        The network, its training and its score.
    network
        Trained, on the CPU; None before `fit`.
    """

    grid: ClassVar[Grid] = "stored"
    knowledge: ClassVar[Knowledge] = "normals only"

    config: VariationalConfig = field(default_factory=VariationalConfig)
    network: VariationalNetwork | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Self:
        """Learn to reconstruct normal patches from a code of bounded information.

        Raises
        ------
        TrainingError
            If there are too few patches, they are blank or too small to be halved so often, or training diverges.
        """
        config = self.config
        sizes, _ = shape_network(normals, config.widths, config.latent)
        network = VariationalNetwork(sizes, seed=context.seed)

        def draw(rng: np.random.Generator, count: int) -> Sequence[Tensor]:
            which = rng.choice(len(normals), min(count, len(normals)), replace=False)
            deviates = rng.standard_normal((len(which), config.latent), dtype=np.float32)
            return to_tensor(normals.gather(which)), torch.from_numpy(deviates)

        def compute_loss(patches: Tensor, deviates: Tensor) -> Tensor:
            return variational_loss(network, patches, deviates, kl_weight=config.kl_weight)

        train_steps(
            network,
            draw,
            compute_loss,
            config.training,
            context,
            name="variational",
            settings=[dataclasses.asdict(sizes), config.kl_weight],
            data_hash=normals.digest() if context.checkpoint is not None else "",
        )
        return dataclasses.replace(self, network=network)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score by the RMSE, in intensity units, or by the bound; the map is the absolute error."""
        require_size(size_px, require_fitted(self.network, "variational").body.config.size_px, "variational")
        return examine_windows(self.examine_patches, view, origins, size_px=size_px, with_map=with_map)

    def examine_patches(self, patches: NDArray[np.uint16]) -> PatchExamination:
        """Examine patches of shape (n, size, size), uint16, 65535 being intensity 1."""
        network = require_fitted(self.network, "variational")
        with torch.inference_mode():
            values = to_tensor(patches)
            restored, divergence = network(values)
            error = (values - restored)[:, 0].abs().numpy()
            bound = _bound(network, values, restored, divergence, self.config.kl_weight)
        if self.config.score_kl:
            return PatchExamination(bound.double().numpy(), error)
        return PatchExamination(np.sqrt(np.square(error, dtype=np.float64).mean(axis=(1, 2))), error)

    def get_state(self) -> DetectorState:
        """Return configuration, what the input is standardised by, and the network's weights."""
        network = require_fitted(self.network, "variational")
        settings = {"config": describe_config(self.config), "network": describe_config(network.body.config)}
        return DetectorState(settings, export_network(network))

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """Return the detector of a state."""
        config = read_config(VariationalConfig, state.settings["config"])
        sizes = read_config(AutoencoderConfig, state.settings["network"])
        if (sizes.widths, sizes.bottleneck) != (config.widths, config.latent):
            raise ValueError(f"the network's sizes must be those of the configuration: {sizes} and {config}")
        network = VariationalNetwork(sizes, seed=0)
        import_network(network, state.tensors)
        return cls(config, network)
