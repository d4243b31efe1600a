"""A picture that every model is asked about when it is written, and again when it is read.

Hashes say that a model's files are those that were written. They do not say that they still mean the same: with other
libraries, on another machine, or after somebody has changed a number and made the hash anew. So a model keeps what it
said of a synthetic picture: of patches, of what stands out, and what its baseline said. A model that answers otherwise
is not the one that was fitted.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unary.detectors.protocol import Detector
from unary.detectors.scoring import score_patches
from unary.models.examination import examine_image
from unary.patches.grid import tissue_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import prepare_image
from unary.records import Image

if TYPE_CHECKING:
    from unary.models.bundle import Model

_FINDINGS = 4
_MOST_PX = 1024
_TOLERANCE = 0.02  # of the largest answer: some detectors round to 8 bits, others order their sums by the processor


@dataclass(frozen=True)
class Picture:
    """What is shown: a square of ``side_px`` stored pixels, ``spacing_mm`` apart, with values from low to high."""

    side_px: int
    spacing_mm: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (1 <= self.side_px <= _MOST_PX and 0 < self.spacing_mm < math.inf):
            raise ValueError(f"side_px must lie in 1 to {_MOST_PX} and spacing_mm be positive: {self}")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low must lie below high: {self}")


@dataclass(frozen=True)
class Answer:
    """What a model says of a picture: scores of patches, of the strongest candidates, and of patches by the baseline.

    ``highest`` is the image's score, ``p_value`` its p-value, ``scored_px`` how much of it was scored, and
    ``out_of_domain`` how it differs from the images that the model has learned from.
    """

    patches: tuple[float, ...]
    findings: tuple[float, ...]
    highest: float | None
    p_value: float | None
    scored_px: int
    baseline: tuple[float, ...]
    out_of_domain: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A picture, and the answer of the model that was written."""

    picture: Picture
    answer: Answer


def choose_picture(model: Model) -> Picture:
    """Return a picture of several patches a side, on which no part of a detector is silent, if that can be.

    That is for whatever a model's grid, spacing and intensity are.
    """
    preparation, grid = model.preparation, model.grid
    working_mm, working_px = preparation.working_spacing_mm, preparation.working_size_px
    spacing_mm, scale = (0.07, 1.0) if working_mm is None else (0.8 * working_mm, 1.25)
    wanted_px = max(grid.size_px + 2 * grid.stride_px, _find_side_of_all(model.detector))
    side_px = math.ceil(wanted_px * scale * 8 / 7)
    side_px = side_px if working_px is None else math.ceil(1.25 * working_px)
    low, high = preparation.window or (0.0, 4095.0)
    return Picture(min(max(side_px, 96), _MOST_PX), spacing_mm, low, high)


def _find_side_of_all(detector: Detector) -> int:
    """Return the shorter side, in working pixels, of the smallest view that a detector and all its parts can judge."""
    parts = [detector, *(detector.build_parts() if hasattr(detector, "build_parts") else ())]
    return max(getattr(part, "least_side_px", 0) for part in parts)


def draw_picture(picture: Picture) -> Image:
    """Return it: waves and noise beside a dark margin, a disc, and some specks, the same on every machine."""
    side = picture.side_px
    row, col = np.mgrid[:side, :side]
    values = 0.35 + 0.08 * np.sin(row / 17.0) * np.cos(col / 23.0) + 0.05 * _draw_noise(side)
    values += 0.12 * (np.hypot(row - 0.6 * side, col - 0.45 * side) < 0.1 * side)
    for number in range(1, 6):
        place = (side * (0.15 * number), side * (0.3 + 0.11 * (number * 2 % 5)))
        values += 0.1 * number * np.exp(-((row - place[0]) ** 2 + (col - place[1]) ** 2) / (0.7 * number))
    values[(7 * row + 13 * col) % 331 == 0] = 0.15
    values[:, : side // 8] = 0.01
    values[0, 0] = 0.0
    scaled = picture.low + np.clip(values, 0, 1) * (picture.high - picture.low)
    limits = (picture.low, picture.high)
    image = Image.from_array(scaled.astype(np.float32), spacing_mm=picture.spacing_mm, value_range=limits)
    return dataclasses.replace(image, intent="TEST", manufacturer="test picture", model_name="test picture")


def _draw_noise(side: int) -> NDArray[np.float64]:
    """Numbers in [-0.5, 0.5), shape (side, side), by the mixing of SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = np.arange(1, side * side + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed >> np.uint64(40)) / 2.0**24 - 0.5).reshape(side, side)


def ask(model: Model, picture: Picture) -> Answer:
    """Return what a model says of a picture; raises whatever its detector raises."""
    scored = examine_image(model, draw_picture(picture))
    size_px = model.grid.size_px
    patches = build_patch_set(scored.prepared.pixels, scored.origins, size_px=size_px, mask=scored.prepared.mask)
    highest, calibration = scored.image_score, model.calibration
    return Answer(
        tuple(scored.scores.tolist()),
        tuple(scored.candidates.scores[:_FINDINGS].tolist()),
        highest,
        None if calibration is None or highest is None else calibration.find_p_value(highest),
        scored.scored_px,
        tuple(score_patches(model.baseline, patches).tolist()),
        scored.out_of_domain,
    )


def find_difference(model: Model, probe: Probe) -> str | None:
    """Return in words how a model answers otherwise than when it was written; None where it does not."""
    then = probe.answer
    mask = prepare_image(draw_picture(probe.picture), model.preparation).mask
    if (count := len(tissue_origins(mask, model.grid))) != len(then.patches):  # before a grid too fine takes hours
        return f"it had {len(then.patches)} patches, and now has {count}"
    now = ask(model, probe.picture)
    if (now.out_of_domain, now.p_value is None) != (then.out_of_domain, then.p_value is None):
        return "the domain or the calibration is another"
    level = [model.level] * _FINDINGS  # stands for the findings that there are not
    compared = {
        "patches": (then.patches, now.patches),
        "findings": ([*then.findings, *level][:_FINDINGS], [*now.findings, *level][:_FINDINGS]),
        "image": ([then.highest], [now.highest]),
        "scored pixels": ([then.scored_px], [now.scored_px]),
        "patches, by the baseline,": (then.baseline, now.baseline),
    }
    for what, (before, after) in compared.items():
        one, other = (np.asarray(values, np.float64) for values in (before, after))
        within = _TOLERANCE * float(np.abs(one).max(initial=0.0))
        if one.shape != other.shape or not np.allclose(one, other, rtol=0.0, atol=within, equal_nan=True):
            return f"its {what} scored {_show(before)} when it was written, and now {_show(after)}"
    return None


def _show(values: object) -> str:
    found = [value for value in np.asarray(values, np.float64).tolist() if not math.isnan(value)]
    return f"{max(found):.4g} at most" if found else "nothing"
