"""What the readers of PNG, TIFF, PGM and JPEG have in common: the decoded samples, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.errors import ImageError
from unary.images.checks import DAMAGE, build_refusal, convert_floats, silencing
from unary.records import Image

_ORIENTATION = 274  # in TIFF and EXIF
GREY_NEEDED = "grey values are needed: save the channel that matters, or each one, as a grey picture of its own"


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one picture as its file stores them.

    Attributes
    ----------
    values
        Shape (rows, cols, colours, or one more): the last of more is an opacity.
    colours
        1 or 3.
    highest
        The largest value that unsigned samples can have in this file; None for signed ones and floats.
    notes
        What was unusual and has been let pass, one sentence each.
    """

    values: NDArray[Any]
    colours: int
    highest: int | None
    notes: tuple[str, ...] = ()


@contextmanager
def reading_raster(path: Path, kind: str) -> Iterator[None]:
    """Keep the libraries silent, and translate what they raise: it is the file's fault, or a codec is missing."""
    try:
        with silencing("PIL", "tifffile", "imagecodecs"):
            yield
    except ImportError as error:
        cause = f"this {kind} needs a decoder that is not installed here ({error})"
        raise build_refusal(path, cause, "UNSUPPORTED_SYNTAX") from error
    except MemoryError as error:
        raise build_refusal(path, f"no memory to read this {kind}", "MEMORY_LIMIT") from error
    except DAMAGE as error:
        unopened = getattr(error, "errno", None) is not None
        cause = f"not readable as {kind} ({error}); truncated or damaged?"
        raise build_refusal(path, cause, "NOT_READABLE" if unopened else "CORRUPT_PIXELS") from error


def build_grey(samples: Samples, path: Path) -> Image:
    """Return the grey image that samples hold; colours that are all equal count as grey, and nothing is squeezed.

    Raises
    ------
    ImageError
        If the picture is in colour or partly transparent, empty or not finite.
    """
    values, notes = samples.values, samples.notes
    if values.shape[2] > samples.colours:
        opaque = samples.highest or (1.0 if values.dtype.kind == "f" else np.iinfo(values.dtype).max)
        if (values[..., -1] != opaque).any():
            raise build_transparent(path)
        values = values[..., :-1]
    if samples.colours == 3 and (values != values[..., :1]).any():
        raise build_refusal(path, f"it is in colour; {GREY_NEEDED}", "COLOUR")
    grey: NDArray[Any] = np.ascontiguousarray(values[..., 0])
    if grey.dtype.kind == "f":
        pixels, limits = convert_floats(grey, path)
        if grey.dtype.itemsize > 4 and (pixels != grey).any():
            notes += ("its 64-bit floats have more digits than 32 bits hold, and are rounded to those",)
        return Image(pixels, limits, path, notes=notes)
    lowest, highest = (0, samples.highest) if samples.highest else (np.iinfo(grey.dtype).min, np.iinfo(grey.dtype).max)
    return Image(grey, (float(lowest), float(highest)), path, notes=notes)


def build_transparent(path: Path) -> ImageError:
    """Return the refusal of a picture that shows less than it holds."""
    return build_refusal(path, "it is partly transparent; grey values alone are needed", "COLOUR")


def build_several(path: Path, what: str) -> ImageError:
    """Return the refusal of a file that holds several pictures, given in words what it holds."""
    return build_refusal(path, f"{what}; one is needed: save each as a file of its own", "MULTIFRAME")


def describe_orientation(orientation: object) -> tuple[str, ...]:
    """Return a note where a file says that its picture is to be shown turned or mirrored: one rule for all formats."""
    if orientation in (None, 1):
        return ()
    return (f"its Orientation is {orientation}: pixels and findings are in the rows and columns as stored, not turned",)


def find_orientation(block: bytes) -> object:
    """Return the orientation that a block of EXIF states; None where it states none, or is damaged."""
    from PIL.Image import Exif

    exif = Exif()
    try:
        exif.load(block)
        return exif.get(_ORIENTATION)
    except DAMAGE:
        return None
