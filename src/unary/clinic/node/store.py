"""Taking objects in: on the disk first, in the books second, and only then "stored" is said.

A file is written under a temporary name, flushed, renamed, its folder flushed, and its row committed. So what was
confirmed is there after a kill or a power cut at any moment, and what was not confirmed is sent again by its sender. An
object that has come before is recognised by its SOP Instance UID: with the same content it is confirmed and nothing
more is done; with other pixels it is refused.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import threading
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from unary.clinic.node.audit import AuditLog
from unary.clinic.node.config import GIB, MIB, Limits
from unary.clinic.node.incoming import (
    DUPLICATE,
    OUT_OF_RESOURCES,
    Arrival,
    RefusedError,
    Sender,
    examine_arrival,
    write_arrival,
)
from unary.clinic.node.state import NodeState, StoredObject
from unary.errors import ImageError
from unary.images.attributes import hash_uid
from unary.images.isolation import IsolatedReader

logger = logging.getLogger(__name__)

IMAGES, RESULTS = "images", "results"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BOOKS_FULL = 13  # SQLITE_FULL


class Store:
    """The node's folder: ``incoming/`` and ``studies/STUDY/images/OBJECT.dcm``, beside state and audit log."""

    def __init__(self, folder: Path, limits: Limits, state: NodeState, audit: AuditLog) -> None:
        self.folder, self.limits, self.state, self.audit = folder, limits, state, audit
        self._lock = threading.Lock()
        self._reader = IsolatedReader()
        self._incoming, self._studies = folder / "incoming", folder / "studies"
        self.bytes = 0
        self.closed = threading.Event()
        for place in (self._incoming, self._studies):
            place.mkdir(parents=True, exist_ok=True)
        self._clear()

    def close(self) -> None:
        """Take nothing more."""
        self.closed.set()
        self._reader.close()

    def _clear(self) -> None:
        """Remove what a killed node was writing, none of which was confirmed, and what it was deleting."""
        for path in self._incoming.iterdir():
            path.unlink()
        held = self.state.query("SELECT object, study FROM objects WHERE held = 1")
        known, studies = {row["object"] for row in held}, {row["study"] for row in held}
        for folder in self._studies.iterdir():
            if folder.name not in studies:
                shutil.rmtree(folder, ignore_errors=True)
        for path in self._studies.glob(f"*/{IMAGES}/*.dcm"):
            if path.stem not in known:
                path.unlink()
        self.bytes = sum(path.stat().st_size for path in self._studies.rglob("*") if path.is_file())

    # --- places -----------------------------------------------------------------------------------------------------

    def image_path(self, found: StoredObject) -> Path:
        """Return where an object lies."""
        return self._studies / found.study / IMAGES / f"{found.object}.dcm"

    def results_folder(self, study: str) -> Path:
        """Return where the results of a study lie, a folder as ``unary detect --out`` writes."""
        return self._studies / study / RESULTS

    # --- taking in --------------------------------------------------------------------------------------------------

    def take(self, data: memoryview, syntax: str, sender: Sender, *, announced: tuple[str, str] = ("", "")) -> str:
        """Take a data set in; return its hashed SOP Instance UID once it is safe. Results of unary are passed over.

        Raises
        ------
        RefusedError
            If it is not taken: what its sender is told.
        """
        try:
            self._require_room(len(data))
            arrival = examine_arrival(data, syntax, *announced)
            name = hash_uid(arrival.sop_instance)
            if arrival.own:
                self._tell("passed_over", sender, object=name, reason="OWN_RESULT")
                return name
            self._keep(arrival, data, sender)
        except RefusedError as error:
            self._tell("not_taken", sender, object=hash_uid(announced[1]), reason=error.reason, status=error.status)
            raise
        except (OSError, sqlite3.OperationalError) as error:
            full = getattr(error, "errno", None) in _FULL or getattr(error, "sqlite_errorcode", None) == _BOOKS_FULL
            if not full:
                logger.error("an object cannot be written: %s", getattr(error, "strerror", type(error).__name__))
            words = "the disk is full" if full else "it cannot be written"
            with suppress(OSError):
                self._tell("not_taken", sender, object=hash_uid(announced[1]), reason="DISK", status=OUT_OF_RESOURCES)
            raise RefusedError(OUT_OF_RESOURCES, "DISK", words) from None
        return name

    def _require_room(self, size: int) -> None:
        """Refuse what there is no room for; its sender may try again later."""
        limits = self.limits
        if self.closed.is_set():
            raise RefusedError(OUT_OF_RESOURCES, "STOPPING", "the node is being stopped")
        if size > limits.object_mib * MIB:
            raise RefusedError(OUT_OF_RESOURCES, "TOO_LARGE", f"larger than {limits.object_mib:g} MiB")
        if self.state.count_waiting() >= limits.queue:
            raise RefusedError(OUT_OF_RESOURCES, "QUEUE_FULL", f"{limits.queue} images wait already")
        if self.bytes + size > limits.state_gib * GIB:
            raise RefusedError(OUT_OF_RESOURCES, "STATE_FULL", f"images and results have {limits.state_gib:g} GiB")
        if shutil.disk_usage(self.folder).free - size < limits.free_gib * GIB:
            raise RefusedError(OUT_OF_RESOURCES, "DISK", f"less than {limits.free_gib:g} GiB would stay free")

    def _keep(self, arrival: Arrival, data: memoryview, sender: Sender) -> None:
        name = hash_uid(arrival.sop_instance)
        known = self.state.find_object(name)
        if known is not None and self._is_settled(known, arrival, data, sender):
            return
        row = StoredObject(
            name, hash_uid(arrival.study), arrival.content, arrival.sop_class, arrival.syntax, len(data), sender.way,
            sender.title, sender.address, self.state.age_s(), "received", 0, None, None, None, None, 1,
        )  # fmt: skip
        partial, path = self._incoming / uuid.uuid4().hex, self.image_path(row)
        try:
            with partial.open("xb") as file:
                write_arrival(arrival, data, file)
                file.flush()
                os.fsync(file.fileno())
            size = partial.stat().st_size
            with self._lock:
                known = self.state.find_object(name)  # another association may have brought it meanwhile
                if known is not None and known.held and known.state != "failed":
                    if known.content != arrival.content:
                        raise RefusedError(DUPLICATE, "DUPLICATE_UID", "another object has this SOP Instance UID")
                    return
                _make_durably(path.parent)
                os.replace(partial, path)
                sync_folder(path.parent)
                self.state.add_object(replace(row, bytes=size))
                self.bytes += size
        finally:
            partial.unlink(missing_ok=True)
        self._tell("received", sender, object=name, study=row.study, bytes=size)

    def _is_settled(self, known: StoredObject, arrival: Arrival, data: memoryview, sender: Sender) -> bool:
        """Whether an object that is known needs no more; a RefusedError if it is another under the same UID."""
        same_study = known.study == hash_uid(arrival.study)
        if known.content == arrival.content:
            if known.state == "failed":  # its sender tries again: so does the node
                return False
            self._tell("received_again", sender, object=known.object)
            return True
        if known.held and same_study and self._has_same_pixels(known, arrival, data):
            self._tell("received_again", sender, object=known.object, differs="header or transfer syntax")
            return True
        words = "another object with this SOP Instance UID is known, with other pixels or in another study"
        raise RefusedError(DUPLICATE, "DUPLICATE_UID", words)

    def _has_same_pixels(self, known: StoredObject, arrival: Arrival, data: memoryview) -> bool:
        """Compare what an image shows with what the node holds, each decoded in a process of its own."""
        partial = self._incoming / f"{uuid.uuid4().hex}.dcm"
        try:
            with partial.open("xb") as file:
                write_arrival(arrival, data, file)
            first, second = self._reader.read(self.image_path(known)), self._reader.read(partial)
            return first.pixels.dtype == second.pixels.dtype and np.array_equal(first.pixels, second.pixels)
        except ImageError:  # what cannot be compared is not the same
            return False
        finally:
            partial.unlink(missing_ok=True)

    def _tell(self, event: str, sender: Sender, **about: object) -> None:
        self.audit.write(event, way=sender.way, title=sender.title, address=sender.address, **about)
        logger.info(event, extra={"about": {"way": sender.way, "title": sender.title, **about}})

    # --- retention --------------------------------------------------------------------------------------------------

    def measure(self) -> int:
        """Count the bytes of images and results anew, and return them."""
        self.bytes = sum(_size(path) for path in self._studies.rglob("*"))
        return self.bytes

    def tidy(self) -> list[str]:
        """Delete the files of finished studies that are older than is kept, or the oldest while there is too much."""
        deleted = []
        used, now, day_s = self.measure(), self.state.age_s(), 86400.0
        for study, age_from, _ in self.state.list_finished():
            old = now - age_from > self.limits.keep_days * day_s
            much = used > 0.9 * self.limits.state_gib * GIB  # before anything must be refused
            if not (old or much):
                break
            folder = self._studies / study
            with self._lock:
                if study not in {each for each, *_ in self.state.list_finished()}:
                    continue  # something has arrived for it meanwhile
                self.state.forget_files(study)
                used -= sum(_size(path) for path in folder.rglob("*"))
                shutil.rmtree(folder, ignore_errors=True)
            self.audit.write("deleted", study=study, reason="AGE" if old else "SIZE")
            deleted.append(study)
        self.bytes = used
        return deleted


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # gone meanwhile
        return 0


def _make_durably(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        for each in (folder.parent, folder.parent.parent):
            sync_folder(each)


def sync_folder(folder: Path) -> None:
    """See the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
