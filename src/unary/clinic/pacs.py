"""Sending DICOM files to a PACS, by C-STORE (DIMSE) or STOW-RS (DICOMweb).

Every file is reported on its own: a peer that takes half of a study is common, and one that is believed to have taken
it all is dangerous. Only what may pass by itself is tried again, and not for long; what is wrong with the peer as a
whole, such as a password that it refuses, is not tried with every file. What the PACS held before is not compared.
Nothing is logged but counts; the packages underneath, whose logs name patients, are silenced.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unary.clinic.pacs_address import DimseAddress, Patience, WebAddress
from unary.clinic.pacs_delivery import Delivery, Interrupted, Send
from unary.clinic.pacs_dimse import send_dimse
from unary.clinic.pacs_files import Parcel, Selection
from unary.clinic.pacs_web import send_web
from unary.errors import require
from unary.images.checks import silencing
from unary.progress import Bar, show_progress
from unary.records import count_words

_LOG = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 30.0
_NOISY = ("pydicom", "pynetdicom", "urllib3", "requests", "charset_normalizer")


def store_files(
    parcels: Sequence[Parcel],
    address: DimseAddress | WebAddress,
    patience: Patience | None = None,
    *,
    progress: bool = True,
) -> tuple[Delivery, ...]:
    """Send files by C-STORE, over one association per attempt, or by STOW-RS, in one request each.

    One file per request bounds the memory and tells which one fails; each file goes out in the transfer syntax that it
    has. What may pass by itself is tried again with the files that are not stored yet: an association or a connection
    that is refused for now, lost or not answered in time, a peer that is out of resources, and the HTTP statuses 408,
    425, 429 and 5xx. Any other refusal is final.

    Returns
    -------
    tuple of Delivery
        One per parcel, in order: look at ``stored`` of each. What was stored is not taken back where others were not.

    Raises
    ------
    UnaryError
        If a certificate or key cannot be read, or pynetdicom or requests is missing; nothing has been sent.
    Interrupted
        At a KeyboardInterrupt.
    """
    patience = patience or Patience()
    require("pynetdicom" if isinstance(address, DimseAddress) else "requests", extra="pacs")
    send: Send
    if isinstance(address, DimseAddress):
        context = None if address.tls is None else address.tls.build_context()
        send = partial(send_dimse, address, patience, context)
    else:
        if address.tls is not None:
            address.tls.build_context()  # says which file is of no use, and that a key is encrypted
        send = partial(send_web, address, patience)
    deliveries = [Delivery(parcel) for parcel in parcels]
    bar: Bar[None] = show_progress(total=len(deliveries), title="sending", unit="file", shown=progress)
    with silencing(*_NOISY), bar:
        try:
            for attempt in range(patience.attempts):
                waiting = [number for number, delivery in enumerate(deliveries) if delivery.transient]
                if attempt and waiting:
                    time.sleep(min(patience.pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S))
                number_of = {deliveries[number].parcel: number for number in waiting}
                for answer in send([deliveries[number] for number in waiting]) if waiting else ():
                    deliveries[number_of[answer.parcel]] = answer
                    bar.update(not answer.transient)
        except KeyboardInterrupt:
            broken = (one.refuse("interrupted before it was confirmed") if one.transient else one for one in deliveries)
            raise Interrupted(tuple(broken)) from None
    _LOG.info("stored %d of %d files", sum(delivery.stored for delivery in deliveries), len(deliveries))
    return tuple(deliveries)


@dataclass(frozen=True)
class Report:
    """What became of a selection: ``lines`` for people, and how many files are stored and how many should be."""

    lines: tuple[str, ...]
    stored: int
    failed: int


def describe_deliveries(selection: Selection, deliveries: Sequence[Delivery]) -> Report:
    """Say what was stored, every file that was not, with its folder and the reason, and what was passed over."""
    failures: dict[str, list[Path]] = defaultdict(list)
    remarks: dict[str, list[Path]] = defaultdict(list)
    for path, why in selection.unfit:
        failures[f"not sent: {why}"].append(path)
    for delivery in deliveries:
        if not delivery.stored:
            failures[f"not stored: {delivery.note}{delivery.count_attempts()}"].append(delivery.parcel.path)
        elif delivery.note:
            remarks[f"stored: {delivery.note}"].append(delivery.parcel.path)
    lines = [line for group in (remarks, failures) for why, paths in group.items() for line in _list_files(why, paths)]
    stored, failed = sum(delivery.stored for delivery in deliveries), sum(map(len, failures.values()))
    lines += [f"passed over: {len(paths)} {why}" for why, paths in selection.passed_over]
    held = "; what the PACS held before was not compared" if stored else ""
    lines.append(f"{stored} of {count_words(stored + failed, 'object')} stored{held}")
    return Report(tuple(lines), stored, failed)


def _list_files(why: str, paths: Sequence[Path]) -> list[str]:
    return [f"{paths[0]}: {why}"] if len(paths) == 1 else [f"{why}:", *(f"  {path}" for path in paths)]
