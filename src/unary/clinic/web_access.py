"""Who may use a web page or service of unary's: one guard before every application.

It stands for four things. A request names this service as its host, so that no foreign name can be pointed at it (DNS
rebinding). Away from loopback it carries the token, as ``Authorization: Bearer`` or as the cookie that the token was
exchanged for. What changes something comes from our own pages: by a header that no form can set, and by its Origin. And
every answer forbids the browser to load, frame, guess or keep anything that is not ours.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from unary.errors import UnaryError, explain_unexpected
from unary.files import write_durably
from unary.records import NOTICE

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

COOKIE = "unary_session"
WRITE_HEADER = "x-unary"
"""What a page sends along with every change; its value does not matter."""
LOGIN, LOGOUT = "/login", "/logout"
_SESSION_S = 12 * 3600
_LEAST_TOKEN = 20
_LONGEST_FORM = 4096  # bytes
_PAUSE_S = 0.5  # after a wrong token
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ANY = ("0.0.0.0", "::", "")

_LOGIN_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;background:#111;color:#eee;display:grid;place-content:center;"
    "min-height:90vh;padding:1rem}form{display:grid;gap:.6rem;max-width:22rem}input,button{font:inherit;padding:.5rem;"
    "border:1px solid #888;border-radius:4px;background:#222;color:#eee}button{background:#2b5d8a}"
    ":focus-visible{outline:3px solid #8cf;outline-offset:2px}.bad{color:#ffb3a7}"
)
_LOGIN_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>unary: token</title><style>{style}</style></head><body><main><h1>unary</h1>{told}"
    '<form method="post" action="{action}"><label for="token">Access token</label>'
    '<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>'
    "<button>Enter</button></form><p>{notice}</p></main></body></html>"
)


@dataclass(frozen=True)
class Access:
    """Who may come in.

    Attributes
    ----------
    hosts
        The names and addresses, in small letters, by which this service is asked for; any port goes.
    token
        What everybody must show; None lets everybody in who reaches the address.
    secure
        Whether it is served over TLS: then the cookie travels over nothing else.
    """

    hosts: frozenset[str]
    token: str | None = field(default=None, repr=False)
    secure: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < _LEAST_TOKEN:
            raise ValueError(f"a token needs at least {_LEAST_TOKEN} characters, this one has {len(self.token)}")


def is_loopback(address: str) -> bool:
    """Return whether nobody but this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return address.lower() == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def build_access(
    address: str,
    *,
    token: str | None = None,
    names: Sequence[str] = (),
    tls: bool = False,
    plain_http: bool = False,
) -> Access:
    """Return who may come in where a service listens on an address.

    Parameters
    ----------
    names
        Further names by which browsers ask for it.
    plain_http
        Whether token and images may travel unencrypted through the network.

    Raises
    ------
    UnaryError
        If the address can be reached by other machines, and there is no token, or neither TLS nor leave to do without;
        or if it is every address of this machine, and no name is given.
    """
    if not is_loopback(address):
        if token is None:
            raise UnaryError(f"{address}: other machines reach this address, so that a token is needed")
        if not (tls or plain_http):
            raise UnaryError(
                f"{address}: other machines reach this address, and token and images would travel unencrypted; give a "
                "certificate and its key, or allow plain HTTP where something in front of it encrypts"
            )
        if address in _ANY and not names:
            raise UnaryError(f"{address}: this is every address of this machine; say the name that browsers will use")
    own = _LOOPBACK if is_loopback(address) else () if address in _ANY else (address,)
    try:
        return Access(frozenset(name.lower() for name in (*own, *names)), token, tls)
    except ValueError as error:
        raise UnaryError(str(error)) from error


def read_token(path: Path | None, variable: str) -> str | None:
    """Return the token of a file, which is made with a new one if it is not there, else that of the environment.

    Raises
    ------
    UnaryError
        If the file cannot be read or is empty, or others than its owner can read it.
    """
    if path is None:
        return os.environ.get(variable) or None
    if not path.exists():
        write_durably(path, f"{secrets.token_urlsafe(32)}\n".encode("ascii"), mode=0o600)
    if path.stat().st_mode & 0o077:
        raise UnaryError(f"{path}: others can read the token; make it the owner's alone (chmod 600)")
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise UnaryError(f"{path}: the token cannot be read ({reason})") from None
    if not token:
        raise UnaryError(f"{path}: there is no token in it")
    return token


def build_context(config: Any) -> ssl.SSLContext | None:
    """Return what a listener shows and asks for over TLS; None without a certificate."""
    if config.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.certificate, config.key, password="")
        if getattr(config, "client_ca", None) is not None:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        wanted = "certificate, key and CA must be PEM, the key not encrypted"
        raise UnaryError(f"{config.certificate}: {wanted} ({reason})") from None
    return context


