"""Applying a model to whatever image is at hand: a file, an array, or what `unary.read_image` returned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.errors import ImageError
from unary.images.reading import check_pixels, read_image
from unary.models.bundle import Model
from unary.models.examination import ScoredImage, detect_image, examine_image
from unary.records import Detection, Image


def take_image(
    image: Image | NDArray[Any] | Path | str, spacing_mm: float | tuple[float, float] | None = None
) -> Image:
    """Return an image from an image, an array of shape (rows, cols), or a path.

    Parameters
    ----------
    image
        Larger values are brighter.
    spacing_mm
        Distance between pixel centres in mm, both directions or (between rows, between columns), where the image does
        not state it itself.

    Raises
    ------
    ImageError
        If it is no image, cannot be read, or is blank.
    """
    if isinstance(image, (str, Path)):
        taken = read_image(Path(image))
    elif isinstance(image, Image):
        taken = image
    elif hasattr(image, "__array__"):
        taken = Image.from_array(image)
    else:
        raise ImageError(
            f"an image, an array of shape (rows, cols) or a path is needed, got {type(image).__name__}; for several, "
            "one call each"
        )
    if taken.path is None:  # what is read from a file has been checked
        check_pixels(taken)
    if taken.spacing_mm is None and spacing_mm is not None:
        spacing = (spacing_mm, spacing_mm) if isinstance(spacing_mm, (int, float)) else spacing_mm
        if not all(0 < length < np.inf for length in spacing):
            raise ImageError(f"{taken.name}: spacing_mm must be positive, got {spacing_mm}")
        taken = dataclasses.replace(taken, spacing_mm=spacing)
    return taken


def score(
    model: Model,
    image: Image | NDArray[Any] | Path | str,
    *,
    spacing_mm: float | tuple[float, float] | None = None,
) -> ScoredImage:
    """Score one image: its patches, its map, and the image as a whole.

    Parameters
    ----------
    model
        Fitted.
    image, spacing_mm
        As for `take_image`.

    Raises
    ------
    ImageError
        If the image cannot be read or used.
    DetectorError
        If the detector cannot examine it.
    """
    return examine_image(model, take_image(image, spacing_mm))


def detect(
    model: Model,
    image: Image | NDArray[Any] | Path | str,
    *,
    operating_point: str | float | None = None,
    spacing_mm: float | tuple[float, float] | None = None,
) -> Detection:
    """Find what departs from normal tissue in one image that is trusted; see `unary.models.examination.detect_image`.

    Files that nobody vouches for are better left to `unary.clinic.batch_detection.detect_files`, which reads them in a
    process of its own.

    Parameters
    ----------
    model
        Fitted; without a calibration the strongest few places are returned, whatever they score.
    image, spacing_mm
        As for `take_image`.
    operating_point
        False findings per normal image: 0.1, 0.5, 1 (default) or 2, as a number or a name.

    Raises
    ------
    ImageError
        If the image cannot be read or used.
    CalibrationError
        If the model has no such operating point.
    DetectorError
        If the detector cannot examine it.
    """
    return detect_image(model, take_image(image, spacing_mm), operating_point=operating_point)
