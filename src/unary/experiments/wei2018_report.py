"""The report of the paper's experiment: the figures redrawn, the controls beside them, and what the numbers mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.metrics import ALL, FEW_PATIENTS, NORMAL_LOOKING
from unary.experiments.common import describe_range
from unary.experiments.wei2018 import (
    PAPER_AUROC,
    PAPER_IMAGES,
    TISSUE,
    WHOLE_IMAGE,
    ExtractionResult,
    PaperConfig,
    PaperResult,
    SplitRun,
)
from unary.experiments.wei2018_air import AIR, ANY_TISSUE
from unary.experiments.wei2018_readings import (
    PAPER_COUNTS,
    READING_TITLES,
    build_counts_section,
    build_readings_section,
    plot_curves,
    share_of_air,
)
from unary.outputs.figures import figure_png, plot_losses, plot_reconstructions
from unary.outputs.leads import (
    CONTROLS,
    PATCHES,
    describe_auroc,
    describe_means,
    describe_outcome,
    describe_readings,
    head_repetition,
    is_few,
    judge_difference,
)
from unary.outputs.report import Picture, Report, Section, Table, build_results_section, write_report

_ELSEWHERE = ("epochs", "compiled", "device")  # said otherwise, or without influence


def describe_result(result: PaperResult) -> Iterator[str]:
    """Yield the outcome as lines for a terminal: AUROC with interval per reading, split, detector and group."""
    for reading, of in result.readings.items():
        for split in of.runs:
            for name, splits in of.metrics.items():
                for group, found in splits[split].items():
                    yield f"{reading:11s} by {split:7s} {name:18s} {group:14s} AUROC {describe_auroc(found)}"
    yield _describe_lead(result)
    yield head_run(result, "Wei et al. 2018")


def write_wei2018_report(
    result: PaperResult, path: Path, *, banners: tuple[str, ...] = (), title: str = "Wei et al. 2018"
) -> None:
    """Write the page, and its figures as ``figures/figure-N.png`` beside it, numbered as there.

    ``banners`` are what must not be overlooked about the data, such as that it is synthetic. The heading adds to the
    title how far the run is what the paper describes.
    """
    report = _build_report(result, banners=banners, title=title)
    write_report(report, path)
    (path.parent / "figures").mkdir(exist_ok=True)
    pictures = [picture for section in report.sections for picture in section.pictures]
    for number, picture in enumerate(pictures, 1):
        (path.parent / "figures" / f"figure-{number}.png").write_bytes(picture.png)


def _build_report(result: PaperResult, *, banners: tuple[str, ...], title: str) -> Report:
    sections = [build_readings_section(result), build_counts_section(result)]
    for name, of in result.readings.items():
        words, figures = READING_TITLES[name], describe_means(len(of.runs["patient"]))
        results = build_results_section(f"{words}: results", of.metrics, figures=figures)
        sections += [
            dataclasses.replace(results, paragraphs=(describe_reading(of), *results.paragraphs)),
            _difference_section(of, words),
            _curves_section(of, words),
            _pictures_section(of, words),
            _stability_section(of, result.meta["readings"][name]["stability"], words),
            _data_section(of, result.meta["readings"][name]["counts"], words),
        ]
    hashes = {name: of["data_hash"] for name, of in result.meta["readings"].items()}
    return Report(
        title=head_run(result, title),
        lead=_describe_lead(result),
        banners=banners,
        notices=tuple(result.meta["notices"]) + tuple(result.meta["skipped"]),
        sections=tuple(sections),
        provenance={
            **{key: result.meta[key] for key in ("command", "versions")},
            "data_hash": hashes,
            "config": result.meta["config"],
        },
    )


def _describe_lead(result: PaperResult) -> str:
    """What was found, held out by patch as in the paper."""
    whole, tissue = (result.readings[name] for name in (WHOLE_IMAGE, TISSUE))
    by_patch = [{name: splits["patch"][ALL] for name, splits in of.metrics.items()} for of in (whole, tissue)]
    parts = whole.parts["patch"]["wei2018"]
    told = describe_readings(
        *by_patch,
        differences={name: whole.advantage["patch"].get(name, {}).get(ALL) for name in CONTROLS},
        air=share_of_air(whole),
        against=(parts[AIR], parts[ANY_TISSUE]) if AIR in parts and ANY_TISSUE in parts else None,
        published=PAPER_AUROC,
    )
    return f"{told} Figures are {describe_means(len(whole.runs['patch']))}, held out by patch, as in the paper."


def describe_reading(found: ExtractionResult) -> str:
    """Say what the paper's network tells apart in one reading, held out by patient: calcifications, where there are."""
    lesion = "calcification" if "calcification" in found.metrics["wei2018"]["patient"] else ALL
    groups = {name: splits["patient"][lesion] for name, splits in found.metrics.items()}
    return describe_outcome(
        groups,
        subject="wei2018",
        differences={
            name: found.advantage["patient"].get(name, {}).get(lesion) for name in groups if name != "wei2018"
        },
        sides=dataclasses.replace(PATCHES, positive="patches with a calcification") if lesion != ALL else PATCHES,
    )


