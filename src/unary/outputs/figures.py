"""The figures of the paper, redrawn, and what all figures are made with.

Every function returns a new matplotlib `Figure` drawn off screen and touches no state of matplotlib; `figure_png`
turns it into bytes. Positives are green and negatives blue, as in the paper, in shades that colour-blind readers can
tell apart (Okabe and Ito, 2008), and differ in more than colour.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.intervals import Estimate, Run
from unary.evaluation.roc import roc_curve
from unary.patches.preparation import FULL_SCALE
from unary.records import NOTICE, count_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_DPI = 150
OVERLAY_LONG_SIDE_PX = 1200
_LEAST_INCHES = 3.2  # of a figure's width: room for the notice
_TITLE_CHARACTER_PT = 5.9  # at most, on average, in bold of 9 points

_POSITIVE, _NEGATIVE = "#009E73", "#0072B2"
INK, FAINT = "#222222", "#767676"
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (9, 3)), (0, (3, 3)))
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def prepare_figures() -> None:
    """Import what figures are drawn with, which takes half a second, before the first is drawn."""
    with new_figure(1, 1):
        pass


def figure_png(figure: Figure, *, dpi: float = FIGURE_DPI) -> bytes:
    """Return the figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    fast = {"compress_level": 3}  # a fiftieth larger than the usual 6, in two thirds of the time
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs=fast)
    return buffer.getvalue()


def plot_reconstructions(
    patches: NDArray[Any],
    reconstructions: NDArray[Any],
    *,
    positive: NDArray[np.bool_],
    titles: Sequence[str] | None = None,
    errors: bool = False,
) -> Figure:
    """Show patches above their reconstructions, as figure 3 of the paper; with error maps below, as figure 1.

    Patches are of shape (n, rows, cols), float intensities in [0, 1], or uint16 with 65535 being intensity 1. Negatives
    are placed left, positives right. All error maps, input minus reconstruction, share one scale, symmetric about 0,
    that ends at the 99.5th percentile of the absolute error and is given in the colour bar.

    Each column has its own grey window, from the 1st to the 99th percentile of its input, which the reconstruction
    shares: what the reconstruction loses is then seen as lost and not as a change of window.
    """
    if not len(patches) == len(reconstructions) == len(positive) > 0:
        raise ValueError("there must be as many reconstructions and labels as patches, and at least one")
    inputs, outputs = _intensities(patches), _intensities(reconstructions)
    differences = inputs - outputs
    limit = max(float(np.percentile(np.abs(differences), 99.5)), 1e-6)
    names = ["Input", "Reconstruction", "Input minus\nreconstruction"][: 3 if errors else 2]
    order = np.argsort(np.asarray(positive), kind="stable")
    negatives = int(np.count_nonzero(~np.asarray(positive)))
    inches, left, right, bottom = 1.25, 1.1, 0.95 if errors else 0.15, 0.32
    starts = left + inches * np.arange(len(order))
    starts[negatives:] += 0.4 if 0 < negatives < len(order) else 0.0
    width, height = float(starts[-1]) + inches + right, bottom + inches * len(names) + 0.52
    with new_figure(width, height) as figure:
        for place, which in enumerate(order):
            low, high = np.percentile(inputs[which], [1, 99])
            for line, picture in enumerate((inputs[which], outputs[which], differences[which])[: len(names)]):
                base = bottom + inches * (len(names) - 1 - line)
                corner = (starts[place], base, 0.94 * inches, 0.94 * inches)
                colours, window = ("RdBu_r", (-limit, limit)) if line == 2 else ("gray", (low, high))
                axes = draw_picture(figure, corner, picture, window=window, colours=colours)
                if line == 0 and titles is not None:
                    axes.set_title(titles[which], fontsize=7.5, pad=3, color=FAINT, parse_math=False)
                if place == 0:
                    axes.set_ylabel(names[line], rotation=0, ha="right", va="center", labelpad=6)
        for part, name, colour in (
            (starts[:negatives], "Negative patches", _NEGATIVE),
            (starts[negatives:], "Positive patches", _POSITIVE),
        ):
            if len(part):
                centre = (part[0] + part[-1] + 0.94 * inches) / 2
                figure.text(centre / width, 1 - 0.2 / height, name, ha="center", weight="bold", color=colour)
        if errors:
            bar = ((width - right + 0.02) / width, bottom / height, 0.1 / width, 0.94 * inches / height)
            add_colour_bar(figure, bar, colours="RdBu_r", limits=(-limit, limit), ticks=(-limit, 0, limit))
    return figure


