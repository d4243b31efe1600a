"""Reading CBIS-DDSM (Lee et al. 2017): case descriptions as CSV, images and lesion masks as DICOM.

The tables name files by the layout that they were made from, ``CASE/STUDY/SERIES/000000.dcm``. On disk the last part is
often ``1-1.dcm`` or ``1-2.dcm``, and some downloads replace the names of study and series by dates and descriptions.
The full mask of a lesion and its crop may have changed places: the mask is the file of the image's size.

The data set holds no healthy breasts: its negatives are benign findings of BI-RADS 2, and a lesion lies in them too.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unary.datasets.manifest import BIRADS, label_of_birads
from unary.errors import ImageError, ManifestError
from unary.images.reading import read_shape
from unary.records import Lesion, Manifest, ManifestRow

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
_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class _Entry:
    """One line of a table: one abnormality. Paths are those of the table."""

    patient: str
    side: str
    view: str
    name: str
    assessment: str
    density: str
    image: str
    mask: str
    crop: str

    @property
    def case(self) -> str:
        return self.image.split("/")[-4]


@dataclass(frozen=True)
class _Disk:
    """The folders of a download that hold DICOM files, by the name of the series and by that of the case."""

    series: dict[str, list[Path]]
    cases: dict[str, list[Path]]

    def find(self, named: str) -> list[Path]:
        """Return the files that a table's path may mean, the likeliest first."""
        parts = named.split("/")
        if len(parts) < 4:
            return []
        of_series = sorted(self.series.get(parts[-2], []), key=lambda path: path.name != parts[-1])
        return list(dict.fromkeys([*of_series, *self.cases.get(parts[-4], [])]))


def read_cbis_ddsm(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Read every ``*case_description*.csv`` below a folder into one manifest.

    A table has one line per abnormality. The lines of one film are joined, also where the tables of masses and of
    calcifications each keep a copy of it, and its BI-RADS is the highest of theirs. An assessment of 0 (incomplete)
    leaves BI-RADS and label unknown, unless another abnormality is suspicious by itself.

    Parameters
    ----------
    folder
        Holds the tables and the folder of DICOM files, at any depth.

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
    disk = _list_files(folder)
    films: dict[tuple[str, str, str], dict[str, list[_Entry]]] = {}
    for table in tables:
        for entry in _read_table(table):
            cases = films.setdefault((entry.patient, entry.side, entry.view), {})
            cases.setdefault(entry.case, []).append(entry)
    rows: list[ManifestRow] = []
    lesions: list[Lesion] = []
    notices: list[str] = []
    missing: list[str] = []
    for cases in films.values():
        for found, entries, whole in _join_copies(cases, disk, missing, notices):
            masks, remarks = _find_masks(found, entries, disk)
            rows.append(_build_row(found, entries, complete=whole and not remarks))
            lesions += masks
            notices += remarks
    if not rows:
        raise ManifestError(f"{folder}: the tables list {len(missing)} images, and none of them is on disk")
    if missing:
        more = ", ..." if len(missing) > _NAMED_AT_MOST else ""
        notices.append(f"{len(missing)} images are not on disk: {', '.join(missing[:_NAMED_AT_MOST])}{more}")
    return Manifest(tuple(rows), tuple(lesions)), tuple(notices)


def _list_files(folder: Path) -> _Disk:
    series: dict[str, list[Path]] = {}
    cases: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".dcm"):
        series.setdefault(path.parent.name, []).append(path)
        for part in path.relative_to(folder).parts[:-1]:
            if part.startswith(("Mass-", "Calc-")):
                cases.setdefault(part, []).append(path)
    return _Disk(series, cases)


def _read_table(path: Path) -> list[_Entry]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = [[value.strip() for value in line] for line in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: cannot be read ({error})") from error
    names = [name.lower() for name in table[0]] if table else []
    absent = [name for name in _NEEDED if name not in names]
    if absent:
        raise ManifestError(f"{path}: the column {absent[0]!r} is missing")
    entries = []
    for number, line in enumerate(table[1:], 2):
        if not any(line):
            continue
        fields = dict(zip(names, line, strict=False))
        image = fields.get("image file path", "")
        if image.count("/") < 3 or not fields["patient_id"]:
            raise ManifestError(
                f"{path}, entry {number}: a patient and an image CASE/STUDY/SERIES/FILE are needed, not {image!r}"
            )
        entries.append(
            _Entry(
                patient=fields["patient_id"],
                side=fields.get("left or right breast", "").upper(),
                view=fields.get("image view", "").upper(),
                name=fields.get("abnormality type", "").capitalize() or "Unnamed",
                assessment=fields.get("assessment", ""),
                density=fields.get("breast_density") or fields.get("breast density") or "",
                image=image,
                mask=fields.get("roi mask file path", ""),
                crop=fields.get("cropped image file path", ""),
            )
        )
    return entries


@dataclass(frozen=True)
class _Film:
    """An image on disk."""

    image_id: str
    path: Path
    shape: tuple[int, int]


def _join_copies(
    cases: dict[str, list[_Entry]], disk: _Disk, missing: list[str], notices: list[str]
) -> list[tuple[_Film, list[_Entry], bool]]:
    """Return the films of one breast and view with their entries, and whether all entries of the view are there.

    As a rule that is one film, of which the tables of masses and calcifications each may keep a copy. Copies of unlike
    size stay apart, and neither is known to list all its lesions. Names of cases without a readable image are added to
    ``missing`` or explained in ``notices``.
    """
    films: list[_Film] = []
    for case, entries in cases.items():
        files = disk.find(entries[0].image)
        if not files:
            missing.append(case)
            continue
        try:
            films.append(_Film(case, files[0], read_shape(files[0])))
        except ImageError as error:
            notices.append(f"{error}; left out")
    everything = [entry for entries in cases.values() for entry in entries]
    if len({film.shape for film in films}) <= 1:
        return [(film, everything, True) for film in films[:1]]
    notices.append(f"{' and '.join(film.image_id for film in films)}: two sizes for one view; both count as incomplete")
    return [(film, cases[film.image_id], False) for film in films]


def _find_masks(film: _Film, entries: Sequence[_Entry], disk: _Disk) -> tuple[list[Lesion], list[str]]:
    """Return a lesion for every entry whose mask has the image's size, and a remark for every other."""
    lesions, remarks = [], []
    for number, entry in enumerate(entries, 1):
        candidates = dict.fromkeys([*disk.find(entry.mask), *disk.find(entry.crop)])
        mask = next((path for path in candidates if path != film.path and _has_shape(path, film.shape)), None)
        if mask is not None:
            lesions.append(Lesion(film.image_id, entry.name, "mask", mask_path=mask.absolute()))
        else:
            found = "none on disk" if not candidates else f"{len(candidates)} file(s) of another size"
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


def _build_row(film: _Film, entries: Sequence[_Entry], *, complete: bool) -> ManifestRow:
    first = entries[0]
    known = [entry.assessment for entry in entries if entry.assessment in BIRADS]
    birads = max(known) if known else None
    if len(known) < len(entries) and label_of_birads(birads) == "negative":
        birads = None  # what is not assessed may be worse
    return ManifestRow(
        path=film.path.absolute(),
        image_id=film.image_id,
        patient_id=first.patient,
        label=label_of_birads(birads),
        laterality=_SIDES.get(first.side),
        view=first.view or None,
        assessment=birads,
        density=first.density if first.density in ("1", "2", "3", "4") else None,
        complete=complete,
    )
