"""The parts of a multipart/related body (RFC 2387), found while it comes in, each no larger than is allowed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

_MOST_HEAD = 16_384  # bytes, of the lines in front of a part


class MultipartError(Exception):
    """The body is not what its Content-Type says, or a part is too large (``too_large``)."""

    def __init__(self, words: str, *, too_large: bool = False) -> None:
        super().__init__(words)
        self.too_large = too_large


@dataclass(frozen=True)
class Part:
    """One part: its Content-Type in lower case, and what it holds."""

    kind: str
    content: bytearray


def read_boundary(content_type: str) -> bytes:
    """Return the boundary that a Content-Type of multipart/related names."""
    kind, *parameters = (part.strip() for part in content_type.split(";"))
    if kind.lower() != "multipart/related":
        raise MultipartError("Content-Type must be multipart/related (PS3.18 section 10.5)")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "boundary":
            text = value.strip().strip('"')
            if re.fullmatch(r"[ -~]{1,70}", text):
                return text.encode()
    raise MultipartError("Content-Type names no boundary")


async def read_parts(stream: AsyncIterator[bytes], boundary: bytes, most: int) -> AsyncIterator[Part]:
    """Yield each part as soon as it is whole; at most one of them, and one piece of the stream, is held at a time.

    A name that the sender gives a file is not looked at.
    """
    mark = b"\r\n--" + boundary
    buffer, searched, inside, ended = bytearray(b"\r\n"), 0, False, False
    async for piece in stream:
        buffer += piece
        while not ended:
            place = buffer.find(mark, searched)
            if place < 0:
                searched = max(0, len(buffer) - len(mark))
                if len(buffer) > most + _MOST_HEAD + len(mark):
                    raise MultipartError("a part is larger than is allowed", too_large=True)
                break
            after = bytes(buffer[place + len(mark) : place + len(mark) + 2])
            if len(after) < 2:
                searched = place
                break
            if inside:
                yield _split(buffer[:place], most)
            del buffer[: place + len(mark)]
            inside, searched, ended = True, 0, after == b"--"
        if ended:
            buffer.clear()  # an epilogue says nothing
    if not ended:
        raise MultipartError("the body breaks off before its last boundary")


def _split(part: bytearray, most: int) -> Part:
    """A part without what stands between the boundary and the end of its head."""
    end = part.find(b"\r\n\r\n", 0, _MOST_HEAD)
    if end < 0:
        raise MultipartError("a part has no head, or one that is too long")
    head = bytes(part[:end]).decode("latin-1")
    found = re.search(r"^content-type:\s*([^\r\n]*)", head, re.IGNORECASE | re.MULTILINE)
    content = part[end + 4 :]
    if len(content) > most:
        raise MultipartError("a part is larger than is allowed", too_large=True)
    return Part(found.group(1).strip().lower() if found else "", content)
