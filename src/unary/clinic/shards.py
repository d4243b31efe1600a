"""The images of a manifest cut into shards, and the record that says what a shard's results were made from.

A shard is known by the hash of its rows: what each image is called, where it is, and the pixel spacing given for it.
Where one shard ends is said by the rows themselves, and not by how many come before: a row that is added, taken away or
moved changes one shard or two, and the others stay what they are, whoever makes them and in whatever order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from unary.clinic.result_folder import hash_document
from unary.clinic.storage import Store
from unary.datasets.manifest import Listing
from unary.errors import UnaryError
from unary.images.isolation import show_text
from unary.records import NOTICE

SHARDS, RECORD_FILE, FORMAT = "shards", "record.json", 1
DEFAULT_SIZE = 200
UNSETTLED = ("NOT_READABLE", "TIMEOUT", "MEMORY_LIMIT", "CRASH")
"""Reasons that may lie in the moment, the machine or the store, and not in the image."""


@dataclass(frozen=True)
class ShardRow:
    """One image to be examined: its ``image_id``, its absolute path or URL, and the spacing that the manifest gives."""

    image: str
    location: str
    spacing_mm: float | None = None


@dataclass(frozen=True)
class Shard:
    """Rows that are worked on together; ``moment`` is the date and time that its results bear, with a time zone."""

    rows: tuple[ShardRow, ...]
    moment: str = ""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        text = json.dumps([asdict(row) for row in self.rows], sort_keys=True)
        object.__setattr__(self, "name", hashlib.sha256(text.encode()).hexdigest()[:24])

    def describe(self) -> dict[str, Any]:
        """Return it as JSON can hold it; `build_shard` is the way back."""
        return {"rows": [[row.image, row.location, row.spacing_mm] for row in self.rows], "moment": self.moment}


def build_shard(described: Mapping[str, Any]) -> Shard:
    """Return the shard that `Shard.describe` has described."""
    return Shard(tuple(ShardRow(*row) for row in described["rows"]), described["moment"])


def list_rows(listing: Listing) -> tuple[ShardRow, ...]:
    """Return the rows of a manifest, an image that is listed again left out."""
    rows = zip(listing.manifest.rows, listing.locations, strict=True)
    first: dict[str, ShardRow] = {}
    for row, location in rows:
        first.setdefault(location, ShardRow(row.image_id, location, row.spacing_mm))
    return tuple(first.values())


def cut_shards(rows: Sequence[ShardRow], size: int) -> tuple[tuple[ShardRow, ...], ...]:
    """Return the rows in shards of ``size`` on average, between half and twice as many; the last may be smaller.

    >>> rows = [ShardRow(str(number), f"/{number}.dcm") for number in range(1000)]
    >>> before, after = (set(cut_shards(part, 20)) for part in (rows, rows[:500] + rows[501:]))
    >>> len(after - before), sum(map(len, after)) + 1 == sum(map(len, before)) == 1000
    (1, True)
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return tuple(_cut(rows, max(size // 2, 1), 2 * size - 1))


def _cut(rows: Sequence[ShardRow], least: int, most: int) -> Iterator[tuple[ShardRow, ...]]:
    current: list[ShardRow] = []
    for row in rows:
        current.append(row)
        key = hashlib.sha256(f"{row.image}\0{row.location}".encode()).digest()
        ends = int.from_bytes(key[:8], "big") % (least + 1) == 0
        if len(current) == most or (len(current) >= least and ends):
            yield tuple(current)
            current = []
    if current:
        yield tuple(current)


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a shard that is done.

    Attributes
    ----------
    made_from
        As in ``result.json``: the model, the version, the options.
    rows, findings
        How many images it was asked for, and how many findings the others have.
    failures
        How many images have no result, by reason.
    files
        By name within the shard's folder: their SHA-256 and size in bytes.
    missing_dicom
        How many images have a result without the DICOM objects that were asked for.
    outside
        How many images differ from those that the model has learned from.
    """

    name: str
    moment: str
    made_from: Mapping[str, Any]
    rows: int
    findings: int
    failures: Mapping[str, int]
    files: Mapping[str, tuple[str, int]]
    missing_dicom: int = 0
    outside: int = 0

    @property
    def failed(self) -> int:
        """How many images have no result."""
        return sum(self.failures.values())

    @property
    def unsettled(self) -> int:
        """How many of these for a reason that may be gone by now."""
        return sum(self.failures.get(reason, 0) for reason in UNSETTLED)


def write_record(record: ShardRecord) -> bytes:
    """Return the content of a shard's record, which `read_record` reads."""
    document = {"notice": NOTICE, "format": FORMAT, **asdict(record)}
    text = json.dumps(document | {"sha256": hash_document(document)}, indent=1, sort_keys=True, allow_nan=False)
    return text.encode() + b"\n"


def read_record(store: Store, name: str) -> ShardRecord | None:
    """Return the record of a shard; None where there is none, or not what was written."""
    content = store.read(f"{SHARDS}/{name}/{RECORD_FILE}")
    try:
        document = json.loads(content or b"")
        whole = document.pop("sha256") == hash_document(document) and document.pop("format") == FORMAT
        del document["notice"]
        files = {name: (str(sha256), int(size)) for name, (sha256, size) in document.pop("files").items()}
        return ShardRecord(**document, files=files) if whole else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def find_damage(store: Store, record: ShardRecord) -> str:
    """Return which file of a shard is missing, short or altered; empty where all are as they were written.

    Tables are hashed; of images' own files the size is compared.
    """
    for name, (sha256, size) in sorted(record.files.items()):
        place = f"{SHARDS}/{record.name}/{name}"
        if not name.endswith(".parquet"):
            found = store.find_size(place)
            if found != size:
                return f"{name} is {'missing' if found is None else f'{found} bytes long, not {size}'}"
            continue
        content = store.read(place)
        if content is None:
            return f"{name} is missing"
        if len(content) != size:
            return f"{name} is {len(content)} bytes long, not {size}"
        if hashlib.sha256(content).hexdigest() != sha256:
            return f"{name} is not what was written"
    return ""


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any], place: str) -> None:
    """Refuse by a `UnaryError` a folder whose results were made from something else; the first difference is named."""
    plain = json.loads(json.dumps(wanted))
    for key in sorted(found.keys() | plain.keys()):
        if found.get(key) != plain.get(key):
            was, now = (show_text(str(each.get(key)))[:60] for each in (found, plain))
            words = "another model" if key == "model_sha256" else f"another {key.replace('_', ' ')}"
            raise UnaryError(
                f"{place}: it holds results of {words} ({was}, now {now}), which stay; choose another folder for these"
            )
