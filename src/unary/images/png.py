"""PNG (ISO/IEC 15948): the stored samples of every colour type and depth.

What a file says about display - gamma, colour profile, significant bits, background - is not applied. The decoder gets
the size and the compressed data alone, so that it cannot apply it either.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.images.checks import build_refusal, check_size
from unary.images.samples import Samples, build_several, build_transparent, describe_orientation, find_orientation

MAGIC = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GREY_ALPHA: (8, 16), _RGBA: (8, 16)}
# Of Adam7: first row and column, and their steps.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


@dataclass(frozen=True)
class _Header:
    rows: int
    cols: int
    depth: int
    kind: int
    interlaced: bool


def read_png_shape(path: Path) -> tuple[int, int]:
    """Read rows and columns from the header."""
    with path.open("rb") as file:
        header = _read_header(file.read(33), path)
    return header.rows, header.cols


def read_png(path: Path) -> Samples:
    """Read the one picture of a PNG file; every checksum must hold, and the data be as long as the header says."""
    content = path.read_bytes()
    header = _read_header(content[:33], path)
    chunks, end = _read_chunks(content)
    if "IDAT" not in chunks:
        raise build_refusal(path, "not readable as PNG: it holds no pixels", "CORRUPT_PIXELS")
    if "fdAT" in chunks or chunks.get("acTL", b"\0\0\0\1")[:4] != b"\0\0\0\1":
        raise build_several(path, "it holds several pictures (an animated PNG)")
    notes = _describe_rest(content[end:], path)
    if "eXIf" in chunks:
        notes += describe_orientation(find_orientation(chunks["eXIf"]))
    values = _decode(header, chunks["IDAT"])
    if header.kind == _PALETTE:
        palette = chunks.get("PLTE", b"")
        if len(palette) % 3 or len(palette) > 3 * 2**header.depth:
            raise ValueError(f"{len(palette)} bytes are no palette for {header.depth} bits")
        values = _apply_palette(values, palette, chunks.get("tRNS", b""))
    elif "tRNS" in chunks:
        clear = struct.unpack(f">{values.shape[2]}H", chunks["tRNS"])
        if (values == np.array(clear)).all(axis=2).any():
            raise build_transparent(path)
    colours = 1 if header.kind in (_GREY, _GREY_ALPHA) else 3
    return Samples(values, colours, 255 if header.kind == _PALETTE else 2**header.depth - 1, notes)


def _read_header(head: bytes, path: Path) -> _Header:
    if len(head) < 33 or head[12:16] != b"IHDR" or zlib.crc32(head[12:29]) != int.from_bytes(head[29:33], "big"):
        raise build_refusal(path, "not readable as PNG: its header (IHDR) is damaged or truncated", "NOT_READABLE")
    cols, rows, depth, kind, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", head, 16)
    check_size(rows, cols, path)
    if depth not in _DEPTHS.get(kind, ()) or compression or filtering or interlace > 1:
        cause = (
            f"its header declares colour type {kind} of {depth} bits, compression {compression}, filter {filtering} "
            f"and interlace {interlace}, which is no PNG; damaged?"
        )
        raise build_refusal(path, cause, "CORRUPT_PIXELS")
    return _Header(rows, cols, depth, kind, bool(interlace))


def _read_chunks(content: bytes) -> tuple[dict[str, bytes], int]:
    """Return the content of the chunks up to the end of the picture, by their types, and where that is."""
    found: dict[str, list[bytes]] = {}
    place, last = len(MAGIC), ""
    while "IEND" not in found:
        length, kind = struct.unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, place + 8 + length)
        name = kind.decode("ascii")
        if checksum != zlib.crc32(data, zlib.crc32(kind)):
            raise ValueError(f"the checksum of its part {name!r} is wrong")
        if name[0].isupper() and name not in ("IHDR", "PLTE", "IDAT", "IEND"):
            raise ValueError(f"its part {name!r} is needed and is not known")
        if name in found and name in ("IHDR", "PLTE", "tRNS"):
            raise ValueError(f"its part {name!r} is there twice")
        if name == "IDAT" and name in found and last != name:
            raise ValueError("its pixels are divided by other parts")
        found.setdefault(name, []).append(data)
        place, last = place + 12 + length, name
    return {name: b"".join(parts) for name, parts in found.items()}, place


def _describe_rest(rest: bytes, path: Path) -> tuple[str, ...]:
    if MAGIC in rest:
        raise build_several(path, "it holds several pictures, one behind the other")
    return (f"{len(rest)} bytes after the end of the picture are left out",) if rest else ()


def _decode(header: _Header, data: bytes) -> NDArray[Any]:
    """Return the samples, shape (rows, cols, channels); of a palette, the indices."""
    import imagecodecs

    needed = _count_bytes(header)  # of more, the decoder leaves some out in silence
    try:
        found = len(imagecodecs.deflate_decode(data, out=needed + 1))
    except imagecodecs.DeflateError as error:
        raise ValueError("its pixels are damaged, or not as many as its header declares") from error
    if found != needed:
        raise ValueError("its pixels are not as many as its header declares")
    kind = _GREY if header.kind == _PALETTE else header.kind
    head = struct.pack(">IIBBBBB", header.cols, header.rows, header.depth, kind, 0, 0, header.interlaced)
    bare = MAGIC + b"".join(_pack(*part) for part in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b"")))
    values: NDArray[Any] = imagecodecs.png_decode(bare).reshape(header.rows, header.cols, _CHANNELS[kind])
    # Fewer bits come back stretched to eight.
    return values // np.uint8(255 // (2**header.depth - 1)) if header.depth < 8 else values


def _pack(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _count_bytes(header: _Header) -> int:
    """How many bytes the pixels have before compression: each line of each pass has one more, for its filter."""
    passes = _PASSES if header.interlaced else ((0, 0, 1, 1),)
    bits, total = header.depth * _CHANNELS[header.kind], 0
    for row, col, down, right in passes:
        rows, cols = -(-(header.rows - row) // down), -(-(header.cols - col) // right)
        total += rows * (1 + -(-cols * bits // 8)) if rows > 0 and cols > 0 else 0
    return total


def _apply_palette(indices: NDArray[Any], palette: bytes, opacities: bytes) -> NDArray[Any]:
    """Return the 8-bit colours of a palette, with their opacity where one of those used is not full."""
    count = len(palette) // 3
    if indices.max() >= count:
        raise ValueError(f"a pixel has the colour {int(indices.max())} of a palette of {count}")
    table = np.full((count, 4), 255, np.uint8)
    table[:, :3] = np.frombuffer(palette, np.uint8, count * 3).reshape(count, 3)
    table[: len(opacities), 3] = np.frombuffer(opacities, np.uint8)[:count]
    used = np.bincount(indices.reshape(-1), minlength=count) > 0
    channels = 3 if (table[used, 3] == 255).all() else 4
    return table[indices[..., 0], :channels]
