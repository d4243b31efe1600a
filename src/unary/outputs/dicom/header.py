"""What every DICOM result has in common: whose image it belongs to, its identifiers and what made it.

A result carries the patient and the study of its source image unchanged, so that a PACS files it beside the image; all
else is its own. Its SOP Instance UID is a hash of all that is in it and of the image's file, so that one UID never
stands for two contents, and sending a kept result again fills no PACS with copies.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.uid import generate_uid

from unary.errors import ImageError
from unary.outputs.dicom import Kind
from unary.outputs.dicom.source import ALWAYS, CARRIED, IMAGE, PLACE
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

# What highdicom is told that the image is: it refuses classes that it does not know, and asks some for what they lack.
_PLACED, _FLAT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1.2"  # CT slice, mammogram


@dataclass(frozen=True)
class Run:
    """What is the same in all results of a run: the model, the codes of its profile, date and time of the results.

    ``moment`` has a time zone; one without is taken for this machine's.
    """

    identity: ModelIdentity
    codes: Codes
    moment: datetime


@dataclass(frozen=True)
class Case:
    """What one result is made of: the image's header, from `extract_source`, and what was found in it by what.

    ``key`` stands for all of that in identifiers: see `hash_case`.
    """

    source: Dataset
    detection: Detection
    run: Run
    kind: Kind
    key: str

    @functools.cached_property
    def stand_in(self) -> Dataset:
        """What highdicom is shown in place of the source: the image without the patient, of a class that it knows.

        It checks and logs what it is given, names included; `build_result` puts the patient and the class in
        afterwards.
        """
        stand_in = Dataset()
        for keyword in ALWAYS:
            setattr(stand_in, keyword, "")
        for keyword in ("StudyInstanceUID", *IMAGE, *PLACE):
            if keyword in self.source:
                stand_in[keyword] = copy.deepcopy(self.source[keyword])
        stand_in.Modality = self.source.get("Modality") or "OT"  # highdicom cannot do without; it copies it nowhere
        stand_in.SOPClassUID = _PLACED if "FrameOfReferenceUID" in self.source else _FLAT
        return stand_in

    @property
    def moment(self) -> datetime:
        """When the result is made, in the time zone that the image states, so that one offset is true of all in it."""
        moment = self.run.moment if self.run.moment.tzinfo else self.run.moment.astimezone()
        stated = str(self.source.get("TimezoneOffsetFromUTC") or "").strip()
        if not stated:
            return moment
        minutes = 60 * int(stated[1:3]) + int(stated[3:5])
        return moment.astimezone(timezone(timedelta(minutes=-minutes if stated[0] == "-" else minutes)))

    def uid(self, part: str) -> str:
        """Return the UID of a part of the image's results, such as a series or a finding; the same in all of them."""
        return _hash_uid(self.key, part)

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


def hash_case(source_sha256: str, detection: Detection, run: Run) -> str:
    """Return a hash of what an image's results are made of: the image's file, what was found, by what and when."""
    point, findings = detection.operating_point, detection.findings
    numbers = (
        findings,
        detection.image_score,
        detection.image_p_value,
        point,
        detection.out_of_domain,
        detection.notes,
    )
    labels = hashlib.sha256(detection.labels.tobytes()).hexdigest()
    parts = (source_sha256, numbers, labels, run.identity, run.codes, run.moment.isoformat())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def identify_device(identity: ModelIdentity) -> str:
    """Return the UID of a model as the device that observes: the same in all that it finds."""
    return _hash_uid("device", identity.sha256, identity.version)


def _hash_uid(*parts: str) -> str:
    return str(generate_uid(entropy_srcs=["\n".join(("unary result", *parts))]))


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
    for keyword in (*ALWAYS, *CARRIED):
        if keyword in case.source:
            result.add(case.source.get_item(keyword))  # as it is: not decoded
        elif keyword in result:
            del result[keyword]
    _state_moment(case.moment, result)
    result.SeriesDescription = to_ascii(f"unary {title} - RESEARCH, NOT FOR DIAGNOSIS", 64)
    others = copy.deepcopy(list(result.get("ContributingEquipmentSequence") or []))
    result.ContributingEquipmentSequence = [_describe_equipment(case), *others]
    for item in result.ContributingEquipmentSequence:  # the time of this result in place of that of the call
        item.ContributionDateTime = "".join(format_date(case.moment)) + result.TimezoneOffsetFromUTC
    # the one identifier of dimensions that highdicom draws at random (PS3.3 C.7.6.17)
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in result.get(sequence) or []:
            item.DimensionOrganizationUID = case.uid(f"{title} dimensions")
    _restore_class(result, case.source)
    correct_ambiguous_vr(result, True)
    _keep_bytes(result)
    result.SOPInstanceUID = result.file_meta.MediaStorageSOPInstanceUID = _hash_content(case, result)
    return result


def _state_moment(moment: datetime, result: Dataset) -> None:
    """Date, time and time zone of the result's own making (PS3.3 C.12.1)."""
    date, time = format_date(moment)
    result.TimezoneOffsetFromUTC = moment.strftime("%z")[:5]
    for keyword in ("Content", "InstanceCreation", "PresentationCreation"):
        if f"{keyword}Date" in result or keyword == "InstanceCreation":
            setattr(result, f"{keyword}Date", date)
            setattr(result, f"{keyword}Time", time)


def _restore_class(result: Dataset, source: Dataset) -> None:
    """Name the image's own class where highdicom, shown the stand-in, named another."""
    for element in result.values():
        for item in element.value if element.VR == "SQ" else ():
            if item.get("ReferencedSOPInstanceUID") == source.SOPInstanceUID:
                item.ReferencedSOPClassUID = source.SOPClassUID
            _restore_class(item, source)


def _keep_bytes(dataset: Dataset) -> None:
    """Let text that was not decoded be written as it is (`Dataset.set_original_encoding`)."""
    for element in dataset.values():
        for item in element.value if element.VR == "SQ" else ():
            _keep_bytes(item)
    dataset.set_original_encoding(False, True, dataset._character_set)


def _hash_content(case: Case, result: Dataset) -> str:
    """A UID from all that the result holds, and the case that it is of."""
    content = BytesIO()
    result.save_as(content, enforce_file_format=True)
    return _hash_uid(case.key, case.kind, hashlib.sha256(content.getbuffer()).hexdigest())


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


def check_arrays(source: Dataset, detection: Detection, anomaly_map: NDArray[np.float32] | None) -> None:
    """Refuse a detection or a map that does not lie on the source's pixels, and labels of no finding."""
    stored = (int(source.Rows), int(source.Columns))
    for array in (detection.labels, anomaly_map):
        if array is not None and array.shape != stored:
            raise ImageError(
                f"the result's array has shape {array.shape} but the image has {stored}; of another image?"
            )
    highest, count = int(detection.labels.max(initial=0)), len(detection.findings)
    if highest > count:
        raise ValueError(f"labels go up to {highest} but there are {count} findings")
