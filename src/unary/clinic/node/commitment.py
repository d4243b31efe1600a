"""Answers about storage commitment: which objects are safely here, as an N-EVENT-REPORT (PS3.4 annex J)."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from unary.clinic.node.incoming import SUCCESS
from unary.clinic.node.store import Store
from unary.images.attributes import hash_uid

logger = logging.getLogger(__name__)

COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
_NO_SUCH_OBJECT, _CLASS_CONFLICT = 0x0112, 0x0119
_WAIT_S = 5.0


def build_report(row: Any, store: Store) -> tuple[Any, int, list[str]]:
    """Return what is reported, the type of the event (1: all are here, 2: some are not), and the studies concerned."""
    from pydicom.dataset import Dataset

    request = json.loads(row["request"])
    here, missing, studies = [], [], set()
    for sop_class, sop_instance in request["objects"]:
        found = store.state.find_object(hash_uid(sop_instance))
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
        if found is not None and found.held and found.sop_class == sop_class:
            here.append(item)
            studies.add(found.study)
        else:
            known = found is not None and found.held
            item.FailureReason = _CLASS_CONFLICT if known else _NO_SUCH_OBJECT
            missing.append(item)
    report = Dataset()
    report.TransactionUID = request["transaction"]
    if here:
        report.ReferencedSOPSequence = here
    if missing:
        report.FailedSOPSequence = missing
    return report, 2 if missing else 1, sorted(studies)


def _report(link: Any, row: Any, store: Store) -> bool:
    report, kind, _ = build_report(row, store)
    status, _ = link.send_n_event_report(report, kind, COMMITMENT, COMMITMENT_INSTANCE)
    return bool(status) and status.get("Status") == SUCCESS


def answer_on(link: Any, number: int, store: Store) -> None:
    """Answer over the association on which it was asked, if it stays open so long."""
    rows = [row for row in store.state.list_commitments() if row["commitment"] == number]
    time.sleep(0.05)  # the answer to the request itself goes first
    try:
        done = bool(rows) and link.is_established and _report(link, rows[0], store)
    except Exception as error:  # the association ended meanwhile
        logger.warning("commitment_not_answered", extra={"about": {"error": type(error).__name__}})
        done = False
    store.state.change_commitment(number, "answered" if done else "unanswered")
    store.audit.write("commitment_answered" if done else "commitment_not_answered", commitment=number)


def answer_by_call(row: Any, store: Store, own_title: str) -> bool:
    """Call the one who asked, and answer; return whether that was taken."""
    import pynetdicom

    request = json.loads(row["request"])
    entity = pynetdicom.AE(ae_title=own_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _WAIT_S
    entity.add_requested_context(COMMITMENT)
    roles = [pynetdicom.build_role(COMMITMENT, scp_role=True)]
    link = entity.associate(row["address"], request["port"], ae_title=row["title"], ext_neg=roles)
    try:
        if not link.is_established:
            return False
        return _report(link, row, store)
    except (ValueError, RuntimeError, AttributeError) as error:  # no context for it, or the link ended
        logger.warning("commitment_not_answered", extra={"about": {"error": type(error).__name__}})
        return False
    finally:
        if link.is_established:
            link.release()
