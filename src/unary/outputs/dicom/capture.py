"""Findings drawn on the image as a DICOM Secondary Capture (PS3.3 A.8.1), for every viewer that shows pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from pydicom.dataset import Dataset

from unary.models.calibration import describe_guarantee
from unary.outputs.detection_figures import label_finding
from unary.outputs.dicom.header import (
    Case,
    count_findings,
    describe_domain,
    describe_model,
    describe_point,
    format_date,
    name_view,
    to_ascii,
)
from unary.outputs.dicom.presentation import find_table, read_window
from unary.outputs.dicom.source import find_side
from unary.records import NOTICE, Detection, Finding, Image, ModelIdentity

BANNER = "RESEARCH - NOT FOR DIAGNOSIS"
_NARROWEST = 512  # wide enough for the words
_HALVED_FROM = 1024
_ORANGE, _VIOLET, _BLACK, _RED, _WHITE = (230, 159, 0), (179, 157, 219), (0, 0, 0), (255, 80, 60), (235, 235, 235)
_MOST_LISTED = 8  # findings in the lines below the image


def build_capture(hd: Any, case: Case, image: Image) -> Dataset:
    """Build a colour picture of the image at half its resolution, with outlines, ranks, scores and the disclaimer.

    It states no pixel spacing: nothing is to be measured on it. See `draw_capture` for what is drawn. ``image`` holds
    the pixels of the source, as `unary.images.dicom.read_dicom` gives them.
    """
    source, detection, identity = case.stand_in, case.detection, case.run.identity
    body: Dataset = hd.sc.SCImage(
        pixel_array=draw_capture(render_gray(image, case.source), detection, identity, view=name_view(case.source)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=source.StudyInstanceUID,
        patient_orientation=("L", "F"),  # replaced below: highdicom takes one or two letters at most
        **case.list_arguments(),
    )
    body.PatientOrientation, side = list(source.PatientOrientation or []), find_side(source)
    if "Laterality" in body:
        del body.Laterality
    if side is None:
        body.Laterality = ""
    else:  # of the image, since the series holds both sides (PS3.3 C.7.3.1)
        body.ImageLaterality = side
    body.DateOfSecondaryCapture, body.TimeOfSecondaryCapture = format_date(case.moment)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    body.SourceImageSequence = [reference]
    body.ImageComments = to_ascii(f"{case.caption}. {NOTICE} {describe_point(detection.operating_point)}", 1024)
    lines = (describe_model(identity), describe_domain(detection))
    body.DerivationDescription = to_ascii(". ".join(line for line in lines if line), 1024)
    # Burned In Annotation speaks of the patient's identity, and none is added here.
    lossy = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
    for keyword in ("BurnedInAnnotation", *lossy):
        if keyword in source:
            body[keyword] = source[keyword]
    return body


def render_gray(image: Image, source: Dataset) -> NDArray[np.float32]:
    """Return the image as it is to be shown: shape (rows, cols), float32 in [0, 1], larger values bright.

    The window or table is the one that the file states, else the one of `find_window`.
    """
    values = image.pixels.astype(np.float32)
    inverted = source.get("PhotometricInterpretation") == "MONOCHROME1"
    if inverted:  # windows are stated for values before inversion
        np.subtract(np.float32(sum(image.value_range)), values, out=values)
    table = find_table(source, "VOILUTSequence")
    if table is not None:
        shown = _apply_table(values, table)
    else:
        (center, width), function = read_window(source) or (find_window(image, inverted=inverted), "LINEAR")
        shown = _apply_window(values, center, width, function)
    if inverted:
        np.subtract(1, shown, out=shown)
    return np.clip(shown, 0, 1, out=shown)


def find_window(image: Image, *, inverted: bool) -> tuple[float, float]:
    """Return a window (center, width) for an image that states none: from its dimmest to its 99.8th percentile.

    Taken over what is neither padding nor the value of the background, in values before the inversion of MONOCHROME1
    when ``inverted``.
    """
    inside = image.pixels > image.pixels.min()
    if image.padding is not None:
        inside &= ~image.padding
    chosen = image.pixels[inside] if inside.any() else image.pixels
    low, high = (float(value) for value in np.percentile(chosen, [0.5, 99.8]))
    if inverted:
        low, high = sum(image.value_range) - high, sum(image.value_range) - low
    width = max(high - low, 1.0) + 1
    return low + width / 2, width


def _apply_table(values: NDArray[np.float32], item: Dataset) -> NDArray[np.float32]:
    """Map values to 0 to 1 through a VOI table (PS3.3 C.11.2.1.1)."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    count = min(count or 2**16, len(table))
    index = np.clip(np.rint(values) - first, 0, count - 1).astype(np.int32)
    return np.asarray(table[index] / (2**bits - 1), np.float32)


