"""What is done with one shard, by whatever engine: every image examined, tables and objects written, the record last.

Every image goes the way of `unary.clinic.file_work`, as those of folders do. What goes wrong with one is its row, with
a reason; what is wrong with all ends the shard, of which nothing is then written.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from unary.clinic.batch_detection import DetectConfig, DetectionWrite, build_job
from unary.clinic.file_work import (
    InspectedFile,
    Job,
    describe_origin,
    explain_failure,
    hash_image_file,
    inspect_file,
    load_image,
    require_working_model,
)
from unary.clinic.inputs import name_result
from unary.clinic.result_folder import write_document
from unary.clinic.shard_tables import (
    TableRows,
    describe_candidates,
    describe_failed,
    describe_finding,
    describe_image,
    hash_and_measure,
    write_tables,
)
from unary.clinic.shards import RECORD_FILE, SHARDS, Shard, ShardRecord, ShardRow, write_record
from unary.clinic.storage import Patience, StorageError, Store, fetch_file, find_local, show_place
from unary.errors import ImageError, UnaryError, explain_unexpected
from unary.files import read_ahead
from unary.images.isolation import IsolatedReader, show_path
from unary.images.isolation_process import ReadingLimits
from unary.models.bundle import read_model
from unary.records import Image
from unary.training.threads import sharing_processor

_AHEAD = 2
_MOST_UNREACHED = 5  # images in a row that a store did not give


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know, wherever it runs.

    Attributes
    ----------
    model_folder, model_sha256
        Where the model is, and which it must be.
    config
        Its ``dicom`` and ``maps`` say what is written of each image beside the tables.
    out
        The folder or URL of the results.
    threads
        How many of the processor's threads each worker may use; results do not depend on it.
    patience
        With stores.
    device
        Where networks are applied, in torch's notation.
    """

    model_folder: str
    model_sha256: str
    config: DetectConfig
    out: str
    threads: int = 1
    patience: Patience = field(default_factory=Patience)
    device: str = "cpu"

    @property
    def own_files(self) -> bool:
        """Whether each image has a folder of its own."""
        return bool(self.config.dicom) or self.config.maps


def build_shard_job(settings: WorkerSettings, model: Any, moment: datetime) -> Job:
    """Return what is done with every image of a shard; its ``made_from`` is that of the shard's record.

    Raises
    ------
    UnaryError
        If the model is another by now; or as `unary.clinic.batch_detection.build_job`.
    """
    config = replace(settings.config, dicom=settings.config.dicom or ())
    job = build_job(model, config, model_folder=Path(settings.model_folder), moment=moment)
    if job.made_from["model_sha256"] != settings.model_sha256:
        raise UnaryError(f"{settings.model_folder}: it holds another model than when the run began; run it again")
    options = {"spacing_mm": config.spacing_mm, "accept": list(config.accept)}
    return replace(job, made_from={"command": job.command, **job.made_from, **options})


@dataclass(frozen=True)
class _Task:
    """One image: its row, what is done with it, and where its own files go if it has any."""

    row: ShardRow
    job: Job
    folder: Path
    moment: datetime


