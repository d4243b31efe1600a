"""Reading PNG, TIFF, PGM and JPEG without losing a bit of what they hold.

Grey images of 8 to 16 bits and finite floats come back as they are stored. Nothing is squeezed to 8 bits or blown up to
three channels: common imaging libraries clip 16-bit greys at 255 on the way to RGB, and a radiograph is gone.
"""

from __future__ import annotations

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from unary.errors import ImageError, Reason
from unary.records import Image

TIFF_SUFFIXES = (".tif", ".tiff")
RASTER_SUFFIXES = (".png", *TIFF_SUFFIXES, ".pgm", ".jpg", ".jpeg")
_FORMATS = ("PNG", "PPM", "JPEG", "TIFF")
_LARGEST_PIXELS = 400_000_000
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip


def read_raster(path: Path) -> Image:
    """Read one grey raster image.

    Parameters
    ----------
    path
        A PNG, TIFF, PGM or JPEG file, as it is stored: an orientation that a camera notes beside it is not applied. A
        colour file whose channels are all equal counts as grey.

    Returns
    -------
    Image
        uint8, uint16, int16, int32 or float32 pixels; ``value_range`` is that of the bits per sample, or what a float
        image holds. No spacing: rasters state none that can be trusted.

    Raises
    ------
    ImageError
        If the file is unreadable, truncated, empty, in colour, of several pages, or not finite.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        pixels, bits = _read_tiff(path)
    else:
        pixels, bits = _read_with_pillow(path), None
    pixels = _as_grey(pixels, path)
    maximum = _read_pgm_maximum(path)
    if maximum is not None:
        return Image(_restore_pgm(pixels, maximum), (0.0, float(maximum)), path)
    if pixels.dtype == np.bool_:
        return Image(pixels.astype(np.uint8), (0.0, 1.0), path)
    if pixels.dtype.kind == "f":
        return _build_float_image(pixels, path)
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 4 or pixels.dtype == np.uint32:
        raise ImageError(
            f"{path}: pixels of type {pixels.dtype} are not supported; 8 to 16 bits or float are",
            reason="UNSUPPORTED_SYNTAX",
        )
    info = np.iinfo(pixels.dtype)
    limits = (0.0, float(2**bits - 1)) if bits and info.min == 0 else (float(info.min), float(info.max))
    return Image(pixels, limits, path)


def read_raster_shape(path: Path) -> tuple[int, int]:
    """Read rows and columns without decoding.

    Raises
    ------
    ImageError
        If the header is not readable.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        with _opening_tiff(path) as page:
            return int(page.imagelength), int(page.imagewidth)
    with _opening(path) as file:
        return int(file.height), int(file.width)


def is_lossy(path: Path) -> bool:
    """Return whether a raster has lost something to its compression: whether it is a JPEG, by its first bytes."""
    with path.open("rb") as file:
        return file.read(3) == b"\xff\xd8\xff"


@contextmanager
def _opening(path: Path) -> Iterator[PIL.Image.Image]:
    """Open with Pillow; what goes wrong inside the block is the file's fault."""
    try:
        with warnings.catch_warnings():
            # Of decompression bombs (100 megapixels are an ordinary size here) and of damage, which shows by itself.
            warnings.simplefilter("ignore")
            with PIL.Image.open(path, formats=_FORMATS) as file:
                _check_size(int(file.height), int(file.width), path)
                yield file
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{path}: too large ({error})", reason="TOO_LARGE") from error
    except _DAMAGE as error:
        raise ImageError(
            f"{path}: not readable as an image ({error}); truncated, or another format?", reason=_tell_reason(error)
        ) from error


def _tell_reason(error: Exception) -> Reason:
    """Pillow knows no more than that a file is not an image, or that its pixels end early or make no sense."""
    if isinstance(error, MemoryError):
        return "MEMORY_LIMIT"
    unknown = isinstance(error, PIL.UnidentifiedImageError) or getattr(error, "errno", None) is not None
    return "NOT_READABLE" if unknown else "CORRUPT_PIXELS"


def _check_size(rows: int, cols: int, path: Path) -> None:
    """Refuse before anything is decoded: a damaged header can ask for terabytes of memory."""
    if not 0 < rows * cols <= _LARGEST_PIXELS:
        raise ImageError(
            f"{path}: it declares {rows} x {cols} pixels; between 1 and {_LARGEST_PIXELS:,} can be read",
            reason="TOO_LARGE" if rows * cols > 0 else "CORRUPT_PIXELS",
        )


