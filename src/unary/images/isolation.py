"""Reading files that nobody vouches for: in a process of its own, with limits on memory and time.

A damaged or hostile file can make a codec crash, hang or ask for all memory. Here that ends a helper process and
becomes an `ImageError` that names the cause, while the program goes on. The helper knows the readers and no torch; it
stays for the next file, and starts anew after a crash. It is protection against accidents and bombs, not a sandbox
against code that breaks out of a codec.

Nothing that comes back from the helper is unpickled or trusted: types and sizes are checked against the limits. Needs a
POSIX system; the limit on memory needs Linux.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import unary
from unary.errors import REASONS, ImageError, UnaryError
from unary.images.attributes import Attributes
from unary.images.isolation_process import ReadingLimits, Request
from unary.profiles.profile import Headers
from unary.records import Image

_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); from unary.images.isolation_process import serve; serve(sys.argv[2:])"
)
_START_S = 60.0  # for importing the readers on a slow disk
_LONGEST_HEAD = 100_000  # bytes
_WIRE_TYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8")


@dataclass(frozen=True)
class _Helper:
    process: subprocess.Popen[bytes]
    answers: int  # file descriptor


class _HelperGoneError(Exception):
    """The helper has closed its end of the pipe."""


class _NonsenseError(Exception):
    """The helper's answer breaks the rules."""


class IsolatedReader:
    """Reads images in a helper process; use it in a ``with`` block, which ends the helper.

    One file is read at a time; threads that share a reader wait for each other. Starting takes half a second, once.

    Parameters
    ----------
    limits
        Of every single file.

    Examples
    --------
    >>> with IsolatedReader(ReadingLimits(timeout_s=20)) as reader:
    ...     reader.read("missing.dcm")
    Traceback (most recent call last):
    unary.errors.ImageError: missing.dcm: cannot be opened (No such file or directory)
    """

    def __init__(self, limits: ReadingLimits | None = None) -> None:
        self.limits = limits or ReadingLimits()
        self._helper: _Helper | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the helper; reading again starts another.

        From another thread than the one that reads, this ends that reading at once, with an `ImageError`.
        """
        helper = self._helper
        if helper is not None:
            helper.process.kill()
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
            If the helper cannot be started at all.
        """
        path = Path(path)
        with self._lock:
            head, pixels, padding = self._ask(path, None)
        if pixels is None:
            raise _build_nonsense(path)
        return _build_image(head, pixels, padding, path)

    def read_attributes(self, path: Path | str, headers: Headers) -> Attributes:
        """Return what `unary.images.attributes.read_attributes` returns.

        Raises
        ------
        ImageError, UnaryError
            As `read`.
        """
        path = Path(path)
        with self._lock:
            head, _, _ = self._ask(path, headers)
        try:
            return msgspec.convert(head, Attributes)
        except msgspec.ValidationError as error:
            raise _build_nonsense(path) from error

    def _ask(
        self, path: Path, headers: Headers | None
    ) -> tuple[dict[str, Any], NDArray[Any] | None, NDArray[np.bool_] | None]:
        """Return the helper's answer, with pixels where no headers are asked for.

        Unless it came whole, the helper has ended with the exception.
        """
        _check_file(path, self.limits)
        whole = False
        try:
            deadline = self._deliver(Request(os.path.abspath(path), headers))
            assert self._helper is not None
            head = _receive_head(self._helper, deadline)
            pixels, padding = _receive_pixels(self._helper, head, self.limits, deadline)
            whole = True
        except TimeoutError as error:
            raise ImageError(
                f"{show_path(path)}: reading it took longer than {self.limits.timeout_s:g} s and was given up; "
                "damaged, or is this computer very busy?",
                reason="TIMEOUT",
            ) from error
        except _HelperGoneError as error:
            raise ImageError(
                f"{show_path(path)}: its decoder crashed ({_describe_end(self._helper)}); damaged, or is more memory "
                f"needed than {self.limits.memory_mib} MiB?",
                reason="CRASH",
            ) from error
        except _NonsenseError as error:
            raise _build_nonsense(path) from error
        finally:
            if not whole:  # Ctrl-C included
                self._drop()
        if "error" in head:
            reason = head.get("reason")
            raise ImageError(
                f"{show_path(path)}: {_show(str(head['error']))}",
                reason=reason if reason in REASONS else "NOT_READABLE",
            )
        return head, pixels, padding

    def _deliver(self, request: Request) -> float:
        """Hand over the request and return the deadline of its answer.

        A helper that ended before it took the request, killed while idle for example, says nothing about the file: then
        another one is asked.
        """
        line = json.dumps(asdict(request)).encode("ascii") + b"\n"
        for attempt in (1, 2):
            if self._helper is None:
                self._helper = _start(self.limits)
            deadline = time.monotonic() + self.limits.timeout_s
            try:
                assert self._helper.process.stdin is not None
                self._helper.process.stdin.write(line)
                _receive(self._helper, memoryview(bytearray(1)), deadline)
                return deadline
            except (BrokenPipeError, _HelperGoneError) as error:
                self._drop()
                if attempt == 2:
                    raise _HelperGoneError from error
        raise AssertionError("not reached")


