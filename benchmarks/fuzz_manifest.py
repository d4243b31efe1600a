"""Manifests with their lesions for `fuzz.py`: tables of every column, kind, delimiter and habit, damage, and an oracle.

The oracle parses tables by a state machine of its own and knows what ``docs/manifest.md`` says of each column. A
manifest that is read must hold the rows and lesions that the oracle finds; written and read again, the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_common import BYTES, Case, Rng, pick

from unary.datasets.manifest import read_manifest, write_manifest
from unary.errors import ManifestError
from unary.records import Lesion, Manifest, ManifestRow

ROWS, COLS = 40, 30
IMAGES = ("a 1.pgm", "images/b.pgm", "images/C.pgm", "d.1.pgm", "größe.pgm")
MASK = "images/mask.pgm"
COLUMNS = (
    "path", "image_id", "patient_id", "label", "laterality", "view", "birads", "assessment", "density", "complete",
    "spacing_mm",
)  # fmt: skip
LESION_COLUMNS = ("image_id", "name", "kind", "points", "radius_px", "mask_path")
_FEWEST = {"point": 1, "contour": 3, "circle": 1, "box": 2, "mask": 0}
_BIRADS = ("1", "2", "3", "4", "4a", "4b", "4c", "5", "6")
_BOOLEANS = {"": True, "yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_NUMBER = re.compile(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)

Table = list[list[str]]


@dataclass(frozen=True)
class Style:
    """How a table is written."""

    delimiter: str
    line_end: str
    quote_all: bool
    mark: bool
    separator_line: bool
    blank_lines: bool
    padded: bool


class ManifestKind:
    """A fifth of the cases are undamaged."""

    def __init__(self, folder: Path) -> None:
        self.images = dict(_make_images())

    def build_case(self, seed: int, number: int) -> Case:
        """Return the case of one number."""
        rng = np.random.default_rng((seed, number))
        tables = {"set.csv": draw_manifest(rng)}
        tables["set.lesions.csv"] = draw_lesions(rng, tables["set.csv"])
        name = "another form" if rng.random() < 0.2 else pick(rng, [*CELLS, *TEXTS, *BYTES])
        damaged = pick(rng, ("set.csv", "set.csv", "set.lesions.csv"))
        if name in CELLS:
            CELLS[name](tables[damaged], rng)
        style = draw_style(rng)
        files = {one: write_table(table, style).encode("utf-8", "surrogatepass") for one, table in tables.items()}
        if len(tables["set.lesions.csv"]) == 1 and rng.random() < 0.5:
            del files["set.lesions.csv"]
            damaged = "set.csv"
        if name in TEXTS:
            files[damaged] = TEXTS[name](files[damaged], rng)
        elif name in BYTES and files[damaged]:
            files[damaged] = BYTES[name](files[damaged], rng)
        sample = {",": "commas", ";": "semicolons", "\t": "tabs"}[style.delimiter]
        return Case(sample, name, files | self.images, None, name == "another form")

    def judge(self, case: Case, folder: Path) -> tuple[str, str]:
        """Equal rows and lesions, or a `ManifestError` that names one of the two files."""
        path = folder / "set.csv"
        try:
            found = read_manifest(path)
        except ManifestError as error:
            if not re.search(r"set(\.lesions)?\.csv", str(error)) or "\n" in str(error):
                return "FAILED: the message", str(error)[:300]
            if case.valid:
                return "FAILED: refused though ordinary", str(error)
            return "refused", describe_refusal(str(error), folder)
        try:
            readings = list(read_strictly(folder, case.files))
        except ValueError as error:
            return "FAILED: second reader refuses", str(error)
        faults = [compare(found, rows, lesions, folder) for rows, lesions in readings]
        if "" not in faults:
            return "FAILED: rows differ", faults[0]
        target = folder / "again.csv"
        write_manifest(found, target)
        again = read_manifest(target)
        if again != found:
            return "FAILED: not the same when written and read again", _tell_difference(found, again)
        return ("equal" if case.valid else "as stored"), ""


def describe_refusal(message: str, folder: Path) -> str:
    """What was refused, without what is particular to a file: for the table of reasons."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", message.replace(str(folder), ""))
    known = (
        "is missing", "is there twice", "values for", "not readable as CSV", "UTF", "NUL", "must be unique",
        "not there", "lists no image", "is empty", "birads", "label must", "complete must", "laterality", "spacing_mm",
        "kind must", "needs", "radius", "mask", "does not list", "points read", "one image", "outside their",
        "header once more", "without a name", "is not known", "cannot be read", "a number", "a finite", "line break",
    )  # fmt: skip
    return next((words for words in known if words in text), text[:60])


