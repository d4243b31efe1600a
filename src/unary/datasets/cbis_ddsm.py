"""Reading CBIS-DDSM (Lee et al. 2017): case descriptions as CSV, images and lesion masks as DICOM.

The tables name files by the layout that they were made from, ``CASE/STUDY/SERIES/000000.dcm``. On disk the last part is
often ``1-1.dcm`` or ``1-2.dcm``, and some downloads replace the names of study and series by dates and descriptions.
The full mask of a lesion and its crop may have changed places: the mask is the file of the image's size.

The data set holds no healthy breasts: its negatives are benign findings of BI-RADS 2, and a lesion lies in them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unary.datasets.annotation import count_names
from unary.datasets.manifest import BIRADS, known_density, label_of_birads
from unary.datasets.table import read_table
from unary.errors import ImageError, ManifestError
from unary.images.reading import read_shape
from unary.records import Lesion, Manifest, ManifestRow, count_words

_NEEDED = (
    "patient_id",
    "left or right breast",
    "image view",
    "abnormality type",
    "assessment",
    "image file path",
    "roi mask file path",
)
_PATHS = ("image file path", "cropped image file path", "roi mask file path")
_SIDES = {"LEFT": "L", "RIGHT": "R"}

_Entry = dict[str, str]
"""One line of a table, by the names of its columns: one abnormality."""


@dataclass(frozen=True)
class _Film:
    """An image on disk."""

    image_id: str
    path: Path
    shape: tuple[int, int]


def read_cbis_ddsm(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Read every ``*case_description*.csv`` below a folder into one manifest.

    A table has one line per abnormality. The lines of one film are joined, also where the tables of masses and of
    calcifications each keep a copy of it, and its BI-RADS is the highest of theirs. An assessment of 0 (incomplete)
    leaves BI-RADS and label unknown, unless another abnormality is suspicious by itself. Tables and DICOM files may lie
    at any depth.

    Returns
    -------
    tuple
        The manifest with lesions of kind ``mask``; and notices about images and masks that are missing. An image of
        which a mask is missing is marked incomplete. The spacing is unknown: the scanners differed.

    Raises
    ------
    ManifestError
        If there is no table, a column is missing, or not one image is on disk.
    """
    tables = sorted(folder.rglob("*case_description*.csv")) if folder.is_dir() else []
    if not tables:
        raise ManifestError(f"{folder}: no table *case_description*.csv; is it a CBIS-DDSM download?")
    files = _list_files(folder)
    films: dict[tuple[str, str, str], dict[str, list[_Entry]]] = {}  # by patient, side and view, then by case
    lines = [entry for table in tables for entry in _read_table(table)]
    entries = list({tuple(entry.items()): entry for entry in lines}.values())
    for entry in entries:
        film = entry["patient_id"], entry["left or right breast"].upper(), entry["image view"].upper()
        films.setdefault(film, {}).setdefault(_name_case(entry), []).append(entry)
    rows: list[ManifestRow] = []
    lesions: list[Lesion] = []
    notices = _describe_entries(entries, files)
    if len(entries) < len(lines):
        notices.append(f"{count_words(len(lines) - len(entries), 'line')} of the tables repeated, each counted once")
    missing: list[str] = []
    for (patient, side, view), cases in films.items():
        for found, entries, whole in _join_copies(cases, files, missing, notices):
            masks, remarks = _find_masks(found, entries, files)
            birads = _highest_birads(entries)
            rows.append(
                ManifestRow(
                    path=found.path.absolute(),
                    image_id=found.image_id,
                    patient_id=patient,
                    label=label_of_birads(birads),
                    laterality=_SIDES.get(side),
                    view=view or None,
                    assessment=birads,
                    density=known_density(entries[0].get("breast_density") or entries[0].get("breast density")),
                    complete=whole and not remarks,
                )
            )
            lesions += masks
            notices += remarks
    if not rows:
        raise ManifestError(f"{folder}: the tables list {len(missing)} images, and none of them is on disk")
    notices += count_names("image", missing, "in the tables, but not on disk")
    return Manifest(tuple(rows), tuple(lesions)), tuple(notices)


def _list_files(folder: Path) -> dict[str, list[Path]]:
    """The DICOM files below a folder, by the name of their series and by that of their case."""
    files: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".dcm"):
        cases = [part for part in path.relative_to(folder).parts[:-1] if part.startswith(("Mass-", "Calc-"))]
        for name in dict.fromkeys([path.parent.name, *cases]):
            files.setdefault(name, []).append(path)
    return files


