"""Reading one image of any supported format, told by its content first and its name second.

pydicom is imported for the first DICOM image: it takes a fifth of a second, and rasters need none of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.errors import ImageError
from unary.images.checks import build_refusal
from unary.images.preamble import looks_like_dicom
from unary.images.raster import RASTER_SUFFIXES, is_lossy, read_raster, read_raster_shape
from unary.records import Image

DICOM_SUFFIXES = (".dcm", ".dicom")
_VOLUMES = (".nii", ".nii.gz", ".npy", ".npz", ".mha", ".mhd", ".nrrd", ".nhdr", ".img", ".hdr", ".mgz", ".mnc")


def read_image(path: Path | str) -> Image:
    """Read a DICOM, PNG, TIFF, PGM or JPEG image as it is stored.

    A file that starts as DICOM files do is read as DICOM, whatever its name.

    Raises
    ------
    ImageError
        If the file is missing, empty, damaged, of another kind, or shows one single value everywhere.
    """
    path = Path(path)
    image = _read_any(path, dicom=is_dicom(path))
    check_pixels(image)
    return image


def _read_any(path: Path, *, dicom: bool) -> Image:
    if not dicom:
        return read_raster(path)
    from unary.images.dicom import read_dicom

    return read_dicom(path)


def read_mask(path: Path | str) -> NDArray[np.bool_]:
    """Read a lesion mask, shape (rows, cols), bool: True where the file is not zero.

    Raises
    ------
    ImageError
        If it cannot be read, is zero everywhere, or is a JPEG: around an edge, JPEG makes small values of zeros.
    """
    path = Path(path)
    dicom = is_dicom(path)
    if not dicom and is_lossy(path):
        raise build_refusal(path, "a JPEG has lost the edges of a mask; save it as PNG or TIFF", "UNSUPPORTED_SYNTAX")
    mask: NDArray[np.bool_] = _read_any(path, dicom=dicom).pixels != 0
    if not mask.any():
        raise ImageError(f"{path}: the mask marks no pixel; not a mask, or damaged?")
    return mask


def read_shape(path: Path | str) -> tuple[int, int]:
    """Read rows and columns from the header alone, or raise an `ImageError`; the pixels may still be damaged."""
    path = Path(path)
    if not is_dicom(path):
        return read_raster_shape(path)
    from unary.images.dicom import read_header

    return read_header(path).shape


def check_pixels(image: Image) -> None:
    """Refuse an image that is empty, not finite or the same everywhere, by an `ImageError`."""
    if image.pixels.size == 0:
        raise build_refusal(image.name, f"it has no pixels, its shape is {image.shape}", "BLANK")
    low, high = image.pixels.min(), image.pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise build_refusal(image.name, "it holds values that are not finite (NaN or infinity)", "CORRUPT_PIXELS")
    if low == high:
        raise build_refusal(image.name, f"every pixel has the value {low}; the image is blank or damaged", "BLANK")


def is_image_file(path: Path) -> bool:
    """Return whether a file has an image's suffix or starts as DICOM files do; an OSError if it cannot be opened."""
    return path.suffix.lower() in RASTER_SUFFIXES + DICOM_SUFFIXES or looks_like_dicom(path)


def is_dicom(path: Path) -> bool:
    """Return whether a file is to be read as DICOM, by its content, else by its name.

    It is an `ImageError` if it cannot be opened, is empty, or is neither DICOM nor a raster.
    """
    try:
        if path.stat().st_size == 0:
            raise build_refusal(path, "the file is empty", "NOT_READABLE")
        dicom = looks_like_dicom(path)
    except OSError as error:
        raise build_refusal(path, f"cannot be opened ({error.strerror})", "NOT_READABLE") from error
    suffix = path.suffix.lower()
    if not dicom and path.name.lower().endswith(_VOLUMES):
        cause = (
            "an array or a volume, which is not read: open it with the library of its format and give its slices one "
            "by one, `unary.Image.from_array(slice, spacing_mm=...)`, or save them as DICOM or TIFF"
        )
        raise build_refusal(path, cause, "NOT_READABLE")
    if not dicom and suffix not in RASTER_SUFFIXES + DICOM_SUFFIXES:
        raise build_refusal(path, f"neither DICOM nor one of {', '.join(RASTER_SUFFIXES)}", "NOT_READABLE")
    return dicom or suffix in DICOM_SUFFIXES
