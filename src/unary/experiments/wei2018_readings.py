"""The part of the paper's report that says where its figure comes from: both readings side by side, and the counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import ALL
from unary.experiments.common import draw_curves
from unary.experiments.wei2018 import PAPER_AUROC, PAPER_IMAGES, WHOLE_IMAGE, ExtractionResult, PaperResult, find_roles
from unary.experiments.wei2018_air import AIR, ANY_TISSUE, FULL, PARTS, SKIN, GridCount, name_parts
from unary.outputs.figures import figure_png
from unary.outputs.leads import describe_auroc, describe_means, join_words
from unary.outputs.part_figures import plot_air_share, plot_part_histogram
from unary.outputs.report import Cell, Picture, Section, Table
from unary.outputs.words import GROUP_TITLES

PAPER_COUNTS = {
    "negative_patches": 36013,
    "positive_patches": 321,
    "negative_images": PAPER_IMAGES[0],
    "positive_images": PAPER_IMAGES[1],
}
READING_TITLES = {WHOLE_IMAGE: "Patches of the whole image", "tissue": "Patches of tissue"}
_SHOWN = (ALL, "calcification", "mass")


def share_of_air(found: ExtractionResult) -> float:
    """Return the share of air among the negatives of a reading, in [0, 1]."""
    negative = find_roles(found.collection)["negative"]
    return float((name_parts(found.tissue[negative]) == AIR).mean())


def build_readings_section(result: PaperResult) -> Section:
    """Return both readings beside each other: areas, errors by part of the image, ROC, and the share of air."""
    pictures = [_plot_errors(found, READING_TITLES[name]) for name, found in result.readings.items()]
    pictures += [plot_curves(found, "patch", ALL, READING_TITLES[name]) for name, found in result.readings.items()]
    whole = result.readings[WHOLE_IMAGE]
    tables = [_tabulate_areas(result)]
    if share := _plot_share(whole):
        pictures.append(share)
    tables.append(_tabulate_parts(whole))
    return Section(
        "Where the paper's figure comes from",
        paragraphs=(
            'The paper says of its negatives: "the mixture of patches extracted from 67 BI-RADS 1 images". It does not '
            "say which patches of an image. Both readings were run, with the same network, splits, seeds and controls: "
            "every patch of the grid, air included, with intensities as stored; and patches of which at least half is "
            "tissue, with intensities scaled to the tissue of each image. The second is what the method is for.",
            f"Certain, by this run: the figures below, on the images at hand. {_describe_shift(whole)} "
            f"{_infer_reading(result)}",
        ),
        tables=tuple(tables),
        pictures=tuple(pictures),
    )


def _infer_reading(result: PaperResult) -> str:
    """What is concluded from the figures by patch and from the counts, which the paper does not state."""
    held = [
        READING_TITLES[name].lower()
        for name, found in result.readings.items()
        if (interval := found.metrics["wei2018"]["patch"][ALL]["auroc_ci95"]) is not None
        and interval[0] <= PAPER_AUROC <= interval[1]
    ]
    if len(held) != 1:
        which = "both readings hold" if held else "neither reading holds"
        return f"Nothing is inferred: the intervals of {which} the paper's {PAPER_AUROC}."
    return (
        f"Inference: that the paper took {held[0]}. It rests on the figure, which lies in the interval of this reading "
        "and not in that of the other, and on the number of negatives (next section). The paper states neither."
    )


def _describe_shift(whole: ExtractionResult) -> str:
    parts = whole.parts["patch"].get("wei2018", {})
    if AIR not in parts or ANY_TISSUE not in parts:
        return ""
    share = _held_share(whole)
    return (
        "An AUROC is a mean over pairs, so that against a mixture of negatives it is the mixture of the areas against "
        f"each kind: {100 * share:.1f} % of air at {parts[AIR].value:.3f} and the rest at "
        f"{parts[ANY_TISSUE].value:.3f} make {share * parts[AIR].value + (1 - share) * parts[ANY_TISSUE].value:.3f}. "
        "How much air is among the negatives sets the figure."
    )


def _tabulate_areas(result: PaperResult) -> Table:
    rows: list[tuple[Cell, ...]] = []
    columns = [(name, split) for name, found in result.readings.items() for split in found.runs]
    first = next(iter(result.readings.values()))
    for group in _SHOWN:
        for name in first.metrics:
            entries = [result.readings[reading].metrics[name][split].get(group) for reading, split in columns]
            if any(entries):
                told = (None if entry is None else describe_auroc(entry) for entry in entries)
                rows.append((GROUP_TITLES[group].lower(), name, *told))
    header = ("lesions", "score", *(f"{READING_TITLES[name]}, by {split}" for name, split in columns))
    count = len(first.runs["patch"])
    return Table(
        f"AUROC with 95 % interval, {describe_means(count)}; the paper prints {PAPER_AUROC}", header, tuple(rows)
    )


def _tabulate_parts(whole: ExtractionResult) -> Table:
    parts = (*PARTS, ANY_TISSUE)
    rows = [
        (name, split, *(_describe_part(of.get(part)) for part in parts))
        for split, by_name in whole.parts.items()
        for name, of in by_name.items()
    ]
    header = ("score", "held out by", *(f"against {part}" for part in parts))
    caption = (
        f"{READING_TITLES[WHOLE_IMAGE]}: AUROC of all lesions against one part of the negatives. Patches of {AIR} hold "
        f"no tissue, those of the {SKIN} some, those of {FULL} nothing else."
    )
    return Table(caption, header, tuple(rows))


def _describe_part(found: Estimate | None) -> str | None:
    if found is None:
        return None
    return f"{found.value:.3f}" + ("" if found.low is None else f" ({found.low:.3f} to {found.high:.3f})")


def _plot_errors(found: ExtractionResult, words: str) -> Picture:
    run = found.runs["patch"][0]
    positive, negative = run.table.roles(ALL)
    scores, named = run.table.scores["wei2018"], name_parts(found.tissue[run.kept])
    parts = {part: scores[negative & (named == part)] for part in PARTS}
    png = figure_png(plot_part_histogram(parts, scores[positive], label="Reconstruction error (RMSE, intensity units)"))
    return Picture(
        png,
        f"{words}: reconstruction errors, held out by patch, first seed (the paper's Fig. 2a)",
        "Histogram of reconstruction errors of positives, and of negatives by part of the image",
    )


def plot_curves(found: ExtractionResult, split: str, group: str, words: str) -> Picture:
    """Return the ROC curves of one reading."""
    areas = {name: splits[split][group] for name, splits in found.metrics.items()}
    png = draw_curves([run.table for run in found.runs[split]], areas, group)
    which = GROUP_TITLES[group].lower()
    caption = f"{words}: ROC, {which}, held out by {split}, {describe_means(len(found.runs[split]))} (Fig. 2b)"
    return Picture(png, caption, f"ROC curves of {which} by detector")


def _held_share(whole: ExtractionResult) -> float:
    """The share of air among the held-out negatives, the mean over seeds."""
    shares = []
    for run in whole.runs["patch"]:
        negative = run.table.roles(ALL)[1]
        shares.append(float((name_parts(whole.tissue[run.kept][negative]) == AIR).mean()))
    return float(np.mean(shares))


def _plot_share(whole: ExtractionResult) -> Picture | None:
    areas = {
        name: (of[ANY_TISSUE].value, of[AIR].value)
        for name, of in whole.parts["patch"].items()
        if AIR in of and ANY_TISSUE in of
    }
    if not areas:
        return None
    figure = plot_air_share(areas, share=_held_share(whole), published=PAPER_AUROC, published_by="the paper")
    caption = (
        f"{READING_TITLES[WHOLE_IMAGE]}: AUROC of all lesions against the share of air among the negatives, held out "
        f"by patch, {describe_means(len(whole.runs['patch']))}"
    )
    return Picture(figure_png(figure), caption, "AUROC by share of air, a line for each score")


def build_counts_section(result: PaperResult) -> Section:
    """Return how many negatives and positives each way of counting gives, beside the paper's numbers."""
    negatives = _tabulate_counts(result.grids, PAPER_COUNTS["negative_patches"], PAPER_IMAGES[0], "BI-RADS 1")
    positives = _tabulate_counts(result.positives, PAPER_COUNTS["positive_patches"], PAPER_IMAGES[1], "BI-RADS 5")
    size = result.readings[WHOLE_IMAGE].collection.patches.size_px
    return Section(
        "How the paper may have counted",
        paragraphs=(
            f"Patches are {size} x {size} px. The paper's {PAPER_COUNTS['negative_patches']:,} negatives of "
            f"{PAPER_IMAGES[0]} images are 537.5 an image; its {PAPER_COUNTS['positive_patches']} positives of "
            f"{PAPER_IMAGES[1]} images are 6.6 an image. Within a tenth of the first come, at as many images: "
            f"{_name_near(result.grids, PAPER_COUNTS['negative_patches'], PAPER_IMAGES[0])}. Within a fifth of the "
            f"second: {_name_near(result.positives, PAPER_COUNTS['positive_patches'], PAPER_IMAGES[1], within=0.2)}. "
            "How the paper cut either it does not say. Overlapping patches of nothing but tissue would be negatives "
            "like those of the reading by tissue.",
        ),
        tables=(negatives, positives),
    )


def _name_near(counts: Sequence[GridCount], paper: int, images: int, *, within: float = 0.1) -> str:
    """Name the ways of counting that come near the paper's number, brought to as many images."""
    near = [one.name for one in counts if one.images and abs(one.count / one.images * images / paper - 1) <= within]
    return join_words(near) if near else "none"


def _tabulate_counts(counts: Sequence[GridCount], paper: int, images: int, role: str) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (one.name, one.count, one.images, one.count / one.images, round(one.count / one.images * images))
        for one in counts
        if one.images
    ]
    rows.append(("the paper", paper, images, paper / images, paper))
    header = ("counted", "here", "images here", "an image", f"at {images} images")
    return Table(f"Of {role} images", header, tuple(rows))
