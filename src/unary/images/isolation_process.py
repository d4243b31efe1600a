"""What runs inside the process that `unary.images.isolation` starts: limits on itself, then one answer per request.

A request is one JSON line on standard input. The answer is one byte as soon as the request has arrived, then a JSON
object with its length in front (four bytes, big-endian), then the pixels as they lie in memory, little-endian, and the
padding, a bit per pixel.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from unary.errors import ImageError
from unary.images.attributes import read_attributes
from unary.images.reading import read_image, read_shape
from unary.profiles.profile import Headers
from unary.records import Image

_GRACE_S = 5.0  # after which a helper whose parent has vanished ends by itself
_DAMAGE = (b"Corrupt JPEG data", b"Premature end of JPEG file")
_TEXTS = ("laterality", "view", "intent", "manufacturer", "model_name", "instance_uid")


@dataclass(frozen=True)
class ReadingLimits:
    """What reading one file may cost.

    Attributes
    ----------
    timeout_s
        From asking to having the pixels.
    memory_mib
        Address space of the helper, on top of what it has after starting.
    file_mib
        Size of the file.
    megapixels
        Rows times columns, in millions, before anything is decoded. A large radiograph has 30.
    """

    timeout_s: float = 60.0
    memory_mib: int = 4096
    file_mib: int = 1024
    megapixels: float = 100.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def file_bytes(self) -> int:
        """``file_mib`` in bytes."""
        return self.file_mib * 2**20


@dataclass(frozen=True)
class Request:
    """What is asked of the helper.

    Attributes
    ----------
    path
        Absolute.
    headers
        What to look for in the header, if only that is asked for; None asks for the pixels.
    """

    path: str
    headers: Headers | None


def serve(arguments: list[str]) -> None:
    """Be the helper: answer requests from standard input until it closes.

    Parameters
    ----------
    arguments
        The file descriptor to answer on, and the limits as JSON.
    """
    answers, limits = int(arguments[0]), ReadingLimits(**json.loads(arguments[1]))
    _limit_process(limits)
    complaints = _listen()
    os.write(answers, b"+")
    for line in sys.stdin.buffer:
        os.write(answers, b"+")
        # Ends the helper, stuck inside a codec or not, when the parent that should do so is no more.
        signal.setitimer(signal.ITIMER_REAL, limits.timeout_s + _GRACE_S)
        request = msgspec.convert(json.loads(line), Request)
        for part in _answer(request, limits, complaints):
            _write(answers, memoryview(part))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _listen() -> int:
    """Turn standard error into a pipe and return its reading end.

    The codec for lossless JPEG tells of a damaged stream by a line on standard error and in no other way, and returns
    an image that is filled up with anything. A full pipe drops what comes after.
    """
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    os.dup2(writing, 2)
    os.close(writing)
    return reading


def _read_complaints(descriptor: int) -> bytes:
    content = b""
    try:
        while part := os.read(descriptor, 65536):
            content += part
    except BlockingIOError:
        pass
    return content


def _limit_process(limits: ReadingLimits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the image
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has nothing to write
    if sys.platform == "linux":
        in_use = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        most = in_use + limits.memory_mib * 2**20
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _answer(request: Request, limits: ReadingLimits, complaints: int) -> list[bytes | memoryview]:
    """Return the parts of one answer. What is no `ImageError` ends the helper, which is an answer too."""
    path = Path(request.path)
    try:
        if request.headers is not None:
            return [_pack(asdict(read_attributes(path, request.headers)))]
        rows, cols = read_shape(path)
        if rows * cols > limits.megapixels * 1e6:
            raise ImageError(
                f"{path}: it declares {rows} x {cols} pixels; {limits.megapixels:g} million are allowed",
                reason="TOO_LARGE",
            )
        _read_complaints(complaints)
        image = read_image(path)
        if any(words in _read_complaints(complaints) for words in _DAMAGE):
            raise ImageError(f"{path}: the compressed pixels are damaged, says their decoder", reason="CORRUPT_PIXELS")
        return _pack_image(image)
    except ImageError as error:
        return [_pack({"error": str(error).removeprefix(f"{path}: "), "reason": error.reason})]
    except MemoryError:
        cause = f"reading it needs more memory than the {limits.memory_mib} MiB that are allowed"
        return [_pack({"error": cause, "reason": "MEMORY_LIMIT"})]


def _pack(head: dict[str, Any]) -> bytes:
    content = json.dumps(head).encode("ascii")
    return struct.pack(">I", len(content)) + content


def _pack_image(image: Image) -> list[bytes | memoryview]:
    pixels = np.ascontiguousarray(image.pixels, image.pixels.dtype.newbyteorder("<"))
    head = {name: getattr(image, name) for name in (*_TEXTS, "value_range", "spacing_mm")}
    head |= {"dtype": pixels.dtype.str, "shape": pixels.shape, "padding": image.padding is not None}
    parts: list[bytes | memoryview] = [_pack(head), pixels.reshape(-1).view(np.uint8).data]
    return parts if image.padding is None else [*parts, np.packbits(image.padding).data]


def _write(descriptor: int, content: memoryview) -> None:
    done = 0
    while done < len(content):
        done += os.write(descriptor, content[done:])