def head_run(result: PaperResult, title: str) -> str:
    """Return the heading, which says by what the run differs from what the paper describes."""
    config, paper = result.meta["config"], dataclasses.asdict(PaperConfig())
    changed = [
        f"{name} {config[part][name]}"
        for part in ("training", "grid", "preparation")
        for name, value in paper[part].items()
        if config[part][name] != value and name not in _ELSEWHERE
    ]
    if config["held_out"] != paper["held_out"]:
        changed.append(f"{100 * config['held_out']:g} % held out")
    read = [row.assessment for row in result.readings[TISSUE].collection.rows]
    return head_repetition(
        title,
        epochs=(config["training"]["epochs"], paper["training"]["epochs"]),
        runs=len(config["seeds"]),
        images=((read.count("1"), read.count("5")), PAPER_IMAGES),
        changed=changed,
        whole=", reproduced",
    )


def _difference_section(found: ExtractionResult, words: str) -> Section:
    rows = tuple(
        (split, group, name, estimate.value, describe_range(estimate), f"{judge_difference(estimate)} {name}")
        for split, of in found.advantage.items()
        for name, groups in of.items()
        for group, estimate in groups.items()
        if not is_few(found.metrics["wei2018"][split][group])
    )
    header = ("split", "lesions", "minus that of", "difference", "95 % interval", "wei2018 is")
    return Section(
        f"{words}: is the network better than no learning?",
        paragraphs=(
            "AUROC of wei2018 minus that of what learns nothing, on the same patches, with a paired 95 % interval over "
            f"patients; where there are at least {FEW_PATIENTS} patients on either side."
            + ("" if rows else " There are fewer, and nothing is compared."),
        ),
        tables=(Table("Paired differences", header, rows),) if rows else (),
    )


def _curves_section(found: ExtractionResult, words: str) -> Section:
    lesions = [group for group in (ALL, "calcification") if group in found.metrics["wei2018"]["patient"]]
    shown = [(ALL, "patient"), *((group, split) for group in lesions[1:] for split in found.runs)]
    return Section(
        f"{words}: ROC of other splits and lesions",
        pictures=tuple(plot_curves(found, split, group, words) for group, split in shown),
    )


def _pictures_section(found: ExtractionResult, words: str) -> Section:
    run = found.runs["patient"][0]
    chosen, positive = _choose_examples(run)
    patches = found.collection.patches.gather(chosen)
    restored = run.detector.reconstruct(patches)
    overview = figure_png(plot_reconstructions(patches, restored, positive=positive))
    few = np.r_[np.flatnonzero(~positive)[:2], np.flatnonzero(positive)[-2:]]
    zoomed = figure_png(plot_reconstructions(patches[few], restored[few], positive=positive[few], errors=True))
    return Section(
        f"{words}: patches, reconstructions and errors",
        paragraphs=(
            "Not hand-picked: of each class the patches whose error lies nearest to evenly spaced percentiles, lowest "
            "error first. The error is signed, input minus reconstruction.",
        ),
        pictures=(
            Picture(overview, "Patches and their reconstructions (the paper's Fig. 3)", "Patches"),
            Picture(zoomed, "Zoomed, with signed error maps (the paper's Fig. 1)", "Patches and error maps"),
        ),
    )


def _choose_examples(run: SplitRun) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Places in the collection of 4 negatives then 4 positives, calcifications if any, and which are positive."""
    table = run.table
    positive, negative = table.roles("calcification")
    if not positive.any():
        positive, negative = table.roles(ALL)
    chosen = []
    for role in (negative, positive):
        members = np.flatnonzero(role)
        ordered = members[np.argsort(table.scores["wei2018"][members], kind="stable")]
        places = np.unique(np.linspace(0, len(ordered) - 1, 6).round().astype(int)[1:-1])
        chosen.append(run.kept[ordered[places]])
    return np.concatenate(chosen), np.repeat([False, True], [len(part) for part in chosen])


def _stability_section(found: ExtractionResult, stability: Mapping[str, Any], words: str) -> Section:
    rows = tuple(
        (split, entry["seed"], entry["last_loss"], entry["unexplained"], entry["dead_units"], area)
        for split, entries in stability.items()
        for entry, area in zip(entries, found.metrics["wei2018"][split][ALL]["auroc_per_seed"], strict=True)
    )
    header = ("split", "seed", "last loss", "unexplained", "dead units", "AUROC, all lesions")
    runs = found.runs["patient"]
    first = runs[0].history
    losses = plot_losses(
        {run.table.seed: run.history.losses for run in runs},
        baselines={"mean of all patches": first.mean_patch_error, "each patch's mean": first.patch_mean_error},
    )
    return Section(
        f"{words}: is training stable?",
        paragraphs=(
            "The paper calls training fast and stable. Each seed draws its own hold-out and its own initial weights"
            + ("; of one seed nothing can be said of that. " if len(runs) == 1 else ". ")
            + "Unexplained is the last loss as a share of the error of predicting each patch's mean; dead units is the "
            "share of feature maps that are zero everywhere.",
        ),
        tables=(Table("Per seed", header, rows),),
        pictures=(Picture(figure_png(losses), "Loss per epoch, held out by patient", "Loss curves by seed"),),
    )


def _data_section(found: ExtractionResult, counts: Mapping[str, Any], words: str) -> Section:
    rows = tuple((key.replace("_", " "), value, PAPER_COUNTS.get(key)) for key, value in counts.items())
    control = found.metrics["wei2018"]["patient"].get(NORMAL_LOOKING)
    paragraphs = control and (
        "Normal-looking patches of BI-RADS 5 images against held-out normals, scored by wei2018: AUROC "
        f"{describe_auroc(control)}.",
    )
    table = Table("Data", ("", "here", "in the paper"), rows)
    return Section(f"{words}: what was counted", paragraphs=paragraphs or (), tables=(table,))
