"""Where images come from and results go: folders, and object stores through fsspec, with time limits and retries.

A place is a path, or a URL such as ``s3://bucket/folder``. What can be reached without fsspec, paths and ``file://``,
never needs it. Stores are asked a few times, with growing pauses, and never for longer than a limit; credentials come
from the environment alone, as the store's own package reads them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from unary.errors import UnaryError, require, require_positive
from unary.files import LOCK_FILE, is_url, locking, write_durably
from unary.images.isolation import show_path, show_text

T = TypeVar("T")

_CHUNK = 2**20
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # asking again is of no use
_LEASE_S, _RENEW_S = 300.0, 60.0
PARTIAL = ".unary.partial"


@dataclass(frozen=True)
class Patience:
    """How long a store is waited for.

    Attributes
    ----------
    timeout_s
        Of one attempt to fetch or write one file.
    attempts
        At most so many for one file.
    pause_s
        Before the second attempt; doubled before each further one.
    """

    timeout_s: float = 60.0
    attempts: int = 3
    pause_s: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "timeout_s", "attempts", "pause_s")


class StorageError(UnaryError):
    """A store cannot be used, or does not give or take a file.

    Attributes
    ----------
    reached
        False where it did not answer, or not as a store does: others of its files will hardly fare better.
    """

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached

    def __reduce__(self) -> Any:
        return _build_error, (str(self), self.reached)


def _build_error(message: str, reached: bool) -> StorageError:
    return StorageError(message, reached=reached)


def find_local(place: str) -> Path | None:
    """Return the path of a place that needs no store, a path or ``file://``; None of any other URL.

    >>> find_local("file:///data/a%20b.dcm"), find_local("s3://bucket/a.dcm")
    (PosixPath('/data/a b.dcm'), None)
    """
    if not is_url(place):
        return Path(place)
    parts = urlsplit(place)
    return Path(unquote(parts.path)) if parts.scheme.lower() == "file" else None


def show_place(place: str) -> str:
    """Return a place for a message: a URL without what may be a secret, its user and its query.

    >>> show_place("https://user:word@host:8042/a.dcm?token=x")
    'https://host:8042/a.dcm'
    """
    if not is_url(place):
        return show_path(Path(place))
    parts = urlsplit(place)
    return show_text(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def fetch_file(url: str, folder: Path, *, limit_mib: float, patience: Patience) -> Path:
    """Copy a file from a store into a local folder, and return where.

    Raises
    ------
    StorageError
        If the store does not give it in time, after several attempts, or it is larger than the limit.
    MissingPackageError
        If fsspec, or the package of such a store, is not installed.
    """
    files, name = _find_filesystem(url)
    target = folder / (Path(unquote(urlsplit(url).path)).name[-120:] or "image")
    most = limit_mib * 2**20

    def copy() -> Path | None:
        own = folder / f".{uuid.uuid4()}"  # for an attempt that was given up may still be writing
        done = 0
        with files.open(name, "rb", cache_type="none") as source, own.open("wb") as sink:
            while content := source.read(_CHUNK):
                done += len(content)
                if done > most:
                    return None
                sink.write(content)
        return own

    copied = _try_often(copy, url, "fetched", patience)
    if copied is None:
        raise StorageError(f"{show_place(url)}: the file has more than {limit_mib:g} MiB, which are allowed")
    os.replace(copied, target)
    return target


def _find_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and what the file is called there."""
    fsspec = require("fsspec", extra="ray")
    scheme = urlsplit(url).scheme.lower()
    own: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("s3", "s3a"):  # its own retries would multiply ours
        own |= {"config_kwargs": {"retries": {"max_attempts": 1}}}
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **own)
    except ImportError as error:
        raise StorageError(f"{show_place(url)}: the package for {scheme}:// is not installed ({error})") from error
    except ValueError as error:
        raise StorageError(f"{show_place(url)}: {scheme}:// is no store that fsspec knows ({error})") from error
    return found


