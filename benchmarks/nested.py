"""What will patients show whom nobody has tuned on? Nested cross-validation of the default and its rivals.

Normal patients are divided into folds: in each, the others train all parts once, and every variant is made of those
parts, so that variants differ by their parts and weights alone. Patients with lesions, of whom nothing is ever learned,
are divided into folds of their own. In each pair of folds the *nested choice* is the variant that is best, by the mean
of five figures, on the other lesion patients and the other folds of normals; it is judged on patients that had no
say, but that models of the other folds of normals, one for each, have learned from these normals.
Beside it, each variant fixed in advance. Prints Markdown tables, then one JSON line. Interrupt when you like; the same
command goes on where it stopped.

    python benchmarks/nested.py --data INBREAST [--annotation images.csv] --out DIR [--seeds 0,1,2] [--folds 3]
        [--lesion-folds 3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from froc_runs import draw_image_folds, hash_manifest
from nested_runs import ImageResult, Runs, run_fold
from nested_variants import FIRST, VARIANTS

from unary.datasets.inbreast import read_inbreast
from unary.evaluation.froc import Outcomes, compare_froc, sensitivity_at_rates, summarise_froc
from unary.evaluation.intervals import Estimate, Run, as_pair, difference_over_seeds, estimate_over_seeds
from unary.evaluation.lesion_query import LesionQuery, build_outcome
from unary.evaluation.roc import rank_scores, weighted_aurocs, weighted_sensitivities
from unary.files import replacing
from unary.models.bundle import describe_versions
from unary.outputs.words import with_interval
from unary.progress import show_progress
from unary.records import NOTICE

NESTED = "nested choice"
RATE = 1.0
PATCHES = {
    "calcification patches, BI-RADS 5": ("calcification", ("5",)),
    "calcification patches, BI-RADS 2 to 4": ("calcification", ("2", "3", "4", "4a", "4b", "4c")),
    "mass patches": ("mass", None),
}
FINDINGS = {
    "clusters, BI-RADS 5": LesionQuery(("calcification",), True, assessments=("5",), complete_only=True),
    "calcification groups, BI-RADS 5": LesionQuery(("calcification",), assessments=("5",), complete_only=True),
    "calcification groups, BI-RADS 2 to 4": LesionQuery(
        ("calcification",), assessments=("2", "3", "4"), complete_only=True
    ),
    "masses": LesionQuery(("mass",), complete_only=True),
}
IMAGES = "images, BI-RADS 1 against 5"
CHOSEN_BY = ("calcification patches, BI-RADS 5", "clusters, BI-RADS 5", "calcification groups, BI-RADS 5", "masses")
Cell = tuple[int, int, int]
"""Seed, fold of normal patients, fold of lesion patients."""


def fresh() -> np.random.Generator:
    """Return the source of one figure's draws; each figure starts anew."""
    return np.random.default_rng(0)


def divide_lesion_patients(runs: Runs, *, seed: int, count: int) -> dict[str, int]:
    """Return the fold of each patient with lesions; those with an image of BI-RADS 5 are spread evenly."""
    images = [image for (of, _, _), found in runs.items() if of == seed for image in found if not image.normal]
    everybody = {image.row.patient_id for image in images}
    malignant = {image.row.patient_id for image in images if image.row.assessment == "5"}
    rng, fold_of = np.random.default_rng([seed, count, 15]), {}
    for group in (sorted(malignant), sorted(everybody - malignant)):
        for place, which in enumerate(rng.permutation(len(group))):
            fold_of[group[which]] = place % count
    return fold_of


def read_patches(images: Sequence[ImageResult], group: str, assessments: Sequence[str] | None) -> Run | None:
    """Return normal patches, and those that hold a lesion of the group in such images; None without either."""
    parts: list[tuple[np.ndarray[Any, Any], bool, str]] = []
    for image in images:
        if image.normal:
            parts.append((image.patch_scores[~image.touches], False, image.row.patient_id))
        elif assessments is None or image.row.assessment in assessments:
            parts.append((image.patch_scores[image.contains[group]], True, image.row.patient_id))
    scores = np.concatenate([part for part, _, _ in parts])
    positive = np.concatenate([np.full(len(part), sign) for part, sign, _ in parts])
    patients = np.concatenate([np.full(len(part), patient) for part, _, patient in parts])
    return Run(scores, positive, patients) if positive.any() and not positive.all() else None


