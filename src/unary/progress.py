"""What is shown of long work: a bar on a terminal; a line a minute where standard error is a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DELAY_S = 2.0  # before a bar is shown
_LINE_S = 60.0  # from one line to the next, and before the first


class _Lines(Generic[T]):
    """What of a tqdm bar is used here, as lines of a log."""

    def __init__(self, items: Iterable[T] | None, *, title: str, unit: str, total: int | None, initial: int) -> None:
        self._items, self._title, self._unit, self._total = items, title, unit, total
        self._done = self._initial = initial
        self._start = self._told = time.monotonic()
        self._added = ""

    def __iter__(self) -> Iterator[T]:
        for item in () if self._items is None else self._items:
            yield item
            self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, count: int = 1) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told >= _LINE_S:
            self._told = now
            print(self._describe(now - self._start), file=sys.stderr, flush=True)

    def set_postfix(self, refresh: bool = True, **values: Any) -> None:
        self._added = ", ".join(f"{name}={value}" for name, value in values.items())

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self._added = text

    def _describe(self, elapsed_s: float) -> str:
        line: str = tqdm.format_meter(
            self._done,
            self._total,
            elapsed_s,
            ncols=0,
            prefix=self._title,
            unit=self._unit,
            initial=self._initial,
            postfix=self._added,
        )
        return line


Bar: TypeAlias = "tqdm[T] | _Lines[T]"
"""What goes over items, or is told of them by ``update``."""


def show_progress(
    items: Iterable[T] | None = None,
    *,
    title: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    shown: bool = True,
    leave: bool = True,
) -> Bar[T]:
    """Go over items, or count what is told by ``update``, and show how far it is and how long it will take.

    It is a note: where unary's logger is set to tell of errors alone, nothing is shown.
    Nothing is shown of what takes less than two seconds, on a terminal, or a minute, in a log. ``leave`` says whether
    the bar stays on the terminal when it is full.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    shown = shown and logger.isEnabledFor(logging.WARNING)
    if shown and not sys.stderr.isatty():
        return _Lines(items, title=title, unit=unit, total=total, initial=initial)
    return tqdm(
        items,
        desc=title,
        unit=unit,
        total=total,
        initial=initial,
        delay=_DELAY_S,
        leave=leave,
        disable=not shown,
    )
