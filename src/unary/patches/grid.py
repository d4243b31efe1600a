"""Patches as coordinates over whole images: where they lie, and cutting them out. Geometry alone.

A patch is a square of ``size_px`` working pixels named by its top-left corner (row, col).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Origins = NDArray[np.int32]
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
        if self.size_px < 1 or self.stride_px < 1:
            raise ValueError(f"size_px and stride_px must be at least 1, got {self.size_px} and {self.stride_px}")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue must lie in [0, 1], got {self.min_tissue}")


def grid_origins(shape: tuple[int, int], config: GridConfig) -> Origins:
    """Return the top-left corners of a grid that covers an image wherever ``stride_px <= size_px``.

    Parameters
    ----------
    shape
        Rows and columns of the image; either may be smaller than a patch.

    Returns
    -------
    NDArray
        Shape (n, 2), int32, (row, col) in reading order. Where the stride does not divide the image, the last row and
        column of patches end flush with the border instead of leaving a strip uncovered. An axis shorter than a patch
        gets one patch, which then reaches past the border (see `pad_to_patch`).

    >>> grid_origins((300, 128), GridConfig()).tolist()
    [[0, 0], [128, 0], [172, 0]]
    """
    if min(shape) < 1:
        raise ValueError(f"an image needs at least one pixel, got the shape {shape}")
    rows, cols = (_axis_origins(length, config) for length in shape)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int32)


def _axis_origins(length: int, config: GridConfig) -> NDArray[np.int64]:
    last = max(length - config.size_px, 0)
    return np.union1d(np.arange(0, last + 1, config.stride_px), [last])


def pad_to_patch(pixels: NDArray[T], size_px: int) -> NDArray[T]:
    """Return the image grown at its lower and right border, by zeros, until one patch fits; unchanged if it does.

    Zeros are what preparation leaves outside the tissue.

    Parameters
    ----------
    pixels
        Shape (rows, cols), any dtype.
    size_px
        Side of a patch.
    """
    short = [max(size_px - length, 0) for length in pixels.shape]
    return np.pad(pixels, [(0, n) for n in short]) if any(short) else pixels


def tissue_share(mask: NDArray[np.bool_], origins: Origins, *, size_px: int) -> NDArray[np.float64]:
    """Return the share of each patch that is tissue, shape (n,), in [0, 1].

    Exact, from an integral image of the patches' corners.

    Parameters
    ----------
    mask
        Shape (rows, cols), bool.
    origins
        Shape (n, 2): (row, col) of the patches' first pixels. What of a patch lies past the border is background.
    size_px
        Side of a patch.
    """
    top, left = origins[:, 0], origins[:, 1]
    bottom, right = np.minimum(origins + size_px, mask.shape).T
    rows, cols = np.union1d(np.append(top, 0), bottom), np.union1d(np.append(left, 0), right)
    integral = np.zeros((len(rows), len(cols)), np.int64)
    if len(origins):
        blocks = np.add.reduceat(mask[: rows[-1], : cols[-1]], cols[:-1], axis=1, dtype=np.int32)
        integral[1:, 1:] = np.add.reduceat(blocks, rows[:-1], axis=0).cumsum(axis=0).cumsum(axis=1)
    above, below = np.searchsorted(rows, top), np.searchsorted(rows, bottom)
    before, after = np.searchsorted(cols, left), np.searchsorted(cols, right)
    counts = integral[below, after] - integral[above, after] - integral[below, before] + integral[above, before]
    share: NDArray[np.float64] = counts / float(size_px * size_px)
    return share


def tissue_origins(mask: NDArray[np.bool_], config: GridConfig) -> Origins:
    """Return the grid's patches that hold at least ``min_tissue`` of tissue, and any at all; shape (n, 2), int32.

    Parameters
    ----------
    mask
        Shape (rows, cols), bool: True where tissue is.
    config
        Of the grid.
    """
    origins = grid_origins((int(mask.shape[0]), int(mask.shape[1])), config)
    share = tissue_share(mask, origins, size_px=config.size_px)
    return origins[(share >= config.min_tissue) & (share > 0)]


def extract_patches(pixels: NDArray[T], origins: Origins, *, size_px: int) -> NDArray[T]:
    """Copy patches out of one image, shape (n, size_px, size_px), zero past the border.

    Parameters
    ----------
    pixels
        Shape (rows, cols), any dtype.
    origins
        Shape (n, 2), as `grid_origins` gives them: past the border only where the image is smaller than a patch.
    size_px
        Side of a patch.
    """
    padded = pad_to_patch(pixels, size_px)
    patches = np.empty((len(origins), size_px, size_px), padded.dtype)
    for patch, (row, col) in zip(patches, origins.tolist(), strict=True):
        patch[...] = padded[row : row + size_px, col : col + size_px]
    return patches
