"""From what sees a patch at a time to a detector of images: windows, taper and blending.

The map is the mean of overlapping windows, half a patch apart, with weights that fall towards a window's border, so
that no pixel is lost there nor at the borders and corners of the image. The scores are those of the patches asked for,
each on its own. Both are the same to the last bit for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.detectors.protocol import Examination, View
from unary.patches.grid import GridConfig, Origins, extract_patches, pad_to_patch, tissue_origins
from unary.patches.preparation import FULL_SCALE
from unary.patches.stitching import OverlapWeights, add_tapered, split_grid
from unary.progress import show_progress
from unary.training.threads import map_in_threads, run_in_threads

_BATCH = 16
_GRID_ROWS = 4  # of windows that a thread adds up at a time
_BAND_PX = 256


@dataclass(frozen=True, eq=False)
class PatchExamination:
    """What is said of a batch of patches, each independently of the others.

    Scores of shape (n,), float64, and maps of shape (n, size, size), float32.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]


ExaminePatches = Callable[[NDArray[np.uint16]], PatchExamination]
"""Examine patches of shape (n, size, size), uint16, 65535 being intensity 1."""

ScorePatches = Callable[[NDArray[np.uint16]], NDArray[np.float64]]
"""Return the scores, (n,), of such patches."""

AddMaps = Callable[[NDArray[np.uint16], Origins, NDArray[np.float32]], None]
"""Add the maps of an image's patches, times `unary.patches.stitching.taper_window`, to sums of the image's shape."""


def to_intensity(patches: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return patches as intensities in [0, 1], float32."""
    return patches.astype(np.float32) / np.float32(FULL_SCALE)


def examine_windows(
    examine: ExaminePatches,
    view: View,
    origins: Origins,
    *,
    size_px: int,
    with_map: bool,
    add_maps: AddMaps | None = None,
    score: ScorePatches | None = None,
) -> Examination:
    """Do what `unary.detectors.protocol.Detector.examine` does by what sees patches.

    ``add_maps`` is a faster way to blend windows, and ``score`` one to score patches without maps, where there are any.
    """
    padded = pad_to_patch(view.pixels, size_px)
    low = origins.max(axis=0, initial=0) + size_px - padded.shape
    if (low > 0).any():  # patches asked for may reach further than one window does
        padded = np.pad(padded, [(0, max(int(more), 0)) for more in low])
    batches = [slice(start, start + _BATCH) for start in range(0, len(origins), _BATCH)]

    def score_batch(part: slice) -> NDArray[np.float64]:
        patches = extract_patches(padded, origins[part], size_px=size_px)
        return examine(patches).scores if score is None else score(patches)

    scores = np.concatenate([np.empty(0), *map_in_threads(score_batch, batches)])
    if not with_map:
        return Examination(scores, None)
    if not view.mask.any():
        return Examination(scores, np.full(view.shape, np.nan, np.float32))
    windows = tissue_origins(view.mask, GridConfig(size_px, max(size_px // 2, 1), 0.0))
    blended = _blend_windows(examine, add_maps, pad_to_patch(view.pixels, size_px), windows, size_px)
    anomaly_map = blended[: view.shape[0], : view.shape[1]]
    np.copyto(anomaly_map, np.nan, where=~view.mask)
    return Examination(scores, anomaly_map)


def _blend_windows(
    examine: ExaminePatches, add_maps: AddMaps | None, pixels: NDArray[np.uint16], windows: Origins, size_px: int
) -> NDArray[np.float32]:
    """The maps of overlapping windows as one."""
    found = np.zeros(pixels.shape, np.float32)

    def add_up(part: Origins) -> tuple[int, NDArray[np.float32]]:
        """The first row of some windows, and their weighted maps added up from there to their last row."""
        first, last = int(part[0, 0]), int(part[-1, 0]) + size_px
        strip, inside = pixels[first:last], part - np.array([first, 0], np.int32)
        sums = np.zeros(strip.shape, np.float32)
        if add_maps is not None:
            add_maps(strip, inside, sums)
        else:
            for start in range(0, len(inside), _BATCH):
                batch = inside[start : start + _BATCH]
                add_tapered(sums, examine(extract_patches(strip, batch, size_px=size_px)).maps, batch)
        return first, sums

    for first, sums in map_in_threads(add_up, split_grid(windows, _GRID_ROWS)):
        found[first : first + len(sums)] += sums
    weights = OverlapWeights(windows, size_px, int(pixels.shape[1]))
    run_in_threads(lambda start: weights.divide(found[start : start + _BAND_PX], start), range(0, len(found), _BAND_PX))
    return found


def spread_evenly(count: int, at_most: int) -> NDArray[np.int64]:
    """Return at most so many positions out of ``count``, evenly spread, ascending and distinct; shape (n,)."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(np.int64))


def examine_in_batches(
    measure: Callable[[NDArray[np.uint16]], NDArray[np.float64]],
    gather: Callable[[NDArray[np.int64]], NDArray[np.uint16]],
    positions: Sequence[int] | NDArray[np.int64],
    *,
    title: str | None = None,
) -> NDArray[np.float64]:
    """Return what is measured of patches, shape (n, ...), a batch at a time, side by side.

    With a title, a bar of that name is shown on standard error when that is a terminal.
    """
    chosen = np.asarray(positions, np.int64)
    batches = [chosen[start : start + _BATCH] for start in range(0, len(chosen), _BATCH)]
    found = map_in_threads(lambda batch: measure(gather(batch)), batches)
    bar = show_progress(
        found, total=len(batches), title=title or "", unit="batch", shown=title is not None, leave=False
    )
    return np.concatenate(list(bar))
