from pathlib import Path

import pytest

from unary.errors import ManifestError
from unary.records import Lesion, Manifest, ManifestRow
from unary.sources.manifest import label_of_birads, lesion_group, lesions_path, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "mask.png"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder, text, lesions=None):
    path = folder / "m.csv"
    path.write_text(text, encoding="utf-8")
    if lesions is not None:
        lesions_path(path).write_text(lesions, encoding="utf-8")
    return path


def test_round_trip(folder):
    rows = (
        ManifestRow(folder / "a.png", "1", "p", "negative", "L", "CC", "2", "3", True, 0.07),
        ManifestRow(folder / "b.png", "2", "q", "positive", birads="4c", complete=False),
    )
    lesions = (
        Lesion("2", "Calcification", "point", ((1.25, 2.5),)),
        Lesion("2", "Mass, odd; name", "contour", ((0.1, 1 / 3), (5.0, 6.0), (7.0, 1.0))),
        Lesion("2", "CALC", "circle", ((9.0, 9.0),), 4.5),
        Lesion("2", "Cluster", "box", ((1.0, 1.0), (5.0, 6.0))),
        Lesion("2", "Mass", "mask", (), None, folder / "mask.png"),
    )
    manifest = Manifest(rows, lesions)
    write_manifest(manifest, folder / "out.csv")
    assert read_manifest(folder / "out.csv") == manifest
    assert "\na.png,1," in (folder / "out.csv").read_text().replace("\r", "")
    write_manifest(Manifest(rows), folder / "out.csv")
    assert read_manifest(folder / "out.csv").lesions == ()


@pytest.mark.parametrize(
    "text",
    [
        "path,birads\na.png,1\nb.png,5\n",
        "\ufeffPath;BIRADS\n a.png ;1\n\nb.png; 5\n",
        "patient_id\tpath\tBirads\n\ta.png\t1\n\tb.png\t5\n",
    ],
)
def test_a_hand_made_table_needs_little(folder, text, caplog):
    manifest = read_manifest(write(folder, text))
    assert [row.image_id for row in manifest.rows] == ["a", "b"]
    assert [row.patient_id for row in manifest.rows] == ["a", "b"]
    assert [row.label for row in manifest.rows] == ["negative", "positive"]
    assert "every image counts as a patient of its own" in caplog.text


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("path\n", "lists no image"),
        ("image\na.png\n", "column 'path' is missing"),
        ("path\na.png\ngone.png\n", "1 of 2 images are not there: .*gone.png"),
        ("path,image_id\na.png,x\nb.png,x\n", "repeated: x"),
        ("path,birads\na.png,7\n", "line 2: birads must be"),
        ("path,label\na.png,\nb.png,sick\n", "line 3: label must be"),
        ("path,complete\na.png,maybe\n", "complete must be yes or no"),
        ("path,spacing_mm\na.png,wide\n", "spacing_mm must be a number"),
        ("path,spacing_mm\na.png,-1\n", "positive number"),
        ("path,label\n,negative\n", "path is empty"),
    ],
)
def test_errors_name_file_and_line(folder, text, cause):
    path = write(folder, text)
    with pytest.raises(ManifestError, match=cause) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("z,Mass,point,1 1,,", "does not list"),
        ("a,Mass,blob,1 1,,", "kind must be"),
        ("a,Mass,point,1 x,,", "points read"),
        ("a,Mass,point,1 2 3,,", "points read"),
        ("a,Mass,contour,1 1; 2 2,,", "needs 3 point"),
        ("a,Mass,circle,1 1,,", "radius_px"),
        ("a,Mass,mask,,,", "mask_path goes with"),
        ("a,Mass,mask,,,gone.png", "is not there"),
    ],
)
def test_lesions_are_checked(folder, line, cause):
    path = write(folder, "path\na.png\n", f"image_id,name,kind,points,radius_px,mask_path\n{line}\n")
    with pytest.raises(ManifestError, match=cause) as caught:
        read_manifest(path)
    assert "m.lesions.csv, line 2" in str(caught.value)


def test_a_spreadsheet_file_or_nothing_at_all(folder):
    (folder / "m.xlsx").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(folder / "m.xlsx")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(folder / "gone.csv")


def test_the_papers_rule_and_the_names_of_findings():
    labels = {birads: label_of_birads(birads) for birads in ("1", "2", "3", "4", "4a", "5", "6", None)}
    assert [name for name, label in labels.items() if label == "negative"] == ["1", "2"]
    assert labels[None] is None
    groups = {
        "calcification": ["Calcification", "Calcifications", "Cluster", "CALC", "calcification"],
        "mass": ["Mass", "Spiculated Region", "Espiculated Region", "CIRC", "SPIC", "MISC"],
        "asymmetry": ["Asymmetry", "Assymetry", "ASYM"],
        "distortion": ["Distortion", "ARCH", "Architectural distortion"],
        "other": ["Unknown", "Point 3", ""],
    }
    for group, names in groups.items():
        assert {lesion_group(name) for name in names} == {group}


def test_select_keeps_the_lesions_of_what_is_kept():
    rows = tuple(ManifestRow(Path("x"), name, name) for name in "ab")
    manifest = Manifest(rows, tuple(Lesion(name, "Mass", "point", ((1.0, 1.0),)) for name in "aab"))
    assert len(manifest.select(rows[:1]).lesions) == 2
    assert len(manifest.lesions_of("b")) == 1
