"""Images over DICOMweb: STOW-RS (PS3.18 section 10.5), streamed, with a limit on every part.

What the sender calls a file is never used. The answer lists each object with what became of it; one that is refused
does not stop the others.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from unary.clinic.node.config import MIB
from unary.clinic.node.incoming import FAILED, MISMATCH, SUCCESS, RefusedError, Sender, examine_arrival, split_file
from unary.clinic.node.multipart import MultipartError, read_boundary, read_parts
from unary.clinic.node.store import Store

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

logger = logging.getLogger(__name__)

_JSON = "application/dicom+json"
_MOST_PARTS = 10_000


def build_stow_routes(store: Store, wake: threading.Event) -> list[Route]:
    """Return the routes ``/dicomweb/studies`` and ``/dicomweb/studies/UID``, to which objects are posted."""
    from starlette.routing import Route

    busy = threading.Semaphore(4)  # so many requests hold a part in memory at a time

    async def stow(request: Request) -> Response:
        from starlette.responses import Response

        if not busy.acquire(blocking=False):
            return Response("busy", status_code=503, headers={"Retry-After": "5"})
        try:
            return await _receive(request, store, wake)
        finally:
            busy.release()

    return [
        Route("/dicomweb/studies", stow, methods=["POST"]),
        Route("/dicomweb/studies/{study}", stow, methods=["POST"]),
    ]


async def _receive(request: Request, store: Store, wake: threading.Event) -> Response:
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response

    sender = Sender("web", "", request.client.host if request.client else "")
    study = str(request.path_params.get("study", ""))
    most = int(store.limits.object_mib * MIB)
    stored: deque[Any] = deque()
    failed: deque[Any] = deque()
    try:
        boundary = read_boundary(request.headers.get("content-type", ""))
        async for part in read_parts(request.stream(), boundary, most):
            if len(stored) + len(failed) >= _MOST_PARTS:
                raise MultipartError("too many parts in one request", too_large=True)
            item, status = await run_in_threadpool(_take, part.content, sender, store, study)
            (failed if status else stored).append(item)
            wake.set()
    except MultipartError as error:
        return Response(str(error), status_code=413 if error.too_large else 400)
    except ClientDisconnect:
        return Response(status_code=400)
    if not stored and not failed:
        return Response("no part in the body", status_code=400)
    body: dict[str, Any] = {}
    if stored:
        body["00081199"] = {"vr": "SQ", "Value": list(stored)}
    if failed:
        body["00081198"] = {"vr": "SQ", "Value": list(failed)}
    transient = any(item["00081197"]["Value"][0] >> 8 == 0xA7 for item in failed)
    code = 200 if not failed else 202 if stored else 503 if transient else 409
    return Response(json.dumps(body), status_code=code, media_type=_JSON)


def _take(content: bytearray, sender: Sender, store: Store, study: str) -> tuple[dict[str, Any], int]:
    """Take one part; return its item of the answer, and the reason for which it is not taken, or 0."""
    sop_class = sop_instance = ""
    status = SUCCESS
    try:
        with memoryview(content) as view:
            syntax, data = split_file(view)
            with data:
                found = examine_arrival(data, syntax)
                sop_class, sop_instance = found.sop_class, found.sop_instance
                if study and study != found.study:
                    raise RefusedError(MISMATCH, "BAD_HEADER", "of another study than the address names")
                store.take(data, syntax, sender, announced=(sop_class, sop_instance))
    except RefusedError as error:
        status = error.status
        logger.info("not_taken", extra={"about": {"way": "web", "reason": error.reason}})
    except Exception as error:  # of a library, on what nobody has foreseen: its text may quote a patient
        logger.error("an object was not taken: %s", type(error).__name__)
        status = FAILED
    item: dict[str, Any] = {}
    if sop_class:
        item["00081150"] = {"vr": "UI", "Value": [sop_class]}
        item["00081155"] = {"vr": "UI", "Value": [sop_instance]}
    if status:
        item["00081197"] = {"vr": "US", "Value": [status]}
    return item, status