def _make_images() -> Iterator[tuple[str, bytes]]:
    head = f"P5 {COLS} {ROWS} 255\n".encode()
    for number, name in enumerate((*IMAGES, MASK)):
        yield name, head + bytes((place * (number + 2)) % 256 for place in range(ROWS * COLS))


# Samples.


def draw_manifest(rng: Rng) -> Table:
    """A header and a row for each of some images, with any of the columns in any order."""
    names = ["path", *(name for name in COLUMNS[1:] if rng.random() < 0.6)]
    if "birads" in names and "assessment" in names:
        names.remove(pick(rng, ("birads", "assessment")))
    names = [names[place] for place in rng.permutation(len(names))]
    if rng.random() < 0.15:
        names.insert(int(rng.integers(len(names) + 1)), "remarks of nobody")
    shown = [pick(rng, (name, name.upper(), name.title(), f" {name} ")) for name in names]
    images = [IMAGES[place] for place in rng.permutation(len(IMAGES))[: int(rng.integers(1, len(IMAGES) + 1))]]
    return [shown, *([_draw_cell(rng, name, image) for name in names] for image in images)]


def _draw_cell(rng: Rng, name: str, image: str) -> str:
    number = IMAGES.index(image)
    options: dict[str, tuple[str, ...]] = {
        "path": (image, f"./{image}", f"images/../{image}"),
        "image_id": (f"id {number}", f"{number}", f"'=1+{number}", f"=x{number}", "") if number else ("", "0"),
        "patient_id": ("p1", "p2", f"Müller, {number}", f'"{number}"', f"a;b{number}", f"'-{number}x", f"p\t{number}"),
        "label": ("negative", "positive", "", "Positive", "NEGATIVE"),
        "laterality": ("L", "R", "", "left", "Right", "l"),
        "view": ("CC", "MLO", "", "mlo"),
        "birads": (*_BIRADS, "", "4A"),
        "assessment": ("nothing seen", "4a", "", "pneumonia, left", "1"),
        "density": ("1", "2", "3", "4", ""),
        "complete": ("yes", "no", "", "TRUE", "false", "1", "0", "No"),
        "spacing_mm": ("0.07", "0,1", "", "1e-1", "0.2", "1", ".5"),
        "remarks of nobody": ("", "said", "a, b; c"),
    }
    return pick(rng, options[name])


def draw_lesions(rng: Rng, manifest: Table) -> Table:
    """A header and lesions of the images of a manifest, inside them."""
    names = [LESION_COLUMNS[place] for place in rng.permutation(len(LESION_COLUMNS))]
    table, lower = [names], [name.strip().lower() for name in manifest[0]]
    for values in manifest[1:]:
        row = dict(zip(lower, values, strict=True))
        image_id = _take_cell(row.get("image_id", "")) or Path(row["path"]).stem
        for _ in range(int(pick(rng, (0, 0, 1, 2)))):
            cells = {"image_id": image_id, "name": pick(rng, ("Mass", "Calcification", "", "cluster; of specks"))}
            cells |= _draw_shape(rng)
            table.append([cells.get(name, "") for name in names])
    return table


def _draw_shape(rng: Rng) -> dict[str, str]:
    kind = pick(rng, tuple(_FEWEST))
    count = int(rng.integers(3, 9)) if kind == "contour" else _FEWEST[kind]
    points = [(f"{rng.uniform(5, ROWS - 5):.3g}", f"{rng.uniform(5, COLS - 5):.3g}") for _ in range(count)]
    text = pick(rng, ("; ", ";", " ; ")).join(f"{row} {col}" for row, col in points)
    radius = pick(rng, ("3", "2.5", "2,5", "0.5")) if kind == "circle" else ""
    return {"kind": kind, "points": text, "radius_px": radius, "mask_path": MASK if kind == "mask" else ""}


