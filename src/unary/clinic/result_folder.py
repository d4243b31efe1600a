"""A folder of results: whose they are, which names are free, and tables that tell of all of them.

A result is known by what it was made from: the content of the image's file, the model and the options. unary replaces
and deletes what it has written itself, told by the ``result.json`` that names its files, and nothing else. Results are
written under a hidden name and renamed when they are whole. The tables are written again as results come, and made anew
from the folder when the next run begins, so that they are true after whatever end.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from unary.datasets.folder import RESULT_FILE, LeftOut, read_result
from unary.errors import UnaryError
from unary.files import locking, replacing, write_csv
from unary.images.isolation import show_path
from unary.records import NOTICE, count_words

logger = logging.getLogger(__name__)

_REPORT = ("report.html", "metrics.json")  # of an evaluation, or of anybody
RECORD, SUMMARY, FAILURES = "run.json", "summary.csv", "failures.csv"
_PARTIAL = ".unary.partial"
_LITTER = re.compile(r"\.\d+\.(run\.json|summary\.csv|failures\.csv)")  # what `replacing` leaves when it is killed
_NUMBERED = re.compile(r"-\d+$")
_SAVING_SHARE = 0.05  # of the time, at most, goes into writing tables again
_MOST_NAMED = 5

Row = dict[str, Any]
Result = tuple[Row, Mapping[str, Any]]
Write = Callable[[Path], Result]
"""Given a folder that exists, write one image's results there; return its row of the summary, and its document."""


@dataclass(frozen=True)
class Failure:
    """A file without a result: its name on one line, a reason code, and what is wrong in words."""

    file: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Source:
    """The file that a result is of.

    ``made_from`` is what tells results apart: the hash of the file's bytes, the model, the options. ``raster`` says
    that it is no DICOM object.
    """

    path: Path
    made_from: Mapping[str, Any]
    raster: bool = False

    @property
    def sha256(self) -> str:
        """The hash of the file's bytes."""
        return str(self.made_from["sha256"])


Writing = Callable[[Path, str, Write, Source, Mapping[str, Any]], None]
"""Given a folder, a result's name, what writes it, its file, and what else is known: write all of it there."""


def write_result(folder: Path, name: str, write: Write, source: Source, known: Mapping[str, Any]) -> None:
    """Write all of one image's results into a folder of its own, which is emptied, or created, first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    row, document = write(folder)
    write_document(folder, {"image": name, **row}, document, source, known)


def write_document(
    folder: Path, row: Row, document: Mapping[str, Any], source: Source, known: Mapping[str, Any]
) -> None:
    """Write ``result.json`` into a folder that holds all else of one image's results."""
    files = sorted([*(path.name for path in folder.iterdir()), RESULT_FILE])
    made_from = dict(source.made_from)
    head = {"notice": NOTICE, "made_from": made_from, "file": source.path.name, "path": show_path(source.path)}
    whole = {**head, **known, **document, "summary": row, "files": files}
    text = json.dumps(whole | {"sha256": hash_document(whole)}, indent=2, allow_nan=False) + "\n"
    (folder / RESULT_FILE).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _Entry:
    """What is remembered of a result in the folder; ``instance`` is a hash of the image's SOP Instance UID."""

    made_from: Mapping[str, Any]
    path: str
    instance: str | None
    notes: tuple[str, ...]
    row: Row
    whole: bool = True  # all its files are there, and what was written of it is what stands there
    alone: bool = True  # nothing else is


