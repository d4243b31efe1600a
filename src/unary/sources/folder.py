"""A plain folder of images: ``DIR/normal/**`` and ``DIR/abnormal/**``."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from unary.errors import ManifestError
from unary.records import Label, Manifest, ManifestRow
from unary.sources.dicom import has_dicom_magic
from unary.sources.raster import RASTER_SUFFIXES

_LABELS: tuple[tuple[str, Label], ...] = (("normal", "negative"), ("abnormal", "positive"))


def find_images(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted: DICOM by its content, PNG, TIFF and PGM by their suffix.

    Hidden files and folders and broken links are passed over.
    """
    return [path for path in _walk(folder) if _is_image(path)]


def _walk(folder: Path) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root) / name for name in names if not name.startswith(".")]
    return sorted(found)


def _is_image(path: Path) -> bool:
    try:
        return path.is_file() and (path.suffix.lower() in RASTER_SUFFIXES or has_dicom_magic(path))
    except OSError:
        return False


def read_folder(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """List a folder of normal and abnormal images.

    The image id is the path below the folder without its suffix. The patient is the first sub-folder below ``normal``
    or ``abnormal``; where there is none, a hash of the DICOM patient identifier; else the image itself.

    Returns
    -------
    tuple
        The manifest, without lesions: what is abnormal, and where, the folder does not say. And notices: what was left
        out, and where patients are not known.

    Raises
    ------
    ManifestError
        If there is no image below either sub-folder.
    """
    rows: list[ManifestRow] = []
    notices = []
    used: set[str] = set()
    alone = 0
    for name, label in _LABELS:
        base = folder / name
        files = _walk(base)
        images = [path for path in files if _is_image(path)]
        broken = [path for path in files if path.is_symlink() and not path.exists()]
        notices += [f"{path}: a link that leads nowhere, left out" for path in broken]
        others = len(files) - len(images) - len(broken)
        if others:
            notices.append(f"{base}: {others} files that are no images were left out")
        for path in images:
            below = path.relative_to(base)
            image_id = (Path(name) / below).with_suffix("").as_posix()
            if image_id in used:
                image_id = (Path(name) / below).as_posix()
            used.add(image_id)
            patient = below.parts[0] if len(below.parts) > 1 else _hash_patient(path)
            alone += patient is None
            rows.append(ManifestRow(path.absolute(), image_id, patient or image_id, label))
    if not rows:
        raise ManifestError(f"{folder}: no image (DICOM, PNG, TIFF, PGM) in its sub-folders normal and abnormal")
    if alone:
        notices.append(
            f"{alone} images name no patient and count as a patient each; put each patient's images into a sub-folder"
        )
    return Manifest(tuple(rows)), tuple(notices)


def _hash_patient(path: Path) -> str | None:
    """Twelve hexadecimal digits of the SHA-256 of the DICOM patient identifier: joins images, names nobody."""
    if path.suffix.lower() in RASTER_SUFFIXES:
        return None
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
    except (InvalidDicomError, OSError, ValueError, AttributeError, KeyError, EOFError):
        return None  # it will be refused, by name, when it is read
    identifier = str(dataset.get("PatientID") or "").strip()
    return hashlib.sha256(identifier.encode()).hexdigest()[:12] if identifier else None
