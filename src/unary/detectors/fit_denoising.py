"""Fitting `unary.detectors.denoising`: normal tissue, corrupted at the scale of a speck and to be restored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from unary.detectors.crops import Grid, Source, draw_crop, find_sources, identify_sources, turn
from unary.detectors.denoising import Denoising, estimate_addition
from unary.detectors.segmentation import INPUTS
from unary.detectors.tissue import Tissue
from unary.detectors.unet import UNet, UNetConfig, build_unet
from unary.training.engine import StepsConfig, mixed_precision, optimise

CROP_PX = 96
DEFAULT_STEPS = StepsConfig(steps=1500, batch_size=16)


@dataclass(frozen=True)
class CorruptionConfig:
    """What is added to normal tissue; contrasts are in units of the local noise, all ranges log-uniform.

    Attributes
    ----------
    blob_sigma_px, blob_contrast
        Ranges of the width and the peak, of either sign, of the Gaussian blobs.
    most_blobs
        A crop gets between 1 and this many.
    coarse_step_px, coarse_contrast
        Ranges of the grid on which the coarse noise is drawn before it is enlarged, and of its standard deviation.
    blob_share, coarse_share
        How many of the crops get blobs, and, drawn independently, coarse noise. The rest stays clean: the network must
        also learn to leave alone.
    """

    blob_sigma_px: tuple[float, float] = (0.5, 4.0)
    blob_contrast: tuple[float, float] = (1.0, 12.0)
    most_blobs: int = 20
    coarse_step_px: tuple[int, int] = (2, 8)
    coarse_contrast: tuple[float, float] = (0.3, 3.0)
    blob_share: float = 0.7
    coarse_share: float = 0.4

    def __post_init__(self) -> None:
        ranges = (self.blob_sigma_px, self.blob_contrast, self.coarse_step_px, self.coarse_contrast)
        if any(not 0 < low <= high for low, high in ranges) or self.most_blobs < 1:
            raise ValueError(f"ranges must be positive and ascending, most_blobs at least 1: {self}")
        if not (0 <= self.blob_share <= 1 and 0 <= self.coarse_share <= 1) or self.blob_share + self.coarse_share == 0:
            raise ValueError(f"blob_share and coarse_share must lie in [0, 1] and not both be 0: {self}")


def fit_denoising(
    tissues: Sequence[Tissue],
    steps: StepsConfig = DEFAULT_STEPS,
    *,
    corruption: CorruptionConfig | None = None,
    widths: tuple[int, ...] = (16, 32, 64),
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Denoising:
    """Learn to restore normal tissue.

    The loss is the squared difference between the restored and the clean crop, in units of the local noise, inside the
    mask: its minimum is the expected corruption given the crop, which stays proportionate for faint blobs.

    Raises
    ------
    TrainingError
        If no image is large enough, or training diverges.
    """
    sources = find_sources(tissues, size_px=CROP_PX)
    chosen = corruption or CorruptionConfig()
    network = build_unet(UNetConfig(INPUTS, widths), seed=steps.seed)
    _start_lively(network)

    def compute_loss(rng: np.random.Generator) -> Tensor:
        clean, noise, mask, added = _draw_batch(sources, chosen, rng, count=steps.batch_size)
        corrupted = clean + noise * added
        with mixed_precision():
            estimated = estimate_addition(network, corrupted, noise, mask)
        restored = corrupted - noise * estimated.float()
        return (((restored - clean) / noise).square() * mask).sum() / mask.sum().clamp(min=1)

    optimise(
        network,
        compute_loss,
        steps,
        name=f"denoising {identify_sources(sources)}",
        checkpoint=checkpoint,
        on_step=on_step,
    )
    return Denoising(network)


def _start_lively(network: UNet) -> None:
    """Widen torch's default weights to He's spread, which a ReLU leaves unchanged from layer to layer.

    With the default the answer hardly depends on the input at first, and "nothing was added" holds the network for
    hundreds of steps.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                module.bias.zero_()
                if module is not network.head:
                    module.weight.mul_(math.sqrt(6.0))  # uniform of variance 1 / (3 fan) becomes 2 / fan


def draw_corruption(config: CorruptionConfig, rng: np.random.Generator, *, size_px: int) -> NDArray[np.float32]:
    """Return what is added to a crop, shape (size_px, size_px), float32, in units of the local noise.

    Zero in expectation; all zero for a crop that stays clean.
    """
    added = np.zeros((size_px, size_px), np.float32)
    if rng.random() < config.blob_share:
        for _ in range(int(rng.integers(1, config.most_blobs + 1))):
            peak = rng.choice([-1.0, 1.0]) * _draw_log_uniform(config.blob_contrast, rng)
            _add_blob(added, peak, _draw_log_uniform(config.blob_sigma_px, rng), rng.uniform(-0.5, size_px - 0.5, 2))
    if rng.random() < config.coarse_share:
        step = int(rng.integers(config.coarse_step_px[0], config.coarse_step_px[1] + 1))
        side = size_px // step + 3
        enlarged = ndimage.zoom(rng.standard_normal((side, side)), step, order=1)
        row, col = rng.integers(0, step, 2).tolist()
        added += np.float32(_draw_log_uniform(config.coarse_contrast, rng)) * enlarged[
            row : row + size_px, col : col + size_px
        ].astype(np.float32)
    return added


def _draw_log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def _add_blob(added: Grid, peak: float, sigma: float, centre: NDArray[np.float64]) -> None:
    """Add a Gaussian in place, as far as it lies inside."""
    reach = math.ceil(4 * sigma)
    low = np.clip(np.rint(centre).astype(int) - reach, 0, added.shape)
    high = np.clip(np.rint(centre).astype(int) + reach + 1, 0, added.shape)
    down, along = (np.exp(-0.5 * ((np.arange(low[axis], high[axis]) - centre[axis]) / sigma) ** 2) for axis in range(2))
    added[low[0] : high[0], low[1] : high[1]] += (peak * np.outer(down, along)).astype(np.float32)


def _draw_batch(
    sources: Sequence[Source], corruption: CorruptionConfig, rng: np.random.Generator, *, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return clean intensity, noise, mask and what is to be added, (count, 1, CROP_PX, CROP_PX) float32 each."""
    planes = np.zeros((4, count, 1, CROP_PX, CROP_PX), np.float32)
    for number in range(count):
        crop = draw_crop(sources, rng, size_px=CROP_PX)
        gain = np.float32(np.exp(0.15 * rng.normal()))
        offset = np.float32(0.05 * rng.normal())
        symmetry = int(rng.integers(8))
        # Outside the breast nothing is added: there is none at scoring either.
        added = draw_corruption(corruption, rng, size_px=CROP_PX) * crop.mask
        for plane, values in zip(
            planes, (crop.intensity * gain + offset, crop.noise * gain, crop.mask, added), strict=True
        ):
            plane[number, 0] = turn(values, symmetry)
    cleans, noises, masks, addeds = torch.from_numpy(planes)
    return cleans, noises, masks, addeds
