"""Figures of what the negatives are made of: what they draw is what they were given."""

from __future__ import annotations

import numpy as np
import pytest

from unary.outputs.figures import figure_png
from unary.outputs.part_figures import plot_air_share, plot_part_histogram


def heights(patch):
    values, _, baseline = patch.get_data()
    return values, np.broadcast_to(baseline, values.shape)


def test_parts_are_stacked_to_all_negatives_and_positives_stand_beside():
    rng = np.random.default_rng(0)
    parts = {"air": np.full(300, 1e-3), "skin line": rng.lognormal(-3, 0.3, 50), "tissue": rng.lognormal(-4, 0.3, 150)}
    positive = rng.lognormal(-3.5, 0.3, 40)
    figure = plot_part_histogram(parts, positive, label="error")
    (axes,) = figure.axes
    *stacked, line = axes.patches
    shares = [float((top - base).sum()) for top, base in map(heights, stacked)]
    assert shares == pytest.approx([60, 10, 30])
    assert float(heights(line)[0].sum()) == pytest.approx(100)
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told[0] == "negative, air: 300 patches"
    assert told[-1] == "positive: 40 patches"
    assert any(text.get_text() == "to 60 %" for text in axes.texts), "the bar that is cut says its height"
    assert figure_png(figure)


def test_a_part_without_scores_is_not_in_the_legend_and_leaves_the_others_their_looks():
    some = np.linspace(0.1, 0.2, 30)
    full = plot_part_histogram({"air": some, "tissue": some}, some, label="error")
    bare = plot_part_histogram({"air": np.empty(0), "tissue": some}, some, label="error")
    assert full.axes[0].patches[1].get_facecolor() == bare.axes[0].patches[1].get_facecolor()
    assert "air" not in " ".join(text.get_text() for text in bare.axes[0].get_legend().get_texts())


def test_the_area_is_a_line_from_no_air_to_air_alone():
    figure = plot_air_share(
        {"network": (0.5, 1.0), "filter": (0.65, 0.99)}, share=0.66, published=0.84, published_by="the paper"
    )
    (axes,) = figure.axes
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn["network"].get_ydata()) == [0.5, 1.0]
    assert list(drawn["filter"].get_ydata()) == [0.65, 0.99]
    levels = [line for line in axes.lines if str(line.get_label()).startswith("_")]
    assert any(list(line.get_ydata()) == [0.84, 0.84] for line in levels)
    assert any(np.allclose(line.get_xdata(), 66) for line in levels)
    assert {text.get_text() for text in axes.texts} == {"the paper: 0.84", "found here: 66 %"}
