"""Boxes and scores as a DICOM Grayscale Softcopy Presentation State (PS3.3 A.33.1), drawn by the viewer."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from unary.outputs.detection_figures import label_finding
from unary.outputs.dicom.header import Case, describe_domain, to_ascii
from unary.records import NOTICE, Detection, Finding

_LAYER = "UNARY"


def build_presentation(hd: Any, case: Case, window: tuple[float, float]) -> Dataset:
    """Build a presentation state: the box, rank and score of every finding, and the disclaimer.

    A presentation state replaces the image's own pipeline, so its window or table and its polarity are carried over. A
    box ``(r0, c0, r1, c1)`` becomes a closed polyline from (c0, r0) to (c1, r1), which in DICOM are the outer edges of
    its pixels (PS3.3 C.10.5.1.2). ``window`` is the center and width for a source without a window of its own, in its
    values after rescaling.
    """
    source, findings = case.stand_in, case.detection.findings
    layer = hd.pr.GraphicLayer(_LAYER, order=1, description=NOTICE)
    annotation = hd.pr.GraphicAnnotation(
        referenced_images=[source],
        graphic_layer=layer,
        graphic_objects=[_draw_box(hd, case, finding) for finding in findings] or None,
        text_objects=[_draw_notice(hd, case.detection), *(_label_finding(hd, finding) for finding in findings)],
    )
    inverted = source.get("PhotometricInterpretation") == "MONOCHROME1"
    body: Dataset = hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=[_keep_identity(source)],
        content_label="FINDINGS",
        content_description=to_ascii(f"{case.caption}. {NOTICE}", 64),
        graphic_annotations=[annotation],
        graphic_layers=[layer],
        modality_lut_transformation=_carry_rescale(hd, source),
        voi_lut_transformations=_carry_window(hd, source, window),
        presentation_lut_transformation=hd.PresentationLUTTransformation("INVERSE" if inverted else "IDENTITY"),
        **case.list_arguments(),
    )
    body.Laterality = ""  # the series holds both sides
    return body


def _keep_identity(stand_in: Dataset) -> Dataset:
    """The source without its windows and tables, which are handed over one by one instead."""
    kept = Dataset()
    pipeline = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "RescaleSlope", "RescaleIntercept")
    for element in stand_in:
        if element.keyword not in (*pipeline, "RescaleType", "ModalityLUTSequence"):
            kept.add(element)
    return kept


def _draw_notice(hd: Any, detection: Detection) -> Any:
    text, box = to_ascii(f"{NOTICE} {describe_domain(detection)}", 1024), (0.01, 0.01, 0.99, 0.05)
    return hd.pr.TextObject(text, "DISPLAY", bounding_box=box, text_justification="LEFT")


def _label_finding(hd: Any, finding: Finding) -> Any:
    r0, _, _, c1 = finding.box
    return hd.pr.TextObject(
        label_finding(finding), "PIXEL", anchor_point=(float(c1), float(r0)), anchor_point_visible=False
    )


def _draw_box(hd: Any, case: Case, finding: Finding) -> Any:
    r0, c0, r1, c1 = finding.box
    corners = np.array([(c0, r0), (c1, r0), (c1, r1), (c0, r1), (c0, r0)], np.float64)
    name, identifier = f"Finding {finding.rank}", case.uid(f"finding {finding.rank}")
    return hd.pr.GraphicObject("POLYLINE", corners, "PIXEL", tracking_id=name, tracking_uid=identifier)


def _carry_rescale(hd: Any, source: Dataset) -> Any:
    """The source's modality transform (PS3.3 C.11.1), or None."""
    table = find_table(source, "ModalityLUTSequence")
    if table is not None:
        return hd.ModalityLUTTransformation(modality_lut=hd.ModalityLUT.from_dataset(table))
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    if slope is None or intercept is None:
        return None
    kind = to_ascii(str(source.get("RescaleType") or ""), 16)
    return hd.ModalityLUTTransformation(
        rescale_intercept=float(intercept), rescale_slope=float(slope), rescale_type=kind or "US"
    )


def _carry_window(hd: Any, source: Dataset, window: tuple[float, float]) -> Any:
    """The source's table or first window (PS3.3 C.11.2), else the given one."""
    referenced = hd.ReferencedImageSequence(referenced_images=[source])
    make = hd.pr.SoftcopyVOILUTTransformation
    table = find_table(source, "VOILUTSequence")
    if table is not None:
        return [make(voi_luts=[hd.VOILUT.from_dataset(table)], referenced_images=referenced)]
    (center, width), function = read_window(source) or (window, "LINEAR")
    return [make(window_center=center, window_width=width, voi_lut_function=function, referenced_images=referenced)]


def find_table(source: Dataset, keyword: str) -> Dataset | None:
    """Return the first table of a sequence, without its free text; None when there is none, or one without content."""
    item = next(iter(source.get(keyword) or ()), None)
    if item is None or len(item.get("LUTDescriptor") or ()) != 3 or not item.get("LUTData"):
        return None
    table = copy.deepcopy(item)
    table.pop("LUTExplanation", None)
    return table


def read_window(source: Dataset) -> tuple[tuple[float, float], str] | None:
    """Return the first window that a header states, (center, width), and its function; None when none can be used."""
    pair = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = source.get(keyword)
        first = value if isinstance(value, int | float) or value is None else next(iter(value), None)
        pair.append(None if first is None else float(first))
    center, width = pair
    if center is None or width is None or not (math.isfinite(center) and 1 <= width < math.inf):
        return None
    function = str(source.get("VOILUTFunction") or "").strip().upper()
    return (center, width), function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
