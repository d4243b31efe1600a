"""The DICOM objects of whole studies, made of a folder of results once the images of a study have been worked on.

They tell of the files that they are asked about, also of those without a result, and are made anew when anything that
stands in them has changed; else they are kept, so that sending them again makes no copies.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from unary.clinic.result_folder import RECORD, read_whole_result
from unary.datasets.folder import STUDY_FILE, read_study
from unary.errors import DicomResultError, ImageError, UnaryError
from unary.files import hash_file, locking, replacing
from unary.images.isolation import show_path
from unary.outputs.dicom import STUDY_KINDS, StudyKind
from unary.outputs.dicom.run import Run
from unary.outputs.dicom.source import read_source
from unary.outputs.dicom.study import (
    StudyImage,
    gather_study,
    identify_study,
    name_state,
    read_stated_spacing,
)
from unary.outputs.dicom.study_writing import write_study_objects
from unary.records import NOTICE, Finding, OperatingPoint

logger = logging.getLogger(__name__)

_NO_IMAGE = ("NOT_AN_IMAGE",)  # reports, presentation states and the like belong to a study and are none of its images


@dataclass(frozen=True)
class StudyResult:
    """The objects of one study.

    Attributes
    ----------
    folder
        Where they are.
    objects
        Their paths.
    images
        How many images they tell of.
    kept
        Whether they had been made before, of the same.
    """

    folder: Path
    objects: tuple[Path, ...]
    images: int
    kept: bool


@dataclass(frozen=True)
class StudyResults:
    """The objects of all studies, and a sentence for each thing that is in none of them, or could not be made."""

    studies: tuple[StudyResult, ...]
    missing: tuple[str, ...] = ()


def write_study_results(
    results: Path,
    sources: Iterable[Path],
    run: Run,
    point: OperatingPoint | None,
    *,
    kinds: Sequence[StudyKind] = STUDY_KINDS,
) -> StudyResults:
    """Write the objects of the studies that image files belong to, as ``results/study-HASH/KIND.dcm``.

    Beside them ``study.json`` says what they were made of. An object's date and time are those of its latest image's
    result; so the same images, results and model give the same object, whenever it is made. Of a study without any
    result they are the run's.

    Parameters
    ----------
    results
        A folder of results of `unary.clinic.batch_detection.detect_files`, which no other process may use meanwhile.
    sources
        The files that were given to it; of a whole study if the objects are to tell of a whole study. Files that are no
        DICOM images are passed over, for they are in no study.
    run, point
        What made the results: others in the folder are not told of.

    Raises
    ------
    UnaryError
        If the folder is in use, or nothing can be written there.
    """
    with locking(results):
        found = _Results.read(results, run, point)
        missing: list[str] = []
        studies: dict[str, dict[str, StudyImage]] = {}
        moments: dict[str, list[str]] = {}
        for path in sources:
            try:
                image, moment = found.tell(path)
            except ImageError as error:
                if error.reason not in (*_NO_IMAGE, "NOT_READABLE"):
                    missing.append(f"in no study: {error}")
                continue
            study = identify_study(image.source)
            studies.setdefault(study, {})[image.sha256] = image
            moments.setdefault(study, []).extend([moment] if moment else [])
        written = []
        for study, images in studies.items():
            own = replace(run, moment=max(map(datetime.fromisoformat, moments[study]))) if moments[study] else run
            try:
                written.append(
                    _write(results, study, list(images.values()), _Made(own, point, kinds, bool(moments[study])))
                )
            except UnaryError as error:
                missing.append(f"study of {len(images)} images: {error}")
    return StudyResults(tuple(written), tuple(missing))


@dataclass(frozen=True)
class _Made:
    """What the objects of a study are made by; ``dated`` says that the run's moment is that of a result."""

    run: Run
    point: OperatingPoint | None
    kinds: Sequence[StudyKind]
    dated: bool


