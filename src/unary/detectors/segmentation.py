"""Segmentation of simulated calcifications: normal tissue plus a prior of what a lesion looks like.

The network learns on normal images into which calcifications were drawn (`unary.detectors.simulation`), and is listed
apart from the strict one-class detectors because it has been told the target. It answers with the log-odds that a pixel
belongs to a calcification. Two losses: per pixel, and per patch, on the very statistic that scores a patch (the mean of
its strongest pixels); the second one is what makes it good where false alarms must be rare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.crops import (
    Source,
    describe_with_noise,
    draw_batch,
    draw_crop,
    draw_exposure,
    find_sources,
    require_crops,
)
from unary.detectors.devices import place_network
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.simulation import CalcificationConfig, CalcificationLibrary, add_calcifications, build_library
from unary.detectors.states import describe_network, require_fitted, restore_network
from unary.detectors.tissue import examine_answer
from unary.detectors.unet import UNet, build_inputs, build_unet, check_widths, map_tissue
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.engine import StepsConfig, mixed_precision, train_steps

_CROP_PX = 96
_PATCH_PX = 64
_LESION_SHARE = 0.6  # of the crops
_LESION_WEIGHT = 3.0  # of lesion pixels against the rest
_PIXEL_WEIGHT = 0.5  # of the pixel loss against the patch loss
_OUTSIDE = 30.0


@dataclass(frozen=True)
class SegmentationConfig:
    """The network, how a patch is scored, what is simulated, and training.

    Attributes
    ----------
    widths
        Feature maps of the U-Net at each resolution, finest first.
    strongest
        How many of the largest pixels of a patch are averaged.
    simulation
        Ranges of the simulated calcifications.
    training
        Optimisation.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    strongest: int = 8
    simulation: CalcificationConfig = field(default=CalcificationConfig())
    training: StepsConfig = field(default=StepsConfig(steps=1500, batch_size=16))

    def __post_init__(self) -> None:
        check_widths(self.widths)
        if not 1 <= self.strongest <= _PATCH_PX**2:
            raise ValueError(f"strongest must lie in 1 to {_PATCH_PX**2}, got {self.strongest}")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """U-Net on calcifications simulated in normal tissue.

    The map holds the log-odds of a calcification; the score is the mean of a patch's strongest pixels. There is no
    network before fitting.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals + lesion prior"
    config: SegmentationConfig = SegmentationConfig()
    network: UNet | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Segmentation:
        """Learn to find simulated calcifications; see `unary.detectors.protocol.Detector.fit`."""
        title = context.name_bar("reading tissue")
        config, sources = self.config, find_sources(normals, describe_with_noise, size_px=_CROP_PX, title=title)
        library = build_library(config.simulation, np.random.default_rng(context.seed))
        model = _WithCalibration(build_unet(config.widths, seed=context.seed))

        def draw(rng: np.random.Generator, count: int) -> Sequence[Tensor]:
            return draw_batch(lambda: _draw_lesion(sources, library, rng), count)

        def compute_loss(intensity: Tensor, noise: Tensor, mask: Tensor, target: Tensor) -> Tensor:
            with mixed_precision():
                log_odds = model.network(build_inputs(intensity, noise, mask))
            return _measure_loss(log_odds.float(), target, mask, model.patch, strongest=config.strongest)

        settings = {**dataclasses.asdict(config), "training": None}
        train_steps(
            model, draw, compute_loss, config.training, context, name="segmentation", settings=settings, data=normals
        )
        return dataclasses.replace(self, network=model.network)

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse by a `TrainingError` what could not be learned from."""
        require_crops(normals, _CROP_PX)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`."""
        answer = map_tissue(require_fitted(self.network, "segmentation"), view.tissue)
        strongest = self.config.strongest
        return examine_answer(view, answer, origins, size_px=size_px, strongest=strongest, with_map=with_map)

    def on_device(self, device: str) -> Segmentation:
        """Return the same with its network there; see `unary.detectors.devices`."""
        return dataclasses.replace(self, network=place_network(self.network, device))

    def get_state(self) -> DetectorState:
        """Return configuration and weights."""
        return describe_network(self.config, self.network, "segmentation")

    @classmethod
    def from_state(cls, state: DetectorState) -> Segmentation:
        return cls(*restore_network(state, SegmentationConfig, lambda config: build_unet(config.widths, seed=0)))


class _WithCalibration(nn.Module):
    """The network and the two numbers that turn its strongest answers into a patch's log-odds; training only."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.patch = nn.Parameter(torch.tensor([1.0, 0.0]))


def _draw_lesion(
    sources: Sequence[Source], library: CalcificationLibrary, rng: np.random.Generator
) -> tuple[Sequence[NDArray[Any]], int]:
    """Return a crop's intensity, noise, mask and target; and its symmetry."""
    intensity, noise, mask = draw_crop(sources, rng, size_px=_CROP_PX)
    target = np.zeros(mask.shape, bool)
    if rng.random() < _LESION_SHARE:
        intensity, target = add_calcifications(intensity, noise, library, rng)
    gain, offset = draw_exposure(rng)
    return (np.minimum(intensity, 1) * gain + offset, noise * gain, mask, target * mask), int(rng.integers(8))


def _measure_loss(log_odds: Tensor, target: Tensor, mask: Tensor, calibration: Tensor, *, strongest: int) -> Tensor:
    """Pixel loss inside the mask, and the loss of the central patch by the statistic that will score it."""
    by_pixel = F.binary_cross_entropy_with_logits(
        log_odds, target, weight=mask, pos_weight=log_odds.new_tensor(_LESION_WEIGHT)
    )
    margin = (_CROP_PX - _PATCH_PX) // 2
    centre = (..., slice(margin, margin + _PATCH_PX), slice(margin, margin + _PATCH_PX))
    inside = (log_odds - _OUTSIDE * (1 - mask))[centre].flatten(1)
    pooled = inside.topk(strongest, dim=1).values.mean(dim=1)
    holds_lesion = (target[centre].flatten(1).sum(dim=1) > 0).float()
    by_patch = F.binary_cross_entropy_with_logits(pooled * calibration[0] + calibration[1], holds_lesion)
    return _PIXEL_WEIGHT * by_pixel + by_patch
