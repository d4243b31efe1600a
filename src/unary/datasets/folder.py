"""Reading a folder of one's own: ``DIR/normal/**`` and ``DIR/abnormal/**``."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unary.datasets.annotation import count_names
from unary.datasets.series import describe_series
from unary.errors import ImageError, ManifestError
from unary.files import OWN_HIDDEN
from unary.images.attributes import DicomHeader
from unary.images.isolation import show_path
from unary.images.preamble import looks_like_dicom
from unary.images.raster import RASTER_SUFFIXES
from unary.images.reading import DICOM_SUFFIXES, is_image_file
from unary.records import NOTICE, Label, Manifest, ManifestRow

RESULT_FILE, STUDY_FILE = "result.json", "study.json"
_LABELS: dict[str, Label] = {"normal": "negative", "abnormal": "positive"}

LeftOut = dict[str, list[Path]]
"""What lies below a folder and is not taken, by the reason."""


def list_files(folder: Path, wanted: Callable[[Path], bool] | None = None) -> tuple[list[Path], LeftOut]:
    """Return the files below a folder, links to folders included, that are wanted, sorted; and all that is left out.

    By default images are wanted: DICOM by content, others by suffix (`RASTER_SUFFIXES`); one that may not be opened is
    taken, so that reading it names the cause. Never taken are what is hidden, a ``DICOMDIR``, links that lead nowhere,
    pipes and devices, empty files of no image's name, folders of unary's own results, folders that cannot be opened,
    and those that have been met already through another link.
    """
    wanted = wanted or _looks_like_image
    taken: list[Path] = []
    left_out: LeftOut = {}
    for path, reason in _walk(folder):
        reason = reason or _find_fault(path, wanted)
        if reason is None:
            taken.append(path)
        else:
            left_out.setdefault(reason, []).append(path)
    return sorted(taken), {reason: sorted(left_out[reason]) for reason in sorted(left_out)}


def _walk(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Every file below a folder, and with a reason every file or folder that is not even looked at."""
    seen: set[tuple[int, int]] = set()
    shut: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=lambda error: shut.append(error.filename)):
        status = os.stat(root)
        reason = None
        if (status.st_dev, status.st_ino) in seen:
            reason = "folder met twice"
        elif (RESULT_FILE in files and read_result(Path(root)) is not None) or (
            STUDY_FILE in files and read_study(Path(root)) is not None
        ):
            reason = "unary's own results"
        seen.add((status.st_dev, status.st_ino))
        if reason:
            folders.clear()
            yield Path(root), reason
            continue
        hidden = [name for name in (*files, *folders) if name.startswith(".") and name not in OWN_HIDDEN]
        yield from ((Path(root, name), "hidden") for name in hidden)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from ((Path(root, name), None) for name in files if not name.startswith("."))
    yield from ((Path(path), "folder that cannot be opened") for path in shut)


def _find_fault(path: Path, wanted: Callable[[Path], bool]) -> str | None:
    """Why a file is not taken, or None."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "link that leads nowhere"
    except OSError:  # a link to itself, a folder that may be listed and not entered
        return "cannot be reached"
    if not stat.S_ISREG(status.st_mode):
        return "pipe, socket or device"
    if path.name.upper() != "DICOMDIR" and wanted(path):
        return None
    return "of another kind" if status.st_size else "empty"


def describe_left_out(left_out: Mapping[str, list[Path]]) -> str:
    """Return a sentence that counts what was left out by its reason, with an example; empty if nothing was.

    >>> describe_left_out({"hidden": [Path("a/.x"), Path("a/.y")], "of another kind": [Path("a/notes.txt")]})
    'left out: 2 hidden (such as a/.x), 1 of another kind (a/notes.txt)'
    """
    parts = (
        f"{len(paths):,} {reason} ({'such as ' if len(paths) > 1 else ''}{show_path(paths[0])})"
        for reason, paths in left_out.items()
    )
    text = ", ".join(parts)
    return text and f"left out: {text}"


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return what the ``result.json`` says that unary has written into a folder; None for a folder that is not its."""
    found = _read_own(folder / RESULT_FILE, "files")
    return found if found is not None and isinstance(found.get("made_from", {}), dict) else None


def read_study(folder: Path) -> dict[str, Any] | None:
    """Return what the ``study.json`` says that unary has written into a folder of a study's objects, or None."""
    return _read_own(folder / STUDY_FILE, "files", "key")


def _read_own(path: Path, *needed: str) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    own = isinstance(found, dict) and found.get("notice") == NOTICE
    return found if own and all(name in found for name in needed) else None


