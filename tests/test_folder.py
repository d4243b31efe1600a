import json
import os
import re
import shutil
import socket

import numpy as np
import PIL.Image
import pydicom
import pytest

from unary.datasets.folder import describe_left_out, list_files, read_folder
from unary.errors import ManifestError
from unary.images.reading import read_image
from unary.records import NOTICE


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
    assert re.search(r"abnormal: left out: 1 link that leads nowhere \(\S+gone\.png\)", told)
    assert re.search(r"normal: left out: 1 hidden \(\S+\), 1 of another kind \(\S+notes\.txt\)", told)
    assert "2 images name no patient" in told


def test_images_are_sorted_and_the_rest_is_told(folder):
    images, left_out = list_files(folder)
    assert images == sorted(images)
    assert {reason: [path.name for path in paths] for reason, paths in left_out.items()} == {
        "hidden": [".hidden.png"],
        "link that leads nowhere": ["gone.png"],
        "of another kind": ["notes.txt"],
    }
    assert sorted(path.name for path in images) == ["a.png", "a.png", "b.tif", "c.pgm", "c.png", "no_suffix", "x.dcm"]


def test_everything_that_is_left_out_is_counted_by_its_reason(tmp_path, monkeypatch):
    save(tmp_path / "in" / "a.png")
    for name in ("empty", "text.txt", "DICOMDIR", ".hidden"):
        (tmp_path / "in" / name).write_text("" if name == "empty" else "x")
    save(tmp_path / "in" / ".shy" / "b.png")
    (tmp_path / "in" / "gone.dcm").symlink_to("nowhere")
    (tmp_path / "in" / "self.dcm").symlink_to("self.dcm")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in" / "pipe.dcm")
    with socket.socket(socket.AF_UNIX) as end:
        monkeypatch.chdir(tmp_path)  # a socket's path may not be long
        end.bind("in/s.dcm")
    results = tmp_path / "in" / "results" / "a"
    save(results / "findings.png")
    (results / "result.json").write_text(json.dumps({"notice": NOTICE, "files": ["findings.png"]}))
    save(tmp_path / "in" / "mine" / "c.png")
    (tmp_path / "in" / "mine" / "result.json").write_text("[]")
    (tmp_path / "in" / "shut").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # for root, no folder is shut
    images, left_out = list_files(tmp_path / "in")
    assert [path.name for path in images] == ["a.png", "c.png"]
    assert {reason: [path.name for path in paths] for reason, paths in left_out.items()} == {
        "hidden": [".hidden", ".shy"],
        "empty": ["empty"],
        "of another kind": ["DICOMDIR", "result.json", "text.txt"],
        "link that leads nowhere": ["gone.dcm"],
        "cannot be reached": ["self.dcm"],
        "folder met twice": ["loop"],
        "pipe, socket or device": ["pipe.dcm", "s.dcm"],
        "unary's own results": ["a"],
        "folder that cannot be opened": ["shut"],
    }
    assert "2 hidden (such as " in describe_left_out(left_out)
    assert list_files(tmp_path / "in", lambda path: path.suffix == ".txt")[0] == [tmp_path / "in" / "text.txt"]


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "normal").mkdir()
    with pytest.raises(ManifestError, match="no image"):
        read_folder(tmp_path)


def test_dicom_rows_know_side_and_view(folder, phantoms):
    rows = {row.image_id: row for row in read_folder(folder)[0].rows}
    image = read_image(phantoms.rows[1].path)
    assert (rows["abnormal/x"].laterality, rows["abnormal/x"].view) == (image.laterality, image.view)
    assert rows["normal/c.png"].view is None


def test_a_number_at_the_end_of_a_uid_is_no_suffix(tmp_path, phantoms):
    (tmp_path / "normal").mkdir()
    for row, name in zip(phantoms.rows, ("1.2.840.1", "1.2.840.2", "1.2.840.2.dcm"), strict=False):
        shutil.copy(row.path, tmp_path / "normal" / name)
    ids = [row.image_id for row in read_folder(tmp_path)[0].rows]
    assert ids == ["normal/1.2.840.1", "normal/1.2.840.2", "normal/1.2.840.2.dcm"]


def test_names_that_differ_in_suffixes_alone_stay_apart(tmp_path):
    for name in ("a.png", "a.tif", "a.png.tif", "b.png"):
        save(tmp_path / "normal" / name)
    manifest, notices = read_folder(tmp_path)
    expected = ["normal/a.png", "normal/a.png.tif", "normal/a.tif", "normal/b"]
    assert [row.image_id for row in manifest.rows] == expected
    assert [row.patient_id for row in manifest.rows] == expected
    (notice,) = notices
    assert notice.startswith("4 images name no patient")


def test_two_files_of_one_name_are_not_called_one_patient(tmp_path):
    for name in ("a.png", "a.tif"):
        save(tmp_path / "normal" / name)
    manifest, notices = read_folder(tmp_path)
    assert len({row.patient_id for row in manifest.rows}) == 2
    assert not any("one patient" in notice for notice in notices)


def test_links_to_folders_count_once_and_loops_end(tmp_path):
    save(tmp_path / "elsewhere" / "p9" / "a.png")
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "normal")
    manifest, _ = read_folder(tmp_path)
    assert [row.image_id for row in manifest.rows] == ["normal/linked/p9/a"]


def test_one_identifier_for_all_is_noticed_and_shown_to_nobody(tmp_path, phantoms):
    (tmp_path / "normal").mkdir()
    for number, row in enumerate(phantoms.rows[:3]):
        dataset = pydicom.dcmread(row.path)
        dataset.PatientID = "ANONYMISED-77"
        dataset.save_as(tmp_path / "normal" / f"{number}.dcm", enforce_file_format=True)
    manifest, notices = read_folder(tmp_path)
    assert len({row.patient_id for row in manifest.rows}) == 1
    assert any("count as one patient" in notice for notice in notices)
    assert "ANONYMISED-77" not in repr(manifest) + repr(notices) + "".join(row.patient_id for row in manifest.rows)


def test_damaged_dicom_and_a_dicomdir(tmp_path, phantoms):
    save(tmp_path / "normal" / "a.png")
    content = phantoms.rows[0].path.read_bytes()
    (tmp_path / "normal" / "DICOMDIR").write_bytes(content)
    (tmp_path / "normal" / "cut.dcm").write_bytes(content[:150])
    manifest, notices = read_folder(tmp_path)
    assert [row.image_id for row in manifest.rows] == ["normal/a", "normal/cut"]
    assert any("cut.dcm" in notice for notice in notices)


def test_neither_sub_folder(tmp_path):
    with pytest.raises(ManifestError, match="'normal' or 'abnormal' is needed"):
        read_folder(tmp_path)
    with pytest.raises(ManifestError, match="no such folder"):
        read_folder(tmp_path / "gone")
