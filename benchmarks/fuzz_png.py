"""PNG files for `fuzz.py`: an encoder of every colour type, depth, filter and interlacing, and damage.

Nothing here is shared with unary or Pillow: chunks by `struct`, checksums and deflate by `zlib`, filters by hand. They
are judged by `fuzz_png_oracle.py`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from fuzz_common import BYTES, Case, Grey, Rng, draw_name, draw_picture, flip, judge_image, pick
from fuzz_png_oracle import CHANNELS, DEPTHS, PASSES, SIGNATURE, read_strictly
from numpy.typing import NDArray

from unary.images.isolation import IsolatedReader


@dataclass(frozen=True)
class Plan:
    """What is encoded, and how.

    Attributes
    ----------
    samples
        Shape (rows, cols, channels), as stored.
    palette
        Shape (n, 3), for colour type 3.
    transparency
        Content of tRNS, or None.
    right
        What a reader of grey images has to find, None where the picture is in colour or partly transparent.
    """

    colour_type: int
    depth: int
    interlaced: bool
    samples: NDArray[np.int64]
    palette: NDArray[np.int64] | None
    transparency: bytes | None
    right: Grey | None

    @property
    def name(self) -> str:
        """What the table calls it."""
        colours = {0: "grey", 2: "RGB", 3: "palette", 4: "grey + alpha", 6: "RGB + alpha"}
        return f"{colours[self.colour_type]} {self.depth} bits{' interlaced' if self.interlaced else ''}"


class PngKind:
    """Colour types in turn; a fifth of the cases are undamaged."""

    def __init__(self, reader: IsolatedReader) -> None:
        self.reader = reader

    def build_case(self, seed: int, number: int) -> Case:
        """Return the case of one number."""
        rng = np.random.default_rng((seed, number))
        plan = draw_plan(rng, tuple(DEPTHS)[number % len(DEPTHS)])
        chunks = encode(plan, rng)
        names = list(STRUCTURAL) + list(BYTES)
        name = "another encoding" if rng.random() < 0.2 else pick(rng, names)
        content = join(chunks)
        if name in STRUCTURAL:
            content = STRUCTURAL[name](chunks, plan, rng)
        if name in BYTES or (name in STRUCTURAL and rng.random() < 0.1):
            content = BYTES.get(name, pick(rng, tuple(BYTES.values())))(content, rng) or b"\0"
        file_name = "fuzzed.png" if name == "another encoding" else draw_name(rng, ".png")
        valid = name == "another encoding" and plan.right is not None and plan.colour_type != 3
        return Case(plan.name, name, {file_name: content}, plan.right, valid and plan.transparency is None)

    def judge(self, case: Case, folder: Path) -> tuple[str, str]:
        """As `judge_image`."""
        return judge_image(self.reader, case, folder, read_strictly)


def draw_plan(rng: Rng, colour_type: int) -> Plan:
    """A grey picture, or now and then one that is nearly grey or partly transparent."""
    depth = int(pick(rng, DEPTHS[colour_type]))
    top = 2**depth - 1
    grey = draw_picture(rng, 0, top)
    right: Grey | None = Grey(grey.astype(np.float64), float(top))
    palette, transparency = None, None
    if colour_type == 3:
        palette = np.repeat(rng.permutation(256)[: top + 1, None], 3, axis=1).astype(np.int64)
        right = Grey(palette[grey][..., 0].astype(np.float64), 255.0)
        if rng.random() < 0.2:
            palette[int(rng.integers(top + 1)), int(rng.integers(3))] ^= 1
            used = palette[grey]
            right = None if (used != used[..., :1]).any() else Grey(used[..., 0].astype(np.float64), 255.0)
    channels = [grey] if colour_type in (0, 3, 4) else [grey, grey.copy(), grey.copy()]
    if len(channels) == 3 and rng.random() < 0.2:
        channels[int(rng.integers(3))][int(rng.integers(grey.shape[0])), int(rng.integers(grey.shape[1]))] ^= 1
        right = None
    if colour_type in (4, 6):
        alpha = np.full_like(grey, top)
        if rng.random() < 0.2:
            alpha[int(rng.integers(grey.shape[0])), int(rng.integers(grey.shape[1]))] -= int(rng.integers(1, top + 1))
            right = None
        channels.append(alpha)
    elif rng.random() < 0.15:
        transparency, hidden = _draw_transparency(rng, colour_type, np.stack(channels, axis=2), top)
        right = None if hidden else right
    interlaced = bool(rng.random() < 0.3)
    return Plan(colour_type, depth, interlaced, np.stack(channels, axis=2), palette, transparency, right)


def _draw_transparency(rng: Rng, colour_type: int, samples: NDArray[np.int64], top: int) -> tuple[bytes, bool]:
    """Content of tRNS, and whether it hides a pixel."""
    if colour_type == 3:
        alphas = np.where(rng.random(int(rng.integers(1, top + 2))) < 0.5, 255, rng.integers(0, 256))
        whole = np.full(top + 1, 255)
        whole[: len(alphas)] = alphas
        return bytes(alphas.astype(np.uint8)), bool((whole[samples[..., 0]] != 255).any())
    colour = rng.integers(0, top + 1, size=samples.shape[2])
    return struct.pack(f">{len(colour)}H", *colour.tolist()), bool((samples == colour).all(axis=2).any())


def encode(plan: Plan, rng: Rng) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a valid file, in order, with ancillary ones between them."""
    rows, cols = plan.samples.shape[:2]
    header = struct.pack(">IIBBBBB", cols, rows, plan.depth, plan.colour_type, 0, 0, int(plan.interlaced))
    raw = build_raw(plan.samples, plan, rng)
    packer = zlib.compressobj(int(rng.integers(0, 10)), zlib.DEFLATED, 15, 8, int(rng.integers(0, 4)))
    stream = packer.compress(raw) + packer.flush()
    cuts = sorted(rng.integers(0, len(stream) + 1, size=int(pick(rng, (0, 0, 1, 3, 8)))).tolist())
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    chunks = [(b"IHDR", header), *_draw_ancillary(rng, ("sBIT", "gAMA", "cHRM", "sRGB", "iCCP"), plan)]
    if plan.palette is not None:
        chunks.append((b"PLTE", plan.palette.astype(np.uint8).tobytes()))
    if plan.transparency is not None:
        chunks.append((b"tRNS", plan.transparency))
    chunks += _draw_ancillary(rng, ("pHYs", "tEXt", "zTXt", "iTXt", "tIME", "bKGD", "eXIf", "prIv", "sPLT"), plan)
    chunks += [(b"IDAT", piece) for piece in pieces]
    return [*chunks, *_draw_ancillary(rng, ("tEXt", "zTXt", "tIME", "prIv"), plan), (b"IEND", b"")]


