import dataclasses
import os
import shutil

import numpy as np
import PIL.Image
import pydicom
import pytest

from unary.datasets.doubles import describe_copies, describe_patients, keep_once, read_headers
from unary.datasets.manifest import build_manifest, read_manifest
from unary.errors import ManifestError
from unary.records import Lesion, Manifest, ManifestRow


def draw(path, seed=0):
    path.parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 60_000, (30, 20)).astype(np.uint16)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    first, other = draw(tmp_path / "a.png"), draw(tmp_path / "b.png", seed=1)
    assert first.stat().st_size
    assert other.exists()
    (tmp_path / "sub").mkdir()
    os.link(first, tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to(first)
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    shutil.copy(first, tmp_path / "copy.png")
    return tmp_path


def write(folder, *lines):
    path = folder / "sub" / "m.csv"
    path.write_text("\n".join(["path,image_id,patient_id,label", *lines]) + "\n")
    return path


SPELLINGS = [
    "../hard.png",
    "../soft.png",
    "../copy.png",
    ".././a.png",
    "up/a.png",
    "up/sub/../a.png",
    "../sub/../a.png",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_file_under_two_patients_or_labels_is_refused_whatever_its_path(folder, spelling):
    first = "../a.png,1,P,negative"
    for line, cause in (
        (f"{spelling},2,Q,negative", r"m\.csv: one image under 2 patients.*: line 2, line 4; correct the patient_id"),
        (f"{spelling},2,P,positive", r"m\.csv: one image labelled both negative and positive: line 2, line 4"),
    ):
        with pytest.raises(ManifestError, match=cause):
            read_manifest(write(folder, first, "../b.png,3,R,negative", line))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_file_twice_counts_once_and_is_named(folder, spelling, caplog):
    manifest = read_manifest(write(folder, "../a.png,1,P,negative", f"{spelling},2,P,negative"))
    assert [row.image_id for row in manifest.rows] == ["1"]
    assert "1 image listed again, left out: line 3 (as line 2)" in caplog.text


def test_of_two_rows_of_a_file_the_one_is_kept_that_says_more(folder):
    unnamed = ManifestRow(folder / "a.png", "1", "1", None)
    named = ManifestRow(folder / "copy.png", "2", "P", "negative")
    lesion = Lesion("1", "Mass", "point", ((3.0, 3.0),))
    places, headers = ["first", "second"], [None, None]
    assert keep_once(Manifest((unnamed, named)), places, headers)[0].rows == (named,)
    kept, notices = keep_once(Manifest((unnamed, named), (lesion,)), places, headers)
    assert kept.rows == (unnamed,)
    assert kept.lesions == (lesion,)
    assert notices == ("1 image listed again, left out: second (as first)",)
    other = dataclasses.replace(lesion, image_id="2", points=((4.0, 4.0),))
    with pytest.raises(ManifestError, match="two lists of lesions: first, second"):
        keep_once(Manifest((unnamed, named), (lesion, other)), places, headers)


def test_files_of_equal_size_are_other_images_and_empty_or_missing_ones_are_none(folder):
    size = 40_000
    for name, at in (("x", 0), ("y", 20_010), ("z", 39_999)):
        content = bytearray(size)
        content[at] = 1
        (folder / f"{name}.raw").write_bytes(content)
    for name in ("e", "f"):
        (folder / f"{name}.raw").touch()
    rows = tuple(ManifestRow(folder / f"{name}.raw", name, f"of {name}", "negative") for name in "xyzefgh")
    assert keep_once(Manifest(rows), list("xyzefgh"), [None] * 7) == (Manifest(rows), ())
    gone = dataclasses.replace(rows[-1], path=folder / "sub" / ".." / "g.raw", patient_id="another")
    with pytest.raises(ManifestError, match="one image under 2 patients"):
        keep_once(Manifest((rows[-2], gone)), ["g", "h"], [None] * 2)


def test_one_instance_uid_with_the_same_pixels_is_one_image_and_with_others_a_notice(phantoms, tmp_path):
    source = phantoms.rows[0].path
    paths = [tmp_path / f"{name}.dcm" for name in "abc"]
    for path in paths:
        dataset = pydicom.dcmread(source)
        dataset.InstitutionName = path.name  # whatever makes the files differ
        if path.stem == "c":
            dataset.PixelData = bytes(2) + dataset.PixelData[2:-2] + b"\x05\x00"
        dataset.save_as(path)
    rows = [ManifestRow(path, path.stem, "P", "negative") for path in paths]
    places = list("abc")
    manifest, notices = keep_once(Manifest(tuple(rows)), places, read_headers(rows))
    assert [row.image_id for row in manifest.rows] == ["a", "c"]
    assert notices == (
        "2 images share a SOP Instance UID with another that shows something else: a, c",
        "1 image listed again, left out: b (as a)",
    )
    rows[1] = dataclasses.replace(rows[1], patient_id="Q")
    with pytest.raises(ManifestError, match=r"one image under 2 patients.*: a, b"):
        keep_once(Manifest(tuple(rows)), places, read_headers(rows))


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("P1", "p1", True),
        ("P 1", "P1", True),
        ("007", "7", True),
        ("MG007", "MG7", True),
        ("7", "7.0", True),
        ("\uff17", "7", True),
        ("70", "7", False),
        ("P10", "P1", False),
        ("1-1", "11", False),
    ],
)
def test_patients_that_differ_by_spelling_alone_are_named_but_not_quoted(first, second, alike):
    rows = [ManifestRow(None, str(number), name) for number, name in enumerate((first, second, first, "Z"))]
    notices = describe_patients(rows, ["line 2", "line 3", "line 4", "line 5"], [None] * 4)
    assert len(notices) == alike
    if alike:
        assert ": line 2, line 3; they count as different patients" in notices[0]


