"""Fitting `unary.detectors.segmentation` on simulated calcifications in normal tissue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unary.detectors.crops import Source, draw_crop, find_sources, identify_sources, turn
from unary.detectors.segmentation import INPUTS, STRONGEST, Segmentation, build_inputs
from unary.detectors.simulation import CalcificationConfig, CalcificationLibrary, add_calcifications, build_library
from unary.detectors.tissue import Tissue
from unary.detectors.unet import UNet, UNetConfig, build_unet
from unary.training.engine import StepsConfig, mixed_precision, optimise

CROP_PX = 96
PATCH_PX = 64
DEFAULT_STEPS = StepsConfig(steps=1500, batch_size=16)
_LESION_SHARE = 0.6  # of the crops
_LESION_WEIGHT = 3.0  # of lesion pixels against the rest
_PIXEL_WEIGHT = 0.5  # of the pixel loss against the patch loss
_OUTSIDE = 30.0


class _WithCalibration(nn.Module):
    """The network and the two numbers that turn its strongest answers into a patch's log-odds; training only."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.patch = nn.Parameter(torch.tensor([1.0, 0.0]))


def fit_segmentation(
    tissues: Sequence[Tissue],
    steps: StepsConfig = DEFAULT_STEPS,
    *,
    simulation: CalcificationConfig | None = None,
    widths: tuple[int, ...] = (16, 32, 64),
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Segmentation:
    """Learn to find simulated calcifications in normal tissue.

    Raises
    ------
    TrainingError
        If no image is large enough, or training diverges.
    """
    sources = find_sources(tissues, size_px=CROP_PX)
    library = build_library(simulation or CalcificationConfig(), np.random.default_rng(steps.seed))
    model = _WithCalibration(build_unet(UNetConfig(INPUTS, widths), seed=steps.seed))

    def compute_loss(rng: np.random.Generator) -> Tensor:
        intensity, noise, mask, target = _draw_batch(sources, library, rng, count=steps.batch_size)
        inputs = build_inputs(intensity, noise, mask).contiguous(memory_format=torch.channels_last)
        with mixed_precision():
            log_odds = model.network(inputs)
        return _measure_loss(log_odds.float(), target, mask, model.patch)

    optimise(
        model,
        compute_loss,
        steps,
        name=f"segmentation {identify_sources(sources)}",
        checkpoint=checkpoint,
        on_step=on_step,
    )
    return Segmentation(model.network)


def _draw_batch(
    sources: Sequence[Source], library: CalcificationLibrary, rng: np.random.Generator, *, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return intensity, noise, mask and target, (count, 1, CROP_PX, CROP_PX) float32 each."""
    planes = np.zeros((4, count, 1, CROP_PX, CROP_PX), np.float32)
    for number in range(count):
        crop = draw_crop(sources, rng, size_px=CROP_PX)
        intensity, target = crop.intensity, np.zeros(crop.mask.shape, bool)
        if rng.random() < _LESION_SHARE:
            intensity, target = add_calcifications(intensity, crop.noise, library, rng)
        gain = np.float32(np.exp(0.15 * rng.normal()))
        offset = np.float32(0.05 * rng.normal())
        symmetry = int(rng.integers(8))
        drawn = (np.minimum(intensity, 1) * gain + offset, crop.noise * gain, crop.mask, target * crop.mask)
        for plane, values in zip(planes, drawn, strict=True):
            plane[number, 0] = turn(values, symmetry)
    intensities, noises, masks, targets = torch.from_numpy(planes)
    return intensities, noises, masks, targets


def _measure_loss(log_odds: Tensor, target: Tensor, mask: Tensor, calibration: Tensor) -> Tensor:
    """Pixel loss inside the mask, and the loss of the central patch by the statistic that will score it."""
    by_pixel = F.binary_cross_entropy_with_logits(
        log_odds, target, weight=mask, pos_weight=torch.tensor(_LESION_WEIGHT)
    )
    margin = (CROP_PX - PATCH_PX) // 2
    centre = (..., slice(margin, margin + PATCH_PX), slice(margin, margin + PATCH_PX))
    inside = (log_odds - _OUTSIDE * (1 - mask))[centre].flatten(1)
    strongest = inside.topk(STRONGEST, dim=1).values.mean(dim=1)
    holds_lesion = (target[centre].flatten(1).sum(dim=1) > 0).float()
    by_patch = F.binary_cross_entropy_with_logits(strongest * calibration[0] + calibration[1], holds_lesion)
    return _PIXEL_WEIGHT * by_pixel + by_patch
