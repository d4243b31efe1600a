"""Figures: what they draw is what they were given."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from unary.evaluation.intervals import Estimate, Run
from unary.outputs.figures import (
    figure_png,
    plot_histogram,
    plot_losses,
    plot_reconstructions,
    plot_roc,
    reduce_maximum,
    reduce_mean,
)
from unary.outputs.heat_map import plot_overlay
from unary.records import NOTICE


def draw_run(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    truth = np.arange(200) < 20
    return Run(rng.normal(size=200) + truth, truth, np.arange(200) // 4)


def draw_all() -> dict[str, Figure]:
    rng = np.random.default_rng(0)
    patches = rng.random((5, 16, 16), dtype=np.float32)
    positive = np.array([True, False, True, False, False])
    run = draw_run(0)
    return {
        "reconstructions": plot_reconstructions(patches, patches * 0.5, positive=positive),
        "errors": plot_reconstructions(patches, patches * 0.5, positive=positive, titles=list("abcde"), errors=True),
        "histogram": plot_histogram(run.scores, run.positive, threshold=1.0),
        "roc": plot_roc({"a": [run], "b": [run, draw_run(1)]}, estimates=dict.fromkeys("ab", Estimate(0.7, 0.6, 0.8))),
        "losses": plot_losses({0: [3.0, 2.0, 1.0], 7: [3.0, 2.5, 2.0]}, baselines={"own mean": 2.2}),
        "overlay": plot_overlay(patches[0], patches[1], glowing=patches[1] > 0.5, level=0.5, boxes=[(2, 2, 9, 9)]),
    }


def test_every_figure_says_what_it_is_not_and_is_a_reproducible_png() -> None:
    before = dict(mpl.rcParams)
    first, again = draw_all(), draw_all()
    for name, figure in first.items():
        assert NOTICE in [text.get_text() for text in figure.texts], name
        png = figure_png(figure)
        assert png.startswith(b"\x89PNG")
        assert png == figure_png(again[name]), name
    assert dict(mpl.rcParams) == before


def test_negatives_stand_left_and_errors_share_one_symmetric_scale() -> None:
    rng = np.random.default_rng(1)
    patches = rng.random((4, 8, 8), dtype=np.float32)
    recovered = rng.random((4, 8, 8), dtype=np.float32)
    positive = np.array([True, False, True, False])
    figure = plot_reconstructions(patches, recovered, positive=positive, titles=list("pnqm"), errors=True)
    pictures = [axes for axes in figure.axes if axes.get_images()]
    assert len(pictures) == 12
    by_place = sorted(pictures, key=lambda axes: (round(axes.get_position().x0, 3), -axes.get_position().y0))
    for place, which in enumerate([1, 3, 0, 2]):
        top, middle, bottom = (axes.get_images()[0] for axes in by_place[3 * place : 3 * place + 3])
        np.testing.assert_array_equal(top.get_array(), patches[which])
        np.testing.assert_array_equal(middle.get_array(), recovered[which])
        np.testing.assert_array_equal(bottom.get_array(), patches[which] - recovered[which])
        assert top.get_clim() == middle.get_clim()
        low, high = bottom.get_clim()
        assert low == -high
        assert high == pytest.approx(np.percentile(np.abs(patches - recovered), 99.5))
    assert [axes.get_title() for axes in by_place[::3]] == list("nmpq")
    words = {text.get_text(): text.get_position()[0] for text in figure.texts}
    assert words["Negative patches"] < words["Positive patches"]


def test_stored_and_float_patches_look_alike() -> None:
    stored = np.random.default_rng(0).integers(0, 65536, (2, 8, 8), dtype=np.uint16)
    positive = np.array([False, True])
    one = plot_reconstructions(stored, stored // 2, positive=positive, errors=True)
    scale = np.float32(1 / 65535)
    other = plot_reconstructions(
        stored.astype(np.float32) * scale, (stored // 2).astype(np.float32) * scale, positive=positive, errors=True
    )
    assert figure_png(one) == figure_png(other)


@pytest.mark.parametrize("labels", [[True], [False], [True, True]])
def test_one_sided_and_constant_patches_can_be_drawn(labels: list[bool]) -> None:
    patches = np.full((len(labels), 4, 4), 0.3, np.float32)
    figure_png(plot_reconstructions(patches, patches, positive=np.array(labels), errors=True))
    with pytest.raises(ValueError, match="as many"):
        plot_reconstructions(patches, patches[:0], positive=np.array(labels))


def test_histogram_shows_densities() -> None:
    run = draw_run(3)
    axes = plot_histogram(run.scores, run.positive).axes[0]
    stairs = [patch.get_data() for patch in axes.patches]
    assert len(stairs) == 4
    for values, edges, _ in stairs:
        assert np.sum(values * np.diff(edges)) == pytest.approx(1, abs=0.06)  # but for scores beyond the edge
    assert "beyond the right edge: 1 patch" in axes.get_xlabel()
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["negative, 180 patches", "positive, 20 patches"]
    figure_png(plot_histogram(np.ones(5), np.array([True, False, False, False, False])))


def test_roc_draws_each_curve_and_prints_its_interval() -> None:
    runs = [draw_run(seed) for seed in range(3)]
    estimates = {"one": Estimate(0.7654, 0.7, 0.8), "many": Estimate(0.5, None, None)}
    axes = plot_roc({"one": runs[:1], "many": runs}, estimates=estimates).axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["one  0.765 [0.700, 0.800]", "many  0.500"]
    curves = [np.asarray(line.get_xydata()) for line in axes.lines]
    assert len(curves) == 1 + 1 + 3 + 1  # chance, one seed, three seeds, their mean
    for curve in curves:
        assert tuple(curve[0]) == (0, 0)
        assert tuple(curve[-1]) == (1, 1)
        assert (np.diff(curve, axis=0) >= 0).all()
    areas = [np.trapezoid(curve[:, 1], curve[:, 0]) for curve in curves]
    assert areas[-1] == pytest.approx(np.mean(areas[2:5]), abs=2e-3)


def test_losses_keep_every_epoch_and_name_the_baselines() -> None:
    axes = plot_losses({0: [3.0, 2.0, 1.0], 5: [4.0]}, baselines={"own mean": 2.2}).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["seed 0", "seed 5"]
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[1, 3], [2, 2], [3, 1]])
    assert "own mean" in [text.get_text() for text in axes.texts]
    figure_png(plot_losses({}))


@pytest.mark.parametrize(("shape", "factor"), [((7, 5), 2), ((8, 8), 4), ((3, 9), 5), ((1, 1), 3), ((6, 4), 1)])
def test_reductions_equal_loops_over_blocks(shape: tuple[int, int], factor: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, shape, dtype=np.uint16)
    values = np.where(rng.random(shape) < 0.3, np.nan, rng.normal(size=shape))
    means, largest = reduce_mean(pixels, factor), reduce_maximum(values, factor)
    for r in range(-(-shape[0] // factor)):
        for c in range(-(-shape[1] // factor)):
            block = slice(r * factor, (r + 1) * factor), slice(c * factor, (c + 1) * factor)
            assert means[r, c] == pytest.approx(pixels[block].astype(float).mean(), rel=1e-6)
            known = values[block][~np.isnan(values[block])]
            assert known.max() == largest[r, c] if known.size else np.isnan(largest[r, c])
