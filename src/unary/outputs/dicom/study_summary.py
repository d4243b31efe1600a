"""One page about a study as a DICOM Comprehensive SR (PS3.3 A.35.3): which images there were and what became of each.

No template of the standard has a place for images that were refused, so the document names none; every viewer of
structured reports shows its text and numbers. Numbers have the codes of the images' own reports.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from unary.models.calibration import describe_guarantee
from unary.outputs.dicom.cad_report import explain_image, summarise_study
from unary.outputs.dicom.content import (
    COMMENT,
    build_code,
    build_container,
    build_document,
    build_image,
    build_language,
    build_number,
    build_text,
    build_uid,
)
from unary.outputs.dicom.header import SCHEME, describe_model, describe_point, identify_device, list_arguments
from unary.outputs.dicom.report import (
    DOMAIN,
    FINDING_COUNT,
    IMAGE_P_VALUE,
    IMAGE_SCORE,
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    SUMMARY,
    THRESHOLD,
)
from unary.outputs.dicom.study import State, StudyCase, StudyImage
from unary.records import NOTICE, count_words

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.88.33"


def _own(value: str, meaning: str) -> Code:
    return Code(value, SCHEME, meaning)


ROOT = _own("STUDY-SUMMARY", "Anomaly detection: summary of a study")
IMAGE = _own("IMAGE", "Image")
STATE = _own("STATE", "What became of the image")
STATES: dict[State, Code] = {
    "examined": _own("EXAMINED", "Examined"),
    "not scored": _own("NOT-SCORED", "Examined; nothing could be scored"),
    "refused": _own("REFUSED", "Refused: no image for the model"),
    "failed": _own("FAILED", "Failed"),
}
REASON = _own("REASON", "Reason")
VIEW_NAME = _own("VIEW", "Side and view")
IMAGES, EXAMINED = _own("IMAGES", "Number of images"), _own("IMAGES-EXAMINED", "Number of images examined")
REFUSED, FAILED = _own("IMAGES-REFUSED", "Number of images refused"), _own("IMAGES-FAILED", "Number of images failed")
HIGHEST_SCORE = _own("HIGHEST-SCORE", "Highest anomaly score of an image")
ITS_P_VALUE = _own("ITS-P-VALUE", "Its fraction of normal images as abnormal")
MODEL, POINT = _own("MODEL", "Model"), _own("OPERATING-POINT", "Operating point")
_OBSERVER_TYPE, _DEVICE = Code("121005", "DCM", "Observer Type"), Code("121007", "DCM", "Device")
_OBSERVER_UID = Code("121012", "DCM", "Device Observer UID")
_OBSERVER_NAME = Code("121013", "DCM", "Device Observer Name")


def build_study_summary(case: StudyCase) -> Dataset:
    """Build the summary of a study: what was examined, refused and failed, scores and findings, model and level.

    The p-value is that of the image with the highest score, as if it were the only one of the study: no correction is
    made for several images.
    """
    counts = {name: sum(image.state in states for image in case.images) for name, states in _COUNTED.items()}
    findings = sum(len(image.findings) for image in case.images)
    children = [
        build_language(),
        *_describe_observer(case),
        build_text("CONTAINS", COMMENT, NOTICE),
        build_code("CONTAINS", SUMMARY, summarise_study(case)),
        build_text("CONTAINS", COMMENT, describe_study(case)),
        build_number("CONTAINS", IMAGES, len(case.images)),
        *(build_number("CONTAINS", name, count) for name, count in counts.items()),
        build_number("CONTAINS", FINDING_COUNT, findings),
        *_describe_highest(case),
        build_text("CONTAINS", MODEL, describe_model(case.run.identity)),
        build_text("CONTAINS", POINT, describe_point(case.point)),
    ]
    if case.point is not None:
        children.append(build_text("CONTAINS", POINT, describe_guarantee(case.point)))
        children.append(build_number("CONTAINS", THRESHOLD, case.point.threshold))
    children += [_describe_image(image) for image in case.images]
    root = build_container(ROOT, children, None)
    evidence = [image.source for image in case.images]
    return build_document(case, root, sop_class=SOP_CLASS, evidence=evidence, template=None)


_COUNTED: dict[Code, tuple[State, ...]] = {
    EXAMINED: ("examined", "not scored"),
    REFUSED: ("refused",),
    FAILED: ("failed",),
}


def describe_study(case: StudyCase) -> str:
    """Say in a sentence what became of a study's images."""
    findings = sum(len(image.findings) for image in case.images)
    said = [f"{image.name}: {_say(image)}" for image in case.images]
    found = count_words(findings, "finding") if findings else "no finding"
    total = f"{found} in {len(case.examined)} of {count_words(len(case.images), 'image')}"
    return f"{total}. {'; '.join(said)}."


def _say(image: StudyImage) -> str:
    if not image.was_examined:
        return image.state + (f" ({image.reason})" if image.reason else "")
    return count_words(len(image.findings), "finding") if image.findings else "no finding"


def _describe_observer(case: StudyCase) -> list[Dataset]:
    """The model as the device that observes (PS3.16 TID 1002, 1004)."""
    return [
        build_code("HAS OBS CONTEXT", _OBSERVER_TYPE, _DEVICE),
        build_uid("HAS OBS CONTEXT", _OBSERVER_UID, identify_device(case.run.identity)),
        build_text("HAS OBS CONTEXT", _OBSERVER_NAME, list_arguments(case)["manufacturer_model_name"]),
    ]


def _describe_highest(case: StudyCase) -> list[Dataset]:
    scored = [(image.image_score, image.image_p_value) for image in case.examined if image.image_score is not None]
    if not scored:
        return []
    score, p_value = max(scored, key=lambda pair: pair[0])
    items = [build_number("CONTAINS", HIGHEST_SCORE, score)]
    if p_value is not None:
        items.append(build_number("CONTAINS", ITS_P_VALUE, p_value))
    return items


def _describe_image(image: StudyImage) -> Dataset:
    items = [
        build_text("CONTAINS", VIEW_NAME, image.name),
        build_image("CONTAINS", image.source),
        build_code("CONTAINS", STATE, STATES[image.state]),
    ]
    if not image.was_examined:
        items.append(build_text("CONTAINS", REASON, explain_image(image)))
    if image.image_score is not None:
        items.append(build_number("CONTAINS", IMAGE_SCORE, image.image_score))
    if image.image_p_value is not None:
        items.append(build_number("CONTAINS", IMAGE_P_VALUE, image.image_p_value))
    if image.was_examined:
        items.append(build_number("CONTAINS", FINDING_COUNT, len(image.findings)))
        items.append(build_code("CONTAINS", DOMAIN, OUT_OF_DOMAIN if image.out_of_domain else IN_DOMAIN))
    remarks = [*(f"out of domain: {line}" for line in image.out_of_domain), *image.notes]
    items += [build_text("CONTAINS", COMMENT, line) for line in remarks]
    return build_container(IMAGE, items)
