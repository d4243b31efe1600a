"""JPEG files (ITU-T T.81): photographs of films, of 8 bits a sample."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

from unary.images.checks import build_refusal, check_size
from unary.images.samples import GREY_NEEDED, Samples, build_several, describe_orientation, find_orientation

MAGIC = b"\xff\xd8\xff"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DECODED = {0xC0, 0xC1, 0xC2}  # by Huffman's code, in one go or progressively
_SCAN, _END, _FILL, _BARE = 0xDA, 0xD9, 0xFF, {0x01, *range(0xD0, 0xD8)}
_AFTER_SCAN = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")


def read_jpeg_shape(path: Path) -> tuple[int, int]:
    """Read rows and columns from the frame header, or say why there will be no pixels."""
    content = path.read_bytes()
    marker, bits, rows, cols, end = _read_markers(content)
    check_size(rows, cols, path)
    if marker not in _DECODED or bits != 8:
        cause = f"a JPEG of {bits} bits by process SOF{marker - 0xC0}; 8 bits by SOF0, SOF1 or SOF2 can be decoded"
        raise build_refusal(path, cause, "UNSUPPORTED_SYNTAX")
    if MAGIC in content[end:]:
        raise build_several(path, "it holds several pictures, one behind the other")
    return rows, cols


def read_jpeg(path: Path) -> Samples:
    """Read the one picture of a JPEG file; an orientation that EXIF states is noted, not applied."""
    import PIL.Image

    shape = read_jpeg_shape(path)
    try:
        file = PIL.Image.open(path, formats=("JPEG",))
    except PIL.Image.DecompressionBombError as error:
        raise build_refusal(path, f"too large ({error})", "TOO_LARGE") from error
    with file:
        if file.mode not in ("L", "RGB"):
            raise build_refusal(path, f"it is in colour ({file.mode}); {GREY_NEEDED}", "COLOUR")
        notes = describe_orientation(find_orientation(file.info.get("exif", b"")))
        values = np.asarray(file).reshape(*shape, -1)
    return Samples(values, values.shape[2], 255, notes)


def _read_markers(content: bytes) -> tuple[int, int, int, int, int]:
    """Marker, bits, rows and columns of the one frame header (T.81 B.2.2), and where the picture ends."""
    place, frame = 2, None
    while True:
        start, marker = struct.unpack_from("BB", content, place)
        if start != _FILL:
            raise ValueError("no marker where one must be")
        if marker == _FILL:
            place += 1
        elif marker == _END and frame is not None:
            return *frame, place + 2
        elif marker in _BARE:
            place += 2
        else:
            (length,) = struct.unpack_from(">H", content, place + 2)
            if marker in _FRAMES:
                if frame is not None:
                    raise ValueError("two frame headers")
                frame = (marker, *struct.unpack_from(">BHH", content, place + 4))
            place += 2 + length
        if marker == _SCAN:
            found = _AFTER_SCAN.search(content, place)
            if found is None:
                raise ValueError("it has no end")
            place = found.start()
