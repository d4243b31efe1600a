"""Reading PNG, TIFF and PGM without losing a bit.

Grey images of 8 to 16 bits and finite floats come back as they are stored. Nothing is squeezed to 8 bits or blown up to
three channels: common imaging libraries clip 16-bit greys at 255 on the way to RGB, and a mammogram is gone.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from unary.errors import ImageError
from unary.records import Image

RASTER_SUFFIXES = (".png", ".tif", ".tiff", ".pgm")


def read_raster(path: Path) -> Image:
    """Read one grey raster image.

    Parameters
    ----------
    path
        A PNG, TIFF or PGM file. A colour file whose channels are all equal counts as grey.

    Returns
    -------
    Image
        uint8, uint16, int16, int32 or float32 pixels; ``value_range`` is that of the integer type, or what a float
        image holds. No spacing: rasters state none that can be trusted.

    Raises
    ------
    ImageError
        If the file is unreadable, truncated, empty, in colour, of several pages, or not finite.
    """
    pixels = _read_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _read_with_pillow(path)
    pixels = _as_grey(pixels, path)
    maximum = _read_pgm_maximum(path)
    if maximum is not None:
        # Pillow stretches PGM values to 8 or 16 bits; rounding back restores what is stored, exactly.
        full = 255 if maximum < 256 else 65535
        stored = np.rint(pixels * (maximum / full)).astype(np.uint8 if maximum < 256 else np.uint16)
        return Image(stored, (0.0, float(maximum)), path)
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise ImageError(f"{path}: it holds values that are not finite (NaN or infinity)")
        limits = (float(pixels.min()), float(pixels.max()))
    elif pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 4:
        info = np.iinfo(pixels.dtype)
        limits = (float(info.min), float(info.max))
    else:
        raise ImageError(f"{path}: pixels of type {pixels.dtype} are not supported; 8 to 32 bits or float are")
    return Image(pixels, limits, path)


def _read_with_pillow(path: Path) -> NDArray[Any]:
    try:
        with warnings.catch_warnings():
            # Pillow's guard against decompression bombs; 100 megapixels are an ordinary size here.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as file:
                frames = getattr(file, "n_frames", 1)
                if frames > 1:
                    raise ImageError(f"{path}: it holds {frames} images; one is needed")
                if file.mode == "P":
                    raise ImageError(f"{path}: it has a colour palette; grey values are needed")
                pixels = np.asarray(file)
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{path}: not readable as an image ({error}); truncated, or another format?") from error
    return pixels


def _read_pgm_maximum(path: Path) -> int | None:
    """The largest value that a PGM file declares, or None for another format."""
    with path.open("rb") as file:
        header = re.match(
            rb"P[25]\s(?:\s|#[^\n]*\n)*\d+\s(?:\s|#[^\n]*\n)*\d+\s(?:\s|#[^\n]*\n)*(\d+)\s", file.read(2048)
        )
    return int(header[1]) if header else None


def _read_tiff(path: Path) -> NDArray[Any]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            if len(file.pages) > 1:
                raise ImageError(f"{path}: it holds {len(file.pages)} pages; one is needed")
            page = file.pages[0]
            pixels: NDArray[Any] = page.asarray()
            if int(getattr(page, "photometric", 1)) == 0 and pixels.dtype.kind == "u":  # white is zero
                pixels = np.iinfo(pixels.dtype).max - pixels
    except (tifffile.TiffFileError, OSError, ValueError, IndexError, KeyError) as error:
        raise ImageError(f"{path}: not readable as TIFF ({error}); truncated, or an unusual compression?") from error
    return pixels


def _as_grey(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        if pixels[..., -1].min() != np.iinfo(pixels.dtype).max:
            raise ImageError(f"{path}: it is partly transparent; grey values alone are needed")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
        if (pixels != pixels[..., :1]).any():
            raise ImageError(f"{path}: it is in colour; grey values are needed")
        pixels = np.ascontiguousarray(pixels[..., 0])
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise ImageError(f"{path}: a two-dimensional grey image is needed, its shape is {pixels.shape}")
    return pixels
