"""Masses: places that are brighter than their surroundings in every direction, and that brightness rises towards.

Two statements about a place and a radius. *Rise*: how far the mean around it lies above the brightest of eight means
around it, at 1.7 radii; so that a duct, a fold or the edge of a muscle, which go on in some direction, are none. It is
divided by the geometric mean of two spreads, that of the eight means and that of the image, as the responses of
`unary.detectors.dense_laplacian` are and for the same reason. *Convergence*: the mean cosine between the gradients in a
ring and the direction to its centre, each weighted by the root of its strength (Kobatake and Hashimoto, IEEE Trans.
Image Process. 8:1468, 1999, without the weights): it sees the shape of a faint mass.

Both are counted in units of what normal patches reach, added for a radius, and the radius with the largest sum speaks.
The pectoral muscle is no tissue here (`unary.detectors.pectoral`), and where too few directions lie in tissue, as in
the corners of a film, nothing is said. Reason to exist: brightness alone ranks dense cores and muscles above masses.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from unary.detectors.coarse import STEP, Coarse, enlarge_cells, smooth_inside
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.scoring import measure_normals
from unary.detectors.states import describe_config, read_config, require_fitted
from unary.detectors.tissue import examine_answer, pool_patches
from unary.errors import TrainingError, require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext

DIRECTIONS = np.arange(8) * (math.pi / 4)
FEWEST_DIRECTIONS = 5
MEAN, DISTANCE = 0.4, 1.7  # radii: width of the means, and how far away the surroundings are
RING = (0.36, 1.06)  # radii, between which gradients count
GRADIENT = 0.9  # cells, width of the Gaussian
QUIET, STRONGEST, _POWER = 0.25, 3.0, 0.5  # of gradients, in units of the median one
LEAST_RING = 0.6  # of a ring lies in tissue, or the missing rest counts as without gradient
SPREAD_FLOOR = 0.1  # of the image's spread
MARGIN = 2  # cells of tissue left out beside the muscle
_TAIL = 0.99
_STEEPEST = 10.0  # the median lies at most so many excesses below the tail, which a few equal values cannot shrink
UNKNOWN = -9.0
FLAT = 1e-6  # of intensity
LEAST_WEIGHT = 0.5
LOWEST = -30.0  # units below the tail: what is said of places that cannot be judged


@dataclass(frozen=True)
class MassConfig:
    """Which sizes are looked for.

    Attributes
    ----------
    radii_px
        Radii of masses in working pixels; 43 are 6 mm at 0.14 mm per pixel.
    strongest
        How many of the largest pixels of a patch are averaged; 400 are 8 square millimetres.
    muscle
        Whether the pectoral muscle is looked for and left out.
    """

    radii_px: tuple[float, ...] = (43.0, 57.0, 79.0, 107.0, 143.0)
    strongest: int = 400
    muscle: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "radii_px", "strongest")
        if not self.radii_px or not all(2 * STEP <= radius <= 1000 for radius in self.radii_px):
            raise ValueError(f"radii_px must lie in [{2 * STEP}, 1000] px, at least one; got {self.radii_px}")


@dataclass(frozen=True)
class Tail:
    """What normal patches reach: the value that 1 % of them exceed, and by how much these do on average."""

    start: float
    excess: float

    def __post_init__(self) -> None:
        require_positive(self, "excess")

    def count(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how many times the excess each value lies above the start."""
        units: NDArray[np.float32] = (values - np.float32(self.start)) / np.float32(self.excess)
        return units


