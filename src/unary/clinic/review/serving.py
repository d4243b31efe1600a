"""Serving the review page by uvicorn, without a line of patient data in its logs."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unary.errors import UnaryError, require

if TYPE_CHECKING:
    from starlette.applications import Starlette


@dataclass(frozen=True)
class Listening:
    """Where the page is served.

    Attributes
    ----------
    address, port
        Port 0 takes a free one.
    certificate, key
        In PEM, for TLS; both or none.
    """

    address: str = "127.0.0.1"
    port: int = 8765
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must lie between 0 and 65535, got {self.port}")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate goes with its key")


def open_socket(listening: Listening) -> socket.socket:
    """Return a socket that is bound, so that the port is known; an UnaryError where that cannot be."""
    family = socket.AF_INET6 if ":" in listening.address else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((listening.address, listening.port))
    except OSError as error:
        opened.close()
        raise UnaryError(
            f"{listening.address}, port {listening.port}: cannot listen there ({error.strerror}); does another program "
            "listen there? Choose another --port"
        ) from error
    return opened


def serve_app(app: Starlette, listening: Listening, opened: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are answered."""
    uvicorn = require("uvicorn", extra="review")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # its lines hold addresses and names of images
        server_header=False,
        proxy_headers=False,
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.key,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=32 * 1024,
    )
    uvicorn.Server(config).run(sockets=[opened])