class Guard:
    """ASGI middleware that lets through what `Access` allows.

    ``opened`` are paths below the mount that need no token, such as that of a health check; the host is checked all the
    same. An exception of the application becomes an answer 500, and a line in the log that names its kind and place:
    its text may quote a patient's data.
    """

    def __init__(self, app: ASGIApp, access: Access, opened: Sequence[str] = ()) -> None:
        self.app, self.access, self.opened = app, access, frozenset(opened)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message["headers"], *_list_headers(message["headers"])]}
            await send(message)

        try:
            answer = await self._answer(scope, receive)
            await (self.app if answer is None else answer)(scope, receive, send_guarded)
        except UnaryError as error:
            if not begun:
                await _refuse(400, str(error))(scope, receive, send_guarded)
        except Exception as error:
            logger.error("a request has failed: %s", str(explain_unexpected(error, "web")).removeprefix("web: "))
            if not begun:
                await _refuse(500, "an unexpected error; the log says where")(scope, receive, send_guarded)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """The answer to what may not pass, or that the guard gives itself; None for what may pass."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        host = headers.get("host", "")
        if _name_host(host) not in self.access.hosts:
            return _refuse(421, "this service does not go by that name")
        writes = scope["method"] not in ("GET", "HEAD")
        bearer = self._bears_token(headers)
        if writes and not bearer and not _comes_from_here(headers, host, formless=path != LOGIN):
            return _refuse(403, "a change must come from this service's own pages")
        if self.access.token is None or bearer or path in self.opened:
            return None
        if path == LOGIN:
            return await self._log_in(scope, receive, headers)
        if not self._bears_session(headers):
            wants_page = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
            return (
                _redirect(f"{scope.get('root_path', '')}{LOGIN}") if wants_page else _refuse(401, "a token is needed")
            )
        if path == LOGOUT and writes:
            return self._set_cookie(_refuse(200, "logged out"), "", 0)
        return None

    def _bears_token(self, headers: Mapping[str, str]) -> bool:
        kind, _, shown = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self._is_token(shown.strip())

    def _is_token(self, shown: str) -> bool:
        token = self.access.token
        return token is not None and hmac.compare_digest(shown.encode("utf-8"), token.encode("utf-8"))

    def _sign(self, until: str) -> str:
        key = hashlib.sha256(str(self.access.token).encode("utf-8")).digest()
        return hmac.new(key, f"unary session {until}".encode("ascii", "replace"), "sha256").hexdigest()

    def _bears_session(self, headers: Mapping[str, str]) -> bool:
        for part in headers.get("cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            until, _, signature = value.partition(".")
            if name == COOKIE and until.isascii() and until.isdigit() and len(until) < 13:
                signed = hmac.compare_digest(self._sign(until).encode(), signature.encode("utf-8"))
                return signed and int(until) > time.time()
        return False

    def _set_cookie(self, answer: Response, value: str, age_s: int) -> Response:
        answer.set_cookie(
            COOKIE, value, max_age=age_s, path="/", secure=self.access.secure, httponly=True, samesite="strict"
        )
        return answer

    async def _log_in(self, scope: Scope, receive: Receive, headers: Mapping[str, str]) -> Response:
        root = scope.get("root_path", "")
        if scope["method"] != "POST":
            return _show_login(f"{root}{LOGIN}")
        shown = parse_qs((await read_body(receive, _LONGEST_FORM)).decode("utf-8", "replace")).get("token", [""])[0]
        if not self._is_token(shown.strip()):
            import anyio

            await anyio.sleep(_PAUSE_S)
            logger.warning("a wrong token was shown")
            return _show_login(f"{root}{LOGIN}", "<p class=bad role=alert>This is not the token.</p>", 401)
        until = str(int(time.time()) + _SESSION_S)
        return self._set_cookie(_redirect(f"{root}/"), f"{until}.{self._sign(until)}", _SESSION_S)


async def read_body(receive: Receive, longest: int) -> bytes:
    """Return the body of a request, or an `UnaryError` when it is longer than so many bytes, or broken off."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise UnaryError("the request broke off")
        body += message.get("body", b"")
        if len(body) > longest:
            raise UnaryError(f"a request may have {longest} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _name_host(host: str) -> str:
    """The name in a Host header without its port; empty for what is none.

    >>> _name_host("[::1]:8080"), _name_host("LOCALHOST:80"), _name_host("a b")
    ('::1', 'localhost', '')
    """
    try:
        parts = urlsplit(f"//{host}")
        plain = not (parts.path or parts.query or parts.fragment or "@" in host or any(c.isspace() for c in host))
        _ = parts.port  # which raises where it is no number
        return (parts.hostname or "") if plain else ""
    except ValueError:
        return ""


def _comes_from_here(headers: Mapping[str, str], host: str, *, formless: bool) -> bool:
    """Whether a change was asked for by one of our own pages; ``formless`` where pages use scripts, not forms."""
    if formless and WRITE_HEADER not in headers:
        return False
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    origin = headers.get("origin")
    return origin is None or (origin != "null" and urlsplit(origin).netloc.lower() == host.lower())


def _list_headers(there: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What every answer says, unless the application has said it already."""
    own = {
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",  # "no-referrer" would have forms send the Origin null
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-store",
    }
    names = {name.lower() for name, _ in there}
    return [(name.encode(), value.encode()) for name, value in own.items() if name.encode() not in names]


def _refuse(status: int, text: str) -> Response:
    from starlette.responses import JSONResponse

    answer: Response = JSONResponse({"error": text}, status)
    return answer


def _redirect(where: str) -> Response:
    from starlette.responses import RedirectResponse

    answer: Response = RedirectResponse(where, 303)
    return answer


def _show_login(action: str, told: str = "", status: int = 200) -> Response:
    from starlette.responses import HTMLResponse

    digest = b64encode(hashlib.sha256(_LOGIN_STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    text = _LOGIN_PAGE.format(style=_LOGIN_STYLE, told=told, action=action.replace('"', ""), notice=NOTICE)
    answer: Response = HTMLResponse(text, status, {"content-security-policy": policy})
    return answer
