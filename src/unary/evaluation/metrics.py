"""Tables of scores, the summary that ``metrics.json`` holds, and both on disk.

One schema serves every command::

    {"detectors": {NAME: {SPLIT: {GROUP: {
        "auroc": x, "auroc_ci95": [lo, hi] or null, "auroc_per_seed": [x, ...], "average_precision": x,
        "sensitivity_at_specificity": {"0.90": x, "0.95": x, "0.99": x},
        "n_positive": n, "n_negative": n, "n_positive_patients": n, "n_negative_patients": n,
        "n_images": n, "n_patients": n, "note": text}}}},
     "meta": {...}}

Only ``reproduce wei2018`` has the level SPLIT (``patch`` or ``patient``), and READING (``whole_image`` or ``tissue``)
above it; elsewhere GROUP follows NAME. ``note`` is there only when something limits what the numbers can say.

`unary bench` adds ``"average_precision_ci95": [lo, hi] or null`` and ``"sensitivity_ci95": {"0.90": [lo, hi], ...}``.

`unary evaluate` adds what was found image by image, where X_ci95 stands for [lo, hi] or null::

    {"detection": {
        "counts": {"images": n, "normal_images": n, ...},
        "froc": {GROUP: {"sensitivity": {"0.1": x, ...}, "sensitivity_ci95": {...}, "mean_sensitivity": x, X_ci95,
            "n_lesions": n, "n_lesion_patients": n, "n_normal_images": n, "n_normal_patients": n, "note": text}},
        "operating_points": {
            "1": {"threshold": x, "expected_false_findings": x, "expected_is_guaranteed": bool,
                "guaranteed_false_alarm_rate": x, "calibration_patients": n, "false_findings": x, X_ci95,
                "false_alarm_rate": x, X_ci95, "n_normal_images": n, "n_normal_images_with_finding": n, ...},
            "patch_0.95": {"threshold": x, "expected_share_of_patches": x, "expected_is_guaranteed": bool,
                "calibration_patients": n, "share_of_patches": x, X_ci95, "n_normal_images": n, ...}, ...},
        "image_auroc": {COMPARISON: {"auroc": x, X_ci95, "n_positive": n, "n_positive_patients": n, ...}},
        "pixels": {GROUP: {"auroc": x, X_ci95, "average_precision": x, X_ci95, "n_positive": n, ...}}}}
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.intervals import (
    Estimate,
    FewPatientsError,
    Run,
    as_pair,
    count_pairs,
    difference_over_seeds,
    estimate_over_seeds,
)
from unary.evaluation.roc import (
    EvaluationError,
    OneClassError,
    Statistic,
    auroc,
    average_precision,
    sensitivity_at_specificity,
    weighted_average_precisions,
    weighted_sensitivities,
)
from unary.files import replacing
from unary.progress import show_progress
from unary.records import count_words

Differences = dict[str, dict[str, dict[str, Estimate]]]

ALL = "all"
NORMAL_LOOKING = "normal_looking"
SPECIFICITIES = (0.90, 0.95, 0.99)
_INTERVAL = "_ci95"
_INTERVALS = {"sensitivity_at_specificity": "sensitivity"}  # what the bench calls those of another name
FEW_PATIENTS = 10
"""Of either class: percentile intervals over fewer are visibly too narrow in simulation, so that nothing is claimed."""


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """The scores of one test set under one seed, by detector: one row per patch, columns of shape (n,).

    Attributes
    ----------
    positive
        The patch contains a lesion.
    groups
        Membership by name. A patch may belong to several, as with a calcification inside a
        mass. All are subsets of the positives, but for ``normal_looking``: patches without a lesion from images with
        one, which are neither negatives nor positives.
    row, col
        The patch's first pixel on the working grid.
    split
        How test patches were held out, ``"patch"`` or ``"patient"``; ``"test"`` where there is only one way.

    Raises
    ------
    EvaluationError
        If the columns contradict each other.
    """

    scores: Mapping[str, NDArray[np.float64]]
    positive: NDArray[np.bool_]
    groups: Mapping[str, NDArray[np.bool_]]
    patient: NDArray[Any] = field(repr=False)
    image: NDArray[Any]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    seed: int
    split: str

    def __post_init__(self) -> None:
        count = len(self.positive)
        columns = {"patient": self.patient, "image": self.image, "row": self.row, "col": self.col}
        for name, column in {**columns, **self.groups, **self.scores}.items():
            if np.shape(column) != (count,):
                raise EvaluationError(f"column {name!r} must have {count} entries, got shape {np.shape(column)}")
        if not self.scores:
            raise EvaluationError("a table of scores needs at least one detector")
        for name, member in self.groups.items():
            wrong = member & (self.positive if name == NORMAL_LOOKING else ~self.positive)
            if wrong.any():
                what = "contain a lesion" if name == NORMAL_LOOKING else "are not marked positive"
                raise EvaluationError(f"{int(wrong.sum())} patches of group {name!r} {what}")

    def __len__(self) -> int:
        return len(self.positive)

    def roles(self, group: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return who plays the positives and who the negatives of a group, each of shape (n,), bool.

        The negatives are the same for every group. ``all`` holds every positive; ``normal_looking`` is the control in
        which patches without a lesion play the positives, so that an area above 0.5 measures how far images, rather
        than lesions, differ.
        """
        control = self.groups.get(NORMAL_LOOKING, np.zeros(len(self), bool))
        if group == ALL:
            return self.positive, ~self.positive & ~control
        return self.groups.get(group, np.zeros(len(self), bool)), ~self.positive & ~control


