"""NODE.toml: where a node listens and to whom, what it examines with, where results go, and what is too much.

Every field has a place of its own in a frozen dataclass; what is unknown, of another type or out of range is refused
with the file, the table and the field. Secrets stand in files or in the environment, never in NODE.toml itself.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from unary.clinic.pacs_address import DimseAddress, Tls, WebAddress
from unary.clinic.web_access import Access, build_access, is_loopback
from unary.errors import Reason, UnaryError
from unary.models.gate import ACCEPTABLE
from unary.outputs.dicom import DEFAULT_KINDS, STUDY_KINDS

GIB, MIB = 2**30, 2**20
MADE: tuple[str, ...] = (*DEFAULT_KINDS, *STUDY_KINDS)
"""The kinds of results that a node makes."""
T = TypeVar("T")


@dataclass(frozen=True)
class Caller:
    """An application that may send over DIMSE.

    Attributes
    ----------
    title
        Its calling AE title.
    addresses
        Addresses or networks (``10.1.0.0/16``) from which it may call.
    commitment_port
        Where it listens for the answer to a request for storage commitment; None answers over its own association.
    """

    title: str
    addresses: tuple[str, ...]
    commitment_port: int | None = None

    def __post_init__(self) -> None:
        _check_title(self.title)
        if not self.addresses:
            raise ValueError("addresses must name at least one address or network")
        for address in self.addresses:
            ipaddress.ip_network(address, strict=False)
        _check_port(self.commitment_port, "commitment_port")

    def may_call_from(self, address: str) -> bool:
        """Whether an address is one of those listed."""
        found = ipaddress.ip_address(address.partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found in ipaddress.ip_network(each, strict=False) for each in self.addresses)


@dataclass(frozen=True)
class DimseListener:
    """Where C-ECHO, C-STORE and storage commitment are answered.

    Attributes
    ----------
    host, port
        Loopback unless another address is given. Port 0 takes a free one.
    title
        The called AE title, which a caller must name.
    callers
        Nobody else is answered.
    certificate, key, client_ca
        TLS; with ``client_ca`` a caller must show a certificate that it has signed.
    allow_insecure
        Whether to listen without TLS on an address that is not loopback.
    most_associations
        At a time.
    answer_timeout_s
        How long a caller may be silent in the middle of something; between requests twice as long.
    """

    port: int
    callers: tuple[Caller, ...]
    host: str = "127.0.0.1"
    title: str = "UNARY"
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    allow_insecure: bool = False
    most_associations: int = 16
    answer_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        _check_title(self.title)
        _check_port(self.port, "port", least=0)
        _check_positive(self, "most_associations", "answer_timeout_s")
        if not self.callers:
            raise ValueError("callers must list who may send; nobody else is answered")
        _check_tls(self.certificate, self.key)
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        if not (is_loopback(self.host) or self.certificate or self.allow_insecure):
            raise ValueError(
                f"host {self.host!r} is not loopback and there is no TLS: anybody on the way could read patients' "
                "images; give certificate and key, or say allow_insecure = true"
            )


@dataclass(frozen=True)
class WebListener:
    """Where STOW-RS, health, metrics and the pages are served.

    Attributes
    ----------
    host, port, certificate, key
        As those of `DimseListener`.
    token_file, token_variable
        Where the token stands that every request must bring (``Authorization: Bearer``, on pages also by logging in),
        but for ``/health``; needed where the address is not loopback.
    names
        By which the service is asked for, beside its address.
    review
        Whether the review page is served, at ``/review/``, and the report of `unary monitor`, at ``/monitor/``.
    allow_insecure
        Whether to listen without TLS on an address that is not loopback.
    """

    port: int
    host: str = "127.0.0.1"
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    token_variable: str | None = None
    names: tuple[str, ...] = ()
    review: bool = True
    allow_insecure: bool = False

    def __post_init__(self) -> None:
        _check_port(self.port, "port", least=0)
        _check_tls(self.certificate, self.key)
        if self.token_file is not None and self.token_variable is not None:
            raise ValueError("give token_file or token_variable, not both")
        if is_loopback(self.host):
            return
        if self.token_file is None and self.token_variable is None:
            raise ValueError(
                f"host {self.host!r} is not loopback and there is no token: anybody could read and send; give "
                "token_file or token_variable"
            )
        if self.certificate is None and not self.allow_insecure:
            raise ValueError(
                f"host {self.host!r} is not loopback and there is no TLS: anybody on the way could read the token and "
                "patients' images; give certificate and key, or say allow_insecure = true"
            )

    def build_access(self) -> Access:
        """Return who may come in, with the token read now.

        Raises
        ------
        UnaryError
            If the token cannot be read or is too short, or no name is given for a listener on every address.
        """
        token = read_secret(self.token_file, self.token_variable, "token")
        tls = self.certificate is not None
        return build_access(self.host, token=token, names=self.names, tls=tls, plain_http=self.allow_insecure)


@dataclass(frozen=True)
class Watch:
    """A folder from which files are taken once they have stopped growing.

    Attributes
    ----------
    settle_s
        How long size and time of a file must have stayed the same.
    after
        Whether a file that was taken is moved to ``taken/`` below the folder, or deleted. What is refused is moved to
        ``refused/``, with the reason in a file beside it.
    """

    folder: Path
    settle_s: float = 5.0
    after: Literal["move", "delete"] = "move"

    def __post_init__(self) -> None:
        _check_positive(self, "settle_s")


@dataclass(frozen=True)
class Limits:
    """What is too much.

    Attributes
    ----------
    queue
        Images that wait to be examined; more are answered "out of resources".
    state_gib
        Size of images and results together; finished studies go first, the oldest before others.
    free_gib
        What must stay free on the disk.
    object_mib
        Size of one object.
    keep_days
        How long images and results of a finished study are kept, in days during which the node runs.
    attempts
        How often an image is tried that fails for a reason that may pass.
    """

    queue: int = 10_000
    state_gib: float = 200.0
    free_gib: float = 5.0
    object_mib: float = 512.0
    keep_days: float = 30.0
    attempts: int = 3

    def __post_init__(self) -> None:
        _check_positive(self, "queue", "state_gib", "object_mib", "keep_days", "attempts")
        if self.free_gib < 0:
            raise ValueError(f"free_gib must not be negative, got {self.free_gib}")


@dataclass(frozen=True)
class Sending:
    """How long what cannot be delivered is tried.

    Attributes
    ----------
    first_pause_s, longest_pause_s
        After the first failure; doubles with each further one, up to the longest.
    give_up_days
        Of running, after which an object counts as not delivered.
    refusals
        How often an object is offered that the destination refuses for good: about a day, at the longest pause.
    connect_timeout_s, answer_timeout_s
        As in `unary.clinic.pacs_address.Patience`.
    """

    first_pause_s: float = 5.0
    longest_pause_s: float = 900.0
    give_up_days: float = 7.0
    refusals: int = 100
    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        _check_positive(self, *(each.name for each in dataclasses.fields(self)))


@dataclass(frozen=True)
class Destination:
    """Where results are sent: one of ``dimse`` (``AET@HOST:PORT``) and ``web`` (the address of a DICOMweb service).

    Attributes
    ----------
    name
        The table's, ``[destinations.NAME]``.
    calling_title
        With ``dimse``: one's own title.
    user, password_file, password_variable, token_file, token_variable
        With ``web``: who one is; secrets stand in a file or in the environment.
    tls, ca_file, client_cert, client_key
        As the options of ``unary send``.
    kinds
        Which results, by their file's name without ``.dcm``; None sends all.
    allow_plain_http
        As the option of ``unary send``.
    """

    name: str
    dimse: str | None = None
    web: str | None = None
    calling_title: str = "UNARY"
    user: str | None = None
    password_file: Path | None = None
    password_variable: str | None = None
    token_file: Path | None = None
    token_variable: str | None = None
    tls: bool = False
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    kinds: tuple[str, ...] | None = None
    allow_plain_http: bool = False

    def __post_init__(self) -> None:
        if (self.dimse is None) == (self.web is None):
            raise ValueError("give one of dimse and web")
        unknown = [each for each in self.kinds or () if each not in MADE]
        if unknown or self.kinds == ():
            said = f"has {unknown[0]!r}" if unknown else "is empty, and nothing would be sent"
            raise ValueError(f"kinds {said}; a node makes {', '.join(MADE)}; without kinds all are sent")
        secrets = (self.user, self.password_file, self.password_variable, self.token_file, self.token_variable)
        if self.dimse is not None:
            if any(each is not None for each in secrets):
                raise ValueError("user, password and token go with web alone")
            DimseAddress.parse(self.dimse, calling_title=self.calling_title, tls=self._tls())
            return
        password = sum(each is not None for each in (self.password_file, self.password_variable))
        token = sum(each is not None for each in (self.token_file, self.token_variable))
        if (self.user is not None) != (password == 1) or password + token > 1:
            raise ValueError(
                "give user with password_file or password_variable, or token_file or token_variable, or nothing of it"
            )
        WebAddress(
            str(self.web), token="x" if password + token else None, tls=self._tls(), plain_http=self.allow_plain_http
        )

    def _tls(self) -> Tls | None:
        files = (self.ca_file, self.client_cert, self.client_key)
        return Tls(*files) if self.tls or any(files) else None

    def build_address(self) -> DimseAddress | WebAddress:
        """Return the address, with the secrets read now; an UnaryError says that one cannot be read."""
        if self.dimse is not None:
            return DimseAddress.parse(self.dimse, calling_title=self.calling_title, tls=self._tls())
        return WebAddress(
            str(self.web),
            user=self.user,
            password=read_secret(self.password_file, self.password_variable, "password"),
            token=read_secret(self.token_file, self.token_variable, "token"),
            tls=self._tls(),
            plain_http=self.allow_plain_http,
        )

    def wants(self, kind: str) -> bool:
        """Whether results of a kind go there."""
        return self.kinds is None or kind in self.kinds


@dataclass(frozen=True)
class NodeConfig:
    """All that NODE.toml says.

    Attributes
    ----------
    model
        The folder of a fitted model.
    state
        The folder of the node's own: images, results, state and audit log. No other process may use it.
    pause_s
        A study is complete when nothing has arrived for it so long, or when storage commitment was asked for it.
    operating_point, accept, spacing_mm, maps
        As the options of ``unary detect``.
    """

    model: Path
    state: Path
    pause_s: float = 120.0
    operating_point: str | None = None
    accept: tuple[str, ...] = ()
    spacing_mm: float | None = None
    maps: bool = True
    dimse: DimseListener | None = None
    web: WebListener | None = None
    watch: Watch | None = None
    limits: Limits = field(default_factory=Limits)
    sending: Sending = field(default_factory=Sending)
    destinations: tuple[Destination, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.pause_s < float("inf"):
            raise ValueError(f"pause_s must not be negative, got {self.pause_s}")
        for reason in self.accept:
            if reason not in ACCEPTABLE:
                raise ValueError(f"accept cannot hold {reason!r}; these can be accepted: {', '.join(ACCEPTABLE)}")
        if self.dimse is None and self.web is None and self.watch is None:
            raise ValueError("one of the tables dimse, web and watch is needed, or no image would ever come")
        if self.watch is not None:
            state, watched = self.state.resolve(), self.watch.folder.resolve()
            if state.is_relative_to(watched) or watched.is_relative_to(state):
                raise ValueError(
                    f"state and the watched folder must not lie in each other, or the node would take its own files: "
                    f"{state} and {watched}"
                )

    @property
    def accepted(self) -> tuple[Reason, ...]:
        """Reasons that do not count."""
        return typing.cast("tuple[Reason, ...]", self.accept)


def read_config(path: Path) -> NodeConfig:
    """Read NODE.toml; relative paths in it start at its folder.

    Raises
    ------
    UnaryError
        If it is no TOML, or a field is unknown, missing, of another type or out of range: file, table and field.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnaryError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UnaryError(f"{path}: no TOML: {error}") from None
    named = document.pop("destinations", {})
    if not isinstance(named, dict) or not all(isinstance(each, dict) for each in named.values()):
        raise UnaryError(f"{path}: destinations: write each as a table, [destinations.NAME]")
    document["destinations"] = [{**table, "name": name} for name, table in named.items()]
    return _Reader(path).read(NodeConfig, document, "")