def _check_file(path: Path, limits: ReadingLimits) -> None:
    """Look at the file from outside; opening a pipe or a device could already hang."""
    try:
        status = path.stat()
    except OSError as error:
        raise ImageError(f"{show_path(path)}: cannot be opened ({error.strerror})", reason="NOT_READABLE") from error
    except ValueError as error:
        raise ImageError(f"{show_path(path)}: no file can have this name", reason="NOT_READABLE") from error
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{show_path(path)}: a folder, pipe or device, not a file", reason="NOT_READABLE")
    if status.st_size > limits.file_bytes:
        raise ImageError(
            f"{show_path(path)}: the file has {status.st_size / 2**20:.0f} MiB; {limits.file_mib} are allowed",
            reason="TOO_LARGE",
        )


def _start(limits: ReadingLimits) -> _Helper:
    """Start a helper and wait until it has imported the readers."""
    root = str(Path(unary.__file__).parents[1])
    answers, other_end = os.pipe()
    try:
        process = subprocess.Popen(
            # -P: a folder with hostile modules in it may be the current one.
            [sys.executable, "-P", "-W", "ignore", "-c", _BOOT, root, str(other_end), json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # codecs print, patient data perhaps included
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(other_end,),
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the helper
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except BaseException:
        os.close(answers)
        raise
    finally:
        os.close(other_end)
    helper = _Helper(process, answers)
    try:
        _receive(helper, memoryview(bytearray(1)), time.monotonic() + _START_S)
    except (TimeoutError, _HelperGoneError) as error:
        end = _describe_end(helper)
        _end(helper)
        raise UnaryError(f"the process that reads images does not start ({end}); is unary installed whole?") from error
    except BaseException:
        _end(helper)
        raise
    return helper


def _end(helper: _Helper) -> None:
    helper.process.kill()
    helper.process.wait()
    assert helper.process.stdin is not None
    helper.process.stdin.close()
    os.close(helper.answers)


def _describe_end(helper: _Helper | None) -> str:
    if helper is None:
        return "it could not be restarted"
    try:
        status = helper.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "no answer"
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _receive(helper: _Helper, buffer: memoryview, deadline: float) -> None:
    """Fill the buffer."""
    poll = select.poll()
    poll.register(helper.answers, select.POLLIN)
    done = 0
    while done < len(buffer):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            raise TimeoutError
        count = os.readv(helper.answers, [buffer[done:]])
        if count == 0:
            raise _HelperGoneError
        done += count


def _receive_head(helper: _Helper, deadline: float) -> dict[str, Any]:
    size = bytearray(4)
    _receive(helper, memoryview(size), deadline)
    (length,) = struct.unpack(">I", size)
    if length > _LONGEST_HEAD:
        raise _NonsenseError
    content = bytearray(length)
    _receive(helper, memoryview(content), deadline)
    try:
        head = json.loads(content)
    except ValueError as error:
        raise _NonsenseError from error
    if not isinstance(head, dict):
        raise _NonsenseError
    return head


def _receive_pixels(
    helper: _Helper, head: dict[str, Any], limits: ReadingLimits, deadline: float
) -> tuple[NDArray[Any] | None, NDArray[np.bool_] | None]:
    """Receive straight into the arrays, if the answer announces any."""
    if "dtype" not in head:
        return None, None
    dtype, shape = head["dtype"], head.get("shape")
    if dtype not in _WIRE_TYPES or not isinstance(shape, list) or len(shape) != 2:
        raise _NonsenseError
    if not all(type(side) is int and side > 0 for side in shape) or math.prod(shape) > limits.megapixels * 1e6:
        raise _NonsenseError
    pixels = np.empty(shape, dtype)
    _receive(helper, pixels.reshape(-1).view(np.uint8).data, deadline)
    if head.get("padding") is not True:
        return pixels, None
    packed = np.empty((pixels.size + 7) // 8, np.uint8)
    _receive(helper, packed.data, deadline)
    return pixels, np.unpackbits(packed, count=pixels.size).view(np.bool_).reshape(pixels.shape)


def _build_image(head: dict[str, Any], pixels: NDArray[Any], padding: NDArray[np.bool_] | None, path: Path) -> Image:
    try:
        low, high = head["value_range"]
        spacing = head["spacing_mm"]
        return Image(
            pixels,
            (float(low), float(high)),
            path,
            padding=padding,
            spacing_mm=None if spacing is None else (float(spacing[0]), float(spacing[1])),
            laterality=_take_text(head, "laterality"),
            view=_take_text(head, "view"),
            intent=_take_text(head, "intent"),
            manufacturer=_take_text(head, "manufacturer"),
            model_name=_take_text(head, "model_name"),
            instance_uid=_take_text(head, "instance_uid"),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _build_nonsense(path) from error


def _take_text(head: dict[str, Any], name: str) -> str | None:
    text = head[name]
    if not (text is None or isinstance(text, str)):
        raise TypeError(name)
    return text


def _build_nonsense(path: Path) -> ImageError:
    return ImageError(f"{show_path(path)}: the process that reads it gave no proper answer; damaged?", reason="CRASH")


def show_path(path: Path) -> str:
    """Return a path for a message: on one line and of bearable length, whatever its name holds."""
    text = _show(str(path))
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-150:]}"


def _show(text: str) -> str:
    """Escape line breaks, other control characters and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