def _find(files: dict[str, list[Path]], named: str) -> list[Path]:
    """The files that a table's path may mean, the likeliest first."""
    parts = named.split("/")
    if len(parts) < 4:
        return []
    of_series = sorted(files.get(parts[-2], []), key=lambda path: path.name != parts[-1])
    return list(dict.fromkeys([*of_series, *files.get(parts[-4], [])]))


def _read_table(path: Path) -> list[_Entry]:
    lines = read_table(path, needed=_NEEDED)
    for line, entry in lines:
        image = entry["image file path"]
        if image.count("/") < 3 or not entry["patient_id"]:
            raise ManifestError(
                f"{path}, line {line}: a patient and an image CASE/STUDY/SERIES/FILE are needed, not {image!r}"
            )
    return [entry for _, entry in lines]


def _name_case(entry: _Entry) -> str:
    return entry["image file path"].split("/")[-4]


def _describe_entries(entries: Sequence[_Entry], files: dict[str, list[Path]]) -> list[str]:
    """Notices of lines that say something strange, and of files that none of them names."""
    named = {found for entry in entries for column in _PATHS for found in _find(files, entry.get(column, ""))}
    foreign = {path for found in files.values() for path in found} - named
    strange = [_name_case(entry) for entry in entries if entry["assessment"] not in ("0", *BIRADS)]
    sides = [_name_case(entry) for entry in entries if entry["left or right breast"].upper() not in _SIDES]
    return [
        *count_names("line", strange, "of the tables with an unknown assessment"),
        *count_names("line", sides, "of the tables with a breast that is neither left nor right"),
        *count_names("DICOM file", sorted(path.name for path in foreign), "that no table names, left out"),
    ]


def _join_copies(
    cases: dict[str, list[_Entry]], files: dict[str, list[Path]], missing: list[str], notices: list[str]
) -> list[tuple[_Film, list[_Entry], bool]]:
    """Return the films of one breast and view with their entries, and whether all entries of the view are there.

    As a rule that is one film, of which the tables of masses and calcifications each may keep a copy. Copies of unlike
    size stay apart, and neither is known to list all its lesions. Names of cases without a readable image are added to
    ``missing`` or explained in ``notices``.
    """
    films: list[_Film] = []
    for case, entries in cases.items():
        found = _find(files, entries[0]["image file path"])
        if not found:
            missing.append(case)
            continue
        try:
            films.append(_Film(case, found[0], read_shape(found[0])))
        except ImageError as error:
            notices.append(f"{error}; left out")
    everything = [entry for entries in cases.values() for entry in entries]
    if len({film.shape for film in films}) <= 1:
        return [(film, everything, True) for film in films[:1]]
    notices.append(f"{' and '.join(film.image_id for film in films)}: two sizes for one view; both count as incomplete")
    return [(film, cases[film.image_id], False) for film in films]


def _find_masks(film: _Film, entries: Sequence[_Entry], files: dict[str, list[Path]]) -> tuple[list[Lesion], list[str]]:
    """Return a lesion for every entry whose mask has the image's size, and a remark for every other."""
    lesions: list[Lesion] = []
    remarks: list[str] = []
    used = {film.path}
    for number, entry in enumerate(entries, 1):
        paths = entry["roi mask file path"], entry.get("cropped image file path", "")
        candidates = dict.fromkeys(found for named in paths for found in _find(files, named))
        mask = next((path for path in candidates if path not in used and _has_shape(path, film.shape)), None)
        if mask is not None:
            used.add(mask)
            name = entry["abnormality type"].capitalize() or "Unnamed"
            lesions.append(Lesion(film.image_id, name, "mask", mask_path=mask.absolute()))
        else:
            found = "none on disk" if not candidates else f"{len(candidates)} file(s), none of them fit"
            remarks.append(
                f"{film.image_id}: no mask of the image's size for abnormality {number} ({found}); the image counts as "
                "incomplete"
            )
    return lesions, remarks


def _has_shape(path: Path, shape: tuple[int, int]) -> bool:
    try:
        return read_shape(path) == shape
    except ImageError:
        return False


def _highest_birads(entries: Sequence[_Entry]) -> str | None:
    known = [entry["assessment"] for entry in entries if entry["assessment"] in BIRADS]
    birads = max(known, default=None)
    if len(known) < len(entries) and label_of_birads(birads) == "negative":
        return None  # what is not assessed may be worse
    return birads
