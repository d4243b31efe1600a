import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unary.datasets.manifest import build_manifest, label_of_birads, lesions_path, read_manifest, write_manifest
from unary.errors import ImageError, ManifestError
from unary.profiles import MAMMOGRAPHY
from unary.records import Image, Lesion, Manifest, ManifestRow


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a.png", "b.png", "mask.png"), 1):
        (tmp_path / name).write_bytes(bytes(number))
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
        ManifestRow(folder / "b.png", "2", "q", "positive", assessment="4c", complete=False),
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
        ("path\nlost.png\ngone.png\n", "2 of 2 images are not there: .*gone.png"),
        ("path,image_id\na.png,x\nb.png,x\n", "repeated: x"),
        ("path,birads\na.png,7\n", "line 2: birads must be"),
        ("path,label\na.png,\nb.png,sick\n", "line 3: label must be"),
        ("path,complete\na.png,maybe\n", "complete must be yes or no"),
        ("path,spacing_mm\na.png,wide\n", "line 2: spacing_mm: a number is needed, not 'wide'"),
        ("path,spacing_mm\na.png,-1\n", "spacing_mm must be millimetres"),
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
        assert {MAMMOGRAPHY.reading.find_group(name) for name in names} == {group}


def test_select_keeps_the_lesions_of_what_is_kept():
    rows = tuple(ManifestRow(Path("x"), name, name) for name in "ab")
    manifest = Manifest(rows, tuple(Lesion(name, "Mass", "point", ((1.0, 1.0),)) for name in "aab"))
    assert len(manifest.select(rows[:1]).lesions) == 2
    assert len(manifest.lesions_of("b")) == 1


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("a,Mass,point,1 1; 2 2,,", r"needs 1 point\(s\), not 2"),
        ("a,Mass,circle,1 1; 2 2,3,", r"needs 1 point\(s\), not 2"),
        ("a,Mass,box,1 1; 2 2; 3 3,,", r"needs 2 point\(s\), not 3"),
        ("a,Mass,mask,1 1,,mask.png", r"needs 0 point\(s\), not 1"),
        ("a,Mass,point,nan 1,,", "points read"),
        ("a,Mass,circle,1 1,inf,", "finite"),
        ("a,Mass,,,,", "kind must be one of .*, not ''"),
        ("a,Mass", "2 values for 6 columns"),
        ("a,Mass,circle,1 1,-3,", "not negative, not -3"),
        ('a,Mass,point,"1,024 5",,', "'1,024' may be a decimal or thousands"),
        ("a,Mass,point,1 1,,,surplus", "7 values for 6 columns"),
    ],
)
def test_lesions_by_hand_go_wrong_in_many_ways(folder, line, cause):
    path = write(folder, "path\na.png\n", f"image_id,name,kind,points,radius_px,mask_path\n{line}\n")
    with pytest.raises(ManifestError, match=cause) as caught:
        read_manifest(path)
    assert "m.lesions.csv, line 2" in str(caught.value)


def test_a_few_missing_images_are_told_and_do_not_stop_the_others(folder, caplog):
    manifest = read_manifest(write(folder, "path\na.png\nx.png\n\ny.png\n"))
    assert len(manifest.rows) == 3
    assert re.search(r"2 of 3 images are not there: moved, .*line 3 .*x\.png, line 5 .*y\.png", caplog.text)


def test_errors_give_the_lines_of_what_is_missing_or_repeated(folder):
    with pytest.raises(ManifestError, match=r"2 of 2 images are not there: moved, .*line 2 .*x\.png, line 4 .*y\.png"):
        read_manifest(write(folder, "path\nx.png\n\ny.png\n"))
    with pytest.raises(ManifestError, match=r"repeated: a \(line 2, line 4\)"):
        read_manifest(write(folder, "path,image_id\na.png,\nb.png,\nb.png,a\n"))
    (folder / "sub").mkdir()
    with pytest.raises(ManifestError, match="1 of 1 images are not there: folders: line 2 "):
        read_manifest(write(folder, "path\nsub\n"))


