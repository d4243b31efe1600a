"""Clusters: how much evidence of specks lies near a place, more than any single speck need give.

A field of many faint specks holds no pixel that is extreme, while a detector that pools the strongest pixels sees only
extremes: one film defect outranks it. Here every local maximum of the Laplacian's response (`DenseLaplacian`) that is
rare in normal tissue counts with the logarithm of what it exceeds that rare level by; the answer is the sum over a few
millimetres. The logarithm is the surprisal of a heavy tail: many specks somewhat above the level weigh more than one
far above it. Reason to exist: on simulated fields of faint specks in held-out normal images it ranked the patches
better than the strongest pixels of the same response did (``docs/log.md``).

Two numbers are learned: the level that one maximum in so many pixels of normal tissue exceeds, and by how much. Plain
counts above a level, a level of the image's own, division by the rate in the surroundings, and noise measured on dark
spots alone were all tried and were no better.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.detectors.coarse import enlarge_cells, sum_cells
from unary.detectors.dense_laplacian import DenseLaplacian, DenseLaplacianConfig
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.scoring import measure_normals
from unary.detectors.states import describe_config, read_config, require_fitted
from unary.errors import TrainingError, require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.threads import map_in_threads, run_in_threads

COARSE = 4  # a sum over millimetres needs no fine grid
_BAND_PX = 256  # rows at a time, a multiple of the above
_WIDEST_PX = 1000.0
_FEWEST = 10  # normal specks beyond the level, so that it is not a matter of one or two
SPARE = 0.1  # of the neighbourhood: where there is hardly any tissue, its share is no divisor
_NOWHERE: Origins = np.zeros((0, 2), np.int32)

Specks = tuple[NDArray[np.intp], NDArray[np.float32]]
"""Places (row, col), shape (n, 2), in reading order, and the response there, shape (n,)."""


@dataclass(frozen=True)
class ClustersConfig:
    """Which specks count, and how far around a place.

    Attributes
    ----------
    one_in_px
        In so many pixels of normal tissue one local maximum exceeds the level from which specks count; 25,000 are 5 cm2
        at 0.14 mm per pixel. From little normal tissue the level is that of the ten strongest.
    reach_px
        Standard deviation of the Gaussian window of the sum, in working pixels; 14 are 2 mm.
    filters
        The response whose maxima are specks.
    """

    one_in_px: int = 25_000
    reach_px: float = 14.0
    filters: DenseLaplacianConfig = dataclasses.field(default=DenseLaplacianConfig())

    def __post_init__(self) -> None:
        require_positive(self, "one_in_px", "reach_px")
        if self.reach_px > _WIDEST_PX:
            raise ValueError(f"reach_px must not exceed {_WIDEST_PX:g}, got {self.reach_px}")


@dataclass(frozen=True)
class SpeckScale:
    """From which response on a maximum is a rare speck, and by how much rare specks of normal tissue exceed that."""

    level: float
    excess: float

    def __post_init__(self) -> None:
        require_positive(self, "excess")


@dataclass(frozen=True, eq=False)
class Clusters:
    """Sums of what the specks near by count, which is log(1 + excess over a rare level / normal excess).

    The map holds that sum as if tissue were all around; a patch's score is its largest value. There are neither
    ``laplacian`` nor ``scale`` before fitting.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals only"
    config: ClustersConfig = ClustersConfig()
    laplacian: DenseLaplacian | None = dataclasses.field(default=None, repr=False)
    scale: SpeckScale | None = None

    def fit(self, normals: PatchSet, context: FitContext) -> Clusters:
        """Measure the filters' scales, then how high a rare speck is; see `unary.detectors.protocol.Detector.fit`."""
        laplacian = DenseLaplacian(self.config.filters).fit(normals, context)

        def measure(view: View, origins: Origins) -> list[NDArray[np.float64]]:
            inside = view.tissue.mask & _cover_patches(view.shape, origins, normals.size_px)
            found = find_specks(_respond(laplacian, view, normals.size_px), -math.inf)
            own = found[1][inside[tuple(found[0].T)]].astype(np.float64)
            return [own, np.asarray([inside.sum()], np.float64)]

        heights, areas = measure_normals(measure, normals, title=context.name_bar("clusters"))
        rank = max(int(areas.sum() / self.config.one_in_px), _FEWEST)
        ordered = np.sort(heights)[::-1]
        if len(ordered) <= rank or not ordered[0] > ordered[rank]:
            raise TrainingError(
                f"clusters needs more than {rank} differing local maxima in the normal tissue, there are "
                f"{len(ordered)}: give more images"
            )
        level = float(ordered[rank])
        scale = SpeckScale(level, float((ordered[:rank] - level).mean()))
        return dataclasses.replace(self, laplacian=laplacian, scale=scale)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`."""
        response = _respond(require_fitted(self.laplacian, "clusters"), view, size_px)
        if response.size == 0:
            return Examination(np.zeros(len(origins)), response if with_map else None)
        scale, mask = require_fitted(self.scale, "clusters"), view.tissue.mask
        sums = sum_specks(find_specks(response, scale.level), mask, scale, self.config.reach_px)
        scores = _pool_blocks(sums, origins, size_px)
        if not with_map:
            return Examination(scores, None)
        _spread_blocks(sums, mask, response)
        return Examination(scores, response)

    def get_state(self) -> DetectorState:
        """Return configuration, and the states of filters and specks."""
        laplacian, scale = require_fitted(self.laplacian, "clusters"), require_fitted(self.scale, "clusters")
        settings = {"config": describe_config(self.config), "scale": describe_config(scale)}
        return DetectorState(settings | {"laplacian": laplacian.get_state().settings})

    @classmethod
    def from_state(cls, state: DetectorState) -> Clusters:
        config = read_config(ClustersConfig, state.settings["config"])
        laplacian = DenseLaplacian.from_state(DetectorState(state.settings["laplacian"]))
        if laplacian.config != config.filters:
            raise ValueError("clusters: the filters must be those of the configuration")
        return cls(config, laplacian, read_config(SpeckScale, state.settings["scale"]))


def _respond(laplacian: DenseLaplacian, view: View, size_px: int) -> NDArray[np.float32]:
    """The response of the best scale, (rows, cols), NaN outside the tissue."""
    return laplacian.examine(view, _NOWHERE, size_px=size_px).require_map()


def find_specks(response: NDArray[np.float32], level: float) -> Specks:
    """Return the local maxima of a response, (rows, cols), that exceed a level: no neighbour of eight is higher.

    NaN is lower than anything. Of equal neighbours each is a maximum.
    """

    def find(start: int) -> Specks:
        stop, above = min(start + _BAND_PX, len(response)), max(start - 1, 0)
        part = np.pad(response[above : stop + 1], 1, constant_values=np.nan)
        rows, cols = np.nonzero(response[start:stop] > level)  # NaN compares as False
        values, first = response[start + rows, cols], start - above + 1
        highest = np.ones(len(rows), bool)
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            highest &= ~(part[first + rows + down, 1 + cols + right] > values)
        return np.stack([start + rows, cols], axis=1)[highest], values[highest]

    found = list(map_in_threads(find, range(0, len(response), _BAND_PX)))
    places, values = zip(*found, strict=True)
    return np.concatenate(places), np.concatenate(values)


def sum_specks(specks: Specks, mask: NDArray[np.bool_], scale: SpeckScale, reach_px: float) -> NDArray[np.float32]:
    """Return, for each block of 4 x 4 pixels, what the specks around it count, in all.

    The mask of tissue, (rows, cols), decides how much of the Gaussian window there is: the sum is divided by its share.
    Shape (ceil(rows / 4), ceil(cols / 4)), float32, non-negative, 0 where there is no tissue.
    """
    places, values = specks
    counts = [sum_cells(mask[start : start + _BAND_PX], COARSE) for start in range(0, len(mask), _BAND_PX)]
    inside = np.concatenate(counts) / COARSE**2
    weight = np.zeros(inside.shape)
    np.add.at(weight, tuple((places // COARSE).T), np.log1p((values - np.float64(scale.level)) / scale.excess))
    sigma = reach_px / COARSE
    around, share = (ndimage.gaussian_filter(plane, sigma, mode="constant") for plane in (weight, inside))
    sums: NDArray[np.float64] = around / (share + SPARE) * (2 * math.pi * sigma**2)
    return np.where(inside > 0, sums, 0).astype(np.float32)


def _cover_patches(shape: tuple[int, int], origins: Origins, size_px: int) -> NDArray[np.bool_]:
    """Where a patch lies, (rows, cols)."""
    covered = np.zeros(shape, bool)
    for row, col in origins.tolist():
        covered[row : row + size_px, col : col + size_px] = True
    return covered


def _pool_blocks(sums: NDArray[np.float32], origins: Origins, size_px: int) -> NDArray[np.float64]:
    """Return the largest value of the blocks that each patch touches, shape (n,)."""
    pooled = np.empty(len(origins))
    for number, (row, col) in enumerate(origins.tolist()):
        last = -(-(row + size_px) // COARSE), -(-(col + size_px) // COARSE)
        pooled[number] = sums[row // COARSE : last[0], col // COARSE : last[1]].max()
    return pooled


def _spread_blocks(sums: NDArray[np.float32], mask: NDArray[np.bool_], into: NDArray[np.float32]) -> None:
    """Give each pixel of an array the value of its block, NaN outside the mask."""
    rows, cols = into.shape

    def spread(start: int) -> None:
        band = slice(start, min(start + _BAND_PX, rows))
        blocks = sums[start // COARSE : -(-band.stop // COARSE)]
        into[band] = enlarge_cells(blocks, (band.stop - start, cols), COARSE)
        np.copyto(into[band], np.float32(np.nan), where=~mask[band])

    run_in_threads(spread, range(0, rows, _BAND_PX))
