"""A small U-Net, what it reads of an image, and how it goes over one: shared by the detectors that learn from crops."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.devices import find_device
from unary.detectors.filters import MEAN_WINDOW_PX, subtract_local_mean
from unary.detectors.tissue import NOISE_HALO_PX, STRIP_STEP, Strip, Tissue, measure_noise
from unary.training.threads import run_in_threads

_INPUTS = 3
OUTSIDE = -20.0
_TILE_ROWS, _TILE_COLS = 512, 2048
_MEAN_HALO_PX = 2 * (MEAN_WINDOW_PX // 2)
_MOST_LEVELS = 6  # bands begin at multiples of 32 rows


def check_widths(widths: tuple[int, ...]) -> None:
    """Refuse by a `ValueError` what cannot be the feature maps of a U-Net at each resolution, finest first."""
    if not 1 <= len(widths) <= _MOST_LEVELS or min(widths) < 1:
        raise ValueError(f"widths must be up to {_MOST_LEVELS} positive numbers, got {widths}")


class UNet(nn.Module):
    """Two 3 x 3 convolutions per level down, each half as fine, one per level up, one output channel."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.multiple_px = 2 ** (len(widths) - 1)  # what rows and columns of the input must be a multiple of
        # At most: two pixels down and one up at each resolution, and pooling blocks.
        self.reach_px = 3 * 2 ** len(widths)
        self.down = nn.ModuleList(
            nn.Sequential(_convolve(inner, outer), _convolve(outer, outer))
            for inner, outer in zip((_INPUTS, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(
            _convolve(coarse + fine, fine) for fine, coarse in reversed(list(itertools.pairwise(widths)))
        )
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, inputs, rows, cols) to (n, 1, rows, cols)."""
        levels = [self.down[0](image)]
        for block in self.down[1:]:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        hidden = levels.pop()
        for block in self.up:
            skip = levels.pop()
            hidden = block(torch.cat([F.interpolate(hidden, scale_factor=2.0), skip], dim=1))
        result: Tensor = self.head(hidden)
        return result


def build_unet(widths: tuple[int, ...], *, seed: int) -> UNet:
    """Return an untrained network; equal seeds give equal weights, and torch's global generator is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(widths).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _convolve(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(inplace=True))


def build_inputs(intensity: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Return the network's channels, (n, 3, rows, cols), from three tensors of shape (n, 1, rows, cols).

    Intensity roughly standardised; fine structure in units of the local noise, compressed so that a large speck does
    not drown a small one; the mask.
    """
    contrast = torch.asinh(subtract_local_mean(intensity) / noise / 4)
    inputs = torch.cat([(intensity - 0.4) / 0.2, contrast, mask], dim=1)
    return inputs.contiguous(memory_format=torch.channels_last)


def map_tissue(network: UNet, tissue: Tissue) -> NDArray[np.float32]:
    """Return a network's answer to `build_inputs` at each pixel, shape (rows, cols), float32; -20 outside the tissue.

    Tile by tile, of a size that no number of threads changes, each with a margin that holds all that it depends on.
    """
    answer = np.full(tissue.shape, OUTSIDE, np.float32)
    halo = -(-(NOISE_HALO_PX + _MEAN_HALO_PX + network.reach_px) // STRIP_STEP) * STRIP_STEP

    def examine(tile: tuple[Strip, int]) -> None:
        strip, left = tile
        filled = left + np.flatnonzero(strip.mask[strip.own, left : left + _TILE_COLS].any(axis=0))
        if not len(filled):
            return
        own = slice(int(filled[0]) // STRIP_STEP * STRIP_STEP, int(filled[-1]) + 1)
        seen = slice(max(own.start - halo, 0), own.stop + halo)
        found = _apply(network, strip.intensity[:, seen], strip.mask[:, seen])
        inside = found[strip.own, own.start - seen.start : own.stop - seen.start]
        np.copyto(answer[strip.rows, own], inside, where=strip.mask[strip.own, own])

    strips = tissue.strips(halo, most_rows=_TILE_ROWS)
    run_in_threads(examine, ((strip, left) for strip in strips for left in range(0, tissue.shape[1], _TILE_COLS)))
    return answer


def _apply(network: UNet, intensity: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The network's answer to a part of an image, (rows, cols) all: grown to what pooling divides, and cut again."""
    rows, cols = mask.shape
    planes = (np.ascontiguousarray(intensity), measure_noise(intensity, mask), mask.astype(np.float32))
    padding = (0, -cols % network.multiple_px, 0, -rows % network.multiple_px)
    with torch.inference_mode():
        padded = [F.pad(torch.from_numpy(plane)[None, None], padding, mode="replicate") for plane in planes]
        inputs = build_inputs(*padded).to(find_device(network))
        answer: NDArray[np.float32] = network(inputs)[0, 0, :rows, :cols].cpu().numpy()
    return answer
