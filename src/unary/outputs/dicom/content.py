"""The content items of structured reports that highdicom has no template for (PS3.3 C.17.3), and their document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from unary.outputs.dicom.header import SCHEME, Filed, find_moment, format_date, list_arguments, to_ascii

Relation = Literal[
    "CONTAINS", "HAS PROPERTIES", "HAS CONCEPT MOD", "HAS OBS CONTEXT", "HAS ACQ CONTEXT", "INFERRED FROM",
    "SELECTED FROM",
]  # fmt: skip

NO_UNITS = Code("1", "UCUM", "no units")
MM = Code("mm", "UCUM", "millimeter")
COMMENT = Code("121106", "DCM", "Comment")
_LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")
_ENGLISH = Code("en", "RFC5646", "English")


def build_container(name: Code, children: Sequence[Dataset], relation: Relation | None = "CONTAINS") -> Dataset:
    """Build a CONTAINER; the root of a document has no relation."""
    item = _build(relation, "CONTAINER", name, children)
    item.ContinuityOfContent = "SEPARATE"
    return item


def build_code(relation: Relation, name: Code, value: Code, children: Sequence[Dataset] = ()) -> Dataset:
    """Build a CODE."""
    item = _build(relation, "CODE", name, children)
    item.ConceptCodeSequence = [encode(value)]
    return item


def build_text(relation: Relation, name: Code, text: str) -> Dataset:
    """Build a TEXT of ASCII, which every character set of DICOM can write."""
    item = _build(relation, "TEXT", name)
    item.TextValue = to_ascii(text, 1024)
    return item


def build_number(relation: Relation, name: Code, value: float, unit: Code = NO_UNITS) -> Dataset:
    """Build a NUM, as a decimal string of sixteen characters and as the exact value (PS3.3 C.18.1)."""
    measured = Dataset()
    measured.NumericValue = str(value) if isinstance(value, int) else format_number_as_ds(float(value))
    measured.FloatingPointValue = float(value)
    measured.MeasurementUnitsCodeSequence = [encode(unit)]
    item = _build(relation, "NUM", name)
    item.MeasuredValueSequence = [measured]
    return item


def build_uid(relation: Relation, name: Code, uid: str) -> Dataset:
    """Build a UIDREF."""
    item = _build(relation, "UIDREF", name)
    item.UID = uid
    return item


def build_date(relation: Relation, name: Code, date: str) -> Dataset:
    """Build a DATE."""
    item = _build(relation, "DATE", name)
    item.Date = date
    return item


def build_time(relation: Relation, name: Code, time: str) -> Dataset:
    """Build a TIME."""
    item = _build(relation, "TIME", name)
    item.Time = time
    return item


def build_image(relation: Relation, source: Dataset, children: Sequence[Dataset] = ()) -> Dataset:
    """Build an IMAGE that refers to a source."""
    item = _build(relation, "IMAGE", None, children)
    item.ReferencedSOPSequence = [_refer(source)]
    return item


def build_points(relation: Relation, name: Code, points_xy: NDArray[np.float32], image: Sequence[int]) -> Dataset:
    """Build an SCOORD on an image of the document, given by its place there, such as (1, 2, 3).

    Points are (column, row), 0 at the outer edge of the first pixel (PS3.3 C.18.6.1), shape (points, 2): one is a
    POINT, several are a POLYLINE.
    """
    item = _build(relation, "SCOORD", name, [_build_reference("SELECTED FROM", image)])
    item.GraphicType = "POINT" if len(points_xy) == 1 else "POLYLINE"
    item.GraphicData = [float(value) for value in points_xy.ravel()]
    return item


def build_language() -> Dataset:
    """Build what says that a document is in English (PS3.16 TID 1204)."""
    return build_code("HAS CONCEPT MOD", _LANGUAGE, _ENGLISH)


def refer_by_place(relation: Relation, place: Sequence[int]) -> Dataset:
    """Build a relation by reference, to the content item at a place in the document, such as (1, 2, 3)."""
    return _build_reference(relation, place)


def build_document(
    case: Filed, root: Dataset, *, sop_class: str, evidence: Sequence[Dataset], template: str | None
) -> Dataset:
    """Build a structured report, for `unary.outputs.dicom.header.build_result`: complete, unverified and preliminary.

    ``evidence`` are the sources of all images that it refers to, of one study.
    """
    document = Dataset()
    document.file_meta = FileMetaDataset()
    document.file_meta.MediaStorageSOPClassUID = document.SOPClassUID = sop_class
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    arguments = list_arguments(case)
    document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID = arguments["sop_instance_uid"]
    document.Modality, document.SeriesInstanceUID = "SR", arguments["series_instance_uid"]
    document.SeriesNumber, document.InstanceNumber = arguments["series_number"], arguments["instance_number"]
    document.Manufacturer, document.ManufacturerModelName = (
        arguments["manufacturer"],
        arguments["manufacturer_model_name"],
    )
    document.SoftwareVersions = arguments["software_versions"]
    document.DeviceSerialNumber = arguments["device_serial_number"]
    document.ContentDate, document.ContentTime = format_date(find_moment(case.run, case.source))
    document.CompletionFlag, document.VerificationFlag, document.PreliminaryFlag = (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    document.ReferencedPerformedProcedureStepSequence = []
    document.PerformedProcedureCodeSequence = []
    document.CurrentRequestedProcedureEvidenceSequence = [_list_evidence(case, evidence)]
    if any(each.keyword == "CodingSchemeDesignator" and each.value == SCHEME for each in root.iterall()):
        document.CodingSchemeIdentificationSequence = [identify_scheme()]
    document.update(root)
    if template is not None:
        item = Dataset()
        item.MappingResource, item.TemplateIdentifier = "DCMR", template
        document.ContentTemplateSequence = [item]
    return document


def identify_scheme() -> Dataset:
    """Build what says who defines the private codes (PS3.3 C.12.1)."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "unary, one-class anomaly detection"
    scheme.CodingSchemeResponsibleOrganization = "unary"
    return scheme


def encode(code: Code) -> Dataset:
    """Build an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _build(relation: Relation | None, kind: str, name: Code | None, children: Sequence[Dataset] = ()) -> Dataset:
    item = Dataset()
    if relation is not None:
        item.RelationshipType = relation
    item.ValueType = kind
    if name is not None:
        item.ConceptNameCodeSequence = [encode(name)]
    if children:
        item.ContentSequence = list(children)
    return item


def _build_reference(relation: Relation, place: Sequence[int]) -> Dataset:
    item = Dataset()
    item.RelationshipType = relation
    item.ReferencedContentItemIdentifier = list(place)
    return item


def _refer(source: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = str(source.SOPClassUID)
    reference.ReferencedSOPInstanceUID = str(source.SOPInstanceUID)
    return reference


def _list_evidence(case: Filed, evidence: Sequence[Dataset]) -> Dataset:
    """Every image that is referred to, once, by its series (PS3.3 C.17.2.3)."""
    series: dict[str, dict[str, Dataset]] = {}
    for source in evidence:
        series.setdefault(str(source.SeriesInstanceUID), {})[str(source.SOPInstanceUID)] = _refer(source)
    study = Dataset()
    study.StudyInstanceUID = str(case.source.StudyInstanceUID)
    study.ReferencedSeriesSequence = []
    for uid, references in series.items():
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedSOPSequence = uid, list(references.values())
        study.ReferencedSeriesSequence.append(item)
    return study
