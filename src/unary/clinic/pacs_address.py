"""Where a PACS is, how one shows who one is, how long one waits for it, and why it cannot be reached."""

from __future__ import annotations

import ipaddress
import math
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from unary.errors import UnaryError, require_positive

_LISTEN_S = 1.0
_OTHER_NAME = (62, 63, 64)  # of OpenSSL: the certificate is another host's


@dataclass(frozen=True)
class Patience:
    """How long and how often something is tried.

    Attributes
    ----------
    connect_timeout_s
        For a connection to be there.
    answer_timeout_s
        For each answer, and for each part of a file to be taken.
    attempts
        How often what may pass by itself is tried, at least once.
    pause_s
        Before the second attempt; doubles with each further one, up to 30 s.
    """

    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 60.0
    attempts: int = 3
    pause_s: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "connect_timeout_s", "answer_timeout_s")
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        if not 0 <= self.pause_s < math.inf:
            raise ValueError(f"pause_s must not be negative, got {self.pause_s}")


@dataclass(frozen=True)
class Tls:
    """Whom to trust, and how to show who one is; files in PEM.

    Attributes
    ----------
    ca_file
        Certificates of the authorities to trust, or the server's own where it signed itself; they replace those that
        this system trusts. None trusts the latter.
    client_cert, client_key
        One's own certificate, and its key if that is in another file; the key must not be encrypted.
    """

    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None

    def __post_init__(self) -> None:
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("a client key needs the client certificate that it belongs to")

    def build_context(self) -> ssl.SSLContext:
        """Return what checks the peer's certificate and its name; an UnaryError says which file is of no use."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise UnaryError(f"{self.ca_file}: no certificates (PEM) can be read from it ({_reason(error)})") from None
        if self.client_cert is not None:
            try:
                context.load_cert_chain(self.client_cert, self.client_key, password="")  # "": never asked for
            except OSError as error:
                files = " and ".join(str(path) for path in (self.client_cert, self.client_key) if path is not None)
                wanted = "a certificate and the key that belongs to it, in PEM, the key not encrypted"
                raise UnaryError(f"{files}: need {wanted} ({_reason(error)})") from None
        return context


@dataclass(frozen=True)
class DimseAddress:
    """Where a PACS listens for C-STORE, and who calls.

    Attributes
    ----------
    host
        A name, or an address of IPv4 or IPv6, the latter without brackets.
    called_title, calling_title
        Application entity titles, 1 to 16 characters; most PACS take objects from titles that they know only.
    tls
        None sends in the clear.
    """

    host: str
    port: int
    called_title: str
    calling_title: str = "UNARY"
    tls: Tls | None = None

    def __post_init__(self) -> None:
        for title in (self.called_title, self.calling_title):
            if not (1 <= len(title.strip()) <= 16 and title.isascii() and title.isprintable() and "\\" not in title):
                raise ValueError(f"an application entity title has 1 to 16 ASCII characters, not {title!r}")
        _check_host(self.host)
        if not 0 < self.port < 65536:
            raise ValueError(f"port must lie between 1 and 65535, got {self.port}")

    @classmethod
    def parse(cls, text: str, *, calling_title: str = "UNARY", tls: Tls | None = None) -> DimseAddress:
        """Read ``AET@HOST:PORT``; a HOST that holds colons, an address of IPv6, stands in brackets.

        >>> DimseAddress.parse("PACS@[::1]:104").host
        '::1'
        """
        found = re.fullmatch(r"(.+)@(?:\[([^\[\]@]+)\]|([^\[\]@:]+)):(\d{1,5})", text)
        if found is None:
            raise ValueError(f"AET@HOST:PORT is needed, an address of IPv6 as AET@[::1]:PORT, not {text!r}")
        title, bracketed, plain, port = found.groups()
        return cls(bracketed or plain, int(port), title, calling_title, tls)

    @property
    def place(self) -> str:
        """Host and port, as one types them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class WebAddress:
    """The DICOMweb service of a PACS.

    Attributes
    ----------
    url
        Its root, to which ``/studies`` is added.
    user, password
        For HTTP basic authentication; both or neither.
    token
        Sent as ``Authorization: Bearer``; instead of user and password.
    tls
        With https alone; None trusts what this system trusts, or what the environment's REQUESTS_CA_BUNDLE names.
    plain_http
        Whether password or token may be sent over plain http to another machine, where anybody on the way can read
        them.
    """

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    plain_http: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the address of a DICOMweb service is http://HOST/... or https://HOST/...")
        _check_host(parts.hostname)
        if "@" in parts.netloc:
            raise ValueError("user and password do not belong in the address, where logs would show them")
        if parts.query or parts.fragment:
            raise ValueError("the address of a DICOMweb service ends before any ? or #")
        try:
            parts.port  # noqa: B018
        except ValueError:
            raise ValueError("the port in the address of a DICOMweb service must lie between 0 and 65535") from None
        if (self.user is None) != (self.password is None) or (self.user is not None and self.token is not None):
            raise ValueError("give a user and a password, or a token, or neither")
        if any(secret is not None and not secret.isprintable() for secret in (self.user, self.password, self.token)):
            raise ValueError("user, password and token must be text on one line")
        if self.token is not None and not self.token.isascii():
            raise ValueError("a token consists of ASCII characters")
        if self.tls is not None and parts.scheme == "http":
            raise ValueError("certificates go with https:// alone")
        secret = self.password is not None or self.token is not None
        if secret and parts.scheme == "http" and not (self.is_local or self.plain_http):
            raise ValueError("over plain http anybody can read password or token; use https:// (or --allow-plain-http)")

    @property
    def is_local(self) -> bool:
        """Whether it is this machine, by its loopback."""
        host = str(urlsplit(self.url).hostname)
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def place(self) -> str:
        """Host and port, as one types them."""
        return urlsplit(self.url).netloc


