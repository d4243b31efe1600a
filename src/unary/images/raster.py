"""Reading PNG, TIFF, PGM and JPEG without losing a bit of what they hold.

Grey values of 1 to 16 bits, 32-bit integers and finite floats come back as they are stored, the same whatever the
format, its compression and the file's name; what cannot is refused by name. Nothing is squeezed to 8 bits, stretched or
blown up to three channels: common imaging libraries clip 16-bit greys at 255 on the way to RGB, and a film is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unary.images import jpeg, pgm, png, tiff
from unary.images.checks import build_refusal
from unary.images.samples import Samples, build_grey, reading_raster
from unary.records import Image

RASTER_SUFFIXES = (".png", ".tif", ".tiff", ".pgm", ".jpg", ".jpeg")


@dataclass(frozen=True)
class _Format:
    """One format: how its files start, and its two readers."""

    name: str
    starts: tuple[bytes, ...]
    read: Callable[[Path], Samples]
    read_shape: Callable[[Path], tuple[int, int]]


_FORMATS = (
    _Format("PNG", (png.MAGIC,), png.read_png, png.read_png_shape),
    _Format("TIFF", tiff.MAGICS, tiff.read_tiff, tiff.read_tiff_shape),
    _Format("PGM", pgm.MAGICS, pgm.read_pgm, pgm.read_pgm_shape),
    _Format("JPEG", (jpeg.MAGIC,), jpeg.read_jpeg, jpeg.read_jpeg_shape),
)


def read_raster(path: Path) -> Image:
    """Read one grey PNG, TIFF, PGM or JPEG file, told by its content, as it is stored.

    A colour file whose channels are all equal counts as grey. An orientation that a file states is noted, not applied.

    Returns
    -------
    Image
        uint8, uint16, uint32, int8, int16, int32 or float32 pixels; ``value_range`` is that of the bits per sample, or
        what a float image holds. No spacing: rasters state none that can be trusted.

    Raises
    ------
    ImageError
        If the file is unreadable, truncated, empty, in colour, of several pages, not finite, or of a kind that is not
        known to come out right.
    """
    form = _find_format(path)
    with reading_raster(path, form.name):
        return build_grey(form.read(path), path)


def read_raster_shape(path: Path) -> tuple[int, int]:
    """Read rows and columns, as `read_raster` returns them, without decoding; an `ImageError` if that is impossible."""
    form = _find_format(path)
    with reading_raster(path, form.name):
        return form.read_shape(path)


def is_lossy(path: Path) -> bool:
    """Return whether a raster has lost something to its compression: whether it is a JPEG, by its first bytes."""
    with path.open("rb") as file:
        return file.read(3) == jpeg.MAGIC


def _find_format(path: Path) -> _Format:
    with reading_raster(path, "an image"), path.open("rb") as file:
        start = file.read(8)
    for form in _FORMATS:
        if start.startswith(form.starts):
            return form
    cause = "not readable as an image: it starts like no PNG, TIFF, PGM or JPEG; another format, or damaged?"
    raise build_refusal(path, cause, "NOT_READABLE")
