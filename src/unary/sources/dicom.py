"""Reading a mammogram, or another single grey image, from DICOM.

The rules are those of the standard's mammography modules and of what goes wrong in the field: polarity is undone,
padding is told apart from measurement, spacing is what the file states or None, and the window that is stored for
display is ignored. Codecs are the permissively licensed ones that pydicom finds.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from unary.errors import ImageError
from unary.records import Image

MAMMOGRAPHY = {
    "1.2.840.10008.5.1.4.1.1.1.2": "FOR PRESENTATION",
    "1.2.840.10008.5.1.4.1.1.1.2.1": "FOR PROCESSING",
}
_DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.8.1"}
_LARGEST_PIXELS = 400_000_000
_MODALITIES = ("MG", "CR", "DX", "DR", "CT", "MR", "PT", "NM", "US", "OT", "XA", "RF", "SC", "IO", "PX", "RG")
# SNOMED CT (SCT), then the retired SNOMED codes (SRT) that are still found; PS3.16 CID 4014.
_VIEWS = {
    "399162004": "CC", "R-10242": "CC",
    "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML",
    "399352003": "LM", "R-10228": "LM",
    "399099002": "LMO", "R-10230": "LMO",
}  # fmt: skip
# What pydicom and the codecs raise on files that are damaged in one way or another.
_DECODING_ERRORS = (
    AttributeError, KeyError, ValueError, TypeError, IndexError, NotImplementedError, RuntimeError, EOFError,
    MemoryError, OSError, BytesLengthException, InvalidDicomError,
)  # fmt: skip


def has_dicom_magic(path: Path) -> bool:
    """Return whether the letters DICM stand after a preamble of 128 bytes (PS3.10 section 7.1)."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path) -> Image:
    """Read a single-frame grey image.

    Returns
    -------
    Image
        Pixels after the modality rescale where there is one, MONOCHROME1 inverted; no window applied.

    Raises
    ------
    ImageError
        If the file is no readable DICOM image, has several frames or colour, is compressed by deflate (a small file can
        unpack to gigabytes), or does not decode to the size that it declares.
    """
    _refuse_deflated(path)
    try:
        # pydicom's warnings and log lines quote the values of elements, names and dates included.
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            _check_kind(dataset, path)
            pixels = dataset.pixel_array
    except _DECODING_ERRORS as error:
        raise ImageError(
            f"{path}: not readable as a DICOM image ({type(error).__name__}); truncated, damaged or an unsupported "
            "compression?"
        ) from error
    shape = (int(dataset.Rows), int(dataset.Columns))
    if pixels.shape != shape:
        raise ImageError(f"{path}: it declares {shape} pixels but holds {pixels.shape}; truncated or damaged")
    padding = _find_padding(dataset, pixels)
    pixels, limits = _apply_rescale(dataset, pixels)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = (sum(limits) - pixels).astype(pixels.dtype)
    return Image(
        pixels,
        limits,
        path,
        padding=padding,
        spacing_mm=_find_spacing(dataset),
        laterality=_clean(dataset, "ImageLaterality") or _clean(dataset, "Laterality"),
        view=_find_view(dataset),
        intent=MAMMOGRAPHY.get(str(dataset.get("SOPClassUID"))) or _clean(dataset, "PresentationIntentType"),
        manufacturer=_clean(dataset, "Manufacturer"),
        model_name=_clean(dataset, "ManufacturerModelName"),
        instance_uid=_clean(dataset, "SOPInstanceUID"),
    )


def _refuse_deflated(path: Path) -> None:
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
    except (*_DECODING_ERRORS, RecursionError) as error:
        raise ImageError(f"{path}: not a DICOM file, or its header is damaged ({type(error).__name__})") from error
    if str(meta.get("TransferSyntaxUID")) in _DEFLATED:
        raise ImageError(f"{path}: compressed by deflate, which is not accepted: such a file can unpack to gigabytes")


def _check_kind(dataset: Dataset, path: Path) -> None:
    """Refuse what is no single grey image, before anything is decoded."""
    if "Rows" not in dataset or "Columns" not in dataset or not {"PixelData", "FloatPixelData"} & set(dataset.dir()):
        modality = dataset.get("Modality") or "unknown"
        raise ImageError(f"{path}: a DICOM object without pixels (modality {modality}); a report or annotation?")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{path}: it has {frames} frames; single-frame images are supported, tomosynthesis is not")
    if dataset.get("SamplesPerPixel", 1) != 1 or "MONOCHROME" not in str(dataset.get("PhotometricInterpretation")):
        raise ImageError(
            f"{path}: it is in colour ({dataset.get('PhotometricInterpretation')}); grey values are needed"
        )
    rows, cols = int(dataset.Rows), int(dataset.Columns)
    if not 0 < rows * cols <= _LARGEST_PIXELS:
        raise ImageError(f"{path}: it declares {rows} x {cols} pixels; between 1 and {_LARGEST_PIXELS:,} can be read")
    modality = str(dataset.get("Modality") or "OT")
    if modality not in _MODALITIES:
        raise ImageError(f"{path}: modality {modality} is no image that can be scored")


def _find_padding(dataset: Dataset, pixels: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Pixels that the file declares to be padding, on stored values (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    padding = (pixels >= low) & (pixels <= high)
    return padding if padding.any() else None


def _apply_rescale(dataset: Dataset, pixels: NDArray[Any]) -> tuple[NDArray[Any], tuple[float, float]]:
    """Return pixels after slope and intercept (PS3.3 C.11.1), and the range that the format can hold."""
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32), (float(pixels.min()), float(pixels.max()))
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    if (slope, intercept) == (1.0, 0.0):
        return pixels, (float(low), float(high))
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept), (ends[0], ends[1])


def _find_spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Spacing in mm (row, col), in the order of trust: in the patient, at the detector, unknown."""
    magnification = float(dataset.get("EstimatedRadiographicMagnificationFactor") or 1.0)
    for keyword, factor in (("PixelSpacing", 1.0), ("ImagerPixelSpacing", magnification)):
        value = dataset.get(keyword)
        if value is not None and len(value) == 2 and min(float(part) for part in value) > 0 and factor > 0:
            return float(value[0]) / factor, float(value[1]) / factor
    return None


def _find_view(dataset: Dataset) -> str | None:
    for item in dataset.get("ViewCodeSequence") or []:
        view = _VIEWS.get(str(item.get("CodeValue")))
        if view is not None:
            return view
    return _clean(dataset, "ViewPosition")


def _clean(dataset: Dataset, keyword: str) -> str | None:
    text = str(dataset.get(keyword) or "").strip()
    return text or None
