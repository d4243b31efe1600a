"""Reading INbreast (Moreira et al. 2012) as its authors release it.

``AllDICOMs/<id>_<patient>_MG_<R|L>_<CC|ML>_ANON.dcm`` holds the images, ``AllXML/<id>.xml`` the lesions as OsiriX
property lists, ``INbreast.csv`` (semicolons) or ``INbreast.xls`` BI-RADS and density. ``ML`` in a file name stands for
the MLO view.
"""

from __future__ import annotations

import csv
import plistlib
import re
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from unary.datasets.annotation import count_names
from unary.datasets.manifest import BIRADS, find_entry, known_density, label_of_birads
from unary.datasets.table import read_table
from unary.errors import ManifestError
from unary.records import Lesion, Manifest, ManifestRow

_FILE_NAME = re.compile(
    r"(?P<image>\d+)_(?P<patient>[^_]+)_MG_(?P<side>[RL])_(?P<view>[A-Z]+)_ANON\.dcm", re.IGNORECASE
)
_MARKS = ("complete", "partial", "none")
_NUMBER = r"([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)"
_POINT = re.compile(rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[,)]")


def read_inbreast(folder: Path, *, annotation: Path | None = None) -> tuple[Manifest, tuple[str, ...]]:
    """Read the release into a manifest.

    Parameters
    ----------
    folder
        Holds ``AllDICOMs``, or a folder that does.
    annotation
        A CSV with the columns ``image_id`` and ``annotation``; images marked ``partial`` list only some of their
        lesions. The true release needs none.

    Returns
    -------
    tuple
        The manifest, and notices: images without lesions although their BI-RADS is above 1, lesion files without an
        image, ids that only the table or only the folder has, files that are no images, regions without points. An
        image with such a region counts as incomplete.

    Raises
    ------
    ManifestError
        If images or table are missing or unreadable, or the table lists an image twice with different values.
    """
    pictures = find_entry(folder, "AllDICOMs", "no folder AllDICOMs in it; is it an INbreast release?")
    root = pictures.parent
    table, notices = _read_table(root)
    partial = _read_annotation(annotation) if annotation is not None else set()
    files = _find_lesion_files(root)
    foreign: list[str] = []
    bare: list[str] = []
    rows, lesions = [], []
    for path in sorted(pictures.iterdir()):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None or not path.is_file():
            foreign.append(path.name)
            continue
        image_id = match["image"]
        birads, density = table.get(image_id, (None, None))
        found, remarks = _read_osirix(files[image_id], image_id) if image_id in files else ([], [])
        lesions += found
        notices += remarks
        if not found and not remarks and birads not in (None, "1"):
            bare.append(image_id)
        view = match["view"].upper()
        rows.append(
            ManifestRow(
                path=path.absolute(),
                image_id=image_id,
                patient_id=match["patient"],
                label=label_of_birads(birads),
                laterality=match["side"].upper(),
                view="MLO" if view == "ML" else view,
                assessment=birads,
                density=density,
                complete=image_id not in partial and not remarks,
            )
        )
    if not rows:
        raise ManifestError(f"{pictures}: no INbreast image (<id>_<patient>_MG_<R|L>_<CC|ML>_ANON.dcm) there")
    known = {row.image_id for row in rows}
    notices += [
        *count_names("file", foreign, "in AllDICOMs not named like an INbreast image, left out"),
        *count_names("image", sorted(known - set(table)), "not in the table; BI-RADS and label are unknown"),
        *count_names("image", sorted(set(table) - known), "in the table, but not on disk"),
        *count_names("image", bare, "of BI-RADS above 1, but no XML file lists a lesion of it"),
        *count_names("XML file", sorted(set(files) - known), "without an image"),
        *count_names("image", sorted(partial - known), "in the annotation, but not on disk"),
    ]
    return Manifest(tuple(rows), tuple(lesions)), tuple(notices)


def _find_lesion_files(root: Path) -> dict[str, Path]:
    """The property lists by image id, whatever the case of their names."""
    folders = [path for path in sorted(root.iterdir()) if path.name.lower() == "allxml" and path.is_dir()]
    return {
        path.stem: path
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.suffix.lower() == ".xml" and not path.name.startswith(".")
    }


