"""Reading a folder of one's own: ``DIR/normal/**`` and ``DIR/abnormal/**``."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from unary.errors import ImageError, ManifestError
from unary.images.dicom import has_dicom_magic, read_header
from unary.images.raster import RASTER_SUFFIXES
from unary.images.reading import DICOM_SUFFIXES, is_image_file
from unary.records import Label, Manifest, ManifestRow

_LABELS: dict[str, Label] = {"normal": "negative", "abnormal": "positive"}


def find_images(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted: DICOM by content, others by suffix (`RASTER_SUFFIXES`).

    Hidden files, other files, a ``DICOMDIR`` and links that lead nowhere are left out.
    """
    return _list_files(folder)[0]


def read_folder(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
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
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder")
    classes = [path for path in sorted(folder.iterdir()) if path.name.lower() in _LABELS and path.is_dir()]
    if not classes:
        raise ManifestError(f"{folder}: a sub-folder 'normal' or 'abnormal' is needed, and there is none")
    images: dict[Path, list[Path]] = {}
    notices: list[str] = []
    for base in classes:
        images[base], skipped = _list_files(base)
        notices += skipped
    names = _name_images([path.relative_to(folder) for base in classes for path in images[base]])
    rows = []
    for base in classes:
        for path in images[base]:
            row, remarks = _build_row(path, base, names[path.relative_to(folder)])
            rows.append(row)
            notices += remarks
    if not rows:
        raise ManifestError(
            f"{folder}: no image (DICOM, {', '.join(RASTER_SUFFIXES)}) in {' or '.join(path.name for path in classes)}"
        )
    return Manifest(tuple(rows)), tuple(notices + _describe_patients(rows))


def _list_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The images below a folder, sorted, and notices of what else is there."""
    images: list[Path] = []
    broken: list[Path] = []
    hidden = others = 0
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(root, name)
            if name.startswith("."):
                hidden += 1
            elif not path.exists():
                broken.append(path)
            elif path.is_file() and name.upper() != "DICOMDIR" and _looks_like_image(path):
                images.append(path)
            else:
                others += 1
    notices = [f"{path}: a link that leads nowhere, left out" for path in sorted(broken)]
    for count, what in ((hidden, "hidden files"), (others, "files that are no images")):
        if count:
            notices.append(f"{folder}: {count} {what} were left out")
    return sorted(images), notices


def _looks_like_image(path: Path) -> bool:
    """Whether to try it; a file that may not be opened counts, so that reading it names the cause."""
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


def _build_row(path: Path, base: Path, image_id: str) -> tuple[ManifestRow, list[str]]:
    inside = path.relative_to(base).parts
    remarks: list[str] = []
    header = None
    try:
        if path.suffix.lower() in DICOM_SUFFIXES or has_dicom_magic(path):
            header = read_header(path)
    except ImageError as error:
        remarks.append(str(error))
    except OSError as error:
        remarks.append(f"{path}: cannot be opened ({error.strerror})")
    key = header.patient_key if header else None
    row = ManifestRow(
        path=path.absolute(),
        image_id=image_id,
        patient_id=inside[0] if len(inside) > 1 else key or image_id,
        label=_LABELS[base.name.lower()],
        laterality=header.laterality if header else None,
        view=header.view if header else None,
    )
    return row, remarks


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
