"""Figures of detection: FROC curves, findings of one image beside its lesions, an anomaly map on its image.

As in `unary.outputs.figures`, every function returns a new matplotlib `Figure` drawn off screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.froc import FalseOn, FrocSummary, Outcomes, sensitivity_at_rates
from unary.outputs.figures import (
    FAINT,
    FIGURE_DPI,
    add_colour_bar,
    find_factor,
    label_curve,
    line_style,
    new_figure,
    new_image_figure,
    plain_axes,
    reduce_maximum,
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


# colour, dash and ring
_LOOKS: dict[str, tuple[str, Any, str]] = {
    "finding": ("#E69F00", "-", "o"),
    "finding, hit": ("#009E73", "-", "o"),
    "finding, no hit": ("#E69F00", (0, (6, 1)), "o"),
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
    too small to see is ringed.
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
    frame = new_image_figure(pixels.shape, grey, shown, right=0.1, foot=0.6, title=title, least=3.2)
    with frame as (figure, axes, _):
        for place, polygon in enumerate(lesions):
            name = "lesion" if hits is None else "lesion, found" if hits[place] else "lesion, missed"
            _draw_outline(axes, np.asarray(polygon, np.float64), factor, name=name)
        for finding in sorted(findings, key=lambda each: -each.rank):
            hit = finding.rank in right
            name = "finding" if hits is None else "finding, hit" if hit else "finding, no hit"
            outline = np.asarray(finding.outline, np.float64)
            _draw_outline(axes, outline, factor, name=name)
            axes.annotate(  # at the upper right of the outline, dark on its colour
                str(finding.rank),
                (float(outline[:, 1].max()), float(outline[:, 0].min())),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=6.5,
                color="#000000",
                annotation_clip=True,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": _LOOKS[name][0], "edgecolor": "none"},
            )
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if handles:
            names, height = sorted(handles), figure.get_figheight()
            below = (0.0, 0.2 / height, 1.0, 0.35 / height)
            entries, look = [handles[name] for name in names], {"fontsize": 7, "labelcolor": FAINT}
            figure.legend(entries, names, loc="center", bbox_to_anchor=below, ncols=2, **look)
    return figure


def _draw_outline(axes: Axes, polygon: NDArray[np.float64], factor: int, *, name: str) -> None:
    colour, dash, ring = _LOOKS[name]
    closed = np.vstack([polygon, polygon[:1]])
    axes.plot(closed[:, 1], closed[:, 0], linewidth=1.1, label=name, color=colour, linestyle=dash)
    if float(np.ptp(polygon, axis=0).max()) / factor < _SMALL_PX:
        row, col = polygon.mean(axis=0)
        size = 1.4 * _SMALL_PX * _POINTS
        axes.plot([col], [row], ring, markersize=size, markerfacecolor="none", markeredgecolor=colour)


def plot_overlay(
    pixels: NDArray[Any],
    anomaly_map: NDArray[np.floating[Any]],
    *,
    limits: tuple[float, float] | None = None,
    boxes: Sequence[tuple[float, float, float, float]] = (),
    title: str = "",
) -> Figure:
    """Lay a translucent anomaly map over its image.

    Image and map are of one shape (rows, cols), the map NaN where nothing was scored. The colour begins at the first
    limit and is full at the second, by default the median and the 99.9th percentile of the map as shown; half-open
    boxes ``(r0, c0, r1, c1)`` are drawn as dashed frames. The title is the image id, never a patient's.
    Notes
    -----
    The long side is reduced by a whole factor to 1200 px or a little less: the image by the mean of each block,
    the map by its maximum, so that a hot speck of one pixel survives. The grey window spans the scored tissue.
    """
    if pixels.shape != anomaly_map.shape or pixels.ndim != 2:
        raise ValueError(f"image and map must have one shape (rows, cols), got {pixels.shape} and {anomaly_map.shape}")
    factor = find_factor(pixels.shape)
    grey = reduce_mean(pixels, factor)
    heat = np.asarray(reduce_maximum(anomaly_map, factor), np.float64)
    scored = np.isfinite(heat)
    low, high = limits or (tuple(np.percentile(heat[scored], [50, 99.9]).tolist()) if scored.any() else (0.0, 1.0))
    top = max(high, low + 1e-12)
    strength = np.nan_to_num(np.clip((heat - low) / (top - low), 0, 1), nan=0.0)
    shown = grey[scored] if scored.any() else grey
    with new_image_figure(pixels.shape, grey, shown, right=0.95, foot=0.3, title=title) as (figure, axes, extent):
        axes.imshow(
            np.where(scored, heat, low),
            cmap="autumn",
            vmin=low,
            vmax=top,
            alpha=0.75 * strength,
            extent=extent,
            interpolation="nearest",
        )
        axes.set_aspect("auto")
        for r0, c0, r1, c1 in boxes:
            frame_rows, frame_cols = np.array([r0, r0, r1, r1, r0]) - 0.5, np.array([c0, c1, c1, c0, c0]) - 0.5
            axes.plot(frame_cols, frame_rows, color="#FFFFFF", linewidth=1, linestyle=(0, (4, 2)))
        (width, height), down = figure.get_size_inches(), grey.shape[0] / FIGURE_DPI
        bar = ((width - 0.8) / width, 0.3 / height, 0.1 / width, 0.5 * down / height)
        add_colour_bar(figure, bar, colours="autumn", limits=(low, top), name="score")
    return figure
