"""Findings and anomaly maps as DICOM Segmentations (PS3.3 A.51), on the pixels of the source image.

A projection image has no frame of reference, so a segmentation must have its rows and columns: a coarser one cannot be
placed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from unary.outputs.dicom.header import Case, describe_point, to_ascii
from unary.outputs.dicom.report import ABNORMAL_STRUCTURE
from unary.records import NOTICE

# A segment takes a frame of the size of the image, a bit for each pixel: 1.7 MB for 14 megapixels.
MOST_SEGMENTS = 30
_FULL_SCALE = 255
_ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")


def build_segmentation(hd: Any, case: Case) -> Dataset | None:
    """Build a binary segmentation, one segment per finding, its number the finding's rank.

    None when no pixel belongs to a finding: a segmentation without segments is not allowed, and one empty segment would
    read as a finding; that nothing was found is said by the report. Of more than `MOST_SEGMENTS` findings the most
    abnormal are kept, and the description says so.
    """
    labels, findings = case.detection.labels, case.detection.findings
    kept = findings[:MOST_SEGMENTS]
    labels = np.where(labels <= len(kept), labels, 0).astype(np.uint8)
    if not labels.any():
        return None
    segments = []
    for finding in kept:
        p_value = "" if finding.p_value is None else f", p-value {finding.p_value:.4g}"
        text = f"{finding.kind.capitalize()}. Anomaly score {finding.score:.6g}{p_value}. {NOTICE}"
        name = f"Finding {finding.rank}"
        segments.append(_describe_segment(hd, case, finding.rank, name, part=name.lower(), text=text))
    return _assemble(
        hd,
        case,
        pixel_array=labels,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        content_label="FINDINGS",
        content_description=f"{NOTICE} {len(kept)} most abnormal of {len(findings)}."
        if len(kept) < len(findings)
        else f"{case.caption}. {NOTICE}",
    )


def build_heat_map(hd: Any, case: Case, anomaly_map: NDArray[np.float32]) -> Dataset:
    """Build a fractional segmentation that shows an anomaly map: shape (rows, cols) of the stored image, NaN outside.

    Stored value = round(255 (score - low) / (high - low)), where low is the map's smallest value and high its largest
    or, when that is larger, the threshold of the operating point: a map that stays below the threshold does not look
    hot. Both ends are written into the segment's description. What is outside (NaN) is 0. The standard has only
    PROBABILITY and OCCUPANCY to name the type; the values are neither, and must not be read as a probability.
    """
    point = case.detection.operating_point
    values, low, high = scale_map(anomaly_map, None if point is None else point.threshold)
    text = f"Anomaly map, no probability: score = {low:.7g} + value x {(high - low) / _FULL_SCALE:.7g}. {NOTICE}"
    return _assemble(
        hd,
        case,
        pixel_array=values.astype(np.float32)[None] / _FULL_SCALE,
        segmentation_type="FRACTIONAL",
        fractional_type="PROBABILITY",
        max_fractional_value=_FULL_SCALE,
        segment_descriptions=[_describe_segment(hd, case, 1, "Anomaly map", part="heat map segment", text=text)],
        content_label="ANOMALY_MAP",
        content_description=f"{NOTICE} No probability.",
        omit_empty_frames=False,
    )


def scale_map(anomaly_map: NDArray[np.float32], threshold: float | None) -> tuple[NDArray[np.uint8], float, float]:
    """Return a map in steps of 1/255 of its range, and the scores that 0 and 255 stand for; see `build_heat_map`.

    >>> values, low, high = scale_map(np.array([[np.nan, 1.0, 2.0]], np.float32), 5.0)
    >>> values.tolist(), low, high
    ([[0, 0, 64]], 1.0, 5.0)
    """
    inside = np.isfinite(anomaly_map)
    if not inside.any():
        return np.zeros(anomaly_map.shape, np.uint8), 0.0, 0.0
    low, high = float(anomaly_map[inside].min()), float(anomaly_map[inside].max())
    if threshold is not None and np.isfinite(threshold):
        high = max(high, threshold)
    if high == low:
        return np.zeros(anomaly_map.shape, np.uint8), low, high
    share = (np.where(inside, anomaly_map, low).astype(np.float64) - low) / (high - low)
    return np.rint(_FULL_SCALE * share).astype(np.uint8), low, high


def _describe_segment(hd: Any, case: Case, number: int, name: str, *, part: str, text: str) -> Any:
    """One item of the Segment Sequence (PS3.3 C.8.20.4); its tracking identifier is the report's for this finding."""
    identity, site = case.run.identity, case.run.codes.site
    algorithm = hd.AlgorithmIdentificationSequence(
        name=to_ascii(f"unary {identity.detector}", 64),
        family=_ARTIFICIAL_INTELLIGENCE,
        version=to_ascii(identity.version, 64),
        source="unary",
        parameters={
            "sha256": to_ascii(identity.sha256, 64),
            "point": describe_point(case.detection.operating_point),
        },
    )
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        tracking_uid=case.uid(part),
        tracking_id=name,
        segmented_property_category=ABNORMAL_STRUCTURE,
        segmented_property_type=ABNORMAL_STRUCTURE,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        anatomic_regions=None if site is None else [Code(*site)],
    )
    segment.SegmentDescription = to_ascii(text, 1024)
    return segment


def _assemble(hd: Any, case: Case, **arguments: Any) -> Dataset:
    source = case.stand_in
    body: Dataset = hd.seg.Segmentation(source_images=[source], **arguments, **case.list_arguments())
    if "FrameOfReferenceUID" not in source:  # then directions take the place of a position in space (PS3.3 C.7.6.1)
        body.PatientOrientation = source.PatientOrientation
    return body
