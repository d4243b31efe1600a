"""Charts of scanners over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unary.evaluation.monitoring import FollowedChart, GuaranteeTest, MonthFigures
from unary.outputs.figures import FAINT, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_MOST_TICKS = 12


def plot_months(months: Sequence[MonthFigures], guarantee: GuaranteeTest | None) -> Figure:
    """Draw the share of images with a finding by month, with intervals, beside what is guaranteed."""
    with new_figure(7.0, 2.9) as figure:
        axes = plain_axes(figure, left=0.75, bottom=0.68)
        places = np.arange(len(months))
        axes.plot(places, [month.alarms.value for month in months], "o-", color=_BLUE, markersize=4)
        for place, month in zip(places, months, strict=True):
            if month.alarms.low is not None and month.alarms.high is not None:
                axes.plot([place, place], [month.alarms.low, month.alarms.high], color=_BLUE, linewidth=1)
        if guarantee is not None:
            axes.axhline(guarantee.bound, color=_GREEN, linestyle="--", linewidth=1, label="guaranteed, on average")
            axes.axhline(guarantee.tested, color=_ORANGE, linestyle=":", linewidth=1.3, label="tested")
            axes.legend(loc="best", fontsize=8)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("Images with a finding")
        _name_months(axes, places, [month.month for month in months])
    return figure


def plot_guarantee(found: GuaranteeTest) -> Figure:
    """Draw the capital of the bettor against the guarantee, on a logarithmic axis, and what it takes."""
    with new_figure(7.0, 2.6) as figure:
        axes = plain_axes(figure, left=0.75, bottom=0.68)
        places = np.arange(1, len(found.capital) + 1)
        axes.plot(places, np.maximum(found.capital, 1e-6), color=_BLUE, linewidth=1.4)
        axes.axhline(found.needed, color=_ORANGE, linestyle="--", linewidth=1, label="the guarantee is called broken")
        axes.set_yscale("log")
        axes.set_ylim(max(1e-6, 0.5 * float(found.capital.min())), 3 * max(found.needed, float(found.capital.max())))
        axes.set_xlabel("Study")
        axes.set_ylabel("Evidence")
        axes.legend(loc="best", fontsize=8)
    return figure


def plot_followed(found: FollowedChart, *, name: str) -> Figure:
    """Draw the values in their order, and below them the chart, or over them the interval of the constancy mode."""
    places = np.arange(1, len(found.values) + 1)
    tall = found.chart is not None
    with new_figure(7.0, 3.6 if tall else 2.4) as figure:
        height = figure.get_size_inches()[1]
        bottom = 0.68 if not tall else 1.95
        axes = figure.add_axes((0.75 / 7.0, bottom / height, 6.05 / 7.0, (height - bottom - 0.3) / height))
        axes.grid(color="#E6E6E6", linewidth=0.6)
        axes.plot(places, found.values, ".", color=_BLUE, markersize=3.5)
        axes.set_title(name, fontsize=8.5, loc="left", parse_math=False)
        if found.interval is not None:
            for bound in found.interval:
                axes.axhline(bound, color=_ORANGE, linestyle="--", linewidth=1)
        if found.chart is not None:
            axes.set_xticklabels([])
            below = figure.add_axes((0.75 / 7.0, 0.68 / height, 6.05 / 7.0, 1.1 / height), sharex=axes)
            below.grid(color="#E6E6E6", linewidth=0.6)
            below.plot(places, found.chart.up, color=_ORANGE, linewidth=1.2, label="higher")
            below.plot(places, found.chart.down, color=_GREEN, linewidth=1.2, linestyle="--", label="lower")
            below.axhline(found.chart.limit, color=FAINT, linewidth=1)
            for place, _ in found.chart.signals:
                below.axvline(place + 1, color="#CC79A7", linewidth=1)
            below.set_ylim(0, 1.4 * max(found.chart.limit, float(max(found.chart.up.max(), found.chart.down.max()))))
            below.set_ylabel("CUSUM", fontsize=8)
            below.legend(loc="upper left", fontsize=7, ncols=2)
            axes.tick_params(labelbottom=False)
            axes = below
        starts = [
            place for place in range(len(found.months)) if place == 0 or found.months[place - 1] != found.months[place]
        ]
        _name_months(axes, [place + 1 for place in starts], [found.months[place] for place in starts])
    return figure


def _name_months(axes: Axes, places: Sequence[int] | np.ndarray, names: Sequence[str]) -> None:
    step = -(-len(names) // _MOST_TICKS)
    axes.set_xticks(list(places)[::step], list(names)[::step], fontsize=7.5)
