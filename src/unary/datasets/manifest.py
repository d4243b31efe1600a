"""The manifest: one CSV row per image, and a second CSV of lesions beside it.

A person can write it by hand in a spreadsheet (`unary.datasets.table`); only ``path`` is needed. What it says is
checked against itself and against the headers of its images. See ``docs/manifest.md``.

The category of the reading stands in the column ``birads``, whose values are checked and imply a label, or, for any
other kind of image, in the column ``assessment``, which holds free words.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from unary.datasets.annotation import check_lesions, count_names, name_some
from unary.datasets.doubles import describe_patients, keep_once, read_headers
from unary.datasets.table import parse_number, read_table
from unary.errors import ManifestError
from unary.files import is_url, write_csv
from unary.images.attributes import DicomHeader
from unary.images.isolation import show_path
from unary.profiles.mammography import MAMMOGRAPHY
from unary.records import Image, Label, Lesion, Manifest, ManifestRow

logger = logging.getLogger(__name__)

BIRADS = MAMMOGRAPHY.reading.assessments
_BOOLEANS = {"": True, "yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_PLAIN = ("image_id", "patient_id", "label", "laterality", "view", "assessment", "density")
_COLUMNS = ("path", *_PLAIN, "birads", "complete", "spacing_mm")
_LESION_COLUMNS = ("image_id", "name", "kind", "points", "radius_px", "mask_path")
_SPACINGS_MM = (1e-4, 10.0)  # from microscopes to scintigrams


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
        Its ``image_id`` are the files' stems, and numbers where there is no file or two have one stem. A file, or an
        image, that is there again is left out, and a warning says so.

    Raises
    ------
    ManifestError
        If there is no image, the other sequences differ in length or hold something else, or one file or image has two
        patients or labels.
    ImageError
        If an array is no image.
    """
    if isinstance(images, (Image, Path, str)):
        raise ManifestError(
            "a sequence of images, arrays or paths is needed, got one alone; put it into a list, or read a manifest by "
            "unary.read_manifest"
        )
    given = [
        one if isinstance(one, Image) else Path(one) if isinstance(one, (str, Path)) else Image.from_array(one)
        for one in images
    ]
    if not given:
        raise ManifestError("a manifest needs at least one image, there is none")
    for name, values in (("patients", patients), ("labels", labels)):
        if values is not None and len(values) != len(given):
            raise ManifestError(f"{name} must be as many as the images: {len(given)}, not {len(values)}")
    wrong = set(() if labels is None else labels) - {"negative", "positive", None}
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
    places = [f"number {number} ({name})" for number, name in enumerate(names, 1)]
    manifest, notices = keep_once(Manifest(tuple(rows)), places, [None] * len(rows))
    for notice in notices:
        logger.warning("%s", notice)
    return manifest


def _name_patient(image: Image | Path, name: str) -> str:
    """The file's stem, as in a manifest that says nothing of patients; without a file, a hash of the pixels."""
    if isinstance(image, Path) or image.path is not None:
        return name
    return hashlib.sha256(np.ascontiguousarray(image.pixels).tobytes()).hexdigest()[:16]


def lesions_path(path: Path) -> Path:
    """Return where the lesions of a manifest lie: ``M.csv`` has ``M.lesions.csv``."""
    return path.with_name(f"{path.stem}.lesions.csv")


def read_manifest(path: Path | str, *, progress: bool = True) -> Manifest:
    """Read a manifest and, if there is one, its file of lesions; relative paths in a file count from its folder.

    What is odd but has one meaning is put right and said in warnings: see `check_manifest`.

    Parameters
    ----------
    progress
        Show a bar where reading the images' headers takes over two seconds.

    Raises
    ------
    ManifestError
        Naming file, line and cause: nothing in it, not one image where it says, an id twice, a value out of range, a
        lesion of an unknown image; or as `check_manifest`.
    """
    return read_manifest_noted(Path(path), progress=progress)[0]


def read_manifest_noted(path: Path, *, progress: bool = True) -> tuple[Manifest, tuple[str, ...]]:
    """Return what `read_manifest` does, and the warnings that it gives."""
    listing = read_listing(path)
    rows, lesions = listing.manifest.rows, listing.manifest.lesions
    notices = [*_check_files(path, rows, listing.places), *listing.notices]
    try:
        manifest, more = check_manifest(listing.manifest, listing.places, progress=progress)
    except ManifestError as error:
        raise ManifestError(f"{path}{f' and {lesions_path(path).name}' if lesions else ''}: {error}") from error
    for notice in (*notices, *more):
        logger.warning("%s: %s", path, notice)
    return manifest, (*notices, *more)


@dataclass(frozen=True)
class Listing:
    """What a manifest says, before any of its images is looked at.

    Attributes
    ----------
    places
        What messages call the rows.
    locations
        Where the image of each row is: an absolute path, or a URL such as ``s3://bucket/name``, which a row's ``path``
        cannot hold.
    notices
        What is odd about it, one sentence each.
    """

    manifest: Manifest
    places: tuple[str, ...]
    locations: tuple[str, ...]
    notices: tuple[str, ...] = ()


