"""An encoder of what scanners and programs write as TIFF; shares no code with tifffile or Pillow."""

from __future__ import annotations

import lzma
import math
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fuzz_common import Grey, Rng, draw_picture, pick
from fuzz_tiff_oracle import DEFLATE, LZMA, LZW, NONE, OLD_DEFLATE, PACKBITS, TYPES, ZSTD
from numpy.typing import NDArray

_SHORT, _LONG, _TEXT, _RATIONAL, _UNDEFINED, _LONG8 = 3, 4, 2, 5, 7, 16
SHORT, LONG, TEXT, RATIONAL, UNDEFINED, LONG8 = 3, 4, 2, 5, 7, 16
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
COMPRESSIONS = {
    NONE: "none", LZW: "LZW", DEFLATE: "deflate", OLD_DEFLATE: "old deflate", PACKBITS: "PackBits", LZMA: "LZMA",
    ZSTD: "Zstandard",
}  # fmt: skip
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
OFFSETS, COUNTS = (273, 324), (279, 325)


@dataclass(frozen=True)
class Plan:
    """What is encoded, and how; ``samples`` has the shape (rows, cols, channels), as stored."""

    samples: NDArray[Any]
    bits: int
    form: int
    photometric: int
    compression: int
    predictor: int
    planar: bool
    segment: tuple[int, int]
    tiled: bool
    order: str
    big: bool
    orientation: int
    fill_order: int
    right: Grey | None
    palette: NDArray[np.int64] | None = None

    @property
    def name(self) -> str:
        """What the table calls it."""
        kind = {_UNSIGNED: "uint", _SIGNED: "int", _FLOAT: "float"}[self.form] + str(self.bits)
        colour = {0: " white is 0", 1: "", 2: " RGB", 3: " palette"}[self.photometric]
        return f"{COMPRESSIONS[self.compression]} {kind}{colour}"

    @property
    def is_ordinary(self) -> bool:
        """Whether it must be read: 8 or 16 bits of grey, in a compression that everybody writes."""
        plain = self.form == _UNSIGNED and self.bits in (8, 16) and self.photometric in (0, 1)
        return plain and self.samples.shape[2] == 1 and self.compression not in (LZMA, ZSTD) and self.fill_order == 1


@dataclass
class Draft:
    """The parts of a file before they get their places: tags with type and values, and segments."""

    order: str
    big: bool
    tags: list[tuple[int, int, list[Any]]]
    segments: list[bytes]
    version: int = 42
    following: int = 0
    counts: dict[int, int] = field(default_factory=dict)  # numbers of values that are false
    offsets: dict[int, int] = field(default_factory=dict)  # of segments, that are false


