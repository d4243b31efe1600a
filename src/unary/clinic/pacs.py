"""Sending DICOM files to a PACS, by C-STORE (DIMSE) or STOW-RS (DICOMweb).

Every file is reported on its own, and what is not stored is an error: a peer that takes half of a study is common, and
one that is believed to have taken it all is dangerous. Only what may pass by itself is tried again, and not for long.
Nothing is logged but counts and outcomes; the packages underneath, whose logs name patients, are silenced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import get_expected_length

from unary.errors import ImageError, UnaryError, require
from unary.outputs.dicom.source import UNDECODABLE, silenced

_LOG = logging.getLogger(__name__)
_MOST_CONTEXTS = 128  # PS3.8 section 9.3.2: presentation context identifiers are odd and fit a byte
_LONGEST_PAUSE_S = 30.0
# Out of resources (PS3.4 table B.2-1), processing failure and resource limitation (PS3.7 annex C).
_TRANSIENT_STATUS = {*range(0xA700, 0xA800), 0x0110, 0x0213}
_TRANSIENT_HTTP = {408, 425, 429, 500, 502, 503, 504}
_DAMAGED = "damaged beyond its first lines, and cannot be read"
_NOISY = ("pydicom", "pynetdicom", "dicomweb_client", "urllib3", "requests")


@dataclass(frozen=True)
class DimseAddress:
    """Where a PACS listens for C-STORE, and who calls.

    Attributes
    ----------
    called_title, calling_title
        Application entity titles, 1 to 16 characters; most PACS take objects from titles that they know only.
    timeout_s
        For connecting, and for each answer.
    attempts
        How often what may pass by itself is tried, at least once.
    pause_s
        Before the second attempt; doubles with each further one, up to 30 s.
    """

    host: str
    port: int
    called_title: str
    calling_title: str = "UNARY"
    timeout_s: float = 30.0
    attempts: int = 3
    pause_s: float = 1.0

    def __post_init__(self) -> None:
        for title in (self.called_title, self.calling_title):
            if not (1 <= len(title.strip()) <= 16 and title.isascii() and title.isprintable() and "\\" not in title):
                raise ValueError(f"an application entity title has 1 to 16 ASCII characters, not {title!r}")
        if not 0 < self.port < 65536:
            raise ValueError(f"port must lie between 1 and 65535, got {self.port}")
        _check_patience(self.timeout_s, self.attempts, self.pause_s)


@dataclass(frozen=True)
class WebAddress:
    """The DICOMweb service of a PACS.

    Attributes
    ----------
    url
        Its root, to which ``/studies`` is added. The environment's REQUESTS_CA_BUNDLE names authorities to trust.
    user, password
        For HTTP basic authentication; both or neither.
    token
        Sent as ``Authorization: Bearer``; instead of user and password.
    timeout_s, attempts, pause_s
        As in `DimseAddress`.
    """

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    attempts: int = 3
    pause_s: float = 1.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("the address of a DICOMweb service starts with http:// or https://")
        if "@" in self.url.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError("user and password do not belong in the address, where logs would show them")
        if (self.user is None) != (self.password is None) or (self.user is not None and self.token is not None):
            raise ValueError("give a user and a password, or a token, or neither")
        _check_patience(self.timeout_s, self.attempts, self.pause_s)


def _check_patience(timeout_s: float, attempts: int, pause_s: float) -> None:
    if timeout_s <= 0 or attempts < 1 or pause_s < 0:
        raise ValueError(f"need timeout_s > 0, attempts >= 1, pause_s >= 0; got {timeout_s}, {attempts}, {pause_s}")


@dataclass(frozen=True)
class Delivery:
    """What became of one file.

    Attributes
    ----------
    stored
        Whether the PACS has confirmed it.
    attempts
        How often it was tried.
    note
        Why it is not stored, or a warning that came with the confirmation; empty otherwise.
    transient
        Whether it is not stored, but a later attempt may succeed without a change.
    """

    path: Path
    stored: bool = False
    attempts: int = 0
    note: str = ""
    transient: bool = True

    def accept(self, note: str = "") -> Delivery:
        """Return it as stored."""
        return replace(self, stored=True, note=note, transient=False)

    def refuse(self, note: str, *, transient: bool = False) -> Delivery:
        """Return it as not stored."""
        return replace(self, note=note, transient=transient)


class DeliveryError(UnaryError):
    """At least one file is not in the PACS; ``deliveries`` tells for each."""

    def __init__(self, deliveries: tuple[Delivery, ...]) -> None:
        failed = [delivery for delivery in deliveries if not delivery.stored]
        first = failed[0]
        super().__init__(
            f"{len(failed)} of {len(deliveries)} files were not stored; first {first.path.name}: {first.note}"
            f" (after {first.attempts} attempts)"
        )
        self.deliveries = deliveries


def store_files(paths: Sequence[Path], address: DimseAddress | WebAddress) -> tuple[Delivery, ...]:
    """Send files by C-STORE, over one association per attempt, or by STOW-RS, in one request each.

    One file per request bounds the memory and tells which one fails; by C-STORE each file goes out in the transfer
    syntax that it has. What may pass by itself is tried again with the files that are not stored yet: an association or
    a connection that is refused for now, lost or not answered in time, a peer that is out of resources, and the HTTP
    statuses 408, 425, 429 and 5xx. Any other refusal is final.

    Returns
    -------
    tuple of Delivery
        One per path, in order, all stored.

    Raises
    ------
    DeliveryError
        If any file was not stored. The others were, and are not taken back.
    UnaryError
        If the beginning of a file cannot be read, or pynetdicom or dicomweb-client is missing; nothing has been sent.
    """
    require("pynetdicom" if isinstance(address, DimseAddress) else "dicomweb_client", extra="pacs")
    with silenced(*_NOISY):
        kinds = {path: _read_kind(path) for path in paths}
        send = partial(_send_dimse, address, kinds) if isinstance(address, DimseAddress) else _connect_web(address)
        deliveries = [Delivery(path) for path in paths]
        for attempt in range(address.attempts):
            waiting = [replace(delivery, attempts=attempt + 1) for delivery in deliveries if delivery.transient]
            if not waiting:
                break
            if attempt:
                time.sleep(min(address.pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S))
            answers = iter(send(waiting))
            deliveries = [next(answers) if delivery.transient else delivery for delivery in deliveries]
    stored = sum(delivery.stored for delivery in deliveries)
    _LOG.info("stored %d of %d files", stored, len(deliveries))
    if stored < len(deliveries):
        raise DeliveryError(tuple(deliveries))
    return tuple(deliveries)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let what is no whole DICOM file be an ImageError, which says no more of what is in it."""
    try:
        yield
    except (InvalidDicomError, OSError, *UNDECODABLE) as error:
        raise ImageError(f"{path}: not a DICOM file that can be sent ({type(error).__name__})") from None


