"""What runs inside the process that `unary.images.isolation` starts: limits on itself, then one answer per request.

A request is one JSON line on standard input. The answer, on standard output, is one byte as soon as the request has
arrived, then a JSON object with its length in front (four bytes, big-endian), then the pixels as they lie in memory,
little-endian, and the padding, a bit per pixel.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import struct
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from unary.errors import ImageError, Reason, explain_unexpected
from unary.images.attributes import Attributes
from unary.images.checks import build_refusal
from unary.images.reading import read_image, read_shape
from unary.profiles.profile import Headers
from unary.records import Image

_GRACE_S = 5.0  # after which a helper whose parent has vanished ends by itself
_DAMAGE = (b"Corrupt JPEG data", b"Premature end of JPEG file")


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


@dataclass(frozen=True)
class Request:
    """What is asked of the helper: the pixels at an absolute path, or only what its header says."""

    path: str
    headers: Headers | None


@dataclass(frozen=True)
class PixelsHead:
    """What is told ahead of pixels; the names that `Image` has too mean the same there."""

    dtype: Literal["|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8"]
    shape: tuple[int, int]
    padded: bool
    value_range: tuple[float, float]
    spacing_mm: tuple[float, float] | None
    laterality: str | None
    view: str | None
    intent: str | None
    manufacturer: str | None
    model_name: str | None
    instance_uid: str | None
    modality: str | None
    units: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """Why the helper refuses the file, or what its header says, or what pixels follow."""

    error: str | None = None
    reason: Reason | None = None
    attributes: Attributes | None = None
    pixels: PixelsHead | None = None


def serve(limits_json: str) -> None:
    """Be the helper: answer requests from standard input until it closes."""
    importlib.import_module("unary.images.headers")  # pydicom, before its memory would count as the first file's
    limits = ReadingLimits(**json.loads(limits_json))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # codecs print, patient data perhaps included
    complaints = _listen()
    _limit_process(limits)
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process lives
    answers.write(b"+")
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(b"+")
        answers.flush()
        # Ends the helper, stuck inside a codec or not, when the parent that should do so is no more.
        faulthandler.dump_traceback_later(limits.timeout_s + _GRACE_S, exit=True, file=nowhere)
        request = msgspec.convert(json.loads(line), Request)
        answers.writelines(_answer(request, limits, complaints))
        answers.flush()
        faulthandler.cancel_dump_traceback_later()


def _listen() -> int:
    """Turn standard error into something that can be read here, and return the descriptor to read it by.

    The codec for lossless JPEG tells of a damaged stream by a line on standard error and in no other way, and returns
    an image that is filled up with anything. A full pipe drops what comes after. Windows has no pipes that do: there it
    is a file.
    """
    if os.name == "nt":
        writing, name = tempfile.mkstemp()
        reading = os.open(name, os.O_RDONLY | getattr(os, "O_TEMPORARY", 0))
    else:
        reading, writing = os.pipe()
        for end in (reading, writing):
            os.set_blocking(end, False)
    os.dup2(writing, 2)
    os.close(writing)
    return reading


def _read_complaints(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2**20)  # more than a pipe holds
    except BlockingIOError:
        return b""


def _limit_process(limits: ReadingLimits) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the image
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has nothing to write
    if sys.platform == "linux":
        in_use = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        most = in_use + limits.memory_mib * 2**20
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _answer(request: Request, limits: ReadingLimits, complaints: int) -> list[bytes | memoryview]:
    """Return the parts of one answer, whatever reading raises."""
    from unary.images.headers import read_attributes

    path = Path(request.path)
    try:
        if request.headers is not None:
            return [_pack(Answer(attributes=read_attributes(path, request.headers)))]
        rows, cols = read_shape(path)
        if rows * cols > limits.megapixels * 1e6:
            cause = f"it declares {rows} x {cols} pixels; {limits.megapixels:g} million are allowed"
            raise build_refusal(path, cause, "TOO_LARGE")
        _read_complaints(complaints)
        image = read_image(path)
        if any(words in _read_complaints(complaints) for words in _DAMAGE):
            raise build_refusal(path, "the compressed pixels are damaged, says their decoder", "CORRUPT_PIXELS")
        return _pack_image(image)
    except ImageError as error:
        return [_pack(Answer(str(error).removeprefix(f"{path}: "), error.reason))]
    except MemoryError:
        cause = f"reading it needs more memory than the {limits.memory_mib} MiB that are allowed"
        return [_pack(Answer(cause, "MEMORY_LIMIT"))]
    except Exception as error:  # of a library, on this file
        found = explain_unexpected(error, str(path))
        return [_pack(Answer(str(found).removeprefix(f"{path}: "), found.reason))]


def _pack(answer: Answer) -> bytes:
    content = json.dumps(asdict(answer)).encode("ascii")
    return struct.pack(">I", len(content)) + content


def _pack_image(image: Image) -> list[bytes | memoryview]:
    pixels = np.ascontiguousarray(image.pixels, image.pixels.dtype.newbyteorder("<"))
    known: dict[str, Any] = {name: getattr(image, name, None) for name in PixelsHead.__annotations__}
    known |= {"dtype": pixels.dtype.str, "shape": pixels.shape, "padded": image.padding is not None}
    parts: list[bytes | memoryview] = [
        _pack(Answer(pixels=PixelsHead(**known))),
        pixels.reshape(-1).view(np.uint8).data,
    ]
    return parts if image.padding is None else [*parts, np.packbits(image.padding).data]
