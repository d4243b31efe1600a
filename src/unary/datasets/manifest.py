"""The manifest: one CSV row per image, and a second CSV of lesions beside it.

A person can write it by hand in a spreadsheet. Only ``path`` is needed; commas, semicolons or tabs separate; a
byte-order mark, blank lines, upper-case headers and stray spaces do no harm. See ``docs/manifest.md``.

The category of the reading stands in the column ``birads``, whose values are checked and imply a label, or, for any
other kind of image, in the column ``assessment``, which holds free words.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import logging
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from unary.errors import ManifestError
from unary.files import read_cell, write_csv
from unary.profiles.mammography import MAMMOGRAPHY
from unary.records import LESION_KINDS, Image, Label, Lesion, Manifest, ManifestRow

logger = logging.getLogger(__name__)

BIRADS = MAMMOGRAPHY.reading.assessments
_BOOLEANS = {"": True, "yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_FEWEST_POINTS = {"point": 1, "contour": 3, "circle": 1, "box": 2, "mask": 0}


def label_of_birads(birads: str | None) -> Label | None:
    """Return the paper's label: BI-RADS 1 and 2 negative, 3 to 6 positive (Wei et al. 2018, section 2)."""
    return None if birads is None else "negative" if birads[0] in "12" else "positive"


def known_density(text: str | None) -> str | None:
    """Return an ACR density of 1 to 4, or None for what is none."""
    return text if text in ("1", "2", "3", "4") else None


def find_entry(folder: Path, name: str, absence: str) -> Path:
    """Return what has this name, in upper or lower case, in a folder or in one of its sub-folders.

    Raises
    ------
    ManifestError
        If there is no such folder, or nothing in it; ``absence`` says so.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder")
    for candidate in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in candidate.iterdir():
            if path.name.lower() == name.lower():
                return path
    raise ManifestError(f"{folder}: {absence}")


def build_manifest(
    images: Iterable[Image | ArrayLike | Path | str],
    patients: Sequence[str] | None = None,
    labels: Sequence[Label | None] | None = None,
) -> Manifest:
    """Make a manifest of images in memory, or of files, without a CSV.

    Parameters
    ----------
    images
        Images as `unary.read_image` returns them, arrays of shape (rows, cols) (`Image.from_array`, which can also be
        told the pixel spacing), or paths.
    patients
        Whose each image is; by default each is a patient of its own, who in memory is known by the pixels, so that an
        image that a model has learned from is recognised and another is not taken for it.
    labels
        ``"negative"``, ``"positive"`` or None of each; by default unknown.

    Returns
    -------
    Manifest
        Its ``image_id`` are the files' stems, and numbers where there is no file or two have one stem.

    Raises
    ------
    ManifestError
        If there is no image, or the other sequences differ in length or hold something else.
    ImageError
        If an array is no image.
    """
    if isinstance(images, (Image, Path, str)):
        raise ManifestError("a sequence of images, arrays or paths is needed, got one alone; put it into a list")
    given = [
        one if isinstance(one, Image) else Path(one) if isinstance(one, (str, Path)) else Image.from_array(one)
        for one in images
    ]
    if not given:
        raise ManifestError("a manifest needs at least one image, there is none")
    for name, values in (("patients", patients), ("labels", labels)):
        if values is not None and len(values) != len(given):
            raise ManifestError(f"{name} must be as many as the images: {len(given)}, not {len(values)}")
    wrong = set(labels or ()) - {"negative", "positive", None}
    if wrong:
        raise ManifestError(f"labels must be 'negative', 'positive' or None, not {wrong.pop()!r}")
    paths = [one.path if isinstance(one, Image) else one for one in given]
    names = [f"image_{number}" if path is None else path.stem for number, path in enumerate(paths, 1)]
    if len(set(names)) < len(names):
        names = [f"{number}_{name}" for number, name in enumerate(names, 1)]
    rows = [
        ManifestRow(
            path=None if isinstance(one, Image) else one.absolute(),
            image_id=name,
            patient_id=_name_patient(one, name) if patients is None else str(patients[number]),
            label=None if labels is None else labels[number],
            laterality=one.laterality if isinstance(one, Image) else None,
            view=one.view if isinstance(one, Image) else None,
            image=one if isinstance(one, Image) else None,
        )
        for number, (one, name) in enumerate(zip(given, names, strict=True))
    ]
    return Manifest(tuple(rows))


def _name_patient(image: Image | Path, name: str) -> str:
    """The file's stem, as in a manifest that says nothing of patients; without a file, a hash of the pixels."""
    if isinstance(image, Path) or image.path is not None:
        return name
    return hashlib.sha256(np.ascontiguousarray(image.pixels).tobytes()).hexdigest()[:16]


