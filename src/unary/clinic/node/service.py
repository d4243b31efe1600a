"""A node: listeners, work and deliveries around one folder, from start to graceful end."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from unary.clinic.node.audit import AuditLog
from unary.clinic.node.commitment import answer_by_call, build_report
from unary.clinic.node.config import NodeConfig
from unary.clinic.node.delivering import Deliverer
from unary.clinic.node.logs import NOISY
from unary.clinic.node.receiving_dimse import DimseReceiver
from unary.clinic.node.receiving_folder import FolderWatcher
from unary.clinic.node.state import NodeState
from unary.clinic.node.store import Store
from unary.clinic.node.web import WebServer
from unary.clinic.node.working import Worker
from unary.clinic.web_access import build_context
from unary.errors import UnaryError, require
from unary.files import locking
from unary.images.checks import silencing
from unary.models.bundle import Model, read_model
from unary.models.examination import choose_point

logger = logging.getLogger(__name__)

_SIGNAL_S = 1.0
_TIDY_S, _TICK_S = 600.0, 1.0
_COMMITMENT_TRIES, _COMMITMENT_PAUSE_S = 50, 30.0


class Node:
    """Everything of a running node; made by `running_node`."""

    def __init__(self, config: NodeConfig, model: Model) -> None:
        self.config = config
        self.wake = threading.Event()
        state_folder = config.state
        self.audit = AuditLog(state_folder / "audit.jsonl")
        self.state = NodeState(state_folder / "node.sqlite")
        self.store = Store(state_folder, config.limits, self.state, self.audit)
        to_deliver = threading.Event()
        self.worker = Worker(config, model, self.store, self.wake, to_deliver)
        self.deliverers = [Deliverer(each, config.sending, self.store) for each in config.destinations]
        self.watcher = None if config.watch is None else FolderWatcher(config.watch, self.store, self.wake)
        self.dimse: DimseReceiver | None = None
        self.web: WebServer | None = None
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, args=(to_deliver,), name="node-keeper", daemon=True)

    def start(self) -> None:
        """Begin to work, then to listen."""
        self.audit.write("started", **self.worker.about)
        self.state.settle_sent()  # a kill may have come after the last confirmation
        self.worker.start()
        for deliverer in self.deliverers:
            deliverer.start()
        self._keeper.start()
        if self.config.dimse is not None:
            self.dimse = DimseReceiver(self.config.dimse, self.store, self.wake)
        if self.config.web is not None:
            self.web = WebServer(self.config.web, self)
        if self.watcher is not None:
            self.watcher.start()
        logger.info("started", extra={"about": {"dimse": self.dimse_port, "web": self.web_port}})

    def stop(self, patience_s: float = 120.0) -> None:
        """Take nothing more, finish the image under way, and end; what is open goes on at the next start."""
        logger.info("stopping")
        self.store.closed.set()
        self.worker.ended.set()
        self._ended.set()
        if self.watcher is not None and self.watcher.is_alive:
            self.watcher.stop()
        if self.dimse is not None:
            self.dimse.stop()
        if self.web is not None:
            self.web.stop()
        finished = self.worker.stop(patience_s) if self.worker.is_alive else True
        for deliverer in self.deliverers:
            if deliverer.is_alive:
                deliverer.stop(5.0)
        if self._keeper.is_alive():
            self._keeper.join(10.0)
        self.store.close()
        self.audit.write("stopped", finished=finished)
        self.state.write_fact("audit_head", json.dumps([self.audit.head.number, self.audit.head.sha256]))
        self.state.close()
        self.audit.close()
        logger.info("stopped", extra={"about": {"finished": finished}})

    @property
    def dimse_port(self) -> int | None:
        """Where DIMSE is listened for."""
        return None if self.dimse is None else self.dimse.port

    @property
    def web_port(self) -> int | None:
        """Where the web is listened for."""
        return None if self.web is None else self.web.port

    def answer_times(self) -> list[float]:
        """Return the last durations of C-STORE in seconds."""
        return [] if self.dimse is None else list(self.dimse.answer_times)

    def list_parts(self) -> Iterator[tuple[str, bool]]:
        """Yield each part with whether it does its work."""
        yield "work", self.worker.is_alive
        yield "keeper", self._keeper.is_alive()
        if self.dimse is not None:
            yield "dimse", self.dimse.is_alive
        if self.watcher is not None:
            yield "watch", self.watcher.is_alive and self.watcher.config.folder.is_dir()
        for deliverer in self.deliverers:
            yield f"to {deliverer.destination.name}", deliverer.is_alive

    def _keep(self, to_deliver: threading.Event) -> None:
        """Answer requests for storage commitment, delete what is old, and note how long the node runs."""
        tidied, saved, next_call = -_TIDY_S, time.monotonic(), 0.0
        while not self._ended.is_set():
            try:
                if to_deliver.wait(0.2):
                    to_deliver.clear()
                    for deliverer in self.deliverers:
                        deliverer.wake.set()
                now = time.monotonic()
                self._complete_committed()
                if now >= next_call:
                    next_call = now + (_COMMITMENT_PAUSE_S if self._answer_commitments() else _TICK_S)
                if now - saved > 60.0:
                    self.state.save_age()
                    saved = now
                if now - tidied > _TIDY_S:
                    self.store.tidy()
                    tidied = now
            except Exception as error:  # a full disk under the books, for one; the text may name a patient
                logger.error("housekeeping cannot go on for now: %s", type(error).__name__)
                self._ended.wait(10.0)

    def _complete_committed(self) -> None:
        """A study for which commitment is asked is complete."""
        with self.state.transaction():
            for row in self.state.take_new_commitments():
                for study in build_report(row, self.store)[2]:
                    self.state.queue_study(study)
                self.wake.set()

    def _answer_commitments(self) -> bool:
        """Call those who wait for an answer; return whether one could not be reached."""
        failed = False
        title = "UNARY" if self.config.dimse is None else self.config.dimse.title
        for row in self.state.list_commitments():
            if json.loads(row["request"])["port"] is None:
                continue  # over its own association
            done = answer_by_call(row, self.store, title)
            over = row["attempts"] + 1 >= _COMMITMENT_TRIES
            self.state.change_commitment(row["commitment"], "answered" if done else "unanswered" if over else "waiting")
            if done or over:
                event = "commitment_answered" if done else "commitment_not_answered"
                self.audit.write(event, commitment=row["commitment"])
            failed = failed or not done
        return failed


@contextmanager
def running_node(config: NodeConfig, model: Model | None = None) -> Iterator[Node]:
    """Run a node in this process until the block ends, then stop it gracefully.

    Raises
    ------
    UnaryError
        If the state is held by another process or damaged, an address cannot be listened on, or model, operating point,
        certificate or secret is of no use.
    """
    with ExitStack() as stack:
        stack.callback(os.umask, os.umask(0o077))  # images of patients lie below
        stack.enter_context(locking(config.state))
        model = model or read_model(config.model)
        check_config(config, model)
        stack.enter_context(silencing(*NOISY))
        node = Node(config, model)
        try:
            node.start()
            yield node
        finally:
            node.stop()


def check_config(config: NodeConfig, model: Model) -> list[str]:
    """Check what a configuration names without starting anything; return what is worth knowing, a line each."""
    point = choose_point(model, config.operating_point)
    lines = [f"model: {model!r}"]
    lines.append(f"operating point: {point.name if point else 'none, the model is not calibrated'}")
    if config.dimse is not None:
        require("pynetdicom", extra="pacs")
        tls = "TLS" if config.dimse.certificate else "no TLS"
        who = ", ".join(caller.title for caller in config.dimse.callers)
        lines.append(f"DIMSE: {config.dimse.title}@{config.dimse.host}:{config.dimse.port}, {tls}, from {who}")
    if config.web is not None:
        require("starlette", extra="node")
        require("uvicorn", extra="node")
        token = "token" if config.web.build_access().token else "no token"
        tls = "TLS" if config.web.certificate else "no TLS"
        lines.append(f"web: {config.web.host}:{config.web.port}, {tls}, {token}")
    for listener in (config.dimse, config.web):
        if listener is not None:
            build_context(listener)
    if config.watch is not None:
        if not config.watch.folder.is_dir():
            raise UnaryError(f"{config.watch.folder}: no such folder, and it is to be watched")
        lines.append(f"watched folder: {config.watch.folder}")
    for destination in config.destinations:
        address = destination.build_address()
        if address.tls is not None:
            address.tls.build_context()
        lines.append(f"destination {destination.name}: {destination.dimse or destination.web}")
    if not config.destinations:
        lines.append("no destination: results stay in the state folder")
    return lines


def serve_until_told(config: NodeConfig) -> None:
    """Run a node until SIGTERM or SIGINT."""
    told = threading.Event()
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, lambda *_: told.set())
    with running_node(config):
        while not told.wait(_SIGNAL_S):  # a signal that another thread receives does not wake this one by itself
            pass
