"""How do the bench's figures look on lesion patients that no choice was made on?

The learned detectors and their fusion were designed on every second patient with lesions (in the order of their
identifiers, separately for those with and without an image of BI-RADS 5, as `explored_patients` says). This prints the
mean AUROC over folds and seeds of either half.

    python benchmarks/reserved.py RUN/scores.parquet --data INBREAST [--annotation images.csv]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet

from unary.datasets.inbreast import read_inbreast
from unary.evaluation.intervals import Run, estimate_over_seeds
from unary.records import NOTICE, Manifest

GROUPS = ("calcification_birads5", "calcification_birads2_4", "mass")


def explored_patients(manifest: Manifest) -> set[str]:
    """Return the lesion patients that choices were made on."""
    malignant = sorted({row.patient_id for row in manifest.rows if row.assessment == "5"})
    others = sorted({row.patient_id for row in manifest.rows if row.assessment not in ("1", "5")} - set(malignant))
    return {*malignant[::2], *others[::2]}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--annotation", type=Path)
    options = parser.parse_args()
    explored = explored_patients(read_inbreast(options.data, annotation=options.annotation)[0])
    table = pyarrow.parquet.read_table(options.scores).to_pydict()
    columns = {name: np.asarray(values) for name, values in table.items()}
    is_explored = np.isin(columns["patient_id"], sorted(explored))
    negative = ~columns["positive"].astype(bool) & ~columns["group_normal_looking"].astype(bool)
    detectors = [name.removeprefix("score_") for name in columns if name.startswith("score_")]
    heads = [f"{group}, {half}" for group in GROUPS for half in ("explored", "reserved")]
    print("| detector | " + " | ".join(heads) + " |")
    print("|---" * (1 + len(heads)) + "|")
    for name in detectors:
        cells = []
        for group in GROUPS:
            for half in (is_explored, ~is_explored):
                positive = columns[f"group_{group}"].astype(bool) & half
                runs = []
                for seed in np.unique(columns["seed"]):
                    kept = (columns["seed"] == seed) & (negative | positive)
                    if positive[kept].any():
                        scores = columns[f"score_{name}"][kept].astype(float)
                        runs.append(Run(scores, positive[kept], columns["patient_id"][kept]))
                found = estimate_over_seeds(runs, rng=np.random.default_rng(0))
                between = "" if found.low is None else f" ({found.low:.3f} to {found.high:.3f})"
                cells.append(f"{found.value:.3f}{between}")
        print(f"| `{name}` | " + " | ".join(cells) + " |")
    print(f"\n{NOTICE}")


if __name__ == "__main__":
    main()
