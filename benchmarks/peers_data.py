"""The patches and pictures that all methods of ``peers.py`` get: drawn once, written to disk, the same for each."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.datasets.inbreast import read_inbreast
from unary.errors import ManifestError
from unary.evaluation.metrics import ScoreTable
from unary.experiments.bench_data import BenchData, Fold, collect_bench_data, draw_folds
from unary.experiments.image_level_sets import ImageSet, open_brain_mr, open_chest_films
from unary.experiments.image_level_stages import ONE_BANDWIDTH, WITHOUT_COPIES, Stage, read_stages
from unary.patches.collection import collect_patches
from unary.patches.grid import GridConfig
from unary.patches.patch_set import PatchSet, build_patch_set, join_patch_sets
from unary.patches.preparation import PreparationConfig
from unary.profiles import DEFAULT, find_profile
from unary.records import Manifest, ManifestRow

USUAL = ONE_BANDWIDTH + WITHOUT_COPIES
SIDE_PX = 128
"""Of whole pictures; patches of mammograms are of 64 px at the working spacing, 0.14 mm."""


@dataclass(frozen=True)
class Limits:
    """How many normals are learned from in each task, and how many are tested; of images, as many abnormal ones."""

    train: int = 600
    test: int = 400


@dataclass(frozen=True, eq=False)
class PeerTask:
    """One division: its folder of arrays, whether pictures are aligned, and what is known of the test patches."""

    name: str
    folder: Path
    aligned: bool
    positive: NDArray[np.bool_]
    groups: dict[str, NDArray[np.bool_]]
    unit: NDArray[np.str_]

    def build_table(self, scores: dict[str, NDArray[np.float64]], number: int) -> ScoreTable:
        """Return the scores with the truth, as fold ``number``."""
        place = np.arange(len(self.positive))
        return ScoreTable(
            scores, self.positive, self.groups, self.unit, self.unit, place, 0 * place, seed=number, split="patient"
        )


def read_task(folder: Path) -> PeerTask:
    """Return a task that was written before."""
    facts = json.loads((folder / "task.json").read_text())
    with np.load(folder / "truth.npz", allow_pickle=False) as found:
        groups = {name.removeprefix("group_"): found[name] for name in found.files if name.startswith("group_")}
        return PeerTask(facts["name"], folder, facts["aligned"], found["positive"], groups, found["unit"])


def write_tasks(
    name: str, folder: Path, collect: Callable[[], list[dict[str, Any]]], facts: dict[str, Any]
) -> list[PeerTask]:
    """Collect and write the tasks of a data set, or read what an earlier call wrote with the same facts."""
    mark = folder / f"{name}.json"
    if not mark.exists() or json.loads(mark.read_text())["facts"] != facts:
        names = []
        for number, parts in enumerate(collect()):
            names.append(f"{name}-{number}")
            _write_task(folder / names[-1], name, **parts)
        mark.write_text(json.dumps({"facts": facts, "tasks": names}))
    return [read_task(folder / task) for task in json.loads(mark.read_text())["tasks"]]


def _write_task(
    folder: Path,
    name: str,
    *,
    arrays: dict[str, NDArray[np.uint16]],
    truth: dict[str, NDArray[Any]],
    pickles: dict[str, Any],
    aligned: bool,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, values in arrays.items():
        np.save(folder / f"{part}.npy", values)
    for part, value in pickles.items():
        (folder / f"{part}.pickle").write_bytes(pickle.dumps(value))
    np.savez(folder / "truth.npz", **truth)
    (folder / "task.json").write_text(json.dumps({"name": name, "aligned": aligned}))


def draw(rng: np.random.Generator, members: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Return ``count`` of the members at most, in their order.

    >>> draw(np.random.default_rng(0), np.arange(5), 9).tolist()
    [0, 1, 2, 3, 4]
    """
    return np.sort(rng.choice(members, min(count, len(members)), replace=False))


def collect_inbreast(
    data: Path, annotation: Path | None, limits: Limits, *, folds: int, seed: int
) -> list[dict[str, Any]]:
    """The bench's folds: normals to learn from; held-out normals, and every patch with a lesion, to test."""
    manifest, _ = read_inbreast(data, annotation=annotation)
    bench = collect_bench_data(manifest, PreparationConfig(mask=DEFAULT.mask), GridConfig(), DEFAULT)
    return [_cut_fold(bench, fold, limits) for fold in draw_folds(bench, count=folds, seed=seed)]


