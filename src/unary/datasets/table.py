"""Tables that a person may have made in a spreadsheet: read as they are meant, or refused with file and line."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

from unary.datasets.annotation import name_some
from unary.errors import ManifestError
from unary.files import read_cell

logger = logging.getLogger(__name__)

_LARGEST_BYTES = 2**28
_SEPARATOR = re.compile(r"sep=([,;\t])\s*", re.IGNORECASE)  # the first line of some exports
_NUMBER = re.compile(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}", re.ASCII)
_ALIKE = 0.8  # 'lable' and 'patient id' are meant for 'label' and 'patient_id'

Row = tuple[int, dict[str, str]]
"""The number of the line on which a row begins, and its fields by column."""


def read_table(path: Path, *, needed: Sequence[str], known: Sequence[str] = ()) -> list[Row]:
    """Read a CSV: the rows as (line number, fields), blank ones left out.

    Commas, semicolons or tabs separate. Header names become lower case, and values are stripped.

    Parameters
    ----------
    needed
        Columns that must be there.
    known
        All columns that mean something, where others are worth a word; by default no word is said.

    Raises
    ------
    ManifestError
        If it cannot be read, a column that is needed is missing, one is there twice or is likely to be misspelt, or a
        row has more or fewer values than there are columns; naming file and line.
    """
    lines = list(itertools.dropwhile(lambda line: not any(line[1]), _split_lines(path)))
    if not lines:
        raise ManifestError(f"{path}: the column {needed[0]!r} is missing; the file is empty")
    names = [name.lower() for name in lines[0][1]]
    absent = [name for name in needed if name not in names]
    if absent:
        # a first line that names no column may hold a patient's data
        header = ", ".join(names)[:120] if {*needed, *known} & set(names) else None
        told = "its first line must name the columns" if header is None else f"the header reads {header!r}"
        raise ManifestError(f"{path}: the column {absent[0]!r} is missing; {told}{_guess(absent, names)}")
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise ManifestError(f"{path}: the column {twice[0]!r} is there twice")
    if known:
        _check_names(path, names, known)
    found = []
    for line, values in lines[1:]:
        if not any(values):
            continue
        if [value.lower() for value in values] == names and len(names) > 1:
            raise ManifestError(f"{path}, line {line}: the header once more; two tables joined? keep it once")
        if len(values) != len(names):
            raise ManifestError(
                f"{path}, line {line}: {len(values)} values for {len(names)} columns; put a value that holds the "
                "delimiter into double quotes, and leave a value empty rather than out"
            )
        fields = dict(zip(names, values, strict=True))
        if any(value for name, value in zip(names, values, strict=True) if not name):
            raise ManifestError(f"{path}, line {line}: a value in a column without a name")
        found.append((line, fields))
    return found


def _split_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The line on which each row begins, and its values."""
    text = _read_text(path)
    first = re.search(r"\S[^\r\n]*", text)
    header = first.group() if first else ""
    declared = _SEPARATOR.fullmatch(header)
    delimiter = declared.group(1) if declared else max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    table: list[tuple[int, list[str]]] = []
    line = 1
    limit = csv.field_size_limit(len(text) + 1)  # an outline may have thousands of points
    try:
        for fields in reader:
            inner = [part for value in fields for part in value.strip().splitlines()[1:]]
            if any(part.count(delimiter) >= max(len(fields) - 1, 1) for part in inner):
                raise ManifestError(f"{path}, line {line}: a value holds whole rows; a double quote that is not closed")
            table.append((line, [read_cell(value.strip()) for value in fields]))
            line = reader.line_num + 1
    except csv.Error as error:
        cause = "a double quote that is not closed" if "end of data" in str(error) else str(error)
        raise ManifestError(f"{path}, line {line}: not readable as CSV ({cause})") from error
    finally:
        csv.field_size_limit(limit)
    return table[1:] if declared else table


def _read_text(path: Path) -> str:
    """The whole of a UTF-8 file, without byte-order marks."""
    try:
        if path.exists() and not path.is_file():
            hint = "; unary manifest makes one of a folder" if path.is_dir() else ""
            raise ManifestError(f"{path}: a table is needed, not a folder, a pipe or a device{hint}")
        if path.stat().st_size > _LARGEST_BYTES:
            raise ManifestError(f"{path}: {path.stat().st_size / 2**20:.0f} MiB; is it a table?")
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    meant = "save it as 'CSV UTF-8'"
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ManifestError(f"{path}: not UTF-8 text but a spreadsheet; {meant}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(f"{path}: UTF-16, not saved as UTF-8 text; {meant}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{path}, line {line}: the byte {content[error.start]:#04x} is not UTF-8 text; {meant}"
        ) from error
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise ManifestError(f"{path}, line {line}: it holds a NUL, so that it is damaged or not UTF-8 text; {meant}")
    return text.lstrip("\ufeff")


def _check_names(path: Path, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a column that is likely to be meant for a known one that is not there; name any other unknown one."""
    unknown = [name for name in names if name and name not in known]
    guess = _guess([name for name in known if name not in names], unknown)
    if guess:
        raise ManifestError(f"{path}: {guess.removeprefix('; ')}")
    if unknown:
        logger.warning("%s: columns that mean nothing here and are not read: %s", path, name_some(unknown))


def _guess(absent: Sequence[str], names: Sequence[str]) -> str:
    """Which of these names may be meant for one that is absent, as a question; empty if none."""
    for name in names:
        for meant in difflib.get_close_matches(re.sub(r"[^a-z]+", "_", name), absent, 1, _ALIKE):
            return f"; the column {name[:40]!r} is not known, is {meant!r} meant?"
    return ""


def parse_number(text: str) -> float:
    """Return a number that may have a decimal comma.

    >>> parse_number("0,07"), parse_number("1e-3")
    (0.07, 0.001)

    Raises
    ------
    ManifestError
        If it is none, is not finite, or could be a number of thousands: 1,024.
    """
    if re.fullmatch(r"[-+]?(nan|inf(inity)?)", text, re.IGNORECASE):
        raise ManifestError(f"a finite number is needed, not {text!r}")
    if not _NUMBER.fullmatch(text):
        raise ManifestError(f"a number is needed, not {text[:40]!r}")
    if _THOUSANDS.fullmatch(text):
        raise ManifestError(f"{text!r} may be a decimal or thousands; write it with a point, or without the comma")
    number = float(text.replace(",", "."))
    if not math.isfinite(number):
        raise ManifestError(f"a finite number is needed, not {text!r}")
    return number
