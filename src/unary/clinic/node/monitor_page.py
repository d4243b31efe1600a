"""The report of `unary monitor` over all results that a node holds, made anew at most once an hour."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unary.clinic.monitoring import monitor_results
from unary.clinic.web_access import Access, Guard
from unary.errors import UnaryError
from unary.files import locking
from unary.outputs.monitoring_report import HTML_FILE, JSON_FILE, MONTHS_FILE, SIGNALS_FILE, write_monitoring
from unary.records import NOTICE

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

AGAIN_S = 3600.0
_KINDS = {
    HTML_FILE: "text/html; charset=utf-8",
    JSON_FILE: "application/json",
    MONTHS_FILE: "text/csv; charset=utf-8",
    SIGNALS_FILE: "text/csv; charset=utf-8",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"


def build_monitor_app(
    studies: Path, out: Path, access: Access, *, again_s: float = AGAIN_S, clock: Callable[[], float] = time.monotonic
) -> Starlette:
    """Return an application that shows the report at ``/`` and gives its tables by their names.

    Parameters
    ----------
    studies
        Folder with the results of studies somewhere below.
    out
        Where the report is written, with its tables.
    access
        Who may come in.
    again_s
        How old a report may be, in seconds, before it is made anew; while one request does, others get what is there.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    made_at: float | None = None
    making = threading.Lock()

    def make() -> None:
        nonlocal made_at
        if not making.acquire(blocking=False):
            return
        try:
            if made_at is None or clock() - made_at >= again_s:
                with locking(out):
                    write_monitoring(monitor_results([studies]), out)
                made_at = clock()
        finally:
            making.release()

    def give(request: Request) -> Response:
        name = request.path_params.get("name", HTML_FILE)
        if name not in _KINDS:
            return PlainTextResponse(f"there is no {', '.join(_KINDS)} of that name", status_code=404)
        with contextlib.suppress(UnaryError):  # no study has results
            make()
        if not (out / HTML_FILE).exists():
            return PlainTextResponse(f"Nothing to report yet. {NOTICE}\n")
        content = (out / name).read_bytes() if (out / name).exists() else b""  # of a table without rows
        return Response(content, media_type=_KINDS[name], headers={"Content-Security-Policy": _POLICY})

    routes = [Route("/", give, methods=["GET"]), Route("/{name}", give, methods=["GET"])]
    return Starlette(routes=routes, middleware=[Middleware(Guard, access=access)])
