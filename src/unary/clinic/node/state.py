"""What a node knows, in SQLite: every object and where it stands, every result and whether it has been delivered.

A write is on the disk before the call returns (WAL, ``synchronous=FULL``). Ages are counted in seconds during which the
node ran, so that a clock that jumps neither deletes anything nor gives anything up.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from unary.errors import UnaryError

State = Literal["received", "queued", "running", "done", "sent", "refused", "failed"]
WAITING: tuple[State, ...] = ("received", "queued", "running")

ALONE_FROM = 3
"""Attempts, from which on an image is examined last and alone, lest it takes others down with it."""

_FORMAT = "1"
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS objects (
    object TEXT PRIMARY KEY, study TEXT NOT NULL, content TEXT NOT NULL, sop_class TEXT NOT NULL, syntax TEXT NOT NULL,
    bytes INTEGER NOT NULL, way TEXT NOT NULL, title TEXT NOT NULL, address TEXT NOT NULL, age_from REAL NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, reason TEXT, detail TEXT, result TEXT,
    run INTEGER, held INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX IF NOT EXISTS objects_of_study ON objects (study);
CREATE INDEX IF NOT EXISTS objects_by_state ON objects (state);
CREATE TABLE IF NOT EXISTS changes (
    object TEXT NOT NULL, state TEXT NOT NULL, at TEXT NOT NULL, reason TEXT
);
CREATE INDEX IF NOT EXISTS changes_of_object ON changes (object);
CREATE TABLE IF NOT EXISTS runs (run INTEGER PRIMARY KEY, study TEXT NOT NULL, moment TEXT NOT NULL, ended TEXT);
CREATE TABLE IF NOT EXISTS deliveries (
    delivery INTEGER PRIMARY KEY, study TEXT NOT NULL, object TEXT, path TEXT NOT NULL, kind TEXT NOT NULL,
    instance TEXT NOT NULL, destination TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    refusals INTEGER NOT NULL DEFAULT 0, note TEXT, age_from REAL NOT NULL, at TEXT NOT NULL,
    UNIQUE (instance, destination)
);
CREATE INDEX IF NOT EXISTS deliveries_by_state ON deliveries (destination, state);
CREATE INDEX IF NOT EXISTS deliveries_of_object ON deliveries (object);
CREATE TABLE IF NOT EXISTS commitments (
    commitment INTEGER PRIMARY KEY, title TEXT NOT NULL, address TEXT NOT NULL, request TEXT NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, age_from REAL NOT NULL, seen INTEGER NOT NULL DEFAULT 0
);
"""


@dataclass(frozen=True)
class StoredObject:
    """A row of ``objects``; ``held`` says that its file is still there."""

    object: str
    study: str
    content: str
    sop_class: str
    syntax: str
    bytes: int
    way: str
    title: str
    address: str
    age_from: float
    state: State
    attempts: int
    reason: str | None
    detail: str | None
    result: str | None
    run: int | None
    held: int


@dataclass(frozen=True)
class DueDelivery:
    """A row of ``deliveries``: a result, by its hashed SOP Instance UID, for a destination."""

    delivery: int
    study: str
    object: str | None
    path: str
    kind: str
    instance: str
    destination: str
    state: str
    attempts: int
    refusals: int
    note: str | None
    age_from: float
    at: str


