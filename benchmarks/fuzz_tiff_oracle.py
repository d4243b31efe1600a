"""A second, strict reader of TIFF for `fuzz.py`, after TIFF 6.0; shares no code with unary, tifffile or Pillow.

It knows strips and tiles, both byte orders, BigTIFF, integers of 1 to 32 bits, floats, no compression, LZW, PackBits,
deflate and LZMA, and the predictors. Whatever breaks a rule is a `ValueError`: a segment that does not decode to
exactly the pixels that it stands for, more than one page, a tag twice. Slow, and of no use outside this benchmark.
"""

from __future__ import annotations

import lzma
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from fuzz_common import Grey
from numpy.typing import NDArray

TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q"}
NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 8, 32946, 32773, 34925, 50000
RELEVANT = (
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 32997, 32998,
)  # fmt: skip
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class _Layout:
    """How samples lie in a segment."""

    order: str
    bits: int
    form: int
    channels: int
    compression: int
    predictor: int
    fill_order: int


def read_strictly(content: bytes) -> Grey:
    """Return the grey values as stored, whatever the orientation; larger is brighter.

    Raises
    ------
    ValueError
        If the file breaks a rule that this reader knows, or is in colour or partly transparent.
    """
    try:
        order, tags = read_tags(content)
        return _read(content, order, tags)
    except (IndexError, KeyError, struct.error, zlib.error, lzma.LZMAError, OverflowError, MemoryError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read_tags(content: bytes) -> tuple[str, dict[int, list[Any]]]:
    """Return the byte order and the values of each tag of the only page that says something of its pixels."""
    order = {b"II": "<", b"MM": ">"}[content[:2]]
    (version,) = struct.unpack_from(order + "H", content, 2)
    big = version == 43
    if (big and content[4:8] != struct.pack(order + "HH", 8, 0)) or version not in (42, 43):
        raise ValueError("no TIFF")
    word, entry, counter = ("Q", 20, "Q") if big else ("I", 12, "H")
    (place,) = struct.unpack_from(order + word, content, 8 if big else 4)
    (count,) = struct.unpack_from(order + counter, content, place)
    place += struct.calcsize(counter)
    if count > 200:
        raise ValueError("too many tags")
    tags: dict[int, list[Any]] = {}
    for start in range(place, place + entry * count, entry):
        tag, kind, number = struct.unpack_from(f"{order}HH{word}", content, start)
        if tag not in RELEVANT:
            continue
        if tag in tags:
            raise ValueError(f"tag {tag} twice")
        if kind not in TYPES:
            raise ValueError(f"tag {tag} of type {kind}")
        size = struct.calcsize("=" + TYPES[kind]) * number
        room = struct.calcsize("=" + word)
        value_place = start + entry - room
        if size > room:
            (value_place,) = struct.unpack_from(order + word, content, value_place)
        raw = content[value_place : value_place + size]
        if len(raw) != size:
            raise ValueError(f"tag {tag} lies outside the file")
        if TYPES[kind] not in "BHIbhiQ":
            raise ValueError(f"tag {tag} is no whole number")
        tags[tag] = list(struct.unpack(f"{order}{TYPES[kind] * number}", raw))
    (following,) = struct.unpack_from(order + word, content, place + entry * count)
    if following:
        raise ValueError("a second page")
    return order, tags


def _read(content: bytes, order: str, tags: dict[int, list[Any]]) -> Grey:
    def one(tag: int, default: int | None = None) -> int:
        values = tags.get(tag, [default])
        if len(values) != 1 or not isinstance(values[0], int):
            raise ValueError(f"tag {tag} is not one number")
        return values[0]

    cols, rows, channels = one(256), one(257), one(277, 1)
    bits, forms = (set(tags.get(tag, [1])) for tag in (258, 339))
    photometric, planar = one(262), one(284, 1)
    if len(bits) != 1 or len(forms) != 1 or len(tags.get(258, [1])) not in (1, channels):
        raise ValueError("channels of different kinds")
    if not (0 < rows * cols <= 1_000_000 and 1 <= channels <= 4 and planar in (1, 2)):
        raise ValueError("a header that makes no sense")
    if {one(32997, 1), one(32998, 1)} != {1}:
        raise ValueError("a volume")
    [bit], [form] = bits, forms
    layout = _Layout(order, bit, form, channels if planar == 1 else 1, one(259, 1), one(317, 1), one(266, 1))
    _check_layout(layout)
    tiled = 322 in tags
    if tiled == (273 in tags):
        raise ValueError("neither strips nor tiles, or both")
    offsets, counts = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    height, width = (one(323), one(322)) if tiled else (min(one(278, 2**32 - 1), rows), cols)
    if min(height, width) <= 0 or max(height, width) > 4096:
        raise ValueError("segments without pixels")
    planes = channels if planar == 2 else 1
    down, across = math.ceil(rows / height), math.ceil(cols / width)
    if not len(offsets) == len(counts) == down * across * planes:
        raise ValueError("another number of segments")
    whole = np.zeros((planes, down * height, across * width, layout.channels), _dtype(layout))
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        plane, place = divmod(number, down * across)
        top, left = place // across * height, place % across * width
        needed = height if tiled else min(height, rows - top)
        raw = content[offset : offset + count]
        if len(raw) != count:
            raise ValueError("a segment lies outside the file")
        whole[plane, top : top + needed, left : left + width] = _decode(raw, needed, width, layout)
    samples = np.moveaxis(whole[:, :rows, :cols], 0, 2).reshape(rows, cols, channels)
    return _take_grey(samples, layout, photometric, tags)


def _dtype(layout: _Layout) -> Any:
    return np.float64 if layout.form == 3 else np.int64


def _check_layout(layout: _Layout) -> None:
    sizes = {1: range(1, 33), 2: (8, 16, 32), 3: (16, 32, 64), 4: range(1, 33)}
    if layout.bits not in sizes.get(layout.form, ()) or layout.fill_order not in (1, 2):
        raise ValueError("samples that are not known here")
    predicted = layout.predictor != 1
    fitting = {1: True, 2: layout.form != 3 and layout.bits in (8, 16, 32), 3: layout.form == 3}
    if not fitting.get(layout.predictor, False) or (predicted and layout.compression in (NONE, PACKBITS)):
        raise ValueError("a predictor that does not fit")


def _decode(raw: bytes, rows: int, cols: int, layout: _Layout) -> NDArray[Any]:
    """One segment, shape (rows, cols, channels)."""
    if layout.fill_order == 2:
        raw = raw.translate(_REVERSED)
    length = math.ceil(cols * layout.channels * layout.bits / 8)
    size = rows * length
    if layout.compression == NONE:
        data = raw
    elif layout.compression == LZW:
        data = decode_lzw(raw, size)
    elif layout.compression in (DEFLATE, OLD_DEFLATE):
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(raw, size + 1)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("a deflated segment that does not end where it should")
    elif layout.compression == LZMA:
        one = lzma.LZMADecompressor()
        data = one.decompress(raw, size + 1)
        if not one.eof or one.unused_data:
            raise ValueError("an LZMA segment that does not end where it should")
    elif layout.compression == ZSTD:
        data = _decode_zstd(raw)
    elif layout.compression == PACKBITS:
        data = _decode_packbits(raw, size)
    else:
        raise ValueError("a compression that is not known here")
    if len(data) != size:
        raise ValueError("a segment with more or fewer pixels than it stands for")
    lines = np.frombuffer(data, np.uint8).reshape(rows, length)
    return _unpack(lines, rows, cols, layout)


def _unpack(lines: NDArray[np.uint8], rows: int, cols: int, layout: _Layout) -> NDArray[Any]:
    shape = (rows, cols, layout.channels)
    if layout.predictor == 3:
        step, size = layout.channels, layout.bits // 8
        parts = lines.reshape(rows, -1, step).astype(np.int64).cumsum(axis=1).astype(np.uint8).reshape(rows, size, -1)
        return np.ascontiguousarray(np.moveaxis(parts, 1, 2)).view(f">f{size}").reshape(shape)
    if layout.bits in (8, 16, 32, 64):
        kind = {1: "u", 2: "i", 3: "f", 4: "u"}[layout.form]
        samples = np.ascontiguousarray(lines).view(f"{layout.order}{kind}{layout.bits // 8}").reshape(shape)
    else:
        count = cols * layout.channels
        bits = np.unpackbits(lines, axis=1)[:, : count * layout.bits].reshape(rows, count, layout.bits)
        samples = (bits.astype(np.int64) @ (1 << np.arange(layout.bits - 1, -1, -1))).reshape(shape)
    if layout.predictor == 2:
        native = samples.astype(samples.dtype.newbyteorder("="))
        samples = native.cumsum(axis=1, dtype=native.dtype)
    return samples


def decode_lzw(raw: bytes, size: int) -> bytes:
    """Codes of 9 to 12 bits, highest bit first; from a clear code to the end of information."""
    text = int.from_bytes(b"\1" + raw, "big")
    bits = bin(text)[3:]
    place, width, before = 0, 9, b""
    table: list[bytes] = []
    found = bytearray()
    while True:
        code = int(bits[place : place + width], 2) if place + width <= len(bits) else -1
        place += width
        if code == 256:
            table, width, before = [bytes([byte]) for byte in range(256)] + [b"", b""], 9, b""
            continue
        if code == 257:
            break
        if code < 0 or not table or code > len(table) or (code == len(table) and not before) or len(found) > size:
            raise ValueError("codes that make no sense, or no end")
        word = table[code] if code < len(table) else before + before[:1]
        found += word
        if before:
            table.append(before + word[:1])
        before = word
        width = min(max((len(table) + 1).bit_length(), 9), 12)
    return bytes(found)


def _decode_zstd(raw: bytes) -> bytes:
    """One frame with its size and without checksum, of plain and repeated blocks (RFC 8878): what is written here."""
    if raw[:5] != b"\x28\xb5\x2f\xfd\xa0":
        raise ValueError("no frame of this kind")
    found, place, last = bytearray(), 9, 0
    while not last:
        head = int.from_bytes(raw[place : place + 3], "little")
        last, kind, size = head & 1, head >> 1 & 3, head >> 3
        if kind > 1 or len(raw) < place + 3 + (1 if kind else size):
            raise ValueError("blocks of another kind, or no end")
        found += raw[place + 3 : place + 4] * size if kind else raw[place + 3 : place + 3 + size]
        place += 3 + (1 if kind else size)
    if place != len(raw) or len(found) != int.from_bytes(raw[5:9], "little"):
        raise ValueError("a frame of another size")
    return bytes(found)


def _decode_packbits(raw: bytes, size: int) -> bytes:
    found, place = bytearray(), 0
    while place < len(raw):
        code = raw[place]
        if code < 128:
            part = raw[place + 1 : place + 2 + code]
            if len(part) != code + 1:
                raise ValueError("a run leaves its segment")
            found += part
            place += 2 + code
        elif code > 128:
            found += bytes([raw[place + 1]]) * (257 - code)
            place += 2
        else:
            place += 1
    return bytes(found)


def _take_grey(samples: NDArray[Any], layout: _Layout, photometric: int, tags: dict[int, list[Any]]) -> Grey:
    whole = layout.form in (1, 4)
    top = {1: 2**layout.bits - 1, 4: 2**layout.bits - 1, 2: 2 ** (layout.bits - 1) - 1}.get(layout.form)
    colours = {0: 1, 1: 1, 2: 3, 3: 1}.get(photometric)
    if colours is None:
        raise ValueError("another colour space")
    if samples.shape[2] not in (colours, colours + 1):
        raise ValueError("channels that do not fit the colour space")
    if samples.shape[2] > colours:
        if not (samples[..., -1] == (1.0 if top is None else top)).all():
            raise ValueError("partly transparent")
        samples = samples[..., :-1]
    if photometric == 3:
        table = np.array(tags[320], np.int64)
        if not whole or len(table) != 3 * 2**layout.bits:
            raise ValueError("a palette that does not fit")
        samples, top = table.reshape(3, -1).T[samples[..., 0]], 255
        factors = [one for one in (257, 256) if not (samples % one).any() and samples.max() < 256 * one]
        if not factors:
            raise ValueError("a palette of more than 8 bits")
        samples = samples // factors[0]
    if (samples != samples[..., :1]).any():
        raise ValueError("in colour")
    grey = samples[..., 0].astype(np.float64)
    if layout.form == 3:
        with np.errstate(over="ignore"):
            grey = grey.astype(np.float32).astype(np.float64)
    if not np.isfinite(grey).all():
        raise ValueError("not finite")
    if photometric == 0:
        if not whole or top is None:
            raise ValueError("white is zero, and which value is black is not said")
        grey = top - grey
    return Grey(grey, None if top is None else float(top))
