"""The ways in which `fuzz_dicom.py` damages a file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from fuzz_dicom_oracle import Element
from numpy.typing import NDArray

_NUMBERS = (0, 1, 2, 7, 8, 10, 12, 15, 16, 17, 32, 64, 79, 80, 81, 95, 96, 97, 255, 256, 768, 7680, 32767, 65535)
_NUMBER_TAGS = (0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
_TEXTS = (
    b"0",
    b"1",
    b"2",
    b"99999",
    b"-1",
    b"1e308",
    b"nan",
    b"",
    b"MONOCHROME1",
    b"RGB",
    b"PALETTE COLOR",
    b"SR",
    b"MG",
)
_TEXT_TAGS = (0x00080060, 0x00080016, 0x00280004, 0x00280008, 0x00281052, 0x00281053, 0x00181164)
_SYNTAXES = (
    b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.5",
    b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.51", b"1.2.840.10008.1.2.4.57",
    b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.81", b"1.2.840.10008.1.2.4.90",
    b"1.2.840.10008.1.2.4.91", b"1.2.840.10008.1.2.4.201", b"1.2.840.10008.1.2.4.95", b"1.2.3.4",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One undamaged file."""

    name: str
    content: bytes
    syntax: str
    elements: tuple[Element, ...]
    pixels: NDArray[np.float64]

    def find(self, tag: int) -> Element:
        """Return the element of this tag."""
        return next(element for element in self.elements if element.tag == tag)


Rng = np.random.Generator
Mutation = Callable[[Sample, Rng], bytes]


def _place(sample: Sample, rng: Rng, where: str) -> tuple[int, int]:
    """A range of the file: the header, the pixels, the first bytes of the pixels, or all."""
    pixels = sample.find(0x7FE00010)
    begin, end = {
        "header": (132, pixels.value_start),
        "pixels": (pixels.value_start, len(sample.content)),
        "stream": (pixels.value_start, min(pixels.value_start + 200, len(sample.content))),
        "tail": (len(sample.content) - 60, len(sample.content)),
        "all": (0, len(sample.content)),
    }[where]
    return begin, end


def _flip(where: str, most: int) -> Mutation:
    def mutate(sample: Sample, rng: Rng) -> bytes:
        content = bytearray(sample.content)
        for place in rng.integers(*_place(sample, rng, where), size=rng.integers(1, most + 1)):
            content[place] ^= 1 << rng.integers(8)
        return bytes(content)

    return mutate


def _scramble(where: str) -> Mutation:
    def mutate(sample: Sample, rng: Rng) -> bytes:
        begin, end = _place(sample, rng, where)
        start = int(rng.integers(begin, end))
        stop = min(end, start + int(rng.integers(1, 300)))
        return sample.content[:start] + rng.bytes(stop - start) + sample.content[stop:]

    return mutate


def _replace_value(sample: Sample, element: Element, value: bytes) -> bytes:
    """The file with another value of another length, the length field included; the pixels' too long for 16 bits."""
    value += (b"\0" if element.tag < 0x00080000 or element.tag == 0x00080016 else b" ") * (len(value) % 2)
    order = ">" if sample.name == "big" and element.tag >= 0x00080000 else "<"
    head = sample.content[element.start : element.value_start]
    if len(head) == 8 and (sample.name != "implicit" or element.tag < 0x00080000):
        head = head[:6] + struct.pack(order + "H", len(value))
    else:
        head = head[:-4] + struct.pack(order + "I", len(value))
    return sample.content[: element.start] + head + value + sample.content[element.value_end :]


def _edit_number(sample: Sample, rng: Rng) -> bytes:
    element = sample.find(int(rng.choice(_NUMBER_TAGS)))
    value = struct.pack(">H" if sample.name == "big" else "<H", int(rng.choice(_NUMBERS)))
    return sample.content[: element.value_start] + value + sample.content[element.value_end :]


def _edit_size(sample: Sample, rng: Rng) -> bytes:
    """Rows and columns that are nearly right, or hold as many pixels."""
    order = ">H" if sample.name == "big" else "<H"
    rows, cols = ((80, 96), (48, 160), (97, 79), (95, 80), (96, 79), (192, 40), (96, 81), (48, 80))[rng.integers(8)]
    content = sample.content
    for tag, value in ((0x00280010, rows), (0x00280011, cols)):
        element = sample.find(tag)
        content = content[: element.value_start] + struct.pack(order, value) + content[element.value_end :]
    return content


def _edit_text(sample: Sample, rng: Rng) -> bytes:
    known = {element.tag for element in sample.elements}
    tag = int(rng.choice([tag for tag in _TEXT_TAGS if tag in known]))
    return _replace_value(sample, sample.find(tag), _TEXTS[rng.integers(len(_TEXTS))])


def _edit_frames(sample: Sample, rng: Rng) -> bytes:
    """Put a Number of Frames in, which the phantom does not have."""
    before = sample.find(0x00280010)
    value = (b"1 ", b"2 ", b"0 ", b"99999 ", b"-1", b"1e", b"1\\1 ")[rng.integers(7)]
    order = ">" if sample.name == "big" else "<"
    head = struct.pack(order + "HH", 0x28, 8)
    head += struct.pack("<I", len(value)) if sample.name == "implicit" else b"IS" + struct.pack(order + "H", len(value))
    return sample.content[: before.start] + head + value + sample.content[before.start :]


def _edit_syntax(sample: Sample, rng: Rng) -> bytes:
    return _replace_value(sample, sample.find(0x00020010), _SYNTAXES[rng.integers(len(_SYNTAXES))])


