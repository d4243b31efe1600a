"""A DICOM header, opened and read in one place: every value is right, put right and noted, or refused by its keyword.

Libraries convert values when they are asked for, and say of a failure neither where nor what. Here each element that
unary uses is taken out by its kind (a whole number, a number, a code), so that a refusal names the keyword, the value
and what is needed. What a damaged header may hold in place of a number or a code, a name perhaps, is never quoted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pydicom
from pydicom import uid
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException

from unary.errors import ImageError, Reason
from unary.images.checks import DAMAGE, build_refusal
from unary.images.preamble import is_bare

DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.8.1")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_FIGURES = re.compile(r"[-+0-9.,eE ]{1,24}", re.ASCII)
_CODE = re.compile(r"[A-Z0-9][A-Z0-9_ ]{1,15}")
# Codes that may be quoted though they are not understood; anything else might be a name.
_PHOTOMETRIC = (
    "MONOCHROME", "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "YBR_FULL",
    "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "XYB",
)  # fmt: skip


class Elements:
    """The elements of one file; what was put right in them is collected in ``notes``, a sentence each."""

    def __init__(self, dataset: Dataset, path: Path, notes: Sequence[str] = ()) -> None:
        self.dataset, self.path, self.notes = dataset, path, list(notes)

    def __contains__(self, keyword: str) -> bool:
        """Whether the element is there, even if it is empty."""
        return keyword in self.dataset

    @property
    def syntax(self) -> uid.UID:
        """The transfer syntax."""
        found: uid.UID = self.dataset.file_meta.TransferSyntaxUID
        return found

    def note(self, sentence: str) -> None:
        """Keep a sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def refuse(self, keyword: str, needed: str, reason: Reason = "BAD_HEADER") -> NoReturn:
        """Refuse the image for the value of an element."""
        raise build_refusal(self.path, f"{keyword} {self.describe(keyword)}; {needed}", reason)

    def describe(self, keyword: str) -> str:
        """Return what an element holds, in words that quote numbers and known codes alone."""
        if keyword not in self.dataset:
            return "is missing"
        values = self._read_values(keyword)
        if not values:
            return "is empty"
        kind, known = self._find_raw(keyword)[0], dictionary_VR(keyword)
        if any(isinstance(value, bytes) for value in values):
            return f"is stored as {kind if kind.isalpha() else 'bytes'} in place of {known}"
        return "is " + "\\".join(_show(str(value)) for value in values[:6]) + ("\\..." if len(values) > 6 else "")

    def _read_values(self, keyword: str) -> list[Any]:
        """Return the values of an element as they are, text without its spaces; none when it is absent or empty."""
        try:
            value = self.dataset.get(keyword)
        except (*DAMAGE, BytesLengthException):
            raw = self._find_raw(keyword)[1]
            value = raw.decode("latin-1").split("\\") if isinstance(raw, bytes) and _is_text(keyword) else raw
        several = isinstance(value, (pydicom.multival.MultiValue, pydicom.Sequence, list, tuple))
        values = [part.strip(" \0") if isinstance(part, str) else part for part in (value if several else [value])]
        return [] if all(part is None or part == "" for part in values) else values

    def _find_raw(self, keyword: str) -> tuple[str, Any]:
        """Return how an element is stored, and its bytes; none of either where pydicom cannot even tell its length."""
        try:
            element = self.dataset.get_item(keyword)
        except (*DAMAGE, BytesLengthException):
            return "", b""
        return str(element.VR), element.value

    def read_numbers(self, keyword: str, needed: str) -> list[float]:
        """Return all values of an element as finite numbers; decimal commas are understood, and noted."""
        numbers = []
        for value in self._read_values(keyword):
            text = str(value).strip(" \0")
            if _DECIMAL_COMMA.fullmatch(text):
                self.note(f"{keyword} {self.describe(keyword)}: the decimal comma was read as a point")
                text = text.replace(",", ".")
            if isinstance(value, bytes) or not _NUMBER.fullmatch(text) or abs(float(text)) == float("inf"):
                self.refuse(keyword, needed)
            numbers.append(float(text))
        return numbers

    def read_number(self, keyword: str) -> float | None:
        """Return a number, or None when it is absent or empty."""
        numbers = self.read_numbers(keyword, "one number is needed")
        if len(numbers) > 1:
            self.refuse(keyword, "one number is needed")
        return numbers[0] if numbers else None

    def read_integer(self, keyword: str, needed: str = "a whole number is needed") -> int | None:
        """Return a whole number, or None when it is absent or empty."""
        numbers = self.read_numbers(keyword, needed)
        if len(numbers) > 1 or not all(number.is_integer() for number in numbers):
            self.refuse(keyword, needed)
        return int(numbers[0]) if numbers else None

    def require_integer(self, keyword: str, low: int, high: int) -> int:
        """Return a whole number of this range, both ends included; refuse when it is absent."""
        needed = f"a whole number from {low} to {high} is needed"
        value = self.read_integer(keyword, needed)
        if value is None or not low <= value <= high:
            self.refuse(keyword, needed)
        return value

    def holds_nan(self, keyword: str) -> bool:
        """Whether the value is the float that is no number."""
        return [str(value) for value in self._read_values(keyword)] == ["nan"]

    def find_pair(self, keyword: str) -> tuple[float, float] | None:
        """Return two positive lengths; None, with a note, where something else stands there."""
        try:
            numbers = self.read_numbers(keyword, "two numbers are needed")
        except ImageError:
            numbers = [0.0]
        if not numbers:
            return None
        if len(numbers) != 2 or min(numbers) <= 0:
            self.note(f"{keyword} {self.describe(keyword)}; two positive numbers are needed, so it is not used")
            return None
        return numbers[0], numbers[1]

    def find_code(self, keyword: str) -> str | None:
        """Return a code in capitals, what is written in small letters with a note; None where no code stands there."""
        text = self.find_text(keyword) or ""
        code = text.upper()
        if not _CODE.fullmatch(code) and not re.fullmatch("[A-Z]", code):
            return None
        if code != text:
            self.note(f"{keyword} is written in small letters and was read in capitals")
        return code

    def find_text(self, keyword: str) -> str | None:
        """Return the first value as text without spaces around it, or None; it may hold anything."""
        values = self._read_values(keyword)
        return str(values[0]).strip() or None if values and not isinstance(values[0], bytes) else None

    def read_texts(self, keyword: str) -> list[str]:
        """Return all values as text."""
        return [str(value) for value in self._read_values(keyword) if not isinstance(value, bytes)]

    def read_words(self, keyword: str) -> bytes | list[int]:
        """Return whole numbers, or the bytes that they are written as."""
        values = self._read_values(keyword)
        return values[0] if values and isinstance(values[0], bytes) else [n for n in values if isinstance(n, int)]

    def read_items(self, keyword: str) -> list[Elements]:
        """Return the items of a sequence; none where it is absent or empty, with a note where it is no sequence."""
        values = self._read_values(keyword)
        items = [Elements(value, self.path) for value in values if isinstance(value, Dataset)]
        if len(items) < len(values):
            self.note(f"{keyword} is damaged, and what it says is unknown")
        for item in items:
            item.notes = self.notes
        return items


