"""The heat map: what glows is a finding, on the scale of its score."""

from __future__ import annotations

import dataclasses
import io
import time
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from unary.models.findings import FindingsConfig, find_candidates
from unary.outputs.detection_figures import plot_findings
from unary.outputs.figures import figure_png
from unary.outputs.heat_map import describe_count, place_findings, plot_overlay
from unary.records import Detection, Finding, OperatingPoint

LEVEL = 4.0


def find(rank: int, row: float, col: float, *, size: float = 3.0, score: float = 9.0) -> Finding:
    outline = ((row, col), (row, col + size), (row + size, col + size), (row + size, col))
    return Finding(rank, score, None, (0, 0, 1, 1), outline, (int(row), int(col)), 1, None, None)


def draw(
    heat: NDArray[Any], *, count: int, threshold: float | None = 5.0, findings: tuple[Finding, ...] = ()
) -> tuple[Figure, NDArray[np.float64], tuple[float, float]]:
    """The figure of the strongest candidates of a map; how opaque its colours are; and where the scale begins, ends."""
    labels = find_candidates(heat, LEVEL, FindingsConfig(merge_px=1.5), spacing_mm=None).labels
    glowing = (labels > 0) & (labels <= count)
    figure = plot_overlay(
        np.full(heat.shape, 800), heat, glowing=glowing, level=LEVEL, threshold=threshold, findings=findings
    )
    colours = figure.axes[0].get_images()[1]
    return figure, np.asarray(colours.get_alpha()), colours.get_clim()


def test_what_glows_is_a_finding_and_every_finding_glows() -> None:
    heat = np.zeros((60, 50), np.float32)
    heat[5:25, 5:25] = 4.9  # a large blob above the level, and no finding
    heat[40, 40] = 43.0
    heat[50:53, 10:13] = 6.0
    _, opacity, (low, high) = draw(heat, count=2)
    assert opacity[40, 40] > opacity[51, 11] > 0.3
    assert set(np.argwhere(opacity > 0).sum(axis=1).tolist()) == {80, *range(60, 65)}
    assert (opacity[5:25, 5:25] == 0).all()
    assert (low, high) == (LEVEL, 43.0)


def test_the_scale_holds_every_score_and_marks_the_threshold() -> None:
    heat = np.zeros((60, 50), np.float32)
    heat[40, 40] = 8.0
    figure, _, limits = draw(heat, count=1, findings=(find(1, 40, 40, score=43.0),))
    assert limits == (LEVEL, 43.0)
    bar = figure.axes[1]
    assert bar.get_ylim() == (LEVEL, 43.0)
    assert bar.get_title(loc="left") == "score"
    assert [line.get_ydata()[0] for line in bar.lines if len(set(line.get_ydata())) == 1] == [5.0]
    words = [text.get_text() for text in figure.texts]
    assert "\u2014 threshold 5" in words
    assert "1: 43" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("value", [3.9, 4.9, np.nan])
def test_nothing_glows_where_nothing_is_found(value: float) -> None:
    heat = np.full((60, 50), value, np.float32)
    figure, opacity, limits = draw(heat, count=0)
    assert (opacity == 0).all()
    assert limits == (LEVEL, 5.0)  # up to the threshold
    picture = np.asarray(PIL.Image.open(io.BytesIO(figure_png(figure))).convert("RGB")).astype(int)
    box = figure.axes[0].get_window_extent()
    scale = 150 / figure.dpi
    inside = picture[
        round(picture.shape[0] - box.y1 * scale) + 2 : round(picture.shape[0] - box.y0 * scale) - 2,
        round(box.x0 * scale) + 2 : round(box.x1 * scale) - 2,
    ]
    assert inside.size
    assert (np.ptp(inside, axis=2) == 0).all()


def test_a_model_without_thresholds_has_a_scale_without_one() -> None:
    heat = np.zeros((60, 50), np.float32)
    heat[40, 40] = 8.0
    figure, _, limits = draw(heat, count=1, threshold=None)
    assert limits == (LEVEL, 8.0)
    assert not [text for text in figure.texts if "threshold" in text.get_text()]


def test_a_single_hot_pixel_of_a_large_image_is_seen_in_its_place() -> None:
    pixels = np.full((3000, 2000), 800, np.uint16)
    heat = np.zeros(pixels.shape, np.float32)
    heat[2100, 500] = 9.0
    heat[:, 1990:] = np.nan
    figure = plot_overlay(pixels, heat, glowing=heat > 1, level=1.0)
    picture = np.asarray(PIL.Image.open(io.BytesIO(figure_png(figure))).convert("RGB")).astype(int)
    yellow = np.argwhere((picture[..., 0] > 150) & (picture[..., 2] < 100))
    box = figure.axes[0].get_window_extent()
    scale = 150 / figure.dpi
    inside = yellow[yellow[:, 1] < box.x1 * scale]
    assert len(inside) >= 1
    row, col = inside.mean(axis=0)
    top = picture.shape[0] - box.y1 * scale
    assert (row - top) / (box.height * scale) == pytest.approx(2100 / 3000, abs=0.003)
    assert (col - box.x0 * scale) / (box.width * scale) == pytest.approx(500 / 2000, abs=0.003)
    assert max(picture.shape) < 1400


