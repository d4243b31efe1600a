"""The part of a source image's header that its results carry or refer to.

A PACS files a result by it: patient and study must be those of the image, to the byte.
"""

from __future__ import annotations

import copy
import re
import struct
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR

from unary.errors import DicomResultError
from unary.images.decoding import reading_dicom
from unary.images.dicom import find_view
from unary.images.elements import open_dicom

# Type 1 or 2 in every result (PS3.3 C.7.1.1, C.7.2.1): there even when the source lacks them, then empty.
ALWAYS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
# Patient, Clinical Trial Subject, General Study, Patient Study and Clinical Trial Study modules; and the character set
# in which their text is written.
CARRIED = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "StudyInstanceUID", "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID", "OtherPatientIDs", "OtherPatientIDsSequence",
    "OtherPatientNames", "PatientBirthTime", "EthnicGroup", "PatientComments", "PatientIdentityRemoved",
    "DeidentificationMethod", "DeidentificationMethodCodeSequence", "QualityControlSubject",
    "ReferencedPatientSequence", "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription", "StudyDescription", "ProcedureCodeSequence",
    "ReferencedStudySequence", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "IssuerOfAccessionNumberSequence",
    "PatientAge", "PatientSize", "PatientWeight", "AdmissionID", "IssuerOfAdmissionIDSequence",
    "AdditionalPatientHistory", "ReasonForVisit", "PregnancyStatus", "Occupation", "MedicalAlerts", "Allergies",
    "SmokingStatus",
)  # fmt: skip
# Of the image itself; needed to refer to it and to show it.
IMAGE = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PatientOrientation",
    "ImageLaterality", "Laterality", "ViewPosition", "InstanceNumber", "BurnedInAnnotation", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
)  # fmt: skip
# Where a slice of a volume lies, and of how many values; only together of use (PS3.3 C.7.4.1, C.7.6.2).
PLACE = {
    "FrameOfReferenceUID": 1, "ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2,
    "SliceThickness": 1,
}  # fmt: skip
# What pydicom raises on an element whose bytes are not of its kind.
UNDECODABLE = (
    AttributeError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, EOFError, MemoryError,
    struct.error, BytesLengthException,
)  # fmt: skip
_DATE = re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_ZONE = re.compile(r"\+(0\d|1[0-4])[0-5]\d|-(0\d|1[0-2])[0-5]\d")
_UID = re.compile(r"(?=.{1,64}$)\d+(\.\d+)+")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")


def read_source(path: Path) -> Dataset:
    """Return the part of a DICOM file's header that its results need.

    An ImageError says that it is no readable DICOM image, a DicomResultError what it lacks; they quote no value.
    """
    try:
        with reading_dicom(path):
            elements = open_dicom(path, (*ALWAYS, *CARRIED, *IMAGE, *PLACE, "ViewCodeSequence"))
            source, view = extract_source(elements.dataset), find_view(elements)
            if view is not None:  # many headers state it as a code alone
                source.ViewPosition = view
            return source
    except DicomResultError as error:
        raise DicomResultError(f"{path}: {error}") from None


