"""What runs inside the processes that `unary.clinic.writers` starts: one image's results written per request.

A request, on standard input, is a pickle of a `Request` with its arrays apart: their number and the sizes of all (eight
bytes each, big-endian), the pickle, the arrays. The answer, on standard output, is a line of JSON,
and before the first request an empty line. Both ends are unary's own.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from unary.errors import Reason, explain_unexpected


@dataclass(frozen=True)
class Request:
    """What is to be done, and what messages call the image."""

    name: str
    do: Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """What became of a request: nothing to say, or why there are no results; ``errno`` of what the disk said."""

    error: str | None = None
    reason: Reason | None = None
    errno: int | None = None


def serve() -> None:
    """Be the process: write until standard input closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print, patient data perhaps included
    answers.write(b"\n")
    answers.flush()
    for request in iter(lambda: _receive(sys.stdin.buffer), None):
        answers.write(json.dumps(asdict(_answer(request))).encode("ascii") + b"\n")
        answers.flush()


def _answer(request: Request) -> Outcome:
    try:
        request.do()
    except Exception as error:
        found = explain_unexpected(error, request.name)
        return Outcome(str(found), found.reason, error.errno if isinstance(error, OSError) else None)
    return Outcome()


def pack_request(request: Request) -> Iterator[Any]:
    """Yield the parts of a request, each bytes or a view of an array's memory."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(request, protocol=5, buffer_callback=buffers.append)
    arrays = [buffer.raw() for buffer in buffers]
    yield struct.pack(f">{2 + len(arrays)}Q", len(arrays), len(text), *(array.nbytes for array in arrays))
    yield text
    yield from arrays


def _receive(stream: BinaryIO) -> Request | None:
    """The next request; None when the other end has closed, be it within one."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    count = struct.unpack(">Q", head)[0] + 1
    sizes = stream.read(8 * count)
    if len(sizes) < 8 * count:
        return None
    parts = [bytearray(size) for size in struct.unpack(f">{count}Q", sizes)]
    if any(stream.readinto(part) < len(part) for part in parts):  # type: ignore[attr-defined]
        return None
    request: Request = pickle.loads(parts[0], buffers=parts[1:])
    return request