def draw_plan(rng: Rng, compression: int) -> Plan:
    """Half of the pictures are ordinary radiographs of 8 or 16 bits, the others anything."""
    form, bits = (_UNSIGNED, int(pick(rng, (8, 16)))) if rng.random() < 0.5 else _draw_type(rng)
    photometric = int(pick(rng, (1, 1, 1, 0)))
    low, top = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if form == _SIGNED else (0, 2**bits - 1)
    grey: NDArray[Any] = draw_picture(rng, low, min(top, 2**32), largest=70)
    if form == _FLOAT:
        grey = grey / 2.0**bits * 100 - 20
        grey = grey.astype(f"f{bits // 8}").astype(np.float64)
    value = grey.astype(np.float32).astype(np.float64) if form == _FLOAT else grey.astype(np.float64)
    maximum = None if form == _FLOAT else float(top)
    right: Grey | None = Grey(top - value if photometric == 0 else value, maximum)
    if photometric == 0 and form != _UNSIGNED:
        right = None  # which value is black is not said
    channels, palette = [grey], None
    if rng.random() < 0.15 and form == _UNSIGNED and bits <= 16:
        photometric, channels = 2, [grey, grey.copy(), grey.copy()]
        right = Grey(value, maximum)
        if rng.random() < 0.3:
            channels[int(rng.integers(3))][0, 0] ^= 1
            right = None
    elif rng.random() < 0.08 and form == _UNSIGNED and bits <= 8:
        photometric, shades = 3, rng.integers(0, 256, size=(1, 2**bits))
        palette = np.repeat(shades * int(pick(rng, (256, 257))), 3, axis=0)
        right = Grey(shades[0][grey].astype(np.float64), 255.0)
    if rng.random() < 0.12 and form == _UNSIGNED and photometric != 3:
        channels.append(np.full_like(grey, top))
        if rng.random() < 0.3:
            channels[-1][0, 0], right = 0, None
    samples = np.stack(channels, axis=2)
    predictable = compression not in (NONE, PACKBITS)
    options = (1, 3) if form == _FLOAT else (1, 2) if bits in (8, 16, 32) else (1,)
    tiled = bool(rng.random() < 0.3)
    segment = (16 * int(rng.integers(1, 4)), 16 * int(rng.integers(1, 4)))
    return Plan(
        samples=samples,
        bits=bits,
        form=form,
        photometric=photometric,
        compression=compression,
        predictor=int(pick(rng, options)) if predictable else 1,
        planar=bool(rng.random() < 0.4),
        segment=segment if tiled else (int(pick(rng, (1, 2, 5, 8, 16, len(grey), 10**6))), grey.shape[1]),
        tiled=tiled,
        order=pick(rng, ("<", ">")),
        big=bool(rng.random() < 0.15),
        orientation=int(pick(rng, (0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8))),
        fill_order=2 if bits <= 8 and compression in (NONE, LZW, PACKBITS) and rng.random() < 0.1 else 1,
        right=right,
        palette=palette,
    )


def _draw_type(rng: Rng) -> tuple[int, int]:
    form = int(pick(rng, (_UNSIGNED, _UNSIGNED, _SIGNED, _FLOAT)))
    bits = {_UNSIGNED: (1, 2, 4, 6, 10, 12, 14, 16, 32), _SIGNED: (8, 16, 32), _FLOAT: (16, 32, 64)}[form]
    return form, int(pick(rng, bits))


def build_draft(plan: Plan, rng: Rng) -> Draft:
    """The tags and segments of a valid file."""
    rows, cols, channels = plan.samples.shape
    height, width = plan.segment
    height = height if plan.tiled else min(height, rows)
    planes = [plan.samples[..., one : one + 1] for one in range(channels)] if plan.planar else [plan.samples]
    segments = []
    for plane in planes:
        for top in range(0, rows, height):
            for left in range(0, cols, width):
                part = plane[top : top + height, left : left + width]
                if plan.tiled:
                    missing = ((0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0))
                    part = np.pad(part, missing, mode=pick(rng, ("edge", "constant")))
                segments.append(compress(_pack(part, plan), plan))
    tags: list[tuple[int, int, list[Any]]] = [
        (256, int(pick(rng, (SHORT, LONG))), [cols]),
        (257, int(pick(rng, (SHORT, LONG))), [rows]),
        (258, SHORT, [plan.bits] * channels),
        (259, SHORT, [plan.compression]),
        (262, SHORT, [plan.photometric]),
        (277, SHORT, [channels]),
        (284, SHORT, [2 if plan.planar else 1]),
    ]
    if plan.tiled:
        tags += [(322, SHORT, [width]), (323, SHORT, [height])]
    elif plan.segment[0] < 10**6 or rng.random() < 0.5:
        tags.append((278, LONG, [min(plan.segment[0], 2**32 - 1)]))
    tags += [(OFFSETS[plan.tiled], LONG8 if plan.big else LONG, [0] * len(segments))]
    tags += [(COUNTS[plan.tiled], LONG, [len(segment) for segment in segments])]
    if plan.form != _UNSIGNED or rng.random() < 0.5:
        tags.append((339, SHORT, [plan.form] * channels))
    if plan.predictor != 1 or rng.random() < 0.2:
        tags.append((317, SHORT, [plan.predictor]))
    if plan.orientation:
        tags.append((274, SHORT, [plan.orientation]))
    if plan.fill_order != 1 or rng.random() < 0.1:
        tags.append((266, SHORT, [plan.fill_order]))
    if channels in (2, 4):
        tags.append((338, SHORT, [int(pick(rng, (0, 1, 2)))]))
    if plan.palette is not None:
        tags.append((320, SHORT, plan.palette.ravel().tolist()))
    return Draft(plan.order, plan.big, sorted(tags + _draw_extras(rng)), segments)


