"""Reading files that nobody vouches for: in a process of its own, with limits on memory and time.

A damaged or hostile file can make a codec crash, hang or ask for all memory. Here that ends a helper process and
becomes an `ImageError` that names the cause, while the program goes on. The helper knows the readers and no torch; it
stays for the next file, and starts anew after a crash. It is protection against accidents and bombs, not a sandbox
against code that breaks out of a codec.

Nothing that comes back from the helper is unpickled or trusted: types and sizes are checked against the limits. The
limit on memory needs Linux.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import unary
from unary.errors import ImageError, UnaryError
from unary.images.attributes import Attributes
from unary.images.checks import build_refusal
from unary.images.isolation_process import Answer, PixelsHead, ReadingLimits, Request
from unary.profiles.profile import Headers
from unary.records import Image

_BOOT = "import sys; sys.path.append(sys.argv[1]); from unary.images.isolation_process import serve; serve(sys.argv[2])"
_START_S = 60.0  # for importing the readers on a slow disk
_LONGEST_HEAD = 100_000  # bytes


class IsolatedReader:
    """Reads images in a helper process; use it in a ``with`` block, which ends the helper.

    One file is read at a time; threads that share a reader wait for each other. Starting takes half a second, once. The
    limits are those of every single file.

    Examples
    --------
    >>> with IsolatedReader(ReadingLimits(timeout_s=20)) as reader:
    ...     reader.read("missing.dcm")
    Traceback (most recent call last):
    unary.errors.ImageError: missing.dcm: cannot be opened (No such file or directory)
    """

    def __init__(self, limits: ReadingLimits | None = None) -> None:
        self.limits = limits or ReadingLimits()
        self._helper: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Let the helper start now, beside whatever else is to be done before the first file is read."""
        with self._lock:
            if self._helper is None and not self._closed:
                self._helper, self._ready = _launch(self.limits), False

    def close(self) -> None:
        """End the helper, for good: a thread that reads on would start another one, which nobody ends.

        From another thread than the one that reads, this ends that reading at once, with an `ImageError`.
        """
        self._closed = True
        helper = self._helper
        if helper is not None:
            helper.kill()
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            _end(helper)

    def read(self, path: Path | str) -> Image:
        """Return what `unary.images.reading.read_image` returns.

        Raises
        ------
        ImageError
            As `read_image` does, always with a reason; and if the path is no regular file, the file is larger than the
            limits allow, takes too long or too much memory, or crashes its decoder. Control characters of a path are
            escaped in the message.
        UnaryError
            If the helper cannot be started at all, or the reader is closed.
        """
        path = Path(path)
        image = self._ask(path, None)
        if not isinstance(image, Image):
            raise _build_nonsense(path)
        return image

    def read_attributes(self, path: Path | str, headers: Headers) -> Attributes:
        """Return what `unary.images.headers.read_attributes` returns; raises as `read`."""
        path = Path(path)
        attributes = self._ask(path, headers)
        if not isinstance(attributes, Attributes):
            raise _build_nonsense(path)
        return attributes

    def _ask(self, path: Path, headers: Headers | None) -> Image | Attributes | None:
        """Return what the helper answers; unless that came whole, the helper has ended with the exception."""
        with self._lock:
            if self._closed:
                raise UnaryError("the process that reads images has been ended")
            _check_file(path, self.limits)
            whole = False
            try:
                helper, deadline = self._deliver(Request(os.path.abspath(path), headers))
                answer = _receive_answer(helper, deadline)
                head = answer.pixels
                image = None if head is None else _receive_image(helper, head, path, self.limits, deadline)
                whole = True
            except TimeoutError as error:
                cause = (
                    f"reading it took longer than {self.limits.timeout_s:g} s and was given up; damaged, or is this "
                    "computer very busy?"
                )
                raise build_refusal(show_path(path), cause, "TIMEOUT") from error
            except EOFError as error:
                cause = (
                    f"its decoder crashed ({_describe_end(self._helper)}); damaged, or is more memory needed than "
                    f"{self.limits.memory_mib} MiB?"
                )
                raise build_refusal(show_path(path), cause, "CRASH") from error
            except ValueError as error:
                raise _build_nonsense(path) from error
            finally:
                if not whole:  # Ctrl-C included
                    self._drop()
        if answer.error is not None:
            raise build_refusal(show_path(path), _show(answer.error), answer.reason or "NOT_READABLE")
        return image or answer.attributes

    def _deliver(self, request: Request, *, again: bool = True) -> tuple[subprocess.Popen[bytes], float]:
        """Hand over the request; return the helper that has taken it, and the deadline of its answer.

        A helper that ended before it took the request, killed while idle for example, says nothing about the file: then
        another one is asked.
        """
        if self._closed:
            raise EOFError
        if self._helper is None:
            self._helper, self._ready = _launch(self.limits), False
        helper = self._helper
        if not self._ready:
            _await_start(helper)
            self._ready = True
        assert helper.stdin is not None
        deadline = time.monotonic() + self.limits.timeout_s
        try:
            helper.stdin.write(_describe_request(request))
            _receive(helper, 1, deadline)
            return helper, deadline
        except (BrokenPipeError, EOFError) as error:
            self._drop()
            if not again:
                raise EOFError from error
        return self._deliver(request, again=False)


