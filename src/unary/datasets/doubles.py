"""One image under two names, and one patient under two spellings: what a split by patient would not see."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np

from unary.datasets.annotation import name_some
from unary.errors import ImageError, ManifestError
from unary.files import hash_file
from unary.images.attributes import DicomHeader
from unary.images.reading import is_dicom, read_image
from unary.progress import show_progress
from unary.records import Manifest, ManifestRow, count_words

_SAMPLE_BYTES = 1 << 14
_NOBODY = ("-", "?", "nan", "none", "null", "na", "n/a", "unknown", "removed", "anon", "anonymous", "anonymized")
_ROUNDED = re.compile(r"\d([.,]\d+)?e\+\d+", re.IGNORECASE)


def read_headers(rows: Sequence[ManifestRow], *, progress: bool = True) -> list[DicomHeader | None]:
    """Return the headers of DICOM files, None for whatever else or cannot be read; shows a bar after two seconds."""
    bar = show_progress(rows, title="headers", unit="image", shown=progress)
    return [_try_header(row) for row in bar]


def _try_header(row: ManifestRow) -> DicomHeader | None:
    from unary.images.dicom import read_header

    try:
        return None if row.path is None or row.image is not None or not is_dicom(row.path) else read_header(row.path)
    except ImageError:
        return None


def keep_once(
    manifest: Manifest, places: Sequence[str], headers: Sequence[DicomHeader | None]
) -> tuple[Manifest, tuple[str, ...]]:
    """Leave out what lists an image again, and say so.

    Rows are of one image where their files are one file, by whatever path or link; where files, or pixels in memory,
    are equal, byte by byte; and where they have one SOP Instance UID and the same pixels. A patient that is not named
    (``image_id`` stands for it) may be any other.

    Parameters
    ----------
    places
        What messages call each row: its line or its file.
    headers
        Of the rows, as `read_headers` gives them.

    Returns
    -------
    tuple
        The manifest, in which of such rows the first is kept that names its patient and has lesions; and notices.

    Raises
    ------
    ManifestError
        If such rows contradict each other: by patient, label or lesions.
    """
    groups, notices = _group_rows(manifest.rows, places, headers)
    manifest, told = _keep_first(manifest, groups, places)
    return manifest, (*notices, *told)


def keep_contents_once(
    manifest: Manifest, places: Sequence[str], contents: Sequence[Hashable]
) -> tuple[Manifest, tuple[str, ...]]:
    """Do the same where the content of each file is known by a hash; None is equal to nothing."""
    return _keep_first(manifest, _group(range(len(manifest.rows)), contents), places)


def _keep_first(
    manifest: Manifest, groups: Sequence[Sequence[int]], places: Sequence[str]
) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest with one row of each group, and a notice of the others."""
    left_out: dict[int, int] = {}
    for group in groups:
        kept = _choose_row(manifest, group, places)
        left_out |= {number: kept for number in group if number != kept}
    if not left_out:
        return manifest, ()
    told = [f"{places[number]} (as {places[kept]})" for number, kept in left_out.items()]
    rows = tuple(row for number, row in enumerate(manifest.rows) if number not in left_out)
    return manifest.select(rows), (f"{count_words(len(told), 'image')} listed again, left out: {name_some(told)}",)


def _choose_row(manifest: Manifest, group: Sequence[int], places: Sequence[str]) -> int:
    """Which of the rows of one image is to be kept."""
    rows = [manifest.rows[number] for number in group]
    named = name_some(places[number] for number in group)
    patients = _name_patients(rows)
    if len(patients) > 1:
        raise ManifestError(
            f"one image under {count_words(len(patients), 'patient')}, so that it could be on two sides of a split: "
            f"{named}; correct the patient_id, or keep one of them"
        )
    if _contradict(rows):
        raise ManifestError(f"one image labelled both negative and positive: {named}; correct the label")
    lesions = [[dataclasses.replace(one, image_id="") for one in manifest.lesions_of(row.image_id)] for row in rows]
    listed = [number for number, found in zip(group, lesions, strict=True) if found]
    if any(found != lesions[group.index(listed[0])] for found in lesions if found):
        raise ManifestError(f"one image with two lists of lesions: {named}; join them, and keep one row")
    known = [number for number, row in zip(group, rows, strict=True) if row.patient_id in patients]
    labelled = [number for number, row in zip(group, rows, strict=True) if row.label is not None]
    return max(group, key=lambda number: (number in listed, number in known, number in labelled, -number))


def _name_patients(rows: Sequence[ManifestRow]) -> set[str]:
    """The patients that are named: an image is none."""
    return {row.patient_id for row in rows if row.patient_id != row.image_id}


def _contradict(rows: Sequence[ManifestRow]) -> bool:
    return {"negative", "positive"} <= {row.label for row in rows}