def test_sides_and_views_are_put_in_order(folder):
    rows = read_manifest(write(folder, "path,Laterality,View\na.png,left,cc\nb.png,R, mlo\n")).rows
    assert [(row.laterality, row.view) for row in rows] == [("L", "CC"), ("R", "MLO")]
    with pytest.raises(ManifestError, match="line 2: laterality must be"):
        read_manifest(write(folder, "path,laterality\na.png,both\n"))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("path,path\na.png,b.png\n", "'path' is there twice"),
        ("path;birads\na.png;1;surplus\n", "3 values for 2 columns"),
        ('path\n"a.png\nb.png\n', "not readable as CSV"),
        ("", "'path' is missing"),
    ],
)
def test_tables_out_of_shape(folder, text, cause):
    with pytest.raises(ManifestError, match=cause):
        read_manifest(write(folder, text))


def test_spreadsheet_exports_with_carriage_returns(folder):
    path = folder / "m.csv"
    path.write_bytes("\ufeffpath;birads;complete;spacing_mm\r\na.png;4A;FALSE;0,07\r\nb.png;2;;\r\n;;;\r\n".encode())
    first, second = read_manifest(path).rows
    assert (first.assessment, first.label, first.complete, first.spacing_mm) == ("4a", "positive", False, 0.07)
    assert (second.label, second.complete, second.spacing_mm) == ("negative", True, None)
    path.write_bytes("path\na.png\n".encode("utf-16"))
    with pytest.raises(ManifestError, match="not saved as UTF-8"):
        read_manifest(path)


words = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")) | st.sampled_from(',;\t"\n x'), min_size=1
)
names = words.map(str.strip).filter(bool)
coordinates = st.floats(-1e6, 1e6)
pairs = st.tuples(coordinates, coordinates)


@st.composite
def lesions(draw, image_ids, mask):
    kind = draw(st.sampled_from(["point", "contour", "circle", "box", "mask"]))
    count = {"point": 1, "contour": draw(st.integers(3, 6)), "circle": 1, "box": 2, "mask": 0}[kind]
    points = tuple(draw(st.lists(pairs, min_size=count, max_size=count)))
    radius = draw(st.floats(0, 1e5)) if kind == "circle" else None
    return Lesion(draw(st.sampled_from(image_ids)), draw(names), kind, points, radius, mask if kind == "mask" else None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, database=None, max_examples=100)
@given(data=st.data())
def test_whatever_is_written_reads_back_the_same(folder, data):
    places = [folder / "a.png", folder / "b.png", Path(__file__).absolute(), folder / "mask.png"]
    ids = data.draw(st.lists(names, min_size=1, max_size=4, unique=True))
    rows = tuple(
        ManifestRow(
            path,
            image_id,
            data.draw(names),
            data.draw(st.sampled_from(["negative", "positive"])),
            data.draw(st.sampled_from([None, "L", "R"])),
            data.draw(st.sampled_from([None, "CC", "MLO"])),
            data.draw(st.sampled_from([None, "1", "4c", "6"])),
            data.draw(st.sampled_from([None, "1", "4"])),
            data.draw(st.booleans()),
            data.draw(st.none() | st.floats(1e-3, 10)),
        )
        for image_id, path in zip(ids, places, strict=False)
    )
    found = data.draw(st.lists(lesions(ids, folder / "mask.png"), max_size=5, unique=True))
    listed = {lesion.image_id for lesion in found}
    # a positive image without a lesion, beside others with some, is put right: tests/test_annotation.py
    rows = tuple(
        dataclasses.replace(row, complete=row.complete and (row.image_id in listed or row.label == "negative"))
        for row in rows
    )
    manifest = Manifest(rows, tuple(found))
    write_manifest(manifest, folder / "out.csv")
    assert read_manifest(folder / "out.csv") == manifest


