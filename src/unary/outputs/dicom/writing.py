"""Results that a PACS takes: one DICOM object per kind, beside the image in its study.

All are uncompressed Explicit VR Little Endian, since compressed segmentations crash servers in use. Each names the
model, its hash, the operating point and the source image, and says that it is research and not for diagnosis.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from unary.errors import DicomResultError, require
from unary.files import hash_file, replacing
from unary.images.checks import silencing
from unary.images.dicom import read_dicom
from unary.outputs.dicom import DEFAULT_KINDS, KINDS, Kind
from unary.outputs.dicom.capture import build_capture, find_window
from unary.outputs.dicom.header import Case, build_result, check_arrays
from unary.outputs.dicom.presentation import build_presentation
from unary.outputs.dicom.report import build_report
from unary.outputs.dicom.run import Run, hash_case
from unary.outputs.dicom.segmentation import build_heat_map, build_segmentation
from unary.outputs.dicom.source import UNDECODABLE, read_source
from unary.records import Detection, Image


def write_dicom_results(
    source_path: Path,
    detection: Detection,
    run: Run,
    folder: Path,
    *,
    kinds: Sequence[Kind] = DEFAULT_KINDS,
    anomaly_map: NDArray[np.float32] | None = None,
    image: Image | None = None,
) -> tuple[Path, ...]:
    """Write the DICOM results of one image as ``folder/KIND.dcm`` and return their paths.

    ``report``: structured report, also when nothing was found. ``segmentation``: the pixels of the findings; not
    written when there are none. ``capture``: a picture for any viewer. ``heat_map``: the anomaly map.
    ``presentation``: boxes that the viewer draws. All are built before the first is written, and each is written whole
    or not at all; one of a former run that no longer belongs there is removed.

    Parameters
    ----------
    source_path
        The DICOM image that the detection is of. It is only read.
    folder
        Of this image alone; created when missing.
    anomaly_map
        Shape (rows, cols) of the stored image, float32, NaN where nothing was scored; needed for ``heat_map``.
    image
        The pixels of ``source_path``, where they have been read already; else they are read when a kind needs them.

    Raises
    ------
    DicomResultError
        If some or all of them cannot be made, because of what the image's header lacks: which and why. Those that can
        have been written all the same.
    ImageError
        If the source is no readable DICOM image, or the detection is not of its size.
    ValueError
        If a kind is unknown, or ``heat_map`` is asked for without a map.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}; known are {', '.join(KINDS)}")
    if "heat_map" in kinds and anomaly_map is None:
        raise ValueError("a heat map needs the anomaly map")
    source = read_source(source_path)
    if image is None and {"capture", "presentation"} & set(kinds):
        image = read_dicom(source_path)
    check_arrays(source, detection, anomaly_map if "heat_map" in kinds else None)
    key = hash_case(hash_file(source_path), detection, run)
    results: dict[Kind, Dataset | None] = {}
    failed: list[str] = []
    for kind in dict.fromkeys(kinds):
        try:
            results[kind] = _build(Case(source, detection, run, kind, key), image=image, anomaly_map=anomaly_map)
        except MemoryError:
            raise
        except UNDECODABLE as error:  # from the packages underneath, whose messages quote values
            failed.append(f"{kind} ({type(error).__name__})")
    written = []
    for kind, result in results.items():
        path = folder / f"{kind}.dcm"
        if result is None:
            path.unlink(missing_ok=True)
            continue
        content = io.BytesIO()  # pydicom tells of a full disk without saying that it is one
        with silencing("pydicom"):
            result.save_as(content, enforce_file_format=True)
        with replacing(path) as partial:
            partial.write_bytes(content.getbuffer())
        written.append(path)
    if failed:
        raise DicomResultError(
            f"{source_path}: no DICOM {', '.join(failed)} could be made of the image's header; all else was",
            tuple(written),
        )
    return tuple(written)


def _build(case: Case, *, image: Image | None, anomaly_map: NDArray[np.float32] | None) -> Dataset | None:
    hd = require("highdicom", extra="dicom")
    body: Dataset | None
    with silencing("highdicom", "pydicom"):
        if case.kind == "report":
            body = build_report(hd, case)
        elif case.kind == "segmentation":
            body = build_segmentation(hd, case)
        elif case.kind == "heat_map":
            assert anomaly_map is not None
            body = build_heat_map(hd, case, anomaly_map)
        else:
            assert image is not None
            if case.kind == "capture":
                body = build_capture(hd, case, image)
            else:
                inverted = case.source.get("PhotometricInterpretation") == "MONOCHROME1"
                body = build_presentation(hd, case, find_window(image, inverted=inverted))
        return None if body is None else build_result(case, body)
