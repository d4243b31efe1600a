"""Images over DIMSE: C-ECHO, C-STORE and storage commitment, for the callers that NODE.toml lists and nobody else.

A caller is known by its AE title together with its address, and over TLS by its certificate where that is asked for. An
object that is larger than is allowed, a caller that falls silent in the middle of something, and a message that
announces gigabytes end the association; the others go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

from unary.clinic.node.commitment import COMMITMENT, COMMITMENT_INSTANCE, answer_on
from unary.clinic.node.config import MIB, DimseListener
from unary.clinic.node.incoming import (
    FAILED,
    MISMATCH,
    NOT_AUTHORISED,
    SUCCESS,
    SYNTAXES,
    RefusedError,
    Sender,
)
from unary.clinic.node.store import Store
from unary.clinic.web_access import build_context
from unary.errors import UnaryError, require

logger = logging.getLogger(__name__)

_PDU_BYTES = 256 * 1024
_MOST_REFERENCES = 10_000
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # never deflated


class DimseReceiver:
    """Listens; `stop` lets what is under way end. ``answer_times`` holds the last durations of C-STORE in seconds."""

    def __init__(self, config: DimseListener, store: Store, wake: threading.Event) -> None:
        require("pynetdicom", extra="pacs")
        self.config, self.store, self._wake = config, store, wake
        self.answer_times: deque[float] = deque(maxlen=10_000)
        self._server = self._listen()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="node-dimse", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self._server.socket.getsockname()[1])

    @property
    def is_alive(self) -> bool:
        """Whether it still listens."""
        return self._thread.is_alive()

    def stop(self, patience_s: float = 10.0) -> None:
        """Take no new associations, let those that are open end for a while, and close them."""
        self._server.shutdown()
        deadline = time.monotonic() + patience_s
        for link in self._server.active_associations:
            link.join(max(0.0, deadline - time.monotonic()))
            if link.is_alive():
                link.abort()
                link.join(2.0)

    def _listen(self) -> Any:
        import pynetdicom
        from pynetdicom import evt

        entity = pynetdicom.AE(ae_title=self.config.title)
        entity.require_called_aet = True
        entity.require_calling_aet = [caller.title for caller in self.config.callers]
        entity.maximum_associations = self.config.most_associations
        entity.maximum_pdu_size = _PDU_BYTES
        entity.acse_timeout = entity.dimse_timeout = self.config.answer_timeout_s
        entity.network_timeout = 2 * self.config.answer_timeout_s
        entity.add_supported_context(pynetdicom.sop_class.Verification, list(_PLAIN))
        entity.add_supported_context(COMMITMENT, list(_PLAIN))
        for offered in pynetdicom.AllStoragePresentationContexts:
            entity.add_supported_context(offered.abstract_syntax, list(SYNTAXES))
        handlers = [
            (evt.EVT_REQUESTED, self._check_caller),
            (evt.EVT_REJECTED, self._note_rejected),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._commit),
        ]
        try:
            return _build_server(entity, self.config, build_context(self.config), self.store, handlers)
        except OSError as error:
            place = f"{self.config.host}:{self.config.port}"
            raise UnaryError(f"{place}: cannot be listened on ({error.strerror})") from None

    def _check_caller(self, event: Any) -> None:
        """Refuse, before anything else, a title that calls from an address that is not its own."""
        link = event.assoc
        title, address = link.requestor.primitive.calling_ae_title, link.requestor.address
        own = [caller for caller in self.config.callers if caller.title.strip() == title.strip()]
        if own and not any(caller.may_call_from(address) for caller in own):
            self._audit_rejection(address, "ADDRESS")
            link.acse.send_reject(0x01, 0x01, 0x03)  # calling AE title not recognised
            link.kill()

    def _note_rejected(self, event: Any) -> None:
        self._audit_rejection(event.assoc.requestor.address, "TITLE")

    def _audit_rejection(self, address: str, reason: str) -> None:
        self.store.audit.write("association_rejected", way="dimse", address=address, reason=reason)
        logger.warning("association_rejected", extra={"about": {"address": address, "reason": reason}})

    def _store(self, event: Any) -> Any:
        from pydicom.dataset import Dataset

        begun = time.monotonic()
        link, request, answer = event.assoc, event.request, Dataset()
        answer.Status = SUCCESS
        try:
            self._take(link, request, str(event.context.transfer_syntax))
        except RefusedError as error:
            answer.Status, answer.ErrorComment = error.status, str(error)[:64]
        except Exception as error:  # of a library, on what nobody has foreseen: its text may quote a patient
            logger.error("an object was not taken: %s", type(error).__name__)
            answer.Status, answer.ErrorComment = FAILED, "processing failure"
        link.dul.socket.recv.count = 0
        self.answer_times.append(time.monotonic() - begun)
        return answer

    def _take(self, link: Any, request: Any, syntax: str) -> None:
        sender = Sender("dimse", link.requestor.primitive.calling_ae_title.strip(), link.requestor.address)
        announced = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        if request.DataSet is None:
            raise RefusedError(MISMATCH, "BAD_HEADER", "no data set")
        with request.DataSet.getbuffer() as data:
            self.store.take(data, syntax, sender, announced=announced)
        self._wake.set()

    def _commit(self, event: Any) -> tuple[int, None]:
        """Note who asks for what; the answer is sent from another thread (PS3.4 annex J)."""
        request, link = event.request, event.assoc
        try:
            if request.ActionTypeID != 1 or str(request.RequestedSOPInstanceUID) != COMMITMENT_INSTANCE:
                return 0x0123, None  # no such action
            asked = event.action_information
            wanted = [
                (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
                for item in asked.ReferencedSOPSequence
            ]
            transaction = str(asked.TransactionUID)
        except Exception:  # a damaged request
            return 0x0115, None  # invalid argument value
        if not 0 < len(wanted) <= _MOST_REFERENCES:
            return 0x0213, None  # resource limitation
        title, address = link.requestor.primitive.calling_ae_title.strip(), link.requestor.address
        caller = next((each for each in self.config.callers if each.title.strip() == title), None)
        if caller is None:
            return NOT_AUTHORISED, None
        found = {"transaction": transaction, "objects": wanted, "port": caller.commitment_port}
        number = self.store.state.add_commitment(title, address, found)
        self.store.audit.write("commitment_asked", title=title, address=address, objects=len(wanted))
        if caller.commitment_port is None:
            self._answer_here(link, number)
        self._wake.set()
        return SUCCESS, None

    def _answer_here(self, link: Any, number: int) -> None:
        threading.Thread(target=answer_on, args=(link, number, self.store), name="node-commitment", daemon=True).start()


class _Meter:
    """Receives in place of pynetdicom's socket, and gives up on what is announced too large before it is there."""

    def __init__(self, wire: Any, most: int) -> None:
        self._wire, self._most, self.count = wire, most, 0

    def __call__(self, size: int) -> bytearray:
        self.count += size
        if size > 4 * _PDU_BYTES or self.count > self._most:
            raise OSError("larger than is allowed")
        content = bytearray(size)
        view, done = memoryview(content), 0
        while done < size:
            got = self._wire.socket.recv_into(view[done:])
            if not got:
                view.release()
                return content[:done]
            done += got
        return content