def draw_style(rng: Rng) -> Style:
    """As spreadsheets and people write tables."""
    chances = rng.random(5) < (0.2, 0.2, 0.1, 0.15, 0.15)
    return Style(pick(rng, (",", ";", "\t")), pick(rng, ("\n", "\r\n", "\n", "\r")), *map(bool, chances))


def write_table(table: Table, style: Style) -> str:
    """The text of a table."""
    lines = [style.delimiter.join(_quote(cell, style) for cell in row) for row in table]
    if style.blank_lines:
        lines[1:1] = ["", style.delimiter * (len(table[0]) - 1)]
    if style.separator_line:
        lines.insert(0, f"sep={style.delimiter}")
    return ("\ufeff" if style.mark else "") + style.line_end.join(lines) + style.line_end


def _quote(cell: str, style: Style) -> str:
    needed = style.quote_all or any(mark in cell for mark in (style.delimiter, '"', "\n", "\r"))
    return '"' + cell.replace('"', '""') + '"' if needed else f" {cell} " if style.padded and cell else cell


# The oracle.


def read_strictly(
    folder: Path, files: dict[str, bytes]
) -> Iterator[tuple[list[dict[str, Any]], list[tuple[Any, ...]]]]:
    """Yield the rows and lesions that these files can mean, by each delimiter; a ValueError if none can be."""
    said = ValueError("no delimiter")
    found = False
    for delimiter in ",;\t":
        try:
            rows = [_take_row(fields, folder) for fields in _read_table(files["set.csv"], delimiter, ("path",))]
            if not rows or len({row["image_id"] for row in rows}) < len(rows):
                raise ValueError("no row, or an image_id twice")
        except (ValueError, OSError) as error:
            said = error if isinstance(error, ValueError) else ValueError(str(error))
            continue
        if "set.lesions.csv" not in files:
            found = True
            yield rows, []
            continue
        known = {row["image_id"] for row in rows}
        for other in ",;\t":
            try:
                table = _read_table(files["set.lesions.csv"], other, ("image_id", "kind"))
                lesions = [_take_lesion(fields, folder, known) for fields in table]
            except (ValueError, OSError) as error:
                said = error if isinstance(error, ValueError) else ValueError(str(error))
                continue
            found = True
            yield rows, lesions
    if not found:
        raise said


def _read_table(content: bytes, delimiter: str, needed: tuple[str, ...]) -> list[dict[str, str]]:
    text = content.decode("utf-8").lstrip("\ufeff")
    if "\0" in text:
        raise ValueError("a NUL")
    table = [row for row in ([cell.strip() for cell in cells] for cells in parse(text, delimiter)) if any(row)]
    if table and re.fullmatch(r"sep=[,;\t]?", "".join(table[0]), re.IGNORECASE):
        table = table[1:]
    names = [name.lower() for name in table[0]] if table else []
    if any(names.count(name) != 1 for name in needed) or len({*names} - {""}) < len([name for name in names if name]):
        raise ValueError("columns that are missing or twice")
    if any(len(row) != len(names) for row in table[1:]):
        raise ValueError("a row of another length")
    return [dict(zip(names, row, strict=True)) for row in table[1:]]


def parse(text: str, delimiter: str) -> list[list[str]]:
    """Rows of cells, after RFC 4180, with any line ends; a ValueError where a quote is not closed or not alone."""
    rows: list[list[str]] = []
    row: list[str] = []
    place = 0
    while place <= len(text):
        if text[place : place + 1] == '"':
            cell, place = _parse_quoted(text, place + 1)
        else:
            end = place
            while end < len(text) and text[end] not in (delimiter, "\r", "\n"):
                end += 1
            cell, place = text[place:end], end
        row.append(cell)
        following = text[place : place + 1]
        if following == delimiter:
            place += 1
            continue
        if following not in ("", "\r", "\n"):
            raise ValueError("something behind a closing quote")
        rows.append(row)
        row = []
        place += 2 if text[place : place + 2] == "\r\n" else 1
    return rows


def _parse_quoted(text: str, place: int) -> tuple[str, int]:
    cell = ""
    while True:
        end = text.find('"', place)
        if end < 0:
            raise ValueError("a quote that is not closed")
        cell += text[place:end]
        if text[end + 1 : end + 2] != '"':
            return cell, end + 1
        cell, place = cell + '"', end + 2