def _group_rows(
    rows: Sequence[ManifestRow], places: Sequence[str], headers: Sequence[DicomHeader | None]
) -> tuple[list[list[int]], tuple[str, ...]]:
    """The rows of one image, positions ascending, wherever there are two; and notices."""
    owner = list(range(len(rows)))

    def unite(numbers: Sequence[int], keys: Iterable[Hashable]) -> None:
        for group in _group(numbers, keys):
            gone, first = {owner[number] for number in group}, min(owner[number] for number in group)
            owner[:] = [first if each in gone else each for each in owner]

    def list_apart(numbers: Iterable[int]) -> list[int]:
        return sorted({owner[number] for number in numbers})

    everything = range(len(rows))
    unite(everything, map(_find_file, rows))
    for group in _group(everything, map(_find_size, rows)):
        apart = list_apart(group)
        for alike in _group(apart, [_sample_file(rows[number].path) for number in apart]):
            unite(alike, [_hash_file(rows[number].path) for number in alike])
    different: list[int] = []
    for group in _group(everything, [None if header is None else header.instance_uid for header in headers]):
        apart = list_apart(group)
        if len(apart) > 1:
            unite(apart, [_hash_pixels(rows[number]) for number in apart])
            apart = list_apart(apart)
            different += apart if len(apart) > 1 else []
    told = f"{count_words(len(different), 'image')} share a SOP Instance UID with another that shows something else: "
    notices = (told + name_some(places[number] for number in different),) if different else ()
    return _group(everything, owner), notices


def _group(numbers: Iterable[int], keys: Iterable[Hashable]) -> list[list[int]]:
    """The numbers that have equal keys, wherever there are two; None is equal to nothing."""
    groups: dict[Hashable, list[int]] = {}
    for number, key in zip(numbers, keys, strict=True):
        if key is not None:
            groups.setdefault(key, []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def _find_file(row: ManifestRow) -> Hashable:
    """What is the same for every path and link to one file, and for one picture in memory."""
    if row.image is not None:
        pixels = np.ascontiguousarray(row.image.pixels)
        return (pixels.shape, pixels.dtype.str, hashlib.sha256(pixels.data).digest())
    try:
        status = os.stat(row.path or "")
    except (OSError, ValueError):
        return None if row.path is None else os.path.abspath(row.path)
    return (status.st_dev, status.st_ino)


def _find_size(row: ManifestRow) -> int | None:
    """The bytes of a file, None where there are none."""
    try:
        return None if row.image is not None or row.path is None else row.path.stat().st_size or None
    except (OSError, ValueError):
        return None


def _sample_file(path: Path | None) -> bytes | None:
    """Some bytes from the beginning, the middle and the end, by which most files differ."""
    try:
        with open(path or "", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            parts = []
            for place in (0, size // 2, max(size - _SAMPLE_BYTES, 0)):
                file.seek(place)
                parts.append(file.read(_SAMPLE_BYTES))
    except OSError:
        return None
    return hashlib.sha256(b"".join(parts)).digest()


def _hash_file(path: Path | None) -> str | None:
    try:
        return None if path is None else hash_file(path)
    except OSError:
        return None


def _hash_pixels(row: ManifestRow) -> bytes | None:
    try:
        pixels = None if row.path is None else read_image(row.path).pixels
    except ImageError:
        return None
    if pixels is None:
        return None
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels, "<f8").tobytes()).digest()


def describe_copies(pictures: Sequence[tuple[ManifestRow, bytes]]) -> tuple[str, ...]:
    """Return notices of images whose prepared pixels, by their digests, are those of another, whatever their files."""
    rows = [row for row, _ in pictures]
    found = [[rows[number] for number in group] for group in _group(range(len(rows)), [key for _, key in pictures])]
    notices = []
    for what, chosen in (
        ("under different patients", [group for group in found if len({row.patient_id for row in group}) > 1]),
        ("with different labels", [group for group in found if _contradict(group)]),
        ("twice", [group for group in found if len({row.patient_id for row in group}) == 1 and not _contradict(group)]),
    ):
        if chosen:
            named = name_some(" = ".join(row.image_id for row in group) for group in chosen)
            notices.append(f"the same picture {what}, so that figures are not what they seem: {named}")
    return tuple(notices)


def describe_patients(
    rows: Sequence[ManifestRow], places: Sequence[str], headers: Sequence[DicomHeader | None]
) -> tuple[str, ...]:
    """Return notices of patients who may be one, or several, by spelling or by the Patient ID of DICOM; none is quoted.

    One Patient ID in all files says nothing: anonymisation gives such.
    """
    keys = [None if header is None else header.patient_key for header in headers]
    alike = _find_several(rows, [_spell(row.patient_id) for row in rows])
    joined = _find_several(rows, keys) if len(set(keys) - {None}) > 1 else []
    rounded = [number for number, row in enumerate(rows) if _ROUNDED.fullmatch(row.patient_id)]
    nobody = [number for number, row in enumerate(rows) if row.patient_id.casefold() in _NOBODY]
    so = "they count as different patients; if they are not, correct the patient_id"
    notices = (
        ("patients whose identifiers differ by case, spaces or leading zeros alone", alike, so),
        ("images of one Patient ID, by their DICOM headers, under different patients", joined, so),
        ("patients whose identifier a spreadsheet has rounded", rounded, "different patients may have become one"),
        ("a patient_id that names nobody", nobody if len(nobody) > 1 else [], "all of them count as one patient"),
    )
    return tuple(
        f"{what}: {name_some(places[number] for number in found)}; {so}" for what, found, so in notices if found
    )


def _find_several(rows: Sequence[ManifestRow], keys: Sequence[Hashable]) -> list[int]:
    """Rows of equal keys but different patients, one of each patient."""
    found: list[int] = []
    for group in _group(range(len(rows)), keys):
        first = {rows[number].patient_id: number for number in reversed(group)}
        found += sorted(first.values()) if len(first) > 1 else []
    return found


def _spell(patient_id: str) -> str:
    text = "".join(unicodedata.normalize("NFKC", patient_id).casefold().split())
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"^(\d+)[.,]0+$", r"\1", text))
