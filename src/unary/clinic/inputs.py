"""Which files a command is given: those named, and the images below the folders named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unary.datasets.folder import LeftOut, describe_left_out, list_files
from unary.errors import ImageError
from unary.images.isolation import show_path
from unary.images.raster import RASTER_SUFFIXES
from unary.images.reading import DICOM_SUFFIXES

_LONGEST_NAME = 120  # bytes, of a result's folder; some file systems end at 143


@dataclass(frozen=True)
class Inputs:
    """Files in the order given, each once, with the name that its result should have; and what was left out, by reason.

    An input that does not exist, and a folder without images, stands for itself: trying it says what is wrong.
    """

    names: dict[Path, str]
    left_out: LeftOut


def list_inputs(inputs: Sequence[Path]) -> Inputs:
    """Return the files among the inputs, and the images in folders and all their sub-folders."""
    names: dict[Path, str] = {}
    left_out: LeftOut = {}
    known: set[str] = set()
    for given in inputs:
        folder = os.path.isdir(given)
        paths, others = list_files(given) if folder else ([given], {})
        for reason, more in others.items():
            left_out.setdefault(reason, []).extend(more)
        for path in paths or [given]:
            place = os.path.abspath(path)
            if place not in known:
                known.add(place)
                names[path] = name_result(path.relative_to(given) if folder else Path(path.name))
    return Inputs(names, left_out)


def name_result(path: Path) -> str:
    """Return the name of a file's result: its path without an image's suffix, ``__`` between the parts.

    It is fit for a folder. A last number of a UID is no suffix. Characters that a name should not hold become ``_``.

    >>> name_result(Path("series/1.2.840.7")), name_result(Path("a:b.dcm"))
    ('series__1.2.840.7', 'a_b')
    """
    suffixed = path.suffix.lower() in RASTER_SUFFIXES + DICOM_SUFFIXES
    name = "__".join((path.with_suffix("") if suffixed else path).parts)
    kept = "".join(c if c.isalnum() or c in "-_.+=@ " else "_" for c in name).strip(" .") or "_"
    return kept.encode("utf-8")[-_LONGEST_NAME:].decode("utf-8", "ignore").lstrip(" .") or "_"


def refuse_folder(folder: Path) -> ImageError:
    """Return the error of a folder that holds no image, with what there is in place of images."""
    left_out = describe_left_out(list_files(folder)[1])
    cause = "no image (DICOM, PNG, TIFF, PGM, JPEG) in this folder" + (f"; {left_out}" if left_out else "")
    return ImageError(f"{show_path(folder)}: {cause}", reason="NOT_READABLE")