def _edit_length(sample: Sample, rng: Rng) -> bytes:
    """Write into the length field of any element."""
    element = sample.elements[rng.integers(len(sample.elements))]
    head = element.value_start - element.start
    width = 2 if head == 8 and not (sample.name == "implicit" and element.tag >= 0x00080000) else 4
    order = ">" if sample.name == "big" and element.tag >= 0x00080000 else "<"
    old = struct.unpack(
        order + ("H" if width == 2 else "I"), sample.content[element.value_start - width : element.value_start]
    )
    new = (0, 1, 2, old[0] - 2, old[0] + 2, old[0] * 2, old[0] // 2, 2**31, 2**32 - 1, 2**16 - 1)[rng.integers(10)]
    field = struct.pack(order + ("H" if width == 2 else "I"), new % 256**width)
    return sample.content[: element.value_start - width] + field + sample.content[element.value_start :]


def _truncate(sample: Sample, rng: Rng) -> bytes:
    return sample.content[: rng.integers(len(sample.content))]


def _cut_tail(sample: Sample, rng: Rng) -> bytes:
    return sample.content[: -int(rng.integers(1, 40))]


def _append(sample: Sample, rng: Rng) -> bytes:
    extra = int(rng.choice([1, 2, 8, 160, 15360, 100_000]))
    return sample.content + (b"\0" * extra if rng.random() < 0.5 else rng.bytes(extra))


def _insert(sample: Sample, rng: Rng) -> bytes:
    place, size = int(rng.integers(132, len(sample.content))), int(rng.integers(1, 200))
    return sample.content[:place] + rng.bytes(size) + sample.content[place:]


def _duplicate(sample: Sample, rng: Rng) -> bytes:
    """Repeat a stretch of bytes, or a whole element."""
    if rng.random() < 0.5:
        element = sample.elements[rng.integers(len(sample.elements))]
        begin, end = element.start, element.value_end
    else:
        begin = int(rng.integers(132, len(sample.content)))
        end = begin + int(rng.integers(1, 400))
    return sample.content[:end] + sample.content[begin:]


def _remove(sample: Sample, rng: Rng) -> bytes:
    """Leave out a stretch of bytes, or a whole element."""
    if rng.random() < 0.5:
        element = sample.elements[rng.integers(len(sample.elements))]
        return sample.content[: element.start] + sample.content[element.value_end :]
    begin = int(rng.integers(132, len(sample.content)))
    return sample.content[:begin] + sample.content[begin + int(rng.integers(1, 200)) :]


def _nest(sample: Sample, rng: Rng) -> bytes:
    """Put sequences within sequences, up to 3000 deep, in front of the patient's name."""
    order = ">" if sample.name == "big" else "<"
    explicit = sample.name != "implicit"
    head = struct.pack(order + "HH", 0x0008, 0x1140)
    head += b"SQ\0\0\xff\xff\xff\xff" if explicit else b"\xff\xff\xff\xff"
    item, item_end, end = (
        struct.pack(order + "HHI", 0xFFFE, n, s) for n, s in ((0xE000, 2**32 - 1), (0xE00D, 0), (0xE0DD, 0))
    )
    inner = b""
    for _ in range(int(rng.choice([1, 2, 10, 100, 1000, 3000]))):
        inner = head + item + inner + item_end + end
    before = sample.find(0x00100010)
    return sample.content[: before.start] + inner + sample.content[before.start :]


def _deflate(sample: Sample, rng: Rng) -> bytes:
    """Declare deflate; half of the files unpack to 20 MB of zeros."""
    element = sample.find(0x00020010)
    meta_end = next(e.start for e in sample.elements if e.tag >= 0x00080000)
    rest = sample.content[meta_end:] if rng.random() < 0.5 else b"\0" * 20_000_000
    packer = zlib.compressobj(wbits=-15)
    uid = (b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.95", b"1.2.840.10008.1.2.8.1")[rng.integers(3)]
    whole = _replace_value(sample, element, uid)
    return whole[: meta_end + len(whole) - len(sample.content)] + packer.compress(rest) + packer.flush()


def _edit_stream(sample: Sample, rng: Rng) -> bytes:
    """Write a number into the first bytes of the pixels, where a compressed stream has its sizes and offsets."""
    begin, end = _place(sample, rng, "stream")
    place = int(rng.integers(begin, end - 2))
    return sample.content[:place] + struct.pack(">H", int(rng.choice(_NUMBERS))) + sample.content[place + 2 :]


def _edit_offset(sample: Sample, rng: Rng) -> bytes:
    """As `_edit_stream`, little-endian and four bytes: RLE offsets, fragment lengths."""
    begin, end = _place(sample, rng, "stream")
    place = begin + 4 * int(rng.integers((end - begin) // 4))
    value = int(rng.choice([0, 1, 2, 3, 16, 63, 64, 65, 2**15, 2**31, 2**32 - 1]))
    return sample.content[:place] + struct.pack("<I", value) + sample.content[place + 4 :]


MUTATIONS: dict[str, Mutation] = {
    "flip bits anywhere": _flip("all", 20),
    "flip bits in the header": _flip("header", 10),
    "flip bits in the pixels": _flip("pixels", 10),
    "flip bits in the stream's head": _flip("stream", 3),
    "flip bits at the end": _flip("tail", 3),
    "scramble the header": _scramble("header"),
    "scramble the pixels": _scramble("pixels"),
    "edit a number": _edit_number,
    "edit the size": _edit_size,
    "edit a text": _edit_text,
    "edit the frames": _edit_frames,
    "edit the transfer syntax": _edit_syntax,
    "edit a length": _edit_length,
    "edit the stream's head": _edit_stream,
    "edit offsets": _edit_offset,
    "truncate": _truncate,
    "cut the tail": _cut_tail,
    "append": _append,
    "insert": _insert,
    "duplicate": _duplicate,
    "remove": _remove,
    "nest sequences": _nest,
    "deflate": _deflate,
}