def _apply_window(values: NDArray[np.float32], center: float, width: float, function: str) -> NDArray[np.float32]:
    """Map values to 0 to 1 (PS3.3 C.11.2.1.2 and C.11.2.1.3), in place."""
    if function == "SIGMOID":
        values -= np.float32(center)
        values *= np.float32(-4 / width)
        np.exp(np.clip(values, -60, 60, out=values), out=values)
        values += 1
        return np.reciprocal(values, out=values)
    if function != "LINEAR_EXACT":
        center, width = center - 0.5, max(width - 1, 1e-6)
    values -= np.float32(center)
    values /= np.float32(width)
    values += np.float32(0.5)
    return values


def draw_capture(
    gray: NDArray[np.float32], detection: Detection, identity: ModelIdentity, *, view: str = ""
) -> NDArray[np.uint8]:
    """Return a colour picture, shape (rows, cols, 3), uint8.

    Half as many rows and columns as the image ``gray``, in [0, 1], each pixel the mean of four; an image with fewer
    than 1024 columns stays as it is. Lines above it say that this is research, and what was found in which view, such
    as ``RCC``; the lines below it what the numbers mean: scores and p-values, the operating point and what it
    guarantees, how the image differs from the training images if it does, and the model. They hide nothing. Black is
    added to the right of an image that is too narrow for the words.
    """
    step = 2 if gray.shape[1] >= _HALVED_FROM else 1
    small = _halve(gray) if step == 2 else gray
    width = max(small.shape[1], _NARROWEST)
    size = max(12, min(small.shape[0], width) // 45)
    font, large = ImageFont.load_default(size), ImageFont.load_default(_fit(BANNER, width, 2 * size))
    title, explained = ": ".join(part for part in (view, count_findings(detection)) if part), explain_numbers(detection)
    lines = [line for text in explained for line in _wrap(to_ascii(text, 1000), font, width - size)]
    last = _wrap(_name_model(identity), font, width - size)
    heights = [
        _band_height(large, 1),
        _band_height(large, 1),
        _band_height(font, len(lines)),
        _band_height(font, len(last)),
    ]
    above = heights[0] + heights[1]
    canvas = np.zeros((small.shape[0] + sum(heights), width, 3), np.uint8)
    canvas[above : above + small.shape[0], : small.shape[1]] = np.rint(255 * small).astype(np.uint8)[..., None]
    picture = Picture.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for finding in reversed(detection.findings):  # the most abnormal on top
        _draw_outline(draw, finding, step=step, above=above, size=size)
    _draw_labels(draw, detection.findings, step=step, above=above, font=font)
    below = above + small.shape[0]
    _draw_band(draw, [BANNER], top=0, width=width, font=large, colour=_RED)
    _draw_band(draw, [title], top=heights[0], width=width, font=large, colour=_WHITE)
    _draw_band(draw, lines, top=below, width=width, font=font, colour=_WHITE)
    _draw_band(draw, last, top=below + heights[2], width=width, font=font, colour=_RED)
    return np.asarray(picture).copy()


def explain_numbers(detection: Detection) -> list[str]:
    """Say what the numbers of a picture mean, a sentence or two each: findings, image, operating point, domain."""
    point, lines = detection.operating_point, []
    shown = detection.findings[:_MOST_LISTED]
    if shown:
        listed = [f"{label_finding(each)}{_say_p(each.p_value)}" for each in shown]
        more = len(detection.findings) - len(shown)
        lines.append("Findings, rank: score (p). " + "; ".join(listed) + (f"; and {more} more" if more else ""))
    if detection.image_score is not None:
        lines.append(f"Highest score of the image: {detection.image_score:.3g}{_say_p(detection.image_p_value)}.")
        if detection.image_p_value is not None:
            lines[-1] += (
                " p is the fraction of normal images whose highest score is as high; no probability of disease."
            )
    if point is None:
        lines.append("Not calibrated: the strongest places are shown whatever they score; nothing is guaranteed.")
    else:
        lines.append(f"Operating point {point.name}, score above {point.threshold:.3g}. {describe_guarantee(point)}")
    domain = describe_domain(detection)
    return [*lines, domain] if domain else lines


def _say_p(p_value: float | None) -> str:
    return "" if p_value is None else f" (p={p_value:.2g})"


def _halve(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of two by two pixels; the last row or column of an odd size counts twice."""
    even = np.pad(gray, [(0, size % 2) for size in gray.shape], mode="edge")
    rows = even[::2] + even[1::2]
    return np.asarray((rows[:, ::2] + rows[:, 1::2]) / 4, np.float32)


def _draw_outline(draw: Any, finding: Finding, *, step: int, above: int, size: int) -> None:
    """An outline with a dark rim, so that it shows on white tissue too, and a ring around one that nobody would see."""
    loop = [*finding.outline, finding.outline[0]]
    path = [((col + 0.5) / step - 0.5, above + (row + 0.5) / step - 0.5) for row, col in loop]
    colour, line_px = _choose_colour(finding), max(1, size // 10)
    (r0, c0, r1, c1), ring = finding.box, 0.8 * size
    if max(r1 - r0, c1 - c0) / step < size / 2:
        row, col = above + (r0 + r1) / 2 / step, (c0 + c1) / 2 / step
        for fill, width in ((_BLACK, 3 * line_px), (colour, line_px)):
            around = ring + width / 2
            draw.ellipse((col - around, row - around, col + around, row + around), outline=fill, width=width)
    draw.line(path, fill=_BLACK, width=3 * line_px, joint="curve")
    draw.line(path, fill=colour, width=line_px, joint="curve")


def _choose_colour(finding: Finding) -> tuple[int, int, int]:
    return _VIOLET if finding.kind == "vascular pattern" else _ORANGE


def _draw_labels(draw: Any, findings: Sequence[Finding], *, step: int, above: int, font: Any) -> None:
    """Rank, score and the kind of a vessel at the upper right corner of each; what would hide another goes lower."""
    taken: list[tuple[float, float, float, float]] = []
    for finding in findings:
        text = label_finding(finding)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font, stroke_width=2)
        width, height = right - left, bottom - top
        x = min(finding.box[3] / step + font.size, draw.im.size[0] - width - 2)
        y = max(above + finding.box[0] / step - height, above)
        for _ in range(len(taken)):
            hidden = [
                each for each in taken if each[0] < x + width and x < each[2] and each[1] < y + height and y < each[3]
            ]
            if not hidden:
                break
            y = max(each[3] for each in hidden)
        taken.append((x, y, x + width, y + height))
        colour = _choose_colour(finding)
        draw.text((x - left, y - top), text, font=font, fill=colour, stroke_width=2, stroke_fill=_BLACK)


def _name_model(identity: ModelIdentity) -> str:
    return to_ascii(f"{NOTICE} unary {identity.version} {identity.detector}, model {identity.sha256[:12]}", 160)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Break a text into at most seven lines of ``width`` pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= 7 else [*lines[:6], lines[6] + " ..."]


def _fit(text: str, width: int, largest: int) -> int:
    """Return the largest font size at which a text fits into nine tenths of a width."""
    sizes = range(largest, 8, -1)
    return next((size for size in sizes if ImageFont.load_default(size).getlength(text) <= 0.9 * width), 8)


def _band_height(font: Any, lines: int) -> int:
    return int(lines * 1.4 * font.size + 4)


def _draw_band(
    draw: Any, lines: Sequence[str], *, top: int, width: int, font: Any, colour: tuple[int, int, int]
) -> None:
    """Lines on black, in the middle."""
    draw.rectangle((0, top, width, top + _band_height(font, len(lines)) - 1), fill=_BLACK)
    for number, line in enumerate(lines):
        place = (width / 2, top + 2 + (number + 0.5) * 1.4 * font.size)
        draw.text(place, line, font=font, fill=colour, anchor="mm")
