"""What the experiments share: results kept in files, paired comparisons, curves, and what tells of a run's making."""

from __future__ import annotations

import dataclasses
import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import ScoreTable, select_runs
from unary.files import replacing
from unary.models.bundle import describe_versions
from unary.models.card import describe_command
from unary.outputs.figures import figure_png, plot_roc
from unary.patches.collection import Collection
from unary.records import NOTICE

logger = logging.getLogger(__name__)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays by name; the file is whole or not there."""
    with replacing(path) as partial:
        np.savez(partial, **arrays)


def read_arrays(path: Path, *names: str) -> tuple[NDArray[Any], ...] | None:
    """Return the arrays of these names, or None where there is no file or only a damaged one, which a warning names."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return tuple(stored[name] for name in names)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        logger.warning("%s: not readable (%s); this run is done again", path, error)
        return None


def describe_run(experiment: str) -> dict[str, Any]:
    """Return what every ``metrics.json`` says first: experiment, notice, command and versions."""
    versions = describe_versions()
    return {"experiment": experiment, "notice": NOTICE, "command": describe_command(), "versions": versions}


def count_patches(collection: Collection, which: NDArray[Any]) -> dict[str, int]:
    """Count the patches that are meant (bool, or positions), their images and their patients."""
    image, patient = collection.image[which], collection.column("patient_id")[which]
    return {"patches": len(image), "images": len(np.unique(image)), "patients": len(np.unique(patient))}


def build_table(
    collection: Collection,
    scores: dict[str, NDArray[np.float64]],
    kept: NDArray[np.integer],
    *,
    positive: NDArray[np.bool_],
    groups: dict[str, NDArray[np.bool_]],
    seed: int,
    split: str,
) -> ScoreTable:
    """Return the table of the patches at the positions ``kept``.

    ``scores`` has one entry per kept patch; ``positive`` and ``groups`` have one per patch of the collection.
    """
    return ScoreTable(
        scores=scores,
        positive=positive[kept],
        groups={name: member[kept] for name, member in groups.items()},
        patient=collection.column("patient_id")[kept],
        image=collection.column("image_id")[kept],
        row=collection.origins[kept, 0].astype(np.int64),
        col=collection.origins[kept, 1].astype(np.int64),
        seed=seed,
        split=split,
    )


def as_document(found: Any) -> Any:
    """Return nested dictionaries of estimates as JSON can hold them."""
    if isinstance(found, Estimate):
        return dataclasses.asdict(found)
    return {name: as_document(inner) for name, inner in found.items()}


def describe_range(found: Estimate) -> str:
    """Return the interval of a difference, or nothing."""
    return "" if found.low is None else f"{found.low:+.3f} to {found.high:+.3f}"


def draw_curves(
    tables: Sequence[ScoreTable],
    found: Mapping[str, Mapping[str, Any]],
    group: str,
    *,
    each_seed: bool = True,
    unit: str = "patch",
) -> bytes:
    """Return ROC curves of one group as PNG; ``found`` holds the group's figures by detector."""
    runs = {name: [run for run in select_runs(tables, detector=name, group=group) if run is not None] for name in found}
    estimates = {name: Estimate(one["auroc"], *(one["auroc_ci95"] or (None, None))) for name, one in found.items()}
    return figure_png(plot_roc(runs, estimates=estimates, each_seed=each_seed, unit=unit))
