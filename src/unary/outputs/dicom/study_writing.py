"""Writing the objects of a whole study."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from unary.errors import DicomResultError
from unary.files import replacing
from unary.images.checks import silencing
from unary.outputs.dicom import STUDY_KINDS, StudyKind
from unary.outputs.dicom.cad_report import build_cad_report
from unary.outputs.dicom.header import build_result
from unary.outputs.dicom.run import Run
from unary.outputs.dicom.source import UNDECODABLE
from unary.outputs.dicom.study import StudyImage, gather_study
from unary.outputs.dicom.study_summary import build_study_summary
from unary.records import OperatingPoint

_BUILD = {"cad_report": build_cad_report, "study_summary": build_study_summary}


def write_study_objects(
    images: Sequence[StudyImage],
    point: OperatingPoint | None,
    run: Run,
    folder: Path,
    *,
    kinds: Sequence[StudyKind] = STUDY_KINDS,
) -> tuple[Path, ...]:
    """Write the objects of one study as ``folder/KIND.dcm`` and return their paths.

    The same images, results, model and moment give the same bytes. All are built before the first is written, and each
    is written whole or not at all.

    Raises
    ------
    DicomResultError
        If some or all of them cannot be made of what the headers hold. Those that can have been written all the same.
    ValueError
        If a kind is unknown, there is no image, or they are of several studies or patients.
    """
    unknown = [kind for kind in kinds if kind not in STUDY_KINDS]
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}; known are {', '.join(STUDY_KINDS)}")
    contents: dict[StudyKind, io.BytesIO] = {}
    failed: list[str] = []
    for kind in dict.fromkeys(kinds):
        case = gather_study(images, point, run, kind)
        content = io.BytesIO()
        try:
            with silencing("pydicom"):
                build_result(case, _BUILD[kind](case)).save_as(content, enforce_file_format=True)
        except MemoryError:
            raise
        except UNDECODABLE as error:  # from the packages underneath, whose messages quote values
            failed.append(f"{kind} ({type(error).__name__})")
            continue
        contents[kind] = content
    written = []
    for kind, content in contents.items():
        path = folder / f"{kind}.dcm"
        with replacing(path) as partial:
            partial.write_bytes(content.getbuffer())
        written.append(path)
    if failed:
        raise DicomResultError(f"no DICOM {', '.join(failed)} could be made of the images' headers", tuple(written))
    return tuple(written)
