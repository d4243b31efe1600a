"""What a batch would do with files, found out without examining any or writing anything."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unary.clinic.file_work import Job, explain_failure, hash_image_file, inspect_file
from unary.clinic.inputs import list_inputs
from unary.clinic.result_folder import list_made, name_origin
from unary.datasets.folder import LeftOut, describe_left_out
from unary.images.isolation import IsolatedReader, show_path
from unary.images.isolation_process import ReadingLimits
from unary.progress import show_progress
from unary.records import count_words


@dataclass(frozen=True)
class PlannedFile:
    """A file, and what would become of it: examined, kept since its result is there, or refused for a reason."""

    path: Path
    fate: Literal["examine", "keep", "refuse"]
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class BatchPlan:
    """What a batch would do: each file in the order given, and what would be left out of folders, by reason."""

    out: Path
    files: tuple[PlannedFile, ...]
    left_out: LeftOut = field(default_factory=dict)

    def count(self, fate: str) -> int:
        """Return how many files would have this fate."""
        return sum(each.fate == fate for each in self.files)


def plan_batch(
    inputs: Sequence[Path], out: Path, job: Job, *, limits: ReadingLimits | None = None, progress: bool = True
) -> BatchPlan:
    """Find out what `unary.clinic.batch.run_batch` would do with files, from their headers.

    Pixels are not read: a file whose pixels are damaged, or hold no tissue, fails only when it is examined.

    Raises
    ------
    UnaryError
        If ``out`` holds results of another command, or the process that reads cannot be started.
    """
    found, made = list_inputs(inputs), list_made(out, job.command)
    with IsolatedReader(limits) as reader:
        bar = show_progress(found.names, title="planning", unit="image", shown=progress, leave=False)
        files = tuple(_plan_file(path, job, reader, made) for path in bar)
    return BatchPlan(out, files, found.left_out)


def _plan_file(path: Path, job: Job, reader: IsolatedReader, made: frozenset[str]) -> PlannedFile:
    try:
        sha256 = hash_image_file(path, reader.limits) if made or os.path.isdir(path) else ""
        made_from = inspect_file(path, sha256, job, reader).source.made_from
    except Exception as error:
        cause = explain_failure(error, path)
        detail = str(cause).removeprefix(f"{show_path(path)}: ")
        return PlannedFile(path, "refuse", cause.reason or "NOT_USABLE", detail)
    return PlannedFile(path, "keep" if name_origin(made_from) in made else "examine")


def format_plan(plan: BatchPlan) -> str:
    """Return a line for each file that would be refused, and lines that count."""
    lines = [
        f"refused  {each.reason}: {show_path(each.path)}: {each.detail}" for each in plan.files if each.fate == "refuse"
    ]
    if plan.left_out:
        lines.append(describe_left_out(plan.left_out))
    would = f"{count_words(plan.count('examine'), 'image')} would be examined, {plan.count('keep')} done before"
    return "\n".join([*lines, f"{plan.out}: {would}, {plan.count('refuse')} refused. Nothing was written."])


def describe_plan(plan: BatchPlan) -> dict[str, Any]:
    """Return the same for JSON."""
    reasons = Counter(each.reason for each in plan.files if each.fate == "refuse")
    return {
        "dry_run": True,
        "out": plan.out,
        "examine": plan.count("examine"),
        "keep": plan.count("keep"),
        "refused": dict(sorted(reasons.items())),
        "left_out": plan.left_out,
        "files": [
            {"path": each.path, "fate": each.fate, "reason": each.reason or None, "detail": each.detail or None}
            for each in plan.files
        ],
    }
