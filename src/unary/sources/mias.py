"""Reading mini-MIAS: 322 digitised films as PGM, and ``Info.txt``.

A line of ``Info.txt`` reads ``mdb005 F CIRC B 477 133 30``: image, tissue, abnormality, severity, x and y of the
centre, radius. y runs *from the bottom*, so that the row is ``rows - 1 - y``. An image may have several lines.
"""

from __future__ import annotations

import re
from pathlib import Path

from unary.errors import ImageError, ManifestError
from unary.records import Lesion, Manifest, ManifestRow
from unary.sources.raster import read_raster

SIDE_PX = 1024
SPACING_MM = 0.2
_NAME = re.compile(r"mdb(\d{3})", re.IGNORECASE)
_CLASSES = ("CALC", "CIRC", "SPIC", "MISC", "ARCH", "ASYM")


def read_mias(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Read the data set into a manifest.

    MIAS gives no BI-RADS. Images of the class NORM are labelled negative, all others positive, benign ones too.
    Consecutive images (001 and 002, 003 and 004, ...) are the left and right breast of one patient, all in the MLO
    view.

    Parameters
    ----------
    folder
        Holds ``Info.txt`` and the PGM files.

    Returns
    -------
    tuple
        The manifest; and notices: lesions without coordinates (their image is marked incomplete), lesions whose centre
        lies on the background or outside the image, lines that are not understood, and images or lines that have no
        counterpart.

    Raises
    ------
    ManifestError
        If ``Info.txt`` or all images are missing.
    """
    images = {path.stem.lower(): path for path in sorted(folder.glob("*.pgm")) if _NAME.fullmatch(path.stem)}
    tables = [path for path in sorted(folder.glob("*")) if path.name.lower() == "info.txt"]
    if not tables:
        raise ManifestError(f"{folder}: no Info.txt there; is it the mini-MIAS folder?")
    if not images:
        raise ManifestError(f"{folder}: no image mdbNNN.pgm there")
    lines, notices = _read_info(tables[0])
    rows, lesions = [], []
    for name, path in images.items():
        entries = lines.get(name)
        if entries is None:
            notices.append(f"{path.name}: Info.txt does not list it, left out")
            continue
        abnormal = [entry for entry in entries if entry[2] != "NORM"]
        complete = True
        for entry in abnormal:
            lesion, remark = _read_lesion(name, entry, path)
            complete &= lesion is not None
            lesions += [lesion] if lesion is not None else []
            notices += [remark] if remark is not None else []
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
                complete=complete,
                spacing_mm=SPACING_MM,
            )
        )
    notices += [f"{name}: listed in Info.txt, but there is no image" for name in sorted(set(lines) - set(images))]
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


def _read_lesion(name: str, fields: list[str], path: Path) -> tuple[Lesion | None, str | None]:
    kind, numbers = fields[2], fields[4:]
    if len(numbers) < 2 or not all(re.fullmatch(r"-?\d+", number) for number in numbers[:3]):
        return None, f"{name}: {kind} without coordinates (*NOTE* in Info.txt); the image counts as incomplete"
    col, row = float(numbers[0]), float(SIDE_PX - 1 - int(numbers[1]))
    radius = float(numbers[2]) if len(numbers) > 2 else None
    lesion = Lesion(name, kind, "point" if radius is None else "circle", ((row, col),), radius)
    if not (0 <= row < SIDE_PX and 0 <= col < SIDE_PX):
        return lesion, f"{name}: {kind} at row {row:.0f}, column {col:.0f} lies outside the image"
    try:
        pixels = read_raster(path).pixels
    except ImageError as error:
        return lesion, str(error)
    around = pixels[max(0, int(row) - 5) : int(row) + 6, max(0, int(col) - 5) : int(col) + 6]
    if around.size == 0 or around.mean() < 10:  # of 255: the films' background is nearly black
        return lesion, f"{name}: {kind} at row {row:.0f}, column {col:.0f} lies on the background, outside the breast"
    return lesion, None
