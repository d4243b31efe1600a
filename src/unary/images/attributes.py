"""What a header says of how an image was made: enough to tell whether a model can use it, nothing of the patient."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset

from unary.errors import ImageError
from unary.images.decoding import is_decodable, reading_dicom
from unary.images.dicom import MAMMOGRAPHY, find_spacing, read_elements
from unary.images.reading import is_dicom, read_shape

ObjectKind = Literal["mammogram", "tomosynthesis", "secondary capture", "other"]

_TOMOSYNTHESIS = ("1.2.840.10008.5.1.4.1.1.13.1.3",)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, .7.1 to .7.4
# SNOMED CT, then the retired codes; PS3.16 CID 4015 (view modifiers) and CID 4014 (views).
_IMPLANT_DISPLACED = {"399209000", "R-102D5"}
_MAGNIFIED = {"399163009", "R-102D6", "399055006", "R-102D7"}  # magnification, spot compression
_SPECIMEN = {"127457009", "G-8310"}
_SYNTHETIC_TYPES = {"GENERATED_2D", "TOMO_2D"}
_SYNTHETIC_SERIES = re.compile(r"c-?view|v-?preview|s-?view|insight ?2d|synthe(tic|si[sz]ed)|intelligent ?2d", re.I)
_CONTRAST_TYPES = {"LOW_ENERGY", "HIGH_ENERGY", "RECOMBINED", "SUBTRACTION"}
_ELEMENTS = [
    "SOPClassUID", "Modality", "ImageType", "PresentationIntentType", "Manufacturer", "ManufacturerModelName",
    "SeriesDescription", "BodyPartExamined", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsStored", "PixelRepresentation", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "PixelSpacingCalibrationType", "EstimatedRadiographicMagnificationFactor",
    "ViewCodeSequence", "BreastImplantPresent", "PartialView", "PartialViewCodeSequence", "QualityControlImage",
    "CalibrationImage", "SpecimenDescriptionSequence", "ContrastBolusAgent", "ContrastBolusAgentSequence",
    "LossyImageCompression", "SpecificCharacterSet",
]  # fmt: skip


@dataclass(frozen=True)
class Attributes:
    """What is known of one image before its pixels are decoded.

    Attributes
    ----------
    shape
        Rows and columns.
    kind
        Of the DICOM object, by its SOP class; None for rasters, which state nothing of what follows either.
    modality
        DICOM's word for it, ``"MG"`` for mammography; None when it is not a code of two to sixteen capitals.
    frames
        1 for a two-dimensional image.
    decodable
        Whether there is a decoder for the transfer syntax.
    intent, manufacturer, model_name, spacing_mm
        As in `unary.records.Image`.
    bits
        Bits of a stored value.
    magnification
        Estimated Radiographic Magnification Factor; an ordinary mammogram has 1.0 to 1.1.
    implant, magnified, partial, quality_control, specimen, synthetic, contrast, lossy
        True where the header says so, by an attribute, a code or, for synthetic images, a maker's series description.
        False is no proof of the contrary.
    """

    shape: tuple[int, int]
    kind: ObjectKind | None = None
    modality: str | None = None
    frames: int = 1
    decodable: bool = True
    intent: str | None = None
    manufacturer: str | None = None
    model_name: str | None = None
    spacing_mm: tuple[float, float] | None = None
    bits: int | None = None
    magnification: float | None = None
    implant: bool = False
    magnified: bool = False
    partial: bool = False
    quality_control: bool = False
    specimen: bool = False
    synthetic: bool = False
    contrast: bool = False
    lossy: bool = False


def read_attributes(path: Path) -> Attributes:
    """Read what a file's header says, without decoding pixels.

    Raises
    ------
    ImageError
        If the file is no image of a known format, its header is not readable, or it is compressed by deflate.
    """
    if not is_dicom(path):
        return Attributes(read_shape(path))
    with reading_dicom(path):
        dataset = read_elements(path, _ELEMENTS)
        if "Rows" not in dataset or "Columns" not in dataset:
            raise ImageError(f"{path}: a DICOM object without pixels; a report or annotation?", reason="NOT_AN_IMAGE")
        types = {str(value).upper() for value in _values(dataset, "ImageType")}
        codes = set(_find_codes(dataset))
        factor = dataset.get("EstimatedRadiographicMagnificationFactor")
        return Attributes(
            shape=(int(dataset.Rows), int(dataset.Columns)),
            kind=_find_kind(dataset),
            modality=_find_word(dataset, "Modality"),
            frames=int(dataset.get("NumberOfFrames") or 1),
            decodable=is_decodable(dataset),
            intent=MAMMOGRAPHY.get(str(dataset.get("SOPClassUID"))) or _find_word(dataset, "PresentationIntentType"),
            manufacturer=_find_text(dataset, "Manufacturer"),
            model_name=_find_text(dataset, "ManufacturerModelName"),
            spacing_mm=find_spacing(dataset),
            bits=int(dataset.BitsStored) if "BitsStored" in dataset else None,
            magnification=float(factor) if factor is not None else None,
            implant=_says_yes(dataset, "BreastImplantPresent") or bool(codes & _IMPLANT_DISPLACED),
            magnified=bool(codes & _MAGNIFIED),
            partial=_says_yes(dataset, "PartialView") or bool(dataset.get("PartialViewCodeSequence")),
            quality_control=_says_yes(dataset, "QualityControlImage") or _says_yes(dataset, "CalibrationImage"),
            specimen=_is_specimen(dataset, codes),
            synthetic=bool(types & _SYNTHETIC_TYPES)
            or bool(_SYNTHETIC_SERIES.search(str(dataset.get("SeriesDescription") or ""))),
            contrast=bool(types & _CONTRAST_TYPES)
            or bool(dataset.get("ContrastBolusAgent") or dataset.get("ContrastBolusAgentSequence")),
            lossy=str(dataset.get("LossyImageCompression") or "") == "01",
        )


def _find_kind(dataset: Dataset) -> ObjectKind:
    sop_class = str(dataset.get("SOPClassUID"))
    if sop_class in MAMMOGRAPHY:
        return "mammogram"
    if sop_class in _TOMOSYNTHESIS:
        return "tomosynthesis"
    return "secondary capture" if re.fullmatch(re.escape(_SECONDARY_CAPTURE) + r"(\.[1-4])?", sop_class) else "other"


def _find_codes(dataset: Dataset) -> Iterator[str]:
    """The codes of views and of their modifiers."""
    for view in dataset.get("ViewCodeSequence") or []:
        yield str(view.get("CodeValue"))
        for modifier in view.get("ViewModifierCodeSequence") or []:
            yield str(modifier.get("CodeValue"))


def _is_specimen(dataset: Dataset, codes: set[str]) -> bool:
    stated = bool(codes & _SPECIMEN) or bool(dataset.get("SpecimenDescriptionSequence"))
    return stated or "SPECIMEN" in str(dataset.get("BodyPartExamined") or "").upper()


def _says_yes(dataset: Dataset, keyword: str) -> bool:
    return str(dataset.get(keyword) or "").strip().upper() == "YES"


def _values(dataset: Dataset, keyword: str) -> list[str]:
    value = dataset.get(keyword)
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _find_word(dataset: Dataset, keyword: str) -> str | None:
    """A code in capitals; what a damaged header holds in its place is not passed on."""
    text = str(dataset.get(keyword) or "").strip()
    return text if re.fullmatch(r"[A-Z0-9][A-Z0-9_ ]{1,15}", text) else None


def _find_text(dataset: Dataset, keyword: str) -> str | None:
    return clean_text(str(dataset.get(keyword) or ""))


def clean_text(text: str) -> str | None:
    """Return a maker's name as it may stand in a message: of at most 64 printable characters; None when none is left.

    >>> clean_text("HOLOGIC, Inc.\\n")
    'HOLOGIC, Inc.'
    """
    return "".join(letter for letter in text if letter.isprintable()).strip()[:64] or None