def _read_table(root: Path) -> tuple[dict[str, tuple[str | None, str | None]], list[str]]:
    """BI-RADS and density by image id, from the CSV or else from the spreadsheet."""
    by_name = {path.name.lower(): path for path in root.iterdir()}
    if "inbreast.csv" in by_name:
        path = by_name["inbreast.csv"]
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), delimiter=";"))
    elif "inbreast.xls" in by_name:
        path = by_name["inbreast.xls"]
        lines = _read_spreadsheet(path)
    else:
        raise ManifestError(f"{root}: neither INbreast.csv nor INbreast.xls is there")
    header = [name.strip().lower() for name in (lines[0] if lines else [])]
    absent = [name for name in ("file name", "bi-rads") if name not in header]
    if absent:
        raise ManifestError(f"{path}: the column {absent[0]!r} is missing; the header reads {header}")
    table: dict[str, tuple[str | None, str | None]] = {}
    notices = []
    for line in lines[1:]:
        fields = dict(zip(header, (value.strip() for value in line), strict=False))
        image_id = fields.get("file name", "").removesuffix(".0")
        if not image_id.isdigit():  # blank lines and the sums below the table
            continue
        birads = fields.get("bi-rads", "").lower().removesuffix(".0")
        if birads not in BIRADS:
            notices.append(f"{image_id}: BI-RADS {birads or 'missing'!r} in the table is not understood")
        density = known_density(fields.get("acr", "").removesuffix(".0"))
        values = birads if birads in BIRADS else None, density
        if table.get(image_id, values) != values:
            raise ManifestError(f"{path}: the image {image_id} is there twice, with different BI-RADS or density")
        table[image_id] = values
    if not table:
        raise ManifestError(f"{path}: no line of the table names an image")
    return table, notices


def _read_spreadsheet(path: Path) -> list[list[str]]:
    import xlrd

    try:
        sheet = xlrd.open_workbook(path).sheet_by_index(0)
    except (xlrd.XLRDError, OSError, AssertionError, IndexError) as error:
        raise ManifestError(f"{path}: not readable as an Excel 97 file ({error})") from error
    return [[str(cell.value) for cell in row] for row in sheet.get_rows()]


def _read_annotation(path: Path) -> set[str]:
    """The images that are marked as partly annotated."""
    marks: dict[str, str] = {}
    for line, fields in read_table(path, needed=("image_id", "annotation")):
        image_id, mark = fields["image_id"], fields["annotation"].lower()
        if mark not in _MARKS or marks.setdefault(image_id, mark) != mark:
            told = f"annotation must be {', '.join(_MARKS)}, and one of them for each image, not {mark!r}"
            raise ManifestError(f"{path}, line {line}: {told}")
    return {image_id for image_id, mark in marks.items() if mark == "partial"}


def _read_osirix(path: Path, image_id: str) -> tuple[list[Lesion], list[str]]:
    """The lesions of an OsiriX property list, and a remark for every region that has no readable points.

    Points are stored as text, ``"(x, y)"`` with x to the right; one point makes a lesion of kind point, two a box, more
    a contour.
    """
    try:
        content: Any = plistlib.loads(path.read_bytes())
        regions = [region for image in content["Images"] for region in image.get("ROIs") or []]
    except (ExpatError, KeyError, TypeError, AttributeError, ValueError, OSError) as error:  # InvalidFileException too
        raise ManifestError(f"{path}: not an OsiriX property list of regions ({error!r})") from error
    lesions: list[Lesion] = []
    remarks = []
    for number, region in enumerate(regions):
        name = str(region.get("Name") or "").strip() or "Unnamed"
        matches = [_POINT.search(str(text)) for text in region.get("Point_px") or []]
        points = [(float(match[2]), float(match[1])) for match in matches if match]
        if not points or None in matches:
            told = "has no readable points; it is left out, and its image counts as incomplete"
            remarks.append(f"{path.name}: region {number} ({name}) {told}")
        elif len(points) == 2:
            low, high = ([bound(point[axis] for point in points) for axis in (0, 1)] for bound in (min, max))
            corners = ((low[0], low[1]), (high[0] + 1.0, high[1] + 1.0))
            lesions.append(Lesion(image_id, name, "box", corners))
        else:
            lesions.append(Lesion(image_id, name, "point" if len(points) == 1 else "contour", tuple(points)))
    return lesions, remarks