def _is_text(keyword: str) -> bool:
    return dictionary_VR(keyword) in ("IS", "DS", "CS", "LO", "SH", "UI")


def _show(text: str) -> str:
    known = text.upper() in _PHOTOMETRIC or _FIGURES.fullmatch(text) is not None
    return text if known else f"a text of {len(text)} letters"


def open_dicom(path: Path, keywords: Sequence[str] | None = None) -> Elements:
    """Read a DICOM file inside `unary.images.decoding.reading_dicom`: all of it, or some elements without the pixels.

    A file without preamble is read where its first element tells what it is, and so is one without a transfer syntax,
    when its pixels are not compressed; both are noted. Deflated files are refused before pydicom inflates them.
    """
    notes = []
    with path.open("rb") as file:
        start = file.read(4096)
    bare = start[128:132] != b"DICM"
    if bare and not is_bare(start):
        cause = "not a DICOM file: the letters DICM of its preamble are missing; another format under this name?"
        raise build_refusal(path, cause, "NOT_READABLE")
    if bare:
        notes.append("without the preamble of a DICOM file; was read from its first element on")
    meta = Dataset() if bare else pydicom.filereader.read_file_meta_info(path)
    if not isinstance(meta.get("TransferSyntaxUID", ""), str):
        cause = "TransferSyntaxUID is no single identifier; the file meta information is damaged"
        raise build_refusal(path, cause, "NOT_READABLE")
    if str(meta.get("TransferSyntaxUID")) in DEFLATED or (bare and any(code.encode() in start for code in DEFLATED)):
        cause = "compressed by deflate (TransferSyntaxUID), which is not accepted: such a file can unpack to gigabytes"
        raise build_refusal(path, cause, "UNSUPPORTED_SYNTAX")
    tags: list[Any] | None = None if keywords is None else list(keywords)
    try:
        dataset = pydicom.dcmread(path, force=bare, stop_before_pixels=tags is not None, specific_tags=tags)
    except (TypeError, ValueError, BytesLengthException) as error:
        kind = type(error).__name__
        cause = f"its header cannot be taken apart ({kind}); damaged, perhaps in SpecificCharacterSet?"
        raise build_refusal(path, cause, "NOT_READABLE") from error
    elements = Elements(dataset, path, notes)
    if not str(dataset.file_meta.get("TransferSyntaxUID") or ""):
        _find_syntax(elements)
    return elements


def _find_syntax(elements: Elements) -> None:
    """Give a data set that states no transfer syntax the plain one that it was read by."""
    dataset = elements.dataset
    pixels = dataset.get_item("PixelData") if "PixelData" in dataset else None
    if pixels is not None and getattr(pixels, "length", 0) == 0xFFFFFFFF:
        cause = "TransferSyntaxUID is missing; its pixels are compressed, and only that says how"
        raise build_refusal(elements.path, cause, "UNSUPPORTED_SYNTAX")
    implicit, little = dataset.original_encoding
    plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = plain if little else uid.ExplicitVRBigEndian
    elements.note(f"TransferSyntaxUID is missing; was read as {dataset.file_meta.TransferSyntaxUID.name}")
