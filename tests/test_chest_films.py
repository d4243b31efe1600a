"""Reading children's chest films, the patient by the name of the file."""

import numpy as np
import PIL.Image
import pytest

from unary.datasets.chest_films import RESERVED_SHARE, find_patient, is_reserved, read_chest_films
from unary.errors import ManifestError


@pytest.fixture
def folder(tmp_path):
    names = [
        "normal/IM-0115-0001",
        "normal/NORMAL2-IM-0115-0001",
        "normal/NORMAL2-IM-0115-0001-0002",
        "abnormal/person9_virus_1",
        "abnormal/person9_bacteria_22_1",
        "abnormal/film7",
    ]
    for seed, name in enumerate(names):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    return tmp_path


def test_patients_are_those_of_the_names(folder):
    manifest, notices = read_chest_films(folder)
    patients = {row.image_id.partition("/")[2]: row.patient_id for row in manifest.rows}
    assert patients == {
        "IM-0115-0001": "IM-0115",
        "NORMAL2-IM-0115-0001": "NORMAL2-IM-0115",
        "NORMAL2-IM-0115-0001-0002": "NORMAL2-IM-0115",
        "person9_virus_1": "person9",
        "person9_bacteria_22_1": "person9",
        "film7": "abnormal/film7",
    }
    assert [row.label for row in manifest.rows] == ["negative"] * 3 + ["positive"] * 3
    assert notices == ("1 image whose name holds no patient, and which counts as one: abnormal/film7",)


@pytest.mark.parametrize("name", ["person_1", "IM-0115", "XIM-0115-0001", "NORMAL-IM-0115-1"])
def test_other_names_hold_no_patient(name):
    assert find_patient(name) is None


def test_a_third_of_the_patients_is_reserved_always_the_same():
    reserved = [is_reserved(f"person{number}") for number in range(3000)]
    assert abs(np.mean(reserved) - 1 / RESERVED_SHARE) < 0.03
    assert [number for number in range(8) if reserved[number]] == [0, 1, 5, 7]


def test_a_wrong_layout_is_named(folder):
    with pytest.raises(ManifestError, match="no sub-folder 'normal' there; the set is laid out as normal, abnormal"):
        read_chest_films(folder / "normal")