def _take_cell(text: str) -> str:
    """A cell without the apostrophe that guards a formula."""
    return text[1:] if re.match(r"'+\s*[=+\-@]", text) else text


def _take_number(text: str) -> float | None:
    if not text:
        return None
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text.replace(",", "."))):
        raise ValueError(f"{text!r} is no number")
    return float(text.replace(",", "."))


def _take_row(fields: dict[str, str], folder: Path) -> dict[str, Any]:
    if not fields["path"]:
        raise ValueError("no path")
    fields = {name: _take_cell(value) for name, value in fields.items()}
    path = folder.absolute() / fields["path"]
    birads, assessment = fields.get("birads", "").lower(), fields.get("assessment", "")
    if birads and (birads not in _BIRADS or assessment not in ("", birads)):
        raise ValueError("no such BI-RADS")
    label = fields.get("label", "").lower() or ({"": "", "1": "negative", "2": "negative"}.get(birads[:1], "positive"))
    side = fields.get("laterality", "").upper()
    spacing = _take_number(fields.get("spacing_mm", ""))
    if label not in ("", "negative", "positive") or side not in ("", "L", "R", "LEFT", "RIGHT"):
        raise ValueError("no such label or side")
    if spacing is not None and not 0 < spacing < 100:
        raise ValueError("no such spacing")
    image_id = fields.get("image_id") or path.stem
    return {
        "path": path,
        "image_id": image_id,
        "patient_id": fields.get("patient_id") or image_id,
        "label": label or None,
        "laterality": side[:1] or None,
        "view": fields.get("view", "").upper() or None,
        "assessment": birads or assessment or None,
        "density": fields.get("density") or None,
        "complete": _BOOLEANS[_require(fields.get("complete", "").lower())],
        "spacing_mm": spacing,
    }


def _require(text: str) -> str:
    if text not in _BOOLEANS:
        raise ValueError("neither complete nor not")
    return text


def _take_lesion(fields: dict[str, str], folder: Path, known: set[str]) -> tuple[Any, ...]:
    fields = {name: _take_cell(value) for name, value in fields.items()}
    kind, image_id = fields["kind"].lower(), fields["image_id"]
    pairs = [pair.split() for pair in fields.get("points", "").split(";") if pair.strip()]
    if image_id not in known or kind not in _FEWEST or any(len(pair) != 2 for pair in pairs):
        raise ValueError("a lesion of nothing, of no kind, or with other points")
    points = tuple((_take_number(row), _take_number(col)) for row, col in pairs)
    if len(points) < _FEWEST[kind] or (kind != "contour" and len(points) > _FEWEST[kind]):
        raise ValueError("another number of points")
    if kind == "box":
        points = (tuple(map(min, *points)), tuple(map(max, *points)))  # type: ignore[type-var,arg-type]
    radius = _take_number(fields.get("radius_px", ""))
    mask = fields.get("mask_path", "")
    if (kind == "circle" and (radius is None or radius < 0)) or (kind == "mask") != bool(mask):
        raise ValueError("no radius, or a mask of no mask")
    if mask and not (folder / mask).is_file():
        raise ValueError("no mask there")
    return (image_id, fields.get("name") or "lesion", kind, points, radius, folder.absolute() / mask if mask else None)


def compare(found: Manifest, rows: list[dict[str, Any]], lesions: list[tuple[Any, ...]], folder: Path) -> str:
    """Return how a manifest differs from what the oracle read; empty if it does not."""
    kept = {row.image_id: row for row in found.rows}
    by_id = {row["image_id"]: row for row in rows}
    if set(kept) - set(by_id):
        return f"foreign rows: {set(kept) - set(by_id)}"
    files = {image_id: _find_file(row["path"]) for image_id, row in by_id.items()}
    twice = Counter(files.values())
    for image_id, row in by_id.items():
        if image_id not in kept:
            others = [one for one in kept if files[one] == files[image_id]]
            if twice[files[image_id]] > 1 and others:
                continue  # one image under two names
            return f"the row {image_id!r} is missing"
        fault = _compare_row(kept[image_id], row, lesions)
        if fault:
            return fault
    expected = {one for one in lesions if one[0] in kept}
    returned = [(one.image_id, one.name, one.kind, one.points, one.radius_px, one.mask_path) for one in found.lesions]
    if set(returned) != expected or len(set(returned)) < len(returned):
        return f"lesions: {set(returned) ^ expected}"
    return ""


