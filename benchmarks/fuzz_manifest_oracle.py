"""What a manifest with its lesions says, for `fuzz.py`: parsed by a state machine of its own, compared with unary's.

It knows what ``docs/manifest.md`` says of each column. Where two delimiters give a meaning, either is right.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unary.records import Lesion, Manifest, ManifestRow

ROWS, COLS = 40, 30
FEWEST = {"point": 1, "contour": 3, "circle": 1, "box": 2, "mask": 0}
BIRADS = ("1", "2", "3", "4", "4a", "4b", "4c", "5", "6")
_BOOLEANS = {"": True, "yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_NUMBER = re.compile(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


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


def take_cell(text: str) -> str:
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
    fields = {name: take_cell(value) for name, value in fields.items()}
    path = folder.absolute() / fields["path"]
    birads, assessment = fields.get("birads", "").lower(), fields.get("assessment", "")
    if birads and (birads not in BIRADS or assessment not in ("", birads)):
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
    fields = {name: take_cell(value) for name, value in fields.items()}
    kind, image_id = fields["kind"].lower(), fields["image_id"]
    pairs = [pair.split() for pair in fields.get("points", "").split(";") if pair.strip()]
    if image_id not in known or kind not in FEWEST or any(len(pair) != 2 for pair in pairs):
        raise ValueError("a lesion of nothing, of no kind, or with other points")
    points = tuple((_take_number(row), _take_number(col)) for row, col in pairs)
    if len(points) < FEWEST[kind] or (kind != "contour" and len(points) > FEWEST[kind]):
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


def tell_difference(one: Manifest, other: Manifest) -> str:
    """Return the first rows or lesions that differ."""
    pairs: list[tuple[ManifestRow | Lesion, ManifestRow | Lesion]] = [
        *zip(one.rows, other.rows, strict=False), *zip(one.lesions, other.lesions, strict=False)
    ]  # fmt: skip
    return next((f"{a} {b}" for a, b in pairs if a != b), "another number of them")[:600]
