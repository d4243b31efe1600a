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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.uid import generate_uid

from unary.errors import ImageError
from unary.outputs.dicom import Kind, StudyKind
from unary.outputs.dicom.run import Run
from unary.outputs.dicom.source import ALWAYS, CARRIED, IMAGE, PLACE, find_side
from unary.records import NOTICE, Detection, ModelIdentity, OperatingPoint, count_words

SCHEME = "99UNARY"
# In the order of the series' numbers.
_TITLES: dict[Kind | StudyKind, str] = {
    "report": "report",
    "segmentation": "segments",
    "capture": "findings",
    "heat_map": "anomaly map",
    "presentation": "boxes",
    "cad_report": "CAD report",
    "study_summary": "study summary",
}
_HANGING = (("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO"))  # as the views of a screening are hung

# What highdicom is told that the image is: it refuses classes that it does not know, and asks some for what they lack.
_PLACED, _FLAT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1.2"  # CT slice, mammogram


class Filed(Protocol):
    """What `build_result` has to know of a result, of an image or of a study, to file it."""

    @property
    def source(self) -> Dataset:
        """The header of an image whose patient and study are the result's."""

    @property
    def run(self) -> Run:
        """What made it, and when."""

    @property
    def kind(self) -> Kind | StudyKind:
        """Which object it is."""

    @property
    def key(self) -> str:
        """A hash of all that it is made of."""

    @property
    def point(self) -> OperatingPoint | None:
        """The operating point; None for a model that has not been calibrated."""

    @property
    def number(self) -> int:
        """Its place in its series, from 1."""


@dataclass(frozen=True)
class Case:
    """What one result is made of: the image's header, from `extract_source`, and what was found in it by what.

    ``key`` stands for all of that in identifiers: see `unary.outputs.dicom.run.hash_case`.
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
    def point(self) -> OperatingPoint | None:
        """The detection's."""
        return self.detection.operating_point

    @property
    def moment(self) -> datetime:
        """When the result is made; see `find_moment`."""
        return find_moment(self.run, self.source)

    @property
    def number(self) -> int:
        """The image's place among the views of its study; see `find_order`."""
        return find_order(self.source)

    @property
    def caption(self) -> str:
        """What was found in which view, in a few words: ``RCC: 2 findings``."""
        return caption_image(self.source, self.detection)

    def uid(self, part: str) -> str:
        """Return the UID of a part of the image's results, such as a finding; the same in all of them."""
        return identify_part(self.key, part)

    def list_arguments(self) -> dict[str, Any]:
        """Return what every class of highdicom takes in the same way."""
        return list_arguments(self)


def list_arguments(case: Filed) -> dict[str, Any]:
    """Return identifiers and equipment (PS3.3 C.7.5.1) of a result, by highdicom's names for them.

    All results of one kind that a run makes of a study are one series, sorted by view.
    """
    name, identity = case.kind.replace("_", " "), case.run.identity
    run = (identity.sha256, identity.version, case.run.moment.isoformat(), repr(case.point))
    return {
        "series_instance_uid": _hash_uid(str(case.source.StudyInstanceUID), name, "series", *run),
        "sop_instance_uid": _hash_uid(case.key, name),  # until all is in it: see `build_result`
        "series_number": 9001 + list(_TITLES).index(case.kind),
        "instance_number": case.number,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "manufacturer": "unary",
        "manufacturer_model_name": to_ascii(f"unary {identity.detector}", 64),
        "software_versions": to_ascii(identity.version, 64),
        "device_serial_number": to_ascii(identity.sha256, 64),
    }


def identify_part(key: str, part: str) -> str:
    """Return the UID of a part of an image's results, by the key of `unary.outputs.dicom.run.hash_case`."""
    return _hash_uid(key, part)


def find_moment(run: Run, source: Dataset) -> datetime:
    """When a result is made, in the time zone that the image states, so that one offset is true of all in it."""
    moment = run.moment if run.moment.tzinfo else run.moment.astimezone()
    stated = str(source.get("TimezoneOffsetFromUTC") or "").strip()
    if not stated:
        return moment
    minutes = 60 * int(stated[1:3]) + int(stated[3:5])
    return moment.astimezone(timezone(timedelta(minutes=-minutes if stated[0] == "-" else minutes)))


