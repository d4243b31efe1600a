"""How DICOM files start, which tells them from others before anything is read."""

from __future__ import annotations

import re
from pathlib import Path

_START = re.compile(rb"\x08\x00[\x00\x01\x05\x08\x12-\x18]\x00(CS|DA|OB|TM|UI|UL|[\x00-\xff]\x00\x00\x00)", re.DOTALL)
_BIG_START = re.compile(rb"\x00\x08\x00[\x00\x01\x05\x08\x12-\x18](CS|DA|OB|TM|UI|UL)")
_META_START = re.compile(rb"\x02\x00[\x00\x01\x02\x03\x10]\x00(OB|UI|UL)")


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file starts as DICOM does: the letters DICM after 128 bytes (PS3.10 section 7.1), or at once the
    elements that every object begins with, as files without preamble do."""
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or is_bare(start)


def is_bare(start: bytes) -> bool:
    """Return whether these are the first bytes of a file without preamble."""
    return any(pattern.match(start) for pattern in (_START, _BIG_START, _META_START))
