"""Figures of detection: what they draw is what they were given."""

from __future__ import annotations

import dataclasses
import io

import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from unary.evaluation.froc import ImageOutcome, sensitivity_at_rates, summarise_froc
from unary.outputs.detection_figures import label_finding, plot_findings, plot_froc
from unary.outputs.figures import figure_png
from unary.records import NOTICE, Finding


def draw_run(seed: int) -> list[ImageOutcome]:
    rng = np.random.default_rng(seed)
    healthy = [ImageOutcome(f"n{place}", True, True, tuple(rng.normal(size=5).tolist())) for place in range(12)]
    ill = [ImageOutcome(f"a{place}", False, True, (), (float(rng.normal(1.5)), None)) for place in range(8)]
    return healthy + ill


RUNS = {"fusion": [draw_run(0)], "laplacian": [draw_run(1), draw_run(2)]}
SUMMARIES = {name: summarise_froc(runs, rng=np.random.default_rng(0), resamples=200) for name, runs in RUNS.items()}


def find(rank: int, row: int, col: int, size: int) -> Finding:
    outline = ((row, col), (row, col + size), (row + size, col + size), (row + size, col))
    box = (row, col, row + size + 1, col + size + 1)
    return Finding(rank, 1.0 / rank, None, box, outline, (row, col), 1, None, None)


PIXELS = np.random.default_rng(0).integers(100, 4000, (300, 200), dtype=np.uint16)
FINDINGS = [find(1, 40, 50, 30), find(2, 200, 100, 3)]
LESIONS = [np.array([[35.0, 45], [35, 85], [75, 85], [75, 45]]), np.array([[150.0, 20], [150, 22], [152, 22]])]


def draw_all() -> dict[str, Figure]:
    return {
        "froc": plot_froc(RUNS, summaries=SUMMARIES),
        "linear": plot_froc(RUNS, summaries=SUMMARIES, logarithmic=False, highest_rate=3.0),
        "findings": plot_findings(PIXELS, FINDINGS, lesions=LESIONS, hits=[(1,), ()], title="image 1"),
        "unknown": plot_findings(PIXELS, FINDINGS),
        "nothing": plot_findings(np.full((8, 9), 3.0), ()),
    }


def legend_of(figure: Figure) -> list[str]:
    (legend,) = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [text.get_text() for text in legend.get_texts()]


def test_every_figure_says_what_it_is_not_and_is_a_reproducible_png() -> None:
    before = dict(mpl.rcParams)
    first, again = draw_all(), draw_all()
    for name, figure in first.items():
        assert NOTICE in [text.get_text() for text in figure.texts], name
        assert figure_png(figure) == figure_png(again[name]), name
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("logarithmic", [True, False])
def test_curves_intervals_and_legend_are_those_of_the_statistics(logarithmic: bool) -> None:
    figure = plot_froc(RUNS, summaries=SUMMARIES, logarithmic=logarithmic, highest_rate=1.5)
    (axes,) = figure.axes
    assert axes.get_xlim() == (0.02 if logarithmic else 0, 1.5)
    curves = {line.get_label().split("  ")[0]: line for line in axes.lines if not line.get_label().startswith("_")}
    for name, runs in RUNS.items():
        rates, drawn = curves[name].get_data()
        expected = np.mean([sensitivity_at_rates(run, rates=rates) for run in runs], axis=0)
        np.testing.assert_allclose(drawn, expected)
        mean = SUMMARIES[name].mean
        assert f"{name}  {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]" in legend_of(figure)
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_label().startswith("_")]
    shown = sorted(tuple(np.sort(line.get_ydata())) for line in bars)
    wanted = sorted(
        (estimate.low, estimate.high)
        for summary in SUMMARIES.values()
        for rate, estimate in zip(summary.rates, summary.sensitivities, strict=True)
        if rate <= 1.5
    )
    assert len(shown) == 6
    np.testing.assert_allclose(shown, wanted)


