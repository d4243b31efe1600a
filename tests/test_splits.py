from pathlib import Path

import numpy as np
import pytest

from unary.datasets.splits import describe_split, require_disjoint, split_by_patch, split_by_patient, split_manifest
from unary.errors import SplitError
from unary.records import Manifest, ManifestRow


def test_by_patch_holds_out_the_share():
    held = split_by_patch(1000, 0.1, np.random.default_rng(0))
    assert held.sum() == 100
    assert (held != split_by_patch(1000, 0.1, np.random.default_rng(1))).any()
    assert (held == split_by_patch(1000, 0.1, np.random.default_rng(0))).all()
    assert split_by_patch(2, 0.01, np.random.default_rng(0)).sum() == 1


def test_by_patient_never_divides_one():
    patients = np.random.default_rng(0).choice([f"p{k}" for k in range(20)], 500)
    held = split_by_patient(patients, 0.1, np.random.default_rng(0))
    assert len(np.unique(patients[held])) == 2
    assert not set(patients[held]) & set(patients[~held])
    require_disjoint(patients[held], patients[~held], sides=("a", "b"))


def test_too_little_to_split():
    with pytest.raises(SplitError, match="two normal patches"):
        split_by_patch(1, 0.1, np.random.default_rng(0))
    with pytest.raises(
        SplitError,
        match="at least two patients who have nothing but normal images, or nobody is left to hold out; there is 1",
    ):
        split_by_patient(np.array(["a", "a"]), 0.5, np.random.default_rng(0))


def test_a_shared_patient_is_refused_but_not_named():
    with pytest.raises(SplitError, match="1 patient") as caught:
        require_disjoint(np.array(["smith", "b"]), np.array(["smith"]), sides=("training", "test"))
    assert "smith" not in str(caught.value)


def test_manifest_split_keeps_patients_whole_and_positives_out_of_training():
    labels = {"a": "nn", "b": "np", "c": "n", "d": "p", "e": "nn", "f": "n"}
    rows = tuple(
        ManifestRow(Path("x"), f"{patient}{k}", patient, {"n": "negative", "p": "positive"}[label])
        for patient, text in labels.items()
        for k, label in enumerate(text)
    )
    train, test = split_manifest(Manifest(rows), 0.25, np.random.default_rng(0))
    assert {row.label for row in train.rows} == {"negative"}
    assert not {row.patient_id for row in train.rows} & {row.patient_id for row in test.rows}
    assert {"b", "d"} <= {row.patient_id for row in test.rows}
    assert len({row.patient_id for row in test.rows} - {"b", "d"}) == 1
    assert len(train.rows) + len(test.rows) == len(rows)
    with pytest.raises(SplitError, match="between 0 and 1"):
        split_manifest(Manifest(rows), 1.0, np.random.default_rng(0))


def test_a_seed_stands_for_a_generator():
    patients = np.array([f"p{k}" for k in range(20)])
    rows = tuple(ManifestRow(Path("x"), name, name, "negative") for name in patients)
    for seed in (0, 7):
        assert np.array_equal(split_by_patch(50, 0.3, seed), split_by_patch(50, 0.3, np.random.default_rng(seed)))
        same = split_by_patient(patients, 0.3, np.random.default_rng(seed))
        assert np.array_equal(split_by_patient(patients, 0.3, seed), same)
        of_generator = split_manifest(Manifest(rows), 0.3, np.random.default_rng(seed))
        assert split_manifest(Manifest(rows), 0.3, seed) == of_generator


def test_who_is_on_which_side_is_said_and_counted():
    labels = {"a": "nn", "b": "np", "c": "n", "d": "p", "e": "n", "f": "u", "g": "nu"}
    words = {"n": "negative", "p": "positive", "u": None}
    rows = tuple(
        ManifestRow(Path("x"), f"{patient}{k}", patient, words[label])
        for patient, text in labels.items()
        for k, label in enumerate(text)
    )
    train, test = split_manifest(Manifest(rows), 0.3, 0)
    fitted = {row.patient_id for row in train.rows}
    assert len(fitted) == 2
    lines = describe_split(train, test)
    assert lines[0] == f"to fit: {len(train.rows)} images of 2 patients with nothing but negative images"
    assert " of 1 patient of the same kind; 2 positive images; 2 negative images of patients who also have" in lines[1]
    assert lines[2] == "2 images without a label on the test side; no figure counts them"
    only = Manifest(tuple(row for row in rows if row.label == "negative"))
    assert describe_split(*split_manifest(only, 0.3, 0))[-1].startswith("no positive image on the test side")