def _write(results: Path, study: str, images: Sequence[StudyImage], made: _Made) -> StudyResult:
    """Write the objects of one study, or keep those that are there and made of the same."""
    folder = results / f"study-{study[:12]}"
    case = gather_study(images, made.point, made.run if made.dated else _undated(made.run), made.kinds[0])
    key, images = case.key, case.images
    before = read_study(folder)
    names = [f"{kind}.dcm" for kind in made.kinds]
    if before is None and folder.exists() and any(folder.iterdir()):
        raise UnaryError(f"{folder}: it is there, and unary has not written it; its objects have no place")
    if before is not None and before["key"] == key and _is_whole(folder, before, names):
        return StudyResult(folder, tuple(folder / name for name in names), len(images), kept=True)
    folder.mkdir(exist_ok=True)
    _write_record(folder, {"notice": NOTICE, "key": "", "files": [*names, STUDY_FILE]})  # so that a kill leaves it ours
    failure: DicomResultError | None = None
    try:
        objects = write_study_objects(images, made.point, made.run, folder, kinds=made.kinds)
    except DicomResultError as error:
        objects, failure = error.written, error
    made_now = {STUDY_FILE, *(path.name for path in objects)}
    for name in before["files"] if before is not None else ():
        if name not in made_now and Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    _write_record(folder, _describe(key, images, made, objects))
    if failure is not None:
        raise failure
    return StudyResult(folder, objects, len(images), kept=False)


def _undated(run: Run) -> Run:
    """The run without the moment, which is another one each time."""
    return replace(run, moment=datetime.fromtimestamp(0).astimezone())


def _is_whole(folder: Path, before: Mapping[str, Any], names: Sequence[str]) -> bool:
    sums = before.get("sha256")
    return isinstance(sums, dict) and all(
        (folder / name).is_file() and hash_file(folder / name) == sums.get(name) for name in names
    )


def _describe(key: str, images: Sequence[StudyImage], made: _Made, objects: Sequence[Path]) -> dict[str, Any]:
    """What ``study.json`` says; no identifier of a patient stands in it."""
    return {
        "notice": NOTICE,
        "key": key,
        "moment": made.run.moment.isoformat(),
        "model_sha256": made.run.identity.sha256,
        "operating_point": None if made.point is None else made.point.name,
        "images": [
            {
                "sha256": image.sha256,
                "view": image.name,
                "state": image.state,
                "reason": image.reason,
                "findings": len(image.findings),
                "image_score": image.image_score,
                "image_p_value": image.image_p_value,
            }
            for image in images
        ],
        "files": [*(path.name for path in objects), STUDY_FILE],
        "sha256": {path.name: hash_file(path) for path in objects},
    }


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    with replacing(folder / STUDY_FILE) as partial:
        partial.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Results:
    """Of a folder, the results of a model at an operating point, and the failures, by the hash of their file."""

    results: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls, folder: Path, run: Run, point: OperatingPoint | None) -> _Results:
        """Read what is there."""
        wanted = {
            "command": "detect",
            "model_sha256": run.identity.sha256,
            "unary": run.identity.version,
            "operating_point": None if point is None else point.name,
        }
        results = {}
        for path in sorted(folder.iterdir()):
            found = read_whole_result(path) if path.is_dir() and not path.name.startswith(".") else None
            if found is not None and all(found["made_from"].get(key) == value for key, value in wanted.items()):
                results[str(found["made_from"]["sha256"])] = found
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = {}
        failures = {str(each["sha256"]): each for each in record.get("failures", ()) if each.get("sha256")}
        return cls(results, failures)

    def tell(self, path: Path) -> tuple[StudyImage, str | None]:
        """Return a file's image with what became of it, and the moment of its result; an ImageError if it is none."""
        sha256 = hash_file(path) if path.is_file() else ""
        failure, found = self.failures.get(sha256), self.results.get(sha256)
        if failure is not None and failure["reason"] in _NO_IMAGE:
            raise ImageError(f"{show_path(path)}: no image", reason="NOT_AN_IMAGE")
        source, spacing = read_source(path), read_stated_spacing(path)
        if found is not None:
            return _build_image(StudyImage(source, sha256, "examined", spacing), found), str(found["moment"])
        reason, detail = (
            ("UNEXPECTED", "it has no result") if failure is None else (failure["reason"], failure["detail"])
        )
        return StudyImage(source, sha256, name_state(reason), spacing, reason=reason, detail=detail), None


def _build_image(image: StudyImage, found: Mapping[str, Any]) -> StudyImage:
    """The image with what its ``result.json`` says was found in it."""
    return replace(
        image,
        state="not scored" if found["image_score"] is None else "examined",
        findings=tuple(_build_finding(each) for each in found["findings"]),
        image_score=found["image_score"],
        image_p_value=found["image_p_value"],
        out_of_domain=tuple(found["out_of_domain"]),
        notes=tuple(found["notes"]),
        key=str(found.get("dicom_key") or ""),
    )


def _build_finding(found: Mapping[str, Any]) -> Finding:
    """A finding, back from JSON."""
    places = {
        "box": tuple(found["box"]),
        "outline": tuple((row, col) for row, col in found["outline"]),
        "peak": tuple(found["peak"]),
    }
    return Finding(**{**found, **places})