def _read_with_pillow(path: Path) -> NDArray[Any]:
    with _opening(path) as file:
        frames = getattr(file, "n_frames", 1)
        if frames > 1:
            raise ImageError(f"{path}: it holds {frames} images; one is needed", reason="MULTIFRAME")
        if file.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise ImageError(f"{path}: it is in colour ({file.mode}); grey values are needed", reason="COLOUR")
        # A palette holds 8-bit colours; whether they are all grey is seen afterwards.
        return np.asarray(file.convert("RGBA") if file.mode in ("P", "PA") else file)


def _read_pgm_maximum(path: Path) -> int | None:
    """The largest value that a PGM file declares, or None for another format."""
    with path.open("rb") as file:
        header = re.match(
            rb"P[25]\s(?:\s|#[^\n]*\n)*\d+\s(?:\s|#[^\n]*\n)*\d+\s(?:\s|#[^\n]*\n)*(\d+)\s", file.read(2048)
        )
    return int(header[1]) if header else None


def _restore_pgm(pixels: NDArray[Any], maximum: int) -> NDArray[Any]:
    """Undo Pillow's stretching of PGM values to 8 or 16 bits; rounding back gives what is stored, exactly."""
    full, dtype = (255, np.uint8) if maximum < 256 else (65535, np.uint16)
    if maximum == full:
        return pixels.astype(dtype)
    table = np.rint(np.arange(full + 1) * (maximum / full)).astype(dtype)
    stored: NDArray[Any] = table[pixels]
    return stored


def _build_float_image(pixels: NDArray[Any], path: Path) -> Image:
    with np.errstate(over="ignore"):
        pixels = pixels.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise ImageError(f"{path}: it holds values that are not finite (NaN or infinity)", reason="CORRUPT_PIXELS")
    return Image(pixels, (float(pixels.min()), float(pixels.max())), path)


@contextmanager
def _opening_tiff(path: Path) -> Iterator[Any]:
    """Open the one page of a TIFF; what goes wrong inside the block is the file's fault."""
    import tifffile

    log = logging.getLogger("tifffile")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)  # it logs every oddity of a damaged file; one error says enough
    try:
        with tifffile.TiffFile(path) as file:
            stack = (file.imagej_metadata or {}).get("images", 1)
            count = max(len(file.pages), int(stack))
            if count > 1:
                raise ImageError(f"{path}: it holds {count} pages; one is needed", reason="MULTIFRAME")
            page = file.pages[0]
            _check_size(int(page.imagelength), int(page.imagewidth), path)
            if page.is_tiled:
                _check_size(int(page.tilelength), int(page.tilewidth), path)
            if page.samplesperpixel > 4 or page.imagedepth != 1:
                raise ImageError(
                    f"{path}: a two-dimensional grey image is needed, its shape is {page.shape}",
                    reason="COLOUR" if page.imagedepth == 1 else "MULTIFRAME",
                )
            yield page
    except (*_DAMAGE, tifffile.TiffFileError) as error:
        raise ImageError(
            f"{path}: not readable as TIFF ({error}); truncated, or an unusual compression?",
            reason="NOT_READABLE" if isinstance(error, tifffile.TiffFileError) else _tell_reason(error),
        ) from error
    finally:
        log.setLevel(level)


def _read_tiff(path: Path) -> tuple[NDArray[Any], int]:
    """Pixels and bits per sample; Pillow decodes what tifffile cannot without an optional package (LZW, 12 bits)."""
    with _opening_tiff(path) as page:
        bits, white_is_zero = int(page.bitspersample), int(page.photometric) == 0
        try:
            pixels: NDArray[Any] = page.asarray()
        except (ValueError, NotImplementedError):
            pixels = _read_with_pillow(path)
            white_is_zero = white_is_zero and bits > 8  # Pillow has inverted the others
    if white_is_zero and pixels.dtype == np.bool_:
        pixels = ~pixels
    elif white_is_zero and pixels.dtype.kind == "u":
        pixels = pixels.dtype.type(2**bits - 1) - pixels
    return pixels, bits


def _as_grey(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        opaque = 1.0 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        if pixels[..., -1].min(initial=opaque) != opaque:
            raise ImageError(f"{path}: it is partly transparent; grey values alone are needed", reason="COLOUR")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
        if (pixels != pixels[..., :1]).any():
            raise ImageError(f"{path}: it is in colour; grey values are needed", reason="COLOUR")
        pixels = np.ascontiguousarray(pixels[..., 0])
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise ImageError(
            f"{path}: a two-dimensional grey image is needed, its shape is {pixels.shape}",
            reason="COLOUR" if pixels.ndim == 3 else "CORRUPT_PIXELS",
        )
    return pixels
