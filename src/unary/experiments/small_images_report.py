"""The page and the figures of `unary.experiments.small_images`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.outputs.figures import figure_png, new_figure
from unary.outputs.report import Cell, Picture, Report, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
_CONTROL_NAMES = {
    "mean_brightness": "Mean brightness",
    "standard_deviation": "Standard deviation",
    "mean_image": "Distance from the mean image",
}


def build_small_report(
    document: Mapping[str, Any], *, detector: str, mean: str, examples: NDArray[np.float32]
) -> Report:
    """Return the page for one data set.

    Parameters
    ----------
    document
        The content of ``metrics.json``.
    detector, mean
        Name of the learned detector and of the group that averages over classes.
    examples
        As for `plot_examples`.
    """
    kind, groups = NAMES[document["meta"]["data"]], document["detectors"][detector]
    controls = {name: found for name, found in document["detectors"].items() if name != detector}
    classes = [name for name in groups if name != mean]
    best, worst = (choose(classes, key=lambda name: groups[name]["auroc"]) for choose in (max, min))
    rivals = ", ".join(
        f"{_CONTROL_NAMES.get(name, name).lower()} alone {found[mean]['auroc']:.3f}" for name, found in controls.items()
    )
    lead = (
        f"{kind}, one class against the rest: learning from one class alone, the autoencoder tells its test images "
        f"from those of the other classes with a mean AUROC of {groups[mean]['auroc']:.3f}, where 0.5 is chance. "
        f"It does best with {best} ({groups[best]['auroc']:.3f}), worst with {worst} ({groups[worst]['auroc']:.3f}). "
        f"Without a network: {rivals}."
    )
    results = Section(
        "Results",
        paragraphs=(
            "Each class in turn is the normal one. Every image of the official test split is scored by the root mean "
            "square error of its reconstruction; images of the nine other classes are the positives. The standard "
            "deviation is over runs with different seeds, not over images.",
        ),
        tables=(_tabulate(document, detector, mean=mean),),
        pictures=(
            Picture(
                figure_png(plot_areas(document["detectors"], detector=detector, mean=mean)),
                "AUROC by class: each run a dot, the mean a line; controls without a network beside it.",
                "One row per class: dots for runs, a bar for their mean, grey marks for controls; chance is dashed.",
            ),
        ),
    )
    shown = Section(
        "Reconstructions",
        paragraphs=(
            "One network per row, the first run of each class. The first test images of the class it has learned stand "
            "on the left, the first of other classes on the right; below each image its reconstruction, brought back "
            "to the image's own brightness and contrast.",
        ),
        pictures=(
            Picture(
                figure_png(plot_examples(examples, classes)),
                "Images above their reconstructions; left the learned class, right other classes.",
                "Pairs of small images and their reconstructions, one row per class.",
            ),
        ),
    )
    return Report(
        title=f"{kind}: one class against the rest",
        lead=lead,
        sections=(results, shown),
        provenance=document["meta"],
    )


def _tabulate(document: Mapping[str, Any], detector: str, *, mean: str) -> Table:
    controls = [name for name in document["detectors"] if name != detector]
    header = ("Normal class", "AUROC", "sd over runs", "Average precision", "Sensitivity at 95 % specificity")
    rows: list[tuple[Cell, ...]] = []
    for name, found in document["detectors"][detector].items():
        own: tuple[Cell, ...] = (
            "Mean over classes" if name == mean else name,
            found["auroc"],
            found["auroc_sd"],
            found["average_precision"],
            found["sensitivity_at_specificity"]["0.95"],
        )
        rows.append((*own, *(document["detectors"][control][name]["auroc"] for control in controls)))
    return Table(
        f"The autoencoder, mean over {document['meta']['runs']} runs; in the last columns the AUROC of the controls.",
        (*header, *(_CONTROL_NAMES.get(name, name) for name in controls)),
        tuple(rows),
    )


def plot_areas(detectors: Mapping[str, Any], *, detector: str, mean: str) -> Figure:
    """Draw each run's AUROC by class; ``detectors`` is that part of ``metrics.json``, ``mean`` the averaging group."""
    groups = list(detectors[detector])
    with new_figure(6.4, 0.32 * len(groups) + 1.1) as figure:
        axes = figure.add_axes((0.2, 0.17, 0.76, 0.72))
        for place, name in enumerate(groups):
            values = detectors[detector][name]["auroc_runs"]
            axes.plot(values, [place] * len(values), "o", color="#0072B2", alpha=0.45, markersize=4, zorder=3)
            axes.plot([np.mean(values)] * 2, [place - 0.32, place + 0.32], color="#222222", linewidth=1.6, zorder=4)
        for control, marker in zip((name for name in detectors if name != detector), "x+v^", strict=False):
            areas = [detectors[control][name]["auroc"] for name in groups]
            title = _CONTROL_NAMES.get(control, control)
            axes.plot(areas, range(len(groups)), marker, color="#767676", markersize=5, label=title)
        axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(groups)), ["mean" if name == mean else name for name in groups])
        axes.invert_yaxis()
        axes.set_xlabel("AUROC")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.2, 1), ncols=3, fontsize=7.5, columnspacing=1.2, frameon=False)
        axes.grid(axis="x", color="#E6E6E6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_examples(examples: NDArray[np.float32], names: Sequence[str]) -> Figure:
    """Draw images above their reconstructions, one row per class.

    Parameters
    ----------
    examples
        Shape (classes, 2, m, rows, cols, channels), float32, intensities in [0, 1] (clipped for display): images and
        reconstructions; the first half of m belongs to the learned class.
    names
        Of the classes.
    """
    count, side = examples.shape[2], examples.shape[3]
    gap = 2
    rows = []
    for pair in np.clip(examples, 0, 1):
        tall = np.concatenate(list(pair), axis=1)  # (m, 2 * rows, cols, channels)
        tiles = np.pad(tall, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1.0)
        half = count // 2
        blank = np.ones((tiles.shape[1], 4 * gap, tiles.shape[3]), np.float32)
        rows.append(np.concatenate([*tiles[:half], blank, *tiles[half:]], axis=1))
    whole = np.concatenate(rows, axis=0)
    inches = whole.shape[1] / 60
    width, height = inches + 1.1, whole.shape[0] / 60 + 0.3
    with new_figure(width, height) as figure:
        axes = figure.add_axes((1.0 / width, 0.22 / height, inches / width, whole.shape[0] / 60 / height))
        shown = whole[..., 0] if whole.shape[2] == 1 else whole
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        step = 2 * side + gap
        axes.set_yticks([step * place + side for place in range(len(names))], names)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure
