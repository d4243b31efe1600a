"""Reading what a header says of how an image was made: enough to tell whether a model can use it."""

from __future__ import annotations

import re
from pathlib import Path

from pydicom.datadict import dictionary_VR

from unary.images.acquisition import ACQUISITION_ELEMENTS, find_acquisition
from unary.images.attributes import Attributes, clean_text, hash_uid
from unary.images.decoding import find_missing_decoder, find_shape, reading_dicom
from unary.images.dicom import (
    PLACE_ELEMENTS,
    find_intent,
    find_laterality,
    find_magnification,
    find_place,
    find_spacing,
    find_view,
    hash_patient,
    read_frames,
)
from unary.images.elements import Elements, open_dicom
from unary.images.raster import is_lossy
from unary.images.reading import is_dicom, read_shape
from unary.images.values import UNIT_ELEMENTS, find_units
from unary.profiles.profile import HeaderFlag, Headers

_ELEMENTS = [
    "SOPClassUID", "Modality", "ImageType", "PresentationIntentType", "Manufacturer", "ManufacturerModelName",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsStored",
    "PixelRepresentation", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing",
    "PixelSpacingCalibrationType", "EstimatedRadiographicMagnificationFactor", "ViewCodeSequence",
    "LossyImageCompression", "SpecificCharacterSet", "ImageLaterality", "Laterality", "ViewPosition", "PatientID",
    "StudyInstanceUID", *UNIT_ELEMENTS, *PLACE_ELEMENTS, *ACQUISITION_ELEMENTS,
]  # fmt: skip


def read_attributes(path: Path, headers: Headers) -> Attributes:
    """Read what a file's header says, without decoding pixels, and the flags that the profile's ``headers`` look for.

    Raises
    ------
    ImageError
        If the file is no image of a known format, its header is not readable, or it is compressed by deflate.
    """
    if not is_dicom(path):
        return Attributes(read_shape(path), raster=True, lossy=is_lossy(path))
    with reading_dicom(path):
        sought = [name for flag in headers.flags for name in (*flag.keywords, *dict(flag.patterns))]
        elements = open_dicom(path, list(dict.fromkeys(_ELEMENTS + sought)))
        sop_class = elements.find_text("SOPClassUID") or ""
        noted, spacing = len(elements.notes), find_spacing(elements)
        misstated = tuple(elements.notes[noted:]) if spacing is None else ()
        magnified = elements.find_text("EstimatedRadiographicMagnificationFactor") is not None
        return Attributes(
            shape=find_shape(elements),
            sop_class=sop_class if re.fullmatch(r"[0-9.]{1,64}", sop_class) else None,
            modality=elements.find_code("Modality"),
            frames=read_frames(elements),
            missing_decoder=find_missing_decoder(elements),
            intent=find_intent(elements),
            manufacturer=clean_text(elements.find_text("Manufacturer") or ""),
            model_name=clean_text(elements.find_text("ManufacturerModelName") or ""),
            spacing_mm=spacing,
            misstated_spacing=misstated,
            bits=elements.read_integer("BitsStored"),
            magnification=find_magnification(elements) if magnified else None,
            units=find_units(elements),
            lossy=elements.find_text("LossyImageCompression") == "01",
            place=find_place(elements),
            laterality=find_laterality(elements),
            view=find_view(elements),
            study=None if (study := elements.find_text("StudyInstanceUID")) is None else hash_uid(study),
            patient=hash_patient(elements),
            acquisition=find_acquisition(elements),
            flags=tuple(flag.reason for flag in headers.flags if _bears(elements, flag)),
        )


def _bears(elements: Elements, flag: HeaderFlag) -> bool:
    """Whether the header has any of the flag's signs."""
    views = elements.read_items("ViewCodeSequence")
    coded = [*views, *(item for view in views for item in view.read_items("ViewModifierCodeSequence"))]
    return (
        any(_is_stated(elements, keyword) for keyword in flag.keywords)
        or not set(flag.codes).isdisjoint(item.find_text("CodeValue") for item in coded)
        or not set(flag.image_types).isdisjoint(text.upper() for text in elements.read_texts("ImageType"))
        or any(re.search(pattern, text, re.I) for name, pattern in flag.patterns for text in elements.read_texts(name))
        or (flag.magnified_from is not None and (find_magnification(elements) or 1.0) >= flag.magnified_from)
    )


def _is_stated(elements: Elements, keyword: str) -> bool:
    kind = dictionary_VR(keyword)
    texts = [] if kind == "SQ" else elements.read_texts(keyword)
    return [text.upper() for text in texts] == ["YES"] if kind == "CS" else bool(texts or elements.read_items(keyword))
