"""C-STORE (PS3.4 annex B, PS3.7), in the clear or over TLS (PS3.15 annex B)."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from unary.clinic.pacs_address import DimseAddress, Patience, connect_once, explain_failure
from unary.clinic.pacs_delivery import Delivery
from unary.clinic.pacs_files import Parcel, read_whole
from unary.errors import ImageError

_MOST_CONTEXTS = 128  # PS3.8 section 9.3.2: presentation context identifiers are odd and fit a byte


def send_dimse(
    address: DimseAddress, patience: Patience, context: ssl.SSLContext | None, waiting: list[Delivery]
) -> Iterator[Delivery]:
    """Send all that waits over one association, or as many as its kinds of objects and transfer syntaxes need."""
    waiting = [replace(delivery, attempts=delivery.attempts + 1) for delivery in waiting]
    kinds = list(dict.fromkeys(_kind(delivery.parcel) for delivery in waiting))
    for start in range(0, len(kinds), _MOST_CONTEXTS):
        offered = kinds[start : start + _MOST_CONTEXTS]
        group = [delivery for delivery in waiting if _kind(delivery.parcel) in offered]
        yield from _send_group(address, patience, context, offered, group)


def _kind(parcel: Parcel) -> tuple[str, str]:
    return parcel.sop_class, parcel.syntax


def _send_group(
    address: DimseAddress,
    patience: Patience,
    context: ssl.SSLContext | None,
    offered: list[tuple[str, str]],
    waiting: list[Delivery],
) -> Iterator[Delivery]:
    try:
        places = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        note, transient = explain_failure(error, address.place, patience)
        yield from (delivery.refuse(note, transient=transient) for delivery in waiting)
        return
    for number, (*_, place) in enumerate(places, 1):
        with _associate(address, patience, context, offered, place) as link:
            if link.is_established:
                accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in link.accepted_contexts}
                for delivery in waiting:
                    yield _send_one(link, delivery, _kind(delivery.parcel) in accepted)
                return
            if link.connected or number == len(places):
                note, transient = _explain_refusal(link) or _probe(address, patience, context)
                yield from (delivery.refuse(note, transient=transient) for delivery in waiting)
                return


@contextmanager
def _associate(
    address: DimseAddress,
    patience: Patience,
    context: ssl.SSLContext | None,
    offered: list[tuple[str, str]],
    place: Any,
) -> Iterator[Any]:
    """Ask for an association with one of the addresses that a host has; yield it, established or not."""
    import pynetdicom

    entity = pynetdicom.AE(ae_title=address.calling_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = patience.answer_timeout_s
    entity.connection_timeout = patience.connect_timeout_s
    entity.maximum_pdu_size = 0
    for sop_class, syntax in offered:
        entity.add_requested_context(sop_class, syntax)
    opened: list[Any] = []
    host, port, *rest = place
    link = entity.associate(
        (host, *rest) if rest else host,
        port,
        ae_title=address.called_title,
        tls_args=None if context is None else (context, address.host),
        evt_handlers=[(pynetdicom.evt.EVT_CONN_OPEN, opened.append)],
    )
    link.connected = bool(opened)
    wire = link.dul.socket.socket if link.dul.socket is not None else None
    try:
        yield link
        if link.is_established:
            link.release()
    finally:
        if link.is_established:  # interrupted
            link.abort()
        if wire is not None:  # which pynetdicom leaves open when the peer was the first to close it
            if link.is_alive():
                link.join(patience.answer_timeout_s)
            wire.close()


def _explain_refusal(link: Any) -> tuple[str, bool] | None:
    """Why the peer gives no association, and whether that may pass (PS3.8 section 9.3.4); None if it does not say."""
    if link.is_rejected:
        answer = link.acceptor.primitive
        return f"association rejected: {answer.result_str}, {answer.reason_str}", answer.result == 2
    if link.acceptor.primitive is not None and not link.accepted_contexts and link.rejected_contexts:
        return "the peer takes none of these kinds of object and transfer syntaxes", False
    return None


def _probe(address: DimseAddress, patience: Patience, context: ssl.SSLContext | None) -> tuple[str, bool]:
    """Why there was no association, which pynetdicom does not tell: connect once more, and look."""
    try:
        connect_once(address.host, address.port, context, patience)
    except OSError as error:
        return explain_failure(error, address.place, patience)
    tls = "" if context is not None else "; does it want TLS?"
    return f"{address.place} did not answer in time, or broke off the association{tls}", True


def _send_one(link: Any, delivery: Delivery, accepted: bool) -> Delivery:
    """One C-STORE."""
    if not accepted:
        return delivery.refuse("the peer does not take this kind of object in this transfer syntax")
    if not link.is_established:
        return delivery.refuse("the association was lost before this file", transient=True)
    try:
        answer = link.send_c_store(read_whole(delivery.parcel.path))
    except ImageError:
        return delivery.refuse("damaged beyond its first lines, and cannot be read")
    except (ValueError, RuntimeError, AttributeError) as error:
        return delivery.refuse(f"cannot be sent ({type(error).__name__})", transient=link.is_aborted)
    status = answer.get("Status") if answer else None
    if status is None:
        link.abort()  # or every further file would wait as long
        return delivery.refuse("no answer in time, or the association was lost", transient=True)
    return delivery.judge(status)
