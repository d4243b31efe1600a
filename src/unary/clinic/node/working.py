"""Work on complete studies: examine their images, and let the results be delivered.

A study is complete when nothing has arrived for it for a stated time, or when storage commitment was asked for it. It
is examined as `unary detect` would, into a folder of results of its own; an image that is refused or fails does not
stop the others. What a killed node was working on is begun again with the same moment, so that its results have the
same bytes and identifiers.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from unary.clinic.batch import BatchSummary, run_batch
from unary.clinic.batch_detection import DetectConfig, build_job, write_studies
from unary.clinic.node.config import NodeConfig
from unary.clinic.node.state import ALONE_FROM, State, StoredObject
from unary.clinic.node.store import Store
from unary.clinic.pacs_files import read_parcel
from unary.datasets.folder import read_result
from unary.errors import ImageError, UnaryError
from unary.images.attributes import hash_uid
from unary.models.bundle import Model, identify_model
from unary.models.examination import choose_point
from unary.outputs.dicom import STUDY_KINDS
from unary.profiles.mammography import MAMMOGRAPHY

logger = logging.getLogger(__name__)

_MAY_PASS = {"NOT_READABLE", "TIMEOUT", "MEMORY_LIMIT", "CRASH", "UNEXPECTED"}  # the others are the image's own
_MOST_BREAKS = 50  # attempts that ended with the node's own end
_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 600.0


@dataclass
class Worker:
    """Examines one study after another, in a thread of its own; `stop` lets the image under way be finished."""

    config: NodeConfig
    model: Model
    store: Store
    wake: threading.Event
    to_deliver: threading.Event
    ended: threading.Event = field(default_factory=threading.Event)
    pauses: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        identity = identify_model(self.model, self.config.model)
        point = choose_point(self.model, self.config.operating_point)
        calibration = None if self.model.calibration is None else repr(self.model.calibration)
        self.about = {
            "model": identity.sha256,
            "unary": identity.version,
            "calibration": None if calibration is None else hashlib.sha256(calibration.encode()).hexdigest()[:16],
            "operating_point": None if point is None else asdict(point),
        }
        self._thread = threading.Thread(target=self._run, name="node-work", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it still works."""
        return self._thread.is_alive()

    def stop(self, patience_s: float) -> bool:
        """End after the image under way; return whether it has ended in time."""
        self.ended.set()
        self.wake.set()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self.ended.is_set():
            try:
                worked = self.work()
            except Exception as error:  # a full disk under the books, for one; the text may name a patient
                logger.error("work cannot go on for now: %s", type(error).__name__)
                self.ended.wait(_PAUSE_S)
                continue
            if not worked:
                self.wake.wait(min(1.0, max(0.05, self.config.pause_s / 4)))
                self.wake.clear()

    def work(self) -> int:
        """Examine all studies that are complete now; return how many."""
        worked = 0
        while not self.ended.is_set():
            for study in self.store.state.queue_quiet(self.config.pause_s):
                logger.info("complete", extra={"about": {"study": study}})
            now = time.monotonic()
            ready = (each for each in self.store.state.list_waiting() if now >= self.pauses.get(each, (0.0, 0.0))[0])
            first = next(ready, None)
            if first is None:
                break
            self._work_on(first)
            worked += 1
        return worked

    def _work_on(self, study: str) -> None:
        chosen = self._choose(study)
        if not chosen:
            self._tell_of_study(study, (), None, datetime.now().astimezone().replace(microsecond=0))
            self.to_deliver.set()
            return
        names = [each.object for each in chosen]
        now = datetime.now().astimezone().replace(microsecond=0)
        run, moment = self.store.state.begin_run(study, names, now)
        try:
            summary = self._examine(study, chosen, moment)
            self._tell_of_study(study, chosen, summary, moment)
        except (UnaryError, OSError) as error:
            logger.error("a study cannot be examined for now: %s", type(error).__name__)
            self.store.state.take_back_attempt(names)
            self._put_off(study)
            return
        except Exception as error:  # of a library, on what nobody has foreseen
            logger.error("a study cannot be examined for now: %s", type(error).__name__)
            self._put_off(study)
            return
        self._settle(study, chosen, summary)
        if not self.store.state.list_objects(study, "running"):
            self.store.state.end_run(run)
        self.to_deliver.set()

    def _choose(self, study: str) -> list[StoredObject]:
        """What is examined together; what has seen the node's end too often is not examined again."""
        chosen = []
        for each in self.store.state.list_objects(study, "queued", "running"):
            if each.attempts >= _MOST_BREAKS:
                self._give_up(each, "CRASH", "the node ended each time while it was examined")
            else:
                chosen.append(each)
        sound = [each for each in chosen if each.attempts < ALONE_FROM]
        return sound or sorted(chosen, key=lambda each: each.attempts)[:1]

    def _examine(self, study: str, chosen: Sequence[StoredObject], moment: datetime) -> BatchSummary:
        job = build_job(self.model, self._choose_outputs(), model_folder=self.config.model, moment=moment)
        paths = [self.store.image_path(each) for each in chosen]
        results = self.store.results_folder(study)
        return run_batch(paths, results, job, moment=moment, progress=False, stopping=self.ended.is_set)

    def _choose_outputs(self) -> DetectConfig:
        return DetectConfig(
            self.config.operating_point,
            maps=self.config.maps,
            spacing_mm=self.config.spacing_mm,
            accept=self.config.accepted,
        )

    def _tell_of_study(
        self, study: str, chosen: Sequence[StoredObject], summary: BatchSummary | None, moment: datetime
    ) -> None:
        """Write the objects of the study as a whole and let them be sent, if none of its images is tried again.

        Before the images are settled: what a killed node was writing is begun again with them.
        """
        known = {each.object: each for each in chosen}
        failed = () if summary is None else summary.failed
        left = len(known) - (0 if summary is None else len(summary.rows) + len(failed))  # by an early end
        again = any(self._may_pass(known[Path(each.file).stem], each.reason) for each in failed)
        waiting = [
            each for each in self.store.state.list_objects(study, "queued", "running") if each.object not in known
        ]
        if again or waiting or left > 0:
            return
        kinds = STUDY_KINDS if self.model.profile.name == MAMMOGRAPHY.name else ("study_summary",)
        paths = [self.store.image_path(each) for each in self.store.state.list_objects(study) if each.held]
        about: dict[str, Any] = {"model_folder": self.config.model, "moment": moment, "kinds": kinds}
        written = write_studies(self.model, self._choose_outputs(), self.store.results_folder(study), paths, **about)
        for line in written.missing:
            logger.warning("a study's objects lack something: %s", line)
        for path in (path for one in written.studies for path in one.objects):
            self.queue_delivery(study, None, path)

    def _may_pass(self, found: StoredObject, reason: str) -> bool:
        """Whether an image is tried again."""
        return reason in _MAY_PASS and found.attempts + 1 < self.config.limits.attempts

    def _settle(self, study: str, chosen: Sequence[StoredObject], summary: BatchSummary) -> None:
        """Note what became of each image; of those that an early end has left out, nothing."""
        known = {each.object: each for each in chosen}
        again = False
        for failure in summary.failed:
            found = known[Path(failure.file).stem]
            if self._may_pass(found, failure.reason):
                self.store.state.change([found.object], "queued", reason=failure.reason, detail=failure.detail)
                again = True
            else:
                self._give_up(found, failure.reason, failure.detail)
        for row in summary.rows:
            folder = self.store.results_folder(study) / str(row["image"])
            document = read_result(folder) or {}
            self._deliver(known[Path(str(document["file"])).stem], folder, document)
        if again:
            self._put_off(study)
        else:
            self.pauses.pop(study, None)
        self.store.state.settle_sent(study)

    def _give_up(self, found: StoredObject, reason: str, detail: str) -> None:
        state: State = "failed" if reason in _MAY_PASS else "refused"
        self.store.audit.write(state, object=found.object, study=found.study, reason=reason, **self.about)
        self.store.state.change([found.object], state, reason=reason, detail=detail)
        logger.info(state, extra={"about": {"object": found.object, "reason": reason}})

    def _deliver(self, found: StoredObject, folder: Path, document: dict[str, Any]) -> None:
        """Let the objects of a result be sent, and the image be done, in one step.

        The audit log is told before: what a kill keeps out of the books is done, and told, again.
        """
        told = {"object": found.object, "study": found.study, "result": document.get("sha256")}
        missing = document.get("dicom_missing")
        self.store.audit.write("examined", **told, **self.about, objects_missing=bool(missing))
        with self.store.state.transaction():
            for name in document.get("dicom", ()):
                self.queue_delivery(found.study, found.object, folder / name)
            self.store.state.finish(found.object, folder.name)
        logger.info("examined", extra={"about": {"object": found.object}})

    def queue_delivery(self, study: str, name: str | None, path: Path) -> None:
        """Let a result go to every destination that wants its kind."""
        try:
            parcel = read_parcel(path)
        except ImageError:
            logger.error("a result cannot be read and is not sent")
            return
        place, instance = path.relative_to(self.store.folder), hash_uid(parcel.sop_instance)
        if name is None:  # of a study, that may have got another image since
            self.store.state.supersede(study, place, instance)
        for destination in self.config.destinations:
            if destination.wants(path.stem):
                self.store.state.add_delivery(study, name, place, instance, destination.name)

    def _put_off(self, study: str) -> None:
        """Let a study wait, longer each time."""
        _, last = self.pauses.get(study, (0.0, 0.0))
        pause = min(max(2 * last, _PAUSE_S), _LONGEST_PAUSE_S)
        self.pauses[study] = (time.monotonic() + pause, pause)
