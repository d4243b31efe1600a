import shutil

import numpy as np
import PIL.Image
import pytest

from unary.errors import ManifestError
from unary.sources.folder import find_images, read_folder


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 9999, (8, 8), dtype=np.uint16)).save(path)


@pytest.fixture
def folder(tmp_path, phantoms):
    save(tmp_path / "normal" / "p1" / "a.png")
    save(tmp_path / "normal" / "p1" / "deep" / "b.tif")
    save(tmp_path / "normal" / "c.pgm")
    save(tmp_path / "normal" / "c.png")
    save(tmp_path / "abnormal" / "p1" / "a.PNG".lower())
    shutil.copy(phantoms.rows[0].path, tmp_path / "normal" / "no_suffix")
    shutil.copy(phantoms.rows[1].path, tmp_path / "abnormal" / "x.dcm")
    (tmp_path / "normal" / "notes.txt").write_text("x")
    (tmp_path / "normal" / ".hidden.png").write_text("x")
    (tmp_path / "abnormal" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    return tmp_path


def test_labels_patients_and_unique_ids(folder, phantoms):
    manifest, notices = read_folder(folder)
    rows = {row.image_id: row for row in manifest.rows}
    assert len(rows) == len(manifest.rows) == 7
    assert rows["normal/p1/a"].label == "negative"
    assert rows["abnormal/p1/a"].label == "positive"
    assert rows["normal/p1/a"].patient_id == rows["normal/p1/deep/b"].patient_id == "p1"
    assert {"normal/c.pgm", "normal/c.png"} <= set(rows)
    assert rows["normal/c.pgm"].patient_id == "normal/c.pgm"
    assert rows["normal/no_suffix"].patient_id == rows["abnormal/x"].patient_id != phantoms.rows[0].patient_id
    assert len(rows["abnormal/x"].patient_id) == 12
    told = "\n".join(notices)
    assert "gone.png: a link that leads nowhere" in told
    assert "1 files that are no images" in told
    assert "2 images name no patient" in told


def test_find_images_is_sorted_and_skips_the_rest(folder):
    names = [path.name for path in find_images(folder)]
    assert names == [path.name for path in sorted(find_images(folder))]
    assert sorted(names) == ["a.png", "a.png", "b.tif", "c.pgm", "c.png", "no_suffix", "x.dcm"]


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "normal").mkdir()
    with pytest.raises(ManifestError, match="no image"):
        read_folder(tmp_path)