@dataclass(frozen=True, eq=False)
class Mass:
    """Rise and convergence of regions, at several radii.

    The map holds the largest sum over the radii, in units of the tails of normal patches; a patch's score is the mean
    of its strongest pixels. ``tails`` are those of rise and convergence, radius by radius, None before fitting; in it
    None where the normal images are too small for a radius, which then has no say.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "no learning"
    config: MassConfig = MassConfig()
    tails: tuple[Tail | None, ...] | None = None

    @property
    def least_side_px(self) -> int:
        """Shorter side of the smallest view that holds the surroundings of a smallest mass on either side."""
        return math.ceil(2 * DISTANCE * min(self.config.radii_px))

    def fit(self, normals: PatchSet, context: FitContext) -> Mass:
        """Measure what normal patches reach; see `unary.detectors.protocol.Detector.fit`."""
        if len(normals) < 2:
            raise TrainingError(f"mass needs at least two normal patches, there are {len(normals)}")
        size, strongest = max(normals.size_px // STEP, 1), math.ceil(self.config.strongest / STEP**2)

        def pool(view: View, origins: Origins) -> list[NDArray[np.float64]]:
            cells = (origins // STEP).astype(np.int32)
            return [
                pool_patches(answer, cells, size_px=size, strongest=strongest)
                for answer in measure_regions(view.coarse, self.config)
            ]

        pooled = measure_normals(pool, normals, title=context.name_bar("mass"))
        tails = tuple(_fit_tail(values) for values in pooled)
        if not pair_tails(tails):
            raise TrainingError(
                "mass: the normal patches all answer alike; are the images blank, or smaller than two masses?"
            )
        return dataclasses.replace(self, tails=tails)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`."""
        tails = pair_tails(require_fitted(self.tails, "mass"))
        measured = measure_regions(view.coarse, self.config)
        sums = [
            rise.count(measured[2 * k]) + converging.count(measured[2 * k + 1])
            for k, (rise, converging) in tails.items()
        ]
        best = np.maximum(functools.reduce(np.maximum, sums), np.float32(LOWEST))
        answer = enlarge_cells(best, view.shape)
        return examine_answer(
            view, answer, origins, size_px=size_px, strongest=self.config.strongest, with_map=with_map
        )

    def get_state(self) -> DetectorState:
        """Return configuration and tails."""
        tails = [None if tail is None else describe_config(tail) for tail in require_fitted(self.tails, "mass")]
        return DetectorState({"config": describe_config(self.config), "tails": tails})

    @classmethod
    def from_state(cls, state: DetectorState) -> Mass:
        config = read_config(MassConfig, state.settings["config"])
        tails = tuple(None if tail is None else read_config(Tail, tail) for tail in state.settings["tails"])
        if len(tails) != 2 * len(config.radii_px) or not pair_tails(tails):
            raise ValueError(f"mass: there must be {2 * len(config.radii_px)} tails, two a radius, not {len(tails)}")
        return cls(config, tails)


def measure_regions(coarse: Coarse, config: MassConfig) -> list[NDArray[np.float32]]:
    """Return rise and convergence, radius by radius, on the cells of `unary.detectors.coarse`, (rows, cols) each.

    They are -9, which no place that can be judged is near, where nothing can be said.
    """
    if config.muscle and coarse.muscle.any():
        coarse = coarse.leave_out(ndimage.binary_dilation(coarse.muscle, iterations=MARGIN))
    own = coarse.bright[coarse.inside]
    radii = [radius / STEP for radius in config.radii_px]
    if own.size == 0 or not own.std() > FLAT:
        return [np.full(coarse.inside.shape, UNKNOWN, np.float32) for _ in range(2 * len(radii))]
    rises = [_measure_rise(coarse, radius, float(own.std())) for radius in radii]
    convergences = _measure_convergence(coarse, radii)
    return [answer for pair in zip(rises, convergences, strict=True) for answer in pair]


