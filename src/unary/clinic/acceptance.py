"""Which files a model can use, told before it is run: each is accepted, or refused with a named reason.

The header decides first, by `unary.models.gate`; then the pixels are decoded, in a process of their own, and prepared
as the model does. So whatever `detect` would refuse, short of the model's own failure, is refused here, and the other
way round. What is unusual but usable is noted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unary.clinic.inputs import list_inputs, refuse_folder
from unary.datasets.folder import LeftOut, describe_left_out
from unary.datasets.series import describe_series
from unary.errors import ImageError, Reason, UnaryError, explain_unexpected
from unary.images.attributes import SlicePlace
from unary.images.isolation import IsolatedReader, show_path
from unary.images.isolation_process import ReadingLimits
from unary.models.gate import Gate, complete_spacing, describe_way, judge_domain, judge_header, require_room
from unary.patches.preparation import prepare_image
from unary.progress import show_progress
from unary.records import count_words


@dataclass(frozen=True)
class Check:
    """What was decided about one file: why it was refused, as a code and a sentence, if it was, and what is unusual.

    ``notes`` has one line for each thing that is unknown or unusual; ``place`` is that of a slice that was accepted.
    """

    path: Path
    accepted: bool
    reason: Reason | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    place: SlicePlace | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Checks:
    """What was decided about files, in the order given, what was left out of folders, by reason, and of series."""

    files: tuple[Check, ...]
    left_out: LeftOut
    series: tuple[str, ...] = ()

    @property
    def accepted(self) -> int:
        """How many were accepted."""
        return sum(check.accepted for check in self.files)


def check_files(
    inputs: Sequence[Path],
    gate: Gate | None = None,
    *,
    headers_only: bool = False,
    limits: ReadingLimits | None = None,
    progress: bool = True,
) -> Checks:
    """Check files, and the images in folders and all their sub-folders.

    A bad file never stops the others. An input that does not exist, and a folder without images, is a refused file.

    Parameters
    ----------
    gate
        What is asked of an image: `unary.models.gate.build_gate` of a model; by default that of the default profile.
    headers_only
        Do not decode the pixels: milliseconds instead of a second per file, and damage inside them stays unseen.

    Raises
    ------
    UnaryError
        If the process that reads images cannot be started.
    """
    found = list_inputs(inputs)
    with IsolatedReader(limits) as reader:
        bar = show_progress(found.names, title="checking", unit="image", shown=progress)
        checks = tuple(check_file(path, reader, gate, headers_only=headers_only) for path in bar)
    series = describe_series([check.place for check in checks], [show_path(check.path) for check in checks])
    return Checks(checks, found.left_out, series)


def check_file(path: Path, reader: IsolatedReader, gate: Gate | None = None, *, headers_only: bool = False) -> Check:
    """Check one file, as `check_files` does; the first reason against it counts, further ones stand in the notes."""
    gate = gate or Gate()
    try:
        return _judge_file(path, reader, gate, headers_only=headers_only)
    except ImageError as error:
        found = error
    except UnaryError:  # the process that reads cannot be started
        raise
    except Exception as error:
        found = explain_unexpected(error, show_path(path))
    return Check(path, False, found.reason or "NOT_READABLE", str(found).removeprefix(f"{show_path(path)}: "))


def _judge_file(path: Path, reader: IsolatedReader, gate: Gate, *, headers_only: bool) -> Check:
    if os.path.isdir(path):
        raise refuse_folder(path)
    attributes = reader.read_attributes(path, gate.profile.headers)
    header = judge_header(attributes, gate)
    image = None if header.refusals or headers_only else reader.read(path)
    domain = judge_domain(attributes if image is None else image, gate)
    seen: tuple[str, ...] = ()
    if image is not None:
        prepared = prepare_image(complete_spacing(image, gate), gate.preparing)
        require_room(prepared, gate.grid, image.name)
        seen = prepared.notes
    refusals = (*header.refusals, *domain.refusals)
    notes = (*header.notes, *seen, *domain.notes)
    if not refusals:
        return Check(path, True, notes=notes, place=attributes.place)
    (reason, detail), *others = refusals
    return Check(path, False, reason, detail, (*(f"also {code}: {line}" for code, line in others), *notes))


def format_checks(checks: Checks) -> str:
    """Return one line per file, its notes indented below it, what was left out, of series, and a line that counts."""
    lines = []
    for check in checks.files:
        verdict = "accepted" if check.accepted else f"refused  {check.reason}:"
        lines.append(f"{verdict} {show_path(check.path)}" + (f": {check.detail}" if check.detail else ""))
        lines.extend(f"    {note}" for note in check.notes)
    if checks.left_out:
        lines.append(describe_left_out(checks.left_out))
    lines.extend(checks.series)
    lines.extend(describe_way(check.reason for check in checks.files))
    counts = [f"{checks.accepted} accepted", *(f"{count} {reason}" for reason, count in _count(checks).items())]
    return "\n".join([*lines, f"{count_words(len(checks.files), 'file')}: {', '.join(counts)}"])


def describe_checks(checks: Checks) -> dict[str, object]:
    """Return the same for JSON."""
    return {
        "accepted": checks.accepted,
        "refused": _count(checks),
        "left_out": {reason: [str(each) for each in paths] for reason, paths in checks.left_out.items()},
        "series": list(checks.series),
        "files": [_describe_check(check) for check in checks.files],
    }


def _describe_check(check: Check) -> dict[str, object]:
    """A check as JSON holds it, without the identifiers of its series."""
    return {name: value for name, value in {**asdict(check), "path": str(check.path)}.items() if name != "place"}


def _count(checks: Checks) -> dict[str, int]:
    """How many were refused for each reason, by its name."""
    return dict(sorted(Counter(check.reason for check in checks.files if check.reason).items()))
