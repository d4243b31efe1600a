"""Findings as a DICOM Comprehensive Structured Report, TID 1500 Measurement Report (PS3.16).

One group of measurements speaks for the whole image, so that an image without findings has a report too; then comes one
group per finding with its outline. The anomaly score is coded in a scheme of its own: it is no probability of cancer,
and no code of the standard says what it is. The kind of a finding is coded there too, since a vascular pattern is no
diagnosis of calcified arteries.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from unary.outputs.dicom.content import COMMENT, MM, NO_UNITS, identify_scheme
from unary.outputs.dicom.header import (
    SCHEME,
    Case,
    describe_domain,
    describe_model,
    describe_point,
    identify_device,
    to_ascii,
)
from unary.outputs.dicom.source import find_side
from unary.records import NOTICE, Finding, FindingKind

ANOMALY_SCORE = Code("ANOMALY-SCORE", SCHEME, "Anomaly score")
P_VALUE = Code("P-VALUE", SCHEME, "Fraction of normal images as abnormal")
IMAGE_SCORE = Code("IMAGE-SCORE", SCHEME, "Anomaly score of the image")
IMAGE_P_VALUE = Code("IMAGE-P-VALUE", SCHEME, "Fraction of normal images as abnormal")
THRESHOLD = Code("THRESHOLD", SCHEME, "Threshold of the anomaly score")
RATE_ASKED = Code("RATE-ASKED", SCHEME, "False findings per normal image, asked")
RATE_MEASURED = Code("RATE-MEASURED", SCHEME, "Findings per normal image, measured")
FINDING_COUNT = Code("FINDING-COUNT", SCHEME, "Number of findings")
KIND = Code("KIND", SCHEME, "Kind of finding")
DOMAIN = Code("DOMAIN", SCHEME, "Likeness to the training images")
IN_DOMAIN = Code("IN-DOMAIN", SCHEME, "No difference found")
OUT_OF_DOMAIN = Code("OUT-OF-DOMAIN", SCHEME, "Out of domain")
SUMMARY = Code("111017", "DCM", "CAD Processing and Findings Summary")
WITH_FINDINGS = Code("111242", "DCM", "All algorithms succeeded; with findings")
WITHOUT_FINDINGS = Code("111241", "DCM", "All algorithms succeeded; without findings")
NOT_SCORED = Code("111245", "DCM", "No algorithms succeeded; without findings")
FINDING_KINDS: dict[FindingKind, Code] = {
    "unusual region": Code("UNUSUAL-REGION", SCHEME, "Unusual region"),
    "vascular pattern": Code("VASCULAR-PATTERN", SCHEME, "Vascular pattern"),
}
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_AREA, _DIAMETER = Code("42798000", "SCT", "Area"), Code("81827009", "SCT", "Diameter")
_MM2 = Code("mm2", "UCUM", "square millimeter")
_SIDES = {"L": Code("7771000", "SCT", "Left"), "R": Code("24028007", "SCT", "Right")}


_POINT = ((THRESHOLD, "threshold"), (RATE_ASKED, "rate"), (RATE_MEASURED, "measured_rate"))


def build_report(hd: Any, case: Case) -> Dataset:
    """Build the report of one image; complete, unverified and preliminary.

    Outlines are closed polylines in DICOM's image coordinates, (column, row) with 0 at the outer edge of the first
    pixel (PS3.3 C.18.6.1), half a pixel more than unary's. Sizes in mm are there only where the finding has them, and a
    site only where the profile's codes name one.
    """
    arguments, codes = case.list_arguments(), case.run.codes
    side = find_side(case.source) or ""
    sites = None if codes.site is None else [hd.sr.FindingSite(Code(*codes.site), laterality=_SIDES.get(side))]
    algorithm = hd.sr.AlgorithmIdentification(
        name=arguments["manufacturer_model_name"],
        version=arguments["software_versions"],
        parameters=[describe_model(case.run.identity), describe_point(case.detection.operating_point), NOTICE],
    )
    groups = [_describe_image(hd, case, algorithm)]
    groups += [_describe_finding(hd, case, finding, algorithm, sites) for finding in case.detection.findings]
    observer = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=identify_device(case.run.identity),
        name=arguments["manufacturer_model_name"],
        manufacturer_name=arguments["manufacturer"],
        model_name=arguments["manufacturer_model_name"],
        serial_number=arguments["device_serial_number"],
    )
    device = hd.sr.ObserverContext(Code("121007", "DCM", "Device"), observer)
    english = hd.sr.LanguageOfContentItemAndDescendants(Code("en", "RFC5646", "English"))
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=Code(*codes.procedure),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=english,
    )
    body: Dataset = hd.sr.ComprehensiveSR(
        evidence=[case.stand_in], content=content, is_complete=True, is_final=False, is_verified=False, **arguments
    )
    body.CodingSchemeIdentificationSequence = [identify_scheme()]
    return body


def _describe_image(hd: Any, case: Case, algorithm: Any) -> Any:
    """Measurements of the whole image (TID 1501), the operating point and how far the image can be trusted."""
    detection, point = case.detection, case.detection.operating_point
    scored = detection.image_score is not None
    outcome = WITH_FINDINGS if detection.findings else WITHOUT_FINDINGS if scored else NOT_SCORED
    numbers: list[tuple[Code, float | None, Code]] = [
        (IMAGE_SCORE, detection.image_score, NO_UNITS),
        (IMAGE_P_VALUE, detection.image_p_value, NO_UNITS),
        *((name, getattr(point, field, None), NO_UNITS) for name, field in _POINT),
        (FINDING_COUNT, len(detection.findings), NO_UNITS),
    ]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(identifier="Image", uid=case.uid("image")),
        algorithm_id=algorithm,
        measurements=_build_measurements(hd, numbers),
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(SUMMARY, outcome),
            hd.sr.QualitativeEvaluation(DOMAIN, OUT_OF_DOMAIN if detection.out_of_domain else IN_DOMAIN),
        ],
        source_images=[hd.sr.SourceImageForMeasurementGroup.from_source_image(case.stand_in)],
    )
    # The template is extensible, and free text has no other place in it.
    for line in (NOTICE, describe_domain(detection), *(to_ascii(note, 1024) for note in detection.notes)):
        if line:
            group[0].ContentSequence.append(hd.sr.TextContentItem(COMMENT, line, "CONTAINS"))
    return group


def _describe_finding(hd: Any, case: Case, finding: Finding, algorithm: Any, sites: list[Any] | None) -> Any:
    """Outline and measurements of one finding (TID 1410)."""
    origin = hd.sr.SourceImageForRegion.from_source_image(case.stand_in)
    region = hd.sr.ImageRegion("POLYLINE", trace_outline(finding, case.source), origin)
    numbers = [
        (ANOMALY_SCORE, finding.score, NO_UNITS),
        (P_VALUE, finding.p_value, NO_UNITS),
        (_AREA, finding.area_mm2, _MM2),
        (_DIAMETER, finding.diameter_mm, MM),
    ]
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            identifier=f"Finding {finding.rank}", uid=case.uid(f"finding {finding.rank}")
        ),
        referenced_region=region,
        finding_type=ABNORMAL_STRUCTURE,
        algorithm_id=algorithm,
        finding_sites=sites,
        measurements=_build_measurements(hd, numbers),
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(KIND, FINDING_KINDS[finding.kind])],
    )


def trace_outline(finding: Finding, source: Dataset) -> NDArray[np.float32]:
    """Return the outline as a closed polyline, shape (vertices + 1, 2), (column, row) in DICOM's image coordinates.

    DICOM puts 0 at the outer corner of the first pixel where unary has its centre. Vertices beyond the image are moved
    to its edge.
    """
    rows, cols = int(source.Rows), int(source.Columns)
    points = np.array([*finding.outline, finding.outline[0]], np.float64)[:, ::-1] + 0.5
    return np.clip(points, 0, [cols, rows]).astype(np.float32)


def _build_measurements(hd: Any, numbers: list[tuple[Code, float | None, Code]]) -> list[Any]:
    """Leave out what is unknown, and what a decimal string cannot hold."""
    known = [(name, value, unit) for name, value, unit in numbers if value is not None and math.isfinite(value)]
    return [
        hd.sr.Measurement(name=name, value=value if isinstance(value, int) else float(value), unit=unit)
        for name, value, unit in known
    ]