def _find_file(path: Path) -> Any:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return path
    return (status.st_dev, status.st_ino)


def _compare_row(row: ManifestRow, expected: dict[str, Any], lesions: list[tuple[Any, ...]]) -> str:
    for name, value in expected.items():
        got = getattr(row, name)
        if name == "complete":
            own = [one for one in lesions if one[0] == row.image_id]
            bare = bool(lesions) and expected["label"] == "positive" and not own
            outside = [_lies_outside(one) for one in own]
            if got and (not value or any(one is True for one in outside)):
                return f"{row.image_id!r} counts as complete"
            if not got and value and not bare and all(one is False for one in outside):
                return f"{row.image_id!r} counts as incomplete"
        elif got != value:
            return f"{row.image_id!r}: {name} is {got!r}, not {value!r}"
    return ""


def _lies_outside(lesion: tuple[Any, ...]) -> bool | None:
    """Whether a lesion lies outside its image: certainly, certainly not, or near the edge (None)."""
    kind, points, radius = lesion[2:5]
    if kind == "mask":
        return False
    corners, reach = np.asarray(points, float), (radius or 0) + 2
    low, high = corners.min(axis=0), corners.max(axis=0)
    if ((low - reach > (ROWS, COLS)) | (high + reach < 0)).any():
        return True
    return False if (low >= 0).all() and (high <= (ROWS, COLS)).all() else None


def _tell_difference(one: Manifest, other: Manifest) -> str:
    pairs: list[tuple[ManifestRow | Lesion, ManifestRow | Lesion]] = [
        *zip(one.rows, other.rows, strict=False), *zip(one.lesions, other.lesions, strict=False)
    ]  # fmt: skip
    return next((f"{a} {b}" for a, b in pairs if a != b), "another number of them")[:600]


# Damage.

_ODD = (
    "", " ", "nan", "inf", "-inf", "-1", "0", "1e308", "1e999", "99999999999999999999", "1,024", "0x10", "1_000", "٣",
    "1.2.3", "=1+1", "'", '"', "''=x", "@a", "\u00a0", "a\u2028b", "ünï", "x" * 5000, "yes", "L", "4d", "7", "\ud800",
    "\u202e", "null", "negative", "positive", "maybe", "point", "box", "circle", "mask", "contour", "polygon", "1 2",
    "1 2; 3 4", "1 2 3", "3 4; 1 2", "100 100", "-5 -5; -2 -2", "35 25; 45 35", "1 2;", "1;2", "nan nan", "1e400 1",
    "0.07;0.07", "a\nb", "\r", "\v",
)  # fmt: skip
_PATHS = (
    "nowhere.pgm", "", ".", "..", "images", "/", "/dev/zero", "/dev/null", "/proc/self/status", "~", "a 1.pgm\0",
    "x" * 300, "y/" * 3000, "images\\b.pgm", "file:///a 1.pgm", "A 1.PGM", "set.csv", "images/mask.pgm",
    "./images/./b.pgm", "a 1.pgm/x",
)  # fmt: skip


def _edit_cell(table: Table, rng: Rng) -> None:
    row = int(rng.integers(len(table)))
    column = int(rng.integers(len(table[row])))
    named = table[0][column].strip().lower() if column < len(table[0]) else ""
    table[row][column] = pick(rng, _PATHS if "path" in named and rng.random() < 0.7 else _ODD)


def _edit_value(table: Table, rng: Rng) -> None:
    """As `_edit_cell`, never the header, and twice."""
    for _ in range(2):
        if len(table) > 1:
            part = table[1:]
            row = pick(rng, part)
            column = int(rng.integers(len(row)))
            row[column] = pick(rng, _ODD)


def _copy_cell(table: Table, rng: Rng) -> None:
    """A cell that stands in another row, too, or in another column."""
    source, target = pick(rng, table), pick(rng, table)
    target[int(rng.integers(len(target)))] = source[int(rng.integers(len(source)))]