def _describe_request(request: Request) -> bytes:
    headers = None if request.headers is None else _describe_headers(request.headers)
    return json.dumps({"path": request.path, "headers": headers}).encode("ascii") + b"\n"


@functools.lru_cache(maxsize=4)
def _describe_headers(headers: Headers) -> dict[str, Any]:
    """The same in every request of a run."""
    return asdict(headers)


def _check_file(path: Path, limits: ReadingLimits) -> None:
    """Look at the file from outside; opening a pipe or a device could already hang."""
    name = show_path(path)
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or "no file can have this name"
        raise build_refusal(name, f"cannot be opened ({cause})", "NOT_READABLE") from error
    if not stat.S_ISREG(status.st_mode):
        raise build_refusal(name, "a folder, pipe or device, not a file", "NOT_READABLE")
    size_mib = status.st_size / 2**20
    if size_mib > limits.file_mib:
        raise build_refusal(name, f"the file has {size_mib:.0f} MiB; {limits.file_mib} are allowed", "TOO_LARGE")


def _launch(limits: ReadingLimits) -> subprocess.Popen[bytes]:
    """Start a helper."""
    root = str(Path(unary.__file__).parents[1])
    return subprocess.Popen(
        # -P: a folder with hostile modules in it may be the current one.
        [sys.executable, "-P", "-W", "ignore", "-c", _BOOT, root, json.dumps(asdict(limits))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        # Ctrl-C reaches the parent alone, which ends the helper.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def _await_start(helper: subprocess.Popen[bytes]) -> None:
    """Wait until a helper has imported the readers."""
    try:
        _receive(helper, 1, time.monotonic() + _START_S)
    except (TimeoutError, EOFError) as error:
        end = _describe_end(helper)
        raise UnaryError(f"the process that reads images does not start ({end}); is unary installed whole?") from error


def _end(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    with helper:  # waits, and closes the pipes, at whose end a thread may have been reading
        pass


def _describe_end(helper: subprocess.Popen[bytes] | None) -> str:
    if helper is None:
        return "it could not be restarted"
    try:
        status = helper.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "no answer"
    return describe_status(status)


def describe_status(status: int) -> str:
    """Return how a process has ended: by which signal, or with which exit status."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _receive(helper: subprocess.Popen[bytes], size: int, deadline: float) -> NDArray[np.uint8]:
    """Receive so many bytes, in a thread, since Windows cannot wait for a pipe for a limited time."""
    content = np.empty(size, np.uint8)
    received = threading.Event()
    thread = threading.Thread(target=_fill, args=(helper.stdout, content, received), daemon=True)
    thread.start()
    thread.join(max(deadline - time.monotonic(), 0))
    if thread.is_alive():  # until the helper is ended, which the caller does
        raise TimeoutError
    if not received.is_set():
        raise EOFError
    return content


def _fill(answers: IO[bytes], content: NDArray[np.uint8], received: threading.Event) -> None:
    """Read from a pipe until the array is full, or the pipe ends."""
    done = 0
    while done < len(content):
        count = answers.readinto(content[done:].data)  # type: ignore[attr-defined]
        if not count:
            return
        done += count
    received.set()


def _receive_answer(helper: subprocess.Popen[bytes], deadline: float) -> Answer:
    (length,) = struct.unpack(">I", _receive(helper, 4, deadline).data)
    if length > _LONGEST_HEAD:
        raise ValueError("too long")
    return msgspec.convert(json.loads(_receive(helper, length, deadline).tobytes()), Answer)


def _receive_image(
    helper: subprocess.Popen[bytes], head: PixelsHead, path: Path, limits: ReadingLimits, deadline: float
) -> Image:
    known: dict[str, Any] = asdict(head)
    dtype, shape, padded = (known.pop(name) for name in ("dtype", "shape", "padded"))
    size = math.prod(shape)
    if min(shape) <= 0 or size > limits.megapixels * 1e6:
        raise ValueError("not a shape that is allowed")
    pixels = _receive(helper, size * np.dtype(dtype).itemsize, deadline).view(dtype).reshape(shape)
    if padded:
        packed = _receive(helper, (size + 7) // 8, deadline)
        known["padding"] = np.unpackbits(packed, count=size).view(np.bool_).reshape(shape)
    return Image(pixels, path=path, **known)


def _build_nonsense(path: Path) -> ImageError:
    return build_refusal(show_path(path), "the process that reads it gave no proper answer; damaged?", "CRASH")


def show_path(path: Path) -> str:
    """Return a path for a message: on one line and of bearable length, whatever its name holds."""
    return show_text(str(path))


def show_text(text: str) -> str:
    """Return what somebody has written, a name or an identifier, in the same way."""
    text = _show(text)
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-150:]}"


def _show(text: str) -> str:
    """Escape line breaks, other control characters and bytes that are no text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
