"""Files and readings: written whole or not at all, and read ahead of need."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

# What a spreadsheet takes for a formula, behind any apostrophes that guard it already; plain numbers are none.
_FORMULA = re.compile(r"'*[\s\x00]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBERS = re.compile(r"[-+\d.eE;, ]*")

Item = TypeVar("Item")
Result = TypeVar("Result")


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
