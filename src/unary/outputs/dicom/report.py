"""Findings as a DICOM Comprehensive Structured Report, TID 1500 Measurement Report (PS3.16).

One group of measurements speaks for the whole image, so that an image without findings has a report too; then comes one
group per finding with its outline. The anomaly score is coded in a scheme of its own: it is no probability of cancer,
and no code of the standard says what it is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from unary.errors import require
from unary.outputs.dicom.header import (
    SCHEME,
    Run,
    UidMaker,
    build_result,
    build_stand_in,
    describe_domain,
    describe_model,
    describe_point,
    find_side,
    get_common_arguments,
    identify_equipment,
    silenced,
    to_ascii,
)
from unary.profiles.profile import Codes
from unary.records import NOTICE, Detection, Finding, ModelIdentity, OperatingPoint

ANOMALY_SCORE = Code("ANOMALY-SCORE", SCHEME, "Anomaly score")
P_VALUE = Code("P-VALUE", SCHEME, "Fraction of normal images as abnormal")
IMAGE_SCORE = Code("IMAGE-SCORE", SCHEME, "Anomaly score of the image")
IMAGE_P_VALUE = Code("IMAGE-P-VALUE", SCHEME, "Fraction of normal images as abnormal")
THRESHOLD = Code("THRESHOLD", SCHEME, "Threshold of the anomaly score")
RATE_ASKED = Code("RATE-ASKED", SCHEME, "False findings per normal image, asked")
RATE_MEASURED = Code("RATE-MEASURED", SCHEME, "Findings per normal image, measured")
FINDING_COUNT = Code("FINDING-COUNT", SCHEME, "Number of findings")
DOMAIN = Code("DOMAIN", SCHEME, "Likeness to the training images")
IN_DOMAIN = Code("IN-DOMAIN", SCHEME, "No difference found")
OUT_OF_DOMAIN = Code("OUT-OF-DOMAIN", SCHEME, "Out of domain")
SUMMARY = Code("111017", "DCM", "CAD Processing and Findings Summary")
WITH_FINDINGS = Code("111242", "DCM", "All algorithms succeeded; with findings")
WITHOUT_FINDINGS = Code("111241", "DCM", "All algorithms succeeded; without findings")
NOT_SCORED = Code("111245", "DCM", "No algorithms succeeded; without findings")
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_COMMENT = Code("121106", "DCM", "Comment")
_AREA, _DIAMETER = Code("42798000", "SCT", "Area"), Code("81827009", "SCT", "Diameter")
_NO_UNITS = Code("1", "UCUM", "no units")
_MM, _MM2 = Code("mm", "UCUM", "millimeter"), Code("mm2", "UCUM", "square millimeter")
_SIDES = {"L": Code("7771000", "SCT", "Left"), "R": Code("24028007", "SCT", "Right")}


def build_report(source: Dataset, detection: Detection, run: Run, *, uid: UidMaker) -> Dataset:
    """Build the report of one image; complete, unverified and preliminary.

    Outlines are closed polylines in DICOM's image coordinates, (column, row) with 0 at the outer edge of the first
    pixel (PS3.3 C.18.6.1), half a pixel more than unary's. Sizes in mm are there only where the finding has them.

    Parameters
    ----------
    source
        The image's header.
    run
        Its codes name the procedure and the site of findings; no site is stated where it is not known.
    uid
        See `unary.outputs.dicom.header.make_uid_maker`.

    Raises
    ------
    ImageError
        If the source lacks what a result refers to.
    MissingPackageError
        If highdicom is not installed.
    """
    hd = require("highdicom", extra="dicom")
    with silenced("highdicom", "pydicom"):
        stand_in = build_stand_in(source)
        algorithm = _identify_algorithm(hd, detection, run.identity)
        groups = [_describe_image(hd, stand_in, detection, algorithm, uid)]
        sites = _find_sites(hd, run.codes, find_side(source))
        for finding in detection.findings:
            groups.append(_describe_finding(hd, stand_in, finding, sites, algorithm=algorithm, uid=uid))
        equipment = identify_equipment(run.identity)
        observer = hd.sr.DeviceObserverIdentifyingAttributes(
            uid=uid("observer"),
            name=equipment["manufacturer_model_name"],
            manufacturer_name=equipment["manufacturer"],
            model_name=equipment["manufacturer_model_name"],
            serial_number=equipment["device_serial_number"],
        )
        device = hd.sr.ObserverContext(Code("121007", "DCM", "Device"), observer)
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=device),
            procedure_reported=Code(*run.codes.procedure),
            imaging_measurements=groups,
            language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(
                Code("en", "RFC5646", "English")
            ),
        )
        body = hd.sr.ComprehensiveSR(
            evidence=[stand_in],
            content=content,
            is_complete=True,
            is_final=False,
            is_verified=False,
            **equipment,
            **get_common_arguments(uid, "report", 1),
        )
        body.CodingSchemeIdentificationSequence = [_describe_scheme()]
        return build_result(body, source, detection, run, uid=uid, title="report")


def _describe_image(hd: Any, source: Dataset, detection: Detection, algorithm: Any, uid: UidMaker) -> Any:
    """Measurements of the whole image (TID 1501), the operating point and how far the image can be trusted."""
    scored = detection.image_score is not None
    outcome = WITH_FINDINGS if detection.findings else WITHOUT_FINDINGS if scored else NOT_SCORED
    numbers = [
        (IMAGE_SCORE, detection.image_score, _NO_UNITS),
        (IMAGE_P_VALUE, detection.image_p_value, _NO_UNITS),
        *_list_point(detection.operating_point),
        (FINDING_COUNT, len(detection.findings), _NO_UNITS),
    ]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(identifier="Image", uid=uid("image")),
        algorithm_id=algorithm,
        measurements=_build_measurements(hd, numbers),
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(SUMMARY, outcome),
            hd.sr.QualitativeEvaluation(DOMAIN, OUT_OF_DOMAIN if detection.out_of_domain else IN_DOMAIN),
        ],
        source_images=[hd.sr.SourceImageForMeasurementGroup.from_source_image(source)],
    )
    # The template is extensible, and free text has no other place in it.
    for line in (NOTICE, describe_domain(detection)):
        if line:
            group[0].ContentSequence.append(hd.sr.TextContentItem(_COMMENT, line, "CONTAINS"))
    return group


def _list_point(point: OperatingPoint | None) -> list[tuple[Code, float | None, Code]]:
    if point is None:
        return []
    return [
        (THRESHOLD, point.threshold, _NO_UNITS),
        (RATE_ASKED, point.rate, _NO_UNITS),
        (RATE_MEASURED, point.measured_rate, _NO_UNITS),
    ]


def _find_sites(hd: Any, codes: Codes, side: str | None) -> list[Any] | None:
    """Where findings are, as far as that is known."""
    return None if codes.site is None else [hd.sr.FindingSite(Code(*codes.site), laterality=_SIDES.get(side or ""))]


def _describe_finding(
    hd: Any, source: Dataset, finding: Finding, sites: list[Any] | None, *, algorithm: Any, uid: UidMaker
) -> Any:
    """Outline and measurements of one finding (TID 1410)."""
    region = hd.sr.ImageRegion(
        "POLYLINE",
        trace_outline(finding, source),
        hd.sr.SourceImageForRegion.from_source_image(source),
    )
    numbers = [
        (ANOMALY_SCORE, finding.score, _NO_UNITS),
        (P_VALUE, finding.p_value, _NO_UNITS),
        (_AREA, finding.area_mm2, _MM2),
        (_DIAMETER, finding.diameter_mm, _MM),
    ]
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            identifier=f"Finding {finding.rank}", uid=uid(f"finding {finding.rank}")
        ),
        referenced_region=region,
        finding_type=ABNORMAL_STRUCTURE,
        algorithm_id=algorithm,
        finding_sites=sites,
        measurements=_build_measurements(hd, numbers),
    )


def trace_outline(finding: Finding, source: Dataset) -> NDArray[np.float32]:
    """Return the outline as a closed polyline, shape (vertices + 1, 2), (column, row) in DICOM's image coordinates.

    DICOM puts 0 at the outer corner of the first pixel where unary has its centre. Vertices beyond the image are moved
    to its edge.
    """
    rows, cols = int(source.Rows), int(source.Columns)
    points = np.array([*finding.outline, finding.outline[0]], np.float64)[:, ::-1] + 0.5
    return np.clip(points, 0, [cols, rows]).astype(np.float32)


def _identify_algorithm(hd: Any, detection: Detection, identity: ModelIdentity) -> Any:
    return hd.sr.AlgorithmIdentification(
        name=to_ascii(f"unary {identity.detector}", 64),
        version=to_ascii(identity.version, 64),
        parameters=[describe_model(identity), describe_point(detection.operating_point), NOTICE],
    )


def _build_measurements(hd: Any, numbers: list[tuple[Code, float | None, Code]]) -> list[Any]:
    """Leave out what is unknown, and what a decimal string cannot hold."""
    known = [(name, value, unit) for name, value, unit in numbers if value is not None and math.isfinite(value)]
    return [
        hd.sr.Measurement(name=name, value=value if isinstance(value, int) else float(value), unit=unit)
        for name, value, unit in known
    ]


def _describe_scheme() -> Dataset:
    """Say who defines the private codes (PS3.3 C.12.1, Coding Scheme Identification Sequence)."""
    item = Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeName = "unary, one-class anomaly detection"
    item.CodingSchemeResponsibleOrganization = "unary"
    return item
