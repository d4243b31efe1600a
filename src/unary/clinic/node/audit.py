"""The audit log: one JSON object a line, each with the hash of the one before, so that no line changes unnoticed.

A line holds its number, time, event, what the event is about, ``previous`` (the hash of the line before) and ``sha256``
over all of that. UIDs are hashed; no name, identifier or date of a patient stands in it. A line is on the disk before
the call returns. What a chain cannot tell is that its end was cut off: compare the last number and hash, which
`check_audit` returns, with what was noted elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unary.errors import UnaryError

_START = "0" * 64
_OWN = {"number", "time", "event", "previous", "sha256"}


@dataclass(frozen=True)
class AuditHead:
    """The last line of an audit log: its number and its hash."""

    number: int
    sha256: str


class AuditLog:
    """Appends lines to an audit log, which is checked first.

    A line that a killed process has written in part was never confirmed to anybody; it is cut off, and the next line
    says how many bytes it had.
    """

    def __init__(self, path: Path) -> None:
        torn = _cut_torn_line(path)
        self._head = check_audit(path) if path.exists() else AuditHead(0, _START)
        self._lock = threading.Lock()
        self._file = open(  # noqa: SIM115
            path, "ab", buffering=0, opener=lambda name, how: os.open(name, how, 0o600)
        )
        if torn:
            self.write("torn_line", bytes=torn)

    @property
    def head(self) -> AuditHead:
        """The last line."""
        return self._head

    def write(self, event: str, **about: Any) -> None:
        """Append one line and see it on the disk; a ValueError where it would overwrite what makes the chain."""
        if not _OWN.isdisjoint(about):
            raise ValueError(f"{', '.join(sorted(_OWN & set(about)))}: a line has a field of that name already")
        with self._lock:
            number = self._head.number + 1
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = {"number": number, "time": now, "event": event, **about, "previous": self._head.sha256}
            line["sha256"] = _hash_line(line)
            self._append(json.dumps(line, ensure_ascii=True).encode() + b"\n")
            self._head = AuditHead(number, line["sha256"])

    def _append(self, content: bytes) -> None:
        """Append all of it, or nothing: on a full disk a part may have been written."""
        handle = self._file.fileno()
        size = os.fstat(handle).st_size
        try:
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_audit(path: Path) -> AuditHead:
    """Check a whole audit log and return its last line.

    Raises
    ------
    UnaryError
        If a line was changed, inserted, taken out or put elsewhere, or is no line of an audit log: the first such.
    """
    head = AuditHead(0, _START)
    try:
        file = path.open("rb")
    except OSError as error:
        raise UnaryError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        for text in file:
            head = _follow(path, text, head)
    return head


def _follow(path: Path, text: bytes, head: AuditHead) -> AuditHead:
    place = f"{path}: line {head.number + 1}"
    try:
        line = json.loads(text)
        number, previous, sha256 = line["number"], line["previous"], line["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnaryError(f"{place}: no line of an audit log, or damaged") from None
    if not text.endswith(b"\n"):
        raise UnaryError(f"{place}: it breaks off; is the node running, or was it killed?")
    if sha256 != _hash_line(line):
        raise UnaryError(f"{place}: was changed after it was written: its hash differs")
    if number != head.number + 1 or previous != head.sha256:
        raise UnaryError(f"{place}: does not follow the line before: lines were taken out, inserted or moved")
    return AuditHead(number, sha256)


def _hash_line(line: dict[str, Any]) -> str:
    rest = {key: value for key, value in line.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _cut_torn_line(path: Path) -> int:
    """Cut off what follows the last line break; return how many bytes that were."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return 0
    with path.open("r+b") as file:
        end = size
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())
    return size - end
