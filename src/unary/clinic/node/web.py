"""The node's web application: STOW-RS in, health, metrics, and the pages that others provide."""

from __future__ import annotations

import contextlib
import hmac
import threading
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unary.clinic.node.config import WebListener
from unary.clinic.node.metrics import describe_health, format_metrics
from unary.clinic.node.monitor_page import build_monitor_app
from unary.clinic.node.receiving_web import build_stow_routes
from unary.clinic.review.app import build_review_app
from unary.clinic.web_access import Access, build_context
from unary.errors import UnaryError, require
from unary.records import NOTICE

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from unary.clinic.node.service import Node

_OPEN_PATHS = ("/health",)
_PAGES = ("/review", "/monitor")  # which guard themselves, for they let people log in
JUDGEMENTS = "judgements.sqlite"


def build_app(node: Node, config: WebListener) -> Starlette:
    """Return the application: ``/health``, ``/metrics``, STOW-RS, and for people ``/review`` and ``/monitor``."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Mount, Route

    def health(_: Request) -> JSONResponse:
        healthy, parts = describe_health(node)
        body = {"status": "ok" if healthy else "degraded", "parts": parts, "notice": NOTICE}
        return JSONResponse(body, status_code=200 if healthy else 503)

    def metrics(_: Request) -> PlainTextResponse:
        return PlainTextResponse(format_metrics(node), media_type="text/plain; version=0.0.4")

    access = config.build_access()
    routes: list[Any] = [Route("/health", health), Route("/metrics", metrics)]
    routes += build_stow_routes(node.store, node.wake)
    pages = []
    if config.review:
        state = node.config.state
        pages.append(build_review_app([state / "studies"], state / JUDGEMENTS, access=access))
        routes.append(Mount("/review", pages[0]))
        routes.append(Mount("/monitor", build_monitor_app(state / "studies", state / "monitor", access)))

    @contextlib.asynccontextmanager
    async def living(_: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for page in pages:  # a mounted application is not told by itself that it begins and ends
                await stack.enter_async_context(page.router.lifespan_context(page))
            yield

    return Starlette(routes=routes, lifespan=living, middleware=[Middleware(_Guard, access=access)])


class _Guard:
    """Lets machines in that ask for this service by its name and bring the token; says nothing of what is behind it.

    Browsers say where a request comes from; none of their requests from elsewhere passes.
    """

    def __init__(self, app: Any, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = None if scope["type"] != "http" else self._refuse(scope)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        from starlette.responses import PlainTextResponse

        headers = {"WWW-Authenticate": "Bearer"} if refusal[0] == 401 else {}
        await PlainTextResponse(refusal[1], status_code=refusal[0], headers=headers)(scope, receive, send)

    def _refuse(self, scope: Any) -> tuple[int, str] | None:
        path = scope["path"]
        if any(path == page or path.startswith(f"{page}/") for page in _PAGES):
            return None
        headers = dict(scope["headers"])
        try:
            host = urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").hostname or ""
        except ValueError:  # brackets that do not close
            host = ""
        if host.lower() not in self.access.hosts:
            return 421, "this service does not go by that name"
        if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin") or b"origin" in headers:
            return 403, "no page may ask for this"
        if self.access.token is None or path in _OPEN_PATHS:
            return None
        wanted = f"Bearer {self.access.token}".encode()
        given = headers.get(b"authorization", b"")
        return None if hmac.compare_digest(given, wanted) else (401, "a token is needed")


class WebServer:
    """Serves the application from a thread of its own."""

    def __init__(self, config: WebListener, node: Node) -> None:
        require("starlette", extra="node")
        uvicorn: Any = require("uvicorn", extra="node")
        build_context(config)  # says which file is of no use
        settings = uvicorn.Config(
            build_app(node, config),
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            limit_concurrency=64,
            timeout_graceful_shutdown=10,
            ssl_certfile=config.certificate,
            ssl_keyfile=config.key,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._serve, name="node-web", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise UnaryError(f"{config.host}:{config.port}: cannot be listened on; in use, or not allowed?")
            time.sleep(0.01)

    def _serve(self) -> None:
        try:
            self._server.run()
        except SystemExit:  # the port is taken
            return

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    @property
    def is_alive(self) -> bool:
        """Whether it still serves."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Answer what is under way, and end."""
        self._server.should_exit = True
        self._thread.join(15.0)
