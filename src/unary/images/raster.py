"""Reading PNG, TIFF, PGM and JPEG without losing a bit of what they hold.

Grey images of 8 to 16 bits and finite floats come back as they are stored. Nothing is squeezed to 8 bits or blown up to
three channels: common imaging libraries clip 16-bit greys at 255 on the way to RGB, and a radiograph is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from unary.errors import Reason
from unary.images.checks import DAMAGE, build_refusal, check_size, convert_floats, silencing
from unary.records import Image

TIFF_SUFFIXES = (".tif", ".tiff")
RASTER_SUFFIXES = (".png", *TIFF_SUFFIXES, ".pgm", ".jpg", ".jpeg")
_NEEDED = "a two-dimensional grey image is needed, its shape is {}"
_FORMATS = ("PNG", "PPM", "JPEG", "TIFF")


def read_raster(path: Path) -> Image:
    """Read one grey PNG, TIFF, PGM or JPEG file as it is stored: an orientation that a camera notes is not applied.

    A colour file whose channels are all equal counts as grey.

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
        return Image(*convert_floats(pixels, path), path)
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 4 or pixels.dtype == np.uint32:
        cause = f"pixels of type {pixels.dtype} are not supported; 8 to 16 bits or float are"
        raise build_refusal(path, cause, "UNSUPPORTED_SYNTAX")
    info = np.iinfo(pixels.dtype)
    limits = (0.0, float(2**bits - 1)) if bits and info.min == 0 else (float(info.min), float(info.max))
    return Image(pixels, limits, path)


def read_raster_shape(path: Path) -> tuple[int, int]:
    """Read rows and columns without decoding; raises an `ImageError` if the header is not readable."""
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
        # Pillow warns of decompression bombs, though 100 megapixels are usual here, and of damage that shows anyway.
        with silencing("PIL"), PIL.Image.open(path, formats=_FORMATS) as file:
            check_size(int(file.height), int(file.width), path)
            yield file
    except PIL.Image.DecompressionBombError as error:
        raise build_refusal(path, f"too large ({error})", "TOO_LARGE") from error
    except DAMAGE as error:
        cause = f"not readable as an image ({error}); truncated, or another format?"
        raise build_refusal(path, cause, _tell_reason(error)) from error


def _tell_reason(error: Exception) -> Reason:
    """Pillow knows no more than that a file is not an image, or that its pixels end early or make no sense."""
    if isinstance(error, MemoryError):
        return "MEMORY_LIMIT"
    unknown = isinstance(error, PIL.UnidentifiedImageError) or getattr(error, "errno", None) is not None
    return "NOT_READABLE" if unknown else "CORRUPT_PIXELS"


def _read_with_pillow(path: Path) -> NDArray[Any]:
    with _opening(path) as file:
        frames = getattr(file, "n_frames", 1)
        if frames > 1:
            raise build_refusal(path, f"it holds {frames} images; one is needed", "MULTIFRAME")
        if file.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise build_refusal(path, f"it is in colour ({file.mode}); grey values are needed", "COLOUR")
        # A palette holds 8-bit colours; whether they are all grey is seen afterwards.
        return np.asarray(file.convert("RGBA") if file.mode in ("P", "PA") else file)


def _read_pgm_maximum(path: Path) -> int | None:
    """The largest value that a PGM file declares, or None for another format."""
    blank = rb"\s(?:\s|#[^\n]*\n)*"
    with path.open("rb") as file:
        header = re.match(rb"P[25]%b\d+%b\d+%b(\d+)\s" % (blank, blank, blank), file.read(2048))
    return int(header[1]) if header else None


def _restore_pgm(pixels: NDArray[Any], maximum: int) -> NDArray[Any]:
    """Undo Pillow's stretching of PGM values to 8 or 16 bits; rounding back gives what is stored, exactly."""
    full, dtype = (255, np.uint8) if maximum < 256 else (65535, np.uint16)
    table = np.rint(np.arange(full + 1) * (maximum / full)).astype(dtype)
    return np.asarray(table[pixels])


@contextmanager
def _opening_tiff(path: Path) -> Iterator[Any]:
    """Open the one page of a TIFF; what goes wrong inside the block is the file's fault."""
    import tifffile

    try:
        with silencing("tifffile"), tifffile.TiffFile(path) as file:
            count = max(len(file.pages), int((file.imagej_metadata or {}).get("images", 1)))
            if count > 1:
                raise build_refusal(path, f"it holds {count} pages; one is needed", "MULTIFRAME")
            page = file.pages[0]
            check_size(int(page.imagelength), int(page.imagewidth), path)
            if page.is_tiled:
                check_size(int(page.tilelength), int(page.tilewidth), path)
            if page.samplesperpixel > 4 or page.imagedepth != 1:
                raise build_refusal(
                    path, _NEEDED.format(page.shape), "COLOUR" if page.imagedepth == 1 else "MULTIFRAME"
                )
            yield page
    except (*DAMAGE, tifffile.TiffFileError) as error:
        unknown = isinstance(error, tifffile.TiffFileError)
        cause = f"not readable as TIFF ({error}); truncated, or an unusual compression?"
        raise build_refusal(path, cause, "NOT_READABLE" if unknown else _tell_reason(error)) from error


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
            raise build_refusal(path, "it is partly transparent; grey values alone are needed", "COLOUR")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
        if (pixels != pixels[..., :1]).any():
            raise build_refusal(path, "it is in colour; grey values are needed", "COLOUR")
        pixels = np.ascontiguousarray(pixels[..., 0])
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise build_refusal(path, _NEEDED.format(pixels.shape), "COLOUR" if pixels.ndim == 3 else "CORRUPT_PIXELS")
    return pixels
