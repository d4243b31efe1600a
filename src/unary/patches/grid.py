"""Patches as coordinates over whole images: grid, selection, extraction and stitching. Geometry alone.

A patch is a square of ``size_px`` working pixels named by its top-left corner (row, col). Images stay whole in
memory, once, as uint16, or are mapped from a file (`unary.patches.store`); a batch of patches is gathered from them when it is
needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from unary.patches.store import release_pages

Origins = NDArray[np.int32]
T = TypeVar("T", bound=np.generic)
_BAND_PX = 64


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
    """
    short = [max(size_px - length, 0) for length in pixels.shape]
    return np.pad(pixels, [(0, n) for n in short]) if any(short) else pixels


def tissue_share(mask: NDArray[np.bool_], origins: Origins, *, size_px: int) -> NDArray[np.float64]:
    """Return the share of each patch that is tissue, shape (n,), in [0, 1].

    Exact, from an integral image of the patches' corners. Pixels past the border count as background.
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
    """Return the grid's patches that hold at least ``min_tissue`` of tissue, shape (n, 2)."""
    origins = grid_origins((int(mask.shape[0]), int(mask.shape[1])), config)
    share = tissue_share(mask, origins, size_px=config.size_px)
    return origins[(share >= config.min_tissue) & (share > 0)]


def extract_patches(pixels: NDArray[T], origins: Origins, *, size_px: int) -> NDArray[T]:
    """Copy patches out of one image, shape (n, size_px, size_px), zero past the border."""
    padded = pad_to_patch(pixels, size_px)
    patches = np.empty((len(origins), size_px, size_px), padded.dtype)
    for patch, (row, col) in zip(patches, origins.tolist(), strict=True):
        patch[...] = padded[row : row + size_px, col : col + size_px]
    return patches


def taper_ramp(size_px: int) -> NDArray[np.float32]:
    """Return the weights of `taper_window` along one axis, shape (size,), float32, in (0, 1], highest in the middle."""
    ramp: NDArray[np.float32] = np.minimum(np.arange(1, size_px + 1), np.arange(size_px, 0, -1)).astype(np.float32)
    ramp /= ramp.max()
    return ramp


def taper_window(size_px: int) -> NDArray[np.float32]:
    """Return the weights of a patch's pixels where patches overlap, shape (size, size), float32, in (0, 1].

    A pyramid, highest in the middle. It is nowhere zero, so that a pixel that one patch alone covers, as those at the
    border and in the corners of an image, keeps that patch's value to the last bit but rounding.
    """
    ramp = taper_ramp(size_px)
    window: NDArray[np.float32] = np.outer(ramp, ramp)
    return window


def stitch_patches(
    batches: Iterable[tuple[NDArray[np.float32], Origins]],
    shape: tuple[int, int],
    *,
    blend: Literal["mean", "max", "taper"] = "mean",
) -> NDArray[np.float32]:
    """Lay patch maps back on the image they came from, a batch at a time so that memory stays bounded.

    Parameters
    ----------
    batches
        Pairs of maps, shape (n, size, size), float32, and their origins, shape (n, 2).
    shape
        Rows and columns of the result.
    blend
        Where patches overlap: ``"mean"`` averages, ``"max"`` keeps the largest, ``"taper"`` averages with the weights
        of `taper_window`, which hides the seams.

    Returns
    -------
    NDArray
        Shape ``shape``, float32. NaN where no patch lies: not scored is not the same as normal.
    """
    if blend not in ("mean", "max", "taper"):
        raise ValueError(f"blend must be 'mean', 'max' or 'taper', not {blend!r}")
    result = np.full(shape, np.nan, np.float32) if blend == "max" else np.zeros(shape, np.float32)
    laid: list[tuple[int, Origins]] = []
    for maps, origins in batches:
        laid.append((int(maps.shape[-1]), origins))
        if blend == "max":
            for window, inside in _each_covered(result, maps, origins):
                np.fmax(window, inside, out=window)
        else:
            _add_weighted(result, maps, origins, _blend_ramp(blend, int(maps.shape[-1])))
    if blend != "max":
        OverlapWeights(laid, shape[1], blend=blend).divide(result)
    return result


def split_grid(origins: Origins, rows: int) -> list[Origins]:
    """Split patches in reading order into runs of so many of the grid's rows each."""
    tops, number = np.unique(origins[:, 0], return_inverse=True)
    bounds = np.searchsorted(number, np.arange(rows, len(tops), rows))
    return [run for run in np.split(origins, bounds) if len(run)]


def add_tapered(sums: NDArray[np.float32], maps: NDArray[np.float32], origins: Origins) -> None:
    """Add patch maps, shape (n, size, size), float32, times the weights of `taper_window`, to an image's ``sums``."""
    _add_weighted(sums, maps, origins, taper_ramp(int(maps.shape[-1])))


