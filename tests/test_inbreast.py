import plistlib
import struct

import pytest

from unary.datasets.inbreast import read_inbreast
from unary.errors import ManifestError

HEADER = "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"


def region(name, *points):
    return {"Name": name, "NumberOfPoints": len(points), "Point_px": [f"({x:.6f}, {y:.6f})" for x, y in points]}


def write_xml(path, *regions):
    path.write_bytes(
        plistlib.dumps({"Images": [{"ImageIndex": 0, "NumberOfROIs": len(regions), "ROIs": list(regions)}]})
    )


@pytest.fixture
def release(tmp_path):
    root = tmp_path / "INbreast Release 1.0"
    (root / "AllDICOMs").mkdir(parents=True)
    (root / "AllXML").mkdir()
    for name in ("100_aaa_MG_R_CC", "101_aaa_MG_L_ML", "102_bbb_MG_R_CC", "103_ccc_MG_R_CC"):
        (root / "AllDICOMs" / f"{name}_ANON.dcm").touch()
    lines = [
        f"removed;removed;R;CC;201001;{name};{acr};{birads}"
        for name, acr, birads in [(100, 2, 1), (101, 3, "4c"), (102, "", 5), (104, 1, 2)]
    ]
    (root / "INbreast.csv").write_text("\n".join([HEADER, *lines, ";;;;;;;"]))
    write_xml(
        root / "AllXML" / "101.xml",
        region("Calcification", (30.5, 7.25)),
        region("Espiculated Region", (1, 2), (5, 2), (5, 9)),
        region("Cluster", (10, 20), (14, 26)),
        region("Mass"),
    )
    write_xml(root / "AllXML" / "999.xml", region("Mass", (1, 1)))
    return root


def test_rows(release):
    manifest, _ = read_inbreast(release.parent)
    rows = {row.image_id: row for row in manifest.rows}
    assert set(rows) == {"100", "101", "102", "103"}
    assert rows["100"].patient_id == rows["101"].patient_id == "aaa"
    assert [rows[name].label for name in ("100", "101", "102", "103")] == ["negative", "positive", "positive", None]
    assert (rows["101"].view, rows["101"].laterality, rows["101"].density) == ("MLO", "L", "3")
    assert rows["102"].density is None
    assert all(row.path.exists() for row in manifest.rows)
    assert [name for name, row in rows.items() if not row.complete] == ["101"], "a region of it has no points"


def test_points_come_as_row_and_column(release):
    lesions = read_inbreast(release)[0].lesions
    assert [lesion.kind for lesion in lesions] == ["point", "contour", "box"]
    assert lesions[0].points == ((7.25, 30.5),)
    assert lesions[1].points == ((2, 1), (2, 5), (9, 5))
    assert lesions[2].points == ((20, 10), (27, 15))


def test_whatever_does_not_fit_together_is_named_and_counted(release):
    (release / "AllDICOMs" / ".DS_Store").touch()
    (release / "AllDICOMs" / "100_aaa_MG_R_CC_ANON (1).dcm").touch()
    notices = read_inbreast(release)[1]
    for told in (
        "1 image of BI-RADS above 1, but no XML file lists a lesion of it: 102",
        "1 XML file without an image: 999",
        "1 image in the table, but not on disk: 104",
        "1 image not in the table; BI-RADS and label are unknown: 103",
        "2 files in AllDICOMs not named like an INbreast image, left out: .DS_Store, 100_aaa_MG_R_CC_ANON (1).dcm",
    ):
        assert told in notices
    assert sum("(Mass) has no readable points" in notice for notice in notices) == 1
    assert len(notices) == 6


def test_an_image_twice_in_a_table_is_refused_where_it_contradicts_itself(release, tmp_path):
    table = release / "INbreast.csv"
    text = table.read_text()
    table.write_text(text + "\nremoved;removed;R;CC;201001;100;2;1")
    assert read_inbreast(release)[0].rows[0].label == "negative"
    table.write_text(text + "\nremoved;removed;R;CC;201001;100;2;5")
    with pytest.raises(ManifestError, match="the image 100 is there twice, with different BI-RADS"):
        read_inbreast(release)
    table.write_text(text)
    marks = tmp_path / "marks.csv"
    for lines, cause in (("101,partial\n101,complete", "line 3: annotation must be"), ("101,partly", "not 'partly'")):
        marks.write_text(f"image_id,annotation\n{lines}\n")
        with pytest.raises(ManifestError, match=cause):
            read_inbreast(release, annotation=marks)


