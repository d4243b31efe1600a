"""The convolutional autoencoder of Wei et al. 2018 (equations 2 and 3).

Eleven layers of data, ten of them computed: five convolutions of stride 2 halve the patch and widen it, five
transposed convolutions mirror them. Trained on normal patches alone, the network reconstructs normal tissue, and the
root mean square error of a patch's reconstruction is its anomaly score.

The paper gives sizes, loss and optimiser and is silent on the rest. What was chosen, by the experiments in
``docs/log.md``: 3 x 3 kernels, zero padding, a ReLU after every layer but the last, a linear output, intensities
standardised by the mean and spread of the training patches on the way in and restored on the way out, and an
initialisation that starts as an image pyramid (`build_autoencoder`). With the usual random start the network rests near
"every patch is its mean" for dozens of epochs, and the paper's error maps cannot be had.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.errors import require_positive
from unary.patches.preparation import FULL_SCALE

Initialisation = Literal["pyramid", "random"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the network.

    Attributes
    ----------
    size_px
        Side of the square input.
    channels
        Of the input: 1 for grey, 3 for colour.
    widths
        Feature maps after each halving; the defaults are equation 3.
    bottleneck
        None: the last halving is the bottleneck, as in equation 3 (4 x 4 x 32 = 512 numbers). Otherwise one dense
        layer each way narrows it further to this many numbers.
    input_mean, input_scale
        Subtracted from and divided into the input, and undone at the output: the mean and standard deviation of what it
        is trained on. The error is measured in the original units.
    initialisation
        See `build_autoencoder`.
    """

    size_px: int = 128
    channels: int = 1
    widths: tuple[int, ...] = (2, 4, 8, 16, 32)
    bottleneck: int | None = None
    input_mean: float = 0.0
    input_scale: float = 1.0
    initialisation: Initialisation = "pyramid"

    def __post_init__(self) -> None:
        require_positive(self, "channels", "widths", "bottleneck", "input_scale")
        if self.size_px < 2 ** (len(self.widths) - 1) or not math.isfinite(self.input_mean):
            raise ValueError(f"size_px must be at least 2**(len(widths) - 1), and input_mean finite: {self}")


