"""What the paper leaves open, decided by experiment: how the network starts, and how intensity is scaled.

Trains the paper's network on the BI-RADS 1 images of an INbreast folder, whole patients held out, for a few epochs per
choice and seed, and prints what was learned: the share of the within-patch variance that is left unexplained, the share
of dead units, and the AUROC of the RMSE for calcifications of BI-RADS 5 images against held-out normals. A table for
people, one JSON line last. The choice was made by the unexplained share, which needs no positive.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from unary.datasets.inbreast import read_inbreast
from unary.detectors.scoring import score_patches
from unary.detectors.wei2018 import learning
from unary.detectors.wei2018.autoencoder import build_autoencoder
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.evaluation.roc import auroc
from unary.experiments.wei2018 import hold_out, select_images
from unary.patches.collection import Collection, collect_patches
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import MAMMOGRAPHY
from unary.training.context import FitContext

CHOICES = (
    ("percentile", "pyramid"),
    ("percentile", "random"),
    ("full_scale", "pyramid"),
)


def measure(collection: Collection, start: str, *, seed: int, epochs: int) -> dict[str, float]:
    """Train once and return what was learned."""
    birads = collection.column("assessment")
    held = hold_out(collection, "patient", share=0.2, seed=seed)
    fitted = (birads == "1") & ~held
    learning.build_autoencoder = lambda config, *, seed: build_autoencoder(
        dataclasses.replace(config, initialisation=start), seed=seed
    )
    config = Wei2018Config(training=learning.TrainingConfig(epochs=epochs))
    detector = Wei2018(config).fit(collection.patches.subset(np.flatnonzero(fitted)), FitContext(seed))
    positive = collection.contains["calcification"] & (birads == "5")
    kept = np.flatnonzero(held | positive)
    scores = score_patches(detector, collection.patches.subset(kept))
    return {
        "unexplained": detector.history.unexplained,
        "dead_units": detector.history.dead_units[-1],
        "auroc_calcification": auroc(scores, positive[kept]),
    }


def main() -> None:
    """Run all choices and seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="INbreast folder")
    parser.add_argument("--annotation", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    manifest = select_images(read_inbreast(options.data, annotation=options.annotation)[0])
    results = {}
    print(f"{'intensity':12s}{'start':10s}{'unexplained':>22s}{'dead units':>14s}{'AUROC calcification':>24s}")
    for intensity in dict.fromkeys(name for name, _ in CHOICES):
        collection = collect_patches(
            manifest, PreparationConfig(intensity=intensity), GridConfig(), MAMMOGRAPHY.reading
        )
        for start in (second for first, second in CHOICES if first == intensity):
            runs = [measure(collection, start, seed=seed, epochs=options.epochs) for seed in range(options.seeds)]
            columns = {name: [run[name] for run in runs] for name in runs[0]}
            results[f"{intensity}, {start}"] = columns
            texts = [" ".join(f"{value:.3f}" for value in values) for values in columns.values()]
            print(f"{intensity:12s}{start:10s}{texts[0]:>22s}{texts[1]:>20s}{texts[2]:>22s}", flush=True)
    print(json.dumps({"epochs": options.epochs, "results": results}))


if __name__ == "__main__":
    main()
