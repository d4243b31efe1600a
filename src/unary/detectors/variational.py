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

from unary.detectors.devices import find_device, place_network
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import describe_config, export_network, read_config, require_fitted, require_size
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder, to_tensor
from unary.detectors.wei2018.detector import restore_sized
from unary.detectors.wei2018.learning import require_patch_size, shape_network
from unary.detectors.windows import PatchExamination, examine_windows
from unary.errors import require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.engine import StepsConfig, train_steps

LOG_VARIANCE = (-12.0, 6.0)


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
        require_positive(self, "latent", "widths")
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be finite and not negative, got {self.kl_weight}")


class VariationalNetwork(nn.Module):
    """The paper's network, whose dense bottleneck is the mean of the code, and one more layer for its variance."""

    def __init__(self, config: AutoencoderConfig, *, seed: int) -> None:
        super().__init__()
        self.body = build_autoencoder(config, seed=seed)
        assert self.body.squeeze is not None, "a variational network needs a dense bottleneck"
        self.spread = nn.Linear(self.body.squeeze.in_features, self.body.squeeze.out_features)
        with torch.no_grad():  # starts as a nearly certain code, so that structure is learned before noise is
            self.spread.weight.zero_()
            self.spread.bias.fill_(-4.0)

    def encode(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, channels, size, size) to mean and log variance of the code, (n, latent) each."""
        assert self.body.squeeze is not None
        flat = self.body.halve(patches).flatten(1)
        mean: Tensor = self.body.squeeze(flat)
        return mean, self.spread(flat).clamp(*LOG_VARIANCE)

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


def _bound(error: Tensor, divergence: Tensor, kl_weight: float) -> Tensor:
    """Half the squared error, standardised, and the weighted divergence of each patch, per pixel, shape (n,).

    The negative evidence lower bound, up to a constant.
    """
    error = error.square().flatten(1)
    return 0.5 * error.mean(dim=1) + kl_weight * divergence / error.shape[1]


@dataclass(frozen=True, eq=False)
class Variational:
    """A variational autoencoder of the paper's sizes; root mean square error of the mean reconstruction.

    The ``network`` is on the CPU; None before `fit`.
    """

    grid: ClassVar[Grid] = "stored"
    knowledge: ClassVar[Knowledge] = "normals only"

    config: VariationalConfig = field(default_factory=VariationalConfig)
    network: VariationalNetwork | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Self:
        """Learn to reconstruct normal patches from a code of bounded information."""
        config = self.config
        sizes, _ = shape_network(normals, config.widths, config.latent)
        network = VariationalNetwork(sizes, seed=context.seed)

        def draw(rng: np.random.Generator, count: int) -> Sequence[Tensor]:
            which = rng.choice(len(normals), min(count, len(normals)), replace=False)
            deviates = rng.standard_normal((len(which), config.latent), dtype=np.float32)
            return to_tensor(normals.gather(which)), torch.from_numpy(deviates)

        def compute_loss(patches: Tensor, deviates: Tensor) -> Tensor:
            restored, divergence = network(patches, deviates)
            return _bound((restored - patches) / sizes.input_scale, divergence, config.kl_weight).mean()

        settings = [dataclasses.asdict(sizes), config.kl_weight]
        train_steps(
            network, draw, compute_loss, config.training, context, name="variational", settings=settings, data=normals
        )
        return dataclasses.replace(self, network=network)

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse by a `TrainingError` what could not be learned from."""
        require_patch_size(normals.size_px, self.config.widths)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score by the RMSE, in intensity units, or by the bound; the map is the absolute error."""
        require_size(size_px, require_fitted(self.network, "variational").body.config.size_px, "variational")
        return examine_windows(self.examine_patches, view, origins, size_px=size_px, with_map=with_map)

    def examine_patches(self, patches: NDArray[np.uint16]) -> PatchExamination:
        """Examine patches of shape (n, size, size), uint16, 65535 being intensity 1."""
        network = require_fitted(self.network, "variational")
        with torch.inference_mode():
            values = to_tensor(patches).to(find_device(network))
            restored, divergence = network(values)
            error = values - restored
            bound = _bound(error / network.body.config.input_scale, divergence, self.config.kl_weight)
            bounds, maps = bound.cpu().double().numpy(), error[:, 0].abs().cpu().numpy()
        rmse = np.sqrt(np.square(maps, dtype=np.float64).mean(axis=(1, 2)))
        return PatchExamination(bounds if self.config.score_kl else rmse, maps)

    def on_device(self, device: str) -> Self:
        """Return the same with its network there; see `unary.detectors.devices`."""
        return dataclasses.replace(self, network=place_network(self.network, device))

    def get_state(self) -> DetectorState:
        """Return configuration, what the input is standardised by, and the network's weights."""
        network = require_fitted(self.network, "variational")
        settings = {"config": describe_config(self.config), "network": describe_config(network.body.config)}
        return DetectorState(settings, export_network(network))

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        config = read_config(VariationalConfig, state.settings["config"])
        return cls(config, restore_sized(state, VariationalNetwork, config.widths, config.latent))