def _check_host(host: str) -> None:
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"no host can be called {host!r}") from None


def connect_once(host: str, port: int, context: ssl.SSLContext | None, patience: Patience) -> None:
    """Connect, send nothing, and let the OSError through that tells what is wrong with the connection, if anything is.

    Over TLS it also listens for a moment: TLS 1.3 says only after the handshake that a client certificate is wanted.
    """
    with socket.create_connection((host, port), patience.connect_timeout_s) as plain:
        if context is None:
            return
        with context.wrap_socket(plain, server_hostname=host) as secure:
            secure.settimeout(min(_LISTEN_S, patience.answer_timeout_s))
            with suppress(TimeoutError):
                secure.recv(1)


def explain_failure(error: OSError, place: str, patience: Patience) -> tuple[str, bool]:
    """Say why a peer cannot be reached, and whether that may pass by itself."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.strip().rstrip(".")
        hint = "" if error.verify_code in _OTHER_NAME else "; name the authority that signed it (--ca-file)"
        return f"the certificate of {place} is not trusted: {why}{hint}", False
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return f"{place} broke off the secure connection", True
    if isinstance(error, ssl.SSLError):
        words = {"WRONG_VERSION_NUMBER": "it does not speak TLS there", "RECORD_LAYER_FAILURE": "not TLS"}
        reason = str(error.reason or type(error).__name__)
        if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
            return f"no secure connection with {place}: it asks for a client certificate that it knows", False
        return f"no secure connection with {place}: {words.get(reason, reason)}", False
    if isinstance(error, socket.gaierror):
        return f"unknown host {place}: {error.strerror}", error.errno == socket.EAI_AGAIN
    if isinstance(error, ConnectionRefusedError):
        return f"connection refused by {place}: nothing listens there", True
    if isinstance(error, TimeoutError):
        return f"{place} is not reachable: no connection within {patience.connect_timeout_s:g} s", True
    return f"no connection with {place}: {_reason(error)}", True


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error or type(error).__name__)