@dataclass(frozen=True)
class _Reader:
    """Turns tables into dataclasses, and says where what is wrong stands."""

    path: Path

    def read(self, kind: type[T], table: dict[str, Any], where: str) -> T:
        hints = typing.get_type_hints(kind)
        known = {each.name: each for each in dataclasses.fields(typing.cast(Any, kind))}
        title = f"table [{where}]" if where else "top level"
        unknown = sorted(table.keys() - known.keys())
        if unknown:
            raise UnaryError(f"{self.path}: {title}: unknown field {unknown[0]!r}; known are {', '.join(known)}")
        for name, each in known.items():
            absent = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            if absent and name not in table:
                raise UnaryError(f"{self.path}: {title}: the field {name!r} is missing")
        values = {name: self._convert(hints[name], value, where, name) for name, value in table.items()}
        try:
            return kind(**values)
        except ValueError as error:
            raise UnaryError(f"{self.path}: {title}: {error}") from None

    def _convert(self, kind: Any, value: Any, where: str, name: str) -> Any:
        place = f"{where}.{name}" if where else name
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        inner = parts[0] if parts and dataclasses.is_dataclass(parts[0]) else kind
        if typing.get_origin(kind) is tuple and dataclasses.is_dataclass(parts[0]):
            if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
                raise UnaryError(f"{self.path}: {place}: write each as a table, [[{place}]]")
            return tuple(self._read_listed(inner, each, place, number) for number, each in enumerate(value, 1))
        if dataclasses.is_dataclass(inner):
            if not isinstance(value, dict):
                raise UnaryError(f"{self.path}: {place}: must be a table, [{place}]")
            return self.read(typing.cast(type, inner), value, place)
        if kind is Path or Path in parts:
            return self._read_path(value, where, name)
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            title = f"table [{where}]" if where else "top level"
            raise UnaryError(f"{self.path}: {title}: field {name!r}: {error}") from None

    def _read_listed(self, kind: Any, table: dict[str, Any], place: str, number: int) -> Any:
        return self.read(kind, table, f"{place}.{table['name']}" if place == "destinations" else f"{place}, {number}")

    def _read_path(self, value: Any, where: str, name: str) -> Path:
        if not isinstance(value, str) or not value:
            title = f"table [{where}]" if where else "top level"
            raise UnaryError(f"{self.path}: {title}: field {name!r}: a path is needed, as text")
        return self.path.resolve().parent / Path(value).expanduser()


def read_secret(file: Path | None, variable: str | None, what: str) -> str | None:
    """Return a secret from a file's first line or from the environment; None where neither is named.

    Raises
    ------
    UnaryError
        If it is not there or empty; the message never quotes it.
    """
    if file is not None:
        try:
            secret = file.read_text(encoding="utf-8").splitlines()[:1]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise UnaryError(f"{file}: the {what} cannot be read ({reason})") from None
        if not secret or not secret[0].strip():
            raise UnaryError(f"{file}: the {what} is empty")
        return secret[0].strip()
    if variable is None:
        return None
    found = os.environ.get(variable)
    if not found:
        raise UnaryError(f"the environment variable {variable}, which should hold the {what}, is not set or empty")
    return found


def _check_title(title: str) -> None:
    if not (1 <= len(title.strip()) <= 16 and title.isascii() and title.isprintable() and "\\" not in title):
        raise ValueError(f"title must have 1 to 16 ASCII characters, got {title!r}")


def _check_port(port: int | None, name: str, *, least: int = 1) -> None:
    if port is not None and not least <= port < 65536:
        raise ValueError(f"{name} must lie between {least} and 65535, got {port}")


def _check_tls(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise ValueError("TLS needs both certificate and key")


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")
