"""Reading a single grey image from DICOM.

The rules are the standard's, and those of what goes wrong in the field: polarity is undone, values are those of the
modality transform (HU, activity), padding is told apart from measurement, spacing is what the file states or None, and
the window that is stored for display is ignored. What cannot be read right is refused.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from unary.images.checks import build_refusal, check_size, convert_floats
from unary.images.decoding import check_bits, decode_pixels, find_limits, reading_dicom
from unary.records import Image

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# The X-ray classes that come in two kinds, with .1 at the end for the second (PS3.4 B.5).
_PRESENTATION = tuple(f"{_STORAGE}1.{number}" for number in (1, 2, 3))
_INTENTS = dict.fromkeys(_PRESENTATION, "FOR PRESENTATION")
_INTENTS |= {f"{kind}.1": "FOR PROCESSING" for kind in _PRESENTATION}
# Objects whose frames carry spacing and rescale each for itself: enhanced CT, MR, PET, angiography, tomosynthesis,
# ultrasound volumes, whole slides, parametric maps.
MULTIFRAME_CLASSES = frozenset(
    _STORAGE + ending
    for ending in (
        "2.1", "2.2", "4.1", "4.3", "4.4", "6.2", "12.1.1", "12.2.1", "13.1.1", "13.1.2", "13.1.3", "13.1.4", "13.1.5",
        "30", "77.1.6", "128.1", "130",
    )
)  # fmt: skip
_RESCALED = {f"{_STORAGE}2": "CT", f"{_STORAGE}128": "PET"}
_DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.8.1"}
_MODALITIES = ("MG", "CR", "DX", "DR", "CT", "MR", "PT", "NM", "US", "OT", "XA", "RF", "SC", "IO", "PX", "RG")
_OTHER_MODALITIES = ("SR", "PR", "KO", "SEG", "REG", "DOC", "AU", "ECG", "RTSTRUCT", "RTPLAN", "RTDOSE")
# SNOMED CT (SCT), then the retired SNOMED codes (SRT) that are still found; PS3.16 CID 4010 and 4014.
_VIEWS = {
    "399348003": "AP", "R-10206": "AP",
    "272479007": "PA", "R-10214": "PA", "R-40888": "PA",
    "399173006": "LL", "R-10236": "LL",
    "399198007": "RL", "R-10232": "RL",
    "399162004": "CC", "R-10242": "CC",
    "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML",
    "399352003": "LM", "R-10228": "LM",
    "399099002": "LMO", "R-10230": "LMO",
    "399196006": "FB", "R-10244": "FB",
    "399188001": "SIO", "R-102D0": "SIO",
    "441555000": "ISO", "R-40AAA": "ISO",
    "399192008": "XCCL", "R-1024A": "XCCL",
    "399101009": "XCCM", "R-1024B": "XCCM",
}  # fmt: skip
_HEADER_ELEMENTS = [
    "Rows", "Columns", "PatientID", "ImageLaterality", "Laterality", "ViewCodeSequence", "ViewPosition",
    "SpecificCharacterSet", "SOPInstanceUID",
]  # fmt: skip


@dataclass(frozen=True)
class DicomHeader:
    """What a manifest needs of a DICOM file, read without its pixels.

    Attributes
    ----------
    patient_key
        The first 12 hexadecimal digits of the SHA-256 of the Patient ID; None when there is none. It joins the images
        of a patient without showing the identifier, but it is not anonymous: who can list all identifiers can hash
        them too.
    instance_uid
        SOP Instance UID.
    """

    shape: tuple[int, int]
    laterality: str | None
    view: str | None
    patient_key: str | None = field(repr=False)
    instance_uid: str | None = field(repr=False)


def has_dicom_magic(path: Path) -> bool:
    """Return whether the letters DICM stand after a preamble of 128 bytes (PS3.10 section 7.1)."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_header(path: Path) -> DicomHeader:
    """Read the size of a DICOM image and whose it is; takes about a millisecond; raises as `read_elements`."""
    with reading_dicom(path):
        dataset = read_elements(path, _HEADER_ELEMENTS)
        patient = _clean(dataset, "PatientID")
        return DicomHeader(
            (int(dataset.Rows), int(dataset.Columns)),
            _find_laterality(dataset),
            _find_view(dataset),
            None if patient is None else hashlib.sha256(patient.encode("utf-8")).hexdigest()[:12],
            _clean(dataset, "SOPInstanceUID"),
        )