def lesions_path(path: Path) -> Path:
    """Return where the lesions of a manifest lie: ``M.csv`` has ``M.lesions.csv``."""
    return path.with_name(f"{path.stem}.lesions.csv")


def read_manifest(path: Path | str) -> Manifest:
    """Read a manifest and, if there is one, its file of lesions; relative paths in a file count from its folder.

    Raises
    ------
    ManifestError
        Naming file, line and cause: nothing in it, not one image where it says, an id twice, a value out of range, a
        lesion of an unknown image.
    """
    path = Path(path)
    lines = read_table(path, needed=("path",))
    rows = [_parse_row(fields, path, line) for line, fields in lines]
    if not rows:
        raise ManifestError(f"{path}: it lists no image")
    places: dict[str, list[str]] = {}
    missing = []
    for (line, _), row in zip(lines, rows, strict=True):
        places.setdefault(row.image_id, []).append(str(line))
        if row.path is not None and not row.path.is_file():
            missing.append(f"line {line} {row.path}")
    if missing:
        told = (
            f"{path}: {len(missing)} of {len(rows)} images are not there: {', '.join(missing[:10])}; moved, or "
            "relative to another folder?"
        )
        if len(missing) == len(rows):
            raise ManifestError(told)
        logger.warning("%s", told)  # whoever reads the images skips and counts them
    twice = [f"{name} (lines {', '.join(at)})" for name, at in places.items() if len(at) > 1]
    if twice:
        raise ManifestError(f"{path}: the image_id must be unique; repeated: {'; '.join(twice[:10])}")
    if not any(fields.get("patient_id") for _, fields in lines):
        logger.warning("%s: no patient_id: every image counts as a patient of its own", path)
    beside = lesions_path(path)
    lesions = _read_lesions(beside, places.keys()) if beside.exists() else ()
    return Manifest(tuple(rows), lesions)


def read_table(path: Path, *, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV that a person may have made: the rows as (line number, fields), blank ones left out.

    Header names become lower case, values are stripped, and what a row does not have is an empty string.

    Raises
    ------
    ManifestError
        If it cannot be read, lacks a column that is needed, or has one twice; naming file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            error.strerror
            if isinstance(error, OSError)
            else "not UTF-8 text; a spreadsheet instead of a CSV, or a CSV not saved as UTF-8?"
        )
        raise ManifestError(f"{path}: cannot be read ({reason})") from error
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        table = [(reader.line_num, [read_cell(value.strip()) for value in fields]) for fields in reader]
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: not readable as CSV ({error})") from error
    names = [name.lower() for name in table[0][1]] if table else []
    absent = [name for name in needed if name not in names]
    if absent:
        raise ManifestError(f"{path}: the column {absent[0]!r} is missing; the header reads {header.strip()[:120]!r}")
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise ManifestError(f"{path}: the column {twice[0]!r} is there twice")
    found = []
    for line, values in table[1:]:
        if any(values[len(names) :]):
            raise ManifestError(
                f"{path}, line {line}: {len(values)} values for {len(names)} columns; put a value that holds the "
                "delimiter into double quotes"
            )
        if any(values):
            found.append((line, dict(itertools.zip_longest(names, values[: len(names)], fillvalue=""))))
    return found


def _parse_row(fields: dict[str, str], manifest: Path, line: int) -> ManifestRow:
    where = f"{manifest}, line {line}"
    if not fields.get("path"):
        raise ManifestError(f"{where}: the path is empty")
    image = manifest.parent.absolute() / fields["path"]
    image_id = fields.get("image_id") or image.stem
    birads, assessment = (fields.get("birads") or "").lower() or None, fields.get("assessment") or None
    if birads is not None and birads not in BIRADS:
        raise ManifestError(f"{where}: birads must be one of {', '.join(BIRADS)} or empty, not {birads!r}")
    if birads is not None and assessment not in (None, birads):
        raise ManifestError(f"{where}: birads is {birads!r} but assessment {assessment!r}; state one of them")
    label = (fields.get("label") or "").lower() or label_of_birads(birads)
    if label not in ("negative", "positive", None):
        raise ManifestError(f"{where}: label must be negative, positive or empty, not {label!r}")
    complete = _BOOLEANS.get((fields.get("complete") or "").lower())
    if complete is None:
        raise ManifestError(f"{where}: complete must be yes or no, not {fields['complete']!r}")
    spacing = _parse_number(fields.get("spacing_mm"), "spacing_mm", where)
    if spacing is not None and not 0 < spacing < 100:
        raise ManifestError(f"{where}: spacing_mm must be a positive number of millimetres, not {spacing}")
    side = fields.get("laterality") or ""
    if side.upper() not in ("", "L", "R", "LEFT", "RIGHT"):
        raise ManifestError(f"{where}: laterality must be L, R or empty, not {side!r}")
    return ManifestRow(
        path=image,
        image_id=image_id,
        patient_id=fields.get("patient_id") or image_id,
        label=label,  # type: ignore[arg-type]
        laterality=side[:1].upper() or None,
        view=(fields.get("view") or "").upper() or None,
        assessment=birads or assessment,
        density=fields.get("density") or None,
        complete=complete,
        spacing_mm=spacing,
    )