class NodeState:
    """The database, used by any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_TABLES)
            self._connection.row_factory = sqlite3.Row
            found = self.read_fact("format")
        except sqlite3.DatabaseError as error:
            raise UnaryError(f"{path}: no state of a node, or damaged ({error})") from None
        if found not in (None, _FORMAT):
            raise UnaryError(f"{path}: its format is {found}, this version of unary knows {_FORMAT}")
        self.write_fact("format", _FORMAT)
        (row,) = self.query(  # after a kill, at least what rows say
            "SELECT MAX(COALESCE((SELECT MAX(age_from) FROM objects), 0.0), "
            "COALESCE((SELECT MAX(age_from) FROM deliveries), 0.0)) AS ran_s"
        )
        self._ran_before_s = max(float(self.read_fact("ran_s") or 0.0), float(row["ran_s"]))
        self._began_s = time.monotonic()

    def close(self) -> None:
        """Note how long the node has run, and close."""
        with self._lock:
            self.save_age()
            self._connection.close()

    # --- time -------------------------------------------------------------------------------------------------------

    def age_s(self) -> float:
        """Return for how many seconds the node has run, earlier starts included; it never goes back."""
        return self._ran_before_s + time.monotonic() - self._began_s

    def save_age(self) -> None:
        """Note it; a kill loses what passed since."""
        self.write_fact("ran_s", repr(self.age_s()))

    # --- basics -----------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; other threads wait."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have ended it already
                    self._connection.execute("ROLLBACK")
                raise

    def query(self, text: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Return the rows of a question."""
        with self._lock:
            return self._connection.execute(text, values).fetchall()

    def read_fact(self, name: str) -> str | None:
        """Return what was noted under a name."""
        rows = self.query("SELECT value FROM facts WHERE name = ?", (name,))
        return None if not rows else str(rows[0]["value"])

    def write_fact(self, name: str, value: str) -> None:
        """Note something under a name."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # --- objects ----------------------------------------------------------------------------------------------------

    def find_object(self, name: str) -> StoredObject | None:
        """Return one object by its hashed UID."""
        rows = self.query("SELECT * FROM objects WHERE object = ?", (name,))
        return StoredObject(**rows[0]) if rows else None

    def list_objects(self, study: str, *states: State) -> list[StoredObject]:
        """Return the objects of a study in the order of their names, of all states or of some."""
        chosen = f"AND state IN ({_marks(states)})" if states else ""
        rows = self.query(f"SELECT * FROM objects WHERE study = ? {chosen} ORDER BY object", (study, *states))
        return [StoredObject(**row) for row in rows]

    def add_object(self, found: StoredObject) -> None:
        """Add an object, or take one again that has failed."""
        names = list(StoredObject.__dataclass_fields__)
        with self.transaction() as db:
            db.execute(
                f"INSERT OR REPLACE INTO objects ({', '.join(names)}) VALUES ({_marks(names)})",
                [getattr(found, name) for name in names],
            )
            self._note(found.object, found.state, None)

    def change(
        self, objects: Sequence[str], state: State, *, reason: str | None = None, detail: str | None = None
    ) -> None:
        """Let objects be in a state from now on."""
        with self.transaction() as db:
            for name in objects:
                db.execute(
                    "UPDATE objects SET state = ?, reason = ?, detail = ? WHERE object = ?",
                    (state, reason, detail, name),
                )
                self._note(name, state, reason)

    def _note(self, name: str, state: str, reason: str | None) -> None:
        self._connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", (name, state, _now(), reason))

    def begin_run(self, study: str, objects: Sequence[str], moment: datetime) -> tuple[int, datetime]:
        """Let objects be running, each once more; return the run and the moment that its results bear.

        Objects that were running when the node was killed stay in their run, and keep its moment: so their results are
        made again with the same bytes and identifiers.
        """
        with self.transaction() as db:
            for name in objects:
                db.execute("UPDATE objects SET attempts = attempts + 1 WHERE object = ?", (name,))
            old = self.query(
                f"SELECT runs.* FROM runs JOIN objects ON objects.run = runs.run WHERE objects.object IN "
                f"({_marks(objects)}) AND runs.ended IS NULL ORDER BY runs.run LIMIT 1",
                objects,
            )
            if old:
                run, at = int(old[0]["run"]), datetime.fromisoformat(old[0]["moment"])
            else:
                entered = db.execute(
                    "INSERT INTO runs (study, moment) VALUES (?, ?)", (study, moment.isoformat())
                ).lastrowid
                run, at = int(entered or 0), moment
            for name in objects:
                db.execute("UPDATE objects SET run = ? WHERE object = ?", (run, name))
            self.change(objects, "running")
        return run, at

    def take_back_attempt(self, objects: Sequence[str]) -> None:
        """Do not count the last attempt: what went wrong was not the objects'."""
        with self.transaction() as db:
            for name in objects:
                db.execute("UPDATE objects SET attempts = MAX(0, attempts - 1) WHERE object = ?", (name,))

    def finish(self, name: str, result: str) -> None:
        """Let an object be done, with a result of that name."""
        with self.transaction() as db:
            db.execute("UPDATE objects SET result = ? WHERE object = ?", (result, name))
            self.change([name], "done")

    def end_run(self, run: int) -> None:
        """Note that nothing more is made in a run."""
        with self.transaction() as db:
            db.execute("UPDATE runs SET ended = ? WHERE run = ?", (_now(), run))

    def count_objects(self) -> dict[str, int]:
        """Return how many objects are in each state."""
        rows = self.query("SELECT state, COUNT(*) AS number FROM objects GROUP BY state")
        return {row["state"]: int(row["number"]) for row in rows}

    def count_waiting(self) -> int:
        """Return how many objects wait to be examined or are being examined."""
        rows = self.query(f"SELECT COUNT(*) AS number FROM objects WHERE state IN ({_marks(WAITING)})", WAITING)
        return int(rows[0]["number"])

    def queue_quiet(self, pause_s: float) -> list[str]:
        """Let studies be queued for which nothing has arrived so long; return them."""
        rows = self.query(
            "SELECT study FROM objects WHERE state = 'received' GROUP BY study HAVING MAX(age_from) <= ?",
            (self.age_s() - pause_s,),
        )
        for row in rows:
            self.queue_study(row["study"])
        return [row["study"] for row in rows]

    def queue_study(self, study: str) -> None:
        """Let what has been received of a study be queued: nothing more is waited for."""
        with self.transaction():
            self.change([each.object for each in self.list_objects(study, "received")], "queued")

    def list_waiting(self) -> list[str]:
        """Return the complete studies with objects to be examined, the longest waiting first; the suspect ones last."""
        text = (
            "SELECT study FROM objects WHERE state IN ('queued', 'running') GROUP BY study "
            f"ORDER BY MIN(attempts) >= {ALONE_FROM}, MIN(age_from)"
        )
        return [row["study"] for row in self.query(text)]

    # --- deliveries -------------------------------------------------------------------------------------------------

    def add_delivery(self, study: str, name: str | None, path: Path, instance: str, destination: str) -> bool:
        """Let a result be delivered, or again if it was given up; return whether it waits now and did not before."""
        with self.transaction() as db:
            cursor = db.execute(
                "INSERT INTO deliveries (study, object, path, kind, instance, destination, state, age_from, at) "
                "VALUES (?, ?, ?, ?, ?, ?, 'waiting', ?, ?) ON CONFLICT DO UPDATE SET state = 'waiting', refusals = 0, "
                "age_from = excluded.age_from, at = excluded.at WHERE state = 'undelivered'",
                (study, name, str(path), path.stem, instance, destination, self.age_s(), _now()),
            )
            return cursor.rowcount > 0

    def supersede(self, study: str, path: Path, instance: str) -> None:
        """Let another object that lay at a place before not be delivered any more: this one tells the same and more."""
        with self.transaction() as db:
            db.execute(
                "UPDATE deliveries SET state = 'superseded', at = ? WHERE study = ? AND path = ? AND instance != ? "
                "AND state IN ('waiting', 'sending', 'undelivered')",
                (_now(), study, str(path), instance),
            )

    def list_due(self, destination: str, most: int) -> list[DueDelivery]:
        """Return what waits for a destination, the oldest first, what it has refused last, lest that hold up the rest.

        What a killed node was sending waits as well.
        """
        rows = self.query(
            "SELECT * FROM deliveries WHERE destination = ? AND state IN ('waiting', 'sending') "
            "ORDER BY refusals > 0, delivery LIMIT ?",
            (destination, most),
        )
        return [DueDelivery(**row) for row in rows]

    def change_delivery(self, delivery: int, state: str, *, note: str = "", refused: bool = False) -> None:
        """Let a delivery be in a state from now on; ``sending`` counts as an attempt. What is superseded stays so."""
        with self.transaction() as db:
            db.execute(
                "UPDATE deliveries SET state = ?, note = ?, at = ?, attempts = attempts + ?, refusals = refusals + ? "
                "WHERE delivery = ? AND (state != 'superseded' OR ? = 'sent')",
                (state, note, _now(), int(state == "sending"), int(refused), delivery, state),
            )

    def settle_sent(self, study: str | None = None) -> list[str]:
        """Let objects, of one study or of all, be sent all of whose results are, and return them."""
        rows = self.query(
            "SELECT object FROM objects WHERE study = COALESCE(?, study) AND state = 'done' "
            "AND NOT EXISTS (SELECT 1 FROM deliveries "
            "WHERE deliveries.study = objects.study AND (deliveries.object = objects.object OR deliveries.object IS "
            "NULL) AND deliveries.state IN ('waiting', 'sending', 'undelivered')) AND EXISTS (SELECT 1 FROM deliveries "
            "WHERE deliveries.object = objects.object)",
            (study,),
        )
        found = [row["object"] for row in rows]
        if found:
            self.change(found, "sent")
        return found

    def count_deliveries(self) -> dict[tuple[str, str], int]:
        """Return how many results of each destination are in each state."""
        rows = self.query("SELECT destination, state, COUNT(*) AS number FROM deliveries GROUP BY destination, state")
        return {(row["destination"], row["state"]): int(row["number"]) for row in rows}

    # --- commitments ------------------------------------------------------------------------------------------------

    def add_commitment(self, title: str, address: str, request: dict[str, Any]) -> int:
        """Note that somebody waits for an answer about storage commitment."""
        with self.transaction() as db:
            cursor = db.execute(
                "INSERT INTO commitments (title, address, request, state, age_from) VALUES (?, ?, ?, 'waiting', ?)",
                (title, address, json.dumps(request), self.age_s()),
            )
            return int(cursor.lastrowid or 0)

    def list_commitments(self) -> list[sqlite3.Row]:
        """Return those that wait."""
        return self.query("SELECT * FROM commitments WHERE state = 'waiting' ORDER BY commitment")

    def take_new_commitments(self) -> list[sqlite3.Row]:
        """Return those whose studies have not been found complete yet; they are from now on."""
        with self.transaction() as db:
            rows = self.query("SELECT * FROM commitments WHERE seen = 0 ORDER BY commitment")
            db.execute("UPDATE commitments SET seen = 1 WHERE seen = 0")
        return rows

    def change_commitment(self, commitment: int, state: str) -> None:
        """Let one be in a state from now on, tried once more."""
        with self.transaction() as db:
            db.execute(
                "UPDATE commitments SET state = ?, attempts = attempts + 1 WHERE commitment = ?", (state, commitment)
            )

    # --- retention --------------------------------------------------------------------------------------------------

    def list_finished(self) -> list[tuple[str, float, int]]:
        """Return studies that hold files and wait for nothing: name, youngest age mark, bytes; the oldest first."""
        rows = self.query(
            "SELECT study, MAX(age_from) AS age_from, SUM(bytes) AS bytes FROM objects AS one WHERE held = 1 "
            f"AND NOT EXISTS (SELECT 1 FROM objects WHERE study = one.study AND state IN ({_marks(WAITING)})) "
            "AND NOT EXISTS (SELECT 1 FROM deliveries WHERE study = one.study AND state IN ('waiting', 'sending')) "
            "GROUP BY study ORDER BY 2",
            WAITING,
        )
        return [(row["study"], float(row["age_from"]), int(row["bytes"])) for row in rows]

    def forget_files(self, study: str) -> None:
        """Note that a study's files are gone; what they were stays known."""
        with self.transaction() as db:
            db.execute("UPDATE objects SET held = 0 WHERE study = ?", (study,))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