def read_folder(folder: Path | str) -> tuple[Manifest, tuple[str, ...]]:
    """Read a folder that sorts images into ``normal`` and ``abnormal``, or has one of them alone.

    Whatever lies below counts, links to folders included.

    Returns
    -------
    tuple
        The manifest, and notices: what was skipped, what does not look right. ``image_id`` is the path below
        ``folder`` without its suffix. ``patient_id`` is the first sub-folder below ``normal`` or ``abnormal`` where
        there is one (a patient may have images in both), else the hashed Patient ID of a DICOM file, else the
        ``image_id``.

    Raises
    ------
    ManifestError
        If neither sub-folder is there, or no image is in them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder")
    classes = [path for path in sorted(folder.iterdir()) if path.name.lower() in _LABELS and path.is_dir()]
    if not classes:
        raise ManifestError(f"{folder}: a sub-folder 'normal' or 'abnormal' is needed, and there is none")
    images: dict[Path, list[Path]] = {}
    beside = sorted(path.name for path in folder.iterdir() if path not in classes)
    notices = list(count_names("name", beside, "beside 'normal' and 'abnormal', left out with all that lies below"))
    for base in classes:
        images[base], left_out = list_files(base)
        notices += [f"{base}: {describe_left_out(left_out)}"] if left_out else []
    names = _name_images([path.relative_to(folder) for base in classes for path in images[base]])
    rows, headers = [], []
    for base in classes:
        for path in images[base]:
            header, remarks = _read_header(path)
            rows.append(_build_row(path, base, names[path.relative_to(folder)], header))
            headers.append(header)
            notices += remarks
    if not rows:
        raise ManifestError(
            f"{folder}: no image (DICOM, {', '.join(RASTER_SUFFIXES)}) in {' or '.join(path.name for path in classes)}"
        )
    places = [None if header is None else header.place for header in headers]
    notices += describe_series(places, [row.image_id for row in rows])
    return Manifest(tuple(rows)), tuple(notices + _describe_patients(rows))


def read_classes(folder: Path, classes: Mapping[str, Label]) -> tuple[tuple[ManifestRow, ...], tuple[str, ...]]:
    """Read the sub-folders of a set that a publication has sorted, by the label of all that lies below each.

    Returns
    -------
    tuple
        Rows in the order of the classes, and notices of what was left out. ``image_id`` is the path below ``folder``
        without its suffix; no patient is known, so ``patient_id`` is the same.

    Raises
    ------
    ManifestError
        If the folder or one of the sub-folders is missing, or no image is in one of them.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder")
    images: dict[str, list[Path]] = {}
    notices: list[str] = []
    for name in classes:
        if not (folder / name).is_dir():
            raise ManifestError(f"{folder}: no sub-folder {name!r} there; the set is laid out as {', '.join(classes)}")
        images[name], left_out = list_files(folder / name)
        notices += [f"{folder / name}: {describe_left_out(left_out)}"] if left_out else []
        if not images[name]:
            raise ManifestError(f"{folder / name}: no image (DICOM, {', '.join(RASTER_SUFFIXES)}) there")
    names = _name_images([path.relative_to(folder) for found in images.values() for path in found])
    rows = []
    for name, label in classes.items():
        for path in images[name]:
            image_id = names[path.relative_to(folder)]
            rows.append(ManifestRow(path.absolute(), image_id, image_id, label))
    return tuple(rows), tuple(notices)


def _looks_like_image(path: Path) -> bool:
    try:
        return is_image_file(path)
    except OSError:
        return True


def _name_images(paths: list[Path]) -> dict[Path, str]:
    """Paths without their suffix, but with it where a name would be that of two (``a.png``, ``a.dcm``).

    So it goes with one whose name without suffix is the whole name of another (``a.png.tif`` beside ``a.png``). The
    last number of a UID that serves as a name is no suffix.
    """
    suffixes = RASTER_SUFFIXES + DICOM_SUFFIXES
    short = {path: (path.with_suffix("") if path.suffix.lower() in suffixes else path).as_posix() for path in paths}
    counts = Counter(name for path in paths for name in {short[path], path.as_posix()})
    return {path: path.as_posix() if counts[name] > 1 else name for path, name in short.items()}


def _read_header(path: Path) -> tuple[DicomHeader | None, list[str]]:
    """The header of a DICOM file, or why it cannot be read."""
    from unary.images.dicom import read_header

    try:
        if path.suffix.lower() in DICOM_SUFFIXES or looks_like_dicom(path):
            return read_header(path), []
    except ImageError as error:
        return None, [str(error)]
    except OSError as error:
        return None, [f"{path}: cannot be opened ({error.strerror})"]
    return None, []


def _build_row(path: Path, base: Path, image_id: str, header: DicomHeader | None) -> ManifestRow:
    inside = path.relative_to(base).parts
    key = header.patient_key if header else None
    return ManifestRow(
        path=path.absolute(),
        image_id=image_id,
        patient_id=inside[0] if len(inside) > 1 else key or image_id,
        label=_LABELS[base.name.lower()],
        laterality=header.laterality if header else None,
        view=header.view if header else None,
    )


def _describe_patients(rows: list[ManifestRow]) -> list[str]:
    if len(rows) > 1 and len({row.patient_id for row in rows}) == 1:
        return [
            f"all {len(rows)} images count as one patient; if anonymisation gave all the same Patient ID, put the "
            "images of each patient into a folder of their own below 'normal' or 'abnormal'"
        ]
    alone = sum(row.patient_id == row.image_id for row in rows)
    if alone:
        return [
            f"{alone} images name no patient and count as a patient each; put each patient's images into a sub-folder"
        ]
    return []
