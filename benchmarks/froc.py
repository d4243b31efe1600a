"""How many lesions does each detector find, at how many false findings per normal image?

Cross-validated over patients: in each fold the normal images of some patients are held out; of the other normal
patients most train the detector and the rest set its operating points, as `unary fit` does. Findings are judged in the
held-out normal images, and in the images with lesions of every patient of whom nothing was learned. Prints Markdown
tables, then one JSON line. Interrupt when you like; the same command goes on where it stopped.

    python benchmarks/froc.py --data INBREAST [--annotation images.csv] --out DIR [--folds 3] [--seeds 0,1,2]
        [--detectors fusion,laplacian,wei2018] [--epochs 50] [--held-out 0.3]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from froc_figures import write_figures
from froc_runs import Plan, RunResult, draw_image_folds, hash_manifest, run_plan
from reserved import explored_patients

from unary.datasets.inbreast import read_inbreast
from unary.datasets.manifest import read_manifest
from unary.evaluation.evaluated_image import EvaluatedImage, build_outcomes
from unary.evaluation.froc import FALSE_RATES, Outcomes, compare_froc, summarise_froc
from unary.evaluation.image_level import compare_images
from unary.evaluation.intervals import Estimate, as_pair
from unary.evaluation.lesion_query import LesionQuery
from unary.evaluation.summary import count_findings, document_froc, estimate_patient_means
from unary.files import replacing
from unary.models.bundle import describe_versions
from unary.models.calibration import MOST_FINDINGS
from unary.outputs.words import name_figures, with_interval
from unary.profiles import DEFAULT
from unary.records import NOTICE

GROUPS = {
    "calcification groups, BI-RADS 5": LesionQuery(("calcification",), assessments=("5",), complete_only=True),
    "calcification clusters, BI-RADS 5": LesionQuery(("calcification",), True, assessments=("5",), complete_only=True),
    "calcification groups, BI-RADS 2 to 4": LesionQuery(
        ("calcification",), assessments=("2", "3", "4"), complete_only=True
    ),
    "masses": LesionQuery(("mass",), complete_only=True),
}
FIRST = "fusion"
RATE = 1.0
Runs = dict[str, list[RunResult]]


def fresh() -> np.random.Generator:
    """Return the source of one figure's draws; each figure starts anew."""
    return np.random.default_rng(0)


def select_outcomes(
    runs: Sequence[RunResult], query: LesionQuery, keep: Callable[[EvaluatedImage], bool] = lambda image: True
) -> list[Outcomes]:
    """Return the outcomes of each run that has lesions of the kind."""
    found = [build_outcomes([image for image in run.images if keep(image)], query) for run in runs]
    return [outcomes for outcomes in found if any(outcome.target_scores for outcome in outcomes)]


def list_sensitivities(runs: Runs, explored: set[str]) -> Iterable[dict[str, Any]]:
    """Yield a row per group of lesions, half of the patients and detector."""
    halves: dict[str, Callable[[EvaluatedImage], bool]] = {
        "all": lambda image: True,
        "reserved": lambda image: image.normal or image.row.patient_id not in explored,
    }
    for (group, query), half in itertools.product(GROUPS.items(), halves):
        for detector, own in runs.items():
            outcomes = select_outcomes(own, query, halves[half])
            if not outcomes:
                continue
            froc = summarise_froc(outcomes, rng=fresh(), rates=FALSE_RATES)
            hit = [[score is not None for o in run for score in o.target_scores] for run in outcomes]
            row = {"group": group, "patients": half, "detector": detector, **document_froc(froc)}
            yield row | {"hit_by_any": float(np.mean([np.mean(each) for each in hit])), "runs": len(outcomes)}