class ResultFolder:
    """The results in a folder that this process holds; made by `holding_results`."""

    def __init__(self, out: Path, command: str, made_from: Mapping[str, Any], moment: datetime) -> None:
        self.out, self._made_from = out, _plain({"command": command, **made_from})
        # Of this run alone: what a process of a killed run still writes goes where nobody looks.
        self._partial = out / _PARTIAL / secrets.token_hex(4)
        self._lock, self._saved_at, self._cost = threading.Lock(), 0.0, 0.0
        record = _read_record(out)
        self._failures: dict[str, dict[str, str]] = record["failures"]
        self._failed: dict[str, set[str]] = {}  # places by content
        for place, failure in self._failures.items():
            self._failed.setdefault(failure["sha256"], set()).add(place)
        self._record: dict[str, Any] = {
            "notice": NOTICE,
            "state": "running",
            "started": moment.isoformat(),
            "ended": None,
            "made_from": self._made_from,
            "left_out": {},
            "earlier_runs": record["earlier_runs"],
        }
        self._entries = _read_entries(out, command)
        self._series: dict[tuple[str, str], list[str]] = {}  # names, by their content and what they were wanted as
        for name, entry in self._entries.items():
            for wanted in dict.fromkeys((name, _NUMBERED.sub("", name))):
                self._series.setdefault((str(entry.made_from.get("sha256")), wanted), []).append(name)
        self._given: set[str] = set()
        self._tried: dict[str, int] = {}  # by wanted name, the numbers that were not free
        self._foreign: set[str] = set()  # names that results should have had
        self.replaced = 0  # results of other options or another model
        for path in [out / _PARTIAL, *(path for path in out.iterdir() if _LITTER.fullmatch(path.name))]:
            _remove(path)  # of a run that was killed: none goes on, for this one holds the folder

    def leave_out(self, left_out: LeftOut) -> None:
        """Note what was left out of the inputs."""
        self._record["left_out"] = {
            reason: {"count": len(paths), "first": show_path(paths[0])} for reason, paths in left_out.items()
        }

    def name(self, wanted: str, made_from: Mapping[str, Any]) -> str:
        """Return the name for a result: that of an earlier one of the same content, or the next free one.

        To be called from one thread, in the order of the files: then names do not depend on what was done before a run
        was killed. An earlier result that will be replaced holds nothing but what unary has written.
        """
        own = self._list_own(wanted, made_from)
        same = [name for name in own if self.find(name, made_from) is not None]
        replaced = [name for name in own if self._entries[name].alone]
        found = next(itertools.chain(same, replaced, self._find_free(wanted)))
        self._given.add(found)
        if found != wanted and os.path.lexists(self.out / wanted) and wanted not in self._entries:
            self._foreign.add(wanted)
        return found

    def _list_own(self, wanted: str, made_from: Mapping[str, Any]) -> list[str]:
        """Earlier results of the same content whose names come from the same one."""
        names = self._series.get((made_from["sha256"], wanted), ())
        return [name for name in names if name not in self._given]

    def holds(self, wanted: str, made_from: Mapping[str, Any]) -> bool:
        """Whether `name` would return that of a whole result that was made from the same."""
        return any(self.find(name, made_from) is not None for name in self._list_own(wanted, made_from))

    def _find_free(self, wanted: str) -> Iterator[str]:
        """Yield the first name that is free: what was not free once in a run never is."""
        for count in itertools.count(self._tried.get(wanted, 1)):
            self._tried[wanted] = count
            name = wanted if count == 1 else f"{wanted}-{count}"
            if self._is_free(name):
                yield name

    def _is_free(self, name: str) -> bool:
        taken = name in self._given or name in (RECORD, SUMMARY, FAILURES)
        return not (taken or os.path.lexists(self.out / name))

    def find(self, name: str, made_from: Mapping[str, Any]) -> Row | None:
        """Return the summary's row of a result that is there, whole, and made from the same; else None."""
        entry = self._entries.get(name)
        same = entry is not None and entry.whole and entry.made_from == _plain(made_from)
        return dict(entry.row) if entry is not None and same else None

    def write(
        self, name: str, write: Write, source: Source, known: Mapping[str, Any], *, by: Writing | None = None
    ) -> Row:
        """Write one image's folder, in place of an earlier one of its name; return its row of the summary.

        ``by`` does what `write_result` does, elsewhere perhaps. May be called from several threads.
        """
        partial, target = self._partial / name, self.out / name
        try:
            (by or write_result)(partial, name, write, source, known)
            if target.exists():
                old = partial.with_name(f"{name}.old")
                os.rename(target, old)
                os.rename(partial, target)
                shutil.rmtree(old, ignore_errors=True)
                with self._lock:
                    self.replaced += 1
            else:
                os.rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        entry = _read_entry(target)
        assert entry is not None
        with self._lock:
            self._entries[name] = entry
        self.settle(source.path, source.sha256)
        return dict(entry.row)

    def settle(self, path: Path, sha256: str) -> None:
        """Forget former failures of a file that has a result now, and of the same content elsewhere."""
        place = os.path.abspath(path)
        with self._lock:
            for key in (place, *self._failed.get(sha256, ())) if sha256 else (place,):
                self._forget(key)
        self._save_in_time()

    def fail(self, path: Path, failure: Failure, sha256: str) -> None:
        """Note that a file has no result."""
        place = os.path.abspath(path)
        with self._lock:
            self._forget(place)
            self._failures[place] = {**asdict(failure), "path": place, "sha256": sha256}
            self._failed.setdefault(sha256, set()).add(place)
        self._save_in_time()

    def _forget(self, place: str) -> None:
        failure = self._failures.pop(place, None)
        if failure is not None:
            self._failed[failure["sha256"]].discard(place)

    def list_notes(self, name: str) -> tuple[str, ...]:
        """Return what was unusual about the image of a result."""
        return self._entries[name].notes

    def list_remarks(self) -> list[str]:
        """Return what is odd about the results as a whole, one sentence each."""
        found: dict[str, list[str]] = {}
        for text, names in self._find_remarks():
            found.setdefault(text, []).append(_list_some(names))
        return [f"{text}: {_list_some(groups, '; ')}" for text, groups in found.items()]

    def count(self) -> int:
        """Return how many results the folder holds."""
        return len(self._entries)

    def _find_remarks(self) -> Iterator[tuple[str, Sequence[str]]]:
        """What is odd, and the names that it is about."""
        contents: dict[str, list[str]] = {}
        instances: dict[str, dict[str, str]] = {}
        others = []
        for name, entry in sorted(self._entries.items()):
            sha256 = str(entry.made_from.get("sha256"))
            contents.setdefault(sha256, []).append(name)
            if entry.instance is not None:
                instances.setdefault(entry.instance, {}).setdefault(sha256, name)
            shared = self._made_from.keys() & entry.made_from.keys()
            if any(entry.made_from[key] != self._made_from[key] for key in shared):
                others.append(name)
        for names in contents.values():
            if len(names) > 1:
                yield "the same file content, under several names", names
        for by_content in instances.values():
            names = list(by_content.values())
            if len(names) > 1:
                yield "one SOP Instance UID for different images, of which a PACS keeps one", names
        if others:
            yield "made by another model, version or options than the last run's", others
        if self._foreign:
            yield "left alone, for unary has not written it, or its result.json is damaged", sorted(self._foreign)

    def _save_in_time(self) -> None:
        if time.monotonic() - self._saved_at > self._cost / _SAVING_SHARE:
            self.save()

    def save(self) -> None:
        """Write both tables and the record of the run, each in one step."""
        with self._lock:
            begun = time.monotonic()
            remarks = [(f"{text}: {_list_some(names)}", names) for text, names in self._find_remarks()]
            rows = list(self._list_rows(remarks))
            columns = list(dict.fromkeys(key for row in rows for key in row))
            failures = [self._failures[key] for key in sorted(self._failures)]
            with replacing(self.out / RECORD) as partial:
                counts = {"results": len(rows), "remarks": [text for text, _ in remarks], "failures": failures}
                partial.write_text(json.dumps(self._record | counts, indent=2) + "\n", encoding="utf-8")
            _write_table(self.out / SUMMARY, columns, [[row.get(key) for key in columns] for row in rows])
            names = ["file", "reason", "detail"]
            _write_table(self.out / FAILURES, names, [[failure[key] for key in names] for failure in failures])
            self._saved_at = time.monotonic()
            self._cost = self._saved_at - begun

    def _list_rows(self, remarks: Sequence[tuple[str, Sequence[str]]]) -> Iterator[Row]:
        told: dict[str, list[str]] = {}
        for text, names in remarks:
            for name in names:
                told.setdefault(name, []).append(text)
        for name, entry in sorted(self._entries.items()):
            notes = "; ".join((*entry.notes, *told.get(name, ())))
            model = str(entry.made_from.get("model_sha256", ""))[:12]
            yield {"image": name, "file": entry.path, **entry.row, "model": model, "notes": notes}

    def close(self, state: str) -> None:
        """Write everything a last time, with how the run ended."""
        self._record |= {"state": state, "ended": datetime.now().astimezone().replace(microsecond=0).isoformat()}
        self.save()
        _remove(self.out / _PARTIAL)


