"""A variational autoencoder with the encoder and decoder of the paper's network.

The code of a patch is not a point but a Gaussian with a variance of its own, held near the standard normal by its
Kullback-Leibler divergence (Kingma and Welling 2014). That bounds what the code can tell apart, which a plain
bottleneck does by its width alone: the two belong in one comparison. The score is the paper's, the RMSE of a
reconstruction, here of the one from the mean of the code, so that nothing is drawn at scoring; the divergence may be
added to it, by configuration.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.autoencoder import AutoencoderConfig, build_autoencoder
from unary.detectors.protocol import Examination
from unary.prepare import FULL_SCALE

_LOG_VARIANCE = (-12.0, 6.0)


@dataclass(frozen=True)
class VariationalConfig:
    """What is particular to the variational network.

    Attributes
    ----------
    latent
        Dimensions of the code.
    kl_weight
        Of the divergence in the loss. 1 is the evidence lower bound for errors of variance 1 in standardised
        intensity; less lets the code say more.
    score_kl
        Whether the score is the squared error plus the divergence as weighted in training, instead of the RMSE alone.
    """

    latent: int = 32
    kl_weight: float = 1.0
    score_kl: bool = False

    def __post_init__(self) -> None:
        if self.latent < 1 or not self.kl_weight >= 0:
            raise ValueError(f"latent must be positive and kl_weight not negative: {self}")


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
    """A trained variational network as a detector."""

    network: VariationalNetwork
    config: VariationalConfig

    def examine(self, patches: NDArray[np.uint16]) -> Examination:
        """Score by the RMSE, in intensity units, or by the bound; the map is the absolute error."""
        with torch.inference_mode():
            values = torch.from_numpy(patches).float().div_(FULL_SCALE)[:, None]
            restored, divergence = self.network(values)
            error = (values - restored)[:, 0].abs().numpy()
            bound = _bound(self.network, values, restored, divergence, self.config.kl_weight)
        if self.config.score_kl:
            return Examination(bound.double().numpy(), error)
        return Examination(np.sqrt(np.square(error, dtype=np.float64).mean(axis=(1, 2))), error)


def build_variational(config: VariationalConfig, body: AutoencoderConfig, *, seed: int) -> VariationalNetwork:
    """Return an untrained network of the body's sizes; equal seeds give equal weights."""
    return VariationalNetwork(dataclasses.replace(body, bottleneck=config.latent), seed=seed)
