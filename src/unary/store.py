"""Prepared images on disk, for training from more than memory holds: one uncompressed BigTIFF, a page per image.

Any reader of TIFF opens the file. Here it is mapped into memory, so that an image is an array whose pixels the system
reads when they are looked at. Pages that were looked at count as the process's memory until they are released.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from unary.errors import ImageError
from unary.files import replacing

Images = tuple[NDArray[np.uint16], ...]
_MADV_POPULATE_READ = 22  # Python has no name for it yet


@contextmanager
def writing_images(path: Path) -> Iterator[Callable[[NDArray[np.uint16]], None]]:
    """Yield a function that adds one image, shape (rows, cols), uint16; the file stands whole when the block ends.

    An image without pixels keeps its number, as a page of one black pixel.
    """
    with replacing(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as writer:

        def write(image: NDArray[np.uint16]) -> None:
            page = np.ascontiguousarray(image) if image.size else np.zeros((1, 1), np.uint16)
            writer.write(page, photometric="minisblack", metadata=None, align=mmap.ALLOCATIONGRANULARITY)

        yield write


def open_images(path: Path) -> Images:
    """Return a stored file's images in order, uint16, read-only; nothing is read yet.

    Raises
    ------
    ImageError
        If a page is no plain uint16 image of this machine's byte order.
    """
    with tifffile.TiffFile(path) as file:
        pages = [(page.shape, page.dataoffsets[0], page.is_memmappable, page.dtype) for page in file.pages]
    if not all(plain and kind == np.uint16 and len(shape) == 2 for shape, _, plain, kind in pages):
        raise ImageError(f"{path}: a store holds uncompressed 16-bit grey pages alone; let `collect_patches` write it")
    with path.open("rb") as opened:
        mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return tuple(np.ndarray(shape, np.uint16, mapping, offset) for shape, offset, *_ in pages)


def is_stored(image: NDArray[np.uint16]) -> bool:
    """Tell whether an image comes from `open_images`."""
    return isinstance(image.base, mmap.mmap)


def load_pages(images: Iterable[NDArray[np.uint16]]) -> None:
    """Read stored images through; what comes after finds them in memory.

    One request per image where the system has it (Linux 5.14): it costs a tenth of the processor time of touching
    every page. Other threads run meanwhile, which `mmap.madvise` would not let them.
    """
    system = ctypes.CDLL(None) if sys.platform == "linux" else None
    for image in images:
        first = image.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
        size = ctypes.c_size_t(image.ctypes.data + image.nbytes - first)
        if system is None or system.madvise(ctypes.c_void_p(first), size, _MADV_POPULATE_READ) != 0:
            pixels = image.reshape(-1)
            pixels[:: mmap.PAGESIZE // pixels.itemsize].max(initial=0)


def release_pages(images: Iterable[NDArray[np.uint16]]) -> None:
    """Give back the memory that stored images take; they are read again when they are looked at again.

    Does nothing to images that are not stored, nor where the system has no such call.
    """
    for image in images:
        mapping = image.base
        if isinstance(mapping, mmap.mmap) and image.size and hasattr(mapping, "madvise"):
            start = image.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            mapping.madvise(mmap.MADV_DONTNEED, first, start + image.nbytes - first)
