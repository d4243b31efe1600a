"""Random crops of normal tissue, which the dense detectors learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.detectors.tissue import Tissue
from unary.errors import TrainingError

Grid = NDArray[np.float32]
_THINNED = 4


@dataclass(frozen=True, eq=False)
class Source:
    """One image to draw from: its tissue, and where a crop may be centred, shape (n, 2), int32."""

    tissue: Tissue
    places: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Crop:
    """Planes of one crop, (size, size) float32 each; ``mask`` is 1 on tissue."""

    intensity: Grid
    noise: Grid
    mask: Grid


def find_sources(tissues: Sequence[Tissue], *, size_px: int) -> tuple[Source, ...]:
    """Return the images that can be drawn from.

    Raises
    ------
    TrainingError
        If none is as large as a crop.
    """
    sources = []
    for tissue in tissues:
        places = (np.argwhere(tissue.mask[::_THINNED, ::_THINNED]) * _THINNED).astype(np.int32)
        if len(places) and min(tissue.mask.shape) >= size_px:
            sources.append(Source(tissue, places))
    if not sources:
        raise TrainingError(f"no image of normal tissue is at least {size_px} px a side on the working grid")
    return tuple(sources)


def identify_sources(sources: Sequence[Source]) -> str:
    """Return a short hash of what is drawn from, so that a checkpoint is never taken up with other images."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(np.ascontiguousarray(source.tissue.intensity[::_THINNED, ::_THINNED]).tobytes())
    return digest.hexdigest()[:16]


def draw_crop(sources: Sequence[Source], rng: np.random.Generator, *, size_px: int) -> Crop:
    """Return a crop around a random place of tissue in a random image, as stored."""
    source = sources[int(rng.integers(len(sources)))]
    place = source.places[int(rng.integers(len(source.places)))]
    limit = np.asarray(source.tissue.mask.shape) - size_px
    row, col = np.clip(place - rng.integers(0, size_px, 2), 0, limit).tolist()
    window = (slice(row, row + size_px), slice(col, col + size_px))
    tissue = source.tissue
    return Crop(tissue.intensity[window], tissue.noise[window], tissue.mask[window].astype(np.float32))


def turn(plane: NDArray[np.generic], symmetry: int) -> NDArray[np.generic]:
    """Return one of the eight symmetries of a square plane, (size, size)."""
    turned = np.rot90(plane, symmetry % 4)
    return turned[::-1] if symmetry >= 4 else turned
