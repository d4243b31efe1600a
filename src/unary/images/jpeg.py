"""JPEG files (ITU-T T.81): photographs of films, of 8 bits a sample."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import PIL.Image

from unary.images.checks import build_refusal, check_size
from unary.images.samples import Samples, describe_orientation, find_orientation

MAGIC = b"\xff\xd8\xff"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DECODED = {0xC0, 0xC1, 0xC2}  # by Huffman's code, in one go or progressively
_SCAN, _END, _BARE = 0xDA, 0xD9, {0x01, *range(0xD0, 0xD9)}


def read_jpeg_shape(path: Path) -> tuple[int, int]:
    """Read rows and columns from the header of the first frame, or say why there will be no pixels."""
    marker, bits, rows, cols = _read_frame(path.read_bytes())
    check_size(rows, cols, path)
    if marker not in _DECODED or bits != 8:
        cause = f"a JPEG of {bits} bits and process SOF{marker - 0xC0}; 8 bits, SOF0 to SOF2, can be decoded"
        raise build_refusal(path, cause, "UNSUPPORTED_SYNTAX")
    return rows, cols


def read_jpeg(path: Path) -> Samples:
    """Read the one picture of a JPEG file; an orientation that EXIF states is noted, not applied."""
    shape = read_jpeg_shape(path)
    with PIL.Image.open(path, formats=("JPEG",)) as file:
        frames = getattr(file, "n_frames", 1)
        if frames > 1:
            raise build_refusal(path, f"it holds {frames} images; one is needed", "MULTIFRAME")
        if file.mode not in ("L", "RGB"):
            raise build_refusal(path, f"it is in colour ({file.mode}); grey values are needed", "COLOUR")
        notes = describe_orientation(find_orientation(file.info.get("exif", b"")))
        values = np.asarray(file).reshape(*shape, -1)
    return Samples(values, values.shape[2], 255, notes)


def _read_frame(content: bytes) -> tuple[int, int, int, int]:
    """Marker, bits, rows and columns of the first frame header (T.81 B.2.2)."""
    place = 2
    while True:
        start, marker = struct.unpack_from("BB", content, place)
        if start != 0xFF or marker in (_SCAN, _END):
            raise ValueError("no frame header where one must be")
        if marker == 0xFF or marker in _BARE:  # a fill byte; a marker without content
            place += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            bits, rows, cols = struct.unpack_from(">BHH", content, place + 4)
            return marker, bits, rows, cols
        (length,) = struct.unpack_from(">H", content, place + 2)
        place += 2 + length