def test_half_open_boxes_are_drawn_in_image_coordinates() -> None:
    dark = np.zeros((40, 30), bool)
    figure = plot_overlay(
        np.zeros((40, 30)), np.full((40, 30), np.nan), glowing=dark, level=0.0, boxes=[(10, 5, 20, 15)], title="$not$"
    )
    (box,) = (line.get_xydata().tolist() for line in figure.axes[0].lines)
    assert np.min(box, axis=0).tolist() == [4.5, 9.5]
    assert np.max(box, axis=0).tolist() == [14.5, 19.5]
    figure_png(figure)
    with pytest.raises(ValueError, match="one shape"):
        plot_overlay(np.zeros((4, 4)), np.zeros((4, 5)), glowing=dark, level=0.0)


def test_a_map_of_thirteen_megapixels_is_quick() -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (4084, 3328), dtype=np.uint16)
    start = time.process_time()
    figure_png(plot_overlay(pixels, pixels.astype(np.float32), glowing=pixels > 4000, level=4000.0))
    assert time.process_time() - start < 12


@pytest.mark.parametrize("shape", [(20, 20), (60, 900), (900, 60), (2500, 700)])
@pytest.mark.parametrize("with_scores", [False, True])
def test_no_word_is_cut_whatever_the_shape(shape: tuple[int, int], with_scores: bool) -> None:
    """Titles are broken into lines, and numbers at the border stand inside."""
    rows, cols = shape
    corners = [(0.0, 0.0), (0.0, cols - 1.0), (rows - 1.0, 0.0), (rows - 1.0, cols - 1.0), (rows / 2, cols - 3.0)]
    findings = [find(rank, *corner, size=0.0, score=1234.5) for rank, corner in enumerate(corners, 11)]
    title = "12 findings above the operating point 0.1 (score 12.3); 100 of 3,000 patches above patch_0.95 (dashed)"
    if with_scores:
        dark = np.zeros(shape, bool)
        figure = plot_overlay(
            np.ones(shape), np.ones(shape), glowing=dark, level=1.0, threshold=2.0, findings=findings, title=title
        )
    else:
        figure = plot_findings(np.ones(shape), findings, title=title)
    figure_png(figure)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    words = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text() and text.get_visible()]
    assert " ".join(figure.texts[-2].get_text().split()) == title or title in [
        " ".join(text.get_text().split()) for text in words
    ]
    image = figure.axes[0].get_window_extent()
    for text in words:
        box = text.get_window_extent(renderer)
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
        if text in figure.axes[0].texts and box.width <= image.width and box.height <= image.height:
            assert box.x0 >= image.x0 - 2
            assert box.x1 <= image.x1 + 2
            assert box.y0 >= image.y0 - 2
            assert box.y1 <= image.y1 + 2


def test_findings_lie_on_the_grid_that_the_detector_saw() -> None:
    (placed,) = place_findings([find(1, 11.5, 23.5, size=8.0)], (4.0, 2.0))
    assert placed.outline == ((2.5, 11.5), (2.5, 15.5), (4.5, 15.5), (4.5, 11.5))
    assert placed.score == 9.0


@pytest.mark.parametrize(
    ("count", "threshold", "words"),
    [
        (0, 9.07, "No finding above the operating point 1 (score 9.07)"),
        (1, 9.07, "1 finding above the operating point 1 (score 9.07)"),
        (8, 9.07, "8 findings above the operating point 1 (score 9.07)"),
        (8, None, "8 findings, whatever they score: the model is not calibrated"),
    ],
)
def test_the_heading_counts_what_is_shown(count: int, threshold: float | None, words: str) -> None:
    point = None if threshold is None else OperatingPoint("1", "finding", 1.0, threshold, 0.9, True, 0.5, 40)
    findings = tuple(find(rank, 1, 1) for rank in range(1, count + 1))
    assert describe_count(Detection(findings, np.zeros((2, 2), np.uint8), 9.0, None, point)) == words


def test_vascular_patterns_are_counted_in_the_heading_and_named_beside_their_outline() -> None:
    point = OperatingPoint("1", "finding", 1.0, 9.07, 0.9, True, 0.5, 40)
    vessel = dataclasses.replace(find(2, 8, 8, score=9.5), kind="vascular pattern")
    detection = Detection((find(1, 3, 3), vessel), np.zeros((2, 2), np.uint8), 9.5, None, point)
    assert describe_count(detection) == "2 findings (1 vascular pattern) above the operating point 1 (score 9.07)"
    detection = dataclasses.replace(detection, operating_point=None)
    assert describe_count(detection).startswith("2 findings (1 vascular pattern), whatever they score")
