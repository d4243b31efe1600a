"""A second, strict reader of PNG for `fuzz.py`, after the third edition of its specification.

It shares no code with unary or Pillow, and refuses what the file itself betrays: a wrong checksum, a stream of another
length than the header asks for, chunks out of order. Slow, and of no use outside this benchmark.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from fuzz_common import Grey
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_KNOWN = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


def read_strictly(content: bytes) -> Grey:
    """Return the grey values that are stored.

    Raises
    ------
    ValueError
        If the file breaks a rule, is in colour or partly transparent.
    """
    try:
        return _read(content)
    except (IndexError, struct.error, zlib.error, OverflowError, MemoryError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _read(content: bytes) -> Grey:
    chunks = walk(content)
    kinds = [kind for kind, _ in chunks]
    if kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or kinds.count(b"IHDR") != 1 or kinds.count(b"IEND") != 1:
        raise ValueError("no header in front, no end behind, or two of one")
    cols, rows, depth, colour_type, *methods = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth not in DEPTHS.get(colour_type, ()) or methods[:2] != [0, 0] or methods[2] > 1 or 0 in (rows, cols):
        raise ValueError("a header that makes no sense")
    if rows * cols > 1_000_000:
        raise ValueError("larger than any sample")
    unknown = [kind for kind in kinds if not kind[0] & 32 and kind not in _KNOWN]
    places = [place for place, kind in enumerate(kinds) if kind == b"IDAT"]
    if unknown or not places or places[-1] - places[0] != len(places) - 1:
        raise ValueError("unknown critical chunks, or pixels in two places")
    tables = {name: [data for kind, data in chunks[: places[0]] if kind == name] for name in (b"PLTE", b"tRNS")}
    if any(len(found) > 1 for found in tables.values()) or any(kind == b"PLTE" for kind in kinds[places[0] :]):
        raise ValueError("two tables, or one behind the pixels")
    if b"acTL" in kinds:
        raise ValueError("an animation")
    unpacker = zlib.decompressobj()
    raw = unpacker.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"), 50_000_000)
    if not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
        raise ValueError("the pixels' stream does not end where it should")
    samples = _unfilter_all(raw, rows, cols, depth, colour_type, bool(methods[2]))
    return _take_grey(samples, depth, colour_type, tables[b"PLTE"], tables[b"tRNS"])


def walk(content: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and contents of the chunks; every checksum must hold. What follows the end is no part of it."""
    if content[:8] != SIGNATURE:
        raise ValueError("no PNG")
    chunks, place = [], 8
    while not chunks or chunks[-1][0] != b"IEND":
        (length,) = struct.unpack_from(">I", content, place)
        kind, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, place + 8 + length)
        if checksum != zlib.crc32(kind + data):
            raise ValueError(f"a wrong checksum of {kind!r}")
        chunks.append((kind, data))
        place += 12 + length
    return chunks


def _unfilter_all(
    raw: bytes, rows: int, cols: int, depth: int, colour_type: int, interlaced: bool
) -> NDArray[np.int64]:
    channels = CHANNELS[colour_type]
    samples, place = np.zeros((rows, cols, channels), np.int64), 0
    for r, c, down, right in PASSES if interlaced else ((0, 0, 1, 1),):
        target = samples[r::down, c::right]
        if 0 in target.shape:
            continue
        length = (target.shape[1] * channels * depth + 7) // 8
        size = target.shape[0] * (length + 1)
        if place + size > len(raw):
            raise ValueError("fewer pixels than declared")
        lines = _unfilter(raw[place : place + size], length, max(channels * depth // 8, 1))
        target[...] = _unpack(lines, target.shape[1] * channels, depth).reshape(target.shape)
        place += size
    if place != len(raw):
        raise ValueError("more pixels than declared")
    return samples


def _unfilter(raw: bytes, length: int, step: int) -> NDArray[np.uint8]:
    lines, above = [], [0] * length
    for start in range(0, len(raw), length + 1):
        kind, line = raw[start], list(raw[start + 1 : start + 1 + length])
        if kind > 4:
            raise ValueError("no such filter")
        for place in range(length):
            left = line[place - step] if place >= step else 0
            corner = above[place - step] if place >= step else 0
            if kind == 4:
                sum_ = left + above[place] - corner
                guess = min((left, above[place], corner), key=lambda one: abs(sum_ - one))
            else:
                guess = (0, left, above[place], (left + above[place]) // 2)[kind]
            line[place] = (line[place] + guess) & 255
        lines.append(line)
        above = line
    return np.array(lines, np.uint8)


def _unpack(lines: NDArray[np.uint8], count: int, depth: int) -> NDArray[np.int64]:
    if depth == 16:
        return np.ascontiguousarray(lines).view(">u2").astype(np.int64)
    bits = np.unpackbits(lines, axis=1)[:, : count * depth].reshape(len(lines), count, depth).astype(np.int64)
    return bits @ (1 << np.arange(depth - 1, -1, -1))


def _take_grey(
    samples: NDArray[np.int64], depth: int, colour_type: int, palettes: list[bytes], transparencies: list[bytes]
) -> Grey:
    opaque = np.ones(samples.shape[:2], bool)
    if colour_type in (4, 6):
        opaque = samples[..., -1] == 2**depth - 1
        samples = samples[..., :-1]
        if transparencies:
            raise ValueError("transparency twice")
    elif colour_type == 3:
        [palette] = palettes or [b""]
        if not palette or len(palette) % 3 or len(palette) > 3 * 2**depth or samples.max() >= len(palette) // 3:
            raise ValueError("a palette that does not fit")
        if transparencies:
            alphas = np.full(256, 255)
            alphas[: len(transparencies[0])] = list(transparencies[0])
            opaque = alphas[samples[..., 0]] == 255
        samples, depth = np.frombuffer(palette, np.uint8).reshape(-1, 3).astype(np.int64)[samples[..., 0]], 8
    elif transparencies:
        colour = np.frombuffer(transparencies[0], ">u2").astype(np.int64)
        if len(colour) != samples.shape[2]:
            raise ValueError("transparency of another colour type")
        opaque = (samples != colour).any(axis=2)
    if not opaque.all() or (samples != samples[..., :1]).any():
        raise ValueError("partly transparent, or in colour")
    return Grey(samples[..., 0].astype(np.float64), float(2**depth - 1))