def _cut_fold(bench: BenchData, fold: Fold, limits: Limits) -> dict[str, Any]:
    rng = np.random.default_rng([fold.seed, fold.number])
    train = draw(rng, fold.train, limits.train)
    normal = draw(rng, fold.test[bench.normal[fold.test]], limits.test)
    test = np.sort(np.concatenate([normal, fold.test[bench.positive[fold.test]]]))
    groups = {f"group_{name}": bench.groups[name][test] for name in bench.main_groups[:-1]}
    coarse = bench.coarse.patches
    sets = {"working": coarse, "stored": bench.fine.patches}
    pickles = {name: (keep_used(own.subset(train)), keep_used(own.subset(test))) for name, own in sets.items()}
    arrays = {"train": coarse.gather(train), "test": coarse.gather(test)}
    pickles["alone"] = (isolate_patches(arrays["train"]), isolate_patches(arrays["test"]))
    patients = bench.fine.column("patient_id")[test]
    truth = {"positive": bench.positive[test], "unit": patients.astype(str), **groups}
    return {"arrays": arrays, "truth": truth, "pickles": pickles, "aligned": False}


def keep_used(patches: PatchSet) -> PatchSet:
    """Return the same patches without the images that have none."""
    used, place = np.unique(patches.index[:, 0], return_inverse=True)
    index = np.column_stack([place, patches.index[:, 1:]]).astype(np.int32)
    masks = None if patches.masks is None else tuple(patches.masks[number] for number in used)
    return PatchSet(tuple(patches.images[number] for number in used), index, patches.size_px, masks)


def isolate_patches(patches: NDArray[np.uint16]) -> PatchSet:
    """Return patches, (n, side, side), as images of their own, of which nothing around is known."""
    origin = np.zeros((1, 2), np.int32)
    return join_patch_sets([build_patch_set(one, origin, size_px=len(one)) for one in patches])


def collect_pictures(data: ImageSet, limits: Limits, *, split: str, seed: int) -> list[dict[str, Any]]:
    """Whole pictures in one of the conditions and without copies, as ``split`` says."""
    stages, _, _ = read_stages(data, side_px=SIDE_PX)
    stage = next(own for own in stages.values() if split.startswith(own.name))
    return [_cut_stage(stage, split.removeprefix(stage.name), limits, seed=seed)]


def _cut_stage(stage: Stage, part: str, limits: Limits, *, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, 0])
    distinct = stage.select(part)
    train = [stage.train[place] for place in draw(rng, np.arange(len(stage.train)), limits.train)]
    sides = (~stage.positive, stage.positive)
    places = np.sort(np.concatenate([draw(rng, np.flatnonzero(distinct & side), limits.test) for side in sides]))
    test = [stage.test[place] for place in places]
    return {
        "arrays": {"train": prepare_pictures(train), "test": prepare_pictures(test)},
        "truth": {"positive": stage.positive[places], "unit": np.asarray([row.patient_id for row in test])},
        "pickles": {"pictures": (train, test)},
        "aligned": True,
    }


def prepare_pictures(rows: Sequence[ManifestRow]) -> NDArray[np.uint16]:
    """Return pictures as unary prepares them, each one patch, in order; shape (n, SIDE_PX, SIDE_PX)."""
    profile = find_profile("general")
    preparation = PreparationConfig(mask=profile.mask, working_size_px=SIDE_PX)
    found = collect_patches(Manifest(tuple(rows)), preparation, GridConfig(SIDE_PX, SIDE_PX, 0.0), profile.reading)
    if [row.image_id for row in found.rows] != [row.image_id for row in rows] or len(found) != len(rows):
        raise ManifestError(f"{len(rows) - len(found)} of {len(rows)} pictures could not be prepared")
    return found.patches.gather(slice(None))


def open_sets(
    *, inbreast: Path | None, annotation: Path | None, brain: Path | None, chest: Path | None, split: str
) -> dict[str, Callable[[Limits, int, int], list[dict[str, Any]]]]:
    """Return, by name, what collects the tasks of each data set that is there, given limits, folds and seed.

    The ``split`` is that of whole pictures (`SPLITS`); it ends the name of a data set where it is not the usual one.
    """
    found: dict[str, Callable[[Limits, int, int], list[dict[str, Any]]]] = {}
    if inbreast is not None:
        found["inbreast"] = lambda limits, folds, seed: collect_inbreast(
            inbreast, annotation, limits, folds=folds, seed=seed
        )
    ending = "" if split == USUAL else f"_{split}"
    if brain is not None:
        found[f"brainmri{ending}"] = lambda limits, _, seed: collect_pictures(
            open_brain_mr(brain), limits, split=split, seed=seed
        )
    if chest is not None:
        found[f"chestxray{ending}"] = lambda limits, _, seed: collect_pictures(
            open_chest_films(chest), limits, split=split, seed=seed
        )
    return found