def _build_server(entity: Any, config: DimseListener, context: Any, store: Store, handlers: Any) -> Any:
    """pynetdicom's server, with limits of its own on addresses, silence and sizes."""
    from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

    most = int(store.limits.object_mib * MIB) + MIB

    class Handler(RequestHandler):  # type: ignore[misc]
        def _create_association(self) -> Any:
            link = super()._create_association()
            link.dul.socket.recv = _Meter(link.dul.socket, most)
            return link

    class Server(ThreadedAssociationServer):  # type: ignore[misc]
        request_queue_size = 64
        daemon_threads = True

        def get_request(self) -> Any:
            """Accept; a TLS handshake happens in the caller's own thread, so that a silent one holds up nobody."""
            plain, address = self.socket.accept()
            plain.settimeout(config.answer_timeout_s)
            if context is not None:
                plain = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            return plain, address

        def verify_request(self, request: Any, address: Any) -> bool:
            known = any(caller.may_call_from(address[0]) for caller in config.callers)
            if not known:
                store.audit.write("connection_refused", way="dimse", address=address[0])
            return known

        def handle_error(self, *_: Any) -> None:
            """A handshake that fails, or a caller that is gone: its own affair, and nothing to print."""

        def finish_request(self, request: Any, address: Any) -> None:
            if context is not None:
                request.do_handshake()
            super().finish_request(request, address)

    server = Server(
        entity,
        (config.host, config.port),
        entity.ae_title,
        entity.supported_contexts,
        ssl_context=None,
        evt_handlers=handlers,
        request_handler=Handler,
    )
    entity._servers.append(server)
    return server
