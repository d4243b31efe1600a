"""Reading one image of any supported format, told by its content first and its name second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.errors import ImageError
from unary.records import Image
from unary.sources.dicom import has_dicom_magic, read_dicom
from unary.sources.raster import RASTER_SUFFIXES, read_raster


def read_image(path: Path | str) -> Image:
    """Read a DICOM, PNG, TIFF or PGM image as it is stored.

    Parameters
    ----------
    path
        A file that starts as DICOM files do is read as DICOM, whatever its name.

    Raises
    ------
    ImageError
        If the file is missing, empty, damaged, of another kind, or shows one single value everywhere.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty")
        dicom = has_dicom_magic(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror})") from error
    if dicom or path.suffix.lower() in (".dcm", ".dicom"):
        image = read_dicom(path)
    elif path.suffix.lower() in RASTER_SUFFIXES:
        image = read_raster(path)
    else:
        raise ImageError(f"{path}: neither DICOM nor one of {', '.join(RASTER_SUFFIXES)}")
    if image.pixels.min() == image.pixels.max():
        raise ImageError(f"{path}: every pixel has the value {image.pixels.min()}; the image is blank or damaged")
    return image


def read_mask(path: Path | str) -> NDArray[np.bool_]:
    """Read a lesion mask, shape (rows, cols), bool: True where the file is not zero.

    Raises
    ------
    ImageError
        As `read_image`.
    """
    mask: NDArray[np.bool_] = read_image(path).pixels > 0
    return mask
