"""Several detectors, one score: each calibrated on normal tissue alone, then added.

A part answers with a map of the whole image; a patch takes from it the mean of the strongest pixels, or the mean. How
unusual that is among normal patches becomes a surprisal, -log p, in natural units, the same for every part. Their
weighted sum is Fisher's statistic for combining tests (R. A. Fisher, Statistical Methods for Research Workers, 1925):
two parts that are each mildly surprised count as much as one that is very. No abnormal image has a say in it but for
the weights, which are part of the configuration and fixed before any evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unary.detectors.protocol import ImageExamination
from unary.training.threads import map_in_threads
from unary.detectors.tissue import Strips, Tissue, scan_tissue
from unary.errors import TrainingError
from unary.patches.grid import Origins

_TAIL = 0.01
_KNOTS = 400
_BAND_PX = 256


class Part(Protocol):
    """Anything that answers with a map."""

    def map_tissue(self, tissue: Strips) -> NDArray[np.float32]:
        """Return shape (rows, cols), float32; higher is more abnormal. The array is the caller's own."""
        ...


@dataclass(frozen=True)
class Surprisal:
    """-log p of a value among normal values, continued past the strongest 1 % by their exponential tail.

    Attributes
    ----------
    values, surprisals
        Ascending knots of the curve below the tail; linear in between.
    tail_start, tail_scale
        Where the tail begins and by how much the value must rise for one more unit of surprisal.
    tail_surprisal
        Where the tail begins, -log of the share of normal values beyond: that of 1 %, or of more where the strongest
        values are equal, as they are when overlapping patches share their strongest pixel.
    """

    values: tuple[float, ...]
    surprisals: tuple[float, ...]
    tail_start: float
    tail_scale: float
    tail_surprisal: float = -math.log(_TAIL)

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the surprisal of each value, float64, non-negative and never clamped above."""
        body = np.interp(values, self.values, self.surprisals)
        tail = self.tail_surprisal + (values - self.tail_start) / self.tail_scale
        result: NDArray[np.float64] = np.where(values > self.tail_start, tail, body)
        return result


def fit_surprisal(normal: NDArray[np.floating]) -> Surprisal:
    """Estimate the curve from the values of normal patches, shape (n,).

    Raises
    ------
    TrainingError
        If there are fewer than 100 values, they are not finite, or they hardly differ.
    """
    if len(normal) < 100:
        raise TrainingError(f"calibrating a score needs at least 100 normal patches, there are {len(normal)}")
    ordered = np.sort(np.asarray(normal, np.float64))
    if not np.isfinite(ordered).all():
        raise TrainingError("a detector gave scores that are not finite on normal patches")
    start = float(np.quantile(ordered, 1 - _TAIL))
    if start == ordered[-1]:
        start = float(ordered[max(int(np.searchsorted(ordered, start)) - 1, 0)])
    beyond = ordered[ordered > start]
    if len(beyond) == 0 or not start > ordered[0]:
        raise TrainingError("a detector gives (nearly) the same score to all normal patches; are the images blank?")
    positions = np.unique(np.linspace(0, np.searchsorted(ordered, start), _KNOTS).round().astype(int))
    knots, first = np.unique(ordered[positions], return_index=True)
    exceeding = (len(ordered) - positions[first]) / (len(ordered) + 1)
    share = max(_TAIL, len(beyond) / len(ordered))
    heights = np.minimum.accumulate((-np.log(np.maximum(exceeding, share)))[::-1])[::-1]
    scale = float((beyond - start).mean())
    return Surprisal(tuple(knots.tolist()), tuple(heights.tolist()), start, scale, float(-np.log(share)))


@dataclass(frozen=True, eq=False)
class FusedPart:
    """One part with how a patch is read off its map and what is normal for it.

    ``strongest`` is the number of pixels whose mean is a patch's value; None takes all of them.
    """

    name: str
    part: Part
    strongest: int | None
    weight: float
    surprisal: Surprisal


@dataclass(frozen=True, eq=False)
class Fusion:
    """The parts together, as a detector of whole images."""

    parts: tuple[FusedPart, ...]

    def examine_image(self, pixels: NDArray[np.uint16], origins: Origins, *, size_px: int) -> ImageExamination:
        """Score patches of a prepared image by the weighted sum of surprisals.

        The map holds, at each pixel, what a patch would score whose parts answered as they do there.
        """
        tissue = scan_tissue(pixels)
        scores = np.zeros(len(origins))
        total = np.zeros(pixels.shape, np.float32)
        for fused in self.parts:
            answer = fused.part.map_tissue(tissue)
            pooled = pool_patches(answer, origins, size_px=size_px, strongest=fused.strongest)
            scores += fused.weight * fused.surprisal(pooled)
            _add_surprisal(fused, answer, total)
            del answer
        total[~tissue.mask] = np.nan
        return ImageExamination(scores, total)


def _add_surprisal(fused: FusedPart, answer: NDArray[np.float32], total: NDArray[np.float32]) -> None:
    """Add a part's weighted surprisal, in bands, since it is float64."""

    def add(start: int) -> None:
        band = slice(start, start + _BAND_PX)
        total[band] += (fused.weight * fused.surprisal(answer[band])).astype(np.float32)

    for _ in map_in_threads(add, range(0, len(total), _BAND_PX)):
        pass


def pool_patches(
    answer: NDArray[np.float32], origins: Origins, *, size_px: int, strongest: int | None
) -> NDArray[np.float64]:
    """Return the mean of each patch's strongest pixels, or of all, shape (n,); patches may reach past the border."""
    pooled = np.empty(len(origins))
    for number, (row, col) in enumerate(origins.tolist()):
        values = answer[row : row + size_px, col : col + size_px].ravel()
        if strongest is not None and strongest < len(values):
            values = np.partition(values, len(values) - strongest)[len(values) - strongest :]
        pooled[number] = values.mean(dtype=np.float64)
    return pooled


def fuse_parts(
    parts: Sequence[tuple[str, Part, int | None, float]],
    normals: Sequence[tuple[Tissue, Origins]],
    *,
    size_px: int,
) -> Fusion:
    """Calibrate parts on the patches of normal images.

    Parameters
    ----------
    parts
        Name, part, ``strongest`` and weight; see `FusedPart`.
    normals
        Normal tissue with the origins of its normal patches, (n, 2).
    size_px
        Side of a patch.
    """
    pooled: list[list[NDArray[np.float64]]] = [[] for _ in parts]

    def pool(normal: tuple[Tissue, Origins]) -> list[NDArray[np.float64]]:
        tissue, origins = normal
        return [
            pool_patches(part.map_tissue(tissue), origins, size_px=size_px, strongest=strongest)
            for _, part, strongest, _ in parts
        ]

    for answers in map_in_threads(pool, normals):  # an image each, which keeps more threads busy than pieces of one
        for values, answer in zip(pooled, answers, strict=True):
            values.append(answer)
    return Fusion(
        tuple(
            FusedPart(name, part, strongest, weight, fit_surprisal(np.concatenate(values)))
            for (name, part, strongest, weight), values in zip(parts, pooled, strict=True)
        )
    )