class OverlapWeights:
    """What the weights of an image's patches add up to, so that sums of weighted patches become their means.

    Weights are a product of one along the rows and one along the columns, so that patches of one row are added up as
    lines; whole numbers are exact up to 2**24.

    Parameters
    ----------
    laid
        Sides and origins of all patches.
    cols
        Of the image.
    blend
        As for `stitch_patches`.
    """

    def __init__(
        self, laid: Iterable[tuple[int, Origins]], cols: int, *, blend: Literal["mean", "taper"] = "taper"
    ) -> None:
        self._lines: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] = []
        for size_px, origins in laid:
            ramp = _blend_ramp(blend, size_px)
            for top in np.unique(origins[:, 0]).tolist():
                line = np.zeros(cols + size_px, np.float32)
                for col in origins[origins[:, 0] == top, 1].tolist():
                    line[col : col + size_px] += ramp
                self._lines.append((top, ramp[:, None], line[:cols]))

    def divide(self, sums: NDArray[np.float32], first_row: int = 0) -> None:
        """Turn sums into means, in place; NaN where no patch lies.

        ``sums``, shape (rows, cols), float32, is the image, or its rows from ``first_row`` on. May be called from
        several threads.
        """
        for start in range(0, len(sums), _BAND_PX):  # a few rows at a time, whose weights stay near the processor
            band = sums[start : start + _BAND_PX]
            total = np.zeros(band.shape, np.float32)
            for top, ramp, line in self._lines:
                row = top - first_row - start
                if -len(ramp) < row < len(band):
                    window = total[max(row, 0) : row + len(ramp)]
                    window += ramp[max(-row, 0) : max(-row, 0) + len(window)] * line
            total[total == 0] = np.nan
            band /= total


def _each_covered(
    image: NDArray[np.float32], maps: NDArray[np.float32], origins: Origins
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """What a patch covers of the image, and what of the patch lies in it."""
    size_px = int(maps.shape[-1])
    for patch, (row, col) in zip(maps, origins.tolist(), strict=True):
        window = image[row : row + size_px, col : col + size_px]
        yield window, patch[: window.shape[0], : window.shape[1]]


def _add_weighted(
    sums: NDArray[np.float32], maps: NDArray[np.float32], origins: Origins, ramp: NDArray[np.float32]
) -> None:
    weights = np.outer(ramp, ramp)
    for window, inside in _each_covered(sums, maps, origins):
        window += weights[: window.shape[0], : window.shape[1]] * inside


def _blend_ramp(blend: Literal["mean", "taper"], size_px: int) -> NDArray[np.float32]:
    """A patch's weights along one axis."""
    return taper_ramp(size_px) if blend == "taper" else np.ones(size_px, np.float32)


@dataclass(frozen=True, eq=False)
class PatchSet:
    """Patches of many images, gathered on demand.

    Attributes
    ----------
    images
        One uint16 array per image (65535 is intensity 1), each cropped to the patches that are used.
    index
        Shape (n, 3), int32: which image, and the patch's (row, col) inside that array.
    size_px
        Side of a patch.
    loaded
        Copies in memory of stored images, by number, for as long as they are there (`unary.training.batches`).
    """

    images: tuple[NDArray[np.uint16], ...]
    index: NDArray[np.int32]
    size_px: int
    loaded: dict[int, NDArray[np.uint16]] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        """What the pixels take in memory, or in a store, in bytes."""
        return sum(image.nbytes for image in self.images)

    def gather(self, which: NDArray[np.integer] | slice) -> NDArray[np.uint16]:
        """Copy the chosen patches, shape (n, size_px, size_px), uint16."""
        chosen = self.index[which]
        patches = np.empty((len(chosen), self.size_px, self.size_px), np.uint16)
        for patch, (image, row, col) in zip(patches, chosen.tolist(), strict=True):
            pixels = self.loaded.get(image, self.images[image])
            patch[...] = pixels[row : row + self.size_px, col : col + self.size_px]
        release_pages(self.images[image] for image in np.unique(chosen[:, 0]))
        return patches

    def subset(self, which: NDArray[np.integer] | NDArray[np.bool_]) -> PatchSet:
        """Return the chosen patches over the same pixels; nothing is copied."""
        return PatchSet(self.images, self.index[which], self.size_px)


def build_patch_set(pixels: NDArray[np.uint16], origins: Origins, *, size_px: int) -> PatchSet:
    """Return the patches of one image, keeping of it only the box that they span.

    A mammogram is mostly background, so that this halves the memory or better.
    """
    if len(origins) == 0:
        return PatchSet((np.zeros((0, 0), np.uint16),), np.zeros((0, 3), np.int32), size_px)
    padded = pad_to_patch(pixels, size_px)
    low, high = origins.min(axis=0), origins.max(axis=0) + size_px
    kept = padded[low[0] : high[0], low[1] : high[1]].copy()
    index = np.column_stack([np.zeros(len(origins)), origins - low]).astype(np.int32)
    return PatchSet((kept,), index, size_px)


def join_patch_sets(sets: Sequence[PatchSet]) -> PatchSet:
    """Return one set with the patches of all, in order; pixels are shared, not copied.

    Raises
    ------
    ValueError
        If there is none, or their patches differ in size.
    """
    sizes = {one.size_px for one in sets}
    if len(sizes) != 1:
        raise ValueError(f"patch sets of one size are needed, got the sizes {sorted(sizes)}")
    firsts = np.cumsum([0, *(len(one.images) for one in sets)])
    index = [one.index + np.array([first, 0, 0], np.int32) for one, first in zip(sets, firsts, strict=False)]
    return PatchSet(tuple(image for one in sets for image in one.images), np.concatenate(index), sizes.pop())