def read_listing(path: Path) -> Listing:
    """Read a manifest and its lesions as they are written, without a look at the images.

    Raises
    ------
    ManifestError
        If it cannot be read, lists nothing, an ``image_id`` is there twice, or a value is out of range.
    """
    lines = read_table(path, needed=("path",), known=_COLUMNS)
    rows = tuple(_parse_row(fields, path, line) for line, fields in lines)
    if not rows:
        raise ManifestError(f"{path}: it lists no image")
    places = tuple(f"line {line}" for line, _ in lines)
    try:
        _require_unique(rows, places)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error
    notices = []
    unnamed = [place for place, (_, fields) in zip(places, lines, strict=True) if not fields.get("patient_id")]
    if len(unnamed) == len(lines):
        notices.append("no patient_id: every image counts as a patient of its own")
    else:
        notices += count_names("image", unnamed, "without a patient_id, each of which counts as a patient of its own")
    beside = lesions_path(path)
    lesions = _read_lesions(beside, {row.image_id for row in rows}) if beside.exists() else ()
    for other in [] if beside.exists() else _find_other_lesions(path):
        notices.append(f"no lesion is read, for {beside.name} is not there; is {other} meant?")
    locations = (
        fields["path"] if is_url(fields["path"]) else os.path.abspath(str(row.path))
        for row, (_, fields) in zip(rows, lines, strict=True)
    )
    return Listing(Manifest(rows, lesions), places, tuple(locations), tuple(notices))


def _require_unique(rows: Sequence[ManifestRow], places: Sequence[str]) -> None:
    named: dict[str, list[str]] = {}
    for row, place in zip(rows, places, strict=True):
        named.setdefault(row.image_id, []).append(place)
    repeated = [f"{name} ({', '.join(at[:4])})" for name, at in named.items() if len(at) > 1]
    if repeated:
        raise ManifestError(f"the image_id must be unique; repeated: {name_some(repeated)}")


def check_manifest(
    manifest: Manifest, places: Sequence[str], *, progress: bool = True
) -> tuple[Manifest, tuple[str, ...]]:
    """Check that no image, patient or lesion is there twice or elsewhere than it can be.

    ``places`` are what messages call the rows. Returns the manifest, put right where that has one meaning, and notices.

    Raises
    ------
    ManifestError
        If an ``image_id`` is there twice; or as `unary.datasets.doubles.keep_once` and
        `unary.datasets.annotation.check_lesions`.
    """
    _require_unique(manifest.rows, places)
    headers = read_headers(manifest.rows, progress=progress)
    about_rows = _describe_rows(manifest.rows, places, headers)
    about_patients = describe_patients(manifest.rows, places, headers)
    manifest, about_images = keep_once(manifest, places, headers)
    manifest, about_lesions = check_lesions(manifest, progress=progress)
    return manifest, (*about_rows, *about_patients, *about_images, *about_lesions)


def _describe_rows(
    rows: Sequence[ManifestRow], places: Sequence[str], headers: Sequence[DicomHeader | None]
) -> tuple[str, ...]:
    """Notices of rows without a label, and of those that contradict themselves or their image's header."""
    found = list(zip(rows, places, headers, strict=True))
    unlabelled = [place for row, place, _ in found if row.label is None]
    against = [
        place
        for row, place, _ in found
        if row.label and row.assessment in BIRADS and label_of_birads(row.assessment) != row.label
    ]
    turned = [
        place
        for row, place, header in found
        if header is not None and header.laterality and row.laterality and header.laterality != row.laterality
    ]
    return (
        *count_names(
            "image", unlabelled if len(unlabelled) < len(rows) else (), "without a label, which no figure counts"
        ),
        *count_names("image", against, "whose label is not the one that its BI-RADS implies; the label counts"),
        *count_names(
            "image", turned, "of the other breast, by the DICOM header, than the laterality says; the right file?"
        ),
    )


def _find_other_lesions(path: Path) -> list[str]:
    """Tables beside a manifest that are named like lesions, and are not those of another manifest."""
    try:
        files = {name for name in os.listdir(path.parent) if name.lower().endswith(".csv")}
    except OSError:
        return []
    others = {lesions_path(Path(name)).name for name in files}
    return sorted(name for name in files - others if "lesion" in name.lower() and name != path.name)


