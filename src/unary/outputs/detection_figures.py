"""Figures of detection: FROC curves, and the findings of one image beside its lesions.

As in `unary.outputs.figures`, every function returns a new matplotlib `Figure` drawn off screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.froc import FalseOn, FrocSummary, Outcomes, sensitivity_at_rates
from unary.outputs.figures import (
    FAINT,
    FIGURE_DPI,
    INK,
    OVERLAY_LONG_SIDE_PX,
    line_style,
    new_figure,
    plain_axes,
    reduce_mean,
)
from unary.records import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIGHEST_RATE = 4.0
_LOWEST_RATE = 0.02  # where a logarithmic axis begins
_SMALL_PX = 12.0  # on the figure: what is smaller gets a ring, or nobody would see it
_POINTS = 72 / FIGURE_DPI  # typographic points per pixel of the figure


@dataclass(frozen=True)
class _Look:
    name: str
    colour: str
    dash: Any
    ring: str


_LOOKS = {
    look.name: look
    for look in (
        _Look("finding", "#E69F00", "-", "o"),
        _Look("finding, hit", "#009E73", "-", "o"),
        _Look("finding, no hit", "#E69F00", (0, (6, 1)), "o"),
        _Look("lesion", "#56B4E9", (0, (4, 2)), "s"),
        _Look("lesion, found", "#56B4E9", (0, (4, 2)), "s"),
        _Look("lesion, missed", "#CC79A7", (0, (1.5, 1.2)), "D"),
    )
}


def plot_froc(
    runs: Mapping[str, Sequence[Outcomes]],
    *,
    summaries: Mapping[str, FrocSummary],
    on: FalseOn = "normal",
    logarithmic: bool = True,
    highest_rate: float = HIGHEST_RATE,
) -> Figure:
    """Draw FROC curves, with the 95 % intervals at the summarised rates.

    Parameters
    ----------
    runs
        By detector, one per fold or seed. One run gives the empirical curve, several give their mean sensitivity at
        each rate.
    summaries
        By detector, from `unary.evaluation.froc.summarise_froc`; their rates beyond the axis are left out. The legend
        prints the mean sensitivity over the rates.
    on
        Which images count false findings, as given to the summaries.
    logarithmic
        Whether rates are drawn on a logarithmic axis, from 0.02; else from 0.
    highest_rate
        Where the axis ends.

    Notes
    -----
    Intervals of several detectors stand a little beside each other, so that none hides another. A curve that ends
    before the axis goes on level: a detector that makes no further finding finds no further lesion.
    """
    lowest = _LOWEST_RATE if logarithmic else 0.0
    if not highest_rate > lowest:
        raise ValueError(f"the axis must end above {lowest}, got {highest_rate}")
    grid = (np.geomspace if logarithmic else np.linspace)(lowest, highest_rate, 2001)
    with new_figure(6.4, 4.6) as figure:
        axes = plain_axes(figure, left=0.75, bottom=0.68)
        for number, (name, outcomes) in enumerate(runs.items()):
            mean = np.mean([sensitivity_at_rates(run, rates=grid, on=on) for run in outcomes], axis=0)
            axes.step(
                grid, mean, where="post", linewidth=1.8, label=_describe(name, summaries[name]), **line_style(number)
            )
            shift = (number - (len(runs) - 1) / 2) / max(len(runs), 8)
            _draw_intervals(axes, summaries[name], number, shift=shift, logarithmic=logarithmic, highest=highest_rate)
        if logarithmic:
            axes.set_xscale("log")
            ticks = [rate for rate in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 10) if rate <= highest_rate]
            axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
            axes.minorticks_off()
        axes.set(xlim=(lowest, highest_rate), ylim=(0, 1.01))
        axes.set_xlabel(f"False findings per {'normal' if on == 'normal' else 'completely annotated'} image")
        axes.set_ylabel("Sensitivity, per lesion")
        axes.legend(loc="best", title="mean sensitivity [95 % interval]", title_fontsize=8.5, fontsize=8.5)
    return figure


def _describe(name: str, summary: FrocSummary) -> str:
    low, high = summary.mean.low, summary.mean.high
    between = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{name}  {summary.mean.value:.3f}{between}"


def _draw_intervals(
    axes: Axes, summary: FrocSummary, number: int, *, shift: float, logarithmic: bool, highest: float
) -> None:
    for rate, estimate in zip(summary.rates, summary.sensitivities, strict=True):
        if estimate.low is None or estimate.high is None or rate > highest or (logarithmic and rate < _LOWEST_RATE):
            continue
        place = rate * 1.25**shift if logarithmic else rate + 0.1 * shift
        colour = line_style(number)["color"]
        axes.plot([place, place], [estimate.low, estimate.high], color=colour, linewidth=1.1, solid_capstyle="butt")
        axes.plot([place], [estimate.value], color=colour, marker="o", markersize=3.5)


def plot_findings(
    pixels: NDArray[Any],
    findings: Sequence[Finding],
    *,
    lesions: Sequence[NDArray[np.floating[Any]]] = (),
    hits: Sequence[Sequence[int]] | None = None,
    title: str = "",
) -> Figure:
    """Draw the outlines of findings over their image, numbered by rank, and those of the lesions.

    Parameters
    ----------
    pixels
        Shape (rows, cols), any real dtype, brighter is denser.
    findings
        With coordinates in pixels of the image.
    lesions
        Closed polygons around the lesions, each of shape (k, 2), as (row, col): `Target.outline`.
    hits
        Per lesion, the ranks of the findings that hit it: `Match.hits`. Findings that hit and lesions that were found
        are then told from those that did not and were not, in colour, dash and legend. None draws all alike, as befits
        an image whose lesions are unknown.
    title
        Shown above; the image id, never a patient's.

    Notes
    -----
    The long side is reduced to about 1200 px by averaging blocks. What is too small to see is ringed.
    """
    if pixels.ndim != 2:
        raise ValueError(f"an image must have the shape (rows, cols), got {pixels.shape}")
    if hits is not None and len(hits) != len(lesions):
        raise ValueError(f"there must be hits for every lesion, got {len(hits)} for {len(lesions)}")
    rows, cols = pixels.shape
    factor = -(-max(rows, cols) // OVERLAY_LONG_SIDE_PX)
    grey = reduce_mean(pixels, factor)
    tissue = grey[grey > grey.min()]
    dark, bright = np.percentile(tissue if tissue.size else grey, [0.5, 99.8]).tolist()
    edge = (-0.5, grey.shape[1] * factor - 0.5, grey.shape[0] * factor - 0.5, -0.5)
    across, down = max(grey.shape[1] / FIGURE_DPI, 3.2), grey.shape[0] / FIGURE_DPI
    width, height = across + 0.1, down + 0.95
    right = {rank for ranks in hits or () for rank in ranks}
    with new_figure(width, height) as figure:
        axes = figure.add_axes((0.05 / width, 0.6 / height, across / width, down / height), xticks=[], yticks=[])
        axes.imshow(grey, cmap="gray", vmin=dark, vmax=max(bright, dark + 1e-6), extent=edge, interpolation="nearest")
        for place, polygon in enumerate(lesions):
            look = _LOOKS["lesion" if hits is None else "lesion, found" if hits[place] else "lesion, missed"]
            _draw_outline(axes, np.asarray(polygon, np.float64), factor, look=look)
        for finding in sorted(findings, key=lambda each: -each.rank):
            hit = finding.rank in right
            look = _LOOKS["finding" if hits is None else "finding, hit" if hit else "finding, no hit"]
            outline = np.asarray(finding.outline, np.float64)
            _draw_outline(axes, outline, factor, look=look)
            _write_rank(axes, finding.rank, outline, look.colour)
        axes.set(xlim=(-0.5, cols - 0.5), ylim=(rows - 0.5, -0.5))
        axes.spines[:].set_visible(False)
        figure.text(0.05 / width, 1 - 0.22 / height, title, fontsize=9, weight="bold", color=INK, parse_math=False)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if handles:
            names = sorted(handles)
            place_below = (0.0, 0.2 / height, 1.0, 0.35 / height)
            figure.legend(
                [handles[name] for name in names],
                names,
                loc="center",
                bbox_to_anchor=place_below,
                ncols=2,
                fontsize=7,
                labelcolor=FAINT,
            )
    return figure


def _draw_outline(axes: Axes, polygon: NDArray[np.float64], factor: int, *, look: _Look) -> None:
    closed = np.vstack([polygon, polygon[:1]])
    axes.plot(closed[:, 1], closed[:, 0], linewidth=1.1, label=look.name, color=look.colour, linestyle=look.dash)
    if float(np.ptp(polygon, axis=0).max()) / factor < _SMALL_PX:
        middle = polygon.mean(axis=0)
        size = 1.4 * _SMALL_PX * _POINTS
        axes.plot(
            middle[1:], middle[:1], look.ring, markersize=size, markerfacecolor="none", markeredgecolor=look.colour
        )


def _write_rank(axes: Axes, rank: int, polygon: NDArray[np.float64], colour: str) -> None:
    """The rank at the upper right of an outline, dark on its colour."""
    axes.annotate(
        str(rank),
        (float(polygon[:, 1].max()), float(polygon[:, 0].min())),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=6.5,
        color="#000000",
        annotation_clip=True,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"},
    )
