"""How do detectors do on patches that are centred on a calcification, rather than laid on a grid?

A grid cuts calcifications at its lines and lets most of them lie off centre, which is how an image is met in use;
patches centred on the annotations are how other work often judges. Same folds over patients and same normals as
`unary bench`; only the positives differ: one patch per annotated calcification of images of BI-RADS 5, and of 2 to 4,
those that are nearer to a chosen one than half a patch left out.

    python benchmarks/centred.py --data INBREAST [--annotation images.csv] [--seeds 0,1,2]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from unary.datasets.inbreast import read_inbreast
from unary.detectors.fusion import Fusion
from unary.detectors.laplacian import Laplacian
from unary.detectors.scoring import score_patches
from unary.evaluation.intervals import Run, difference_over_seeds, estimate_over_seeds
from unary.experiments.bench_data import collect_bench_data, draw_folds
from unary.patches.collection import Collection
from unary.patches.grid import GridConfig
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import PreparationConfig
from unary.profiles import MAMMOGRAPHY
from unary.records import NOTICE
from unary.training.context import FitContext

GROUPS = {"BI-RADS 5": ("5",), "BI-RADS 2 to 4": ("2", "3", "4")}


def centre_patches(part: Collection, lesions_of, birads: tuple[str, ...], *, spacing_mm: float | None):
    """Return (image number, patient, row, col) of patches centred on calcifications, on the grid of a collection.

    ``spacing_mm`` is that of its working grid; None for the stored grid.
    """
    size, found = part.patches.size_px, []
    for number, row in enumerate(part.rows):
        own = np.flatnonzero(part.image == number)
        if (row.assessment or "")[:1] not in birads or len(own) == 0:
            continue
        scale = 1.0 if spacing_mm is None else spacing_mm / float(part.spacings_mm[number].mean())
        offset = part.origins[own[0]] - part.patches.index[own[0], 1:]
        image = int(part.patches.index[own[0], 0])
        last = np.asarray(part.patches.images[image].shape) - size
        chosen: list[np.ndarray] = []
        for lesion in lesions_of(row.image_id):
            if MAMMOGRAPHY.reading.find_group(lesion.name) != "calcification":
                continue
            points = np.asarray(lesion.points, float) / scale - offset
            middle = (points.min(axis=0) + points.max(axis=0)) / 2
            if all(np.abs(middle - other).max() >= size / 2 for other in chosen):
                chosen.append(middle)
        origins = [np.clip(np.rint(middle - size / 2).astype(int), 0, last).tolist() for middle in chosen]
        found += [(image, row.patient_id, *origin) for origin in origins]
    return found


def main() -> None:
    """Print a Markdown table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--annotation", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    manifest, _ = read_inbreast(options.data, annotation=options.annotation)
    data = collect_bench_data(manifest, PreparationConfig(), GridConfig(), MAMMOGRAPHY)
    patients = data.fine.column("patient_id")
    grids = {"fusion": (data.coarse, MAMMOGRAPHY.lengths.working_spacing_mm), "laplacian": (data.fine, None)}
    centred = {
        (group, name): centre_patches(part, manifest.lesions_of, birads, spacing_mm=spacing_mm)
        for group, birads in GROUPS.items()
        for name, (part, spacing_mm) in grids.items()
    }
    runs: dict[str, dict[str, list[Run]]] = {name: {"fusion": [], "laplacian": []} for name in GROUPS}
    for seed in [int(part) for part in options.seeds.split(",")]:
        for fold in draw_folds(data, count=3, seed=seed):
            context = FitContext(seed, title=f"seed {seed}, fold {fold.number}")
            detectors = {
                "fusion": Fusion().fit(data.coarse.patches.subset(fold.train), context),
                "laplacian": Laplacian().fit(data.fine.patches.subset(fold.train), context),
            }
            test = fold.test[data.normal[fold.test]]
            seen = set(patients[fold.train].tolist())
            for name, detector in detectors.items():
                patches = grids[name][0].patches
                negative = score_patches(detector, patches.subset(test))
                for group in GROUPS:
                    kept = [place for place in centred[group, name] if place[1] not in seen]
                    index = np.asarray([(image, row, col) for image, _, row, col in kept], np.int32).reshape(-1, 3)
                    positive = score_patches(detector, PatchSet(patches.images, index, patches.size_px))
                    truth = np.repeat([True, False], [len(positive), len(negative)])
                    who = np.concatenate([[place[1] for place in kept], patients[test]])
                    runs[group][name].append(Run(np.concatenate([positive, negative]), truth, who))
    document = {}
    print("| calcifications, centred | patches | fusion | laplacian | fusion - laplacian |")
    print("|---|---|---|---|---|")
    for group, by_name in runs.items():
        found = {name: estimate_over_seeds(of, rng=np.random.default_rng(0)) for name, of in by_name.items()}
        difference = difference_over_seeds(by_name["fusion"], by_name["laplacian"], rng=np.random.default_rng(0))
        cells = [f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in (*found.values(), difference)]
        print(f"| {group} | {len(centred[group, 'fusion'])} | " + " | ".join(cells) + " |")
        document[group] = {name: [one.value, one.low, one.high] for name, one in found.items()}
    print(f"\n{NOTICE}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
