"""Detection over an archive: the images of a manifest in shards, by several workers, into tables.

The folder of results holds ``shards/NAME/`` with four Parquet tables, the folders of images where objects or maps were
asked for, and the record that is written last; ``run.json``, which lists the shards of the manifest in its order; and
``failures.csv``. A shard whose record and tables are whole is done, whoever made it: a rerun, another number of workers
or another engine leaves it as it is.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from unary.clinic.batch_detection import DetectConfig, list_study_kinds
from unary.clinic.engines import EngineConfig, count_cores, run_engine
from unary.clinic.shard_tables import VERSION
from unary.clinic.shard_work import WorkerSettings, build_shard_job
from unary.clinic.shards import (
    DEFAULT_SIZE,
    SHARDS,
    Shard,
    ShardRecord,
    ShardRow,
    cut_shards,
    find_damage,
    list_rows,
    read_record,
    require_same,
)
from unary.clinic.storage import Patience, StorageError, Store
from unary.datasets.manifest import read_listing
from unary.errors import UnaryError
from unary.files import hash_file, is_url, write_csv
from unary.models.bundle import hash_scoring, identify_model, read_model
from unary.models.examination import choose_point
from unary.progress import Bar, show_progress
from unary.records import NOTICE, ModelIdentity, OperatingPoint, count_words

RUN_FILE, FAILURES_FILE, KIND = "run.json", "failures.csv", "archive"
_MOST_NAMED = 5


@dataclass(frozen=True)
class ArchiveConfig:
    """How an archive is gone through.

    Attributes
    ----------
    detect
        What is done with each image; of each, DICOM objects are written only where they are asked for.
    engine
        Who works on shards.
    shard_size
        Images in a shard, on average; None takes that of the folder's earlier runs, or `DEFAULT_SIZE`.
    threads
        Of the processor, for each worker; None shares those of this computer out among the workers.
    patience
        With object stores.
    retry
        Whether shards are made anew that hold images without a result for a reason that may be gone.
    device
        Where each worker applies networks, in torch's notation.
    """

    detect: DetectConfig = field(default_factory=DetectConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    shard_size: int | None = None
    threads: int | None = None
    patience: Patience = field(default_factory=Patience)
    retry: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("shard_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if list_study_kinds(self.detect):
            raise UnaryError(
                "objects of studies are not made by shards, which cut studies: leave out "
                + ", ".join(list_study_kinds(self.detect))
            )

    def count_threads(self) -> int:
        """Return the threads of each worker."""
        if self.threads is not None:
            return self.threads
        if self.engine.address is not None:
            return 1
        workers = count_cores() if self.engine.workers is None else self.engine.workers
        return max(count_cores() // max(workers, 1), 1)


@dataclass(frozen=True)
class ArchiveSummary:
    """How a run over an archive ended.

    Attributes
    ----------
    images
        How many the manifest lists, each once.
    examined, kept
        How many of them were worked on now, and how many were found done.
    findings, outside, missing_dicom
        Of all that is done: how many findings; how many images differ from those that the model has learned from, and
        how many lack the DICOM objects that were asked for.
    failures
        How many images have no result, by reason.
    shards, made
        How many the manifest has, and how many of them were made now.
    point
        Above which findings count; None for a model that has not been calibrated.
    lost
        Images of shards that were not made, because workers died over them.
    remarks
        What is odd, one sentence each.
    """

    images: int
    examined: int
    kept: int
    findings: int
    outside: int
    missing_dicom: int
    failures: Mapping[str, int]
    shards: int
    made: int
    point: OperatingPoint | None = None
    lost: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """How many images have no result."""
        return sum(self.failures.values()) + self.lost

    @property
    def done(self) -> int:
        """How many have one."""
        return self.images - self.failed


def detect_archive(
    manifest: Path,
    out: Path | str,
    config: ArchiveConfig | None = None,
    *,
    model_folder: Path,
    moment: datetime | None = None,
    progress: bool = True,
) -> ArchiveSummary:
    """Find what departs from normal tissue in the images that a manifest lists.

    Parameters
    ----------
    manifest
        Of which ``path``, which may be a URL, ``image_id`` and ``spacing_mm`` count (`unary.datasets.manifest`).
    out
        A folder, or a URL of one.
    model_folder
        Where the model is; every worker must find it there.
    moment
        The date and time that new shards bear, with a time zone; now by default. A shard that an earlier run has begun
        keeps its own.

    Raises
    ------
    UnaryError
        If the manifest or the model cannot be read, ``out`` is in use, cannot be written to, or holds results of
        another model, of other options or of another command; or if something is wrong with all images. What is done
        is kept.
    """
    config = config or ArchiveConfig()
    run = _open(manifest, out, config, model_folder, moment)
    with run.store.holding():
        former, size, plan = _survey(run, config, progress=progress)
        document = {
            "notice": NOTICE,
            "kind": KIND,
            "tables_version": VERSION,
            "made_from": run.made_from,
            "model": asdict(run.identity),
            "scoring_sha256": hash_scoring(model_folder),
            "operating_point": None if run.point is None else asdict(run.point),
            "shard_size": size,
            "manifest": {"sha256": hash_file(manifest), "images": len(run.rows)},
        }
        with _recording(run.store, plan, document, run.moment, former):
            _make_shards(run.settings, plan, config.engine, progress=progress)
        return replace(_summarise(plan, former, document), point=run.point)


@dataclass(frozen=True)
class ArchivePlan:
    """What `detect_archive` would do.

    Attributes
    ----------
    images, shards
        How many the manifest has.
    images_left, shards_left
        How many of them would be worked on; the others are done.
    damaged
        What is wrong with shards that are there, by name; they would be made anew.
    shard_size
        By which shards are cut.
    """

    images: int
    shards: int
    images_left: int
    shards_left: int
    damaged: Mapping[str, str]
    shard_size: int


def plan_archive(
    manifest: Path,
    out: Path | str,
    config: ArchiveConfig | None = None,
    *,
    model_folder: Path,
    progress: bool = True,
) -> ArchivePlan:
    """Return what `detect_archive` would do, without holding ``out`` or writing there; arguments and errors are its."""
    config = config or ArchiveConfig()
    run = _open(manifest, out, config, model_folder, None)
    _, size, plan = _survey(run, config, progress=progress)
    left = [shard for shard in plan.shards if shard.name not in plan.records]
    images_left = sum(len(shard.rows) for shard in left)
    return ArchivePlan(plan.images, len(plan.shards), images_left, len(left), dict(plan.damaged), size)


@dataclass(frozen=True)
class _Run:
    """A run that may begin: the images, where results go, and what with."""

    rows: Sequence[ShardRow]
    store: Store
    settings: WorkerSettings
    identity: ModelIdentity
    point: OperatingPoint | None
    made_from: Mapping[str, Any]
    moment: datetime


def _open(manifest: Path, out: Path | str, config: ArchiveConfig, model_folder: Path, moment: datetime | None) -> _Run:
    moment = moment or datetime.now().astimezone().replace(microsecond=0)
    rows = list_rows(read_listing(manifest))
    model = read_model(model_folder)
    folder = str(Path(model_folder).absolute())
    identity = identify_model(model, model_folder)
    settings = WorkerSettings(
        folder,
        identity.sha256,
        config.detect,
        _make_absolute(out),
        config.count_threads(),
        config.patience,
        config.device,
    )
    made_from = json.loads(json.dumps(build_shard_job(settings, model, moment).made_from))
    point = choose_point(model, config.detect.operating_point)
    return _Run(rows, Store(str(out), config.patience), settings, identity, point, made_from, moment)


def _survey(run: _Run, config: ArchiveConfig, *, progress: bool) -> tuple[dict[str, Any] | None, int, _Plan]:
    """What the folder's record says, the size of its shards, and what is to be made; an error if it is of another."""
    store = run.store
    former = read_run(store) if store.read(RUN_FILE) is not None else None
    if former is None and any(store.read(name) is not None for name in (FAILURES_FILE, "summary.csv")):
        raise UnaryError(f"{store.show()}: it holds tables of something else; choose another folder")
    if former is not None:
        require_same(former["made_from"], run.made_from, store.show())
    size = _choose_size(config, former, store)
    cut = cut_shards(run.rows, size)
    return former, size, _plan(store, cut, run.made_from, run.moment, former, config, progress=progress)


