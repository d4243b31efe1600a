"""Random crops of normal tissue, which the dense detectors learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unary.detectors.protocol import View
from unary.detectors.scoring import show_views
from unary.detectors.tissue import Tissue, measure_noise
from unary.errors import TrainingError
from unary.patches.patch_set import PatchSet
from unary.training.threads import map_in_threads

Plane = NDArray[np.float32]
_THINNED = 4


@dataclass(frozen=True, eq=False)
class Source:
    """One image to draw from: planes of its shape, and where a crop may be centred, shape (n, 2), int32."""

    planes: tuple[NDArray[Any], ...]
    places: NDArray[np.int32]


def find_sources(
    normals: PatchSet,
    describe: Callable[[Tissue], tuple[NDArray[Any], ...]],
    *,
    size_px: int,
    title: str | None = None,
) -> tuple[Source, ...]:
    """Return the images that crops of a size can be drawn from; ``describe`` returns the planes of one, (rows, cols).

    The tissue near patches that are left out, since a benign lesion is there, is drawn from all the same, which a few
    pixels in a million do not change. With a title, a bar is shown. A `TrainingError` says that no image is as large as
    a crop.
    """

    def find(image: tuple[NDArray[np.uint16], NDArray[np.bool_], Any, Any]) -> Source | None:
        pixels, mask, *_ = image
        if min(mask.shape) < size_px:
            return None
        tissue = View(pixels, mask).tissue
        places = (np.argwhere(tissue.mask[::_THINNED, ::_THINNED]) * _THINNED).astype(np.int32)
        return Source(describe(tissue), places) if len(places) else None

    require_crops(normals, size_px)
    views = show_views(normals, title)
    sources = tuple(source for source in map_in_threads(find, views) if source is not None)
    if not sources:
        raise TrainingError(f"no image of normal tissue is at least {size_px} px a side on the working grid")
    return sources


def require_crops(normals: PatchSet, size_px: int) -> None:
    """Refuse by a `TrainingError` images of which none is as large as a crop."""
    largest = max((min(normals.images[number].shape) for number in np.unique(normals.index[:, 0])), default=0)
    if largest < size_px:
        raise TrainingError(
            f"no image of normal tissue is at least {size_px} px a side on the working grid, the largest is {largest} "
            "px; a smaller --working-spacing-mm makes them larger"
        )


def describe_with_noise(tissue: Tissue) -> tuple[NDArray[Any], ...]:
    """Return intensity, noise and mask."""
    intensity = tissue.read_intensity(0, tissue.shape[0])
    return intensity, measure_noise(intensity, tissue.mask), tissue.mask


def draw_crop(sources: Sequence[Source], rng: np.random.Generator, *, size_px: int) -> list[Plane]:
    """Return the planes of a crop around a random place of tissue in a random image, float32, not to be changed."""
    source = sources[int(rng.integers(len(sources)))]
    place = source.places[int(rng.integers(len(source.places)))]
    limit = np.asarray(source.planes[0].shape) - size_px
    row, col = np.clip(place - rng.integers(0, size_px, 2), 0, limit).tolist()
    window = (slice(row, row + size_px), slice(col, col + size_px))
    return [plane[window].astype(np.float32, copy=False) for plane in source.planes]


def draw_batch(draw: Callable[[], tuple[Sequence[NDArray[Any]], int]], count: int) -> list[Tensor]:
    """Return planes of crops, (count, 1, size, size) float32 each; ``draw`` returns a crop's, and how to turn them."""
    crops = []
    for _ in range(count):
        planes, symmetry = draw()
        crops.append([_turn(plane.astype(np.float32, copy=False), symmetry) for plane in planes])
    return [torch.from_numpy(np.stack(plane)[:, None]) for plane in zip(*crops, strict=True)]


def draw_exposure(rng: np.random.Generator) -> tuple[np.float32, np.float32]:
    """Return a gain and an offset of intensity, as another exposure of the same tissue would give."""
    return np.float32(np.exp(0.15 * rng.normal())), np.float32(0.05 * rng.normal())


def _turn(plane: Plane, symmetry: int) -> Plane:
    """One of the eight symmetries of a square plane."""
    turned = np.rot90(plane, symmetry % 4)
    return turned[::-1] if symmetry >= 4 else turned
