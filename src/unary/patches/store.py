"""Prepared images on disk, for training from more than memory holds: one uncompressed BigTIFF, a page per image.

Any reader of TIFF opens the file. Here it is mapped into memory, so that an image is an array whose pixels the system
reads when they are looked at. Pages that were looked at count as the process's memory until they are released. Whoever
needs many images whole reads them into memory of its own instead, past the system's cache if they would not last there.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.errors import ImageError, UnaryError
from unary.files import replacing

Images = tuple[NDArray[np.uint16], ...]
_BLOCK = 4096  # what the offsets, sizes and addresses of reading past the system's cache are multiples of
_DIRECT = getattr(os, "O_DIRECT", 0)


class _Mapping(mmap.mmap):
    """A whole file, read-only."""

    path: Path


@contextmanager
def writing_images(path: Path) -> Iterator[Callable[[NDArray[np.uint16]], None]]:
    """Yield a function that adds one image, shape (rows, cols), uint16; the file stands whole when the block ends.

    An image without pixels keeps its number, as a page of one black pixel. A `UnaryError` says that the disk does not
    take them.
    """
    import tifffile

    with replacing(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as writer:

        def write(image: NDArray[np.uint16]) -> None:
            page = np.ascontiguousarray(image) if image.size else np.zeros((1, 1), np.uint16)
            try:
                writer.write(page, photometric="minisblack", metadata=None, align=mmap.ALLOCATIONGRANULARITY)
            except OSError as error:
                raise UnaryError(
                    f"{path}: the prepared images cannot be written there ({error.strerror or error}); make room, or "
                    "give another folder with --store"
                ) from error

        yield write


def open_images(path: Path) -> Images:
    """Return a stored file's images in order, uint16, read-only; nothing is read yet.

    Raises
    ------
    ImageError
        If a page is no plain uint16 image of this machine's byte order.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = [(page.shape, page.dataoffsets[0], page.is_memmappable, page.dtype) for page in file.pages]
    if not all(plain and kind == np.uint16 and len(shape) == 2 for shape, _, plain, kind in pages):
        raise ImageError(f"{path}: a store holds uncompressed 16-bit grey pages alone; let `collect_patches` write it")
    with path.open("rb") as opened:
        mapping = _Mapping(opened.fileno(), 0, access=mmap.ACCESS_READ)
    mapping.path = path
    return tuple(np.ndarray(shape, np.uint16, mapping, offset) for shape, offset, *_ in pages)


def is_stored(image: NDArray[np.uint16]) -> bool:
    """Tell whether an image comes from `open_images`."""
    return isinstance(image.base, _Mapping)


class Buffer:
    """Memory that images are read into, again and again: pages that are new to a process cost it as much as reading."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def require(self, size: int) -> mmap.mmap:
        """Return at least so many bytes, which begin where a page does; what they held may be lost."""
        if self._memory is None or len(self._memory) < size:
            self._memory = None
            self._memory = mmap.mmap(-1, max(size, 1))
        return self._memory


def read_images(images: Sequence[NDArray[np.uint16]], buffer: Buffer, *, direct: bool = False) -> Images:
    """Read stored images of one file into memory; what was read into the same buffer before is overwritten.

    Other threads run meanwhile. With ``direct`` the system does not keep what was read, which takes it a tenth of the
    processor's time; where it cannot do without, it is read as usual.

    Raises
    ------
    ImageError
        If the file cannot be read, or ends too early.
    """
    if not images:
        return ()
    places = [_locate(image) for image in images]
    path = places[0][0]
    spans = [(start // _BLOCK * _BLOCK, start + image.nbytes) for image, (_, start) in zip(images, places, strict=True)]
    offsets = np.cumsum([0, *(-(-(stop - start) // _BLOCK) * _BLOCK for start, stop in spans)]).tolist()
    memory = buffer.require(offsets[-1])
    parts = [memoryview(memory)[first:last] for first, last in itertools.pairwise(offsets)]
    try:
        try:
            _fill(parts, path, spans, flags=_DIRECT if direct else 0)
        except OSError:
            if not direct:
                raise
            _fill(parts, path, spans, flags=0)  # not every file system reads past the cache
    except (OSError, EOFError) as error:
        raise ImageError(
            f"{path}: the stored images cannot be read any more: {error}; was the file changed?"
        ) from error
    return tuple(
        np.ndarray(image.shape, np.uint16, part, start % _BLOCK)
        for image, part, (_, start) in zip(images, parts, places, strict=True)
    )


def outgrows_memory(images: Iterable[NDArray[np.uint16]]) -> bool:
    """Tell whether stored images are so many that the system's cache forgets the first before the last are read."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no Unix
        return False
    return sum(image.nbytes for image in images) > memory / 2


def release_pages(images: Iterable[NDArray[np.uint16]]) -> None:
    """Give back the memory that stored images take; they are read again when they are looked at again.

    Does nothing to images that are not stored, nor where the system has no such call.
    """
    for image in images:
        mapping = image.base
        if isinstance(mapping, _Mapping) and image.size and hasattr(mapping, "madvise"):
            start = _locate(image)[1]
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            mapping.madvise(mmap.MADV_DONTNEED, first, start + image.nbytes - first)


def _locate(image: NDArray[np.uint16]) -> tuple[Path, int]:
    """The file of a stored image, and where in it the image begins, in bytes."""
    mapping = image.base
    assert isinstance(mapping, _Mapping)
    return mapping.path, image.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data


def _fill(parts: Sequence[memoryview], path: Path, spans: Sequence[tuple[int, int]], *, flags: int) -> None:
    """Read spans of a file, from where they start and no less far than where they stop."""
    with FileIO(path, opener=lambda name, usual: os.open(name, usual | flags)) as file:
        for part, (start, stop) in zip(parts, spans, strict=True):
            at = start
            while at < stop:
                file.seek(at)
                count = file.readinto(part[at - start :])
                if not count:
                    raise EOFError(f"it ends after {at} bytes")
                at += count