def _measure_rise(coarse: Coarse, radius: float, spread: float) -> NDArray[np.float32]:
    """Return how far a region stands above the brightest of its surroundings, for each cell as its centre."""
    mean, weight = smooth_inside(coarse, MEAN * radius)
    rows, cols = mean.shape
    reach = math.ceil(DISTANCE * radius)
    mean_around, seen_around = np.pad(mean, reach), np.pad(weight > LEAST_WEIGHT, reach)
    highest = np.full((rows, cols), -np.inf, np.float32)
    count, total, squares = (np.zeros((rows, cols), np.float32) for _ in range(3))
    level = np.float32(mean[coarse.inside].mean())  # squares of differences from it keep their digits
    for angle in DIRECTIONS.tolist():
        down, right = (round(DISTANCE * radius * part) for part in (math.sin(angle), math.cos(angle)))
        there = (slice(reach + down, reach + down + rows), slice(reach + right, reach + right + cols))
        seen, value = seen_around[there], mean_around[there]
        highest = np.where(seen, np.maximum(highest, value), highest)
        relative = np.where(seen, value - level, np.float32(0))
        count, total, squares = count + seen, total + relative, squares + np.square(relative)
    known = coarse.inside & (count >= FEWEST_DIRECTIONS)
    number = np.maximum(count, 1)
    variance = np.maximum(squares / number - np.square(total / number), 0)
    around = np.sqrt(variance + np.float32(SPREAD_FLOOR * spread) ** 2)
    rise = np.where(known, mean - highest, 0) / np.sqrt(around * np.float32(spread))
    return np.where(known, rise, UNKNOWN).astype(np.float32)


def _measure_convergence(coarse: Coarse, radii: Sequence[float]) -> list[NDArray[np.float32]]:
    """Return how well the gradients in a ring around each cell point to it, for each radius: 1 if all do."""
    smoothed = smooth_inside(coarse, GRADIENT)[0]
    inner = ndimage.binary_erosion(coarse.inside, np.ones((3, 3), bool), border_value=1)
    slopes = [ndimage.sobel(smoothed, axis) * inner for axis in (0, 1)]
    strength = np.hypot(*slopes)
    typical = float(np.median(strength[inner])) if inner.any() else 0.0
    if not typical > 0:
        return [np.full(inner.shape, UNKNOWN, np.float32) for _ in radii]
    relative = strength / np.float32(typical)
    weight = np.minimum(relative, STRONGEST) ** _POWER / np.maximum(strength, np.float32(QUIET * typical))
    reach = math.ceil(RING[1] * max(radii))
    size = [fft.next_fast_len(length + 2 * reach, real=True) for length in inner.shape]
    fields = [fft.rfft2(field.astype(np.float32), size) for field in (slopes[0] * weight, slopes[1] * weight, inner)]
    answers = []
    for radius in radii:
        ring = build_ring(radius, reach)
        kernels = [fft.rfft2(kernel, size) for kernel in ring]
        pointing = fft.irfft2(fields[0] * kernels[0] + fields[1] * kernels[1], size)
        seen = fft.irfft2(fields[2] * kernels[2], size)
        own = tuple(slice(reach, reach + length) for length in inner.shape)
        least = LEAST_RING * float(ring[2].sum())
        mean = pointing[own] / np.maximum(seen[own], np.float32(least))
        answers.append(np.where(coarse.inside, mean, UNKNOWN).astype(np.float32))
    return answers


def build_ring(radius: float, reach: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return, (2 reach + 1,) squared each, the row and column of the unit vector from the centre, and the ring itself.

    A gradient that points to the centre comes from the opposite side of a convolution's kernel.
    """
    row, col = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    distance = np.hypot(row, col)
    ring = ((distance >= RING[0] * radius) & (distance <= RING[1] * radius)).astype(np.float32)
    unit = ring / np.maximum(distance, 1)
    return row * unit, col * unit, ring


def _fit_tail(pooled: NDArray[np.float64]) -> Tail | None:
    """Return the tail of the values that are known, None where they are none or all alike."""
    known = np.sort(pooled[pooled > UNKNOWN / 2])
    if len(known) == 0 or known[0] == known[-1]:
        return None
    start = float(np.quantile(known, _TAIL))
    if start == known[-1]:  # as where overlapping patches share their strongest pixels
        start = float(known[int(np.searchsorted(known, start)) - 1])
    excess = float((known[known > start] - start).mean())
    return Tail(start, max(excess, (start - float(np.median(known))) / _STEEPEST))


def pair_tails(tails: Sequence[Tail | None]) -> dict[int, tuple[Tail, Tail]]:
    """Return the tails of rise and convergence by the number of the radius, of the radii that have both."""
    pairs = zip(tails[::2], tails[1::2], strict=True)
    return {number: (one, other) for number, (one, other) in enumerate(pairs) if one is not None and other is not None}
