"""Bringing results to their destinations, each in a thread of its own, for days if need be.

A result is marked as being sent before it goes out, and as sent when the destination has confirmed it. What was marked
when the node was killed goes out again: its SOP Instance UID stands for its content, so that a PACS holds it once. What
may pass by itself is tried until `Sending.give_up_days` of running are over; what is refused for good, a few times, at
the longest pause.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from unary.clinic.node.config import Destination, Sending
from unary.clinic.node.state import DueDelivery
from unary.clinic.node.store import Store
from unary.clinic.pacs import store_files
from unary.clinic.pacs_address import Patience
from unary.clinic.pacs_delivery import Delivery
from unary.clinic.pacs_files import Parcel, read_parcel
from unary.errors import ImageError, UnaryError
from unary.images.attributes import hash_uid

logger = logging.getLogger(__name__)

_TOGETHER = 20
_MOST_LOOKED_AT = 2000
_DAY_S = 86400.0


class Deliverer:
    """Sends what waits for one destination."""

    def __init__(self, destination: Destination, sending: Sending, store: Store) -> None:
        self.destination, self.sending, self.store = destination, sending, store
        self.wake, self._ended = threading.Event(), threading.Event()
        self._pause_s = 0.0
        self._not_before: dict[int, float] = {}
        name = f"node-to-{destination.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it still sends."""
        return self._thread.is_alive()

    def stop(self, patience_s: float) -> None:
        """End after what is being sent, if that does not take too long; what is not confirmed goes out again."""
        self._ended.set()
        self.wake.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                busy = self.deliver()
            except Exception as error:  # a full disk under the books, for one; the text may name a patient
                logger.error("nothing can be sent for now: %s", type(error).__name__)
                busy = False
                self._slow_down()
            if self._pause_s:
                self._ended.wait(self._pause_s)
            elif not busy:
                self.wake.wait(1.0)
                self.wake.clear()

    def deliver(self) -> bool:
        """Try once what is due; return whether there was anything."""
        now = time.monotonic()
        waiting = self.store.state.list_due(self.destination.name, _MOST_LOOKED_AT)
        due = [each for each in waiting if self._not_before.get(each.delivery, 0.0) <= now][:_TOGETHER]
        parcels: dict[Parcel, DueDelivery] = {}
        for each in due:
            try:
                parcel = read_parcel(self.store.folder / each.path)
            except ImageError:
                self._give_up(each, "the file is gone or damaged")
                continue
            if hash_uid(parcel.sop_instance) == each.instance:
                parcels[parcel] = each
            else:  # a study has got another image, and its objects tell of that too
                self.store.state.change_delivery(each.delivery, "superseded")
        if not parcels:
            return bool(due)
        with self.store.state.transaction():
            for each in parcels.values():
                self.store.state.change_delivery(each.delivery, "sending", note=each.note or "")
        patience = Patience(self.sending.connect_timeout_s, self.sending.answer_timeout_s, attempts=1)
        try:
            answers = store_files(list(parcels), self.destination.build_address(), patience, progress=False)
        except (UnaryError, ValueError) as error:  # a certificate, key or secret that cannot be read
            logger.error("nothing can be sent to %s: %s", self.destination.name, error)
            self._wait_all(list(parcels.values()), str(error))
            return True
        self._note([(parcels[answer.parcel], answer) for answer in answers])
        return True

    def _wait_all(self, due: Sequence[DueDelivery], note: str) -> None:
        with self.store.state.transaction():
            for each in due:
                self.store.state.change_delivery(each.delivery, "waiting", note=note)
        self._slow_down()

    def _note(self, answers: Sequence[tuple[DueDelivery, Delivery]]) -> None:
        stored = [each for each, answer in answers if answer.stored]
        for each in stored:  # before the books, which a kill may leave without it: then it goes out, and is told, again
            told = {"destination": self.destination.name, "instance": each.instance, "kind": each.kind}
            self.store.audit.write("sent", object=each.object, study=each.study, **told)
        with self.store.state.transaction():
            for each, answer in answers:
                if answer.stored:
                    self.store.state.change_delivery(each.delivery, "sent", note=answer.note)
        for each in stored:
            self._not_before.pop(each.delivery, None)
        for study in {each.study for each in stored}:
            self.store.state.settle_sent(study)
        for each, answer in answers:
            if not answer.stored:
                self._put_off(each, answer)
        logger.info("delivered", extra={"about": {"destination": self.destination.name, "objects": len(stored)}})
        if any(answer.transient for _, answer in answers):
            self._slow_down()
        else:
            self._pause_s = 0.0

    def _put_off(self, each: DueDelivery, answer: Delivery) -> None:
        old = self.store.state.age_s() - each.age_from > self.sending.give_up_days * _DAY_S
        refused = not answer.transient
        if old or (refused and each.refusals + 1 >= self.sending.refusals):
            self._give_up(each, answer.note)
            return
        self.store.state.change_delivery(each.delivery, "waiting", note=answer.note, refused=refused)
        if refused:
            self._not_before[each.delivery] = time.monotonic() + self.sending.longest_pause_s

    def _give_up(self, each: DueDelivery, note: str) -> None:
        told = {"destination": self.destination.name, "instance": each.instance, "kind": each.kind, "note": note}
        self.store.audit.write("not_delivered", object=each.object, study=each.study, **told)
        with self.store.state.transaction():
            self.store.state.change_delivery(each.delivery, "undelivered", note=note)
            if each.object is not None:
                self.store.state.change([each.object], "failed", reason="NOT_DELIVERED", detail=note)
        logger.error("not_delivered", extra={"about": {"destination": self.destination.name}})

    def _slow_down(self) -> None:
        self._pause_s = min(max(2 * self._pause_s, self.sending.first_pause_s), self.sending.longest_pause_s)