def name_view(source: Dataset) -> str:
    """Return side and view in a word, such as ``RCC``; empty where the header states neither."""
    view = str(source.get("ViewPosition") or "").strip().upper()
    return (find_side(source) or "") + (view if re.fullmatch(r"[A-Z]{1,8}", view) else "")


def caption_image(source: Dataset, detection: Detection) -> str:
    """Say what was found in which view, in a few words.

    >>> source = Dataset()
    >>> source.ImageLaterality, source.ViewPosition = "R", "MLO"
    >>> caption_image(source, Detection((), np.zeros((1, 1), np.uint8), 2.5, 0.4, None))
    'RMLO: no finding'
    """
    return ": ".join(part for part in (name_view(source), count_findings(detection)) if part)


def count_findings(detection: Detection) -> str:
    """Say how many findings there are, or that nothing could be scored."""
    count = len(detection.findings)
    if detection.image_score is None and count == 0:
        return "not scored"
    return count_words(count, "finding") if count else "no finding"


def find_order(source: Dataset) -> int:
    """Return the place of an image in a series of results, from 1: RCC, LCC, RMLO, LMLO, then other views.

    Where no side is stated, as in slices, it is the image's own number.
    """
    side, view = find_side(source), str(source.get("ViewPosition") or "").strip().upper()
    if side is not None:
        return _HANGING.index((side, view)) + 1 if (side, view) in _HANGING else len(_HANGING) + 1
    try:
        return max(1, int(source.get("InstanceNumber") or 1))
    except (TypeError, ValueError):
        return 1


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


def identify_device(identity: ModelIdentity) -> str:
    """Return the UID of a model as the device that observes: the same in all that it finds."""
    return _hash_uid("device", identity.sha256, identity.version)


def _hash_uid(*parts: str) -> str:
    return str(generate_uid(entropy_srcs=["\n".join(("unary result", *parts))]))


def format_date(moment: datetime) -> tuple[str, str]:
    """Return a DICOM date and time, both as the clock on the wall shows them."""
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")


def build_result(case: Filed, body: Dataset) -> Dataset:
    """Return ``body``, as highdicom makes it, as a plain dataset with its source's patient and study and its maker.

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
    moment = find_moment(case.run, case.source)
    _state_moment(moment, result)
    result.SeriesDescription = to_ascii(f"unary {title} - RESEARCH, NOT FOR DIAGNOSIS", 64)
    others = copy.deepcopy(list(result.get("ContributingEquipmentSequence") or []))
    result.ContributingEquipmentSequence = [_describe_equipment(case), *others]
    for item in result.ContributingEquipmentSequence:  # the time of this result in place of that of the call
        item.ContributionDateTime = "".join(format_date(moment)) + result.TimezoneOffsetFromUTC
    # the one identifier of dimensions that highdicom draws at random (PS3.3 C.7.6.17)
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in result.get(sequence) or []:
            item.DimensionOrganizationUID = _hash_uid(case.key, f"{title} dimensions")
    _restore_class(result, case.source)
    correct_ambiguous_vr(result, True)
    _keep_bytes(result)
    result.SOPInstanceUID = result.file_meta.MediaStorageSOPInstanceUID = hash_content(case, result)
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


def hash_content(case: Filed, result: Dataset) -> str:
    """A UID from all that the result holds, and the case that it is of."""
    content = BytesIO()
    result.save_as(content, enforce_file_format=True)
    return _hash_uid(case.key, case.kind, hashlib.sha256(content.getbuffer()).hexdigest())


def _describe_equipment(case: Filed) -> Dataset:
    """One item of the Contributing Equipment Sequence (PS3.3 C.12.1): which model, at which operating point."""
    equipment = list_arguments(case)
    code, item = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "109102", "DCM", "Processing Equipment"
    item.PurposeOfReferenceCodeSequence = [code]
    item.Manufacturer, item.ManufacturerModelName = equipment["manufacturer"], equipment["manufacturer_model_name"]
    item.DeviceSerialNumber, item.SoftwareVersions = equipment["device_serial_number"], equipment["software_versions"]
    lines = (NOTICE, describe_model(case.run.identity), describe_point(case.point))
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