def list_differences(runs: Runs) -> Iterable[dict[str, Any]]:
    """Yield a row per group and other detector: sensitivity of the first minus that of the other, paired."""
    for (group, query), other in itertools.product(GROUPS.items(), runs):
        if other == FIRST or FIRST not in runs:
            continue
        pairs: tuple[list[Outcomes], list[Outcomes]] = ([], [])
        for one, two in zip(runs[FIRST], runs[other], strict=True):
            names = [{image.row.image_id for image in run.images} for run in (one, two)]
            shared = names[0] & names[1]
            both = [
                build_outcomes([image for image in run.images if image.row.image_id in shared], query)
                for run in (one, two)
            ]
            if any(outcome.target_scores for outcome in both[0]):
                pairs[0].append(both[0])
                pairs[1].append(both[1])
        if pairs[0]:
            found = compare_froc(pairs[0], pairs[1], rng=fresh(), rates=(RATE,))
            yield {"group": group, "first": FIRST, "second": other, **as_pair("difference", found[0])}


def list_image_areas(runs: Runs) -> Iterable[dict[str, Any]]:
    """Yield a row per comparison of whole images and detector."""
    for detector, own in runs.items():
        images = [image for run in own for image in run.images]
        number = [place for place, run in enumerate(own) for _ in run.images]
        for name, found in compare_images(images, reading=DEFAULT.reading, rng=fresh(), runs=number).items():
            yield {"images": name, "detector": detector, **as_pair("auroc", found.auroc)}


def list_false_alarms(runs: Runs) -> Iterable[dict[str, Any]]:
    """Yield a row per detector and operating point: guaranteed and measured on held-out normal patients."""
    for detector, own in runs.items():
        for place, name in enumerate(point.name for point in own[0].points):
            points = [run.points[place] for run in own]
            normal = [[image for image in run.images if image.normal] for run in own]
            counts = np.concatenate(
                [count_findings(point, images) for point, images in zip(points, normal, strict=True)]
            )
            patients = [image.row.patient_id for images in normal for image in images]
            shares = np.stack([counts / MOST_FINDINGS, counts > 0])
            share, alarms = estimate_patient_means(shares, patients, rng=fresh())
            found = share.scale(MOST_FINDINGS)
            yield {
                "detector": detector,
                "point": name,
                "expected_false_findings": points[0].rate,
                "runs_with_guarantee": sum(point.guaranteed for point in points),
                "runs": len(points),
                "calibration_patients": sorted({point.patients for point in points}),
                **as_pair("false_findings", found),
                "guaranteed_false_alarm_rate": float(np.mean([point.false_alarm_rate or 1.0 for point in points])),
                **as_pair("false_alarm_rate", alarms),
                "images": len(counts),
                "images_with_finding": int((counts > 0).sum()),
                "normal_patients": len(set(patients)),
            }


def list_pixels(runs: Runs) -> Iterable[dict[str, Any]]:
    """Yield a row per kind of lesion and detector: means over runs, and their range."""
    for detector, own in runs.items():
        for group in own[0].pixels:
            row: dict[str, Any] = {"lesions": group, "detector": detector}
            for name in ("auroc", "average_precision", "share"):
                values = [run.pixels[group][name] for run in own if group in run.pixels]
                row |= {name: float(np.mean(values)), f"{name}_range": [min(values), max(values)]}
            yield row


def show(row: dict[str, Any], name: str) -> str:
    """Return a figure with its interval as text."""
    return with_interval(Estimate(row[name], *(row[f"{name}_ci95"] or (None, None))))


