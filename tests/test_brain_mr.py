"""Reading brain MR slices in their published split."""

import numpy as np
import PIL.Image
import pytest

from unary.datasets import read_data_set
from unary.datasets.brain_mr import is_for_training, read_brain_mr
from unary.errors import ManifestError


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 9), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    names = ["train/normal/a", "train/normal/b", "test/normal/a", "test/normal/c", "test/abnormal/a"]
    for name, seed in zip(names, (0, 1, 2, 0, 4), strict=True):  # the test picture c is the training picture a
        save(tmp_path / f"{name}.png", seed)
    return tmp_path


def test_sides_and_labels_follow_the_folders(folder):
    manifest, notices = read_brain_mr(folder)
    rows = {row.image_id: row for row in manifest.rows}
    assert [row.image_id for row in manifest.rows if is_for_training(row)] == ["train/normal/a", "train/normal/b"]
    assert [row.image_id for row in manifest.rows if row.label == "positive"] == ["test/abnormal/a"]
    assert rows["test/normal/a"].path == folder / "test" / "normal" / "a.png"
    assert all(row.patient_id == row.image_id for row in manifest.rows)
    assert any("no patient is known" in notice for notice in notices)


def test_a_copy_counts_once_where_a_manifest_is_checked(folder):
    manifest, notices = read_data_set("brain-mr", folder)
    assert "test/normal/c" not in {row.image_id for row in manifest.rows}
    assert any("test/normal/c.png (as train/normal/a.png)" in notice for notice in notices)


@pytest.mark.parametrize("name", ["train/normal", "test/abnormal"])
def test_what_is_missing_or_empty_is_named(folder, name):
    for path in (folder / name).iterdir():
        path.unlink()
    (folder / name / "notes.txt").write_text("x")
    with pytest.raises(ManifestError, match=f"{name}: no image"):
        read_brain_mr(folder)
    (folder / name / "notes.txt").unlink()
    (folder / name).rmdir()
    with pytest.raises(ManifestError, match=f"no sub-folder '{name}' there.*train/normal, test/normal, test/abnormal"):
        read_brain_mr(folder)
    with pytest.raises(ManifestError, match="gone: no such folder"):
        read_brain_mr(folder / "gone")