def _draw_extras(rng: Rng) -> list[tuple[int, int, list[Any]]]:
    extras: list[tuple[int, int, list[Any]]] = [
        (254, LONG, [0]),
        (270, TEXT, [b"a film, made up\0"]),
        (282, RATIONAL, [300, 1]),
        (283, RATIONAL, [300, 1]),
        (296, SHORT, [2]),
        (305, TEXT, [b"fuzz.py\0"]),
        (306, TEXT, [b"2020:01:02 03:04:05\0"]),
        (280, SHORT, [0]),
        (34675, UNDEFINED, [bytes(128)]),
        (65000, UNDEFINED, [rng.bytes(30)]),
    ]
    return [extra for extra in extras if rng.random() < 0.3]


def _pack(part: NDArray[Any], plan: Plan) -> bytes:
    """The bytes of a segment before compression, predictor included."""
    rows, _cols, channels = part.shape
    if plan.predictor == 3:
        size = plan.bits // 8
        bytes_ = part.astype(f">f{size}").reshape(rows, -1).view(np.uint8).reshape(rows, -1, size)
        lines = np.moveaxis(bytes_, 2, 1).reshape(rows, -1, channels).astype(np.int64)
        return np.diff(lines, axis=1, prepend=0).astype(np.uint8).tobytes()
    if plan.bits in (8, 16, 32, 64):
        kind = f"{ {_UNSIGNED: 'u', _SIGNED: 'i', _FLOAT: 'f'}[plan.form] }{plan.bits // 8}"
        values = part.astype(kind)
        if plan.predictor == 2:
            values = np.concatenate([values[:, :1], values[:, 1:] - values[:, :-1]], axis=1)
        return values.astype(plan.order + kind).tobytes()
    flat = part.reshape(rows, -1)
    bits = (flat[..., None] >> np.arange(plan.bits - 1, -1, -1) & 1).reshape(rows, -1)
    return np.packbits(bits.astype(np.uint8), axis=1).tobytes()


def compress(data: bytes, plan: Plan) -> bytes:
    """The bytes of a segment as stored."""
    if plan.compression == LZW:
        data = encode_lzw(data)
    elif plan.compression in (DEFLATE, OLD_DEFLATE):
        data = zlib.compress(data, 6)
    elif plan.compression == PACKBITS:
        rows = plan.segment[0] if plan.tiled else max(1, min(plan.segment[0], len(plan.samples)))
        length = max(len(data) // rows, 1) if plan.tiled else _line_length(plan)
        data = b"".join(encode_packbits(data[start : start + length]) for start in range(0, len(data), length))
    elif plan.compression == LZMA:
        data = lzma.compress(data)
    elif plan.compression == ZSTD:
        data = encode_zstd(data)
    return data.translate(_REVERSED) if plan.fill_order == 2 else data


def _line_length(plan: Plan) -> int:
    channels = 1 if plan.planar else plan.samples.shape[2]
    return math.ceil(plan.samples.shape[1] * channels * plan.bits / 8)


def encode_lzw(data: bytes) -> bytes:
    """After TIFF 6.0, section 13: codes grow one entry early, a clear code before the table is full."""
    codes: list[str] = [f"{256:09b}"]
    table = {bytes([byte]): byte for byte in range(256)}
    following, width, word = 258, 9, b""
    for byte in data:
        longer = word + bytes([byte])
        if longer in table:
            word = longer
            continue
        codes.append(f"{table[word]:0{width}b}")
        table[longer] = following
        following, word = following + 1, bytes([byte])
        if following == 4095:
            codes.append(f"{256:0{width}b}")
            table = {bytes([one]): one for one in range(256)}
            following, width = 258, 9
        else:
            width = following.bit_length()
    if word:
        codes.append(f"{table[word]:0{width}b}")
        width = min(max((following + 1).bit_length(), 9), 12)
    codes.append(f"{257:0{width}b}")
    text = "".join(codes)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def encode_zstd(data: bytes) -> bytes:
    """A frame of plain blocks, and of repeated bytes where a block holds one byte alone."""
    frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(data))
    for start in range(0, len(data), 500):
        block, last = data[start : start + 500], start + 500 >= len(data)
        same = len(set(block)) == 1
        frame += struct.pack("<I", int(last) | int(same) << 1 | len(block) << 3)[:3] + (block[:1] if same else block)
    return frame


