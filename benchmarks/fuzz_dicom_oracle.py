"""A second, strict reader of DICOM for `fuzz_dicom.py`; shares no code with unary or pydicom.

It knows what the fuzzed files need: the four plain transfer syntaxes' three encodings, RLE, lossless JPEG (its own
decoder), JPEG 2000 (Pillow decodes, the structure of the stream is checked here) and JPEG-LS (GDCM decodes). Anything
that breaks a rule is a `ValueError`. Slow, and of no use outside this benchmark.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.57")
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = 0x7FE00010


@dataclass(frozen=True)
class Element:
    """Where an element lies in the file; the value of encapsulated pixels is empty and ``fragments`` holds them."""

    tag: int
    start: int
    value_start: int
    value_end: int
    fragments: tuple[bytes, ...] = ()


def read_strictly(content: bytes) -> NDArray[np.float64]:
    """Return pixels after rescale, larger values brighter, shape (rows, cols).

    Raises
    ------
    ValueError
        If the file breaks a rule that this reader knows.
    """
    try:
        syntax, elements = walk(content)
        return _decode(content, syntax, {element.tag: element for element in elements})
    except (IndexError, KeyError, struct.error, OverflowError, OSError, SyntaxError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def walk(content: bytes) -> tuple[str, list[Element]]:
    """Return the transfer syntax and the elements of the top level, in file order."""
    if content[128:132] != b"DICM":
        raise ValueError("no DICM")
    place, elements = 132, []
    while content[place : place + 2] == b"\x02\x00":
        element = _read_element(content, place, explicit=True, order="<")
        elements.append(element)
        place = element.value_end
    *_, uid = [content[e.value_start : e.value_end] for e in elements if e.tag == 0x00020010]
    syntax = uid.rstrip(b"\0 ").decode("ascii")
    order, explicit = ">" if syntax == BIG else "<", syntax != IMPLICIT
    while place < len(content):
        element = _read_element(content, place, explicit=explicit, order=order)
        elements.append(element)
        place = element.value_end
    return syntax, elements


def _read_element(content: bytes, start: int, *, explicit: bool, order: str) -> Element:
    group, number = struct.unpack_from(order + "HH", content, start)
    tag, place = group << 16 | number, start + 4
    kind = b"--"
    if explicit:
        kind = content[place : place + 2]
        if kind in _LONG:
            (length,) = struct.unpack_from(order + "I", content, place + 4)
            place += 8
        else:  # a damaged kind does no harm if the next element fits
            (length,) = struct.unpack_from(order + "H", content, place + 2)
            place += 4
    else:
        (length,) = struct.unpack_from(order + "I", content, place)
        place += 4
    if length != _UNDEFINED:
        if place + length > len(content):
            raise ValueError("a value leaves the file")
        return Element(tag, start, place, place + length)
    if tag == _PIXELS:
        fragments, end = _read_fragments(content, place, order)
        return Element(tag, start, place, end, fragments)
    if explicit and kind not in (b"SQ", b"UN"):
        raise ValueError("undefined length of what is no sequence")
    return Element(tag, start, place, _skip_sequence(content, place, explicit=explicit and kind == b"SQ", order=order))


def _read_fragments(content: bytes, place: int, order: str) -> tuple[tuple[bytes, ...], int]:
    found: list[bytes] = []
    while True:
        group, number, length = struct.unpack_from(order + "HHI", content, place)
        tag, place = group << 16 | number, place + 8
        if tag == _SEQUENCE_END and length == 0:
            return tuple(found), place
        if tag != _ITEM or place + length > len(content):
            raise ValueError("damaged encapsulation")
        found.append(content[place : place + length])
        place += length


def _skip_sequence(content: bytes, place: int, *, explicit: bool, order: str, depth: int = 0) -> int:
    if depth > 30:
        raise ValueError("nested too deeply")
    while True:
        group, number, length = struct.unpack_from(order + "HHI", content, place)
        tag, place = group << 16 | number, place + 8
        if tag == _SEQUENCE_END:
            return place
        if tag != _ITEM:
            raise ValueError("a sequence holds something else than items")
        if length != _UNDEFINED:
            place += length
            continue
        while True:
            group, number = struct.unpack_from(order + "HH", content, place)
            if group << 16 | number == _ITEM_END:
                place += 8
                break
            kind = content[place + 4 : place + 6]
            if explicit and kind == b"SQ" and content[place + 8 : place + 12] == b"\xff" * 4:
                place = _skip_sequence(content, place + 12, explicit=True, order=order, depth=depth + 1)
            else:
                place = _read_element(content, place, explicit=explicit, order=order).value_end


def _decode(content: bytes, syntax: str, elements: dict[int, Element]) -> NDArray[np.float64]:
    order = ">" if syntax == BIG else "<"

    def number(tag: int, default: int | None = None) -> int:
        if tag not in elements and default is not None:
            return default
        value = content[elements[tag].value_start : elements[tag].value_end]
        if len(value) != 2:
            raise ValueError("not one number")
        return int(struct.unpack(order + "H", value)[0])

    def text(tag: int, default: str) -> str:
        if tag not in elements:
            return default
        return content[elements[tag].value_start : elements[tag].value_end].decode("latin-1").strip(" \0") or default

    rows, cols = number(0x00280010), number(0x00280011)
    allocated, stored, signed = number(0x00280100), number(0x00280101), number(0x00280103)
    if number(0x00280002, 1) != 1 or int(text(0x00280008, "1")) != 1 or rows * cols == 0:
        raise ValueError("not one grey frame")
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated or signed not in (0, 1):
        raise ValueError("bits make no sense")
    if number(0x00280102, stored - 1) != stored - 1:
        raise ValueError("the high bit does not fit")
    size = rows * cols * allocated // 8
    pixels = elements[_PIXELS]
    raw = content[pixels.value_start : pixels.value_end]
    values: NDArray[Any]
    if syntax in (IMPLICIT, EXPLICIT, BIG):
        if pixels.fragments or len(raw) != size + size % 2:
            raise ValueError("pixel data of another size than declared")
        values = np.frombuffer(raw[:size], f"{order}u{allocated // 8}").reshape(rows, cols)
    else:
        if len(pixels.fragments) < 2:
            raise ValueError("no fragment")
        stream = b"".join(pixels.fragments[1:])
        values = _decode_stream(stream, syntax, rows=rows, cols=cols, allocated=allocated, signed=bool(signed))
    integers = values.astype(np.int64)
    if syntax not in (IMPLICIT, EXPLICIT, BIG, RLE) and integers.max() >= 1 << stored:
        raise ValueError("more bits than declared")
    integers &= (1 << stored) - 1  # the others may hold anything in an uncompressed file
    if signed:
        integers = np.where(integers >= 1 << (stored - 1), integers - (1 << stored), integers)
    slope, intercept = float(text(0x00281053, "1")) or 1.0, float(text(0x00281052, "0"))
    low, high = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    found: NDArray[np.float64] = integers * slope + intercept
    photometric = text(0x00280004, "")
    if photometric == "MONOCHROME1":
        found = (low + high) * slope + 2 * intercept - found
    elif photometric != "MONOCHROME2":
        raise ValueError("not grey")
    return found


def _decode_stream(
    stream: bytes, syntax: str, *, rows: int, cols: int, allocated: int, signed: bool
) -> NDArray[np.int64]:
    if syntax == RLE:
        planes = _decode_rle(stream, rows * cols, allocated // 8)
        values = np.zeros(rows * cols, np.int64)
        for plane in planes:
            values = values << 8 | np.frombuffer(plane, np.uint8)
        return values.reshape(rows, cols)
    if syntax in JPEG_LOSSLESS:
        values = decode_jpeg_lossless(stream)
    elif syntax in JPEG_2000:
        values = _decode_jpeg2000(stream)
    elif syntax in JPEG_LS:
        values = _decode_jpeg_ls(stream, rows=rows, cols=cols)
    else:
        raise ValueError("no decoder here for this transfer syntax")
    if values.shape != (rows, cols):
        raise ValueError(f"the stream holds {values.shape}")
    return values


def _decode_rle(stream: bytes, pixels: int, planes: int) -> list[bytes]:
    """PackBits, DICOM PS3.5 Annex G; every plane must have exactly its length."""
    count, *offsets = struct.unpack_from("<16I", stream)
    if count != planes or offsets[0] != 64:
        raise ValueError("damaged RLE header")
    found = []
    for begin, end in zip(offsets[:count], [*offsets[1:count], len(stream)], strict=True):
        if not begin <= end <= len(stream):
            raise ValueError("RLE segments overlap")
        plane, place = bytearray(), begin
        while len(plane) < pixels:
            code = stream[place]
            if code < 128:
                if place + 2 + code > end:
                    raise ValueError("a run leaves its segment")
                plane += stream[place + 1 : place + 2 + code]
                place += 2 + code
            elif code > 128:
                plane += stream[place + 1 : place + 2] * (257 - code)
                place += 2
            else:
                place += 1
        if len(plane) != pixels or not end - 2 < place <= end:
            raise ValueError("an RLE segment of another length than declared")
        found.append(bytes(plane))
    return found


def _decode_jpeg2000(stream: bytes) -> NDArray[np.int64]:
    """Tile-parts from the main header to the end of the codestream, without a gap; at most one byte of padding."""
    if stream[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("no JPEG 2000 codestream")
    place = stream.index(b"\xff\x90\x00\x0a")
    while stream[place : place + 2] == b"\xff\x90":
        (length,) = struct.unpack_from(">I", stream, place + 6)
        if length < 14:
            raise ValueError("a tile-part without length")
        place += length
    if stream[place : place + 2] != b"\xff\xd9" or len(stream) > place + 3:
        raise ValueError("the codestream does not end")
    if stream[42] >> 7:
        raise ValueError("signed values")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = PIL.Image.open(io.BytesIO(stream))
        values = np.asarray(image).astype(np.int64)
    return values >> (15 - stream[42] if image.mode.startswith("I;16") else 7 - stream[42])  # Pillow scales up


def _decode_jpeg_ls(stream: bytes, *, rows: int, cols: int) -> NDArray[np.int64]:
    import gdcm

    place = stream.index(b"\xff\xf7")
    precision, height, width, components = struct.unpack_from(">BHHB", stream, place + 4)
    if (height, width, components) != (rows, cols, 1) or b"\xff\xd9" not in stream[-3:]:
        raise ValueError("the stream does not fit")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((cols, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLSLossless))
    bits = 8 if precision <= 8 else 16
    image.SetPixelFormat(gdcm.PixelFormat(1, bits, precision, precision - 1, 0))
    buffer = image.GetBuffer()
    if buffer is None:
        raise ValueError("the stream cannot be decoded")
    raw = buffer.encode("utf-8", "surrogateescape")
    return np.frombuffer(raw, np.uint8 if bits == 8 else "<u2").astype(np.int64).reshape(rows, cols)


def decode_jpeg_lossless(stream: bytes) -> NDArray[np.int64]:
    """Huffman-coded lossless JPEG of one component (T.81 Annex H), refusing whatever is not exactly as it should be."""
    tables: dict[int, dict[tuple[int, int], int]] = {}
    frame, place = None, 2
    if stream[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    while True:
        start, marker, length = struct.unpack_from(">BBH", stream, place)
        segment = stream[place + 4 : place + 2 + length]
        place += 2 + length
        if start != 0xFF or marker in (0xC0, 0xC1, 0xC2, 0xDD):
            raise ValueError("not sequential lossless")
        if marker == 0xC4:
            tables |= _read_tables(segment)
        elif marker == 0xC3:
            frame = struct.unpack(">BHHBBBB", segment)
        elif marker == 0xDA:
            break
    if frame is None or frame[3] != 1 or len(segment) != 6 or segment[0] != 1:
        raise ValueError("not one component")
    precision, rows, cols = frame[:3]
    selection, transform = segment[3], segment[5] & 15
    end = stream.rindex(b"\xff\xd9")
    if len(stream) > end + 3 or not 2 <= precision <= 16:
        raise ValueError("the stream does not end")
    body = stream[place:end]
    plain = body.replace(b"\xff\x00", b"\xff")
    if body.count(b"\xff") != body.count(b"\xff\x00"):
        raise ValueError("a marker inside the scan")
    differences = _read_differences(plain, tables[segment[2] >> 4], rows * cols)
    return _predict(differences, rows, cols, selection, 1 << (precision - transform - 1)) << transform


def _read_tables(segment: bytes) -> dict[int, dict[tuple[int, int], int]]:
    found, place = {}, 0
    while place < len(segment):
        name, counts = segment[place] & 15, segment[place + 1 : place + 17]
        symbols = segment[place + 17 : place + 17 + sum(counts)]
        code, used, table = 0, 0, {}
        for bits, count in enumerate(counts, 1):
            for _ in range(count):
                table[bits, code] = symbols[used]
                code, used = code + 1, used + 1
            code <<= 1
        found[name] = table
        place += 17 + sum(counts)
    return found


def _read_differences(content: bytes, table: dict[tuple[int, int], int], count: int) -> list[int]:
    bits = int.from_bytes(b"\1" + content, "big")
    text, place = bin(bits)[3:], 0
    codes = {format(code, f"0{length}b"): symbol for (length, code), symbol in table.items()}
    longest = max(map(len, codes))
    found = []
    for _ in range(count):
        for length in range(1, longest + 1):
            symbol = codes.get(text[place : place + length])
            if symbol is not None:
                break
        else:
            raise ValueError("no such code")
        place += length
        if symbol == 16:
            found.append(32768)
            continue
        if symbol > 16 or place + symbol > len(text):
            raise ValueError("the scan ends early")
        value = int(text[place : place + symbol], 2) if symbol else 0
        found.append(value if symbol == 0 or value >> (symbol - 1) else value - (1 << symbol) + 1)
        place += symbol
    if len(text) - place > 40:  # all pixels are there; a few bits more stay unseen in the other decoder's buffer
        raise ValueError("the scan goes on after the last pixel")
    return found


def _predict(differences: list[int], rows: int, cols: int, selection: int, first: int) -> NDArray[np.int64]:
    if not 1 <= selection <= 7:
        raise ValueError("no such predictor")
    values, above = [], [0] * cols
    for row in range(rows):
        line = []
        for col in range(cols):
            left, up, corner = line[-1] if col else 0, above[col], above[col - 1] if col else 0
            if row == 0:
                guess = left if col else first
            elif col == 0:
                guess = up
            else:
                guess = (
                    left, up, corner, left + up - corner, left + ((up - corner) >> 1), up + ((left - corner) >> 1),
                    (left + up) >> 1,
                )[selection - 1]  # fmt: skip
            line.append((guess + differences[row * cols + col]) & 0xFFFF)
        values.append(line)
        above = line
    return np.array(values, np.int64)
