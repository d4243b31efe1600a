"""A variational autoencoder with the encoder and decoder of the paper's network.

The code of a patch is not a point but a Gaussian with a variance of its own, held near the standard normal by its
Kullback-Leibler divergence (Kingma and Welling 2014). That bounds what the code can tell apart, which a plain
bottleneck does by its width alone: the two belong in one comparison. The score is the paper's, the RMSE of a
reconstruction, here of the one from the mean of the code, so that nothing is drawn at scoring; the divergence may be
added to it, by configuration.

A dense bottleneck has no image pyramid to start from (`unary.detectors.wei2018.autoencoder.build_autoencoder`), and from a
random start the network explains less than each patch's own mean after hundreds of steps, whatever the width of its
code. `start_as_pyramid` lays the pyramid through the bottleneck, so that a comparison of widths compares widths.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.protocol import Examination
from unary.detectors.wei2018.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder, layer_sizes
from unary.patches.preparation import FULL_SCALE

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
        start_as_pyramid(self.body, seed=seed)
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


def start_as_pyramid(network: Autoencoder, *, seed: int) -> None:
    """Let a network with a dense bottleneck reproduce each patch coarsely before its first step, in place.

    Of the code, one number per block of the smallest image carries that block's mean; a code of 16 numbers or more
    holds all of the paper's 4 x 4. What is left of the code starts random. A network without a dense bottleneck, with
    too few feature maps, or with fewer numbers than channels is left as it is.
    """
    config = network.config
    side, _ = layer_sizes(config)[-1]
    blocks = min(side, math.isqrt((config.bottleneck or 0) // config.channels))
    if network.squeeze is None or network.expand is None or blocks < 1 or min(config.widths) < 2 * config.channels:
        return
    pyramid = build_autoencoder(dataclasses.replace(config, bottleneck=None, initialisation="pyramid"), seed=seed)
    network.encoder.load_state_dict(pyramid.encoder.state_dict())
    network.decoder.load_state_dict(pyramid.decoder.state_dict())
    edges, pixels = np.arange(blocks + 1) * side / blocks, np.arange(side)
    # overlap[block, pixel]: how much of the pixel lies in the block, along one axis
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = np.maximum(overlap, 0)
    widening = torch.from_numpy(np.kron(overlap, overlap).T).float()  # (pixels, blocks): each pixel's shares sum to 1
    narrowing = widening.T * (blocks / side) ** 2
    area, count = side * side, blocks * blocks
    with torch.no_grad():
        for channel in range(config.channels):
            own = slice(channel * count, (channel + 1) * count)
            plus = slice(2 * channel * area, (2 * channel + 1) * area)
            minus = slice((2 * channel + 1) * area, (2 * channel + 2) * area)
            network.squeeze.weight[own] = 0
            network.squeeze.weight[own, plus] = narrowing
            network.squeeze.weight[own, minus] = -narrowing
            network.expand.weight[plus] = 0
            network.expand.weight[minus] = 0
            network.expand.weight[plus, own] = widening
            network.expand.weight[minus, own] = -widening


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