def print_table(title: str, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print one Markdown table."""
    print(f"\n{title}\n\n| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |")


def print_tables(result: dict[str, Any]) -> None:
    """Print everything as Markdown."""
    rates = [f"{rate:g}" for rate in FALSE_RATES]
    for half, title in (("all", "all patients"), ("reserved", "patients with lesions that no choice was made on")):
        lines = [
            [
                row["group"],
                f"{row['n_lesions'] / row['runs']:.4g} of {row['n_lesion_patients']} patients",
                row["detector"],
                *(
                    show({"x": row["sensitivity"][rate], "x_ci95": row["sensitivity_ci95"][rate]}, "x")
                    for rate in rates
                ),
                f"{row['hit_by_any']:.2f}",
            ]
            for row in result["sensitivities"]
            if row["patients"] == half
        ]
        print_table(
            f"Sensitivity at so many false findings per normal image, {title}:",
            ["lesions", "per run", "detector", *rates, "hit by any finding"],
            lines,
        )
    print_table(
        f"Difference of sensitivities at {RATE:g} false finding per normal image, paired:",
        ["lesions", "", "difference"],
        ([r["group"], f"{r['first']} - {r['second']}", show(r, "difference")] for r in result["differences"]),
    )
    print_table(
        "Whole images told apart, AUROC:",
        ["images", "detector", "AUROC"],
        (
            [name_figures(DEFAULT.reading)[row["images"]], row["detector"], show(row, "auroc")]
            for row in result["images"]
        ),
    )
    print_table(
        "False alarms on held-out normal patients, guaranteed and measured:",
        ["detector", "point", "false findings, expected", "measured", "images with any, guaranteed", "measured"],
        (
            [
                row["detector"],
                row["point"],
                f"{row['expected_false_findings']:g} (guaranteed in {row['runs_with_guarantee']} of {row['runs']})",
                show(row, "false_findings"),
                f"at most {row['guaranteed_false_alarm_rate']:.2f}",
                show(row, "false_alarm_rate"),
            ]
            for row in result["false_alarms"]
        ),
    )
    print_table(
        "Pixel by pixel, means over runs (lowest to highest):",
        ["lesions", "detector", "AUROC", "average precision", "share of lesion pixels"],
        (
            [row["lesions"], row["detector"]]
            + [
                f"{row[name]:.3g} ({row[f'{name}_range'][0]:.3g} to {row[f'{name}_range'][1]:.3g})"
                for name in ("auroc", "average_precision", "share")
            ]
            for row in result["pixels"]
        ),
    )


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an INbreast folder, or a manifest")
    parser.add_argument("--annotation", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--detectors", default="fusion,laplacian,wei2018")
    parser.add_argument("--epochs", type=int, default=50, help="of wei2018")
    parser.add_argument("--held-out", type=float, default=0.3, help="share of the patients that set operating points")
    return parser.parse_args()


def main() -> None:
    """Run every detector in every fold; print tables and one JSON line; write ``froc.json`` and figures."""
    options = read_options()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if options.data.is_file():
        manifest = read_manifest(options.data)
    else:
        manifest = read_inbreast(options.data, annotation=options.annotation)[0]
    data_hash = hash_manifest(manifest)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    detectors = options.detectors.split(",")
    runs: Runs = {detector: [] for detector in detectors}
    for seed in seeds:
        for number, fold in enumerate(draw_image_folds(manifest, count=options.folds, seed=seed)):
            for detector in detectors:
                plan = Plan(detector, seed, number, options.folds, options.epochs, options.held_out)
                print(f"{plan.name}: {len(fold.fit)} images to fit, {len(fold.test)} to evaluate", flush=True)
                runs[detector].append(run_plan(manifest, fold, plan, options.out, data_hash=data_hash))
    result = {
        "sensitivities": list(list_sensitivities(runs, explored_patients(manifest))),
        "differences": list(list_differences(runs)),
        "images": list(list_image_areas(runs)),
        "false_alarms": list(list_false_alarms(runs)),
        "pixels": list(list_pixels(runs)),
        "runs": [{**dataclasses.asdict(run.plan), **run.facts} for own in runs.values() for run in own],
        "data": data_hash,
        "versions": describe_versions(),
        "notice": NOTICE,
    }
    print_tables(result)
    print(f"\nData: `{data_hash[:16]}`. {NOTICE}")
    with replacing(options.out / "froc.json") as partial:
        partial.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_figures(runs, GROUPS, options.out)
    print(json.dumps({name: result[name] for name in ("sensitivities", "differences", "images", "false_alarms")}))


if __name__ == "__main__":
    main()
