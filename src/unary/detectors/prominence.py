"""Prominence: regional brightness relative to the image's own tissue. No learning.

A mass is a region of several millimetres that is denser than the tissue around it. Its brightness in absolute terms
says more about the patient than about the lesion; its standing among the regions of the same image does not. Reason to
exist: it sees what the speck detectors cannot, and no learned mass detector was accepted here that did not beat it. It
assumes that the whole organ is given, and that the densest region deserves the look: a muscle at the image's border is
its usual false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.detectors.coarse import STEP, enlarge_cells, sum_cells
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import describe_config, read_config
from unary.detectors.tissue import examine_answer
from unary.errors import require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext

_WIDEST_PX = 10_000.0
COARSE = 4  # the mean over millimetres needs no fine grid


@dataclass(frozen=True)
class ProminenceConfig:
    """How large a region is.

    Attributes
    ----------
    region_px
        Standard deviation of the Gaussian mean, in working pixels; 32 are 4.5 mm at 0.14 mm per pixel.
    muscle
        Whether the pectoral muscle is looked for and left out (`unary.detectors.pectoral`).
    """

    region_px: float = 32.0
    muscle: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "region_px")
        if self.region_px > _WIDEST_PX:
            raise ValueError(f"region_px must not exceed {_WIDEST_PX:g}, got {self.region_px}")


@dataclass(frozen=True, eq=False)
class Prominence:
    """Regional brightness relative to the image's own tissue.

    The map holds spreads above the median of the image's regions; a patch's score is its mean. There is nothing to fit.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "no learning"
    config: ProminenceConfig = ProminenceConfig()

    def fit(self, normals: PatchSet, context: FitContext) -> Prominence:
        """Return the same detector."""
        return self

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`."""
        standing = _measure_standing(view, self.config)
        return examine_answer(view, standing, origins, size_px=size_px, strongest=None, with_map=with_map)

    def get_state(self) -> DetectorState:
        """Return the configuration."""
        return DetectorState({"config": describe_config(self.config)})

    @classmethod
    def from_state(cls, state: DetectorState) -> Prominence:
        return cls(read_config(ProminenceConfig, state.settings["config"]))


def _measure_standing(view: View, config: ProminenceConfig) -> NDArray[np.float32]:
    """Return the standing of each pixel's region, (rows, cols), in spreads above the median; 0 if all are alike.

    What is left out stands at the median.
    """
    tissue, area = view.tissue, np.float32(COARSE**2)
    nothing = np.zeros(tissue.shape, np.float32)
    if not tissue.mask.any():
        return nothing
    strips = [
        (
            sum_cells(strip.mask.astype(np.float32), COARSE) / area,
            sum_cells(strip.intensity * strip.mask, COARSE) / area,
        )
        for strip in tissue.strips(0)  # a strip begins at a multiple of the block
    ]
    inside, bright = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    if config.muscle and view.coarse.muscle.any():
        outside = enlarge_cells(view.coarse.muscle, inside.shape, STEP // COARSE)
        inside, bright = (np.where(outside, np.float32(0), values) for values in (inside, bright))
    sigma = config.region_px / COARSE
    regional = ndimage.gaussian_filter(bright, sigma) / (ndimage.gaussian_filter(inside, sigma) + 1e-3)
    own = regional[inside > 0.5]
    if own.size == 0 or not own.std() > 0:
        return nothing
    standing = np.where(inside > 0, (regional - np.median(own)) / own.std(), 0).astype(np.float32)
    return enlarge_cells(standing, tissue.shape, COARSE)