@contextmanager
def holding_results(out: Path, command: str, made_from: Mapping[str, Any], moment: datetime) -> Iterator[ResultFolder]:
    """Hold a folder, which is created, for the results of a command, and write its tables however the block ends.

    Raises
    ------
    UnaryError
        If another process holds it, nothing can be written there, or it holds results of another command, or tables
        that unary has not written.
    """
    with locking(out):
        folder = ResultFolder(out, command, made_from, moment)
        folder.save()
        try:
            yield folder
        except BaseException as error:
            try:
                folder.close("failed" if isinstance(error, Exception) else "interrupted")
            except OSError:  # the disk is full, for one; the next run makes them from the results
                logger.warning("%s: the tables are not up to date", out)
            raise
        folder.close("finished")


def _read_record(out: Path) -> Any:
    """The record of the run before, which also tells whose the tables are; an empty one for a new folder."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if record["notice"] != NOTICE:
            raise ValueError
        last = {key: record[key] for key in ("state", "started", "ended", "made_from")}
        if last["state"] == "running":
            last["state"] = "killed"
        keys = [field.name for field in fields(Failure)] + ["path", "sha256"]
        failures = {each["path"]: {key: str(each[key]) for key in keys} for each in record["failures"]}
        return {"failures": failures, "earlier_runs": [*record["earlier_runs"], last][-100:]}
    except FileNotFoundError:
        there = [name for name in (SUMMARY, FAILURES, *_REPORT) if os.path.lexists(out / name)]
    except (ValueError, KeyError, TypeError):
        there = [RECORD]
    if there:
        raise UnaryError(
            f"{out / there[0]}: it is there, and this version of unary has not written it; choose another folder"
        )
    return {"failures": {}, "earlier_runs": []}


def list_made(out: Path, command: str) -> frozenset[str]:
    """Return what each whole result in a folder was made from, as `name_origin` has it; nothing is held or written.

    The folder need not exist.

    Raises
    ------
    UnaryError
        If a run of the command into the folder would be refused.
    """
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UnaryError(f"{out}: nothing can be written there, for {there} is no folder or read-only")
    if there != out.absolute():
        return frozenset()
    _read_record(out)
    entries = _read_entries(out, command).values()
    return frozenset(name_origin(entry.made_from) for entry in entries if entry.whole)


def name_origin(made_from: Mapping[str, Any]) -> str:
    """Return what a result was made from as text: equal texts, the same result."""
    return json.dumps(made_from, sort_keys=True)


def _read_entries(out: Path, command: str) -> dict[str, _Entry]:
    """The results in a folder by name; an error if they are another command's."""
    entries = {path.name: entry for path in sorted(out.iterdir()) if (entry := _read_entry(path)) is not None}
    others = {str(entry.made_from.get("command")) for entry in entries.values()} - {command}
    if others:
        raise UnaryError(
            f"{out}: it holds results of `unary {others.pop()}`; choose another folder for `unary {command}`"
        )
    return entries


