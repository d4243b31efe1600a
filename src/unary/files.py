"""Files and readings: written whole or not at all, by one process at a time, and read ahead of need."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from unary.errors import UnaryError

LOCK_FILE, KNOWN_FILES = ".unary.lock", ".unary.files"
OWN_HIDDEN = (LOCK_FILE, KNOWN_FILES)
"""Hidden files that unary keeps in folders."""

# What a spreadsheet takes for a formula, behind any apostrophes that guard it already; plain numbers are none.
_FORMULA = re.compile(r"'*[\s\x00]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NUMBERS = re.compile(r"[-+\d.eE;, ]*")

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_url(text: str) -> bool:
    """Return whether a text is a URL, such as ``s3://bucket/name``, and no path."""
    return _URL.match(text) is not None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; it takes the place of ``path`` in one step when the block ends.

    Whatever interrupts the block, a full disk or a kill included, leaves the old file as it was. The folder is created;
    the suffix stays the same, since some writers look at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file in the way of `replacing`, and see it on the disk before returning.

    ``mode`` is the file's, less what the system takes away.
    """
    with replacing(path) as partial, open(partial, "wb", opener=lambda name, how: os.open(name, how, mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locking(folder: Path) -> Iterator[None]:
    """Hold a folder, which is created, against every other process that writes results or a model there.

    The lock is the operating system's: it ends with the process, however that ends. Its file, hidden in the folder,
    stays, and says who held it last.

    Raises
    ------
    UnaryError
        If another process holds the folder (named by its number and computer), or nothing can be written there.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now().astimezone():%F %T %z}"}
        if os.name != "nt":  # which locks the file's content as well
            path.write_text(json.dumps(owner) + "\n", encoding="utf-8")
    except Timeout as error:
        raise UnaryError(
            f"{folder}: in use by {_describe_owner(path)}; wait until it has ended, or choose another folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        lock.release()
        raise UnaryError(
            f"{folder}: nothing can be written there, or it cannot be locked ({getattr(error, 'strerror', error)}): "
            "read-only, full, of another user, no folder, or on a network drive without locks? Choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _describe_owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"another process (pid {owner['pid']} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is just beginning
        return "another process"


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as UTF-8 with commas, in the way of `replacing`.

    None becomes an empty cell; a float keeps all its digits, so that what is read back is the same number. A text that
    a spreadsheet would run as a formula gets an apostrophe before it, which `read_cell` takes away.
    """
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([_guard(cell) if isinstance(cell, (str, Path)) else cell for cell in row] for row in rows)


def _guard(cell: str | Path) -> str:
    text = str(cell)
    return f"'{text}" if _is_formula(text) else text


def _is_formula(text: str) -> bool:
    return _FORMULA.match(text) is not None and _NUMBERS.fullmatch(text) is None


def read_cell(text: str) -> str:
    """Return the text that `write_csv` was given for a cell.

    >>> read_cell("'=1+A1"), read_cell("'quoted'"), read_cell("-1.5")
    ('=1+A1', "'quoted'", '-1.5')
    """
    return text[1:] if text.startswith("'") and _is_formula(text) else text


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], *, ahead: int) -> Generator[Result]:
    """Yield ``read(item)`` for every item, in order, while one thread of its own reads up to ``ahead`` further ones.

    One thread, because pydicom's warnings, which may quote a patient's data, can only be silenced for a whole process.
    An exception is raised where its result would have been. When the generator is closed, the reading under way is
    waited for and no other begins. Items are taken from the caller's thread.
    """
    with ThreadPoolExecutor(1, "unary-reading") as pool:
        waiting: list[Future[Result]] = []
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