def encode_packbits(data: bytes) -> bytes:
    """Runs where there are any, else literals of one to five bytes."""
    found, place = bytearray(), 0
    while place < len(data):
        same = place + 1
        while same < len(data) and data[same] == data[place] and same - place < 128:
            same += 1
        if same - place > 2:
            found += bytes([257 - (same - place), data[place]])
            place = same
        else:
            stop = min(place + 1 + place % 5, len(data))
            found += bytes([stop - place - 1]) + data[place:stop]
            place = stop
    return bytes(found)


def lay_out(draft: Draft, rng: Rng) -> bytes:
    """The file: header, tags, values that do not fit beside their tag, segments, in one of two orders."""
    word, entry, counter = ("Q", 20, "Q") if draft.big else ("I", 12, "H")
    room, order = struct.calcsize("=" + word), draft.order
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + "H", 43 if draft.big and draft.version == 42 else draft.version
    )
    head += struct.pack(order + "HH", 8, 0) if draft.big else b""
    start = len(head) + room
    before = rng.random() < 0.5
    body, places = bytearray(), []
    table_size = struct.calcsize(counter) + entry * len(draft.tags) + room
    base = start + (0 if before else table_size)
    for segment in draft.segments:
        body += bytes((base + len(body)) % 2)
        places.append(base + len(body))
        body += segment
    table_place = start + len(body) if before else start
    extra_base, extra = (table_place + table_size) if before else base + len(body), bytearray()
    table = struct.pack(order + counter, len(draft.tags))
    for tag, kind, given in draft.tags:
        values = given
        if tag in OFFSETS and len(given) == len(places):
            values = [draft.offsets.get(number, place) for number, place in enumerate(places)]
        raw = pack_values(values, kind, order)
        code = TYPES.get(kind, "B")
        count = draft.counts.get(tag, len(raw) // struct.calcsize("=" + code))
        if len(raw) <= room:
            value = raw.ljust(room, b"\0")
        else:
            extra += bytes((extra_base + len(extra)) % 2)
            value = struct.pack(order + word, extra_base + len(extra))
            extra += raw
        table += struct.pack(f"{order}HH{word}", tag % 65536, kind % 65536, count % 2 ** (8 * room)) + value
    table += struct.pack(order + word, draft.following)
    head += struct.pack(order + word, table_place)
    return head + (bytes(body) + table if before else table + bytes(body)) + bytes(extra)


def pack_values(values: list[Any], kind: int, order: str) -> bytes:
    """The bytes of a tag's values, also of a type that they do not have."""
    code = TYPES.get(kind, "B")
    if values and isinstance(values[0], bytes):
        return b"".join(values)
    size = 8 * struct.calcsize("=" + code[:1])
    if code in "fd":
        return struct.pack(f"{order}{len(values)}{code}", *map(float, values))
    if code == "s":
        return bytes(int(value) % 256 for value in values)
    wrapped = [int(value) % 2**size for value in values]
    return struct.pack(f"{order}{len(values)}{code[:1].upper()}", *wrapped)
