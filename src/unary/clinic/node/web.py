"""The node's web application: STOW-RS in, health, metrics, and the pages that others provide."""

from __future__ import annotations

import hmac
import threading
import time
from typing import TYPE_CHECKING, Any

from unary.clinic.node.config import WebListener
from unary.clinic.node.metrics import describe_health, format_metrics
from unary.clinic.node.receiving_dimse import build_context
from unary.clinic.node.receiving_web import build_stow_routes
from unary.errors import UnaryError, require
from unary.records import NOTICE

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from unary.clinic.node.service import Node

_OPEN_PATHS = ("/health",)


def build_app(node: Node, token: str | None) -> Starlette:
    """Return the application; with a token, all but ``/health`` asks for it."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    def health(_: Request) -> JSONResponse:
        healthy, parts = describe_health(node)
        body = {"status": "ok" if healthy else "degraded", "parts": parts, "notice": NOTICE}
        return JSONResponse(body, status_code=200 if healthy else 503)

    def metrics(_: Request) -> PlainTextResponse:
        return PlainTextResponse(format_metrics(node), media_type="text/plain; version=0.0.4")

    routes: list[Any] = [Route("/health", health), Route("/metrics", metrics)]
    routes += build_stow_routes(node.store, node.wake)
    routes += node.build_pages()
    return Starlette(routes=routes, middleware=[Middleware(_Guard, token=token)])


class _Guard:
    """Asks for the token, in constant time; says nothing of what is behind it."""

    def __init__(self, app: Any, token: str | None) -> None:
        self.app, self._token = app, None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http" or self._token is None or scope["path"] in _OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._token):
            await self.app(scope, receive, send)
            return
        answer = PlainTextResponse("a token is needed", status_code=401, headers={"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)


class WebServer:
    """Serves the application from a thread of its own."""

    def __init__(self, config: WebListener, node: Node) -> None:
        require("starlette", extra="node")
        uvicorn: Any = require("uvicorn", extra="node")
        build_context(config)  # says which file is of no use
        settings = uvicorn.Config(
            build_app(node, config.read_token()),
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
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
