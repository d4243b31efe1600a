"""Patches as coordinates over whole images: where they lie, and cutting them out. Geometry alone.

A patch is a square of ``size_px`` working pixels. What of it reaches past the border of its image counts as zero, which
is what preparation leaves outside the tissue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Origins = NDArray[np.int32]
"""Shape (n, 2): (row, col) of the first pixels of n patches."""

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class GridConfig:
    """Where patches lie.

    Attributes
    ----------
    size_px
        Side of a patch in working pixels (128 in Wei et al. 2018).
    stride_px
        Step between neighbours; the size means that they do not overlap.
    min_tissue
        The least share of a patch, in [0, 1], that must be tissue for the patch to count.
    """

    size_px: int = 128
    stride_px: int = 128
    min_tissue: float = 0.5

    def __post_init__(self) -> None:
        if not all(isinstance(length, int | np.integer) for length in (self.size_px, self.stride_px)):
            raise ValueError(
                f"size_px and stride_px must be whole numbers, got {self.size_px!r} and {self.stride_px!r}"
            )
        if self.size_px < 1 or self.stride_px < 1:
            raise ValueError(f"size_px and stride_px must be at least 1, got {self.size_px} and {self.stride_px}")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue must lie in [0, 1], got {self.min_tissue}")


def grid_origins(shape: tuple[int, int], config: GridConfig) -> Origins:
    """Return a grid, in reading order, that covers an image of (rows, cols) wherever ``stride_px <= size_px``.

    Where the stride does not divide the image, the last row and column of patches end flush with the border instead of
    leaving a strip uncovered. An axis shorter than a patch gets one, which reaches past the border.

    >>> grid_origins((300, 128), GridConfig()).tolist()
    [[0, 0], [128, 0], [172, 0]]
    """
    if min(shape) < 1:
        raise ValueError(f"an image needs at least one pixel, got the shape {shape}")
    last = [max(length - config.size_px, 0) for length in shape]
    rows, cols = (np.union1d(np.arange(0, end, config.stride_px), [end]) for end in last)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int32)


def pad_to_patch(pixels: NDArray[T], size_px: int) -> NDArray[T]:
    """Return an image, (rows, cols), grown by zeros at its lower and right border until one patch fits, or as it is."""
    short = [max(size_px - length, 0) for length in pixels.shape]
    return np.pad(pixels, [(0, n) for n in short]) if any(short) else pixels


def count_pixels(mask: NDArray[np.bool_], origins: Origins, *, size_px: int) -> NDArray[np.int64]:
    """Count the pixels of a mask, (rows, cols), in each patch, shape (n,); patches may lie beyond any border.

    Exact, from an integral image of the patches' corners.
    """
    (top, left), (bottom, right) = np.clip(origins, 0, mask.shape).T, np.clip(origins + size_px, 0, mask.shape).T
    rows, cols = np.union1d(np.append(top, 0), bottom), np.union1d(np.append(left, 0), right)
    integral = np.zeros((len(rows), len(cols)), np.int64)
    if len(rows) > 1 and len(cols) > 1:
        blocks = np.add.reduceat(mask[: rows[-1], : cols[-1]], cols[:-1], axis=1, dtype=np.int32)
        integral[1:, 1:] = np.add.reduceat(blocks, rows[:-1], axis=0).cumsum(axis=0).cumsum(axis=1)
    above, below = np.searchsorted(rows, top), np.searchsorted(rows, bottom)
    before, after = np.searchsorted(cols, left), np.searchsorted(cols, right)
    counts: NDArray[np.int64] = (
        integral[below, after] - integral[above, after] - integral[below, before] + integral[above, before]
    )
    return counts


def tissue_origins(mask: NDArray[np.bool_], config: GridConfig) -> Origins:
    """Return the grid's patches that hold at least ``min_tissue`` of a mask of tissue, (rows, cols), and any at all."""
    origins = grid_origins((int(mask.shape[0]), int(mask.shape[1])), config)
    count = count_pixels(mask, origins, size_px=config.size_px)
    return origins[(count / float(config.size_px**2) >= config.min_tissue) & (count > 0)]


def extract_patches(pixels: NDArray[T], origins: Origins, *, size_px: int) -> NDArray[T]:
    """Copy patches that `grid_origins` gives out of an image, (rows, cols): shape (n, size_px, size_px), its dtype."""
    padded = pad_to_patch(pixels, size_px)
    patches = np.empty((len(origins), size_px, size_px), padded.dtype)
    for patch, (row, col) in zip(patches, origins.tolist(), strict=True):
        patch[...] = padded[row : row + size_px, col : col + size_px]
    return patches