def read_dicom(path: Path) -> Image:
    """Read a single-frame grey image.

    Returns
    -------
    Image
        Pixels after the modality transform where there is one, MONOCHROME1 inverted; no window applied. Where values
        are only shifted (slope 1, a whole intercept, as in nearly all CT) they stay integers, exactly; otherwise a
        rescale gives float32.

    Raises
    ------
    ImageError
        If the file is no readable DICOM image, has several frames or colour, is compressed by deflate (a small file can
        unpack to gigabytes), does not decode to the size that it declares, or holds values that are not finite; if it
        is a CT or PET slice that does not say how to get HU or activity from what is stored.
    """
    with reading_dicom(path):
        _refuse_deflated(path)
        dataset = pydicom.dcmread(path)
        _check_kind(dataset, path)
        stored = decode_pixels(dataset, path)
        pixels, limits = _apply_modality(dataset, stored, path)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            pixels = np.subtract(pixels.dtype.type(sum(limits)), pixels)
        return Image(
            pixels,
            limits,
            path,
            padding=_find_padding(dataset, stored),
            spacing_mm=find_spacing(dataset),
            laterality=_find_laterality(dataset),
            view=_find_view(dataset),
            intent=find_intent(dataset),
            manufacturer=_clean(dataset, "Manufacturer"),
            model_name=_clean(dataset, "ManufacturerModelName"),
            instance_uid=_clean(dataset, "SOPInstanceUID"),
        )


def read_elements(path: Path, names: list[str]) -> Dataset:
    """Read some elements of an image's header, inside `reading_dicom`; refuse deflated files and what has no pixels."""
    _refuse_deflated(path)
    dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=names)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise build_refusal(path, "a DICOM object without pixels; a report or annotation?", "NOT_AN_IMAGE")
    return dataset


def _refuse_deflated(path: Path) -> None:
    """Look at the uncompressed file meta information alone, for pydicom inflates the rest at once."""
    meta = pydicom.filereader.read_file_meta_info(path)
    if str(meta.get("TransferSyntaxUID")) in _DEFLATED:
        cause = "compressed by deflate, which is not accepted: such a file can unpack to gigabytes"
        raise build_refusal(path, cause, "UNSUPPORTED_SYNTAX")


def _check_kind(dataset: Dataset, path: Path) -> None:
    """Refuse what is no single grey image, before anything is decoded."""
    modality = str(dataset.get("Modality") or "OT")
    if modality not in _MODALITIES:
        # A value that is not one of these may be anything, in a damaged header even a name: not to be quoted.
        named = f"of modality {modality}" if modality in _OTHER_MODALITIES else "of an unknown modality"
        cause = f"a grey image is needed, not an object {named}; a report, a segmentation or an annotation?"
        raise build_refusal(path, cause, "NOT_AN_IMAGE")
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir("Pixel")):
        cause = "a DICOM object without pixels; truncated, or a report or annotation?"
        raise build_refusal(path, cause, "CORRUPT_PIXELS" if "Rows" in dataset else "NOT_AN_IMAGE")
    frames, kind = int(dataset.get("NumberOfFrames") or 1), str(dataset.get("SOPClassUID"))
    if frames != 1 or kind in MULTIFRAME_CLASSES or "SharedFunctionalGroupsSequence" in dataset:
        cause = (
            f"it has {frames} frames, or is of a kind that can have several; single-frame images are supported, "
            "tomosynthesis and other volumes are not"
        )
        raise build_refusal(path, cause, "MULTIFRAME")
    if kind in _RESCALED and None in (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")):
        needed = "Rescale Slope or Rescale Intercept; what its values mean is unknown"
        raise build_refusal(path, f"a {_RESCALED[kind]} slice without {needed}", "NO_RESCALE")
    photometric = str(dataset.get("PhotometricInterpretation"))
    if dataset.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        cause = "it is in colour or damaged; a single sample per pixel, MONOCHROME1 or 2, is needed"
        raise build_refusal(path, cause, "COLOUR")
    if "PixelData" in dataset:
        check_bits(dataset, path)
    check_size(int(dataset.Rows), int(dataset.Columns), path)


def _find_padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Pixels that the file declares to be padding, on stored values (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None else limit)]
    if stored.dtype.kind == "i":  # some devices write a negative value as an unsigned one
        ends = [end - 2 ** int(dataset.BitsAllocated) if end > np.iinfo(stored.dtype).max else end for end in ends]
    padding = (stored >= min(ends)) & (stored <= max(ends))
    return padding if padding.any() else None