def _parse_number(text: str | None, name: str, where: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text.replace(",", "."))
    except ValueError as error:
        raise ManifestError(f"{where}: {name} must be a number, not {text!r}") from error
    if not math.isfinite(number):
        raise ManifestError(f"{where}: {name} must be a finite number, not {text!r}")
    return number


def _read_lesions(path: Path, image_ids: Collection[str]) -> tuple[Lesion, ...]:
    """Read a file of lesions, each of which must belong to one of the images."""
    lesions = []
    for line, fields in read_table(path, needed=("image_id", "kind")):
        where = f"{path}, line {line}"
        image_id, kind = fields["image_id"], fields["kind"].lower()
        if image_id not in image_ids:
            raise ManifestError(f"{where}: a lesion of the image {image_id!r}, which the manifest does not list")
        if kind not in LESION_KINDS:
            raise ManifestError(f"{where}: kind must be one of {', '.join(LESION_KINDS)}, not {kind!r}")
        points = _parse_points(fields.get("points") or "", where)
        fewest = _FEWEST_POINTS[kind]
        if len(points) < fewest or (kind != "contour" and len(points) > fewest):
            more = " or more" if kind == "contour" else ""
            raise ManifestError(f"{where}: a {kind} needs {fewest} point(s){more}, not {len(points)}")
        radius = _parse_number(fields.get("radius_px"), "radius_px", where)
        if kind == "circle" and (radius is None or radius < 0):
            raise ManifestError(f"{where}: a circle needs a radius_px")
        mask = path.parent.absolute() / fields["mask_path"] if fields.get("mask_path") else None
        if (kind == "mask") != (mask is not None):
            raise ManifestError(f"{where}: a mask_path goes with the kind mask, and with no other")
        if mask is not None and not mask.is_file():
            raise ManifestError(f"{where}: the mask {mask} is not there")
        lesions.append(Lesion(image_id, fields.get("name") or "lesion", kind, points, radius, mask))
    return tuple(lesions)


def _parse_points(text: str, where: str) -> tuple[tuple[float, float], ...]:
    try:
        points = [(float(row), float(col)) for row, col in (pair.split() for pair in text.split(";") if pair.strip())]
        if not np.isfinite(points).all():
            raise ValueError("a point that is not finite")
    except ValueError as error:
        raise ManifestError(f"{where}: points read 'row col; row col; ...', not {text[:80]!r}") from error
    return tuple(points)


def write_manifest(manifest: Manifest, path: Path | str) -> None:
    """Write a manifest and its lesions; paths below its folder are written relative, so that both can move together.

    The category of the reading goes into the column ``birads`` where all of them are BI-RADS, else into ``assessment``.

    Lesions, if there are any, go to `lesions_path`. Files there are replaced.

    Raises
    ------
    ManifestError
        If an image is in memory alone.
    """
    path = Path(path)
    # The column birads implies a label where none is given, so that rows without one need the other column.
    is_birads = all(row.assessment is None or (row.assessment in BIRADS and row.label) for row in manifest.rows)
    plain = ("image_id", "patient_id", "label", "laterality", "view", "assessment", "density")
    header = ["path", *plain, "complete", "spacing_mm"]
    rows = []
    for row in manifest.rows:
        if row.path is None:
            raise ManifestError(f"{path}: the image {row.image_id!r} is in memory alone and has no path to list")
        values = (getattr(row, name) for name in plain)
        rows.append((_shorten(row.path, path.parent), *values, "yes" if row.complete else "no", row.spacing_mm))
    write_csv(path, ["birads" if is_birads and name == "assessment" else name for name in header], rows)
    lesions = [
        (
            *(lesion.image_id, lesion.name, lesion.kind),
            "; ".join(f"{float(row)!r} {float(col)!r}" for row, col in lesion.points),
            *(lesion.radius_px, None if lesion.mask_path is None else _shorten(lesion.mask_path, path.parent)),
        )
        for lesion in manifest.lesions
    ]
    if lesions:
        write_csv(lesions_path(path), ("image_id", "name", "kind", "points", "radius_px", "mask_path"), lesions)
    else:
        lesions_path(path).unlink(missing_ok=True)


def _shorten(path: Path, folder: Path) -> str:
    absolute, base = path.absolute(), folder.absolute()
    return str(absolute.relative_to(base) if absolute.is_relative_to(base) else absolute)
