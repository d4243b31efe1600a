"""Which results there are to look at, found anew as they come; nothing of an address in a browser becomes a path.

A root is a folder of results, or one that has such folders below it, as the node's state has. Folders are listed again
only when they have changed, so that looking again costs little.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from unary.datasets.folder import RESULT_FILE, read_result
from unary.images.isolation import show_text
from unary.records import Finding

_DEEPEST = 6  # folders below a root
_SETTLED_NS = 2_000_000_000  # a folder that changed later than this may change again without its time saying so
_AGAIN_S = 1.0  # between two looks
_SIDE_AND_VIEW = re.compile(r"(?:^|[^A-Za-z])([LR])[_\- ]?(CC|MLO|ML|LM|XCCL|XCCM)(?=$|[^A-Za-z])", re.I)
_VIEWS = {"ML": "MLO"}  # as files of INbreast are named; headers say which of both it is


@dataclass(frozen=True)
class ResultDocument:
    """What the page needs of a ``result.json``; the names that it has there."""

    made_from: dict[str, Any]
    file: str
    path: str
    moment: str
    findings: list[Finding]
    image_score: float | None
    image_p_value: float | None
    guarantee: str
    model: dict[str, str]
    stored_shape: tuple[int, int]
    operating_point: dict[str, Any] | None = None
    stored_spacing_mm: tuple[float, float] | None = None
    out_of_domain: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    study: str | None = None
    laterality: str | None = None
    view: str | None = None


@dataclass(frozen=True)
class ReviewedImage:
    """One image with a result.

    Attributes
    ----------
    key
        How the page asks for it: a hash of where its result lies.
    folder
        Where that is.
    sha256
        Of the bytes of the image's file.
    fingerprint
        Of what the result was made from: file, model and options.
    study
        The key of its study.
    findings, image_score, image_p_value, moment, laterality, view
        As ``result.json`` says.
    """

    key: str
    folder: Path = field(repr=False)
    name: str
    path: str = field(repr=False)
    sha256: str
    fingerprint: str
    model_sha256: str
    study: str
    study_label: str
    findings: int
    image_score: float | None
    image_p_value: float | None
    moment: str
    laterality: str | None
    view: str | None


def read_document(folder: Path) -> ResultDocument | None:
    """Return what was detected in an image; None where the folder holds no result of ``unary detect``."""
    found = read_result(folder)
    if found is None or found.get("made_from", {}).get("command") != "detect":
        return None
    try:
        json.dumps(found, allow_nan=False)  # what is no number could not be told either
        document = msgspec.convert(found, ResultDocument)
        if document.operating_point is not None:
            float(document.operating_point["threshold"])
    except (msgspec.ValidationError, ValueError, TypeError, KeyError):
        return None
    return document


class ResultIndex:
    """The images with results below some roots; safe to share between threads."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(Path(os.path.abspath(root)) for root in roots)
        self._lock = threading.Lock()
        self._listed: dict[Path, tuple[int, list[Path], bool]] = {}
        self._read: dict[Path, tuple[tuple[int, int, int], ReviewedImage | None]] = {}
        self._images: dict[str, ReviewedImage] = {}
        self._looked = -_AGAIN_S
        self.version = 0
        self.unreadable = 0

    def list_images(self) -> Mapping[str, ReviewedImage]:
        """Return all images by their key, after a look at what has come since."""
        with self._lock:
            if time.monotonic() - self._looked >= _AGAIN_S:
                self._look()
                self._looked = time.monotonic()
            return self._images

    def find(self, key: str) -> ReviewedImage | None:
        """Return the image of a key; None where there is none."""
        return self._images.get(key) or self.list_images().get(key)

    def _look(self) -> None:
        read: dict[Path, tuple[tuple[int, int, int], ReviewedImage | None]] = {}
        listed: dict[Path, tuple[int, list[Path], bool]] = {}
        for root in self.roots:
            for folder in self._walk(root, listed):
                stamp = _stamp(folder / RESULT_FILE)
                if stamp is None:
                    continue
                known = self._read.get(folder)
                read[folder] = known if known and known[0] == stamp else (stamp, _build_image(folder, root))
        images = {image.key: image for _, image in read.values() if image is not None}
        if images != self._images:
            self.version += 1
        self._images, self._read, self._listed = images, read, listed
        self.unreadable = sum(image is None for _, image in read.values())

    def _walk(self, root: Path, listed: dict[Path, tuple[int, list[Path], bool]]) -> Iterator[Path]:
        """Folders that hold a ``result.json``."""
        waiting = [(root, 0)]
        while waiting:
            folder, depth = waiting.pop()
            try:
                changed = os.stat(folder).st_mtime_ns
                known = self._listed.get(folder)
                if known is None or known[0] != changed:
                    known = (changed, *_list_folder(folder))
            except OSError:  # it was there a moment ago, or may not be entered
                continue
            listed[folder] = known if time.time_ns() - changed > _SETTLED_NS else (-1, *known[1:])
            if known[2]:
                yield folder
            elif depth < _DEEPEST:
                waiting += [(path, depth + 1) for path in known[1]]


def _list_folder(folder: Path) -> tuple[list[Path], bool]:
    """The folders in a folder, hidden ones and links left out, and whether it is a result's."""
    with os.scandir(folder) as entries:
        found = list(entries)
    if any(entry.name == RESULT_FILE for entry in found):
        return [], True
    return [
        folder / entry.name for entry in found if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
    ], False


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _build_image(folder: Path, root: Path) -> ReviewedImage | None:
    document = read_document(folder)
    if document is None:
        return None
    side, view = find_side_and_view(document)
    sha256 = str(document.made_from.get("sha256", ""))
    study, label = _name_study(folder, root, document.study)
    return ReviewedImage(
        key=_hash(str(folder)),
        folder=folder,
        name=folder.name,
        path=document.path,
        sha256=sha256,
        fingerprint=_hash(json.dumps(document.made_from, sort_keys=True)),
        model_sha256=str(document.made_from.get("model_sha256", "")),
        study=study,
        study_label=label,
        findings=len(document.findings),
        image_score=document.image_score,
        image_p_value=document.image_p_value,
        moment=document.moment,
        laterality=side,
        view=view,
    )


def find_side_and_view(document: ResultDocument) -> tuple[str | None, str | None]:
    """Return breast and view by the image's header, else by the file's name where that says both."""
    if document.laterality is not None or document.view is not None:
        return document.laterality, document.view
    named = _SIDE_AND_VIEW.search(document.file)
    if named is None:
        return None, None
    view = named[2].upper()
    return named[1].upper(), _VIEWS.get(view, view)


def _name_study(folder: Path, root: Path, study: str | None) -> tuple[str, str]:
    """The key of a study, and what the page calls it: by its folder below the root, else by a hash."""
    home = folder.parent
    own = home.relative_to(root).parts if home != root and home.is_relative_to(root) else ()
    words = [part for part in own if part not in ("results", "studies")]
    if study is None and not words:
        return _hash(str(folder)), show_text(folder.name)
    label = "/".join(words) if words else f"Study {str(study)[:8]}"
    return _hash(f"{home}\n{study}"), show_text(label)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def list_places(image: ReviewedImage, roots: Iterable[Path]) -> Iterator[Path]:
    """Yield where the file of an image may lie: as the result says, which may count from a folder above the results."""
    stated = Path(image.path)
    yield stated
    if not stated.is_absolute():
        for base in (*image.folder.parents, *roots):
            yield base / stated
