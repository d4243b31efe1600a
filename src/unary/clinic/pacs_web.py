"""STOW-RS (PS3.18 section 10.5), one request for each file."""

from __future__ import annotations

import base64
import ssl
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from pydicom.dataset import Dataset

from unary.clinic.pacs_address import Patience, Tls, WebAddress, connect_once, explain_failure
from unary.clinic.pacs_delivery import Delivery
from unary.clinic.pacs_files import read_whole
from unary.errors import ImageError
from unary.outputs.dicom.source import UNDECODABLE

# What is wrong with the service as a whole, and so with every file.
_EVERYWHERE = {
    401: "user, password or token refused", 403: "not allowed for this user or token", 404: "no DICOMweb service there",
    405: "no DICOMweb service there", 407: "the proxy wants a password", 408: "", 425: "", 429: "too many requests",
    502: "", 503: "not available now", 504: "",
}  # fmt: skip
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class _PeerError(Exception):
    """What is wrong with more than one file; whether it may pass by itself."""

    def __init__(self, note: str, transient: bool) -> None:
        super().__init__(note)
        self.transient = transient


def send_web(address: WebAddress, patience: Patience, waiting: list[Delivery]) -> Iterator[Delivery]:
    """Send each file; after the first that shows that the service takes none, no other."""
    import requests

    with requests.Session() as session:
        session.auth = _authorise(address)
        for number, delivery in enumerate(waiting, 1):
            tried = replace(delivery, attempts=delivery.attempts + 1)
            try:
                yield _send_one(session, address, patience, tried)
            except _PeerError as error:
                yield tried.refuse(str(error), transient=error.transient)
                yield from (other.refuse(str(error), transient=error.transient) for other in waiting[number:])
                return


def _authorise(address: WebAddress) -> Callable[[Any], Any]:
    """What adds the credentials to a request; where there are none, requests would look for some in ``~/.netrc``."""
    if address.token is not None:
        header = f"Bearer {address.token}"
    elif address.user is not None:
        pair = f"{address.user}:{address.password}".encode()
        header = f"Basic {base64.b64encode(pair).decode('ascii')}"
    else:
        return lambda request: request

    def add(request: Any) -> Any:
        request.headers["Authorization"] = header
        return request

    return add


def _send_one(session: Any, address: WebAddress, patience: Patience, delivery: Delivery) -> Delivery:
    """One request; a redirection is not followed, for it would take the patient's data to another address."""
    import requests

    path = delivery.parcel.path
    try:
        read_whole(path)
    except ImageError:
        return delivery.refuse("damaged beyond its first lines, and cannot be read")
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join((head, path.read_bytes(), f"\r\n--{boundary}--\r\n".encode()))
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    tls = address.tls
    try:
        answer = session.post(
            f"{address.url.rstrip('/')}/studies",
            data=body,
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
            timeout=(patience.connect_timeout_s, patience.answer_timeout_s),
            allow_redirects=False,
            proxies={"http": "", "https": ""} if address.is_local else None,
            verify=True if tls is None or tls.ca_file is None else str(tls.ca_file),
            cert=None if tls is None or tls.client_cert is None else _list_certificate(tls.client_cert, tls.client_key),
        )
    except requests.exceptions.ReadTimeout:
        raise _PeerError(f"no answer within {patience.answer_timeout_s:g} s", True) from None
    except requests.exceptions.ConnectTimeout:
        raise _PeerError(*explain_failure(TimeoutError(), address.place, patience)) from None
    except requests.exceptions.RequestException as error:
        cause = next(_find_causes(error), None)
        if cause is None:
            lost = isinstance(error, requests.exceptions.ConnectionError)
            raise _PeerError(f"no connection with {address.place} ({type(error).__name__})", lost) from None
        if isinstance(cause, TimeoutError):
            raise _PeerError(f"{address.place} took no more of the file", True) from None
        raise _PeerError(*explain_failure(_look_again(cause, address, patience), address.place, patience)) from None
    return _judge(delivery, answer)


def _look_again(error: OSError, address: WebAddress, patience: Patience) -> OSError:
    """The reason for which a server breaks off a secure connection may be lost, since it does while we send."""
    parts = urlsplit(address.url)
    if not isinstance(error, ConnectionError | ssl.SSLEOFError) or parts.scheme != "https":
        return error
    try:
        connect_once(str(parts.hostname), parts.port or 443, (address.tls or Tls()).build_context(), patience)
    except OSError as other:
        return other
    return error


def _list_certificate(certificate: Any, key: Any) -> Any:
    return str(certificate) if key is None else (str(certificate), str(key))


def _find_causes(error: BaseException) -> Iterator[OSError]:
    """The errors of the system underneath those of requests and urllib3."""
    import requests

    seen, waiting = set(), [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and not isinstance(one, requests.exceptions.RequestException):
            yield one
        inner = (*one.args, getattr(one, "reason", None), one.__cause__, one.__context__)
        waiting += [each for each in inner if isinstance(each, BaseException)]


def _judge(delivery: Delivery, answer: Any) -> Delivery:
    """Read the answer: a status that is the service's, else what it says of the object (PS3.18 table 10.5.3-1)."""
    code = answer.status_code
    if 300 <= code < 400:
        to = urlsplit(str(answer.headers.get("Location") or ""))
        where = f" to {to.scheme}://{to.hostname or ''}{to.path}" if to.scheme else ""
        raise _PeerError(f"redirected{where} (HTTP status {code}), which is not followed; give that address", False)
    if code in _EVERYWHERE:
        word = _EVERYWHERE[code]
        raise _PeerError(f"refused with HTTP status {code}{word and ', ' + word}", code in _TRANSIENT)
    try:
        content = Dataset.from_json(answer.json()) if "json" in str(answer.headers.get("Content-Type")) else None
        failed = [int(item.get("FailureReason") or 0) for item in (content or {}).get("FailedSOPSequence") or []]
        stored = {
            str(item.get("ReferencedSOPInstanceUID")): int(item.get("WarningReason") or 0)
            for item in (content or {}).get("ReferencedSOPSequence") or []
        }
    except UNDECODABLE as error:
        if code < 300:
            return delivery.refuse(f"an answer that is not DICOMweb ({type(error).__name__})")
        content, failed, stored = None, [], {}
    if failed:
        return delivery.judge(failed[0]) if failed[0] else delivery.refuse("refused without a reason")
    if code >= 300:
        return delivery.refuse(f"refused with HTTP status {code}", transient=code in _TRANSIENT)
    if delivery.parcel.sop_instance not in stored:
        return delivery.refuse("the answer does not confirm this object")
    return delivery.judge(stored[delivery.parcel.sop_instance])
