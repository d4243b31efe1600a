"""What is learned from and what is tested."""

import numpy as np
import PIL.Image
import pytest

from unary.datasets.chest_films import is_reserved
from unary.errors import ManifestError
from unary.experiments.image_level_sets import open_brain_mr, open_chest_films


def write_films(folder, *, patients, first=0):
    for label, name in (("normal", "IM-{:04d}-0001"), ("abnormal", "person{}_virus_1")):
        (folder / label).mkdir(parents=True)
        for number in range(first, first + patients):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / label / f"{name.format(number)}.png")
    return folder


def test_without_test_films_a_third_of_the_patients_is_tested(tmp_path):
    data = open_chest_films(write_films(tmp_path / "a", patients=30))
    assert all(is_reserved(row.patient_id) for row in data.test)
    assert not any(is_reserved(row.patient_id) for row in data.train)
    assert {row.label for row in data.train} == {"negative"}
    assert {row.label for row in data.test} == {"negative", "positive"}
    normal = sum(row.label == "negative" for row in data.test)
    assert normal + len(data.train) == 30
    assert data.has_patients


def test_test_films_of_their_own_are_all_tested_and_their_patients_not_learned_from(tmp_path):
    films = write_films(tmp_path / "a", patients=6)
    data = open_chest_films(films, write_films(tmp_path / "b", patients=4, first=4))
    assert len(data.test) == 8
    assert [row.patient_id for row in data.train] == ["IM-0000", "IM-0001", "IM-0002", "IM-0003"]
    assert any("2 training films of a test patient, left out" in notice for notice in data.notices)
    with pytest.raises(ManifestError, match="the test films are the training films"):
        open_chest_films(films, films)


def test_a_side_without_films_is_named(tmp_path):
    with pytest.raises(ManifestError, match="no film is left to learn from"):
        open_chest_films(write_films(tmp_path / "a", patients=1, first=2))


def test_brain_slices_keep_their_published_split(tmp_path):
    for number, name in enumerate(("train/normal/a", "test/normal/b", "test/abnormal/c")):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True)
        PIL.Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    data = open_brain_mr(tmp_path)
    assert [row.image_id for row in data.train] == ["train/normal/a"]
    assert sorted(row.image_id for row in data.test) == ["test/abnormal/c", "test/normal/b"]
    assert not data.has_patients
    assert max(one.auroc for one in data.published) == 0.871
    assert "2403.09303" in data.source
