"""What readers say of findings and images, in SQLite: nothing is ever changed there or deleted, only added.

A verdict holds until the same reader gives another one on the same thing, or takes it back. What was judged stands
beside it, outline and all, so that it keeps its meaning when results are made anew or gone.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from unary.errors import UnaryError

Target = Literal["finding", "image", "missed"]
Verdict = Literal["agree", "disagree", "unsure", "missed", "read", "withdrawn"]
VERDICTS: dict[Target, tuple[Verdict, ...]] = {
    "finding": ("agree", "disagree", "unsure"),
    "image": ("read",),
    "missed": ("missed",),
}
LESION_NAMES = ("lesion", "calcification", "cluster", "mass", "asymmetry", "distortion")
_SCHEMA = 1
_WAIT_S = 10.0


@dataclass(frozen=True)
class Judgement:
    """One thing that a reader has said.

    Attributes
    ----------
    id
        Its number, in the order in which they were given; None until it is kept.
    moment
        When, in UTC, ISO 8601.
    reader
        As she calls herself; the program does not check who she is.
    image, file, path, image_sha256
        Name of the result, and name, place and hash of the image's file.
    result, model_sha256
        What the result was made from (`unary.clinic.review.results.ReviewedImage.fingerprint`), and by which model.
    study, patient, laterality, view, spacing_mm
        Of the image; the patient is a hash (`unary.images.attributes.Attributes.patient`).
    target, rank
        A finding by its rank, the whole image, or a place that was missed.
    verdict
        Of the whole image ``read``: all that is to be seen has been said.
    name
        What the reader takes it for, one of `LESION_NAMES`.
    kind, points
        ``contour``, or ``point`` for a place that was clicked: (row, col) of the stored image.
    score, p_value
        Of the finding.
    withdraws
        The number of what is taken back.
    """

    moment: str
    reader: str
    image: str
    file: str
    path: str
    image_sha256: str
    result: str
    model_sha256: str
    study: str
    patient: str | None
    laterality: str | None
    view: str | None
    spacing_mm: float | None
    target: Target
    rank: int | None
    verdict: Verdict
    name: str
    kind: Literal["contour", "point"] | None
    points: tuple[tuple[float, float], ...]
    score: float | None
    p_value: float | None
    comment: str = ""
    withdraws: int | None = None
    id: int | None = None


_COLUMNS = tuple(field.name for field in fields(Judgement) if field.name != "id")
_TYPES = {"rank": "INTEGER", "withdraws": "INTEGER", "score": "REAL", "p_value": "REAL", "spacing_mm": "REAL"}


class JudgementStore:
    """The file of judgements; safe to share between threads, and between processes of one machine."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False, isolation_level=None)
            self._open()
        except (sqlite3.Error, OSError) as error:
            raise UnaryError(
                f"{path}: judgements cannot be kept there ({error}); no database of this kind, read-only, or on a "
                "network drive? Give another file by --judgements"
            ) from error

    def _open(self) -> None:
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        tables = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != _SCHEMA and (version or tables):
            self._base.close()
            raise UnaryError(f"{self.path}: this is a database, and not of this version's judgements")
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=FULL")  # a verdict that was answered for survives a power cut
        columns = ", ".join(f"{name} {_TYPES.get(name, 'TEXT')}" for name in _COLUMNS)
        self._base.execute("BEGIN IMMEDIATE")
        self._base.execute(f"CREATE TABLE IF NOT EXISTS judgements (id INTEGER PRIMARY KEY, {columns})")
        self._base.execute("CREATE INDEX IF NOT EXISTS by_image ON judgements (image_sha256)")
        self._base.execute(f"PRAGMA user_version={_SCHEMA}")
        self._base.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def add(self, judgement: Judgement) -> int:
        """Keep a judgement, and return its number once it is safely on disk."""
        values = asdict(judgement)
        values["points"] = json.dumps(values["points"])
        marks = ", ".join("?" * len(_COLUMNS))
        with self._lock:
            sentence = f"INSERT INTO judgements ({', '.join(_COLUMNS)}) VALUES ({marks})"
            return int(self._base.execute(sentence, [values[name] for name in _COLUMNS]).lastrowid or 0)

    def last(self) -> int:
        """Return the number of the last judgement, 0 where there is none."""
        with self._lock:
            return int(self._base.execute("SELECT coalesce(max(id), 0) FROM judgements").fetchone()[0])

    def list_all(self, image_sha256: str | None = None) -> list[Judgement]:
        """Return everything that was ever said, of one image or of all, in its order."""
        where, values = ("", ()) if image_sha256 is None else (" WHERE image_sha256 = ?", (image_sha256,))
        with self._lock:
            sentence = f"SELECT id, {', '.join(_COLUMNS)} FROM judgements{where} ORDER BY id"
            rows = self._base.execute(sentence, values).fetchall()
        return [_build_judgement(row) for row in rows]


def _build_judgement(row: Sequence[Any]) -> Judgement:
    number, *rest = row
    values = dict(zip(_COLUMNS, rest, strict=True))
    values["points"] = tuple((float(r), float(c)) for r, c in json.loads(values["points"]))
    return Judgement(**values, id=number)


def select_standing(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Return what holds of all that was said: each reader's last word on each thing, less what was taken back."""
    standing: dict[tuple[Any, ...], Judgement] = {}
    for one in judgements:
        if one.verdict == "withdrawn":
            standing = {key: held for key, held in standing.items() if held.id != one.withdraws}
            continue
        thing: tuple[Any, ...] = (one.result, one.rank) if one.target == "finding" else (one.target,)
        thing = (one.id,) if one.target == "missed" else thing
        standing[(one.reader, one.image_sha256, *thing)] = one
    return sorted(standing.values(), key=lambda one: one.id or 0)


def tell_moment() -> str:
    """Return the present moment as judgements state it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