def test_identifiers_that_a_spreadsheet_has_rounded_are_named():
    rows = [ManifestRow(None, str(number), name) for number, name in enumerate(("2.01503E+15", "2E9", "E15"))]
    (notice,) = describe_patients(rows, ["line 2", "line 3", "line 4"], [None] * 3)
    assert notice.startswith("patients whose identifier a spreadsheet has rounded: line 2; ")


def test_one_dicom_patient_under_two_names_is_named_unless_all_files_share_an_identifier(phantoms):
    rows = list(phantoms.rows[:4])
    headers = read_headers(rows)
    assert describe_patients(rows, list("abcd"), headers) == ()
    assert rows[0].patient_id == rows[1].patient_id
    renamed = [rows[0], dataclasses.replace(rows[1], patient_id="another"), *rows[2:]]
    (notice,) = describe_patients(renamed, list("abcd"), headers)
    assert notice.startswith("images of one Patient ID, by their DICOM headers, under different patients: ")
    assert describe_patients(renamed, list("abcd"), headers[:1] * 4) == ()


def test_one_picture_in_two_files_is_named_with_what_it_contradicts():
    rows = [
        ManifestRow(None, name, patient, label)
        for name, patient, label in zip("abcdef", "PPQQRR", ["negative"] * 5 + ["positive"], strict=True)
    ]
    keys = [b"1", b"2", b"2", b"3", b"4", b"4"]
    notices = describe_copies(list(zip(rows, keys, strict=True)))
    assert [notice.rpartition(": ")[2] for notice in notices] == ["b = c", "e = f"]
    assert "under different patients" in notices[0]
    assert "with different labels" in notices[1]
    assert "twice" in describe_copies([(rows[0], b"1"), (rows[1], b"1")])[0]


def test_a_list_of_paths_is_checked_as_a_manifest_is(folder, caplog):
    paths = [folder / "a.png", folder / "b.png", folder / "sub" / ".." / "a.png"]
    assert len(build_manifest(paths).rows) == 2
    assert "left out: number 3 (3_a) (as number 1 (1_a))" in caplog.text
    with pytest.raises(ManifestError, match=r"one image under 2 patients.*: number 1 \(1_a\), number 3 \(3_a\)"):
        build_manifest(paths, patients=["P", "Q", "R"])
    with pytest.raises(ManifestError, match="both negative and positive"):
        build_manifest(paths, labels=["negative", "negative", "positive"])


def test_a_name_of_nobody_is_pointed_at_where_several_images_bear_it():
    rows = [ManifestRow(None, str(number), name) for number, name in enumerate(("nan", "NaN", "0", "0", "Unknown"))]
    notices = describe_patients(rows, list("abcde"), [None] * 5)
    assert "a patient_id that names nobody: a, b, e; all of them count as one patient" in notices
    assert not any("c" in notice.partition(": ")[2].partition(";")[0].split(", ") for notice in notices)