def _draw_ancillary(rng: Rng, names: tuple[str, ...], plan: Plan) -> list[tuple[bytes, bytes]]:
    if rng.random() < 0.4:
        return []
    background = {0: b"\0\1", 2: b"\0\1\0\1\0\1", 3: b"\0", 4: b"\0\1", 6: b"\0\1\0\1\0\1"}[plan.colour_type]
    bits = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[plan.colour_type]
    contents = {
        "gAMA": struct.pack(">I", int(pick(rng, (45455, 100000)))),
        "cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
        "sRGB": b"\0",
        "iCCP": b"made up\0\0" + zlib.compress(bytes(128)),
        "pHYs": struct.pack(">IIB", 10000, 10000, 1),
        "tEXt": b"Comment\0" + b"a film, P2 5 5 255 " * int(rng.integers(1, 4)),
        "zTXt": b"Comment\0\0" + zlib.compress(b"a film " * 9),
        "iTXt": b"Comment\0\0\0en\0\0" + "Aufnahme, Größe".encode(),
        "tIME": struct.pack(">HBBBBB", 2020, 1, 2, 3, 4, 5),
        "bKGD": background,
        "sBIT": bytes([min(plan.depth, 8)] * bits),
        "eXIf": b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0",  # turned by a quarter; not applied
        "prIv": rng.bytes(int(rng.integers(0, 40))),
        "sPLT": b"few\0\x08" + bytes(6),
    }
    chosen = rng.permutation(np.array(names))[: int(rng.integers(1, 3))].tolist()
    if "sRGB" in chosen and "iCCP" in chosen:
        chosen.remove("iCCP")
    return [(name.encode(), contents[name]) for name in chosen]


def build_raw(samples: NDArray[np.int64], plan: Plan, rng: Rng) -> bytes:
    """The filtered bytes of all passes, before deflate."""
    passes = PASSES if plan.interlaced else ((0, 0, 1, 1),)
    parts = (samples[r::down, c::right] for r, c, down, right in passes)
    return b"".join(_filter(_pack(part, plan.depth), plan, rng) for part in parts if 0 not in part.shape)


