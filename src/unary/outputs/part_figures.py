"""Figures of what the negatives are made of: errors by part of the image, and the area against the share of air."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.outputs.figures import FAINT, INK, line_style, new_figure, plain_axes
from unary.records import count_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 60
_POSITIVE = "#009E73"
_PART_LOOKS = (("#56B4E9", "...."), ("#E69F00", "////"), ("#0072B2", None), ("#CC79A7", "xxxx"))


def plot_part_histogram(
    parts: Mapping[str, NDArray[np.float64]], positive: NDArray[np.float64], *, label: str, unit: str = "patch"
) -> Figure:
    """Draw scores of the negatives, stacked by part of the image, and of the positives, as figure 2a of the paper.

    Scores are positive and finite, of shape (n,); the axis is logarithmic. Bars give the share of all negatives, or of
    all positives, that a bin holds, in percent; so heights of both classes compare, and parts add up to the negatives.
    A part without scores keeps its colour for others. ``label`` is of the horizontal axis.
    """
    negatives = np.concatenate([*parts.values(), np.empty(0)])
    everything = np.concatenate([negatives, positive])
    least = everything[everything > 0].min(initial=1.0)
    low, high = np.log10(max(least, 1e-6)), np.log10(max(everything.max(), least * 1.01))
    edges = np.logspace(low - 0.02, high + 0.02, _BINS + 1)
    with new_figure(6.4, 4.1) as figure:
        axes = plain_axes(figure, left=0.75, bottom=0.68)
        base = np.zeros(_BINS)
        for number, (name, scores) in enumerate(parts.items()):
            counts = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0]
            top = base + 100 * counts / max(len(negatives), 1)
            colour, hatch = _PART_LOOKS[number % len(_PART_LOOKS)]
            look: dict[str, Any] = {"facecolor": colour, "edgecolor": "white", "hatch": hatch, "linewidth": 0}
            text = f"negative, {name}: {count_words(len(scores), unit)}" if len(scores) else None
            axes.stairs(top, edges, baseline=base, fill=True, alpha=0.75, label=text, **look)
            base = top
        counts = np.histogram(np.clip(positive, edges[0], edges[-1]), edges)[0]
        shares = 100 * counts / max(len(positive), 1)
        told = f"positive: {count_words(len(positive), unit)}"
        axes.stairs(shares, edges, color=_POSITIVE, linewidth=2, label=told)
        axes.set_xscale("log")
        # One bar, of air, would flatten all else: the axis ends above the others, and that bar says its height.
        highest = float(base.max(initial=0))
        second = float(np.sort(np.concatenate([base, shares]))[-2])
        if highest > 2 * second > 0:
            axes.set_ylim(0, 1.5 * second)
            place = int(base.argmax())
            at = (float(np.sqrt(edges[place] * edges[place + 1])), 1.44 * second)
            axes.annotate(
                f"to {highest:.0f} %", at, xytext=(8, 0), textcoords="offset points", fontsize=8, va="top", color=INK
            )
        else:
            axes.set_ylim(0, 1.5 * max(highest, float(shares.max(initial=0)), 1e-6))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(label)
        axes.set_ylabel("Share of the class in a bin, %")
        axes.legend(loc="upper right", fontsize=8)
    return figure


def plot_air_share(
    areas: Mapping[str, tuple[float, float]], *, share: float, published: float, published_by: str
) -> Figure:
    """Draw the AUROC by the share of air among the negatives, a line for each score.

    ``areas`` are against negatives without and with nothing but air. Between them the area is linear, since it is a
    mean over pairs of a positive and a negative. ``share``, in [0, 1], is what was found; ``published`` an AUROC to
    compare with.
    """
    with new_figure(6.4, 4.4) as figure:
        axes = plain_axes(figure, left=0.75, bottom=0.68)
        axes.axhline(published, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        look: dict[str, Any] = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 8, "color": FAINT}
        axes.annotate(f"{published_by}: {published:g}", (0, published), **look)
        axes.axvline(100 * share, color=FAINT, linewidth=1)
        found = f"found here: {100 * share:.0f} %"
        axes.annotate(found, (100 * share, 0.02), xycoords=("data", "axes fraction"), **look)
        for number, (name, (without, only)) in enumerate(areas.items()):
            axes.plot([0, 100], [without, only], linewidth=2, label=name, **line_style(number))
        lowest = min([0.5, *(without for without, _ in areas.values())])
        axes.set(xlim=(0, 100), ylim=(lowest - 0.03, 1.01))
        axes.set_xlabel("Share of air among the negatives, %")
        axes.set_ylabel("AUROC, all lesions")
        axes.legend(loc="lower right", fontsize=8.5, bbox_to_anchor=(1.0, 0.08))
    return figure