def select_runs(tables: Sequence[ScoreTable], *, detector: str, group: str = ALL) -> list[Run | None]:
    """Return one detector's scores of one group against the negatives, per table; None where a class is missing."""
    runs: list[Run | None] = []
    for table in tables:
        positives, negatives = table.roles(group)
        kept = positives | negatives
        whole = positives.any() and negatives.any()
        runs.append(Run(table.scores[detector][kept], positives[kept], table.patient[kept]) if whole else None)
    return runs


def summarise(
    tables: Sequence[ScoreTable],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    rate_intervals: bool = False,
    progress: bool = True,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Summarise the tables of one split, one per seed, for every detector and group.

    Parameters
    ----------
    tables
        Of the same detectors and split, with different seeds.
    rng, resamples
        Of the bootstrap. The source is asked once: all detectors meet the same drawn patients, and one detector more
        changes no number of the others.
    rate_intervals
        Whether average precision and the sensitivities get intervals too, which takes five times as long.
    progress
        Show a bar on standard error when that is a terminal.

    Returns
    -------
    dict
        ``{NAME: {GROUP: {...}}}`` as in the module's schema. Areas, precisions and sensitivities are means over
        seeds. Counts are of distinct patches, images and patients over all seeds. A group without any positive is
        absent; for a seed without any, ``auroc_per_seed`` holds None.

    Raises
    ------
    OneClassError
        If there are no positives or no negatives at all.
    EvaluationError
        If tables disagree on detectors or split, or as `auroc`.
    """
    if not tables or {table.split for table in tables} != {tables[0].split}:
        raise EvaluationError("a summary needs the tables of one split, one per seed")
    names = list(tables[0].scores)
    if any(set(table.scores) != set(names) for table in tables):
        raise EvaluationError("every seed must have been scored by the same detectors")
    groups = [ALL, *dict.fromkeys(name for table in tables for name in table.groups)]
    entropy = int(rng.integers(2**63))
    summary: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    for group in show_progress(groups, title="intervals", unit="group", shown=progress, leave=False):
        counts = _count_distinct(tables, group)
        if counts["n_positive"] == 0 or counts["n_negative"] == 0:
            if group != ALL:
                continue
            raise OneClassError(
                f"the test sets must hold both classes, but there are {counts['n_positive']} positive and "
                f"{counts['n_negative']} negative patches; does the manifest have labels and lesions?"
            )
        for name in names:
            runs = select_runs(tables, detector=name, group=group)
            rates = _summarise_runs(runs, rng=np.random.default_rng(entropy), resamples=resamples)
            summary[name][group] = {**counts, **rates}
            if rate_intervals:
                summary[name][group] |= _bound_rates(runs, entropy, resamples=resamples)
    return summary


def compare_detectors(
    tables: Sequence[ScoreTable],
    *,
    first: str,
    second: str,
    rng: np.random.Generator,
    group: str = ALL,
    resamples: int = 2000,
) -> Estimate:
    """Return the mean AUROC over seeds of ``first`` minus that of ``second``, with its paired 95 % interval.

    Raises
    ------
    EvaluationError
        If there are too few patients for an interval, or no seed has both classes.
    """
    pairs = [select_runs(tables, detector=name, group=group) for name in (first, second)]
    kept = [[run for run in runs if run is not None] for runs in pairs]
    return difference_over_seeds(kept[0], kept[1], rng=rng, resamples=resamples)


def compare_all(
    tables: Sequence[ScoreTable], asked: Iterable[tuple[str, str, str]], *, resamples: int, progress: bool = True
) -> Differences:
    """Return ``{REFERENCE: {NAME: {GROUP: estimate}}}``: AUROC of NAME minus that of REFERENCE, paired.

    Asked are (reference, name, group); absent is where patients are too few, which the table of metrics says already.
    """
    found: Differences = {}
    for reference, name, group in show_progress(
        list(asked), title="comparing", unit="pair", shown=progress, leave=False
    ):
        with contextlib.suppress(FewPatientsError):
            rng = np.random.default_rng(0)
            found.setdefault(reference, {}).setdefault(name, {})[group] = compare_detectors(
                tables, first=name, second=reference, rng=rng, group=group, resamples=resamples
            )
    return found


def write_metrics(
    path: Path, detectors: Mapping[str, Any], *, meta: Mapping[str, Any], detection: Mapping[str, Any] | None = None
) -> None:
    """Write ``metrics.json``: keys sorted, two spaces, no NaN; the old file stays until the new one is whole.

    The folder is created. ``detectors`` is ``{NAME: {GROUP: {...}}}``, or with READING and SPLIT above GROUP; ``meta``
    what else a reader needs: seeds, data hash, versions, command, configuration, counts, notices; ``detection`` the
    figures of findings, whose key is absent where there are none.

    A number that is NaN or infinite, which JSON cannot say, is a ValueError.
    """
    document = {"detectors": detectors, "meta": meta, **({"detection": detection} if detection is not None else {})}
    text = json.dumps(document, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Figure:
    """One number of a ``metrics.json``: the names that lead to it, and its 95 % interval where it has one."""

    path: tuple[str, ...]
    value: float
    low: float | None
    high: float | None


def list_figures(document: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield every number that a ``metrics.json`` gives under ``detectors`` and ``detection``, in its order.

    >>> found = {"auroc": 0.8, "auroc_ci95": [0.7, 0.9], "auroc_per_seed": [0.8], "note": "few"}
    >>> for figure in list_figures({"detectors": {"laplacian": {"all": found}}}):
    ...     print("/".join(figure.path), figure.value, figure.low, figure.high)
    detectors/laplacian/all/auroc 0.8 0.7 0.9
    detectors/laplacian/all/auroc_per_seed/0 0.8 None None
    """
    for part in ("detectors", "detection"):
        yield from _list_figures(document.get(part), (part,), None)


def _list_figures(content: Any, path: tuple[str, ...], interval: Any) -> Iterator[Figure]:
    """The numbers at and below a place; ``interval`` is theirs, or holds theirs by name."""
    if isinstance(content, Mapping):
        for name, inside in content.items():
            if not name.endswith(_INTERVAL):
                bounds = interval.get(name) if isinstance(interval, Mapping) else None
                own = content.get(f"{_INTERVALS.get(name, name)}{_INTERVAL}", bounds)
                yield from _list_figures(inside, (*path, name), own)
    elif isinstance(content, list):
        for number, inside in enumerate(content):
            yield from _list_figures(inside, (*path, str(number)), None)
    elif isinstance(content, (int, float)) and not isinstance(content, bool):
        low, high = interval or (None, None)
        yield Figure(path, float(content), low, high)


def write_scores(path: Path, tables: Sequence[ScoreTable]) -> None:
    """Write ``scores.parquet``: one row per patch and seed.

    The columns are ``split``, ``seed``, ``image_id``, ``patient_id``, ``row``, ``col``, ``positive``, one bool
    ``group_<name>`` per group and one float64 ``score_<detector>`` per detector; null where a table lacks one. The old
    file stays until the new one is whole.
    """
    import pyarrow
    import pyarrow.parquet

    if not tables:
        raise EvaluationError("there are no scores to write")
    groups = dict.fromkeys(name for table in tables for name in table.groups)
    detectors = dict.fromkeys(name for table in tables for name in table.scores)
    parts = []
    for table in tables:
        missing = [None] * len(table)
        columns = {
            "split": ([table.split] * len(table), "string"),
            "seed": ([table.seed] * len(table), "int64"),
            "image_id": (table.image.tolist(), "string"),
            "patient_id": (table.patient.tolist(), "string"),
            "row": (table.row, "int64"),
            "col": (table.col, "int64"),
            "positive": (table.positive, "bool"),
            **{f"group_{name}": (table.groups.get(name, missing), "bool") for name in groups},
            **{f"score_{name}": (table.scores.get(name, missing), "float64") for name in detectors},
        }
        parts.append(pyarrow.table({name: pyarrow.array(*column) for name, column in columns.items()}))
    whole = pyarrow.concat_tables(parts)
    with replacing(path) as partial:
        pyarrow.parquet.write_table(whole, partial)


def _summarise_runs(runs: Sequence[Run | None], *, rng: np.random.Generator, resamples: int) -> dict[str, Any]:
    present = [run for run in runs if run is not None]
    estimate = estimate_over_seeds(present, rng=rng, resamples=resamples)
    note = _note(present, estimate)
    sensitivities = {
        f"{at:.2f}": float(np.mean([sensitivity_at_specificity(r.scores, r.positive, specificity=at) for r in present]))
        for at in SPECIFICITIES
    }
    return {
        **as_pair("auroc", estimate),
        "auroc_per_seed": [None if run is None else auroc(run.scores, run.positive) for run in runs],
        "average_precision": float(np.mean([average_precision(run.scores, run.positive) for run in present])),
        "sensitivity_at_specificity": sensitivities,
        **({"note": note} if note else {}),
    }


def _bound_rates(runs: Sequence[Run | None], entropy: int, *, resamples: int) -> dict[str, Any]:
    """The intervals of average precision and sensitivities, from the same draws as the area's."""
    present = [run for run in runs if run is not None]

    def bound(compute: Statistic) -> list[float] | None:
        rng = np.random.default_rng(entropy)
        return estimate_over_seeds(present, compute=compute, rng=rng, resamples=resamples).interval

    return {
        "average_precision_ci95": bound(weighted_average_precisions),
        "sensitivity_ci95": {
            f"{level:.2f}": bound(functools.partial(weighted_sensitivities, specificity=level))
            for level in SPECIFICITIES
        },
    }


def _note(runs: Sequence[Run], estimate: Estimate) -> str:
    notes = []
    if all(np.ptp(run.scores) == 0 for run in runs):
        notes.append("all scores are equal: this detector tells nothing apart")
    positives = len({name for run in runs for name in run.patients[run.positive].tolist()})
    negatives = len({name for run in runs for name in run.patients[~run.positive].tolist()})
    if min(positives, negatives) < FEW_PATIENTS:
        rests = f"{count_words(positives, 'patient')} with positives and {negatives} with negatives: too few to tell"
        notes.append(f"no interval: {rests}" if estimate.low is None else f"the interval rests on {rests}")
    elif estimate.low is None:
        notes.append("no interval: every draw of patients gives the same")
    if estimate.low is not None and estimate.value in (0.0, 1.0):
        notes.append(f"the interval is the exact one of {count_words(count_pairs(runs), 'pair')} of patients")
    return "; ".join(notes)


def _count_distinct(tables: Sequence[ScoreTable], group: str) -> dict[str, int]:
    """Distinct patches and patients of either role, and distinct images and patients of both, over all tables."""
    patches: tuple[set[Any], set[Any]] = (set(), set())
    patients: tuple[set[str], set[str]] = (set(), set())
    images = set[str]()
    for table in tables:
        for role, chosen in enumerate(table.roles(group)):
            names = table.image[chosen].tolist()
            patches[role].update(zip(names, table.row[chosen].tolist(), table.col[chosen].tolist(), strict=True))
            images.update(names)
            patients[role].update(table.patient[chosen].tolist())
    counted = dict(zip(("n_positive", "n_negative"), map(len, patches), strict=True))
    counted |= dict(zip(("n_positive_patients", "n_negative_patients"), map(len, patients), strict=True))
    return {**counted, "n_images": len(images), "n_patients": len(patients[0] | patients[1])}
