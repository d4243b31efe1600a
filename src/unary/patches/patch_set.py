"""Patches of many images: images stay whole, once, as uint16, in memory or mapped from a file; a batch is gathered."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unary.patches.grid import Origins
from unary.patches.store import is_stored, release_pages

T = TypeVar("T", bound=np.generic)
_MARGIN_PX = 16  # of background kept around the tissue


@dataclass(frozen=True, eq=False)
class PatchSet:
    """Patches of many images, gathered on demand.

    Attributes
    ----------
    images
        One uint16 array per image (65535 is intensity 1; 0 outside the tissue), each cropped to its tissue and to the
        patches that are used.
    index
        Shape (n, 3), int32: which image, and the patch's (row, col) inside that array.
    size_px
        Side of a patch.
    masks
        Where the tissue of each image is, packed by `pack_mask`; None where it is all that is not 0.
    loaded
        Copies in memory of stored images, by number, for as long as they are there (`unary.training.batches`).
    """

    images: tuple[NDArray[np.uint16], ...]
    index: NDArray[np.int32]
    size_px: int
    masks: tuple[bytes, ...] | None = None
    loaded: dict[int, NDArray[np.uint16]] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.index)

    def views(self) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.bool_], Origins, NDArray[np.int64]]]:
        """Yield, by image that has patches: its pixels and its mask of tissue, (rows, cols); its patches' origins,
        (n, 2); and which patches they are, positions in this set, (n,).
        """
        for number in np.unique(self.index[:, 0]).tolist():
            which = np.flatnonzero(self.index[:, 0] == number)
            pixels = self.images[number]
            mask = pixels > 0 if self.masks is None else unpack_mask(self.masks[number], pixels.shape)
            yield pixels, mask, self.index[which, 1:], which
            release_pages([pixels])

    def digest(self) -> str:
        """Return the SHA-256 of the images, their masks and the patches' places: equal sets, equal digests."""
        found = hashlib.sha256(self.index.tobytes())
        for pixels, mask, *_ in self.views():
            found.update(np.ascontiguousarray(pixels).data)
            found.update(np.packbits(mask).data)
        return found.hexdigest()

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
        return PatchSet(self.images, self.index[which], self.size_px, self.masks)


def build_patch_set(
    pixels: NDArray[np.uint16], origins: Origins, *, size_px: int, mask: NDArray[np.bool_] | None = None
) -> PatchSet:
    """Return the patches of one prepared image, keeping of it the box of its tissue and its patches (`find_window`).

    ``pixels`` and ``mask``, (rows, cols), are those of a `unary.patches.preparation.PreparedImage`; without a mask,
    tissue is where pixels are not 0.
    """
    tissue = pixels > 0 if mask is None else mask
    window = find_window(tissue, origins, size_px=size_px)
    kept = cut_window(pixels, window)
    corner = np.array([window[0].start, window[1].start], np.int32)
    index = np.column_stack([np.zeros(len(origins), np.int32), origins - corner]).astype(np.int32)
    return PatchSet((kept,), index.reshape(-1, 3), size_px, (pack_mask(cut_window(tissue, window)),))


def find_constant(patches: PatchSet) -> NDArray[np.int32]:
    """Return the value that all pixels of a patch have, such as air, shape (n,); -1 where they differ.

    Of images in a store, which would have to be read, it is -1 throughout.
    """
    values, last = np.full(len(patches), -1, np.int32), patches.size_px - 1
    in_memory = [not is_stored(image) for image in patches.images]
    for place, (number, row, col) in enumerate(patches.index.tolist()):
        if not in_memory[number]:
            continue
        patch = patches.images[number][row : row + last + 1, col : col + last + 1]
        if patch[0, 0] == patch[last, last] == patch[last // 2, last // 2] and patch.min() == patch.max():
            values[place] = patch[0, 0]
    return values


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """Return a mask in some kilobytes: one goes with every image, in memory also where pixels are in a store."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def unpack_mask(packed: bytes, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Undo `pack_mask`, for an array of a shape."""
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def find_window(mask: NDArray[np.bool_], origins: Origins, *, size_px: int) -> tuple[slice, slice]:
    """Return the box, rows and columns, that holds all of a mask of tissue with a small margin, and all patches.

    It may reach past the lower and right border, as patches may. What a detector sees of an image is always this box,
    in training as in use. Without tissue or patches it is empty.
    """
    bounds = []
    for axis in (0, 1):
        ends = [origins[:, axis].min(), origins[:, axis].max() + size_px] if len(origins) else []
        places = np.flatnonzero(mask.any(axis=1 - axis))
        if len(places):
            ends += [max(places[0] - _MARGIN_PX, 0), min(places[-1] + 1 + _MARGIN_PX, mask.shape[axis])]
        bounds.append(slice(int(min(ends, default=0)), int(max(ends, default=0))))
    return bounds[0], bounds[1]


def cut_window(values: NDArray[T], window: tuple[slice, slice]) -> NDArray[T]:
    """Copy a window of `find_window` out of an image, of shape (rows, cols) and any dtype; zero past the border."""
    rows, cols = window
    kept = np.zeros((rows.stop - rows.start, cols.stop - cols.start), values.dtype)
    part = values[rows, cols]
    kept[: part.shape[0], : part.shape[1]] = part
    return kept


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
    images = tuple(image for one in sets for image in one.images)
    masks = None
    if all(one.masks is not None for one in sets):
        masks = tuple(mask for one in sets for mask in one.masks or ())
    return PatchSet(images, np.concatenate(index), sizes.pop(), masks)
