"""Writing results in processes of their own, so that pictures and DICOM objects leave the images the processor.

Drawing and writing are done in Python, of which one thread runs at a time. A process has the arrays handed over, writes
one image's results under a hidden name, and says what became of it; the folder of results stays the caller's.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import unary
from unary.clinic.result_folder import Source, Write, write_result
from unary.clinic.writing_process import Outcome, Request, pack_request
from unary.errors import ImageError, Reason
from unary.images.isolation import describe_status, show_path

logger = logging.getLogger(__name__)

_BOOT = "import sys; sys.path[:0] = sys.argv[1:]; from unary.clinic.writing_process import serve; serve()"
_END_S = 30.0  # for what is being written


class Writers:
    """Processes that write results, one for each thread that asks; use it in a ``with`` block, which ends them.

    A process that dies, for want of memory above all, is told on the log, and its image is tried once more by another.
    """

    def __init__(self) -> None:
        self._here = threading.local()
        self._lock = threading.Lock()
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._all:
            _end(process)

    def write(self, folder: Path, name: str, write: Write, source: Source, known: Mapping[str, Any]) -> None:
        """Do what `unary.clinic.result_folder.write_result` does, whose arguments these are, in a process.

        Raises
        ------
        OSError
            As there, with its number.
        ImageError
            If the process has died twice, or of whatever else is raised there, as `explain_unexpected` words it.
        """
        where = show_path(source.path)
        place = Path(os.path.abspath(folder))
        request = Request(where, functools.partial(write_result, place, name, write, source, known))
        try:
            outcome = self._ask(request)
        except _DiedError as first:
            logger.warning("%s: the process that writes its results died (%s); it is tried once more", where, first)
            try:
                outcome = self._ask(request)
            except _DiedError as again:
                cause = f"the process that writes its results died twice ({again}); is more memory needed?"
                reason: Reason = "MEMORY_LIMIT" if str(again) == "SIGKILL" else "CRASH"
                raise ImageError(f"{where}: {cause}", reason=reason) from None
        if outcome.errno is not None:
            raise OSError(outcome.errno, os.strerror(outcome.errno))
        if outcome.error is not None:
            raise ImageError(outcome.error, reason=outcome.reason)

    def prepare(self, do: Callable[[], object]) -> None:
        """Have this thread's process started, and something done there that the first result will need; never fails."""
        with contextlib.suppress(_DiedError):
            self._ask(Request("", do))

    def _ask(self, request: Request) -> Outcome:
        """What this thread's process answers."""
        process: subprocess.Popen[bytes] | None = getattr(self._here, "process", None)
        if process is None:
            process = self._here.process = _start()
            with self._lock:
                self._all.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for part in pack_request(request):
                _send(process.stdin.fileno(), part)
            line = process.stdout.readline()
        except OSError:  # a pipe whose other end is gone, by one number or another
            line = b""
        if not line.endswith(b"\n"):
            self._here.process = None
            with self._lock:
                self._all.remove(process)
            raise _DiedError(_end(process))
        return Outcome(**json.loads(line))


class _DiedError(Exception):
    """A process has ended, or never begun; the text says how."""


def _send(descriptor: int, content: Any) -> None:
    left = memoryview(content).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def _start() -> subprocess.Popen[bytes]:
    """Start a process, and wait until it has imported what it needs."""
    places = [str(Path(unary.__file__).parents[1]), *(place for place in sys.path if place)]
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", _BOOT, *places],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C reaches the parent alone, which has it write what is under way.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except OSError as error:
        raise _DiedError(f"not started: {error.strerror}") from error
    assert process.stdout is not None
    if process.stdout.readline() != b"\n":
        raise _DiedError(f"not started: {_end(process)}")
    return process


def _end(process: subprocess.Popen[bytes]) -> str:
    """Let a process end, which it does when its input closes; return how it has ended."""
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(OSError):
            stream.close()
    try:
        status = process.wait(timeout=_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    return describe_status(status)
