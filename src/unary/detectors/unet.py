"""A small U-Net, the shape that the dense detectors share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network.

    Attributes
    ----------
    inputs
        Channels of the input.
    widths
        Feature maps at each resolution, finest first; each step down halves rows and columns.
    """

    inputs: int
    widths: tuple[int, ...] = (16, 32, 64)

    def __post_init__(self) -> None:
        if self.inputs < 1 or not self.widths or min(self.widths) < 1:
            raise ValueError(f"inputs and widths must be positive: {self}")

    @property
    def multiple_px(self) -> int:
        """Rows and columns of the input must be a multiple of this."""
        return int(2 ** (len(self.widths) - 1))


class UNet(nn.Module):
    """Two 3 x 3 convolutions per level down, one per level up, one output channel."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.down = nn.ModuleList(
            nn.Sequential(_convolve(inner, outer), _convolve(outer, outer))
            for inner, outer in zip((config.inputs, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(
            _convolve(coarse + fine, fine) for fine, coarse in reversed(list(itertools.pairwise(widths)))
        )
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, inputs, rows, cols) to (n, 1, rows, cols)."""
        levels: list[Tensor] = []
        hidden = image
        for number, block in enumerate(self.down):
            hidden = block(hidden if number == 0 else F.max_pool2d(hidden, 2))
            levels.append(hidden)
        for block, skip in zip(self.up, levels[-2::-1], strict=True):
            hidden = block(torch.cat([F.interpolate(hidden, scale_factor=2.0), skip], dim=1))
        result: Tensor = self.head(hidden)
        return result


def build_unet(config: UNetConfig, *, seed: int) -> UNet:
    """Return an untrained network; equal seeds give equal weights, and torch's global generator is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _convolve(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(inplace=True))
