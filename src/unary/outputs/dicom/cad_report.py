"""Findings of a study as a DICOM Mammography CAD SR (PS3.3 A.35.5), TID 4000 of PS3.16: what workstations mark.

The template has no place for an anomaly score. Its *Certainty of Finding* and *Probability of cancer* are percentages
of something that one-class detection does not estimate, and stay out. A finding is a *Selected region*, the one code of
the standard that claims no kind of lesion, and its description says in words what is known of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from unary.outputs.dicom.content import (
    MM,
    Relation,
    build_code,
    build_container,
    build_date,
    build_document,
    build_image,
    build_language,
    build_number,
    build_points,
    build_text,
    build_time,
    build_uid,
    refer_by_place,
)
from unary.outputs.dicom.header import describe_model, describe_point, identify_part, to_ascii
from unary.outputs.dicom.report import SUMMARY, WITH_FINDINGS, WITHOUT_FINDINGS, trace_outline
from unary.outputs.dicom.source import find_side
from unary.outputs.dicom.study import StudyCase, StudyImage
from unary.records import NOTICE, Finding

SOP_CLASS, TEMPLATE = "1.2.840.10008.5.1.4.1.1.88.50", "4000"


def _dcm(value: str, meaning: str) -> Code:
    return Code(value, "DCM", meaning)


ROOT = _dcm("111036", "Mammography CAD Report")
LIBRARY = _dcm("111028", "Image Library")
IMPRESSION = _dcm("111034", "Individual Impression/Recommendation")
INTENT = _dcm("111056", "Rendering Intent")
REQUIRED = _dcm("111150", "Presentation Required: Rendering device is expected to present")
OPTIONAL = _dcm("111151", "Presentation Optional: Rendering device may present")
FINDING = _dcm("111059", "Single Image Finding")
SELECTED_REGION = _dcm("111099", "Selected region")
DESCRIPTION = _dcm("111058", "Selected Region Description")
CENTER, OUTLINE = _dcm("111010", "Center"), _dcm("111041", "Outline")
DETECTIONS, ANALYSES = _dcm("111064", "Summary of Detections"), _dcm("111065", "Summary of Analyses")
DETECTION = _dcm("111022", "Detection Performed")
SUCCESSFUL, FAILED = _dcm("111063", "Successful Detections"), _dcm("111025", "Failed Detections")
ALL_SUCCEEDED, SOME_SUCCEEDED = _dcm("111222", "Succeeded"), _dcm("111223", "Partially Succeeded")
NONE_SUCCEEDED, NOT_ATTEMPTED = _dcm("111224", "Failed"), _dcm("111225", "Not Attempted")
SOME_WITHOUT_FINDINGS = _dcm("111243", "Not all algorithms succeeded; without findings")
SOME_WITH_FINDINGS = _dcm("111244", "Not all algorithms succeeded; with findings")
NOTHING_SUCCEEDED = _dcm("111245", "No algorithms succeeded; without findings")
ALGORITHM, VERSION = _dcm("111001", "Algorithm Name"), _dcm("111003", "Algorithm Version")
PARAMETERS = _dcm("111002", "Algorithm Parameters")
TRACKING, TRACKING_UID = _dcm("112039", "Tracking Identifier"), _dcm("112040", "Tracking Unique Identifier")
LATERALITY, VIEW = _dcm("111027", "Image Laterality"), _dcm("111031", "Image View")
_BREASTS = {"L": Code("80248007", "SCT", "Left breast"), "R": Code("73056007", "SCT", "Right breast")}
_VIEWS = {  # PS3.16 CID 4014
    "CC": Code("399162004", "SCT", "cranio-caudal"),
    "MLO": Code("399368009", "SCT", "medio-lateral oblique"),
    "ML": Code("399260004", "SCT", "medio-lateral"),
    "LM": Code("399352003", "SCT", "latero-medial"),
    "LMO": Code("399099002", "SCT", "latero-medial oblique"),
    "FB": Code("399196006", "SCT", "caudo-cranial (from below)"),
    "SIO": Code("399188001", "SCT", "superolateral to inferomedial oblique"),
    "ISO": Code("441555000", "SCT", "inferomedial to superolateral oblique"),
    "XCCL": Code("399192008", "SCT", "cranio-caudal exaggerated laterally"),
    "XCCM": Code("399101009", "SCT", "cranio-caudal exaggerated medially"),
}
_LIBRARY_PLACE = (1, 2)  # the root is 1, the language 1.1


def build_cad_report(case: StudyCase) -> Dataset:
    """Build the CAD report of a study, which refers to every image of it that is known, examined or not.

    One Individual Impression for each finding; none in a study without. *Summary of Detections* is Succeeded when every
    image was examined, Partially Succeeded when some were, Failed when none was, and the images that were not stand
    under Failed Detections, one entry for each reason. No analyses are attempted. A finding at an operating point is
    required to be presented, a vascular pattern, and whatever a model without calibration finds, may be.
    """
    places = {id(image): (*_LIBRARY_PLACE, number) for number, image in enumerate(case.images, 1)}
    impressions = [
        _describe_finding(case, image, finding, places[id(image)])
        for image in case.images
        for finding in image.findings
    ]
    children = [
        build_language(),
        build_container(LIBRARY, [_describe_image(image) for image in case.images]),
        build_code("CONTAINS", SUMMARY, summarise_study(case), impressions),
        build_code("CONTAINS", DETECTIONS, _sum_detections(case), _list_detections(case, places)),
        build_code("CONTAINS", ANALYSES, NOT_ATTEMPTED),
    ]
    root = build_container(ROOT, children, None)
    evidence = [image.source for image in case.images]
    return build_document(case, root, sop_class=SOP_CLASS, evidence=evidence, template=TEMPLATE)


def summarise_study(case: StudyCase) -> Code:
    """Return what became of a study as a code (PS3.16 CID 6047)."""
    found = any(image.findings for image in case.images)
    if not case.examined:
        return NOTHING_SUCCEEDED
    if case.left:
        return SOME_WITH_FINDINGS if found else SOME_WITHOUT_FINDINGS
    return WITH_FINDINGS if found else WITHOUT_FINDINGS


def _sum_detections(case: StudyCase) -> Code:
    if not case.examined:
        return NONE_SUCCEEDED
    return SOME_SUCCEEDED if case.left else ALL_SUCCEEDED


def _describe_image(image: StudyImage) -> Dataset:
    """One image of the library (TID 4020): what its header states, and nothing else."""
    source, items = image.source, []
    side, view = find_side(source), str(source.get("ViewPosition") or "")
    if side is not None:
        items.append(build_code("HAS ACQ CONTEXT", LATERALITY, _BREASTS[side]))
    if view in _VIEWS:
        items.append(build_code("HAS ACQ CONTEXT", VIEW, _VIEWS[view]))
    directions = list(source.get("PatientOrientation") or [])
    for name, text in zip(
        (_dcm("111044", "Patient Orientation Row"), _dcm("111043", "Patient Orientation Column")),
        directions,
        strict=False,
    ):
        items.append(build_text("HAS ACQ CONTEXT", name, text))
    date, time = str(source.StudyDate or ""), str(source.StudyTime or "")
    if date:
        items.append(build_date("HAS ACQ CONTEXT", _dcm("111060", "Study Date"), date))
    if time:
        items.append(build_time("HAS ACQ CONTEXT", _dcm("111061", "Study Time"), time))
    if image.spacing_mm is not None:
        rows, cols = image.spacing_mm
        items.append(build_number("HAS ACQ CONTEXT", _dcm("111026", "Horizontal Pixel Spacing"), cols, MM))
        items.append(build_number("HAS ACQ CONTEXT", _dcm("111066", "Vertical Pixel Spacing"), rows, MM))
    return build_image("CONTAINS", source, items)


def _describe_finding(case: StudyCase, image: StudyImage, finding: Finding, place: tuple[int, ...]) -> Dataset:
    """One impression of one finding (TID 4003, 4006)."""
    required = case.point is not None and finding.kind == "unusual region"
    intent = build_code("HAS CONCEPT MOD", INTENT, REQUIRED if required else OPTIONAL)
    outline = trace_outline(finding, image.source)
    tracking = []
    if image.key:  # the same as in the image's own objects
        tracking = [
            build_text("HAS OBS CONTEXT", TRACKING, f"Finding {finding.rank}"),
            build_uid("HAS OBS CONTEXT", TRACKING_UID, identify_part(image.key, f"finding {finding.rank}")),
        ]
    single = build_code(
        "CONTAINS",
        FINDING,
        SELECTED_REGION,
        [
            intent,
            *tracking,
            *_identify_algorithm(case),
            build_text("HAS PROPERTIES", DESCRIPTION, describe_region(image, finding)),
            build_points("HAS PROPERTIES", CENTER, find_centre(outline), place),
            build_points("HAS PROPERTIES", OUTLINE, outline, place),
        ],
    )
    return build_container(IMPRESSION, [intent, single], "INFERRED FROM")


def describe_region(image: StudyImage, finding: Finding) -> str:
    """Say on one line what is known of a finding."""
    parts = [f"{image.name}, finding {finding.rank} of {len(image.findings)}: {finding.kind}"]
    parts.append(f"anomaly score {finding.score:.6g}, no probability of cancer")
    if finding.p_value is not None:
        parts.append(f"p-value {finding.p_value:.4g}, the fraction of normal images whose highest score is as high")
    if finding.area_mm2 is not None and finding.diameter_mm is not None:
        parts.append(f"area {finding.area_mm2:.4g} mm2, diameter {finding.diameter_mm:.4g} mm")
    if image.out_of_domain:
        parts.append("out of domain: " + "; ".join(image.out_of_domain))
    return to_ascii("; ".join([*parts, NOTICE, *image.notes]), 1024)


def _identify_algorithm(case: StudyCase, lines: Sequence[str] = ()) -> list[Dataset]:
    """Which algorithm (TID 4019), with what is to be known of this use of it."""
    relation: Relation = "HAS PROPERTIES"
    identity = case.run.identity
    parameters = [*lines, describe_point(case.point), describe_model(identity), NOTICE]
    return [
        build_text(relation, ALGORITHM, to_ascii(f"unary {identity.detector}", 64)),
        build_text(relation, VERSION, to_ascii(identity.version, 64)),
        *(build_text(relation, PARAMETERS, line) for line in parameters),
    ]


def _list_detections(case: StudyCase, places: Mapping[int, tuple[int, ...]]) -> list[Dataset]:
    """Which images were searched and which not, and why (TID 4015, 4017)."""

    def describe(images: tuple[StudyImage, ...], lines: list[str]) -> Dataset:
        which = [refer_by_place("HAS PROPERTIES", places[id(image)]) for image in images]
        return build_code("CONTAINS", DETECTION, SELECTED_REGION, [*_identify_algorithm(case, lines), *which])

    groups = []
    if case.examined:
        groups.append(build_container(SUCCESSFUL, [describe(case.examined, [])], "INFERRED FROM"))
    if case.left:
        left = sorted(case.left, key=explain_image)
        by_reason = [(why, tuple(images)) for why, images in itertools.groupby(left, explain_image)]
        failed = [describe(images, [f"not examined: {why}"]) for why, images in by_reason]
        groups.append(build_container(FAILED, failed, "INFERRED FROM"))
    return groups


def explain_image(image: StudyImage) -> str:
    """Say why an image has no score, on one line."""
    if image.state == "not scored":
        return "nothing of it could be scored"
    return re.sub(r"\s+", " ", f"{image.state}, {image.reason}: {image.detail}").strip(" :")


def find_centre(outline_xy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the centroid of a closed convex polyline's area, shape (1, 2); of its points where it has no area.

    >>> find_centre(np.array([[0, 0], [4, 0], [4, 2], [0, 2], [0, 0]], np.float32)).tolist()
    [[2.0, 1.0]]
    """
    x, y = outline_xy.astype(np.float64).T
    x0, y0 = x[0], y[0]  # near zero, so that small shapes far away lose no digits
    x, y = x - x0, y - y0
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    area = cross.sum()
    if abs(area) < 1e-9:
        return np.array([[x[:-1].mean() + x0, y[:-1].mean() + y0]], np.float32)
    middle = [((part[:-1] + part[1:]) * cross).sum() / (3 * area) for part in (x, y)]
    return np.array([[middle[0] + x0, middle[1] + y0]], np.float32)
