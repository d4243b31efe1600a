"""What a folder of results remembers of the files that it was made from, so that a rerun need not read them again.

A file that looks as it did when it was hashed has the same content: size, time of the last change of content and of
anything at all, and number on the disk. Such times are coarse, so that a file that had been changed just before it was
hashed may be changed once more and look the same: it is hashed again. What is remembered only spares work; a line that
is torn or lost makes no difference to the results.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from unary.files import KNOWN_FILES, replacing
from unary.models.gate import Gate

_COARSE_NS = 2_000_000_000  # of the times of some file systems


@dataclass(frozen=True)
class Look:
    """How a file looks without being read, and when it was looked at; times in nanoseconds."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    at_ns: int

    def is_same(self, later: Look) -> bool:
        """Whether a file that looks so later cannot have been changed, unless somebody has set its times."""
        same = replace(self, at_ns=later.at_ns) == later
        return same and max(self.mtime_ns, self.ctime_ns) + _COARSE_NS < self.at_ns


def look_at(path: Path) -> Look | None:
    """Look at a file, before it is read; None where nothing is to be seen."""
    at_ns = time.time_ns()
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return Look(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, at_ns)


class KnownFiles:
    """What is remembered in a folder; use it in a ``with`` block, by the one process that holds the folder.

    ``gate`` is whom the headers were shown to: what another one said of a file does not count.
    """

    def __init__(self, folder: Path, gate: Gate) -> None:
        self._path = folder / KNOWN_FILES
        self._gate = hashlib.sha256(json.dumps(asdict(gate), sort_keys=True, default=repr).encode()).hexdigest()[:16]
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        lines = list(_read(self._path))
        self._known: dict[str, tuple[Look, str, dict[str, Any]]] = dict(lines)
        if len(lines) > 2 * len(self._known):
            self._write_all()

    def __enter__(self) -> KnownFiles:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def recall(self, path: Path, look: Look | None) -> dict[str, Any] | None:
        """Return what was remembered of a file; None where it may have changed since, or another gate looked at it."""
        known = None if look is None else self._known.get(os.path.abspath(path))
        if look is None or known is None or known[1] != self._gate or not known[0].is_same(look):
            return None
        return dict(known[2])

    def remember(self, path: Path, look: Look | None, about: Mapping[str, Any]) -> None:
        """Remember of a file, as it looked before it was read, what JSON can hold."""
        if look is None:
            return
        place, found = os.path.abspath(path), (look, self._gate, dict(about))
        with self._lock, contextlib.suppress(OSError):  # a full disk is told by what writes results
            self._known[place] = found
            if self._file is None:
                self._file = self._path.open("a", encoding="ascii")
                self._file.write("\n")  # the last line may be torn
            self._file.write(_describe(place, *found))
            self._file.flush()

    def _write_all(self) -> None:
        with contextlib.suppress(OSError), replacing(self._path) as partial:
            partial.write_text("".join(_describe(place, *found) for place, found in self._known.items()), "ascii")


def _describe(place: str, look: Look, gate: str, about: Mapping[str, Any]) -> str:
    return json.dumps({"path": place, "look": vars(look), "gate": gate, "about": about}) + "\n"


def _read(path: Path) -> Iterator[tuple[str, tuple[Look, str, dict[str, Any]]]]:
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found = json.loads(line)
            about = dict(found["about"])
            if isinstance(about["sha256"], str):
                yield found["path"], (Look(**found["look"]), found["gate"], about)