def layer_sizes(config: AutoencoderConfig) -> tuple[tuple[int, int], ...]:
    """Return (side in px, feature maps) of every layer from input to bottleneck.

    >>> layer_sizes(AutoencoderConfig())
    ((128, 1), (64, 2), (32, 4), (16, 8), (8, 16), (4, 32))
    >>> layer_sizes(AutoencoderConfig(size_px=28, widths=(8, 16, 32)))
    ((28, 1), (14, 8), (7, 16), (4, 32))
    """
    sizes = [(config.size_px, config.channels)]
    for width in config.widths:
        sizes.append(((sizes[-1][0] + 1) // 2, width))
    return tuple(sizes)


class Autoencoder(nn.Module):
    """Encoder and decoder of equation 1, shaped by equation 3."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        sizes = layer_sizes(config)
        self.encoder = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel_size=3, stride=2, padding=1)
            for (_, inner), (_, outer) in itertools.pairwise(sizes)
        )
        # An even side is restored with one extra row and column, an odd side without.
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(inner, outer, kernel_size=3, stride=2, padding=1, output_padding=1 - side % 2)
            for (_, inner), (side, outer) in zip(sizes[:0:-1], sizes[-2::-1], strict=True)
        )
        side, width = sizes[-1]
        self.smallest = (width, side, side)
        self.squeeze: nn.Linear | None = None
        self.expand: nn.Linear | None = None
        if config.bottleneck is not None:
            self.squeeze = nn.Linear(side * side * width, config.bottleneck)
            self.expand = nn.Linear(config.bottleneck, side * side * width)

    def halve(self, patches: Tensor) -> Tensor:
        """Map (n, channels, size, size) to the last halving, (n, width, side, side)."""
        hidden = (patches - self.config.input_mean) / self.config.input_scale
        for layer in self.encoder:
            hidden = torch.relu(layer(hidden))
        return hidden

    def decode(self, hidden: Tensor) -> Tensor:
        """Map the hidden space, (n, width, side, side) or (n, bottleneck), back to (n, channels, size, size)."""
        if self.expand is not None:
            hidden = torch.relu(self.expand(hidden)).view(-1, *self.smallest)
        for layer in self.decoder[:-1]:
            hidden = torch.relu(layer(hidden))
        restored: Tensor = self.decoder[-1](hidden).float() * self.config.input_scale + self.config.input_mean
        return restored

    def forward(self, patches: Tensor) -> Tensor:
        """Reconstruct patches, shape (n, channels, size_px, size_px), float32, intensities in [0, 1].

        The answer, of the same shape and dtype, is not clamped: the output layer is linear.
        """
        hidden = self.halve(patches)
        return self.decode(hidden if self.squeeze is None else self.squeeze(hidden.flatten(1)))


def build_autoencoder(config: AutoencoderConfig, *, seed: int) -> Autoencoder:
    """Return a network with reproducible initial weights, whatever the global generator holds.

    ``"random"`` is He's initialisation for the fan that a ReLU sees. In a transposed convolution of stride 2 each
    output sums over about a quarter of the kernel, so its fan is ``in_channels * 9 / 4``. The last layer starts at a
    tenth of that, so that the first reconstruction is nearly the mean and not noise that must be unlearned first.

    ``"pyramid"`` then overwrites two feature maps per layer and input channel: one carries the positive part of the
    halved image, one the negative part, smoothed by the binomial kernel (1, 2, 1) on the way down and interpolated on
    the way up. Before its first step the network thus reproduces the patch at bottleneck resolution; the other feature
    maps, random as before, learn what is missing. Through a dense bottleneck as much of the pyramid is laid as its
    numbers hold: one of them carries the mean of one block of the smallest image, so that 16 hold all of the paper's
    4 x 4. Where a layer has fewer than two maps per input channel, or the bottleneck fewer numbers than channels, the
    start stays random.
    """
    network = Autoencoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.ConvTranspose2d):
                fan = module.in_channels * 9 / 4
            elif isinstance(module, nn.Conv2d | nn.Linear):
                fan = module.weight[0].numel()
            else:
                continue
            module.weight.normal_(0.0, (2.0 / fan) ** 0.5, generator=generator)
            assert module.bias is not None
            module.bias.zero_()
        _weight(network.decoder[-1]).mul_(0.1)
        blocks = _count_blocks(config)
        if config.initialisation == "pyramid" and blocks >= 1 and min(config.widths) >= 2 * config.channels:
            _start_as_pyramid(network)
            _lead_through_bottleneck(network, blocks)
    # One memory layout for training and for a model read back, so that both give the same numbers to the last bit.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _start_as_pyramid(network: Autoencoder) -> None:
    """Overwrite weights so that maps 2c and 2c + 1 carry the positive and negative part of channel c through."""
    tap = torch.tensor([0.25, 0.5, 0.25])
    halving = torch.outer(tap, tap)
    doubling = 4 * halving
    for number in range(network.config.channels):
        plus, minus = 2 * number, 2 * number + 1
        for depth, layer in enumerate(network.encoder):
            weight = _weight(layer)  # (out, in, 3, 3)
            weight[[plus, minus]] = 0
            if depth == 0:
                weight[plus, number], weight[minus, number] = halving, -halving
            else:
                weight[plus, plus], weight[plus, minus] = halving, -halving
                weight[minus, plus], weight[minus, minus] = -halving, halving
        for layer in network.decoder[:-1]:
            weight = _weight(layer)  # (in, out, 3, 3)
            weight[:, [plus, minus]] = 0
            weight[plus, plus], weight[minus, plus] = doubling, -doubling
            weight[plus, minus], weight[minus, minus] = -doubling, doubling
        weight = _weight(network.decoder[-1])
        weight[:, number] = 0
        weight[plus, number], weight[minus, number] = doubling, -doubling


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _count_blocks(config: AutoencoderConfig) -> int:
    """Into how many blocks a side the bottleneck can divide the smallest image: without one, into single pixels."""
    side, _ = layer_sizes(config)[-1]
    return side if config.bottleneck is None else min(side, math.isqrt(config.bottleneck // config.channels))


def _lead_through_bottleneck(network: Autoencoder, blocks: int) -> None:
    """Overwrite weights of a dense bottleneck, if there is one, so that it carries the smallest image's blocks."""
    if network.squeeze is None or network.expand is None:
        return
    side, _ = layer_sizes(network.config)[-1]
    edges, pixels = np.arange(blocks + 1) * side / blocks, np.arange(side)
    # overlap[block, pixel]: how much of the pixel lies in the block, along one axis
    overlap = np.maximum(np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels), 0)
    widening = torch.from_numpy(np.kron(overlap, overlap).T).float()  # (pixels, blocks): each pixel's shares sum to 1
    narrowing = widening.T * (blocks / side) ** 2
    area, count = side * side, blocks * blocks
    for channel in range(network.config.channels):
        own = slice(channel * count, (channel + 1) * count)
        plus = slice(2 * channel * area, (2 * channel + 1) * area)
        minus = slice((2 * channel + 1) * area, (2 * channel + 2) * area)
        network.squeeze.weight[own] = 0
        network.squeeze.weight[own, plus], network.squeeze.weight[own, minus] = narrowing, -narrowing
        network.expand.weight[plus], network.expand.weight[minus] = 0, 0
        network.expand.weight[plus, own], network.expand.weight[minus, own] = widening, -widening


def to_tensor(patches: NDArray[np.uint16]) -> Tensor:
    """Return patches, shape (n, size, size), uint16, as the network sees them: (n, 1, size, size) in [0, 1]."""
    return torch.from_numpy(patches).float().div_(FULL_SCALE)[:, None]


def reconstruction_rmse(patches: Tensor, reconstructions: Tensor) -> Tensor:
    """Root mean square error over all pixels and channels of each patch, shape (n,) (Wei et al. 2018, section 5)."""
    return (patches - reconstructions).square().flatten(1).mean(dim=1).sqrt()
