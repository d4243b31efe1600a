"""PGM, the grey format of Netpbm, by its specification (https://netpbm.sourceforge.net/doc/pgm.html)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.errors import ImageError
from unary.images.checks import build_refusal, check_size
from unary.images.samples import Samples, build_several

_LONGEST_HEADER = 2**20  # bytes
# A comment runs to the end of its line, ended by LF or CR, and may follow a number without a blank.
_BLANK = rb"(?:\s|#[^\r\n]*[\r\n])"
_HEADER = re.compile(rb"P([25])%b+(\d{1,10})%b+(\d{1,10})%b+(\d{1,10})%b" % ((_BLANK,) * 4))
MAGICS = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"PF", b"Pf")
_OTHERS = {
    b"P1": "a bitmap (PBM)",
    b"P4": "a bitmap (PBM)",
    b"P3": "in colour (PPM)",
    b"P6": "in colour (PPM)",
    b"P7": "of any number of channels (PAM)",
    b"PF": "of floats (PFM)",
    b"Pf": "of floats (PFM)",
}


def read_pgm_shape(path: Path) -> tuple[int, int]:
    """Read rows and columns from the header."""
    with path.open("rb") as file:
        header = _match_header(file.read(_LONGEST_HEADER), path)
    return int(header[3]), int(header[2])


def read_pgm(path: Path) -> Samples:
    """Read the one picture of a PGM file, plain or raw; it must be as long as its header says, to the byte.

    There is no checksum: bytes that were lost or inserted show by the length alone.
    """
    content = path.read_bytes()
    header = _match_header(content[:_LONGEST_HEADER], path)
    shape, highest = (int(header[3]), int(header[2])), int(header[4])
    kind, count = np.dtype(">u2" if highest > 255 else "u1"), shape[0] * shape[1]
    if header[1] == b"2":
        values = _read_plain(content[header.end() :], count, path)
    else:
        values = _read_raw(content, header.end(), count, kind, path)
    if values.max() > highest:
        cause = f"it holds the value {int(values.max())}, and its header declares {highest} as the highest; damaged?"
        raise build_refusal(path, cause, "CORRUPT_PIXELS")
    return Samples(values.astype(kind.newbyteorder("=")).reshape(*shape, 1), 1, highest)


def _match_header(head: bytes, path: Path) -> re.Match[bytes]:
    if head[:2] in _OTHERS:
        kind, cause = _OTHERS[head[:2]], "only grey pictures are read from Netpbm formats: PGM, P2 or P5"
        colour = "colour" in kind
        raise build_refusal(path, f"it is {kind}; {cause}", "COLOUR" if colour else "UNSUPPORTED_SYNTAX")
    header = _HEADER.match(head)
    if header is None:
        cause = "not readable as PGM: no width, height and highest value (maxval) after P2 or P5; truncated or damaged?"
        raise build_refusal(path, cause, "NOT_READABLE")
    check_size(int(header[3]), int(header[2]), path)
    if not 0 < int(header[4]) < 65536:
        cause = f"its header declares {int(header[4])} as the highest value (maxval); 1 to 65535 are possible"
        raise build_refusal(path, cause, "CORRUPT_PIXELS")
    return header


def _read_raw(content: bytes, start: int, count: int, kind: np.dtype[Any], path: Path) -> NDArray[Any]:
    needed, found = count * kind.itemsize, len(content) - start
    if found == needed + 1 and content[start - 1 : start + 1] == b"\r\n":
        start, found = start + 1, needed  # the header's lines end in the way of Windows
    if found != needed:
        fault = f"its header declares {needed} bytes of pixels, and {found} are there"
        raise _build_length_refusal(content[start + needed :], fault, path)
    return np.frombuffer(content, kind, count, start)


def _read_plain(text: bytes, count: int, path: Path) -> NDArray[Any]:
    text = re.sub(rb"#[^\r\n]*", b" ", text)
    if text.translate(None, b"0123456789 \t\n\r\f\v"):
        raise _build_length_refusal(text, "something else than numbers stands among its pixels", path)
    numbers: NDArray[Any] = np.array([], float) if text.isspace() else np.fromstring(text, float, sep=" ")
    if numbers.size != count:
        raise _build_length_refusal(b"", f"its header declares {count} pixels, and {numbers.size} are there", path)
    return numbers


def _build_length_refusal(surplus: bytes, fault: str, path: Path) -> ImageError:
    if re.search(rb"(?:^|\s)P[1-7]\s", surplus[:_LONGEST_HEADER]):
        return build_several(path, "it holds several pictures, one behind the other")
    return build_refusal(path, f"not readable as PGM: {fault}; truncated, or changed in transfer?", "CORRUPT_PIXELS")
