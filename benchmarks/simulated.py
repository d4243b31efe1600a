"""What does each detector find of simulated lesions, by class, in normal images of patients that it never met?

Folds over patients with normal images: a detector learns from some, lesions of every class are put into the images of
the others (`unary.datasets.simulated`), and those are examined by the product's one way. False findings are counted in
the images as they are. No real lesion takes part. A detector that knows simulated lesions is flattered here.

Prints the share of lesions found at 0.5, 1 and 2 false findings per normal image, what the findings in the untouched
images would hit of the same places by chance, and the AUROC of patches with a lesion against patches without, with
intervals over patients; then one JSON line. Interrupt when you like; the same command goes on where it stopped.

    python benchmarks/simulated.py --data INBREAST [--annotation images.csv] --out DIR [--folds 3] [--seeds 0]
        [--detectors fusion,laplacian,mean_brightness,standard_deviation] [--classes all] [--per-image 2]
        [--images 4]
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from froc_runs import hash_manifest
from simulated_runs import Answer, Plan, run_plan

from unary.datasets.inbreast import read_inbreast
from unary.datasets.manifest import read_manifest
from unary.datasets.simulated.plans import LESION_CLASSES, MASSES, LesionClass
from unary.evaluation.froc import ImageOutcome, summarise_froc
from unary.evaluation.intervals import Estimate, Run, as_pair, estimate_over_seeds
from unary.evaluation.summary import document_froc
from unary.experiments.contenders import find_contenders
from unary.files import replacing
from unary.models.bundle import describe_versions
from unary.outputs.words import with_interval
from unary.records import NOTICE

RATES = (0.5, 1.0, 2.0)
Runs = dict[str, list[list[Answer]]]


def group_classes(classes: Sequence[LesionClass]) -> dict[str, tuple[LesionClass, ...]]:
    """Return the rows of the table: every class, and all calcifications and all masses together."""
    rows: dict[str, tuple[LesionClass, ...]] = {kind: (kind,) for kind in classes}
    for name, chosen in (
        ("all calcifications", tuple(kind for kind in classes if kind not in MASSES)),
        ("all masses", tuple(kind for kind in classes if kind in MASSES)),
    ):
        if len(chosen) > 1:
            rows[name] = chosen
    return rows


def list_figures(runs: Runs, classes: Sequence[LesionClass]) -> Iterator[dict[str, Any]]:
    """Yield a row per class of lesions and detector."""
    for name, kinds in group_classes(classes).items():
        for detector, own in runs.items():
            used = [answers for answers in own if any(answer.kind in kinds for answer in answers)]
            if not used:
                continue
            found, chance = (_summarise(used, kinds, untouched=untouched) for untouched in (False, True))
            area = estimate_over_seeds([_rank_patches(answers, kinds) for answers in used], rng=fresh())
            yield {
                "lesions": name,
                "detector": detector,
                "knowledge": find_contenders([detector])[0].kind,
                **found,
                "by_chance": chance["sensitivity"],
                **as_pair("patch_auroc", area),
                "runs": len(used),
            }


def fresh() -> np.random.Generator:
    """Return the source of one figure's draws; each figure starts anew."""
    return np.random.default_rng(0)


def _summarise(runs: Sequence[Sequence[Answer]], kinds: Sequence[LesionClass], *, untouched: bool) -> dict[str, Any]:
    outcomes: list[list[ImageOutcome]] = []
    for answers in runs:
        kept = [answer for answer in answers if answer.kind in kinds]
        lesional = [answer.untouched if untouched else answer.outcome for answer in kept]
        normal = [answer.outcome for answer in answers if answer.kind is None]
        outcomes.append([*normal, *(outcome for outcome in lesional if outcome is not None)])
    return document_froc(summarise_froc(outcomes, rng=fresh(), rates=RATES))


def _rank_patches(answers: Sequence[Answer], kinds: Sequence[LesionClass]) -> Run:
    used = [answer for answer in answers if answer.kind is None or answer.kind in kinds]
    sizes = [len(answer.patch_scores) for answer in used]
    return Run(
        np.concatenate([answer.patch_scores for answer in used]),
        np.repeat([answer.kind is not None for answer in used], sizes),
        np.repeat([answer.outcome.patient for answer in used], sizes),
    )


def show(row: dict[str, Any], rate: float) -> str:
    """Return a sensitivity with its interval as text."""
    name = f"{rate:g}"
    return with_interval(Estimate(row["sensitivity"][name], *(row["sensitivity_ci95"][name] or (None, None))))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print everything as Markdown."""
    head = ["lesions", "number", "detector", *(f"found at {rate:g}" for rate in RATES), "by chance at 1", "patch AUROC"]
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        area = Estimate(row["patch_auroc"], *(row["patch_auroc_ci95"] or (None, None)))
        cells = [row["lesions"].replace("_", " "), str(row["n_lesions"]), f"`{row['detector']}`"]
        cells += [*(show(row, rate) for rate in RATES), f"{row['by_chance']['1']:.2f}", with_interval(area)]
        print("| " + " | ".join(cells) + " |")
    told = sorted({row["detector"] for row in rows if "prior" in row["knowledge"]})
    if told:
        print(f"\nHave been shown simulated lesions, which flatters them: {', '.join(told)}.")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an INbreast folder, or a manifest")
    parser.add_argument("--annotation", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--detectors", default="fusion,laplacian,mean_brightness,standard_deviation")
    parser.add_argument("--classes", default="all", help=f"of {', '.join(LESION_CLASSES)}")
    parser.add_argument("--per-image", type=int, default=2, help="lesions of a class in one image, at the most")
    parser.add_argument("--images", type=int, help="held-out images of a fold, at the most; by default all")
    return parser.parse_args()


def main() -> None:
    """Run every detector in every fold; print a table and one JSON line; write ``simulated.json``."""
    options = read_options()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if options.data.is_file():
        manifest = read_manifest(options.data)
    else:
        manifest = read_inbreast(options.data, annotation=options.annotation)[0]
    classes = LESION_CLASSES if options.classes == "all" else tuple(options.classes.split(","))
    unknown = [kind for kind in classes if kind not in LESION_CLASSES]
    if unknown:
        raise SystemExit(f"no class of lesions is called {unknown[0]!r}; there are {', '.join(LESION_CLASSES)}")
    data_hash = hash_manifest(manifest)
    detectors = options.detectors.split(",")
    find_contenders(detectors)  # before the first is fitted
    runs: Runs = {detector: [] for detector in detectors}
    for seed in (int(seed) for seed in options.seeds.split(",")):
        for fold in range(options.folds):
            for detector in detectors:
                plan = Plan(detector, seed, fold, options.folds, classes, options.per_image, options.images)
                runs[detector].append(run_plan(manifest, plan, options.out, data_hash=data_hash))
    rows = list(list_figures(runs, classes))
    result = {"simulated": rows, "data": data_hash, "versions": describe_versions(), "notice": NOTICE}
    print_table(rows)
    print(f"\nData: `{data_hash[:16]}`. {NOTICE}")
    with replacing(options.out / "simulated.json") as partial:
        partial.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(json.dumps({"simulated": rows}))


if __name__ == "__main__":
    main()
