"""The heat map: an image with its findings in colour, on one scale with their scores.

What glows is a finding, and every finding glows: colour lies where the map exceeds the model's level within a finding,
and nowhere else. The scale begins at that level and ends at the strongest value shown, never below it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.models.examination import ScoredImage
from unary.outputs.detection_figures import draw_findings
from unary.outputs.figures import (
    INK,
    add_colour_bar,
    find_factor,
    new_image_figure,
    reduce_maximum,
    reduce_mean,
)
from unary.records import Detection, Finding, count_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]

_COLOURS = "autumn"
FAINTEST, STRONGEST = 0.35, 0.8  # opacity, at the level and at the end of the scale
_BAR = 1.15  # inches beside the image


def plot_heat_map(scored: ScoredImage, detection: Detection, *, heading: str, boxes: Sequence[Box] = ()) -> Figure:
    """Draw what a detection found, in colour and outlined, over the image as the detector saw it.

    The heading is of `head_picture`; boxes are of `plot_overlay`.
    """
    count, point = len(detection.findings), detection.operating_point
    return plot_overlay(
        scored.prepared.pixels,
        scored.anomaly_map,
        glowing=(scored.candidates.labels > 0) & (scored.candidates.labels <= count),
        level=scored.candidates.level,
        threshold=None if point is None else point.threshold,
        findings=place_findings(detection.findings, scored.prepared.scale),
        boxes=boxes,
        title=heading,
    )


def place_findings(findings: Sequence[Finding], scale: tuple[float, float]) -> list[Finding]:
    """Return findings with their outlines on the working grid, which has ``scale`` stored pixels per pixel."""
    return [
        dataclasses.replace(
            finding,
            outline=tuple(map(tuple, ((np.asarray(finding.outline) + 0.5) / np.asarray(scale) - 0.5).tolist())),
        )
        for finding in findings
    ]


def describe_count(detection: Detection) -> str:
    """Say in a heading how many findings there are, and above what."""
    point, count = detection.operating_point, len(detection.findings)
    vascular = sum(finding.kind == "vascular pattern" for finding in detection.findings)
    among = f" ({count_words(vascular, 'vascular pattern')})" if vascular else ""
    if point is None:
        return f"{count_words(count, 'finding')}{among}, whatever they score: the model is not calibrated"
    said = count_words(count, "finding") if count else "No finding"
    return f"{said}{among} above the operating point {point.name} (score {point.threshold:.3g})"


def head_picture(name: str, detection: Detection) -> str:
    """Return the heading of an image's picture: the name of its file, the score of the image, what was found."""
    return f"{name}, {say_image_score(detection.image_score)}. {describe_count(detection)}"


def say_image_score(score: float | None) -> str:
    """Return the score of an image in words."""
    return "not scored" if score is None else f"image score {score:.3g}"


def plot_overlay(
    pixels: NDArray[Any],
    anomaly_map: NDArray[np.floating[Any]],
    *,
    glowing: NDArray[np.bool_],
    level: float,
    threshold: float | None = None,
    findings: Sequence[Finding] = (),
    boxes: Sequence[Box] = (),
    title: str = "",
) -> Figure:
    """Lay the glowing part of an anomaly map over its image.

    Parameters
    ----------
    pixels, anomaly_map, glowing
        Of one shape (rows, cols): the image, its map, NaN where nothing was scored, and which pixels belong to a
        finding.
    level, threshold
        Where the scale begins; and the score that is marked on it, above which a region is a finding.
    findings
        In pixels of the image; outlined in the colour of their score, with rank and score. The scale ends at the
        strongest of their scores and of the values that glow.
    boxes
        Half-open, ``(r0, c0, r1, c1)``; dashed frames.
    title
        The image id or what was found, never a patient's.

    Notes
    -----
    The long side is reduced by a whole factor to 1200 px or a little less: the image by the mean of each block, the map
    by its maximum, so that a hot speck of one pixel survives. The grey window spans the scored tissue.
    """
    if len({pixels.shape, anomaly_map.shape, glowing.shape}) > 1 or pixels.ndim != 2:
        shapes = f"{pixels.shape}, {anomaly_map.shape} and {glowing.shape}"
        raise ValueError(f"image, map and what glows must have one shape (rows, cols), got {shapes}")
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    factor = find_factor(pixels.shape)
    grey = reduce_mean(pixels, factor)
    scored = np.isfinite(reduce_maximum(anomaly_map, factor))
    heat = np.asarray(reduce_maximum(np.where(glowing, anomaly_map, np.nan), factor), np.float64)
    shining = np.isfinite(heat)
    strongest = [float(heat[shining].max())] if shining.any() else []
    top = max([*strongest, *(finding.score for finding in findings), threshold or level])
    top = max(top, level + 1e-6 * max(abs(level), 1))
    strength = np.clip((np.where(shining, heat, level) - level) / (top - level), 0, 1)
    shown = grey[scored] if scored.any() else grey
    frame = new_image_figure(pixels.shape, grey, shown, right=_BAR, foot=0.3, title=title)
    with frame as (figure, axes, extent):
        axes.imshow(
            np.where(shining, heat, level),
            cmap=_COLOURS,
            vmin=level,
            vmax=top,
            alpha=np.where(shining, FAINTEST + (STRONGEST - FAINTEST) * strength, 0.0),
            extent=extent,
            interpolation="nearest",
        )
        for r0, c0, r1, c1 in boxes:
            frame_rows, frame_cols = np.array([r0, r0, r1, r1, r0]) - 0.5, np.array([c0, c1, c1, c0, c0]) - 0.5
            axes.plot(frame_cols, frame_rows, color="#FFFFFF", linewidth=1, linestyle=(0, (4, 2)))
        rise, colours = Normalize(level, top), colormaps[_COLOURS]
        draw_findings(axes, findings, pixels.shape, colours=lambda score: colours(float(rise(score))))
        width, height = figure.get_size_inches()
        tall = max(0.5 * axes.get_position().height, 0.6 / height)
        bar = ((width - _BAR + 0.15) / width, 0.5 / height, 0.1 / width, tall)
        scale = add_colour_bar(figure, bar, colours=_COLOURS, limits=(level, top), name="score", extend="neither")
        if threshold is not None and level <= threshold <= top:
            scale.axhline(threshold, color=INK, linewidth=1.5)
            figure.text(bar[0], 0.3 / height, f"\u2014 threshold {threshold:.3g}", fontsize=7, color=INK)
    return figure
