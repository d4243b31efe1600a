"""What a header says of how an image was made: enough to tell whether a model can use it, nothing of the patient."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.datadict import dictionary_VR

from unary.images.acquisition import ACQUISITION_ELEMENTS, Acquisition, find_acquisition
from unary.images.decoding import find_missing_decoder, find_shape, reading_dicom
from unary.images.dicom import (
    MULTIFRAME_CLASSES,
    PLACE_ELEMENTS,
    SlicePlace,
    find_intent,
    find_laterality,
    find_magnification,
    find_place,
    find_spacing,
    find_view,
    hash_patient,
    hash_uid,
    read_frames,
)
from unary.images.elements import Elements, open_dicom
from unary.images.raster import is_lossy
from unary.images.reading import is_dicom, read_shape
from unary.images.values import UNIT_ELEMENTS, find_units
from unary.profiles.profile import HeaderFlag, Headers

_SECONDARY_CAPTURE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.[1-4])?")  # and its multi-frame kinds
_ELEMENTS = [
    "SOPClassUID", "Modality", "ImageType", "PresentationIntentType", "Manufacturer", "ManufacturerModelName",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsStored",
    "PixelRepresentation", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing",
    "PixelSpacingCalibrationType", "EstimatedRadiographicMagnificationFactor", "ViewCodeSequence",
    "LossyImageCompression", "SpecificCharacterSet", "ImageLaterality", "Laterality", "ViewPosition", "PatientID",
    "StudyInstanceUID", *UNIT_ELEMENTS, *PLACE_ELEMENTS, *ACQUISITION_ELEMENTS,
]  # fmt: skip


@dataclass(frozen=True)
class Attributes:
    """What is known of one image before its pixels are decoded; what is not told below is as in `unary.records.Image`.

    Attributes
    ----------
    raster
        Whether it is no DICOM object; then nothing else is known but ``shape`` and ``lossy``.
    sop_class
        What kind of DICOM object it is, a UID.
    modality
        DICOM's word for it, such as ``"CT"``; None when it is not a code of two to sixteen capitals.
    missing_decoder
        Why the transfer syntax cannot be decoded here, with the package that would; None where it can.
    bits
        Bits of a stored value.
    misstated_spacing
        Where the pixel spacing is unknown though something is stated: what, and why it cannot be used.
    magnification
        Estimated Radiographic Magnification Factor.
    units
        What the values of a CT or PET slice are, such as ``"HU"`` or ``"BQML"``; None for other images, and where it is
        not stated.
    lossy
        Whether it has been compressed with loss.
    flags
        The reasons of those `unary.profiles.profile.HeaderFlag` that the header bears. That one is missing is no proof
        of the contrary: many devices leave such elements out.
    place
        Of a slice; None where it is not stated.
    study
        `unary.images.dicom.hash_uid` of the Study Instance UID: joins the images of a study.
    patient
        `unary.images.dicom.DicomHeader.patient_key`.
    acquisition
        How it was acquired; None of rasters.
    """

    shape: tuple[int, int]
    raster: bool = False
    sop_class: str | None = None
    modality: str | None = None
    frames: int = 1
    missing_decoder: str | None = None
    intent: str | None = None
    manufacturer: str | None = None
    model_name: str | None = None
    spacing_mm: tuple[float, float] | None = None
    misstated_spacing: tuple[str, ...] = ()
    bits: int | None = None
    magnification: float | None = None
    units: str | None = None
    lossy: bool = False
    flags: tuple[str, ...] = ()
    place: SlicePlace | None = field(default=None, repr=False)
    laterality: str | None = None
    view: str | None = None
    study: str | None = field(default=None, repr=False)
    patient: str | None = field(default=None, repr=False)
    acquisition: Acquisition | None = field(default=None, repr=False)

    @property
    def is_capture(self) -> bool:
        """Whether it is a secondary capture: a screenshot, or a scanned film."""
        return _SECONDARY_CAPTURE.fullmatch(self.sop_class or "") is not None

    @property
    def is_multiframe(self) -> bool:
        """Whether it is an object of several frames, even if it holds just one."""
        return self.frames != 1 or self.sop_class in MULTIFRAME_CLASSES


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


def clean_text(text: str) -> str | None:
    """Return a maker's name as it may stand in a message: of at most 64 printable characters; None when none is left.

    >>> clean_text("HOLOGIC, Inc.\\n")
    'HOLOGIC, Inc.'
    """
    return "".join(letter for letter in text if letter.isprintable()).strip()[:64].rstrip() or None