def test_summaries_without_intervals_are_drawn_without() -> None:
    few = [[ImageOutcome("n", True, True, (1.0,)), ImageOutcome("a", False, True, (), (2.0,))]]
    summary = summarise_froc(few, rng=np.random.default_rng(0))
    figure = plot_froc({"x": few}, summaries={"x": summary})
    assert legend_of(figure) == ["x  1.000"]
    figure_png(figure)
    with pytest.raises(ValueError, match="must end above"):
        plot_froc({"x": few}, summaries={"x": summary}, highest_rate=0.01)


def test_outlines_and_ranks_stand_where_they_were_found() -> None:
    figure = plot_findings(PIXELS, FINDINGS, lesions=LESIONS, hits=[(1,), ()], title="image 1")
    (axes,) = figure.axes
    assert legend_of(figure) == ["finding, hit", "finding, no hit", "lesion, found", "lesion, missed"]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    for name, polygon in (("finding, hit", FINDINGS[0].outline), ("lesion, missed", LESIONS[1])):
        closed = np.vstack([polygon, polygon[:1]])
        np.testing.assert_array_equal(np.transpose(lines[name].get_data()), closed[:, ::-1])
    assert len({line.get_color() for line in lines.values()}) == 4
    assert len({str(line.get_linestyle()) + str(line._unscaled_dash_pattern) for line in lines.values()}) == 4
    ranks = {text.get_text(): text.get_position() for text in axes.texts}
    assert set(ranks) == {"1", "2"}
    for rank, (right, top) in {"1": (80, 40), "2": (103, 200)}.items():  # beside the upper right corner
        assert 0 < ranks[rank][0] - right < 15
        assert 0 < top - ranks[rank][1] < 15
    rings = [line.get_data() for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(rings) == 2  # around the small finding and the small lesion
    assert "image 1" in [text.get_text() for text in figure.texts]


def test_outlines_are_seen_in_the_picture() -> None:
    plain, drawn = (
        np.asarray(PIL.Image.open(io.BytesIO(figure_png(plot_findings(np.full((300, 200), 7), found)))).convert("RGB"))
        for found in ((), FINDINGS[:1])
    )
    assert plain.shape == drawn.shape
    changed = np.argwhere((plain != drawn).any(axis=2)[: plain.shape[0] // 2])
    assert len(changed) > 100


def test_without_known_lesions_all_findings_look_alike() -> None:
    assert legend_of(plot_findings(PIXELS, FINDINGS)) == ["finding"]
    assert legend_of(plot_findings(PIXELS, FINDINGS, lesions=LESIONS)) == ["finding", "lesion"]
    assert plot_findings(PIXELS, ()).legends == []


def test_vascular_patterns_have_a_look_and_a_name_of_their_own() -> None:
    vessel = dataclasses.replace(FINDINGS[1], kind="vascular pattern")
    plain = plot_findings(PIXELS, (FINDINGS[0], vessel))
    assert legend_of(plain) == ["finding", "vascular pattern"]
    lines = [line for line in plain.axes[0].lines if line.get_label() in ("finding", "vascular pattern")]
    assert len({line.get_color() for line in lines}) == 2
    judged = plot_findings(PIXELS, (FINDINGS[0], vessel), lesions=LESIONS, hits=[(1,), (2,)])
    assert legend_of(judged) == ["finding, hit", "lesion, found", "vascular pattern, hit"]
    assert legend_of(plot_findings(PIXELS, (vessel,), lesions=LESIONS, hits=[(), ()]))[-1] == "vascular pattern"
    assert label_finding(vessel) == f"2: {vessel.score:.3g} vascular pattern"
    assert label_finding(FINDINGS[0]) == f"1: {FINDINGS[0].score:.3g}"


def test_misshapen_input_is_refused() -> None:
    with pytest.raises(ValueError, match="rows, cols"):
        plot_findings(np.zeros((3, 4, 3)), ())
    with pytest.raises(ValueError, match="hits for every lesion"):
        plot_findings(PIXELS, FINDINGS, lesions=LESIONS, hits=[()])