def test_lesion_files_count_whatever_the_case_of_their_names(release):
    expected = read_inbreast(release)
    (release / "AllXML" / "101.xml").rename(release / "AllXML" / "101.XML")
    manifest, _ = read_inbreast(release)
    assert manifest == expected[0]
    (release / "AllXML").rename(release / "allxml")
    assert read_inbreast(release)[0] == expected[0]


def test_partly_annotated_images_are_marked(release, tmp_path):
    table = tmp_path / "annotation.csv"
    table.write_text("image_id,annotation\n101,partial\n102,complete\n")
    rows = {row.image_id: row.complete for row in read_inbreast(release, annotation=table)[0].rows}
    assert rows == {"100": True, "101": False, "102": True, "103": True}
    table.write_text("id,annotation\n101,partial\n")
    with pytest.raises(ManifestError, match="'image_id' is missing"):
        read_inbreast(release, annotation=table)


def test_broken_releases_are_named(release, tmp_path):
    with pytest.raises(ManifestError, match="no folder AllDICOMs"):
        read_inbreast(release / "AllXML")
    with pytest.raises(ManifestError, match="no such folder"):
        read_inbreast(tmp_path / "gone")
    (release / "AllXML" / "100.xml").write_text("<plist>")
    with pytest.raises(ManifestError, match=r"100\.xml: not an OsiriX"):
        read_inbreast(release)
    (release / "AllXML" / "100.xml").unlink()
    (release / "INbreast.csv").write_text("File Name,Bi-Rads\n100,1\n")
    with pytest.raises(ManifestError, match="is missing"):
        read_inbreast(release)
    (release / "INbreast.csv").rename(release / "INbreast.xls")
    with pytest.raises(ManifestError, match="not readable as an Excel"):
        read_inbreast(release)
    (release / "INbreast.xls").unlink()
    with pytest.raises(ManifestError, match=r"neither INbreast\.csv nor INbreast\.xls"):
        read_inbreast(release)


def write_xls(path, table):
    """Write text and numbers as an Excel 2 worksheet, which is a plain sequence of records."""

    def record(kind, body):
        return struct.pack("<HH", kind, len(body)) + body

    content = record(0x0009, struct.pack("<HH", 2, 0x0010)) + record(0x0042, struct.pack("<H", 1252))
    for row, line in enumerate(table):
        for col, value in enumerate(line):
            place = struct.pack("<HH3x", row, col)
            if isinstance(value, str):
                content += record(0x0004, place + bytes([len(value)]) + value.encode("cp1252"))
            else:
                content += record(0x0003, place + struct.pack("<d", value))
    path.write_bytes(content + record(0x000A, b""))


def test_the_spreadsheet_says_the_same_as_the_table(release):
    expected, notices = read_inbreast(release)
    (release / "INbreast.csv").unlink()
    head = [
        "Patient ID",
        "Patient age",
        "Laterality",
        "View",
        "Acquisition date",
        "File Name",
        "ACR",
        "Bi-Rads",
        "Mass ",
    ]
    person = ["removed", "removed", "R", "CC", 201001.0]
    table = [
        [*person, 100.0, 2.0, 1.0, ""],
        [*person, 101.0, 3.0, "4c", "X"],
        ["", "", "", "", "", 102.0, "", 5.0, ""],
        [*person, 104.0, 1.0, 2.0, ""],
        ["", "", "", "", "", "", "", "", ""],
        ["", "", "", "", "", "", "Total", 4.0, 1.0],
    ]
    write_xls(release / "INbreast.xls", [head, *table])
    assert read_inbreast(release) == (expected, notices)


def test_odd_regions_of_the_release(release):
    odd = [
        {"Name": "", "NumberOfPoints": 1, "Point_px": ["(5.5, 6.5)"]},
        {"Name": " Calcification ", "NumberOfPoints": 1, "Point_px": ["(1e1, -2)"]},
        {"Name": "Mass", "NumberOfPoints": 1, "Point_px": ["(-, 2)"]},
        {"Name": "Mass", "NumberOfPoints": 1},
    ]
    (release / "AllXML" / "101.xml").write_bytes(
        plistlib.dumps({"Images": [{"ImageIndex": 0}, {"ImageIndex": 1, "ROIs": odd}]})
    )
    manifest, notices = read_inbreast(release)
    assert [(lesion.name, lesion.points) for lesion in manifest.lesions] == [
        ("Unnamed", ((6.5, 5.5),)),
        ("Calcification", ((-2.0, 10.0),)),
    ]
    assert sum("has no readable points" in notice for notice in notices) == 2
