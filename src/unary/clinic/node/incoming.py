"""What has come in: the few elements of a header that a node must know, read without trusting the sender.

Nothing compressed by deflate is opened, for a megabyte can unpack to gigabytes. The preamble and the file meta
information of what is kept are the node's own, whatever the sender wrote there.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import UID, AllTransferSyntaxes

from unary.images.checks import DAMAGE

_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_MOST_META = 100_000  # bytes
_WANTED = [Tag(name) for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Manufacturer")]
_WANTED += [Tag("ManufacturerModelName"), Tag("SpecificCharacterSet")]
_IMPLEMENTATION = "1.2.826.0.1.3680043.8.498.1"

DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")
SYNTAXES = tuple(uid for uid in AllTransferSyntaxes if uid not in DEFLATED)

# Statuses of C-STORE (PS3.4 table B.2-1, PS3.7 annex C) and failure reasons of STOW-RS (PS3.18 table I.2-2).
SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
DUPLICATE, NOT_AUTHORISED, BAD_SYNTAX, FAILED = 0x0111, 0x0124, 0xC122, 0x0110


class RefusedError(Exception):
    """An object is not taken: a status for its sender, a reason code for the books, and words without a patient."""

    def __init__(self, status: int, reason: str, words: str) -> None:
        super().__init__(words)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Sender:
    """Who sent: by which way (``dimse``, ``web``, ``folder``), with which title, from which address."""

    way: str
    title: str = ""
    address: str = ""


@dataclass(frozen=True)
class Arrival:
    """An object that has come in whole.

    ``content`` hashes the data set and its transfer syntax, and so is the same whichever way it came; ``own`` says that
    unary has made it.
    """

    sop_class: str
    sop_instance: str
    study: str
    syntax: str
    content: str
    own: bool


def split_file(content: memoryview) -> tuple[str, memoryview]:
    """Return the transfer syntax and the data set of a DICOM file.

    Raises
    ------
    RefusedError
        If it is none.
    """
    if len(content) < 136 or bytes(content[128:132]) != b"DICM":
        raise RefusedError(NOT_UNDERSTOOD, "NOT_READABLE", "no DICOM file: it does not begin as one (PS3.10)")
    syntax, place = "", 132
    while place + 8 <= len(content) and place < _MOST_META:
        group, element, kind, length = struct.unpack_from("<HH2sH", content, place)
        if group != 2:
            break
        start = place + 8
        if kind in (b"OB", b"UN", b"OW", b"SQ"):
            if start + 4 > len(content):
                break
            (length,) = struct.unpack_from("<I", content, start)
            start += 4
        if element == 0x0010:
            syntax = bytes(content[start : start + length]).rstrip(b"\0 ").decode("ascii", "replace")
        place = start + length
    if not _UID.fullmatch(syntax):
        raise RefusedError(NOT_UNDERSTOOD, "NOT_READABLE", "no transfer syntax is stated in the file meta information")
    return syntax, content[place:]


def examine_arrival(data: memoryview, syntax: str, sop_class: str = "", sop_instance: str = "") -> Arrival:
    """Read what must be known of a data set; class and instance are those announced, if any were.

    Raises
    ------
    RefusedError
        If it cannot be read in its transfer syntax, lacks an identifier, or is not what was announced.
    """
    uid = UID(syntax)
    if syntax in DEFLATED:
        raise RefusedError(BAD_SYNTAX, "UNSUPPORTED_SYNTAX", "compressed by deflate, which can unpack to gigabytes")
    if uid not in SYNTAXES:
        raise RefusedError(BAD_SYNTAX, "UNSUPPORTED_SYNTAX", "a transfer syntax that is not known")
    header = _read_header(data, uid)
    found = {name: _text(header, name) for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")}
    for name, value in found.items():
        if not _UID.fullmatch(value):
            words = f"{name} is missing or no UID; damaged, or another transfer syntax than it says?"
            raise RefusedError(NOT_UNDERSTOOD, "BAD_HEADER", words)
    announced = {"SOPClassUID": sop_class, "SOPInstanceUID": sop_instance}
    for name, value in announced.items():
        if value and value != found[name]:
            raise RefusedError(MISMATCH, "BAD_HEADER", f"{name} of the data set is not the one announced")
    maker, model = _text(header, "Manufacturer"), _text(header, "ManufacturerModelName")
    digest = hashlib.sha256(f"{syntax}\n".encode())
    digest.update(data)
    own = maker == "unary" and model.startswith("unary ")
    names = (found["SOPClassUID"], found["SOPInstanceUID"], found["StudyInstanceUID"])
    return Arrival(*names, syntax, digest.hexdigest(), own)


def _read_header(data: memoryview, syntax: UID) -> Dataset:
    """The header up to the pixels, without deciding anything by it."""
    explicit = len(data) >= 6 and all(0x40 < byte < 0x5B for byte in data[4:6])  # where a VR stands, if any does
    if len(data) < 8 or explicit == syntax.is_implicit_VR:  # which pydicom would guess and go on
        raise RefusedError(NOT_UNDERSTOOD, "BAD_HEADER", "not written in the transfer syntax that it says")
    try:
        return read_dataset(
            _View(data),
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=lambda tag, *_: tag in _PIXELS,
            specific_tags=list(_WANTED),
        )
    except DAMAGE:
        words = "its header cannot be read; damaged, or another transfer syntax than it says?"
        raise RefusedError(NOT_UNDERSTOOD, "BAD_HEADER", words) from None


class _View(BytesIO):
    """A file over at most the first part of a buffer; headers beyond it are not worth reading."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(data[: 16 * 2**20] if len(data) > 16 * 2**20 else data)


def _text(header: Dataset, name: str) -> str:
    try:
        return str(header.get(name) or "").strip()
    except DAMAGE:
        return ""


def write_arrival(arrival: Arrival, data: memoryview, file: BinaryIO) -> None:
    """Write a DICOM file with the node's own preamble and file meta information (PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = arrival.sop_class, arrival.sop_instance
    meta.TransferSyntaxUID = UID(arrival.syntax)
    meta.ImplementationClassUID, meta.ImplementationVersionName = _IMPLEMENTATION, "UNARY"
    head = BytesIO()
    head.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(head, meta, enforce_standard=True)
    file.write(head.getbuffer())
    file.write(data)
