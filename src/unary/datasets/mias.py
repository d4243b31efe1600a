"""Reading mini-MIAS: 322 digitised films as PGM, and ``Info.txt``.

A line of ``Info.txt`` reads ``mdb005 F CIRC B 477 133 30``: image, tissue, abnormality, severity, x and y of the
centre, radius. The origin is the bottom-left corner: y = 0 is the last row, so that the row is ``rows - 1 - y``. An
image may have several lines.

``Info.txt`` says that even numbers are left breasts. The films say otherwise: where the lead marker can be read, ``L``
stands on odd numbers (005, 011, 029, 209, 215, 307) and ``R`` on even ones (002, 006, 012, 028, 058, 304). The films
are believed. Their letters are mirrored: the release shows every film from its back. Lesions fit the pixels as they
are, so nothing is flipped here.
"""

from __future__ import annotations

import re
from pathlib import Path

from unary.datasets.annotation import count_names, find_place
from unary.datasets.manifest import find_entry
from unary.errors import ImageError, ManifestError
from unary.images.raster import read_raster
from unary.records import Lesion, Manifest, ManifestRow

SPACING_MM = 0.2
_NAME = re.compile(r"mdb(\d{3})", re.IGNORECASE)
_BACKGROUND_BELOW = 40.0  # of 255; the darkest surroundings of a lesion are 12 off the breast and 107 on it
_CLASSES = ("CALC", "CIRC", "SPIC", "MISC", "ARCH", "ASYM")


def read_mias(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Read the data set into a manifest.

    MIAS gives no BI-RADS. Images of the class NORM are labelled negative, all others positive, benign ones too.
    Consecutive images (001 and 002, 003 and 004, ...) are the left and right breast of one patient, all in the MLO
    view. ``Info.txt`` and the PGM files lie in the folder, or in a folder in it.

    Returns
    -------
    tuple
        The manifest; and notices: lesions without coordinates, lesions whose centre lies on the background or outside
        the image (the image of either is marked incomplete, for where its lesion lies is not known), lines that are not
        understood, and images or lines that have no counterpart.

    Raises
    ------
    ManifestError
        If ``Info.txt`` or all images are missing.
    """
    table = find_entry(folder, "Info.txt", "no Info.txt there; is it the mini-MIAS folder?")
    root = table.parent
    files: list[tuple[str, Path]] = []
    foreign: list[str] = []
    for path in sorted(root.iterdir()):
        name = path.stem.lower()
        if path.suffix.lower() == ".pgm" and path.is_file() and _NAME.fullmatch(name):
            files.append((name, path))
        elif path != table:
            foreign.append(path.name)
    if not files:
        raise ManifestError(f"{root}: no image mdbNNN.pgm there")
    lines, notices = _read_info(table)
    unlisted: list[str] = []
    rows: list[ManifestRow] = []
    lesions: list[Lesion] = []
    for name, path in files:
        entries = lines.get(name)
        if entries is None:
            unlisted.append(path.name)
            continue
        abnormal = [entry for entry in entries if entry[2] != "NORM"]
        found, remarks = _read_lesions(name, abnormal, path)
        lesions += found
        notices += remarks
        number = int(name[3:])
        first = number - 1 + number % 2
        rows.append(
            ManifestRow(
                path=path.absolute(),
                image_id=name,
                patient_id=f"mdb{first:03d}-{first + 1:03d}",
                label="positive" if abnormal else "negative",
                laterality="L" if number % 2 else "R",
                view="MLO",
                complete=not remarks,
                spacing_mm=SPACING_MM,
            )
        )
    images = {name for name, _ in files}
    contradicted = [name for name in sorted(images) if len({entry[2] == "NORM" for entry in lines.get(name, ())}) > 1]
    notices += [
        *count_names("file", foreign, "not named mdbNNN.pgm, left out"),
        *count_names("image", unlisted, "that Info.txt does not list, left out"),
        *count_names("image", sorted(set(lines) - images), "listed in Info.txt, but not on disk"),
        *count_names("image", contradicted, "listed as NORM and as abnormal, taken as abnormal"),
    ]
    if not rows:
        raise ManifestError(f"{root}: Info.txt lists none of the {len(files)} images")
    return Manifest(tuple(rows), tuple(lesions)), tuple(notices)


def _read_info(path: Path) -> tuple[dict[str, list[list[str]]], list[str]]:
    """The lines of the table by image; whatever does not look like one is prose."""
    lines: dict[str, list[list[str]]] = {}
    notices = []
    for text in path.read_text(encoding="latin-1").splitlines():
        fields = text.split()
        if not fields or not _NAME.fullmatch(fields[0]):
            continue
        if len(fields) < 3 or fields[2] not in (*_CLASSES, "NORM"):
            notices.append(f"Info.txt: the line {text.strip()!r} is not understood, left out")
            continue
        lines.setdefault(fields[0].lower(), []).append(fields)
    if not lines:
        raise ManifestError(f"{path}: no line describes an image")
    return lines, notices


def _read_lesions(name: str, entries: list[list[str]], path: Path) -> tuple[list[Lesion], list[str]]:
    """The lesions of one image, and a remark for each that cannot be placed on the breast."""
    if not entries:
        return [], []
    try:
        pixels = read_raster(path).pixels
    except ImageError as error:
        return [], [f"{error}; its lesions are left out"]
    lesions, remarks = [], []
    for fields in entries:
        kind, numbers = fields[2], fields[4:]
        if len(numbers) < 2 or not all(re.fullmatch(r"-?\d+", number) for number in numbers[:3]):
            remarks.append(f"{name}: {kind} without coordinates in Info.txt; the image counts as incomplete")
            continue
        row, col = pixels.shape[0] - 1 - int(numbers[1]), int(numbers[0])
        radius = float(numbers[2]) if len(numbers) > 2 else None
        try:
            lesion = Lesion(name, kind, "point" if radius is None else "circle", ((float(row), float(col)),), radius)
        except ManifestError as error:
            remarks.append(f"{name}: {kind} in Info.txt: {error}; the image counts as incomplete")
            continue
        lesions.append(lesion)
        place = f"{name}: {kind} at row {row}, column {col} lies"
        around = pixels[max(0, row - 5) : max(0, row + 6), max(0, col - 5) : max(0, col + 6)]
        if find_place(lesion, (pixels.shape[0], pixels.shape[1])) != "inside":
            remarks.append(f"{place} outside the image; the image counts as incomplete")
        elif around.mean() < _BACKGROUND_BELOW:
            remarks.append(f"{place} on the background, outside the breast; the image counts as incomplete")
    return lesions, remarks
