"""Manifests with their lesions for `fuzz.py`: tables of every column, kind, delimiter and habit, and damage.

A manifest that is read must hold the rows and lesions that `fuzz_manifest_oracle.py` finds; written and read again, the
same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz_common import BYTES, Case, Rng, pick
from fuzz_manifest_oracle import BIRADS, COLS, FEWEST, ROWS, compare, read_strictly, take_cell, tell_difference

from unary.datasets.manifest import read_manifest, write_manifest
from unary.errors import ManifestError

IMAGES = ("a 1.pgm", "images/b.pgm", "images/C.pgm", "d.1.pgm", "größe.pgm")
MASK = "images/mask.pgm"
COLUMNS = (
    "path", "image_id", "patient_id", "label", "laterality", "view", "birads", "assessment", "density", "complete",
    "spacing_mm",
)  # fmt: skip
LESION_COLUMNS = ("image_id", "name", "kind", "points", "radius_px", "mask_path")

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
            return "FAILED: not the same when written and read again", tell_difference(found, again)
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
        "birads": (*BIRADS, "", "4A"),
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
        image_id = take_cell(row.get("image_id", "")) or Path(row["path"]).stem
        for _ in range(int(pick(rng, (0, 0, 1, 2)))):
            cells = {"image_id": image_id, "name": pick(rng, ("Mass", "Calcification", "", "cluster; of specks"))}
            cells |= _draw_shape(rng)
            table.append([cells.get(name, "") for name in names])
    return table


def _draw_shape(rng: Rng) -> dict[str, str]:
    kind = pick(rng, tuple(FEWEST))
    count = int(rng.integers(3, 9)) if kind == "contour" else FEWEST[kind]
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
