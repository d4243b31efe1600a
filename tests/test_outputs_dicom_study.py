"""The objects of a whole study: the CAD report that workstations mark, and the summary."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from test_outputs_dicom import (
    CANARY,
    IDENTITY,
    MOMENT,
    POINT,
    RUN,
    find_errors,
    iterate_items,
    make_awkward,
    make_detection,
)

from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import DicomResultError
from unary.outputs.dicom import STUDY_KINDS
from unary.outputs.dicom import cad_report as cad
from unary.outputs.dicom import study_summary
from unary.outputs.dicom.report import FINDING_COUNT, SUMMARY, WITH_FINDINGS, WITHOUT_FINDINGS
from unary.outputs.dicom.source import read_source
from unary.outputs.dicom.study import StudyImage, gather_study, read_stated_spacing
from unary.outputs.dicom.study_writing import write_study_objects
from unary.records import NOTICE

SHAPE = (192, 160)
VIEWS = (("L", "MLO"), ("R", "CC"), ("L", "CC"), ("R", "MLO"))  # not as they are hung
TEMPLATE_VALIDATOR = shutil.which("DicomSRValidator")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Return the paths of the four views of a study, by side and view."""
    folder = tmp_path_factory.mktemp("study")
    found = {}
    for side, view in VIEWS:
        path = folder / f"{side}{view}.dcm"
        rng = np.random.default_rng(5)
        phantom = build_phantom(PhantomConfig(rows=SHAPE[0], cols=SHAPE[1]), rng=rng, view=view, laterality=side)
        write_phantom(phantom, path, image_id=f"{side}{view}", patient_id="P1")
        dataset = make_awkward(pydicom.dcmread(path))
        dataset.save_as(path, enforce_file_format=True)
        found[side + view] = path
    return found


def make_image(path, count=0, **changes):
    """Return an image that was examined, with so many findings."""
    detection = make_detection(SHAPE, count=count)
    image = StudyImage(
        read_source(path), f"{path.name:0>64}", "examined", read_stated_spacing(path), detection.findings,
        detection.image_score, detection.image_p_value, key=f"key of {path.name}",
    )  # fmt: skip
    return replace(image, **changes)


REFUSED = {"state": "refused", "reason": "IMPLANT", "detail": "the breast has an implant", "image_score": None,
           "image_p_value": None}  # fmt: skip
BROKEN = {**REFUSED, "state": "failed", "reason": "CORRUPT_PIXELS", "detail": "its pixels break off"}


def make_study(paths, name):
    """Return the images of a study by what became of them."""
    counts = {"LMLO": 2, "RCC": 3, "LCC": 0, "RMLO": 1}
    images = {view: make_image(path, counts[view]) for view, path in paths.items()}
    bare = {view: make_image(path) for view, path in paths.items()}
    lost = {"RCC": make_image(paths["RCC"], **REFUSED), "LCC": make_image(paths["LCC"], **BROKEN)}
    return {
        "with findings": images,
        "normal": bare,
        "partly, with findings": images | lost,
        "partly, without": bare | lost,
        "not at all": {
            view: make_image(path, **(REFUSED if view[1:] == "CC" else BROKEN)) for view, path in paths.items()
        },
        "nothing to score": {
            view: make_image(path, state="not scored", image_score=None) for view, path in paths.items()
        },
    }[name].values()


STUDIES = {  # what became of the images: summary, summary of detections
    "with findings": (WITH_FINDINGS, cad.ALL_SUCCEEDED),
    "normal": (WITHOUT_FINDINGS, cad.ALL_SUCCEEDED),
    "partly, with findings": (cad.SOME_WITH_FINDINGS, cad.SOME_SUCCEEDED),
    "partly, without": (cad.SOME_WITHOUT_FINDINGS, cad.SOME_SUCCEEDED),
    "not at all": (cad.NOTHING_SUCCEEDED, cad.NONE_SUCCEEDED),
    "nothing to score": (cad.NOTHING_SUCCEEDED, cad.NONE_SUCCEEDED),
}


@pytest.fixture(scope="module")
def written(paths, tmp_path_factory):
    """Return, by what became of the images, the folder of the study's objects."""
    folders = {}
    for name in STUDIES:
        folders[name] = tmp_path_factory.mktemp("objects")
        objects = write_study_objects(list(make_study(paths, name)), POINT, RUN, folders[name])
        assert [path.stem for path in objects] == list(STUDY_KINDS)
    return folders


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("kind", STUDY_KINDS)
def test_objects_are_valid(written, name, kind):
    assert find_errors(written[name] / f"{kind}.dcm") == []