def _try_often(action: Callable[[], T], place: str, done: str, patience: Patience) -> T:
    """What an action returns, at last; the error of the last attempt otherwise."""
    pause = patience.pause_s
    for number in range(1, patience.attempts + 1):
        try:
            return _try_once(action, patience.timeout_s)
        except _FINAL as error:
            if isinstance(error.__cause__, OSError):  # so a web server that is not there is told by fsspec
                if number == patience.attempts:
                    raise _give_up(error.__cause__, place, done, patience) from error
                time.sleep(pause)
                pause *= 2
                continue
            cause = error.strerror or _NAMES[type(error)]
            raise StorageError(f"{show_place(place)}: cannot be {done} ({cause})") from error
        except Exception as error:  # of a store's own package: of any type, and its text may hold a secret
            if number == patience.attempts:
                raise _give_up(error, place, done, patience) from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("there is at least one attempt")


def _give_up(error: Exception, place: str, done: str, patience: Patience) -> StorageError:
    return StorageError(
        f"{show_place(place)}: cannot be {done}: {_explain(error, patience)}, at the last of {patience.attempts} "
        "attempts; is the store reachable, and are the credentials right?",
        reached=False,
    )


_NAMES: dict[type[Exception], str] = {
    FileNotFoundError: "no such file",
    PermissionError: "no permission",
    IsADirectoryError: "a folder",
    NotADirectoryError: "no folder",
}


def _explain(error: Exception, patience: Patience) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {patience.timeout_s:g} s"
    told = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__}{f' ({show_text(told)})' if told else ''}"