class ShardWorker:
    """Works on shards, one after the other, with a model that is read once; use it in a ``with`` block."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._store = Store(settings.out, settings.patience)
        self._limits = settings.config.limits or ReadingLimits()
        self._reader = IsolatedReader(self._limits)
        with sharing_processor(settings.threads):
            self._model = read_model(settings.model_folder, device=settings.device)
        self._probed = False  # whether the model has examined something
        self._unreached = 0

    def __enter__(self) -> ShardWorker:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()

    def work(self, shard: Shard) -> ShardRecord:
        """Make the results of a shard, and return their record.

        Raises
        ------
        UnaryError
            If something is wrong with all images: results cannot be written, the store of the images does not answer,
            the model is gone or examines nothing, the process that reads cannot be started.
        """
        moment = datetime.fromisoformat(shard.moment)
        job = build_shard_job(self.settings, self._model, moment)
        staging = self._store.staging
        try:
            if staging is not None:
                staging.mkdir(parents=True, exist_ok=True)
            with (
                tempfile.TemporaryDirectory(dir=staging, ignore_cleanup_errors=True) as place,
                sharing_processor(self.settings.threads),
            ):
                return self._make(shard, job, Path(place))
        except OSError as error:
            raise StorageError(
                f"{self._store.show()}: no more results can be written ({error.strerror}); what was done is there, and "
                "the same command goes on from there"
            ) from error

    def _make(self, shard: Shard, job: Job, place: Path) -> ShardRecord:
        built, fetched = place / shard.name, place / "fetched"
        built.mkdir()
        fetched.mkdir()

        def bring(row: ShardRow) -> Path | Exception:
            return self._bring(row, fetched)

        rows: list[TableRows] = []
        names: set[str] = set()
        with contextlib.closing(read_ahead(bring, shard.rows, ahead=_AHEAD)) as brought:
            for row, found in zip(shard.rows, brought, strict=True):
                folder = built / "images" / _choose_name(row.image, names)
                own = job if row.spacing_mm is None else _give_spacing(job, row.spacing_mm)
                rows.append(self._examine(found, _Task(row, own, folder, datetime.fromisoformat(shard.moment))))
                if isinstance(found, Path) and found.is_relative_to(fetched):
                    shutil.rmtree(found.parent, ignore_errors=True)
        for name, content in write_tables(rows).items():
            (built / name).write_bytes(content)
        record = _describe(shard, job, rows, _hash_folder(built))
        (built / RECORD_FILE).write_bytes(write_record(record))
        self._store.publish(built, f"{SHARDS}/{shard.name}", RECORD_FILE)
        return record

    def _bring(self, row: ShardRow, folder: Path) -> Path | Exception:
        """The image's file on this machine, or why there is none."""
        local = find_local(row.location)
        if local is not None:
            return local
        patience = self.settings.patience
        if self._unreached:  # the store has been asked often enough
            patience = replace(patience, attempts=1)
        try:
            own = Path(tempfile.mkdtemp(dir=folder))
            path = fetch_file(row.location, own, limit_mib=self._limits.file_mib, patience=patience)
        except StorageError as error:
            self._unreached = 0 if error.reached else self._unreached + 1
            if self._unreached >= _MOST_UNREACHED:
                return UnaryError(f"{error} ({self._unreached} images in a row; what was done is kept)")
            return ImageError(str(error), reason="NOT_READABLE")
        except UnaryError as error:  # a package is missing
            return error
        self._unreached = 0
        return path

    def _examine(self, brought: Path | Exception, task: _Task) -> TableRows:
        sha256, path = "", brought if isinstance(brought, Path) else Path(task.row.location)
        try:
            if isinstance(brought, Exception):
                raise brought
            sha256 = hash_image_file(path, self._limits)
            inspected = inspect_file(path, sha256, task.job, self._reader)
            image = load_image(inspected, task.job, self._reader)
        except Exception as error:
            return _fail(task.row, explain_failure(error, path), path, sha256)
        try:
            return self._find(inspected, image, task)
        except OSError:
            raise
        except Exception as error:
            shutil.rmtree(task.folder, ignore_errors=True)
            return _fail(task.row, self._explain(error, task), path, sha256)

    def _find(self, inspected: InspectedFile, image: Image, task: _Task) -> TableRows:
        """Examine an image that has been read, and write what it has of its own."""
        write = task.job.examine(image, inspected.source)
        assert isinstance(write, DetectionWrite)
        found, name = write.examined, task.row.image
        facts = describe_image(inspected, image, found.scored, found.detection, found.measured, model=self._model)
        candidates = describe_candidates(name, self._model, found.scored)
        missing = self._write_own(write, inspected, image, task) if self.settings.own_files else None
        self._probed = True
        known = {"image": name, "location": show_place(task.row.location), "candidates": len(candidates)}
        return TableRows(
            {**facts, **known, "dicom_missing": missing},
            [describe_finding(name, finding) for finding in found.detection.findings],
            candidates,
            (found.scored.origins, found.scored.scores),
        )

    def _write_own(self, write: DetectionWrite, inspected: InspectedFile, image: Image, task: _Task) -> str | None:
        """Write the folder of an image, as `unary.clinic.batch` does; return why DICOM objects are missing."""
        task.folder.mkdir(parents=True)
        summary, document = write(task.folder)
        place = show_place(task.row.location)
        known = describe_origin(inspected, image, task.moment) | {"file": place.rpartition("/")[2], "path": place}
        write_document(task.folder, {"image": task.folder.name, **summary}, document, inspected.source, known)
        return str(summary["dicom_missing"] or "") or None

    def _explain(self, error: Exception, task: _Task) -> ImageError:
        """What is unexpected is this image's failure, unless the model fails on a sound image as well."""
        found = explain_unexpected(error, show_place(task.row.location))
        if found.reason == "UNEXPECTED" and not self._probed:
            require_working_model(task.job)
            self._probed = True
        return found


def _give_spacing(job: Job, spacing_mm: float) -> Job:
    return replace(job, gate=replace(job.gate, spacing_mm=spacing_mm))


def _fail(row: ShardRow, error: ImageError, path: Path, sha256: str) -> TableRows:
    """The row of an image without a result; the name of its file is left out of what is wrong, and may be temporary."""
    detail = str(error)
    for name in (show_path(path), show_place(row.location)):
        detail = detail.removeprefix(f"{name}: ")
    return describe_failed(row.image, show_place(row.location), error.reason or "NOT_USABLE", detail, sha256=sha256)


def _choose_name(image: str, taken: set[str]) -> str:
    """A name for the folder of an image that no other of the shard has."""
    wanted = name = name_result(Path(image))
    number = 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    taken.add(name)
    return name


def _hash_folder(folder: Path) -> Mapping[str, tuple[str, int]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_and_measure(path.read_bytes()) for path in paths}


def _describe(shard: Shard, job: Job, rows: Sequence[TableRows], files: Mapping[str, tuple[str, int]]) -> ShardRecord:
    failures = Counter(str(row.image["reason"]) for row in rows if row.failed)
    return ShardRecord(
        shard.name,
        shard.moment,
        dict(job.made_from),
        len(rows),
        sum(len(row.findings) for row in rows),
        dict(sorted(failures.items())),
        files,
        missing_dicom=sum(bool(row.image.get("dicom_missing")) for row in rows),
        outside=sum(bool(row.image.get("out_of_domain")) for row in rows),
    )