def _check_files(manifest: Path, rows: Sequence[ManifestRow], places: Sequence[str]) -> tuple[str, ...]:
    """A notice that names images which are not there; whoever reads the others skips and counts them."""
    found = [(f"{place} {row.path}", row.path) for row, place in zip(rows, places, strict=True) if row.path is not None]
    wrong = [(named, cause) for named, path in found if (cause := _find_fault(path))]
    if not wrong:
        return ()
    told = "; ".join(
        f"{cause}: {name_some(named for named, other in wrong if other == cause)}"
        for cause in dict.fromkeys(cause for _, cause in wrong)
    )
    told = f"{len(wrong)} of {len(rows)} images are not there: {told}"
    if len(wrong) == len(rows):
        raise ManifestError(f"{manifest}: {told}")
    return (told,)


def _find_fault(path: Path) -> str:
    """Why there is no file to read; empty where there is one."""
    if is_url(str(path).replace(":/", "://", 1)):
        return "URLs, which `unary detect --engine` alone reads"
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            return error.strerror or "not accessible"
        return "backslashes in the path" if "\\" in path.name else "moved, or relative to another folder?"
    if stat.S_ISREG(mode):
        return ""
    return "folders" if stat.S_ISDIR(mode) else "pipes or devices"


def _parse_row(fields: dict[str, str], manifest: Path, line: int) -> ManifestRow:
    where = f"{manifest}, line {line}"
    if not fields.get("path"):
        raise ManifestError(f"{where}: the path is empty")
    image = Path(fields["path"]) if is_url(fields["path"]) else manifest.parent.absolute() / fields["path"]
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
    spacing = _parse_field(fields, "spacing_mm", where)
    if spacing is not None and not _SPACINGS_MM[0] <= spacing <= _SPACINGS_MM[1]:
        raise ManifestError(
            f"{where}: spacing_mm must be millimetres, from {_SPACINGS_MM[0]:g} to {_SPACINGS_MM[1]:g}, not "
            f"{spacing:g}; another unit, such as micrometres?"
        )
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


def _parse_field(fields: dict[str, str], name: str, where: str) -> float | None:
    try:
        return parse_number(fields[name]) if fields.get(name) else None
    except ManifestError as error:
        raise ManifestError(f"{where}: {name}: {error}") from error


def _read_lesions(path: Path, image_ids: Collection[str]) -> tuple[Lesion, ...]:
    """Read a file of lesions, each of which must belong to one of the images."""
    lines = read_table(path, needed=("image_id", "kind"), known=_LESION_COLUMNS)
    unknown = [(line, fields["image_id"]) for line, fields in lines if fields["image_id"] not in image_ids]
    if unknown:
        named = name_some(f"line {line} {image_id!r}" for line, image_id in unknown)
        raise ManifestError(f"{path}: lesions of images which the manifest does not list: {named}")
    return tuple(_parse_lesion(fields, path, line) for line, fields in lines)


def _parse_lesion(fields: dict[str, str], path: Path, line: int) -> Lesion:
    where = f"{path}, line {line}"
    points = _parse_points(fields.get("points") or "", where)
    radius, kind = _parse_field(fields, "radius_px", where), fields["kind"].lower()
    mask = path.parent.absolute() / fields["mask_path"] if fields.get("mask_path") else None
    if (kind == "mask") != (mask is not None):
        raise ManifestError(f"{where}: a mask_path goes with the kind mask, and with no other")
    if mask is not None and _find_fault(mask):
        raise ManifestError(f"{where}: the mask {show_path(mask)} is not there ({_find_fault(mask)})")
    try:
        return Lesion(fields["image_id"], fields.get("name") or "lesion", kind, points, radius, mask)  # type: ignore[arg-type]
    except ManifestError as error:
        raise ManifestError(f"{where}: {error}") from error


def _parse_points(text: str, where: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [pair.split() for pair in text.split(";") if pair.strip()]
        return tuple((parse_number(row), parse_number(col)) for row, col in pairs)
    except (ValueError, ManifestError) as error:
        cause = f"; {error}" if isinstance(error, ManifestError) else ""
        raise ManifestError(f"{where}: points read 'row col; row col; ...', not {text[:80]!r}{cause}") from error


def require_replaceable(path: Path) -> None:
    """Refuse, by a `ManifestError`, a place for a manifest where something else lies."""
    for file, needed in ((path, ("path",)), (lesions_path(path), ("image_id", "kind"))):
        if file.exists():
            try:
                read_table(file, needed=needed)
            except ManifestError as error:
                raise ManifestError(
                    f"{file} is there and is no manifest, so that it is not replaced: {error}"
                ) from error


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
    header = ["path", *_PLAIN, "complete", "spacing_mm"]
    rows = []
    for row in manifest.rows:
        if row.path is None:
            raise ManifestError(f"{path}: the image {row.image_id!r} is in memory alone and has no path to list")
        values = (getattr(row, name) for name in _PLAIN)
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
        write_csv(lesions_path(path), _LESION_COLUMNS, lesions)
    else:
        lesions_path(path).unlink(missing_ok=True)


def _shorten(path: Path, folder: Path) -> str:
    absolute, base = path.absolute(), folder.absolute()
    return str(absolute.relative_to(base) if absolute.is_relative_to(base) else absolute)
