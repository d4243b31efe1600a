"""The page and the figures of `unary.experiments.image_level`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import ALL
from unary.experiments.common import describe_range, draw_curves
from unary.experiments.image_level import IMAGE, TURNED, ImageLevelResult
from unary.experiments.image_level_copies import NEAR, NEAR_PX
from unary.experiments.image_level_pictures import CONTROLS, PASSED, POOREST_PERCENTILE, TOGETHER
from unary.experiments.image_level_stages import (
    AS_FILES,
    ONE_BANDWIDTH,
    PARTS,
    SPLITS,
    WITHOUT_COPIES,
    WITHOUT_NEAR,
    Stage,
)
from unary.outputs.figures import add_colour_bar, draw_picture, figure_png, new_figure, plot_histogram
from unary.outputs.leads import describe_auroc, describe_means
from unary.outputs.picture_leads import PictureOutcome, describe_learned, describe_pictures
from unary.outputs.report import Cell, Picture, Report, Section, Table, build_results_section, write_report
from unary.patches.collection import read_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDES = {
    "brainmri": ("slices with a tumour", "slices without one"),
    "chestxray": ("films with pneumonia", "normal films"),
}
_STAGE_WORDS = {AS_FILES: "Files as they are", ONE_BANDWIDTH: "One bandwidth"}
_PART_WORDS = {"": "All test pictures", WITHOUT_COPIES: "Without copies", WITHOUT_NEAR: "Without near copies"}
_LEAD_STAGES = {
    AS_FILES: "With the files as they are",
    ONE_BANDWIDTH: "With all pictures at one resolution and bandwidth",
}
_MEANINGS = {
    "image_size": "A control: the number of pixels of the file. At one bandwidth all pictures are of one size.",
    "mean_brightness": "A control: the mean of the picture's pixels, as stored, from black (0) to white (1).",
    "standard_deviation": "A control: the standard deviation of the picture's pixels.",
    "high_frequency": "A control: the share of the contrast that is finer than a quarter of the sampling frequency.",
    "file_bytes": "A control: the bytes of the file; at one bandwidth, of the picture as a PNG.",
    TOGETHER: (
        "A control: how far the five controls, together, lie from those of the training pictures (Mahalanobis "
        "distance). It learns from normal pictures as a detector does, and never sees what a picture shows."
    ),
    "wei2018": (
        "The paper's autoencoder with the whole picture as one patch; the score is the root mean square error of the "
        "reconstruction."
    ),
    "fusion_unlearned": "What looks for specks in mammograms, without its trained part; it has no business here.",
}
_INCHES, _GAP, _LABEL, _BAR, _HEAD, _FOOT = 0.92, 0.05, 0.85, 0.75, 0.4, 0.25


def describe_image_level(result: ImageLevelResult) -> Iterator[str]:
    """Yield the outcome as lines for a terminal: AUROC with interval per split and detector, then the lead."""
    for split in [split for split in SPLITS if split in result.tables]:
        for name, found in result.metrics.items():
            yield f"{split:34s} {name:20s} AUROC {describe_auroc(found[split][IMAGE])}"
    yield _lead(result)


def write_image_level_report(result: ImageLevelResult, path: Path) -> None:
    """Write ``report.html``."""
    meta = result.meta
    report = Report(
        title=result.data.title,
        lead=_lead(result),
        banners=tuple(meta["banners"]),
        notices=(*meta["remarks"], *meta["notices"], *result.failures.values(), *meta["skipped"]),
        sections=tuple(_sections(result)),
        provenance={
            key: meta[key]
            for key in ("command", "versions", "data_hash", "config", "counts", "common_bandwidth_cycles", "detectors")
        },
    )
    write_report(report, path)


def _sections(result: ImageLevelResult) -> Iterator[Section]:
    yield _results_section(result)
    if result.data.published:
        yield _published_section(result)
    yield _differences_section(result)
    yield _curves_section(result)
    yield _maps_section(result)
    yield _pictures_section(result)
    yield from _all_figures(result)
    header = ("Detector", "What it is", "Seconds to fit", "Seconds per picture", "Fitted numbers")
    keys = ("summary", "fit_seconds", "score_seconds_per_image", "parameters")
    rows = tuple((name, *(facts.get(key) for key in keys)) for name, facts in result.meta["detectors"].items())
    yield Section("Costs", tables=(Table("On this machine, means over runs", header, rows),))


def _lead(result: ImageLevelResult) -> str:
    outcomes: list[PictureOutcome] = []
    for split in _lead_splits(result):
        stage, part = _divide(split)
        name, area = find_best_control(result, split)
        words = _LEAD_STAGES[stage] + (f", and {_PART_WORDS[part].lower()}" if part else "")
        found = result.metrics[result.subject][split][IMAGE]
        if outcomes:
            words += f" ({found['n_positive']:,} against {found['n_negative']:,})"
        outcomes.append(PictureOutcome(words, found, _name_control(name), area, result.differences[split][name]))
    best = max(result.data.published, key=lambda one: one.auroc, default=None)
    files = result.stages[AS_FILES]
    sides = [files.copies.near_learned[role] for role in (~files.positive, files.positive)]
    negative, positive = ((int(one.sum()), len(one)) for one in sides)
    learned = describe_learned(negative, positive, nothing_new=ONE_BANDWIDTH + WITHOUT_NEAR not in result.tables)
    lead = describe_pictures(
        result.subject,
        outcomes,
        what=_SIDES[result.data.name],
        unit="patient" if result.data.has_patients else "distinct picture",
        published=None if best is None else (best.method, best.auroc),
    )
    return f"{lead} {learned}".strip()


def _lead_splits(result: ImageLevelResult) -> tuple[str, str]:
    """The two that matter most: all test pictures as files, and the strictest there is."""
    strictest = next(part for part in PARTS[::-1] if ONE_BANDWIDTH + part in result.tables)
    return AS_FILES, ONE_BANDWIDTH + strictest


def _divide(split: str) -> tuple[str, str]:
    stage = AS_FILES if split.startswith(AS_FILES) else ONE_BANDWIDTH
    return stage, split.removeprefix(stage)


def _name_split(split: str) -> str:
    stage, part = _divide(split)
    return _STAGE_WORDS[stage] + (f", {_PART_WORDS[part].lower()}" if part else "")


def find_best_control(result: ImageLevelResult, split: str) -> tuple[str, float]:
    """Return the control with the highest AUROC in its better direction, as `ImageLevelResult.differences` calls it."""
    areas = {}
    for name in (*CONTROLS, TOGETHER):
        area = result.metrics[name][split][IMAGE]["auroc"]
        areas[name + TURNED if area < 0.5 else name] = max(area, 1 - area)
    best = max(areas, key=lambda name: areas[name])
    return best, areas[best]


def _name_control(name: str) -> str:
    plain = name.removesuffix(TURNED).replace("_", " ")
    return f"{plain} turned over" if name.endswith(TURNED) else plain


def _bounded(found: Mapping[str, Any]) -> str:
    between = found["auroc_ci95"]
    return f"{found['auroc']:.3f}" + ("" if between is None else " [{:.3f}, {:.3f}]".format(*between))


def _results_section(result: ImageLevelResult) -> Section:
    counts = result.meta["counts"]
    drawn = "patients" if result.data.has_patients else "distinct pictures, for patients are not known"
    runs = describe_means(len(result.config.seeds))
    total = counts["test_negative"] + counts["test_positive"]
    meanings = {row.name: f"{row.contender.describe()}." for row in result.rows} | _MEANINGS

    def show(name: str, split: str) -> str:
        return _bounded(result.metrics[name][split][IMAGE])

    return Section(
        "Results",
        paragraphs=(
            f"AUROC of whole pictures, {runs} with different seeds: how often an abnormal picture outscores a normal "
            f"one; 0.5 is chance. In brackets a 95 % interval over {drawn}. Controls are never turned over in these "
            "tables: one below 0.5 is worth its distance from it.",
            "Copies are test pictures whose files are, byte for byte, training pictures "
            f"({counts['test_copies_of_training']:,}, of them {counts['test_negative_copies_of_training']:,} normal) "
            f"or another test picture ({counts['test_copies_of_test']:,}); without them, "
            f"{counts['test_without_copies']:,} of {total:,} are left. Near copies are test pictures that correlate "
            f"above {NEAR:g}, at {NEAR_PX} x "
            f"{NEAR_PX} pixels, with a training picture ({counts['test_near_copies_of_training']:,}, "
            f"{counts['test_negative_near_copies_of_training']:,} of them normal) or another test picture "
            f"({counts['test_near_copies_of_test']:,}), as they are, or cropped to what they show, or mirrored: the "
            "same picture encoded anew, with another margin or contrast, or the next one. Without them, "
            f"{counts['test_without_near_copies']:,} are left. Where copies are on one side alone, they make normal "
            "pictures easy, and every figure that counts them too high.",
        ),
        tables=tuple(_tabulate(result, show, list(result.metrics), "AUROC. Detectors, then controls.")),
        terms=tuple((name, meanings[name]) for name in result.metrics if name in meanings),
    )


def _tabulate(
    result: ImageLevelResult, show: Callable[[str, str], str], names: Sequence[str], caption: str
) -> Iterator[Table]:
    """A table per stage, of the splits that there are."""
    for stage, words in _STAGE_WORDS.items():
        parts = [part for part in PARTS if stage + part in result.tables]
        rows = tuple((name, *(show(name, stage + part) for part in parts)) for name in names)
        yield Table(f"{words}: {caption}", ("", *(_PART_WORDS[part] for part in parts)), rows)


def _published_section(result: ImageLevelResult) -> Section:
    rows: list[tuple[Cell, ...]] = [(one.method, one.auroc, None, "published") for one in result.data.published]
    detectors = [row.name for row in result.rows if row.name in result.metrics]
    for name in detectors:
        found = result.metrics[name][AS_FILES][IMAGE]
        between = found["auroc_ci95"]
        rows.append((name, found["auroc"], between and "{:.3f} to {:.3f}".format(*between), "here"))
    ordered = tuple(sorted(rows, key=lambda row: -float(str(row[1]))))
    return Section(
        "Beside published figures",
        paragraphs=(
            f"The same pictures in the same split, with the files as they are and copies counted, as published. "
            f"Published figures: {result.data.source}",
        ),
        tables=(Table("Image AUROC.", ("Method", "AUROC", "95 % interval", ""), ordered),),
    )


def _differences_section(result: ImageLevelResult) -> Section:
    names = list(dict.fromkeys(name.removesuffix(TURNED) for name in result.differences[AS_FILES]))

    def show(name: str, split: str) -> str:
        return _describe_difference(result.differences[split], name)

    return Section(
        f"Is {result.subject} better than what it is set beside?",
        paragraphs=(
            f"AUROC of {result.subject} minus that of each other, on the same pictures with the same draws: above 0 "
            f"where {result.subject} is ahead. An interval that holds 0 does not settle which is better. Here a "
            "control that lies below 0.5 is turned over; that was read off the test set, to its advantage.",
        ),
        tables=tuple(_tabulate(result, show, names, f"AUROC of {result.subject} minus that of each other, paired.")),
    )


def _describe_difference(differences: Mapping[str, Estimate | None], name: str) -> str:
    turned = name + TURNED in differences
    found = differences[name + TURNED if turned else name]
    if found is None:
        return "no interval"
    return f"{found.value:+.3f} [{describe_range(found) or 'no interval'}]" + (", turned over" if turned else "")


def _curves_section(result: ImageLevelResult) -> Section:
    pictures = []
    detectors = [row.name for row in result.rows if row.name in result.metrics]
    for split in _lead_splits(result):
        found = {name: result.metrics[name][split][IMAGE] for name in detectors}
        best, tables = find_best_control(result, split)[0], result.tables[split]
        plain = best.removesuffix(TURNED)
        own = result.metrics[plain][split][IMAGE]
        if best != plain:
            tables = [dataclasses.replace(one, scores={**one.scores, best: -one.scores[plain]}) for one in tables]
            between = own["auroc_ci95"]
            own = {"auroc": 1 - own["auroc"], "auroc_ci95": between and [1 - between[1], 1 - between[0]]}
        text = f"{_name_split(split)}: ROC curves, {describe_means(len(result.config.seeds))}; with the best control"
        curves = draw_curves(tables, {**found, best: own}, ALL, each_seed=False, unit="image")
        pictures.append(Picture(curves, text, text))
    for split in _lead_splits(result):
        table = result.tables[split][0]
        figure = plot_histogram(
            table.scores[result.subject], table.positive, label=f"Image score of {result.subject}", unit="image"
        )
        text = f"{_name_split(split)}: image scores of {result.subject}, seed {table.seed}"
        pictures.append(Picture(figure_png(figure), text, text))
    return Section("Curves and scores", pictures=tuple(pictures))


def _maps_section(result: ImageLevelResult) -> Section:
    pictures = []
    for name in [row.name for row in result.rows if row.name in result.metrics][:2]:
        for stage in result.stages.values():
            cell = result.cells[stage.name][name][0]
            text = f"{_STAGE_WORDS[stage.name]}: pictures above their maps by {name}, seed {result.config.seeds[0]}"
            shown = plot_maps(_gather(stage, cell.shown), cell.maps, positive=stage.positive[cell.shown])
            pictures.append(Picture(figure_png(shown), text, text))
    return Section(
        "Pictures and their maps",
        paragraphs=(
            "Not hand-picked: on either side the pictures whose scores lie at evenly spaced percentiles, lowest score "
            "first. All maps of a figure share one scale, in the detector's own unit. A map tells where a detector "
            "finds the picture unlike normal ones; nobody has checked it against outlines of disease.",
        ),
        pictures=tuple(pictures),
    )


def _gather(stage: Stage, places: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(read_row(stage.test[place]).pixels) for place in places])


def _pictures_section(result: ImageLevelResult) -> Section:
    cutoff = result.meta["common_bandwidth_cycles"]
    files, even = result.stages[AS_FILES], result.stages[ONE_BANDWIDTH]
    chosen = result.cells[AS_FILES][result.subject][0].shown
    figure = plot_pairs(_gather(files, chosen), _gather(even, chosen), positive=files.positive[chosen])
    sides = {"train": "normal, to learn from", "negative": "normal, to test", "positive": "abnormal, to test"}
    rows = tuple(
        (_STAGE_WORDS[stage.name], title, *map(round, np.percentile(stage.bandwidths[side], [1, 25, 50, 75, 99])))
        for stage in (files, even)
        for side, title in sides.items()
    )
    header = ("Pictures", "Side", "1 %", "25 %", "Median", "75 %", "99 %")
    return Section(
        "One resolution and bandwidth",
        paragraphs=(
            f"With the files as they are, every picture is brought to {result.config.side_px} x "
            f"{result.config.side_px} pixels and nothing else. A picture's bandwidth is the frequency, in cycles per "
            "picture side, below which 99 % of its contrast lies. For the other condition, all pictures are first "
            f"brought to the bandwidth that all but {POOREST_PERCENTILE:g} % have, {cutoff:g} cycles per side: a "
            f"Gaussian leaves {PASSED:.0%} of the amplitude there, and less beyond. The figure was computed from all "
            "pictures, without their labels. Sharpness may be a matter of the place a picture comes from, or of the "
            "disease; what is left afterwards owes little to it. Whatever else differs between the places, such as "
            "planes, contrast agents and age, stays as it was.",
        ),
        tables=(Table("Bandwidth, in cycles per picture side: percentiles over pictures.", header, rows),),
        pictures=(
            Picture(
                figure_png(figure),
                f"The same pictures as files and at {cutoff:g} cycles per side",
                "Pictures above the same pictures, smoothed",
            ),
        ),
    )


def _all_figures(result: ImageLevelResult) -> Iterator[Section]:
    for part in (PARTS[0], _divide(_lead_splits(result)[1])[1]):
        named = {
            name: {_STAGE_WORDS[stage]: found[stage + part] for stage in _STAGE_WORDS if stage + part in found}
            for name, found in result.metrics.items()
        }
        heading = f"All figures, {_PART_WORDS[part].lower()}"
        section = build_results_section(heading, named, figures=describe_means(len(result.config.seeds)))
        units = () if result.data.has_patients else ("Patients are not known; what is counted as such is a picture.",)
        yield Section(section.heading, (*section.paragraphs, *units), section.tables)


def plot_maps(pictures: NDArray[np.uint8], maps: NDArray[np.float32], *, positive: NDArray[np.bool_]) -> Figure:
    """Draw pictures, shape (n, side, side), above their maps, of the same shape, negatives left and positives right.

    The maps share one scale, from the 1st to the 99.5th percentile of all their values; each picture has a grey window
    of its own.
    """
    low, high = np.nanpercentile(maps, [1, 99.5]).tolist()
    return _draw_tiles([("Picture", pictures), ("Map", maps)], positive, scale=(low, high))


def plot_pairs(above: NDArray[np.uint8], below: NDArray[np.uint8], *, positive: NDArray[np.bool_]) -> Figure:
    """Draw pictures as files above the same at one bandwidth, negatives left and positives right."""
    return _draw_tiles([("Files as\nthey are", above), ("One\nbandwidth", below)], positive, scale=None)


def _draw_tiles(
    lines: Sequence[tuple[str, NDArray[Any]]], positive: NDArray[np.bool_], *, scale: tuple[float, float] | None
) -> Figure:
    """Lines of small pictures, negatives left, grey from 0 to 255.

    With a ``scale`` the last line is on it, in colour, and the others are each in a grey window of its own.
    """
    order = np.argsort(positive, kind="stable")
    negatives = int((~positive).sum())
    step, right = _INCHES + _GAP, 0.1 if scale is None else _BAR
    starts = _LABEL + step * np.arange(len(order))
    starts[negatives:] += 3 * _GAP
    width, height = float(starts[-1]) + _INCHES + right, _FOOT + step * len(lines) + _HEAD
    with new_figure(width, height) as figure:
        for number, (name, tiles) in enumerate(lines):
            base = _FOOT + step * (len(lines) - 1 - number)
            mapped = scale is not None and number == len(lines) - 1
            for start, which in zip(starts, order, strict=True):
                window, colours = (0.0, 255.0), "gray"
                if scale is not None:
                    own = tuple(np.percentile(tiles[which], [0.5, 99.5]).tolist())
                    window, colours = (scale, "inferno") if mapped else ((own[0], own[1]), "gray")
                draw_picture(figure, (start, base, _INCHES, _INCHES), tiles[which], window=window, colours=colours)
            figure.text(
                (_LABEL - 0.08) / width, (base + _INCHES / 2) / height, name, ha="right", va="center", fontsize=8.5
            )
        top = 1 - 0.3 / height
        for start, words in ((starts[0], "Labelled negative"), (starts[negatives], "Labelled positive")):
            figure.text(start / width, top, words, weight="bold", fontsize=9)
        if scale is not None:
            bar = ((width - _BAR + 0.1) / width, _FOOT / height, 0.1 / width, _INCHES / height)
            add_colour_bar(figure, bar, colours="inferno", limits=scale)
    return figure