def _read_entry(folder: Path) -> _Entry | None:
    """What a folder holds if it is a result of unary's."""
    if folder.name.startswith(".") or not folder.is_dir():
        return None
    found = read_result(folder)
    if found is None:
        return None
    try:
        there, own = set(os.listdir(folder)), set(found["files"])
        return _Entry(
            found["made_from"],
            str(found["path"]),
            found.get("instance"),
            tuple(found.get("notes") or ()),
            dict(found["summary"]),
            whole=own <= there and found.get("sha256") == hash_document(found),
            alone=there <= own,
        )
    except (KeyError, TypeError, ValueError):
        return None


def hash_document(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all that a document such as ``result.json`` says, but for the hash itself."""
    rest = {key: value for key, value in _plain(document).items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _plain(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    plain: dict[str, Any] = json.loads(json.dumps(made_from))
    return plain


def _list_some(names: Sequence[str], between: str = ", ") -> str:
    more = len(names) - _MOST_NAMED
    return between.join(names[:_MOST_NAMED]) + (f" and {count_words(more, 'other')}" if more > 0 else "")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table; without rows, remove that of a former run."""
    if rows:
        write_csv(path, header, rows)
    else:
        path.unlink(missing_ok=True)


def read_whole_result(folder: Path) -> dict[str, Any] | None:
    """Return what a ``result.json`` says; None where it is not unary's, or not what was written."""
    found = read_result(folder)
    try:
        whole = found is not None and found.get("sha256") == hash_document(found) and "sha256" in found["made_from"]
    except (KeyError, TypeError, ValueError):
        return None
    return found if whole else None


def read_record_failures(folder: Path) -> list[str]:
    """Return the reasons of files without a result, as the record of the last run has them; none where it is not."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return [str(each["reason"]) for each in record["failures"]] if record["notice"] == NOTICE else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
