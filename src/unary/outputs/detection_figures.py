"""Figures of detection: FROC curves, and findings of one image beside its lesions.

As in `unary.outputs.figures`, every function returns a new matplotlib `Figure` drawn off screen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.froc import FalseOn, FrocSummary, Outcomes, sensitivity_at_rates
from unary.outputs.figures import (
    FAINT,
    FIGURE_DPI,
    find_factor,
    label_curve,
    line_style,
    new_figure,
    new_image_figure,
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
_LABEL_PT, _LABEL_ALPHA = 6.5, 0.8


# colour, dash and ring
_LOOKS: dict[str, tuple[str, Any, str]] = {
    "finding": ("#E69F00", "-", "o"),
    "finding, hit": ("#009E73", "-", "o"),
    "finding, no hit": ("#E69F00", (0, (6, 1)), "o"),
    "vascular pattern": ("#B39DDB", (0, (5, 1, 1, 1)), "o"),
    "vascular pattern, hit": ("#009E73", (0, (5, 1, 1, 1)), "o"),
    "lesion": ("#56B4E9", (0, (4, 2)), "s"),
    "lesion, found": ("#56B4E9", (0, (4, 2)), "s"),
    "lesion, missed": ("#CC79A7", (0, (1.5, 1.2)), "D"),
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

    Of each detector, one run per fold or seed: one gives the empirical curve, several their mean sensitivity at each
    rate. Summaries are from `unary.evaluation.froc.summarise_froc`, of the same images ``on`` which false findings are
    counted; their rates beyond the axis are left out. A logarithmic axis begins at 0.02, another at 0.
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
            label = label_curve(name, summaries[name].mean)
            axes.step(grid, mean, where="post", linewidth=1.8, label=label, **line_style(number))
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

    Coordinates are in pixels of the image, of shape (rows, cols); lesions are closed polygons around them, each of
    shape (k, 2), as (row, col): `Target.outline`. ``hits`` are per lesion the ranks of the findings that hit it:
    `Match.hits`. Findings that hit and lesions that were found are then told from those that did not and were not, in
    colour, dash and legend. None draws all alike, as befits an image whose lesions are unknown.

    The title is the image id, never a patient's. The long side is reduced to about 1200 px by averaging blocks. What is
    too small to see is ringed. Vascular patterns have a dash of their own, and a colour unless they hit.
    """
    if pixels.ndim != 2:
        raise ValueError(f"an image must have the shape (rows, cols), got {pixels.shape}")
    if hits is not None and len(hits) != len(lesions):
        raise ValueError(f"there must be hits for every lesion, got {len(hits)} for {len(lesions)}")
    factor = find_factor(pixels.shape)
    grey = reduce_mean(pixels, factor)
    tissue = grey[grey > grey.min()]
    shown = tissue if tissue.size else grey
    right = {rank for ranks in hits or () for rank in ranks}
    frame = new_image_figure(pixels.shape, grey, shown, right=0.1, foot=0.6, title=title)
    with frame as (figure, axes, _):
        for place, polygon in enumerate(lesions):
            name = "lesion" if hits is None else "lesion, found" if hits[place] else "lesion, missed"
            _draw_outline(axes, np.asarray(polygon, np.float64), factor, name=name)
        draw_findings(axes, findings, pixels.shape, hits=None if hits is None else right)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if handles:
            names, height = sorted(handles), figure.get_figheight()
            below = (0.0, 0.2 / height, 1.0, 0.35 / height)
            entries, look = [handles[name] for name in names], {"fontsize": 7, "labelcolor": FAINT}
            figure.legend(entries, names, loc="center", bbox_to_anchor=below, ncols=2, **look)
    return figure


def draw_findings(
    axes: Axes,
    findings: Sequence[Finding],
    shape: tuple[int, ...],
    *,
    hits: Collection[int] | None = None,
    colours: Callable[[float], Any] | None = None,
) -> None:
    """Draw findings into the axes of an image of a shape, the first on top, each with its rank, always inside.

    ``hits`` are the ranks of those that are right; None draws all alike. With ``colours``, of scores, each is drawn in
    that of its score, which is written beside its rank.
    """
    points = 72 * axes.bbox.width / axes.figure.dpi / shape[1]  # typographic, per pixel of the image
    for finding in sorted(findings, key=lambda each: -each.rank):
        name = _name_look(finding, hits)
        outline = np.asarray(finding.outline, np.float64)
        colour = _LOOKS[name][0] if colours is None else colours(finding.score)
        _draw_outline(axes, outline, _POINTS / points, name=name, colour=colour)
        text = str(finding.rank) if colours is None else label_finding(finding)
        size = np.array([1.3 * _LABEL_PT, (0.65 * len(text) + 0.5) * _LABEL_PT]) / points
        wanted = np.array([outline[:, 0].min() - size[0] - 3 / points, outline[:, 1].max() + 3 / points])
        row, col = np.clip(wanted, 0, np.maximum(np.asarray(shape[:2]) - 1 - size, 0))
        axes.text(  # at the upper right of the outline, dark on its colour
            float(col + size[1] / 2),
            float(row + size[0] / 2),
            text,
            fontsize=_LABEL_PT,
            color="#000000",
            ha="center",
            va="center",
            zorder=1.5,  # below the outlines, which it may meet
            bbox={"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none", "alpha": _LABEL_ALPHA},
        )


def label_finding(finding: Finding) -> str:
    """Return rank and score as pictures write them beside a finding, and its kind where it is a vascular pattern."""
    kind = "" if finding.kind == "unusual region" else f" {finding.kind}"
    return f"{finding.rank}: {finding.score:.3g}{kind}"


def _name_look(finding: Finding, hits: Collection[int] | None) -> str:
    if finding.kind != "unusual region":
        return f"{finding.kind}, hit" if hits is not None and finding.rank in hits else finding.kind
    return "finding" if hits is None else "finding, hit" if finding.rank in hits else "finding, no hit"


def _draw_outline(axes: Axes, polygon: NDArray[np.float64], factor: float, *, name: str, colour: Any = None) -> None:
    own, dash, ring = _LOOKS[name]
    colour = own if colour is None else colour
    closed = np.vstack([polygon, polygon[:1]])
    axes.plot(closed[:, 1], closed[:, 0], linewidth=1.1, label=name, color=colour, linestyle=dash)
    if float(np.ptp(polygon, axis=0).max()) / factor < _SMALL_PX:
        row, col = polygon.mean(axis=0)
        size = 1.4 * _SMALL_PX * _POINTS
        axes.plot([col], [row], ring, markersize=size, markerfacecolor="none", markeredgecolor=colour)
