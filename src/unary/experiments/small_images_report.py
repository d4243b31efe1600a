"""The page and the figures of `unary.experiments.small_images`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.outputs.figures import figure_png, new_figure
from unary.outputs.leads import describe_means, describe_one_class, head_repetition
from unary.outputs.report import Cell, Picture, Report, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DETECTOR, MEAN = "wei2018", "mean"  # the network, and the group that averages over classes
_NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
_CONTROL_NAMES = {
    "mean_brightness": "Mean brightness",
    "standard_deviation": "Standard deviation",
    "mean_image": "Distance from the mean image",
}


def build_small_report(document: Mapping[str, Any], examples: NDArray[np.float32], *, epochs: int) -> Report:
    """Return the page for one data set: the content of its ``metrics.json``, and pictures.

    Examples are images and reconstructions by class, of shape (classes, 2, m, rows, cols, channels), in [0, 1] (clipped
    for display); the first half of m belongs to the learned class. ``epochs`` are those of the whole experiment.
    """
    meta, groups = document["meta"], document["detectors"][DETECTOR]
    kind, classes = _NAMES[meta["data"]], [name for name in groups if name != MEAN]
    controls = {name: found[MEAN]["auroc"] for name, found in document["detectors"].items() if name != DETECTOR}
    lead = describe_one_class(
        kind,
        {name: found["auroc_runs"] for name, found in groups.items()},
        controls,
        names={name: _CONTROL_NAMES[name].lower() for name in controls},
    )
    title = head_repetition(
        f"{kind}: one class against the rest",
        epochs=(meta["epochs"], epochs),
        runs=meta["runs"],
        instead="as chosen in docs/small_images.md",
    )
    results = Section(
        "Results",
        paragraphs=(
            "Each class in turn is the normal one. Every image of the official test split is scored by the root mean "
            "square error of its reconstruction; images of the nine other classes are the positives. The standard "
            "deviation is over runs with different seeds, not over images.",
        ),
        tables=(_tabulate(document),),
        pictures=(
            Picture(
                figure_png(_plot_areas(document["detectors"])),
                f"AUROC by class, {describe_means(meta['runs'])}: each run a dot, the mean a line; controls without a "
                "network beside it.",
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
                figure_png(_plot_examples(examples, classes)),
                "Images above their reconstructions; left the learned class, right other classes.",
                "Pairs of small images and their reconstructions, one row per class.",
            ),
        ),
    )
    return Report(
        title=title,
        lead=lead,
        sections=(results, shown),
        provenance=document["meta"],
    )


def _tabulate(document: Mapping[str, Any]) -> Table:
    detectors = document["detectors"]
    controls = [name for name in detectors if name != DETECTOR]
    header = ("Normal class", "AUROC", "sd over runs", "Average precision", "Sensitivity at 95 % specificity")
    rows: list[tuple[Cell, ...]] = []
    for name, found in detectors[DETECTOR].items():
        title, sensitivity = "Mean over classes" if name == MEAN else name, found["sensitivity_at_specificity"]["0.95"]
        own = (title, found["auroc"], found["auroc_sd"], found["average_precision"], sensitivity)
        rows.append((*own, *(detectors[control][name]["auroc"] for control in controls)))
    return Table(
        f"The autoencoder, {describe_means(document['meta']['runs'])}; in the last columns the AUROC of the controls.",
        (*header, *(_CONTROL_NAMES[name] for name in controls)),
        tuple(rows),
    )


def _plot_areas(detectors: Mapping[str, Any]) -> Figure:
    """Each run's AUROC by class, from that part of ``metrics.json``."""
    groups = list(detectors[DETECTOR])
    with new_figure(6.4, 0.32 * len(groups) + 1.1) as figure:
        axes = figure.add_axes((0.2, 0.17, 0.76, 0.72))
        for place, name in enumerate(groups):
            values = detectors[DETECTOR][name]["auroc_runs"]
            axes.plot(values, [place] * len(values), "o", color="#0072B2", alpha=0.45, markersize=4, zorder=3)
            axes.plot([np.mean(values)] * 2, [place - 0.32, place + 0.32], color="#222222", linewidth=1.6, zorder=4)
        for (control, title), marker in zip(_CONTROL_NAMES.items(), "x+v", strict=True):
            areas = [detectors[control][name]["auroc"] for name in groups]
            axes.plot(areas, range(len(groups)), marker, color="#767676", markersize=5, label=title)
        axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(groups)), groups)
        axes.invert_yaxis()
        axes.set_xlabel("AUROC")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.2, 1), ncols=3, fontsize=7.5, columnspacing=1.2, frameon=False)
        axes.grid(axis="x", color="#E6E6E6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _plot_examples(examples: NDArray[np.float32], names: Sequence[str]) -> Figure:
    """Images above their reconstructions, one row per class."""
    count, side = examples.shape[2], examples.shape[3]
    gap = 2
    tall = np.concatenate([*np.clip(examples, 0, 1).swapaxes(0, 1)], axis=2)  # (classes, m, 2 * rows, cols, channels)
    tiles = np.pad(tall, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1.0)
    classes, _, rows, cols, channels = tiles.shape
    whole = tiles.swapaxes(1, 2).reshape(classes * rows, count * cols, channels)
    whole = np.insert(whole, [count // 2 * cols] * (4 * gap), 1.0, axis=1)
    inches = whole.shape[1] / 60
    width, height = inches + 1.1, whole.shape[0] / 60 + 0.3
    with new_figure(width, height) as figure:
        axes = figure.add_axes((1.0 / width, 0.22 / height, inches / width, whole.shape[0] / 60 / height))
        axes.imshow(whole, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        step = 2 * side + gap
        axes.set_yticks([step * place + side for place in range(len(names))], names)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure
