"""Which files are sent to a PACS: unary's own results in folders, and whatever DICOM file is named itself."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.misc import is_dicom
from pydicom.pixels.utils import get_expected_length

from unary.errors import ImageError, UnaryError
from unary.files import OWN_HIDDEN, hash_file
from unary.images.checks import silencing
from unary.outputs.dicom.source import UNDECODABLE

_WANTED = ["SOPClassUID", "SOPInstanceUID", "Manufacturer", "ManufacturerModelName"]
_FOREIGN = "DICOM files that are not unary's results; name them themselves to send them"
_UNFINISHED = "hidden files and folders, such as a run that was killed leaves"
_TWICE = "copies of a file that is sent"


@dataclass(frozen=True)
class Parcel:
    """A file to be sent.

    ``own`` says that it is a result of unary, whose SOP Instance UID stands for its content.
    """

    path: Path
    sop_class: str
    sop_instance: str
    syntax: str
    own: bool


@dataclass(frozen=True)
class Selection:
    """What is sent of some inputs; what cannot be, and why; and what was passed over, by reason."""

    parcels: tuple[Parcel, ...]
    unfit: tuple[tuple[Path, str], ...] = ()
    passed_over: tuple[tuple[str, tuple[Path, ...]], ...] = ()


def select_files(inputs: Sequence[Path]) -> Selection:
    """Choose what is sent: of folders and all their sub-folders unary's results, and every file that is named itself.

    A file that ends in .dcm and is no DICOM file, or is damaged in its first lines, is unfit: it may have been a
    result. So are files with one SOP Instance UID and different contents, of which a PACS would keep one.

    Raises
    ------
    UnaryError
        If an input does not exist.
    """
    parcels: dict[Path, Parcel] = {}
    unfit: dict[Path, str] = {}
    passed_over: dict[str, list[Path]] = defaultdict(list)
    for given in inputs:
        if not given.exists():
            raise UnaryError(f"{given}: no such file or folder")
        for path in _walk(given, unfit, passed_over) if given.is_dir() else [given]:
            try:
                parcel = read_parcel(path)
            except ImageError as error:
                unfit[path] = str(error).removeprefix(f"{path}: ")
                continue
            if parcel.own or path == given:
                parcels[path] = parcel
            else:
                passed_over[_FOREIGN].append(path)
    chosen = tuple(_drop_twins(parcels.values(), unfit, passed_over))
    return Selection(chosen, tuple(unfit.items()), tuple((why, tuple(paths)) for why, paths in passed_over.items()))


def _walk(folder: Path, unfit: dict[Path, str], passed_over: dict[str, list[Path]]) -> Iterator[Path]:
    """The DICOM files of a folder, and what is called so; nothing that is hidden."""

    def tell(error: OSError) -> None:
        unfit[Path(error.filename)] = f"this folder cannot be read ({error.strerror})"

    for place, folders, names in os.walk(folder, onerror=tell):
        hidden = [name for name in (*folders, *names) if name.startswith(".") and name not in OWN_HIDDEN]
        passed_over[_UNFINISHED] += [Path(place, name) for name in sorted(hidden)]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(set(names) - {*hidden, *OWN_HIDDEN}):
            path = Path(place, name)
            if path.suffix.lower() == ".dcm" or (path.is_file() and os.access(path, os.R_OK) and is_dicom(path)):
                yield path
    if not passed_over[_UNFINISHED]:
        del passed_over[_UNFINISHED]


def _drop_twins(
    parcels: Iterable[Parcel], unfit: dict[Path, str], passed_over: dict[str, list[Path]]
) -> Iterator[Parcel]:
    """Of files with one SOP Instance UID, the first if all are the same, else none."""
    alike: dict[str, list[Parcel]] = defaultdict(list)
    for parcel in parcels:
        alike[parcel.sop_instance].append(parcel)
    for first, *others in alike.values():
        if others and len({hash_file(parcel.path) for parcel in (first, *others)}) > 1:
            for parcel in (first, *others):
                unfit[parcel.path] = f"{len(others) + 1} files have its SOP Instance UID and different contents"
            continue
        if others:
            passed_over[_TWICE] += [parcel.path for parcel in others]
        yield first


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let what is no whole DICOM file be an ImageError, which says no more of what is in it."""
    try:
        with silencing("pydicom"):
            yield
    except (InvalidDicomError, OSError, *UNDECODABLE) as error:
        raise ImageError(f"{path}: not a DICOM file that can be sent ({type(error).__name__})") from None


def read_parcel(path: Path) -> Parcel:
    """Return what is to be known of a file before it is sent; an ImageError says that it is no DICOM file."""
    if not path.is_file():  # a pipe would be waited for without end
        raise ImageError(f"{path}: no file")
    with _naming(path):
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.TransferSyntaxUID.is_deflated:
            raise ImageError(f"{path}: compressed by deflate; such a file can unpack to gigabytes")
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_WANTED)
        made_by = (str(dataset.get("Manufacturer")), str(dataset.get("ManufacturerModelName")))
        own = made_by[0] == "unary" and made_by[1].startswith("unary ")
        instance = str(meta.MediaStorageSOPInstanceUID)
        return Parcel(path, str(meta.MediaStorageSOPClassUID), instance, str(meta.TransferSyntaxUID), own)


def read_whole(path: Path) -> pydicom.Dataset:
    """Read a file; an ImageError says that it breaks off, which pydicom takes without a word, and a PACS may keep."""
    with _naming(path):
        dataset = pydicom.dcmread(path)
        whole = bool(dataset.StudyInstanceUID and dataset.SeriesInstanceUID)
        whole &= dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        pixels = [dataset.get(keyword) for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")]
        if "Rows" in dataset:
            whole &= any(pixels)
        if pixels[0] and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            whole &= len(pixels[0]) >= get_expected_length(dataset)
    if not whole:
        raise ImageError(f"{path}: it breaks off or contradicts itself; a copy that was not finished?")
    return dataset