def _read_kind(path: Path) -> tuple[str, str]:
    """Return the SOP Class and the transfer syntax of a file."""
    with _naming(path):
        meta = pydicom.filereader.read_file_meta_info(path)
        return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def _read_dataset(path: Path) -> Dataset:
    """Read a file whole; pydicom takes one that breaks off without a word, and a PACS might keep it."""
    with _naming(path):
        dataset = pydicom.dcmread(path)
        whole = bool(dataset.StudyInstanceUID and dataset.SeriesInstanceUID)
        whole &= dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        pixels = [dataset.get(keyword) for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")]
        if "Rows" in dataset:
            whole &= any(pixels)
        if pixels[0] and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            whole &= len(pixels[0]) >= get_expected_length(dataset)
    if not whole:
        raise ImageError(f"{path}: it breaks off or contradicts itself; a copy that was not finished?")
    return dataset


def _send_dimse(
    address: DimseAddress, kinds: Mapping[Path, tuple[str, str]], waiting: list[Delivery]
) -> list[Delivery]:
    """One association for all that waits."""
    import pynetdicom

    entity = pynetdicom.AE(ae_title=address.calling_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = address.timeout_s
    entity.connection_timeout = address.timeout_s
    entity.maximum_pdu_size = 0
    wanted = list(dict.fromkeys(kinds[delivery.path] for delivery in waiting))
    for sop_class, syntax in wanted[:_MOST_CONTEXTS]:
        entity.add_requested_context(sop_class, syntax)
    link = entity.associate(address.host, address.port, ae_title=address.called_title)
    wire = link.dul.socket.socket if link.dul.socket is not None else None
    try:
        if not link.is_established:
            note, transient = _explain_refusal(link)
            return [delivery.refuse(note, transient=transient) for delivery in waiting]
        accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in link.accepted_contexts}
        return [_send_one(link, delivery, kinds[delivery.path] in accepted) for delivery in waiting]
    finally:
        if link.is_established:
            link.release()
        if wire is not None:  # which pynetdicom leaves open when the peer was the first to close it
            if link.is_alive():
                link.join(address.timeout_s)
            wire.close()


def _explain_refusal(link: Any) -> tuple[str, bool]:
    """Why there is no association, and whether that may pass (PS3.8 section 9.3.4)."""
    if link.is_rejected:
        answer = link.acceptor.primitive
        return f"association rejected: {answer.result_str}, {answer.reason_str}", answer.result == 2
    if link.acceptor.primitive is not None and not link.accepted_contexts and link.rejected_contexts:
        return "the peer takes none of these kinds of object and transfer syntaxes", False
    return "no association: not reachable, not answered in time, or aborted by the peer", True


def _send_one(link: Any, delivery: Delivery, accepted: bool) -> Delivery:
    """One C-STORE."""
    if not accepted:
        return delivery.refuse("the peer does not take this kind of object in this transfer syntax")
    if not link.is_established:
        return delivery.refuse("the association was lost before this file", transient=True)
    try:
        answer = link.send_c_store(_read_dataset(delivery.path))
    except ImageError:
        return delivery.refuse(_DAMAGED)
    except (ValueError, RuntimeError, AttributeError) as error:
        return delivery.refuse(f"cannot be sent ({type(error).__name__})", transient=link.is_aborted)
    status = answer.get("Status") if answer else None
    if status is None:
        link.abort()  # or every further file would wait as long
        return delivery.refuse("no answer in time, or the association was lost", transient=True)
    if status == 0x0000:
        return delivery.accept()
    if status >> 12 == 0xB or status == 0x0001:  # stored, with elements coerced or discarded
        return delivery.accept(f"stored with warning 0x{status:04X}")
    return delivery.refuse(f"refused with status 0x{status:04X}", transient=status in _TRANSIENT_STATUS)


def _connect_web(address: WebAddress) -> Callable[[list[Delivery]], list[Delivery]]:
    """What sends with one attempt per call; the client's own repetition sends an empty body the second time."""
    from dicomweb_client.api import DICOMwebClient
    from dicomweb_client.session_utils import create_session, create_session_from_user_pass

    user = address.user
    session = create_session() if user is None else create_session_from_user_pass(user, address.password)
    headers = {} if address.token is None else {"Authorization": f"Bearer {address.token}"}
    client = DICOMwebClient(address.url, session=session, headers=headers, timeout=address.timeout_s)
    client.set_http_retry_params(retry=False)
    return lambda waiting: [_send_web(client, delivery) for delivery in waiting]


def _send_web(client: Any, delivery: Delivery) -> Delivery:
    """One STOW-RS request (PS3.18 section 10.5)."""
    import requests

    try:
        dataset = _read_dataset(delivery.path)
        answer = client.store_instances([dataset])
    except ImageError:
        return delivery.refuse(_DAMAGED)
    except requests.exceptions.HTTPError as error:
        code = error.response.status_code
        return delivery.refuse(f"refused with HTTP status {code}", transient=code in _TRANSIENT_HTTP)
    except (requests.exceptions.SSLError, requests.exceptions.InvalidURL) as error:
        return delivery.refuse(f"no secure connection ({type(error).__name__})")
    except requests.exceptions.RequestException as error:
        return delivery.refuse(f"no answer ({type(error).__name__})", transient=True)
    except (ElementTree.ParseError, *UNDECODABLE) as error:
        return delivery.refuse(f"an answer that is not DICOMweb ({type(error).__name__})")
    for item in answer.get("FailedSOPSequence") or []:
        reason = int(item.get("FailureReason") or 0)
        return delivery.refuse(f"refused with reason 0x{reason:04X}", transient=reason in _TRANSIENT_STATUS)
    named = {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or []}
    if str(dataset.SOPInstanceUID) not in named:
        return delivery.refuse("the answer does not confirm this object")
    return delivery.accept()
