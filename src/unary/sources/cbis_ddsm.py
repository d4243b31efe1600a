"""Reading CBIS-DDSM (Lee et al. 2017): case descriptions as CSV, images and lesion masks as DICOM.

The tables name files by the layout they were made from, ``CASE/STUDY/SERIES/000000.dcm``; on disk the last part is
often ``1-1.dcm`` or ``1-2.dcm``. The full mask of a lesion and its crop may have changed places: the mask is the
file of the image's size.
"""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from unary.errors import ManifestError
from unary.records import Lesion, Manifest, ManifestRow
from unary.sources.manifest import BIRADS, label_of_birads

_NEEDED = (
    "patient_id",
    "left or right breast",
    "image view",
    "abnormality type",
    "assessment",
    "image file path",
    "roi mask file path",
)
_SIDES = {"LEFT": "L", "RIGHT": "R"}


def read_cbis_ddsm(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Read every ``*case_description*.csv`` below a folder into one manifest.

    A table has one line per abnormality; lines of one image are joined, and its BI-RADS is the highest of theirs.
    An assessment of 0 (incomplete) leaves BI-RADS and label unknown.

    Parameters
    ----------
    folder
        Holds the tables and the folder of DICOM files, at any depth.

    Returns
    -------
    tuple
        The manifest with lesions of kind ``mask``; and notices about images and masks that are missing.

    Raises
    ------
    ManifestError
        If there is no table, a column is missing, or not one image is on disk.
    """
    tables = sorted(folder.rglob("*case_description*.csv")) if folder.is_dir() else []
    if not tables:
        raise ManifestError(f"{folder}: no table *case_description*.csv; is it a CBIS-DDSM download?")
    series = {path.parent.name: path.parent for path in sorted(folder.rglob("*.dcm"))}
    cases: dict[str, list[dict[str, str]]] = {}
    for table in tables:
        for line in _read_table(table):
            cases.setdefault(_case_of(line["image file path"], table), []).append(line)
    rows: list[ManifestRow] = []
    lesions: list[Lesion] = []
    notices: list[str] = []
    for image_id, lines in cases.items():
        image = _find_files(lines[0]["image file path"], series)[:1]
        if not image:
            notices.append(f"{image_id}: the image {lines[0]['image file path']} is not on disk")
            continue
        rows.append(_build_row(image_id, image[0], lines))
        size = _read_size(image[0])
        for number, line in enumerate(lines, 1):
            candidates = [*_find_files(line["roi mask file path"], series)]
            candidates += _find_files(line.get("cropped image file path", ""), series)
            masks = [path for path in candidates if size is not None and _read_size(path) == size]
            if masks:
                name = line["abnormality type"].strip().capitalize()
                lesions.append(Lesion(image_id, name, "mask", mask_path=masks[0].absolute()))
            else:
                notices.append(f"{image_id}: no mask of the image's size for abnormality {number}")
    if not rows:
        raise ManifestError(f"{folder}: the tables list {len(cases)} images, and none of them is on disk")
    missing = {row.image_id for row in rows} - {lesion.image_id for lesion in lesions}
    notices += [f"{name}: no lesion of it could be read" for name in sorted(missing)]
    return Manifest(tuple(rows), tuple(lesions)), tuple(notices)


def _read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        names = [name.strip().lower() for name in reader.fieldnames or []]
        absent = [name for name in _NEEDED if name not in names]
        if absent:
            raise ManifestError(f"{path}: the column {absent[0]!r} is missing")
        return [dict(zip(names, ((value or "").strip() for value in line.values()), strict=False)) for line in reader]


def _case_of(entry: str, table: Path) -> str:
    if entry.count("/") < 3:
        raise ManifestError(f"{table}: a file path reads CASE/STUDY/SERIES/FILE, not {entry!r}")
    return entry.split("/")[-4]


def _find_files(entry: str, series: dict[str, Path]) -> list[Path]:
    """The DICOM files of the series that a table's path points into, the one of that name first."""
    parts = entry.strip().split("/")
    if len(parts) < 2 or parts[-2] not in series:
        return []
    files = sorted(series[parts[-2]].glob("*.dcm"))
    return sorted(files, key=lambda path: path.name != parts[-1])


def _read_size(path: Path) -> tuple[int, int] | None:
    """Rows and columns from the header alone."""
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        return int(header.Rows), int(header.Columns)
    except (InvalidDicomError, OSError, AttributeError, ValueError, KeyError, EOFError):
        return None


def _build_row(image_id: str, path: Path, lines: list[dict[str, str]]) -> ManifestRow:
    first = lines[0]
    assessments = [line["assessment"] for line in lines if line["assessment"] in BIRADS]
    birads = max(assessments) if assessments else None
    density = first.get("breast_density") or first.get("breast density") or ""
    return ManifestRow(
        path=path.absolute(),
        image_id=image_id,
        patient_id=first["patient_id"],
        label=label_of_birads(birads),
        laterality=_SIDES.get(first["left or right breast"].upper()),
        view=first["image view"].upper() or None,
        birads=birads,
        density=density if density in ("1", "2", "3", "4") else None,
    )