def _apply_modality(dataset: Dataset, stored: NDArray[Any], path: Path) -> tuple[NDArray[Any], tuple[float, float]]:
    """Return pixels after the modality table or rescale (PS3.3 C.11.1), and the range that the format can hold."""
    if stored.dtype.kind == "f":
        return convert_floats(stored, path)
    if dataset.get("ModalityLUTSequence"):
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        return apply_modality_lut(stored, dataset), (0.0, float(2**bits - 1))
    low, high = find_limits(dataset)
    slope, intercept = _find_number(dataset, "RescaleSlope", 1.0), _find_number(dataset, "RescaleIntercept", 0.0)
    if (slope, intercept) == (1.0, 0.0):
        return stored, (float(low), float(high))
    ends = sorted((low * slope + intercept, high * slope + intercept))
    if slope == 0 or not np.isfinite(ends).all() or max(map(abs, ends)) > np.finfo(np.float32).max:
        cause = "its rescale slope and intercept give values that are all the same or not finite"
        raise build_refusal(path, cause, "CORRUPT_PIXELS")
    limits = (ends[0], ends[1])
    reach = abs(ends[0]) + abs(ends[1])  # room for the sum of both ends, from which MONOCHROME1 is inverted
    if slope == 1 and intercept.is_integer() and max(reach, abs(intercept)) <= np.iinfo(np.int32).max:
        pixels = np.add(stored, int(intercept), dtype=np.int32, casting="unsafe")
        return pixels.astype(np.int16 if reach <= np.iinfo(np.int16).max else np.int32, copy=False), limits
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept), limits


def find_intent(dataset: Dataset) -> str | None:
    """Return the Presentation Intent Type, which the SOP class says too where it matters most."""
    return _INTENTS.get(str(dataset.get("SOPClassUID"))) or find_word(dataset, "PresentationIntentType")


def find_word(dataset: Dataset, keyword: str) -> str | None:
    """Return a code in capitals; what a damaged header holds in its place is not passed on."""
    text = _clean(dataset, keyword)
    return text if text and re.fullmatch(r"[A-Z0-9][A-Z0-9_ ]{1,15}", text) else None


def find_spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Return the spacing in mm (row, col), or None when it is unknown.

    In the order of trust: in the patient, at the detector, on the scanned film. A Pixel Spacing that only repeats the
    detector's, with no calibration stated, is the detector's (PS3.3 10.7.1.3), and the magnification still has to be
    undone.
    """
    pixel, detector = _find_pair(dataset, "PixelSpacing"), _find_pair(dataset, "ImagerPixelSpacing")
    if pixel is not None and (pixel != detector or dataset.get("PixelSpacingCalibrationType")):
        return pixel
    if detector is not None:
        magnification = float(dataset.get("EstimatedRadiographicMagnificationFactor") or 1.0)
        return (detector[0] / magnification, detector[1] / magnification) if magnification > 0 else None
    return _find_pair(dataset, "NominalScannedPixelSpacing")


def _find_pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    value = dataset.get(keyword)
    if not isinstance(value, pydicom.multival.MultiValue) or len(value) != 2:
        return None
    pair = (float(value[0]), float(value[1]))
    return pair if min(pair) > 0 and np.isfinite(pair).all() else None


def _find_number(dataset: Dataset, keyword: str, absent: float) -> float:
    value = dataset.get(keyword)
    return absent if value is None else float(value)


def _find_laterality(dataset: Dataset) -> str | None:
    """The side of this image, else of the series."""
    side = _clean(dataset, "ImageLaterality") or _clean(dataset, "Laterality")
    return side if side in ("L", "R") else None


def _find_view(dataset: Dataset) -> str | None:
    codes = [str(item.get("CodeValue")) for item in dataset.get("ViewCodeSequence") or []]
    return next((_VIEWS[code] for code in codes if code in _VIEWS), _clean(dataset, "ViewPosition"))


def _clean(dataset: Dataset, keyword: str) -> str | None:
    return str(dataset.get(keyword) or "").strip() or None