def _make_absolute(out: Path | str) -> str:
    return str(out) if is_url(str(out)) else str(Path(out).absolute())


def _choose_size(config: ArchiveConfig, former: Mapping[str, Any] | None, store: Store) -> int:
    known = None if former is None else int(former["shard_size"])
    if known is not None and config.shard_size not in (None, known):
        raise UnaryError(
            f"{store.show()}: its shards were cut by --shard-size {known}; leave it out, or choose another folder"
        )
    return known or config.shard_size or DEFAULT_SIZE


@dataclass
class _Plan:
    """The shards of a manifest in its order, and the records of those that are done."""

    store: Store
    shards: list[Shard]
    records: dict[str, ShardRecord]
    kept: frozenset[str] = frozenset()
    damaged: dict[str, str] = field(default_factory=dict)
    left: int = 0  # shards of former manifests

    @property
    def images(self) -> int:
        return sum(len(shard.rows) for shard in self.shards)


def _plan(
    store: Store,
    cut: Sequence[tuple[ShardRow, ...]],
    made_from: Mapping[str, Any],
    moment: datetime,
    former: Mapping[str, Any] | None,
    config: ArchiveConfig,
    *,
    progress: bool,
) -> _Plan:
    """What is there and whole, and what is to be made; each shard keeps the moment that it has, or was to have."""
    begun = {} if former is None else {each["name"]: str(each["moment"]) for each in former["shards"]}
    plan = _Plan(store, [], {})
    there = set(store.list(SHARDS))
    for rows in show_progress(cut, title="checking", unit="shard", shown=progress, leave=False):
        name = Shard(rows).name
        record = read_record(store, name) if name in there else None
        if record is not None:
            require_same(record.made_from, made_from, store.show())
        damage = "" if name not in there else "no whole record" if record is None else find_damage(store, record)
        if damage:
            plan.damaged[name] = damage
        elif record is not None and not (config.retry and record.unsettled):
            plan.records[name] = record
        begun_at = record.moment if record is not None else begun.get(name, moment.isoformat())
        plan.shards.append(Shard(rows, begun_at))
    plan.kept = frozenset(plan.records)
    plan.left = len(there - {shard.name for shard in plan.shards})
    return plan