def _edit_header(table: Table, rng: Rng) -> None:
    place = int(rng.integers(len(table[0])))
    name = table[0][place]
    others = (
        name[:-1],
        name + "s",
        name.replace("_", " "),
        "",
        pick(rng, COLUMNS),
        pick(rng, LESION_COLUMNS),
        "x",
        name[::-1],
    )
    table[0][place] = pick(rng, others)


def _drop_column(table: Table, rng: Rng) -> None:
    place = int(rng.integers(len(table[0])))
    for row in table:
        del row[place : place + 1]


def _swap_columns(table: Table, rng: Rng) -> None:
    """Values of two columns exchanged below their names."""
    one, other = (int(place) for place in rng.integers(len(table[0]), size=2))
    for row in table[1:]:
        row[one], row[other] = row[other], row[one]


def _add_column(table: Table, rng: Rng) -> None:
    name = pick(rng, (*COLUMNS, *LESION_COLUMNS, "", "patient id", "lable", "note"))
    place = int(rng.integers(len(table[0]) + 1))
    for number, row in enumerate(table):
        row.insert(place, pick(rng, _ODD) if number else name)


def _repeat_row(table: Table, rng: Rng) -> None:
    source = list(pick(rng, table))
    if rng.random() < 0.6:
        source[int(rng.integers(len(source)))] = pick(rng, _ODD)
    table.insert(int(rng.integers(len(table) + 1)), source)


def _lose_row(table: Table, rng: Rng) -> None:
    del table[int(rng.integers(len(table)))]
    if not table:
        table.append([""])


def _change_length(table: Table, rng: Rng) -> None:
    row = pick(rng, table)
    if rng.random() < 0.5 and len(row) > 1:
        del row[int(rng.integers(len(row)))]
    else:
        row.insert(int(rng.integers(len(row) + 1)), pick(rng, _ODD))


CELLS: dict[str, Callable[[Table, Rng], None]] = {
    "edit a cell": _edit_cell,
    "edit values": _edit_value,
    "copy a cell": _copy_cell,
    "edit the header": _edit_header,
    "drop a column": _drop_column,
    "exchange columns": _swap_columns,
    "add a column": _add_column,
    "repeat a row": _repeat_row,
    "lose a row": _lose_row,
    "a row of another length": _change_length,
}


def _encode_anew(content: bytes, rng: Rng) -> bytes:
    text = content.decode("utf-8", "surrogateescape").replace("\udce9", "e")
    code = pick(rng, ("latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "cp037"))
    return text.encode(code, "replace")


def _insert_marks(content: bytes, rng: Rng) -> bytes:
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(content) + 1))
        mark = pick(
            rng, (b'"', b'""', b",", b";", b"\t", b"\n", b"\r", b"\0", b"'", b"\xef\xbb\xbf", b"\\", b"\x1a", b"\x0c")
        )
        content = content[:place] + mark + content[place:]
    return content


def _replace_marks(content: bytes, rng: Rng) -> bytes:
    old = pick(rng, (b'"', b",", b";", b"\t", b"\n", b"\r", b" ", b".", b"_"))
    return content.replace(old, pick(rng, (b"", b'"', b",", b";", b"\t", b"\n", b"|", b" ")), int(rng.integers(1, 9)))


def _replace_whole(content: bytes, rng: Rng) -> bytes:
    return pick(
        rng,
        (
            b"", b"\n", b"\xef\xbb\xbf", b"path", b"path\n", b"path\n\n\n", b"PK\x03\x04" + content, content + content,
            b"\xd0\xcf\x11\xe0" + bytes(500), b"path," * 5000, b'path\n"' + b"x" * 200_000, b"{}", b"<html>" + content,
            content.replace(b"\n", b"\n\n\n"), content + b"\x1a", b"sep=;\n" + content, b"sep=|\n" + content,
            content + b'"', b"# a comment\n" + content, b",".join([b"path"] * 300), b"path\n" + b"a 1.pgm\n" * 3000,
        ),
    )  # fmt: skip


TEXTS: dict[str, Callable[[bytes, Rng], bytes]] = {
    "another encoding": _encode_anew,
    "insert marks": _insert_marks,
    "replace marks": _replace_marks,
    "replace the whole": _replace_whole,
}
