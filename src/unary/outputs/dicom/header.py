"""What every DICOM result has in common: whose image it belongs to, its identifiers and what made it.

A result carries the patient and the study of its source image unchanged, so that a PACS files it beside the image; all
else is its own. Its identifiers are hashes of the source's, the model's and the operating point: running again gives
the same objects, and a PACS that already has them is not filled with copies.
"""

from __future__ import annotations

import copy
import functools
import logging
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.uid import generate_uid

from unary.errors import ImageError
from unary.outputs.dicom import Kind
from unary.profiles.profile import Codes
from unary.records import NOTICE, Detection, ModelIdentity, OperatingPoint

SCHEME = "99UNARY"
_TITLES: dict[Kind, str] = {
    "report": "report",
    "segmentation": "findings",
    "capture": "overlay",
    "heat_map": "anomaly map",
    "presentation": "boxes",
}

# Type 1 or 2 in every result (PS3.3 C.7.1.1, C.7.2.1): there even when the source lacks them, then empty.
_ALWAYS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
# Patient, Clinical Trial Subject, General Study, Patient Study and Clinical Trial Study modules; and the character set
# in which their text is written.
_CARRIED = (
    "SpecificCharacterSet", "StudyInstanceUID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID", "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames", "PatientBirthTime",
    "EthnicGroup", "PatientComments", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "QualityControlSubject", "ReferencedPatientSequence",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription", "StudyDescription", "ProcedureCodeSequence", "ReferencedStudySequence",
    "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "IssuerOfAccessionNumberSequence", "PatientAge",
    "PatientSize", "PatientWeight", "AdmissionID", "IssuerOfAdmissionIDSequence", "AdditionalPatientHistory",
    "ReasonForVisit", "PregnancyStatus", "Occupation", "MedicalAlerts", "Allergies", "SmokingStatus",
)  # fmt: skip
# Of the image itself; needed to refer to it and to show it.
_IMAGE = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PatientOrientation",
    "ImageLaterality", "Laterality", "ViewPosition", "BurnedInAnnotation", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "SliceThickness",
)  # fmt: skip
# Where a slice of a volume lies, and of how many values; only together of use (PS3.3 C.7.4.1, C.7.6.2).
_PLACE = {"FrameOfReferenceUID": 1, "ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
# What pydicom raises on an element whose bytes are not of its kind.
UNDECODABLE = (
    AttributeError, KeyError, ValueError, TypeError, IndexError, NotImplementedError, RuntimeError, ArithmeticError,
    EOFError, MemoryError, struct.error, BytesLengthException,
)  # fmt: skip
_DATE = re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")


@dataclass(frozen=True)
class Run:
    """What is the same in all results of a run: the model, the codes of its profile, date and time of the results."""

    identity: ModelIdentity
    codes: Codes
    moment: datetime


@dataclass(frozen=True)
class Case:
    """What one result is made of: the image's header, from `extract_source`, and what was found in it by what."""

    source: Dataset
    detection: Detection
    run: Run
    kind: Kind

    @functools.cached_property
    def stand_in(self) -> Dataset:
        """What highdicom is shown in place of the source: the image without the patient.

        It checks and logs what it is given, names included; `build_result` puts the patient in afterwards.
        """
        stand_in = Dataset()
        for keyword in (*_ALWAYS, "StudyInstanceUID", *_IMAGE, *_PLACE):
            if keyword in _ALWAYS:
                setattr(stand_in, keyword, "")
            elif keyword in self.source:
                stand_in[keyword] = self.source[keyword]
        return stand_in

    def uid(self, part: str) -> str:
        """Return the UID of a part of a result.

        It is a hash of the source's SOP Instance UID, the model's, the operating point and the name of the part: the
        same for the same input on any machine, different when any of them differs.
        """
        identity, point = self.run.identity, self.detection.operating_point
        level = "none" if point is None else f"{point.name} {point.threshold!r}"
        key = ("unary result", str(self.source.SOPInstanceUID), identity.sha256, identity.version, level, part)
        return str(generate_uid(entropy_srcs=["\n".join(key)]))

    def list_arguments(self) -> dict[str, Any]:
        """Return what every class of highdicom takes in the same way: identifiers and equipment (PS3.3 C.7.5.1)."""
        name = self.kind.replace("_", " ")
        return {
            "series_instance_uid": self.uid(f"{name} series"),
            "sop_instance_uid": self.uid(f"{name} instance"),
            "series_number": 9001 + list(_TITLES).index(self.kind),
            "instance_number": 1,
            "transfer_syntax_uid": "1.2.840.10008.1.2.1",
            "manufacturer": "unary",
            "manufacturer_model_name": to_ascii(f"unary {self.run.identity.detector}", 64),
            "software_versions": to_ascii(self.run.identity.version, 64),
            "device_serial_number": to_ascii(self.run.identity.sha256, 64),
        }


@contextmanager
def silenced(*loggers: str) -> Iterator[None]:
    """Keep packages silent whose warnings and logs quote patients' names, identifiers and dates."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def extract_source(source: Dataset) -> Dataset:
    """Return the part of a source image's header that results need, in a form that a valid object can be made of.

    Values stay as they are, for a PACS compares them, with two exceptions: a date, time, sex or orientation that the
    standard does not allow is emptied, which it does, and what cannot be decoded at all, such as a weight with a comma,
    is left out. Missing attributes of type 2 are there, empty.

    Raises
    ------
    ImageError
        If there is no SOP Class, SOP Instance, Study Instance or Series Instance UID, Rows or Columns: nothing could be
        filed beside such an image.
    """
    for keyword in _NEEDED:
        element = _copy_element(source, keyword)
        if element is None or not element.value:
            raise ImageError(f"results need {keyword} of the image that they belong to, and it is missing or empty")
    kept = Dataset()
    for keyword in (*_ALWAYS, *_CARRIED, *_IMAGE):
        element = _copy_element(source, keyword)
        if element is not None:
            kept[keyword] = element
        elif keyword in _ALWAYS:
            setattr(kept, keyword, "")
    for keyword, pattern in (("PatientBirthDate", _DATE), ("StudyDate", _DATE), ("StudyTime", _TIME)):
        if not pattern.fullmatch(str(kept.get(keyword) or "").strip()):
            setattr(kept, keyword, "")
    if "PatientBirthTime" in kept and not _TIME.fullmatch(str(kept.PatientBirthTime or "").strip()):
        del kept.PatientBirthTime
    if str(kept.PatientSex or "") not in ("F", "M", "O"):
        kept.PatientSex = ""
    kept.PatientOrientation = _find_orientation(source)
    place = [_copy_element(source, keyword) for keyword in _PLACE]
    known = [each for each, count in zip(place, _PLACE.values(), strict=True) if each is not None and count == each.VM]
    for element in known if len(known) == len(_PLACE) else ():
        kept.add(element)
    return kept


def _copy_element(source: Dataset, keyword: str) -> DataElement | None:
    """One element with all that is inside it, decoded; None when it is missing or cannot be decoded."""
    if keyword not in source:
        return None
    try:
        element = copy.deepcopy(source[keyword])
        for item in element.value if element.VR == "SQ" else []:
            list(item.iterall())
        if element.VR in ("DS", "IS") and not element.is_empty:  # pydicom may keep the text of what is no number
            [float(part) for part in (element.value if element.VM > 1 else [element.value])]
    except UNDECODABLE:
        return None
    return element


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


def to_ascii(text: str, limit: int) -> str:
    """Text that every character set of DICOM can write, cut to ``limit`` characters.

    >>> to_ascii("scanner \\u201cX\\u201d: spacing 0.05 mm", 18)
    'scanner ?X?: spaci'
    """
    plain = text.replace("\\", "/").encode("ascii", "replace").decode("ascii")
    return re.sub(r"\s+", " ", plain).strip()[:limit].rstrip()


def describe_point(point: OperatingPoint | None) -> str:
    """One line of ASCII about an operating point."""
    if point is None:
        return (
            "operating point: none, the model is not calibrated; the strongest findings are given whatever they score"
        )
    kind = "finite-sample guarantee" if point.guaranteed else "estimate, too few patients for a guarantee"
    return to_ascii(
        f"operating point: {point.name}; threshold {point.threshold:.6g}; {point.rate:.4g} false "
        f"findings per normal image asked ({kind}), {point.measured_rate:.4g} measured on {point.patients} patients",
        500,
    )


def describe_model(identity: ModelIdentity) -> str:
    """One line of ASCII about what produced a result."""
    text = f"unary {identity.version}, detector {identity.detector}, model sha256 {identity.sha256}"
    return to_ascii(f"{text}, training data {identity.data_hash}", 400)


def describe_domain(detection: Detection) -> str:
    """One line of ASCII: how the image differs from the training images; empty when it does not."""
    return to_ascii("out of domain: " + "; ".join(detection.out_of_domain), 900) if detection.out_of_domain else ""


def format_date(moment: datetime) -> tuple[str, str]:
    """Return a DICOM date and time, both as the clock on the wall shows them."""
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")


def build_result(case: Case, body: Dataset) -> Dataset:
    """Return ``body``, made by highdicom, as a plain dataset with its source's patient and study and its maker.

    highdicom takes the time and some identifiers from its surroundings; here they come from the arguments, so that the
    same arguments give the same bytes.
    """
    title = _TITLES[case.kind]
    result = Dataset()
    result.update(body)
    result.file_meta, result.preamble = copy.deepcopy(body.file_meta), b"\0" * 128
    for keyword in (*_ALWAYS, *_CARRIED):
        if keyword in case.source:
            result[keyword] = case.source[keyword]
    date, time = format_date(case.run.moment)
    for keyword in ("Content", "InstanceCreation", "PresentationCreation"):
        if f"{keyword}Date" in result or keyword == "InstanceCreation":
            setattr(result, f"{keyword}Date", date)
            setattr(result, f"{keyword}Time", time)
    result.SeriesDescription = to_ascii(f"unary {title} - RESEARCH, NOT FOR DIAGNOSIS", 64)
    others = copy.deepcopy(list(result.get("ContributingEquipmentSequence") or []))
    result.ContributingEquipmentSequence = [_describe_equipment(case), *others]
    for item in result.ContributingEquipmentSequence:  # the time of this result in place of that of the call
        item.ContributionDateTime = date + time
    # the one identifier of dimensions that highdicom draws at random (PS3.3 C.7.6.17)
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in result.get(sequence) or []:
            item.DimensionOrganizationUID = case.uid(f"{title} dimensions")
    return result


def _describe_equipment(case: Case) -> Dataset:
    """One item of the Contributing Equipment Sequence (PS3.3 C.12.1): which model, at which operating point."""
    equipment = case.list_arguments()
    code, item = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "109102", "DCM", "Processing Equipment"
    item.PurposeOfReferenceCodeSequence = [code]
    item.Manufacturer, item.ManufacturerModelName = equipment["manufacturer"], equipment["manufacturer_model_name"]
    item.DeviceSerialNumber, item.SoftwareVersions = equipment["device_serial_number"], equipment["software_versions"]
    lines = (NOTICE, describe_model(case.run.identity), describe_point(case.detection.operating_point))
    item.ContributionDescription = to_ascii(". ".join(lines), 1024)
    return item


def check_labels(source: Dataset, shape: tuple[int, ...]) -> None:
    """Refuse a detection whose arrays do not lie on the source's pixels."""
    stored = (int(source.Rows), int(source.Columns))
    if tuple(shape) != stored:
        raise ImageError(f"the result's array has shape {tuple(shape)} but the image has {stored}; of another image?")
