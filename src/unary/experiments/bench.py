"""One bench for all detectors: the same patches, folds over patients, and figures that come with intervals.

Each detector learns from normal patches of all folds but one and scores what is left. The areas of the folds are
averaged, each fold having its own model, and the patients of all folds are drawn together for the intervals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shlex
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unary.bundle import describe_versions
from unary.errors import SplitError, TrainingError
from unary.evaluation.intervals import Estimate, FewPatientsError
from unary.evaluation.metrics import (
    ALL,
    NORMAL_LOOKING,
    ScoreTable,
    compare_detectors,
    select_runs,
    summarise,
    write_metrics,
    write_scores,
)
from unary.experiments.bench_data import BenchData, Fold, collect_bench_data, draw_folds
from unary.files import replacing
from unary.patches import GridConfig
from unary.pipeline import build_table
from unary.prepare import PreparationConfig
from unary.records import Manifest

__all__ = ["BenchConfig", "BenchData", "BenchResult", "Cell", "Entrant", "Fold", "Kind", "Scorer", "run_bench"]

logger = logging.getLogger(__name__)

Kind = Literal["control", "no learning", "normals only", "normals + lesion prior"]
REFERENCES = ("laplacian", "wei2018")
MAIN_GROUPS = ("calcification_birads5", "calcification_birads2_4", "calcification", "mass", ALL)
_FORMAT = 1


class Scorer(Protocol):
    """A fitted detector."""

    @property
    def parameters(self) -> int:
        """Number of learned weights; 0 for none."""
        ...

    def score(self, data: BenchData, which: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return one score per chosen patch, shape (len(which),), higher being more abnormal."""
        ...


Fit = Callable[[BenchData, NDArray[np.intp], int, Path], Scorer]


@dataclass(frozen=True)
class Entrant:
    """A detector that takes part.

    Attributes
    ----------
    name
        A short word, usable as a file name.
    kind
        What it knows.
    summary
        One line for the table.
    fit
        Called with the data, the positions of the normal patches to learn from, the seed, and a path that may be used
        as a checkpoint; may raise `TrainingError`.
    """

    name: str
    kind: Kind
    summary: str
    fit: Fit


@dataclass(frozen=True)
class BenchConfig:
    """The comparison. Each seed divides the patients anew and starts training anew."""

    preparation: PreparationConfig = dataclasses.field(default_factory=PreparationConfig)
    grid: GridConfig = dataclasses.field(default_factory=GridConfig)
    folds: int = 3
    seeds: tuple[int, ...] = (0,)
    resamples: int = 2000

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise SplitError(f"a cross-validation needs at least 2 folds, got {self.folds}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct, and at least one, got {self.seeds}")


@dataclass(frozen=True, eq=False)
class Cell:
    """What one detector did in one fold.

    ``scores`` has one entry, float64, per position of the fold's ``test``; times are in seconds.
    """

    scores: NDArray[np.float64]
    fit_seconds: float
    score_seconds_per_image: float
    parameters: int


@dataclass(frozen=True, eq=False)
class BenchResult:
    """Everything that the reports show.

    Attributes
    ----------
    folds, tables
        One per seed and fold, in the same order; a table holds the detectors that have scores there.
    cells
        By detector, one per fold; None where it failed.
    failures
        By detector, why it is not in ``metrics``.
    metrics
        ``{NAME: {GROUP: {...}}}`` as in `unary.evaluation.metrics`, of the detectors that finished every fold.
    differences
        ``{REFERENCE: {NAME: {GROUP: estimate}}}``: AUROC of NAME minus that of REFERENCE, paired.
    """

    config: BenchConfig
    manifest: Manifest
    data: BenchData
    entrants: tuple[Entrant, ...]
    folds: tuple[Fold, ...]
    tables: tuple[ScoreTable, ...]
    cells: dict[str, tuple[Cell | None, ...]]
    failures: dict[str, str]
    metrics: dict[str, Any]
    differences: dict[str, dict[str, dict[str, Estimate]]]
    meta: dict[str, Any]
