"""What a compressed image says of itself, read before a codec sees it.

Codecs are forgiving: one fills up what a cut stream lacks, another decodes a size of its own. Both would pass for
success. Here the stream's own header must agree with the DICOM header, and the stream must be there to its last marker.
What lies between is entropy-coded and carries no checksum: damage inside it decodes to other pixels, and nobody can
tell.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

Family = Literal["JPEG", "lossless JPEG", "JPEG-LS", "JPEG 2000"]

_START_JPEG, _START_JPEG2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"  # of either family
_FRAMES: dict[Family, set[int]] = {"JPEG": {0xC0, 0xC1}, "lossless JPEG": {0xC3}, "JPEG-LS": {0xF7}}  # T.81, T.87
_SCAN, _TILE = 0xDA, 0x90
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # PS3.5 7.1.2
_UNDEFINED = 2**32 - 1


def find_fault(stream: bytes, family: Family, *, shape: tuple[int, int], bits: int) -> str | None:
    """Return what is wrong with a compressed stream, or None.

    Parameters
    ----------
    stream
        All fragments of one frame, padding at the end included.
    family
        What the transfer syntax says it is; HTJ2K is built as JPEG 2000.
    shape, bits
        Rows and columns, and the bits allocated for a value, as the DICOM header states them.
    """
    content = stream.rstrip(b"\0")
    if content[-3:-1] == _END:  # made even by a byte that should be zero and is not
        content = content[:-1]
    if not content.endswith(_END):
        return "the compressed stream has no end; truncated?"
    try:
        if not content.startswith(_START_JPEG2000 if family == "JPEG 2000" else _START_JPEG):
            return f"the compressed stream is no {family}, which the transfer syntax says it is"
        found = _read_jpeg2000(content) if family == "JPEG 2000" else _read_jpeg(content, _FRAMES[family])
    except (struct.error, IndexError):
        return "the compressed stream is not built as it should be"
    if found[:3] != (*shape, 1) or found[3] > bits:
        return (
            f"the compressed stream holds {found[0]} x {found[1]} pixels of {found[2]} samples of {found[3]} bits, the "
            f"header declares {shape[0]} x {shape[1]} of one in {bits} bits"
        )
    return None


def find_run_fault(stream: bytes, *, pixels: int, planes: int) -> str | None:
    """Return what is wrong with a run-length encoded frame (PS3.5 Annex G), or None.

    Parameters
    ----------
    stream
        All fragments of one frame.
    pixels, planes
        What it must unpack to: so many bytes for each byte of a value.
    """
    if len(stream) < 64:
        return "the run-length encoded pixels have no header; truncated?"
    count, *offsets = struct.unpack("<16I", stream[:64])
    ends = [*offsets[1:planes], len(stream)]
    if count != planes or offsets[0] != 64:
        return f"the run-length encoded pixels have {count} planes, the header declares {planes}"
    for place, end in zip(offsets[:planes], ends, strict=True):
        plane, place, found = stream[place:end], 0, 0
        while found < pixels and place < len(plane):
            code = plane[place]
            if code < 128:
                place, found = place + code + 2, found + code + 1
            elif code > 128:
                place, found = place + 2, found + 257 - code
            else:
                place += 1
        if found != pixels or place > len(plane) or plane[place:].strip(b"\0"):
            return "the run-length encoded pixels are not as many as declared, or damaged"
    return None


def _read_jpeg(content: bytes, markers: set[int]) -> tuple[int, int, int, int]:
    """Rows, columns, samples per pixel and bits of the frame header before the first scan (T.81 B.2.2)."""
    place, found = 2, None
    while True:
        start, marker, length = struct.unpack_from(">BBH", content, place)
        if start != 0xFF or length < 2:
            raise IndexError
        if marker in markers:
            if found is not None:
                raise IndexError
            bits, rows, cols, samples = struct.unpack_from(">BHHB", content, place + 4)
            found = (rows, cols, samples, bits)
        place += 2 + length
        if marker == _SCAN:
            if found is None or content.find(_END, place) < len(content) - 3:  # a second picture behind the first
                raise IndexError
            return found


def _read_jpeg2000(content: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, components and bits (T.800 A.5.1); the tile-parts must follow each other to the end."""
    right, bottom, left, top, *_ = struct.unpack_from(">8I", content, 8)
    components, depth = struct.unpack_from(">HB", content, 40)
    place = 2
    while content[place + 1] != _TILE:
        start, _, length = struct.unpack_from(">BBH", content, place)
        if start != 0xFF or length < 2:
            raise IndexError
        place += 2 + length
    while place != len(content) - 2:
        start, marker, length, _, part = struct.unpack_from(">BBHHI", content, place)
        if (start, marker, length) != (0xFF, _TILE, 10):
            raise IndexError
        place = len(content) - 2 if part == 0 else place + part
        if (part and part < 14) or place > len(content) - 2:
            raise IndexError
    return bottom - top, right - left, components, (depth & 0x7F) + 1


def read_depth(stream: bytes, family: Family) -> tuple[int, bool]:
    """Return the bits of a value in a stream without fault, and whether they are signed, as JPEG 2000 alone can say."""
    if family == "JPEG 2000":
        return (stream[42] & 0x7F) + 1, stream[42] > 0x7F
    return _read_jpeg(stream.rstrip(b"\0"), _FRAMES[family])[3], False


def find_broken_fragment(value: bytes) -> str | None:
    """Return what is wrong with the items that compressed pixels are cut into (PS3.5 A.4), or None."""
    place, items = 0, 0
    while place < len(value):
        if value[place : place + 4] != b"\xfe\xff\x00\xe0" or place + 8 > len(value):
            return "the compressed pixels are not cut into items as they should be"
        place += 8 + int.from_bytes(value[place + 4 : place + 8], "little")
        items += 1
    return None if place == len(value) and items > 1 else "an item of the compressed pixels leaves them; truncated?"


def find_stray(path: Path, end: int, *, explicit: bool, little: bool, encapsulated: bool) -> str | None:
    """Return what is wrong with the rest of a DICOM file after the value of its pixels, or None.

    Bytes that were inserted or lost inside pixels shift the others, and show only by what is left over at the end.
    Further elements may follow the pixels, and zeros those that mark their own end.

    Parameters
    ----------
    end
        Where the value ends; for encapsulated pixels, where their delimiter has to stand.
    explicit, little
        Value representation and byte order of the transfer syntax.
    """
    order = "<" if little else ">"
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if encapsulated:
            file.seek(end)
            if file.read(8) != struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0):
                return "the compressed pixels do not end where they should"
            end += 8
        place, last = end, 0x7FE00010
        while place < size:
            file.seek(place)
            head = file.read(12).ljust(12, b"\0")
            group, number = struct.unpack_from(order + "HH", head)
            if explicit and head[4:6] in _LONG:
                start, (length,) = place + 12, struct.unpack_from(order + "I", head, 8)
            elif explicit:
                start, (length,) = place + 8, struct.unpack_from(order + "H", head, 6)
            else:
                start, (length,) = place + 8, struct.unpack_from(order + "I", head, 4)
            tag, place = group << 16 | number, start + length
            if length == _UNDEFINED and tag > last:
                return None  # a sequence: read by whoever needs it
            if tag <= last or place > size or (explicit and not head[4:6].isupper()):
                file.seek(end)
                if encapsulated and not file.read().strip(b"\0"):
                    return None
                return f"{size - end} bytes after the pixels belong to nothing; changed in transfer?"
            last = tag
    return None