def test_free_words_of_assessment_are_kept_and_imply_no_label(folder):
    manifest = read_manifest(write(folder, "path,assessment\na.png,Lung-RADS 4B\nb.png,\n"))
    assert [(row.assessment, row.label) for row in manifest.rows] == [("Lung-RADS 4B", None), (None, None)]
    write_manifest(manifest, folder / "out.csv")
    assert (folder / "out.csv").read_text().splitlines()[0].split(",")[6] == "assessment"
    assert read_manifest(folder / "out.csv") == manifest
    assert read_manifest(write(folder, "path,birads,assessment\na.png,5,5\nb.png,,5\n")).rows[1].label is None
    with pytest.raises(ManifestError, match="line 2: birads is '5' but assessment '4'"):
        read_manifest(write(folder, "path,birads,assessment\na.png,5,4\n"))


def test_a_category_without_a_label_is_written_so_that_it_stays_without(folder):
    rows = (
        ManifestRow(folder / "a.png", "a", "p", "negative", assessment="1"),
        ManifestRow(folder / "b.png", "b", "q", None, assessment="5"),
    )
    write_manifest(Manifest(rows), folder / "out.csv")
    assert read_manifest(folder / "out.csv").rows == rows
    write_manifest(Manifest(rows[:1]), folder / "out.csv")
    assert ",birads," in (folder / "out.csv").read_text()
    assert read_manifest(folder / "out.csv").rows == rows[:1]


def test_a_manifest_of_what_is_in_memory_and_of_paths(folder):
    array = np.arange(12.0).reshape(3, 4)
    image = Image(array, (0, 11), folder / "scan.dcm", laterality="L", view="PA")
    manifest = build_manifest([array, image, folder / "a.png", str(folder / "b.png")], labels=["negative"] * 3 + [None])
    assert [row.image_id for row in manifest.rows] == ["image_1", "scan", "a", "b"]
    assert [row.patient_id for row in manifest.rows][1:] == ["scan", "a", "b"]
    again, other = build_manifest([array.copy(), array + 1]).rows
    assert again.patient_id == manifest.rows[0].patient_id, "the pixels tell whose it is, not the place in a list"
    assert other.patient_id not in {row.patient_id for row in manifest.rows}
    assert [row.label for row in manifest.rows] == ["negative", "negative", "negative", None]
    assert [row.path for row in manifest.rows] == [None, None, folder / "a.png", folder / "b.png"]
    assert manifest.rows[0].image.pixels.dtype == np.float32
    assert manifest.rows[1].image is image
    assert (manifest.rows[1].laterality, manifest.rows[1].view) == ("L", "PA")
    with pytest.raises(ManifestError, match="'image_1' is in memory alone"):
        write_manifest(manifest, folder / "out.csv")