def _try_once(action: Callable[[], T], timeout_s: float) -> T:
    """What an action returns within a time; one that hangs is left behind in a thread that keeps nothing alive."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(action())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="unary-store", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError
    return found[0]


@dataclass(frozen=True)
class Store:
    """A folder of results, on a disk or in an object store.

    On a disk a file takes the place of another in one step; in an object store that is so for every object by itself.
    """

    place: str
    patience: Patience = field(default_factory=Patience)

    @property
    def folder(self) -> Path | None:
        """Where it is on a disk; None of an object store."""
        return find_local(self.place)

    def show(self, name: str = "") -> str:
        """Return a place in it for a message."""
        return show_place(self._join(name))

    def _join(self, name: str) -> str:
        return f"{self.place.rstrip('/')}/{name}" if name else self.place

    def read(self, name: str) -> bytes | None:
        """Return what a file holds; None where there is none."""
        folder = self.folder
        if folder is not None:
            try:
                return (folder / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise StorageError(f"{self.show(name)}: cannot be read ({error.strerror})") from error
        files, path = _find_filesystem(self._join(name))

        def get() -> bytes | None:
            try:
                return bytes(files.cat_file(path))
            except FileNotFoundError:
                return None

        return _try_often(get, self._join(name), "read", self.patience)

    def list(self, name: str) -> tuple[str, ...]:
        """Return the names of what lies in a folder of it, sorted; none where there is no such folder."""
        folder = self.folder
        if folder is not None:
            return tuple(sorted(os.listdir(folder / name))) if (folder / name).is_dir() else ()
        files, path = _find_filesystem(self._join(name))

        def get() -> tuple[str, ...]:
            try:
                return tuple(sorted(found.rstrip("/").rpartition("/")[2] for found in files.ls(path, detail=False)))
            except FileNotFoundError:
                return ()

        return _try_often(get, self._join(name), "listed", self.patience)

    def find_size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        folder = self.folder
        if folder is not None:
            return (folder / name).stat().st_size if (folder / name).is_file() else None
        files, path = _find_filesystem(self._join(name))

        def get() -> int | None:
            try:
                size: int | None = files.info(path)["size"]
                return size
            except FileNotFoundError:
                return None

        return _try_often(get, self._join(name), "found", self.patience)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in place of another of its name; a `StorageError` if it cannot be."""
        folder = self.folder
        if folder is not None:
            try:
                write_durably(folder / name, content)
            except OSError as error:
                raise self._refuse(error) from error
            return
        files, path = _find_filesystem(self._join(name))
        _try_often(lambda: _put(files, path, content), self._join(name), "written", self.patience)

    def publish(self, built: Path, name: str, last: str) -> None:
        """Give a folder that lies in `staging` its name, in place of an earlier one.

        In an object store its files are written one by one, the one called ``last`` after all others: what reads them
        takes that for the sign that the folder is whole.
        """
        folder = self.folder
        if folder is not None:
            target, old = folder / name, built.with_name(f"{built.name}.old")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    os.rename(target, old)
                os.rename(built, target)
            except OSError as error:
                raise self._refuse(error) from error
            shutil.rmtree(old, ignore_errors=True)
            return
        self.remove(f"{name}/{last}")
        names = sorted(str(path.relative_to(built)) for path in built.rglob("*") if path.is_file())
        for each in [*(each for each in names if each != last), last]:
            self.write(f"{name}/{each}", (built / each).read_bytes())

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        folder = self.folder
        if folder is not None:
            (folder / name).unlink(missing_ok=True)
            return
        files, path = _find_filesystem(self._join(name))

        def remove() -> bool:
            try:
                files.rm_file(path)
            except FileNotFoundError:
                return False
            return True

        _try_often(remove, self._join(name), "removed", self.patience)

    def _refuse(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.show()}: no more results can be written ({error.strerror}); what was done is there, and the same "
            "command goes on from there"
        )

    @property
    def staging(self) -> Path | None:
        """Where folders are made that `publish` moves; None where that may be anywhere."""
        folder = self.folder
        return None if folder is None else folder / PARTIAL

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold it against every other run: by a lock on a disk, by a file that is renewed in an object store.

        Raises
        ------
        UnaryError
            If another run holds it, or nothing can be written there.
        """
        folder = self.folder
        if folder is None:
            with self._leasing():
                yield
            return
        with locking(folder):
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)  # of a run that was killed
            try:
                yield
            finally:
                shutil.rmtree(folder / PARTIAL, ignore_errors=True)

    @contextmanager
    def _leasing(self) -> Iterator[None]:
        own, ended = str(uuid.uuid4()), threading.Event()
        self._require_free()
        self._write_lease(own)
        if self._read_lease().get("owner") != own:  # another run has begun in the same moment
            self._require_free()

        def renew() -> None:
            while not ended.wait(_RENEW_S):
                try:
                    self._write_lease(own)
                except UnaryError:  # whoever writes results is told of it, too
                    return

        for name in self.list(PARTIAL):  # of a run that was killed
            self.remove(f"{PARTIAL}/{name}")
        thread = threading.Thread(target=renew, name="unary-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(self.patience.timeout_s)
            self.remove(LOCK_FILE)

    def _write_lease(self, owner: str) -> None:
        lease = {"owner": owner, "pid": os.getpid(), "host": socket.gethostname(), "until": time.time() + _LEASE_S}
        self.write(LOCK_FILE, json.dumps(lease).encode())

    def _read_lease(self) -> dict[str, Any]:
        try:
            found = json.loads(self.read(LOCK_FILE) or b"{}")
            return found if isinstance(found, dict) else {}
        except ValueError:
            return {}

    def _require_free(self) -> None:
        lease = self._read_lease()
        until = lease.get("until")
        if isinstance(until, (int, float)) and until > time.time():
            raise StorageError(
                f"{self.show()}: in use by another run (pid {lease.get('pid')} on {lease.get('host')}); wait until it "
                f"has ended, or, if it was killed, for {until - time.time():.0f} s"
            )


def _put(files: Any, path: str, content: bytes) -> bool:
    files.pipe_file(path, content)
    return True