def _make_shards(settings: WorkerSettings, plan: _Plan, engine: EngineConfig, *, progress: bool) -> None:
    missing = [shard for shard in plan.shards if shard.name not in plan.records]
    done = plan.images - sum(len(shard.rows) for shard in missing)
    bar: Bar[Any] = show_progress(title="detect", unit="image", total=plan.images, initial=done, shown=progress)
    with bar, contextlib.closing(run_engine(settings, missing, engine)) as running:
        for shard in running:
            record = read_record(plan.store, shard.name)
            if record is not None:
                plan.records[shard.name] = record
            bar.update(len(shard.rows))


@contextlib.contextmanager
def _recording(
    store: Store, plan: _Plan, document: Mapping[str, Any], moment: datetime, former: Mapping[str, Any] | None
) -> Iterator[None]:
    """Write ``run.json`` before and after, and the table of failures, however the block ends."""
    earlier = [] if former is None else [*former["earlier_runs"], _shorten(former)][-100:]
    known = {**document, "started": moment.isoformat(), "earlier_runs": earlier}

    def save(state: str, ended: str | None) -> None:
        content = known | {"state": state, "ended": ended, **_describe_plan(plan)}
        store.write(RUN_FILE, json.dumps(content, indent=1).encode() + b"\n")

    save("running", None)
    try:
        yield
    except BaseException as error:
        with _ignoring_storage():  # the disk is full, for one: the next run tells
            save("failed" if isinstance(error, Exception) else "interrupted", _now())
            _write_failures(plan)
        raise
    _write_failures(plan)
    save("finished", _now())


@contextlib.contextmanager
def _ignoring_storage() -> Iterator[None]:
    try:
        yield
    except (StorageError, OSError):
        return


def _now() -> str:
    return datetime.now().astimezone().replace(microsecond=0).isoformat()