def test_a_stack_of_images_is_a_sequence_and_equal_stems_are_told_apart(tmp_path):
    stack = build_manifest(np.arange(320).reshape(5, 8, 8), patients=[1, 1, 2, 2, 3])
    assert [row.patient_id for row in stack.rows] == ["1", "1", "2", "2", "3"]
    twins = build_manifest([tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"])
    assert [row.image_id for row in twins.rows] == ["1_1", "2_1"]


@pytest.mark.parametrize(
    ("images", "more", "cause"),
    [
        ([], {}, "at least one image"),
        ("scan.dcm", {}, "put it into a list"),
        ("train.csv", {}, "read a manifest by unary.read_manifest"),
        ([np.eye(4), np.eye(4)], {"labels": np.array(["negative", "positive"])}, "labelled both negative and positive"),
        ([np.eye(4), np.eye(4)], {"patients": ["a", "b"]}, "one image under 2 patients"),
        ([np.zeros((4, 4))], {"patients": ["a", "b"]}, "patients must be as many as the images: 1, not 2"),
        ([np.zeros((4, 4))], {"labels": ["normal"]}, "labels must be 'negative', 'positive' or None, not 'normal'"),
    ],
)
def test_a_manifest_cannot_be_made_of_everything(images, more, cause):
    with pytest.raises(ManifestError, match=cause):
        build_manifest(images, **more)
    with pytest.raises(ImageError, match="two-dimensional"):
        build_manifest(np.zeros((4, 4)))


def test_images_without_a_patient_among_others_are_counted(folder, caplog):
    rows = read_manifest(write(folder, "path,patient_id\na.png,P\nb.png,\n")).rows
    assert [row.patient_id for row in rows] == ["P", "b"]
    assert "1 image without a patient_id, each of which counts as a patient of its own: line 3" in caplog.text


def test_a_table_of_lesions_by_another_name_is_pointed_at(folder, caplog):
    for name in ("M.Lesions.csv", "lesions.csv", "other.csv", "other.lesions.csv"):
        (folder / name).touch()
    read_manifest(write(folder, "path\na.png\n"))
    told = [record.getMessage() for record in caplog.records if "meant?" in record.getMessage()]
    assert [text.rpartition("is ")[2] for text in told] == ["M.Lesions.csv meant?", "lesions.csv meant?"]
    lesions_path(folder / "m.csv").write_text("image_id,kind,points\na,point,1 1\n")
    caplog.clear()
    read_manifest(folder / "m.csv")
    assert "meant?" not in caplog.text


def test_lesions_of_images_that_are_not_listed_are_refused_all_at_once(folder):
    path = write(folder, "path\na.png\n", "image_id,kind,points\na,point,1 1\nA,point,1 1\nz,point,2 2\n")
    with pytest.raises(ManifestError, match=r"m\.lesions\.csv: lesions of images which .* line 3 'A', line 4 'z'"):
        read_manifest(path)


@pytest.mark.parametrize("spacing", ["0", "-0.07", "70", "7e-5", "nan", "inf", "wide", "1,070", "0x1"])
def test_a_spacing_of_another_unit_is_refused_by_line_and_column(folder, spacing):
    with pytest.raises(ManifestError, match="line 2: spacing_mm"):
        read_manifest(write(folder, f'path,spacing_mm\na.png,"{spacing}"\n'))


def test_rows_that_contradict_themselves_or_their_image_are_named(phantoms, tmp_path, caplog):
    rows = phantoms.rows[:3]
    other = {"L": "R", "R": "L"}[rows[1].laterality]
    changed = (
        dataclasses.replace(rows[0], label="positive", assessment="1"),
        dataclasses.replace(rows[1], laterality=other),
        dataclasses.replace(rows[2], label=None, assessment=None),
    )
    write_manifest(Manifest(changed), tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv").rows == changed
    assert "1 image whose label is not the one that its BI-RADS implies; the label counts: line 2" in caplog.text
    assert (
        "1 image of the other breast, by the DICOM header, than the laterality says; the right file?: line 3"
        in caplog.text
    )
    assert "1 image without a label, which no figure counts: line 4" in caplog.text


def test_a_line_break_in_a_name_breaks_no_message(folder, caplog):
    path = write(folder, 'path,image_id\na.png,"two\nlines"\n"b\nc.png",3\n')
    path.with_name(f"{path.stem}.lesions.csv").write_text('image_id,kind,mask_path\n"two\nlines",mask,"no\nmask.png"\n')
    with pytest.raises(ManifestError, match=r"no\\nmask\.png") as caught:
        read_manifest(path)
    path.with_name(f"{path.stem}.lesions.csv").unlink()
    assert len(read_manifest(path).rows) == 2
    assert "b\\nc.png" in caplog.text
    assert "\n" not in str(caught.value) + "".join(record.getMessage() for record in caplog.records)


def test_places_that_are_no_files_are_told_apart(folder, caplog):
    os.mkfifo(folder / "pipe.png")
    (folder / "sub").mkdir()
    lines = ["a.png", "sub", "pipe.png", r"films\b.png", f"{'x' * 300}.png"]
    assert len(read_manifest(write(folder, "\n".join(["path", *lines]) + "\n")).rows) == 5
    for told in (
        "4 of 5 images are not there",
        "folders: line 3",
        "pipes or devices: line 4",
        "backslashes in the path: line 5",
        "too long: line 6",
    ):
        assert told in caplog.text