def extract_source(source: Dataset) -> Dataset:
    """Return the part of a source image's header that results need, in a form that a valid object can be made of.

    Text is kept as the bytes that it was read from, with the character set that is declared for it: where these
    contradict each other, decoding and encoding would make another name of it, and a PACS another patient. Other values
    stay as they are too, with three exceptions: a date, time, time zone, sex or orientation that the standard does not
    allow is emptied or left out, as it permits; what cannot be decoded at all, such as a weight with a comma, is left
    out; and so are references of which de-identification has left a part. Missing attributes of type 2 are empty.

    Raises
    ------
    DicomResultError
        If there is no SOP Class, SOP Instance, Study Instance or Series Instance UID, or one that is no UID, no Rows or
        Columns: nothing could be filed beside such an image.
    """
    for keyword in _NEEDED:
        element = _copy_element(source, keyword)
        if element is None or not element.value:
            raise DicomResultError(f"no DICOM results: they refer to the {keyword} of their image, which it lacks")
        if keyword.endswith("UID") and not _UID.fullmatch(str(element.value)):
            raise DicomResultError(
                f"no DICOM results: they refer to the {keyword} of their image, which is no valid UID"
            )
    kept = Dataset()
    for keyword in (*ALWAYS, *CARRIED, *IMAGE):
        element = _copy_element(source, keyword)
        if element is not None:
            kept.add(element)
        elif keyword in ALWAYS:
            setattr(kept, keyword, "")
    for keyword, pattern in (("PatientBirthDate", _DATE), ("StudyDate", _DATE), ("StudyTime", _TIME)):
        if not pattern.fullmatch(str(kept.get(keyword) or "").strip()):
            setattr(kept, keyword, "")
    for keyword, pattern in (("PatientBirthTime", _TIME), ("TimezoneOffsetFromUTC", _ZONE)):
        if keyword in kept and not pattern.fullmatch(str(kept.get(keyword) or "").strip()):
            del kept[keyword]
    if str(kept.get("PatientSex") or "") not in ("F", "M", "O"):
        kept.PatientSex = ""
    _drop_broken_references(kept)
    kept.PatientOrientation = _find_orientation(source)
    place = [_copy_element(source, keyword) for keyword in PLACE]
    known = [
        each
        for each, count in zip(place, PLACE.values(), strict=True)
        if each and not each.is_empty and count == each.VM
    ]
    for element in known if len(known) == len(PLACE) else ():
        kept.add(element)
    return kept


def _drop_broken_references(kept: Dataset) -> None:
    """Leave out, in place, references that lack the class or the instance that they refer to (PS3.3 table 10-11)."""
    for keyword in ("ReferencedStudySequence", "ReferencedPatientSequence"):
        items = list(kept.get(keyword) or ())
        whole = [item for item in items if item.get("ReferencedSOPClassUID") and item.get("ReferencedSOPInstanceUID")]
        if len(whole) < len(items):
            del kept[keyword]
            if whole:
                setattr(kept, keyword, whole)


def _copy_element(source: Dataset, keyword: str) -> Any:
    """One element with all that is inside it, decoded but for text; None when it is missing or cannot be decoded."""
    tag = Tag(keyword)
    try:
        return _copy(source, tag) if tag in source else None
    except UNDECODABLE:
        return None


def _copy(dataset: Dataset, tag: BaseTag) -> DataElement | RawDataElement:
    raw = dataset.get_item(tag)
    kind = dictionary_VR(tag) if dictionary_has_tag(tag) else raw.VR
    if isinstance(raw, RawDataElement) and kind in CUSTOMIZABLE_CHARSET_VR:
        value = raw.value or b""
        value += b" " * (len(value) % 2)
        return RawDataElement(tag, kind, len(value), value, 0, False, True)
    element = copy.deepcopy(dataset[tag])
    if element.VR == "SQ":
        return DataElement(tag, "SQ", [_copy_item(item) for item in element.value])
    if element.VR in ("DS", "IS") and not element.is_empty:  # pydicom may keep the text of what is no number
        [float(part) for part in (element.value if element.VM > 1 else [element.value])]
    return element


def _copy_item(item: Dataset) -> Dataset:
    copied = Dataset()
    for tag in list(item.keys()):
        copied.add(_copy(item, tag))
    return copied


def _find_orientation(source: Dataset) -> list[str]:
    """Directions of the rows and of the columns (PS3.3 C.7.6.1.1.1), or none: CBIS-DDSM writes the view there."""
    value = source.get("PatientOrientation")
    parts = [value] if isinstance(value, str) else list(value or [])
    good = len(parts) == 2 and all(re.fullmatch("[APRLHF]{1,3}", str(part)) for part in parts)
    return [str(part) for part in parts] if good else []


def find_side(source: Dataset) -> str | None:
    """``"L"`` or ``"R"``, of the image or else of its series; None when not stated."""
    stated = (str(source.get(keyword) or "") for keyword in ("ImageLaterality", "Laterality"))
    return next((side for side in stated if side in ("L", "R")), None)
