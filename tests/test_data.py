"""The commands manifest and split: what they say, and what they leave alone."""

import re

import numpy as np
import PIL.Image
import pytest

from unary.cli.main import main
from unary.datasets.manifest import read_manifest


@pytest.fixture
def folder(tmp_path):
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 60_000, (30, 20)).astype(np.uint16)
        label = "abnormal" if number > 5 else "normal"
        path = tmp_path / "set" / label / f"p{number % 6}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)
    return tmp_path


def run(capsys, *words):
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_a_folder_becomes_a_manifest_and_is_divided_by_a_stated_rule(folder, capsys):
    (folder / "set" / "benign").mkdir()
    status, told = run(capsys, "manifest", "folder", folder / "set", "--out", folder / "m.csv")
    assert status == 0
    assert "1 name beside 'normal' and 'abnormal', left out with all that lies below: benign" in told
    status, told = run(capsys, "split", folder / "m.csv", "--train", folder / "t.csv", "--test", folder / "e.csv")
    assert status == 0
    assert "to fit: 3 images of 3 patients with nothing but negative images" in told
    assert "1 image of 1 patient of the same kind; 2 positive images; 2 negative images of patients who also" in told
    assert len(read_manifest(folder / "t.csv").rows) + len(read_manifest(folder / "e.csv").rows) == 8


def test_normals_of_patients_with_other_images_are_counted(folder, capsys):
    status, told = run(capsys, "manifest", "folder", folder / "set", "--out", folder / "n.csv", "--only", "negative")
    assert status == 0
    assert "2 images kept of patients who also have others" in told
    (folder / "only" / "normal").mkdir(parents=True)
    (folder / "set" / "normal" / "p3" / "3.png").rename(folder / "only" / "normal" / "3.png")
    status, told = run(capsys, "manifest", "folder", folder / "only", "--out", folder / "o.csv", "--only", "positive")
    assert status == 2
    assert "no image is labelled positive" in told
    assert not (folder / "o.csv").exists()


def test_nothing_that_is_no_manifest_is_replaced(folder, capsys):
    film = folder / "set" / "normal" / "p1" / "1.png"
    content = film.read_bytes()
    status, told = run(capsys, "manifest", "folder", folder / "set", "--out", film)
    assert status == 2
    assert "is no manifest, so that it is not replaced" in told
    assert film.read_bytes() == content
    (folder / "m.lesions.csv").write_text("my notes\n")
    assert run(capsys, "manifest", "folder", folder / "set", "--out", folder / "m.csv")[0] == 2
    assert (folder / "m.lesions.csv").read_text() == "my notes\n"
    (folder / "m.lesions.csv").unlink()
    for _ in range(2):
        assert run(capsys, "manifest", "folder", folder / "set", "--out", folder / "m.csv")[0] == 0
    before = (folder / "m.csv").read_bytes()
    for train, test, cause in (
        ("m.csv", "e.csv", "--train .* is the manifest as well"),
        ("t.csv", "m.csv", "--test .* is the manifest as well"),
        ("t.csv", "set/../t.csv", "--train .* is --test as well"),
    ):
        status, told = run(capsys, "split", folder / "m.csv", "--train", folder / train, "--test", folder / test)
        assert status == 2
        assert re.search(cause, told)
    assert (folder / "m.csv").read_bytes() == before


def test_with_nobody_to_hold_out_the_split_says_so(folder, capsys):
    (folder / "one.csv").write_text(
        "path,patient_id,label\nset/normal/p0/0.png,A,negative\nset/normal/p1/1.png,A,negative\n"
    )
    status, told = run(capsys, "split", folder / "one.csv", "--train", folder / "t.csv", "--test", folder / "e.csv")
    assert status == 2
    assert "or nobody is left to hold out; there is 1" in told
    assert not (folder / "t.csv").exists()


def test_phantoms_come_from_one_command_and_the_same_seed_draws_the_same(tmp_path, capsys):
    words = ["--normal", "1", "--abnormal", "1", "--images", "1", "--rows", "384", "--cols", "320", "--seed", "3"]
    for name in ("one", "two"):
        assert main(["phantom", "--out", str(tmp_path / name), *words]) == 0
    assert "no patient" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "one" / "all.csv")
    assert [row.label for row in manifest.rows] == ["negative", "positive"]
    assert manifest.lesions
    first, second = (sorted(tmp_path.glob(f"{name}/*/*.dcm")) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_phantoms_of_nobody_are_refused(tmp_path, capsys):
    assert main(["phantom", "--out", str(tmp_path), "--normal", "0", "--abnormal", "0"]) == 2
    assert "at least one patient" in capsys.readouterr().err