def read_images(images: Sequence[ImageResult]) -> Run | None:
    """Return the scores of normal images and of those of BI-RADS 5."""
    kept = [image for image in images if image.normal or image.row.assessment == "5"]
    positive = np.asarray([not image.normal for image in kept])
    if not positive.any() or positive.all():
        return None
    scores = np.asarray([image.image_score for image in kept])
    return Run(scores, positive, np.asarray([image.row.patient_id for image in kept]))


def read_outcomes(images: Sequence[ImageResult], query: LesionQuery) -> Outcomes | None:
    """Return outcomes of normal images and of those whose lesions are to be found; None without any lesion."""
    found = [
        build_outcome(
            image.match, query, patient=image.row.patient_id, normal=image.normal, complete=image.row.complete
        )
        for image in images
        if image.normal or query.selects_image(image.row)
    ]
    return found if any(outcome.target_scores for outcome in found) else None


def list_runs(cells: Mapping[Cell, Sequence[ImageResult]]) -> dict[str, list[Any]]:
    """Return, by row of the table, what each cell has of it; cells without are left out."""
    columns: dict[str, list[Any]] = {}
    for name, of in PATCHES.items():
        columns[name] = [read_patches(images, *of) for images in cells.values()]
    for name, query in FINDINGS.items():
        columns[name] = [read_outcomes(images, query) for images in cells.values()]
    columns[IMAGES] = [read_images(images) for images in cells.values()]
    return {name: [run for run in runs if run is not None] for name, runs in columns.items()}


def summarise_cells(cells: Mapping[Cell, Sequence[ImageResult]], *, resamples: int) -> dict[str, Estimate]:
    """Return every row of the table: means over cells, with 95 % intervals over patients."""
    found: dict[str, Estimate] = {}
    for name, runs in list_runs(cells).items():
        if not runs:
            continue
        if name in FINDINGS:
            summary = summarise_froc(runs, rng=fresh(), rates=(RATE,), resamples=resamples)
            found[name] = summary.sensitivities[0]
            continue
        found[name] = estimate_over_seeds(runs, rng=fresh(), resamples=resamples)
        if name.endswith("BI-RADS 5") and name in PATCHES:
            for share in (0.95, 0.99):
                compute = partial(weighted_sensitivities, specificity=share)
                told = f"{name}: sensitivity at {share:.0%} specificity"
                found[told] = estimate_over_seeds(runs, rng=fresh(), resamples=resamples, compute=compute)
    return found


def measure_plainly(cells: Mapping[Cell, Sequence[ImageResult]]) -> float:
    """Return the mean of the figures that the nested choice is made by, each a mean over cells."""
    columns, found = list_runs(cells), []
    for name in (*CHOSEN_BY, IMAGES):
        values = [
            float(sensitivity_at_rates(run, rates=(RATE,))[0])
            if name in FINDINGS
            else float(weighted_aurocs(rank_scores(run.scores, run.positive), np.ones((1, len(run.scores))))[0])
            for run in columns[name]
        ]
        found += [float(np.mean(values))] if values else []
    return float(np.mean(found))


def choose_nested(runs: Runs, cells: Sequence[Cell], lesion_folds: Mapping[int, Mapping[str, int]]) -> dict[Cell, str]:
    """Return the variant of each cell that is best on the others: other folds of normals, other lesion patients."""
    names = sorted({variant for _, _, variant in runs})
    chosen = {}
    for seed, fold, group in cells:
        others = {
            name: {
                (of, number, 0): [
                    image for image in found if image.normal or lesion_folds[of][image.row.patient_id] != group
                ]
                for (of, number, variant), found in runs.items()
                if variant == name and of == seed and number != fold
            }
            for name in names
        }
        chosen[seed, fold, group] = max(names, key=lambda name: measure_plainly(others[name]))
    return chosen


def divide_cells(
    runs: Runs, cells: Sequence[Cell], chosen: Mapping[Cell, str], lesion_folds: Mapping[int, Mapping[str, int]]
) -> dict[Cell, list[ImageResult]]:
    """Return the images of each cell, by the variant of that cell."""
    return {
        (seed, fold, group): [
            image
            for image in runs[seed, fold, chosen[seed, fold, group]]
            if image.normal or lesion_folds[seed][image.row.patient_id] == group
        ]
        for seed, fold, group in cells
    }