def _shorten(run: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a former run."""
    state = "killed" if run["state"] == "running" else run["state"]
    return {"state": state, **{key: run[key] for key in ("started", "ended", "manifest")}}


def _describe_plan(plan: _Plan) -> dict[str, Any]:
    records = [plan.records[shard.name] for shard in plan.shards if shard.name in plan.records]
    return {
        "images": sum(record.rows for record in records),
        "findings": sum(record.findings for record in records),
        "without_result": dict(sorted(sum((Counter(record.failures) for record in records), Counter[str]()).items())),
        "shards": [
            {"name": shard.name, "moment": shard.moment, "images": len(shard.rows), "done": shard.name in plan.records}
            for shard in plan.shards
        ],
        "shards_of_former_manifests": plan.left,
    }


def _write_failures(plan: _Plan) -> None:
    """Write the table of images without a result, as that of a folder of results; it may have no row."""
    import pyarrow.compute
    import pyarrow.parquet

    columns = ["image", "location", "reason", "detail"]
    lines: list[list[str]] = []
    for shard in plan.shards:
        record = plan.records.get(shard.name)
        if record is not None and record.failed:
            content = plan.store.read(f"{SHARDS}/{shard.name}/images.parquet") or b""
            table = pyarrow.parquet.read_table(pyarrow.BufferReader(content), columns=columns)
            failed = table.filter(pyarrow.compute.is_valid(table["reason"]))
            lines += [list(row.values()) for row in failed.to_pylist()]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / FAILURES_FILE
        write_csv(path, ["image", "file", "reason", "detail"], lines)
        plan.store.write(FAILURES_FILE, path.read_bytes())


def read_run(store: Store) -> dict[str, Any]:
    """Return what the ``run.json`` of an archive's results says.

    Raises
    ------
    UnaryError
        If there is none, or it is of something else.
    """
    content = store.read(RUN_FILE)
    if content is None:
        raise UnaryError(f"{store.show()}: no {RUN_FILE} there; is it a folder that `unary detect --engine` wrote?")
    try:
        found: dict[str, Any] = json.loads(content)
        keys = ("made_from", "shards", "shard_size", "earlier_runs", "state", "started", "ended", "manifest")
        if found["notice"] != NOTICE or found["kind"] != KIND or any(key not in found for key in keys):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise UnaryError(
            f"{store.show(RUN_FILE)}: it is there, and not of an archive's results as this version of unary writes "
            "them; choose another folder"
        ) from error
    if found.get("tables_version") != VERSION:
        raise UnaryError(
            f"{store.show(RUN_FILE)}: its tables are of version {found.get('tables_version')}, not {VERSION}"
        )
    return found


def _summarise(plan: _Plan, former: Mapping[str, Any] | None, document: Mapping[str, Any]) -> ArchiveSummary:
    records = [plan.records[shard.name] for shard in plan.shards if shard.name in plan.records]
    kept = sum(len(shard.rows) for shard in plan.shards if shard.name in plan.kept)
    lost = plan.images - sum(record.rows for record in records)
    return ArchiveSummary(
        images=plan.images,
        examined=plan.images - kept - lost,
        kept=kept,
        findings=sum(record.findings for record in records),
        outside=sum(record.outside for record in records),
        missing_dicom=sum(record.missing_dicom for record in records),
        failures=dict(sum((Counter(record.failures) for record in records), Counter[str]())),
        shards=len(plan.shards),
        made=len(records) - len(plan.kept),
        lost=lost,
        remarks=tuple(_list_remarks(plan, former, document, lost)),
    )


def _list_remarks(
    plan: _Plan, former: Mapping[str, Any] | None, document: Mapping[str, Any], lost: int
) -> Iterator[str]:
    if former is not None and former["manifest"]["sha256"] != document["manifest"]["sha256"]:
        yield (
            f"the manifest has changed since the last run: {count_words(len(plan.kept), 'shard')} kept, whose rows are "
            "the same; run.json lists the shards of this one"
        )
    if plan.left:
        yield (
            f"{count_words(plan.left, 'shard')} of former manifests left in the folder, which run.json does not list "
            "and no command reads"
        )
    if plan.damaged:
        named = [f"{name} ({damage})" for name, damage in sorted(plan.damaged.items())]
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        yield f"{count_words(len(named), 'damaged shard')} made anew: {', '.join(named[:_MOST_NAMED])}{more}"
    if lost:
        yield (
            f"{count_words(lost, 'image')} of shards that were not made: workers died over them, again and again (out "
            "of memory?); the same command tries them again"
        )
