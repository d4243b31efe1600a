"""Rasters written by hand, byte by byte, so that no library stands on both sides of a comparison."""

import lzma
import struct
import zlib

import numpy as np

CODES = {"B": 1, "H": 3, "I": 4, "Q": 16}


def pack_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def build_png(shape, depth, kind, lines, *, before=(), after=(), interlaced=False, level=6, cuts=1):
    """A PNG of these lines of bytes, each without its filter; further chunks before and after the pixels."""
    raw = b"".join(b"\0" + line for line in lines)
    packed = zlib.compress(raw, level)
    step = -(-len(packed) // cuts)
    header = struct.pack(">IIBBBBB", shape[1], shape[0], depth, kind, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *before]
    chunks += [(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pack_chunk(*chunk) for chunk in [*chunks, *after, (b"IEND", b"")])


def pack_bits(values, bits):
    """Values, shape (rows, n), as rows of bits, the highest first, each row filled up to whole bytes."""
    places = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    return np.packbits(
        ((values[..., None].astype(np.uint32) >> places) & 1).astype(np.uint8).reshape(len(values), -1), axis=1
    )


def pack_lzw(data):
    """LZW without matches: literals and clear codes."""
    codes = []
    for start in range(0, len(data), 250):
        codes += [256, *data[start : start + 250]]
    return pack_bits(np.array([[*codes, 257]]), 9).tobytes()


def pack_literals(data):
    """PackBits without runs."""
    return b"".join(bytes([len(data[at : at + 128]) - 1]) + data[at : at + 128] for at in range(0, len(data), 128))


def pack_zstd(data):
    """Zstandard of raw blocks."""
    parts = [b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(data))]
    for start in range(0, len(data), 100_000):
        block, last = data[start : start + 100_000], start + 100_000 >= len(data)
        parts.append(struct.pack("<I", last | len(block) << 3)[:3] + block)
    return b"".join(parts)


PACKERS = {
    1: bytes,
    5: pack_lzw,
    8: zlib.compress,
    32946: zlib.compress,
    32773: pack_literals,
    34925: lzma.compress,
    50000: pack_zstd,
}


def build_tiff(
    pixels,
    *,
    bits=None,
    compression=1,
    predictor=1,
    order="<",
    big=False,
    segment=None,
    tiled=False,
    planar=1,
    fill=1,
    photometric=None,
    tags=None,
    leave_out=(),
    damage=None,
):
    """A TIFF of pixels, shape (rows, cols) or (rows, cols, samples); tags are further ones, or replace others.

    ``damage`` changes the list of packed strips or tiles.
    """
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    rows, cols, samples = pixels.shape
    bits = bits or pixels.dtype.itemsize * 8
    high, wide = segment or (rows, cols)
    planes = [pixels] if planar == 1 else [pixels[..., k : k + 1] for k in range(samples)]
    parts = []
    for plane in planes:
        for row in range(0, rows, high):
            for col in range(0, cols, wide):
                part = plane[row : row + high, col : col + wide]
                if tiled:
                    part = np.pad(part, ((0, high - part.shape[0]), (0, wide - part.shape[1]), (0, 0)), mode="edge")
                parts.append(_pack_part(part, bits, predictor, order))
    if fill == 2:
        mirror = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    packed = [PACKERS[compression](part) for part in parts]
    packed = [part.translate(mirror) for part in packed] if fill == 2 else packed
    packed = packed if damage is None else damage(packed)
    offsets = [(16 if big else 8) + sum(map(len, packed[:index])) for index in range(len(packed))]
    kinds = {"u": 1, "i": 2, "f": 3}
    places = {324: ("I", offsets), 325: ("I", [*map(len, packed)])} if tiled else {
        273: ("I", offsets), 279: ("I", [*map(len, packed)]), 278: ("I", [high])
    }  # fmt: skip
    known = {
        256: ("I", [cols]), 257: ("I", [rows]), 258: ("H", [bits] * samples), 259: ("H", [compression]),
        262: ("H", [photometric if photometric is not None else 2 if samples > 2 else 1]), 266: ("H", [fill]),
        277: ("H", [samples]), 284: ("H", [planar]), 339: ("H", [kinds[pixels.dtype.kind]] * samples), **places,
    }  # fmt: skip
    known |= {317: ("H", [predictor])} if predictor != 1 else {}
    known |= {322: ("I", [wide]), 323: ("I", [high])} if tiled else {}
    known |= {338: ("H", [2])} if samples in (2, 4) else {}
    known |= tags or {}
    known = {tag: entry for tag, entry in known.items() if tag not in leave_out}
    return _assemble(b"".join(packed), known, order, big)


def _pack_part(part, bits, predictor, order):
    if predictor == 2:
        part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], axis=1)
    if predictor == 3:
        planes = part.astype(part.dtype.newbyteorder(">")).reshape(len(part), -1).view("u1")
        planes = planes.reshape(len(part), -1, part.dtype.itemsize).transpose(0, 2, 1).reshape(len(part), -1)
        samples = part.shape[2]
        return np.concatenate([planes[:, :samples], planes[:, samples:] - planes[:, :-samples]], axis=1).tobytes()
    if bits in (8, 16, 32, 64):
        return part.astype(part.dtype.newbyteorder(order)).tobytes()
    return pack_bits(part.reshape(len(part), -1), bits).tobytes()


def _assemble(body, tags, order, big):
    size, number, room = ("Q", "Q", 8) if big else ("I", "H", 4)
    first = (16 if big else 8) + len(body) + len(body) % 2
    spill_at = first + struct.calcsize(order + number) + (20 if big else 12) * len(tags) + room
    entries, spill = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(values)}{kind}", *values)
        entry = struct.pack(f"{order}HH{size}", tag, CODES[kind], len(values))
        if len(raw) > room:
            entry += struct.pack(order + size, spill_at + len(spill))
            spill += raw + b"\0" * (len(raw) % 2)
        else:
            entry += raw.ljust(room, b"\0")
        entries += entry
    mark = {"<": b"II", ">": b"MM"}[order]
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, first) if big else struct.pack(order + "HI", 42, first))
    directory = struct.pack(order + number, len(tags)) + entries + struct.pack(order + size, 0)
    return head + body + b"\0" * (len(body) % 2) + directory + spill