def compare_cells(
    cells: Mapping[Cell, Sequence[ImageResult]], others: Mapping[Cell, Sequence[ImageResult]], *, resamples: int
) -> dict[str, Estimate]:
    """Return the difference of two variants in every row, paired by patients."""
    first, second, found = list_runs(cells), list_runs(others), {}
    for name in first:
        if not first[name]:
            continue
        if name in FINDINGS:
            pair = compare_froc(first[name], second[name], rng=fresh(), rates=(RATE,), resamples=resamples)
            found[name] = pair[0]
        else:
            found[name] = difference_over_seeds(first[name], second[name], rng=fresh(), resamples=resamples)
    return found


def print_tables(result: dict[str, Any]) -> None:
    """Print everything as Markdown."""
    for title, part in (
        ("Means over cells, 95 % intervals over patients; findings at 1 false finding per normal image", "figures"),
        (f"The same minus `{FIRST}`, paired", "differences"),
    ):
        names = list(result[part])
        rows = list(dict.fromkeys(row for name in names for row in result[part][name]))
        print(f"\n{title}:\n\n| | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
        for row in rows:
            cells = [result[part][name].get(row) for name in names]
            print(f"| {row} | " + " | ".join("-" if one is None else _show(one) for one in cells) + " |")
    print("\nHow often each variant was the nested choice: ", end="")
    print(", ".join(f"{name} {count}" for name, count in sorted(result["chosen"].items())) + ".")


def _show(row: dict[str, Any]) -> str:
    return with_interval(Estimate(row["value"], *(row["value_ci95"] or (None, None))))


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an INbreast folder")
    parser.add_argument("--annotation", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folds", type=int, default=3, help="of normal patients")
    parser.add_argument("--lesion-folds", type=int, default=3)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--fit-only", action="store_true", help="do the folds and print nothing")
    return parser.parse_args()


def main() -> None:
    """Run every fold, choose, print tables and one JSON line, and write ``nested.json``."""
    options = read_options()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    manifest = read_inbreast(options.data, annotation=options.annotation)[0]
    data_hash = hash_manifest(manifest)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    plans = [
        (seed, number, fold)
        for seed in seeds
        for number, fold in enumerate(draw_image_folds(manifest, count=options.folds, seed=seed))
    ]
    runs: Runs = {}
    for seed, number, fold in show_progress(plans, title="folds", unit="fold"):
        for name, images in run_fold(manifest, fold, seed, number, options.out, data_hash=data_hash).items():
            runs[seed, number, name] = images
    if options.fit_only:
        return
    lesion_folds = {seed: divide_lesion_patients(runs, seed=seed, count=options.lesion_folds) for seed in seeds}
    cells = list(itertools.product(seeds, range(options.folds), range(options.lesion_folds)))
    divide = partial(divide_cells, runs, cells, lesion_folds=lesion_folds)
    chosen = choose_nested(runs, cells, lesion_folds)
    columns = {variant.name: divide(dict.fromkeys(cells, variant.name)) for variant in VARIANTS}
    columns = {FIRST: columns.pop(FIRST), NESTED: divide(chosen), **columns}
    figures, differences = {}, {}
    for name, images in show_progress(columns.items(), total=len(columns), title="intervals", unit="variant"):
        figures[name] = summarise_cells(images, resamples=options.resamples)
        if name != FIRST:
            differences[name] = compare_cells(images, columns[FIRST], resamples=options.resamples)
    result = {
        "figures": {name: {row: as_pair("value", one) for row, one in rows.items()} for name, rows in figures.items()},
        "differences": {
            name: {row: as_pair("value", one) for row, one in rows.items()} for name, rows in differences.items()
        },
        "chosen": Counter(chosen.values()),
        "data": data_hash,
        "versions": describe_versions(),
        "notice": NOTICE,
    }
    print_tables(result)
    print(f"\nData: `{data_hash[:16]}`. {NOTICE}")
    with replacing(options.out / "nested.json") as written:
        written.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(json.dumps({"figures": result["figures"], "chosen": result["chosen"]}))


if __name__ == "__main__":
    main()
