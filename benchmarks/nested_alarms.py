"""Do the default's operating points keep what they guarantee, in the folds of ``nested.py``?

Takes the models that ``nested.py`` has fitted, leaves in them the parts of the default alone, sets operating points on
the normal patients that were held out of the fit, and counts findings in the normal images of the test patients.

    python benchmarks/nested_alarms.py --data INBREAST [--annotation images.csv] --out DIR [--seeds 0,1,2] [--folds 3]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from froc_runs import Fold, draw_image_folds, hash_manifest
from nested_runs import HELD_OUT, find_model_folder

from unary.datasets.inbreast import read_inbreast
from unary.datasets.splits import split_by_patient
from unary.detectors.fusion import Fusion, FusionConfig, Parts
from unary.errors import DetectorError
from unary.evaluation.summary import estimate_patient_means
from unary.models.bundle import Model, read_model
from unary.models.calibrating import calibrate_rows, examine_rows
from unary.models.calibration import MOST_FINDINGS
from unary.models.examination import examine_image
from unary.models.findings import FindingsConfig
from unary.models.fitting import measure_images
from unary.profiles import DEFAULT
from unary.progress import show_progress
from unary.records import NOTICE, ManifestRow


def keep_default_parts(model: Model) -> Model:
    """Return the model with the default's parts and findings alone."""
    config = FusionConfig()
    if not isinstance(model.detector, Fusion) or model.detector.parts is None:
        raise DetectorError("the models of nested.py are fusions")
    weights = dict(config.parts)
    members = tuple(
        dataclasses.replace(part, weight=weights[part.name]) for part in model.detector.parts if part.name in weights
    )
    lengths = DEFAULT.lengths
    findings = FindingsConfig(lengths.merge_mm, lengths.merge_px)
    return dataclasses.replace(model, detector=Fusion(config, Parts(members)), findings=findings)


def count_alarms(model: Model, fold: Fold, seed: int) -> list[dict[str, Any]]:
    """Return, for each operating point, what it promises and what the test patients' normal images have."""
    patients = np.asarray([row.patient_id for row in fold.fit])
    held = split_by_patient(patients, HELD_OUT, np.random.default_rng(seed))
    learned = [row for row, out in zip(fold.fit, held, strict=True) if not out]
    judging = [row for row, out in zip(fold.fit, held, strict=True) if out]
    measured = measure_images(keep_default_parts(model), learned, progress=False)
    calibration = calibrate_rows(measured, judging, known=True, progress=False)

    def examine(row: ManifestRow, image: Any) -> tuple[str, np.ndarray[Any, Any]]:
        return row.patient_id, examine_image(measured, image).candidates.scores[:MOST_FINDINGS]

    normals = [row for row in fold.test if row.label == "negative" and row.assessment in DEFAULT.reading.normal]
    found = list(examine_rows(normals, examine, title="counting", progress=False))
    return [
        {
            "point": point.name,
            "rate": point.rate,
            "guaranteed": point.guaranteed,
            "false_alarm_rate": point.false_alarm_rate,
            "counts": [(patient, int((scores > point.threshold).sum())) for patient, scores in found],
        }
        for point in calibration.operating_points
        if point.unit == "finding"
    ]


def main() -> None:
    """Print a Markdown table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--annotation", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folds", type=int, default=3)
    options = parser.parse_args()
    manifest = read_inbreast(options.data, annotation=options.annotation)[0]
    data_hash = hash_manifest(manifest)
    plans = [
        (seed, number, fold)
        for seed in map(int, options.seeds.split(","))
        for number, fold in enumerate(draw_image_folds(manifest, count=options.folds, seed=seed))
    ]
    runs = [
        count_alarms(read_model(find_model_folder(options.out, fold, seed, number, data_hash=data_hash)), fold, seed)
        for seed, number, fold in show_progress(plans, title="folds", unit="fold")
    ]
    print("| point | false findings per image, measured | images with any: guaranteed at most | measured |")
    print("|---|---|---|---|")
    lines = []
    for points in zip(*runs, strict=True):
        patients, counts = zip(*(pair for point in points for pair in point["counts"]), strict=True)
        values = np.asarray(counts, np.float64)
        shares = np.stack([values / MOST_FINDINGS, values > 0])
        share, alarms = estimate_patient_means(shares, list(patients), rng=np.random.default_rng(0))
        rate, bound = share.scale(MOST_FINDINGS), float(np.mean([point["false_alarm_rate"] for point in points]))
        told = f"{points[0]['rate']:g} ({sum(point['guaranteed'] for point in points)} of {len(points)} guaranteed)"
        print(
            f"| {told} | {rate.value:.2f} ({rate.low:.2f} to {rate.high:.2f}) | {bound:.2f} | "
            f"{alarms.value:.2f} ({alarms.low:.2f} to {alarms.high:.2f}) |"
        )
        lines.append({"rate": points[0]["rate"], "measured": rate.value, "bound": bound, "alarms": alarms.value})
    print(f"\n{NOTICE}")
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