def plot_histogram(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    *,
    label: str = "Reconstruction error (RMSE)",
    threshold: float | None = None,
    unit: str = "patch",
) -> Figure:
    """Draw the densities of scores by class, as figure 2a of the paper.

    Scores are finite, of shape (n,); the label is of the horizontal axis, with the unit; the threshold is an operating
    point to mark; ``unit`` is what has a score, singular.

    Both classes share 40 bins. The axis ends at the 99.9th percentile; the few scores beyond it are counted in the
    axis label and in the densities' norm.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(positive, bool)
    low, high = float(values.min()), float(np.percentile(values, 99.9))
    if not high > low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, 41)
    beyond = int(np.count_nonzero(values > high))
    with new_figure(6.4, 3.9) as figure:
        axes = plain_axes(figure, left=0.75, bottom=0.68)
        for chosen, name, colour, hatch in (
            (~truth, "negative", _NEGATIVE, None),
            (truth, "positive", _POSITIVE, "////"),
        ):
            count = int(np.count_nonzero(chosen))
            if not count:
                continue
            densities = np.histogram(values[chosen], edges)[0] / (count * np.diff(edges))
            axes.stairs(densities, edges, fill=True, alpha=0.35, facecolor=colour, edgecolor=colour, hatch=hatch)
            axes.stairs(densities, edges, color=colour, linewidth=1.5, label=f"{name}, {count_words(count, unit)}")
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"threshold {threshold:.3g}")
        axes.set_xlim(low, high)
        axes.set_ylim(0, 1.22 * axes.dataLim.ymax)  # room for the legend
        axes.set_xlabel(label + (f"; beyond the right edge: {count_words(beyond, unit)}" if beyond else ""))
        axes.set_ylabel("Density")
        axes.legend(loc="upper right")
    return figure


def plot_roc(
    runs: Mapping[str, Sequence[Run]],
    *,
    estimates: Mapping[str, Estimate],
    each_seed: bool = True,
    unit: str = "patch",
) -> Figure:
    """Draw ROC curves, as figure 2b of the paper, with AUROC and 95 % interval in the legend.

    Of each detector, one run per seed: a single one gives the empirical curve, several give each seed's curve thin, if
    wanted (of many detectors they would hide each other), and bold their mean sensitivity at each false-positive rate.
    ``unit`` is what has a score, singular.
    """
    grid = np.linspace(0, 1, 1001)
    with new_figure(6.4, 5.6) as figure:
        axes = plain_axes(figure, left=0.75, bottom=0.68)
        axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1, zorder=1)
        for number, (name, seeds) in enumerate(runs.items()):
            curves = [roc_curve(run.scores, run.positive)[:2] for run in seeds]
            style = line_style(number)
            text = label_curve(name, estimates[name])
            if len(curves) == 1:
                axes.plot(*curves[0], linewidth=2, label=text, **style)
                continue
            for fpr, tpr in curves if each_seed else ():
                axes.plot(fpr, tpr, linewidth=0.7, alpha=0.35, color=style["color"])
            mean = np.mean([np.interp(grid, fpr, tpr) for fpr, tpr in curves], axis=0)
            mean[0] = 0.0
            axes.plot(grid, mean, linewidth=2, label=text, **style)
        axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
        axes.set_xlabel(f"False-positive rate (1 \u2212 specificity), per {unit}")
        axes.set_ylabel(f"Sensitivity, per {unit}")
        axes.legend(loc="lower right", title="AUROC [95 % interval]", title_fontsize=8.5, fontsize=8.5)
    return figure


def plot_losses(losses: Mapping[int, Sequence[float]], *, baselines: Mapping[str, float] | None = None) -> Figure:
    """Draw the training loss by epoch for each seed, over the errors of predictors that have learned nothing.

    Losses are mean squared errors per pixel, one per epoch; baselines are drawn level by name: a curve that does not
    fall below them has learned no structure.
    """
    with new_figure(6.4, 3.9) as figure:
        axes = plain_axes(figure, left=0.85, bottom=0.68)
        longest = max((len(values) for values in losses.values()), default=1)
        for name, value in (baselines or {}).items():
            axes.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                name,
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=FAINT,
            )
        for number, (seed, values) in enumerate(losses.items()):
            look = {**line_style(number), "linewidth": 1.4, "marker": "o" if len(values) == 1 else None}
            axes.plot(np.arange(1, len(values) + 1), values, label=f"seed {seed}", **look)
        axes.set_yscale("log")
        axes.set_xlim(1, max(longest, 2))
        axes.set_xlabel("Epoch")
        axes.set_ylabel("Mean squared error per pixel")
        if losses:
            axes.legend(loc="best", ncols=1 + len(losses) // 5, fontsize=8)
    return figure


@contextmanager
def new_image_figure(
    shape: tuple[int, ...],
    grey: NDArray[np.float32],
    shown: NDArray[np.float32],
    *,
    right: float,
    foot: float,
    title: str,
) -> Iterator[tuple[Figure, Axes, tuple[float, float, float, float]]]:
    """Give a figure, its axes in pixels of a whole image of a shape, and the extent of reduced ones in them.

    ``grey`` is the image, reduced, in a window over the values ``shown``. The margins ``right`` and ``foot`` are in
    inches. A small image is enlarged; the title is broken into lines, and so is never cut.
    """
    factor = find_factor(shape)
    dark, bright = np.percentile(shown, [0.5, 99.8]).tolist()
    rows, cols = grey.shape
    scale = max(1 / FIGURE_DPI, min(_LEAST_INCHES / rows, _LEAST_INCHES / cols))  # inches per reduced pixel
    across, down = cols * scale, rows * scale
    wide, tall = max(across, _LEAST_INCHES), max(down, 1.0)
    lines = textwrap.wrap(title, max(int(72 * (wide + right - 0.1) / _TITLE_CHARACTER_PT), 8))
    head = 0.2 + 0.15 * max(len(lines), 1)
    width, height = wide + right, round(tall + foot + head, 2)
    extent = (-0.5, cols * factor - 0.5, rows * factor - 0.5, -0.5)
    place = (0.05 + (wide - across) / 2, foot + (tall - down) / 2, across, down)
    with new_figure(width, height) as figure:
        axes = draw_picture(figure, place, grey, window=(dark, bright), extent=extent)
        yield figure, axes, extent
        axes.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))
        axes.set_aspect("auto")
        left, top, said = 0.05 / width, 1 - 0.08 / height, "\n".join(lines)
        figure.text(left, top, said, fontsize=9, weight="bold", va="top", parse_math=False)


def draw_picture(
    figure: Figure,
    place: tuple[float, float, float, float],
    picture: NDArray[Any],
    *,
    window: tuple[float, float],
    colours: str = "gray",
    extent: tuple[float, float, float, float] | None = None,
) -> Axes:
    """Draw a picture without ticks at (left, bottom, width, height) in inches, its colours between two values."""
    width, height = figure.get_size_inches()
    corner = (place[0] / width, place[1] / height, place[2] / width, place[3] / height)
    axes = figure.add_axes(corner, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    low, high = window
    axes.imshow(picture, cmap=colours, vmin=low, vmax=max(high, low + 1e-6), extent=extent, interpolation="nearest")
    return axes


def find_factor(shape: tuple[int, ...]) -> int:
    """Return by how much an image is reduced for a figure: its long side to at most `OVERLAY_LONG_SIDE_PX`."""
    return -(-max(shape) // OVERLAY_LONG_SIDE_PX)


def reduce_mean(pixels: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """Average blocks of ``factor`` x ``factor`` pixels; those at the far edges may be smaller. float32."""
    starts = [np.arange(0, length, factor) for length in pixels.shape]
    sums = np.add.reduceat(pixels, starts[0], axis=0, dtype=np.float32)
    sums = np.add.reduceat(sums, starts[1], axis=1)
    rows, cols = (np.diff(start, append=length) for start, length in zip(starts, pixels.shape, strict=True))
    return np.asarray(sums / np.outer(rows, cols).astype(np.float32), np.float32)


def reduce_maximum(values: NDArray[np.floating[Any]], factor: int) -> NDArray[np.floating[Any]]:
    """Return the maximum of blocks of ``factor`` x ``factor`` values, NaN only where a whole block is NaN."""
    starts = [np.arange(0, length, factor) for length in values.shape]
    largest: NDArray[np.floating[Any]] = np.fmax.reduceat(
        np.fmax.reduceat(values, starts[0], axis=0), starts[1], axis=1
    )
    return largest


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Give a figure of a size in inches, in one style while it is drawn, with the notice at its foot."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure
        figure.text(1 - 0.06 / width, 0.06 / height, NOTICE, ha="right", va="bottom", fontsize=6.5, color=FAINT)


def add_colour_bar(
    figure: Figure,
    place: tuple[float, float, float, float],
    *,
    colours: str,
    limits: tuple[float, float],
    ticks: Sequence[float] | None = None,
    name: str = "",
    extend: Literal["both", "neither"] = "both",
) -> Axes:
    """Add a bar of a colour scale at (left, bottom, width, height) of the figure, and return its axes.

    It shows whether the scale is cut at its limits: values may lie beyond ``"both"``, or beyond ``"neither"``.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(*limits), colours), cax=figure.add_axes(place), extend=extend, ticks=ticks
    )
    if ticks is not None:
        bar.ax.set_yticklabels([f"{tick:+.2g}".replace("-", "\u2212") if tick else "0" for tick in ticks])
    bar.ax.tick_params(labelsize=7.5)
    bar.ax.set_title(name, fontsize=7.5, loc="left")
    return bar.ax


def label_curve(name: str, estimate: Estimate) -> str:
    """Return a curve's entry in a legend: its name, and the figure of merit with its interval."""
    between = "" if estimate.interval is None else " [{:.3f}, {:.3f}]".format(*estimate.interval)
    return f"{name}  {estimate.value:.3f}{between}"


def line_style(number: int) -> dict[str, Any]:
    """Return colour and dashes of a figure's lines, from 0; none of the first 49 look alike."""
    return {
        "color": _CYCLE[number % len(_CYCLE)],
        "linestyle": _DASHES[(number + number // len(_CYCLE)) % len(_DASHES)],
    }


def plain_axes(figure: Figure, *, left: float, bottom: float) -> Axes:
    """Return one pair of axes with margins in inches."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - 0.2) / width, (height - bottom - 0.15) / height)
    )
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _intensities(patches: NDArray[Any]) -> NDArray[np.float32]:
    scale = np.float32(1 / FULL_SCALE if patches.dtype == np.uint16 else 1)
    return patches.astype(np.float32) * scale