def _pack(samples: NDArray[np.int64], depth: int) -> NDArray[np.uint8]:
    """Bytes of each row, shape (rows, n)."""
    rows = len(samples)
    if depth == 16:
        return np.ascontiguousarray(samples.astype(">u2")).reshape(rows, -1).view(np.uint8)
    flat = samples.reshape(rows, -1)
    bits = (flat[..., None] >> np.arange(depth - 1, -1, -1) & 1).reshape(rows, -1)
    return np.packbits(bits.astype(np.uint8), axis=1)


def _filter(lines: NDArray[np.uint8], plan: Plan, rng: Rng) -> bytes:
    step = max(CHANNELS[plan.colour_type] * plan.depth // 8, 1)
    fixed = int(rng.integers(0, 7))
    found, above = bytearray(), np.zeros(lines.shape[1], np.int64)
    for line in lines.astype(np.int64):
        kind = fixed if fixed < 5 else int(rng.integers(5))
        left = np.concatenate([np.zeros(step, np.int64), line])[: len(line)]
        corner = np.concatenate([np.zeros(step, np.int64), above])[: len(line)]
        guess = (0 * line, left, above, (left + above) // 2, _paeth(left, above, corner))[kind]
        found += bytes([kind]) + ((line - guess) % 256).astype(np.uint8).tobytes()
        above = line
    return bytes(found)


def _paeth(left: NDArray[np.int64], above: NDArray[np.int64], corner: NDArray[np.int64]) -> NDArray[np.int64]:
    sum_ = left + above - corner
    to_left, to_above, to_corner = abs(sum_ - left), abs(sum_ - above), abs(sum_ - corner)
    nearest = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)


def join(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The file of these chunks, with checksums."""
    return SIGNATURE + b"".join(write_chunk(kind, content) for kind, content in chunks)


def write_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# Damage.

Chunks = list[tuple[bytes, bytes]]
_INTS = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    15,
    16,
    17,
    24,
    31,
    32,
    33,
    64,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def _edit_header(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    place = int(rng.integers(7))
    near = fields[place] + int(pick(rng, (-2, -1, 1, 2)))
    fields[place] = (near if rng.random() < 0.5 else int(pick(rng, _INTS))) % (2**32 if place < 2 else 256)
    return join([(b"IHDR", struct.pack(">IIBBBBB", *fields)), *chunks[1:]])


def _edit_size(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    cols, rows = struct.unpack(">II", chunks[0][1][:8])
    size = pick(
        rng, ((rows, cols), (cols, rows - 1), (cols, rows + 1), (cols * 2, rows // 2), (cols - 1, rows), (1, rows))
    )
    return join([(b"IHDR", struct.pack(">II", *size) + chunks[0][1][8:]), *chunks[1:]])


def _edit_length(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    parts = [write_chunk(*chunk) for chunk in chunks]
    place = int(rng.integers(len(parts)))
    length = len(chunks[place][1]) + int(pick(rng, (-4, -1, 1, 4))) if rng.random() < 0.5 else int(pick(rng, _INTS))
    parts[place] = struct.pack(">I", length % 2**32) + parts[place][4:]
    return SIGNATURE + b"".join(parts)


def _edit_checksum(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    parts = [write_chunk(*chunk) for chunk in chunks]
    place = int(rng.integers(len(parts)))
    parts[place] = flip(parts[place], rng, len(parts[place]) - 4, most=2)
    return SIGNATURE + b"".join(parts)


def _edit_chunk(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    """Another content of any chunk, or another name, with its checksum made anew."""
    place = int(rng.integers(len(chunks)))
    kind, data = chunks[place]
    if rng.random() < 0.3:
        kind = pick(
            rng, (b"IDAT", b"PLTE", b"tRNS", b"IEND", b"tEXt", b"acTL", b"IHDR", b"CgBI", b"iDOT", rng.bytes(4))
        )
    else:
        data = pick(rng, list(BYTES.values()))(data, rng) if data else rng.bytes(int(rng.integers(1, 9)))
    return join([*chunks[:place], (kind, data), *chunks[place + 1 :]])


def _move_chunks(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    found, place, other = list(chunks), *(int(one) for one in rng.integers(len(chunks), size=2))
    pick(
        rng,
        (
            lambda: found.pop(place),
            lambda: found.insert(other, found[place]),
            lambda: found.insert(other, found.pop(place)),
        ),
    )()
    return join(found)


@lru_cache
def _build_bomb() -> bytes:
    return zlib.compress(bytes(30_000_000))


def _insert_chunk(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    bomb = _build_bomb()
    chunk = pick(
        rng,
        (
            (b"PLTE", rng.bytes(3 * int(rng.integers(1, 300)))),
            (b"tRNS", rng.bytes(int(rng.integers(0, 7)))),
            (b"IDAT", rng.bytes(int(rng.integers(0, 30)))),
            (b"IEND", b""),
            (b"acTL", struct.pack(">II", int(rng.integers(0, 4)), 0)),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, 4, 4, 0, 0, 1, 1, 0, 0)),
            (b"fdAT", rng.bytes(20)),
            (b"iCCP", b"bomb\0\0" + bomb),
            (b"zTXt", b"bomb\0\0" + bomb),
            (b"iTXt", b"bomb\0\1\0\0\0" + bomb),
            (b"sBIT", bytes([3] * int(rng.integers(1, 5)))),
            (b"gAMA", rng.bytes(int(rng.integers(0, 6)))),
            (b"pHYs", rng.bytes(int(rng.integers(0, 12)))),
            (b"eXIf", rng.bytes(int(rng.integers(0, 40)))),
            (b"ABCD", rng.bytes(4)),
            (b"aBCD", rng.bytes(4)),
        ),
    )
    place = int(rng.integers(0, len(chunks) + 1))
    return join([*chunks[:place], chunk, *chunks[place:]])


def _edit_pixels(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    """The filtered bytes changed, cut or lengthened, and compressed anew."""
    raw = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    rows, _cols = plan.samples.shape[:2]
    line = max(len(raw) // rows, 1)
    raw = pick(
        rng,
        (
            lambda: flip(raw, rng),
            lambda: raw[: rng.integers(len(raw))],
            lambda: raw[:-1],
            lambda: raw + bytes(int(pick(rng, (1, line, 10_000, 20_000_000)))),
            lambda: raw[:0],
            lambda: bytes([int(rng.integers(5, 256))]) + raw[1:],
            lambda: raw[line:] + raw[:line],
        ),
    )()
    return join(_replace_pixels(chunks, zlib.compress(raw)))


def _edit_stream(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    """The deflated stream changed, under checksums of the chunks that are made anew."""
    stream = b"".join(data for kind, data in chunks if kind == b"IDAT")
    stream = pick(
        rng,
        (
            lambda: flip(stream, rng, most=2),
            lambda: flip(stream, rng, len(stream) - 4, most=2),
            lambda: flip(stream, rng, 0, 2, most=2),
            lambda: stream[: -int(rng.integers(1, 8))],
            lambda: stream + rng.bytes(int(rng.integers(1, 8))),
            lambda: stream[2:-4],
            lambda: stream + stream,
        ),
    )()
    return join(_replace_pixels(chunks, stream))


def _replace_pixels(chunks: Chunks, stream: bytes) -> Chunks:
    place = next(number for number, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return [*others[:place], (b"IDAT", stream), *others[place:]]


def _edit_transparency(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    """tRNS of the colour of a pixel, or of none."""
    pixel = plan.samples[int(rng.integers(len(plan.samples))), 0]
    data = bytes([0]) if plan.colour_type == 3 else struct.pack(f">{len(pixel)}H", *pixel.tolist())
    place = next(number for number, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    return join([*chunks[:place], (b"tRNS", data), *chunks[place:]])


def _swap_depth(chunks: Chunks, plan: Plan, rng: Rng) -> bytes:
    """Read the same samples under another header: twice the columns of half the depth, for example."""
    other = replace(plan, depth=int(pick(rng, (1, 2, 4, 8, 16))), colour_type=int(pick(rng, (0, 2, 3, 4, 6))))
    factor = plan.depth * CHANNELS[plan.colour_type] / (other.depth * CHANNELS[other.colour_type])
    rows, cols = plan.samples.shape[:2]
    header = struct.pack(
        ">IIBBBBB", max(int(cols * factor), 1), rows, other.depth, other.colour_type, 0, 0, int(plan.interlaced)
    )
    return join([(b"IHDR", header), *chunks[1:]])


STRUCTURAL: dict[str, Callable[[Chunks, Plan, Rng], bytes]] = {
    "edit the header": _edit_header,
    "edit the size": _edit_size,
    "another depth": _swap_depth,
    "edit a chunk's length": _edit_length,
    "edit a checksum": _edit_checksum,
    "edit a chunk": _edit_chunk,
    "move chunks": _move_chunks,
    "insert a chunk": _insert_chunk,
    "edit the pixels": _edit_pixels,
    "edit the stream": _edit_stream,
    "edit transparency": _edit_transparency,
}
