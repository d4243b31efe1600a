import numpy as np
import PIL.Image
import pytest

from unary.datasets import read_data_set
from unary.datasets.mias import read_mias
from unary.errors import ManifestError

INFO = """Some prose first, as in the true file.
mdb001 G CIRC B 535 425 197
mdb002 G NORM
mdb003 D CALC M 100 900 20
mdb003 D CALC M 200 1000 10
mdb004 F CALC B *NOTE 3*
mdb005 F SPIC B 30 900 10
mdb006 F ODD B 1 2 3
mdb007 G NORM
"""


@pytest.fixture
def folder(tmp_path):
    pixels = np.full((1024, 1024), 120, np.uint8)
    pixels[:, :60] = 2
    pixels[0, 0] = 0
    for number in (1, 2, 3, 4, 5, 6, 9):
        PIL.Image.fromarray(pixels).save(tmp_path / f"mdb{number:03d}.pgm")
    (tmp_path / "Info.txt").write_text(INFO)
    return tmp_path


def test_rows_and_lesions(folder):
    manifest, _ = read_mias(folder)
    rows = {row.image_id: row for row in manifest.rows}
    assert set(rows) == {"mdb001", "mdb002", "mdb003", "mdb004", "mdb005"}
    assert [rows[f"mdb00{k}"].label for k in (1, 2, 3)] == ["positive", "negative", "positive"]
    assert rows["mdb001"].patient_id == rows["mdb002"].patient_id != rows["mdb003"].patient_id
    assert rows["mdb003"].patient_id == rows["mdb004"].patient_id
    assert [rows[f"mdb00{k}"].laterality for k in (1, 2)] == ["L", "R"]
    assert rows["mdb001"].spacing_mm == 0.2
    assert rows["mdb003"].complete
    assert not rows["mdb004"].complete
    assert len(manifest.lesions_of("mdb003")) == 2


def test_y_runs_from_the_bottom(folder):
    (lesion,) = read_mias(folder)[0].lesions_of("mdb001")
    assert lesion.points == ((1023 - 425, 535),)
    assert lesion.radius_px == 197


def test_what_does_not_fit_is_noticed(folder):
    told = "\n".join(read_mias(folder)[1])
    for text in (
        "mdb004: CALC without coordinates",
        "mdb005: SPIC",
        "outside the breast",
        "mdb006",
        "mdb009",
        "mdb007",
    ):
        assert text in told
    assert "mdb001" not in told


def test_not_the_data_set(tmp_path, folder):
    (folder / "Info.txt").rename(folder / "other.txt")
    with pytest.raises(ManifestError, match=r"no Info\.txt"):
        read_mias(folder)
    (folder / "Info.txt").write_text("nothing here")
    with pytest.raises(ManifestError, match="no line describes"):
        read_mias(folder)


def test_a_lesion_off_the_breast_leaves_its_image_incomplete(folder):
    rows = {row.image_id: row for row in read_mias(folder)[0].rows}
    assert not rows["mdb005"].complete
    assert rows["mdb001"].complete


def test_rows_count_from_the_bottom_of_the_image_as_it_is(folder):
    PIL.Image.fromarray(np.random.default_rng(0).integers(90, 200, (512, 1024), np.uint8)).save(folder / "mdb001.pgm")
    (lesion,) = read_mias(folder)[0].lesions_of("mdb001")
    assert lesion.points == ((511 - 425, 535),)


def test_the_corner_the_origin_and_what_lies_beyond(folder):
    (folder / "Info.txt").write_text(
        "mdb001 G CIRC B 1023 0 5\nmdb002 G CIRC B 1023 1023 5\nmdb003 G CIRC B 1024 5000 5\nmdb004 G ASYM M 500 400\n"
    )
    manifest, notices = read_mias(folder)
    assert [lesion.points[0] for lesion in manifest.lesions[:2]] == [(1023, 1023), (0, 1023)]
    assert any("mdb003" in notice and "outside the image" in notice for notice in notices)
    assert manifest.lesions_of("mdb004")[0].kind == "point"
    assert not any("mdb004" in notice for notice in notices)


def test_a_damaged_image_is_noticed_and_the_rest_goes_on(folder):
    (folder / "mdb003.pgm").write_bytes((folder / "mdb003.pgm").read_bytes()[:2000])
    manifest, notices = read_mias(folder)
    assert any("mdb003.pgm" in notice for notice in notices)
    assert {row.image_id: row.complete for row in manifest.rows}["mdb003"] is False


def test_a_folder_around_the_data_set_will_do(folder, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    (outer / "all-mias").symlink_to(folder)
    assert len(read_mias(outer)[0].rows) == len(read_mias(folder)[0].rows)
    with pytest.raises(ManifestError, match="no such folder"):
        read_mias(outer / "gone")


def test_odd_lines_and_files_are_named_and_counted(folder):
    (folder / "notes.txt").touch()
    (folder / "Info.txt").write_text(INFO + "mdb002 G CALC B 500 500 -7\nmdb011 G NORM\n")
    manifest, notices = read_mias(folder)
    told = "\n".join(notices)
    assert "1 file not named mdbNNN.pgm, left out: notes.txt" in told
    assert "2 images that Info.txt does not list, left out: mdb006.pgm, mdb009.pgm" in told
    assert "2 images listed in Info.txt, but not on disk: mdb007, mdb011" in told
    assert "1 image listed as NORM and as abnormal, taken as abnormal: mdb002" in told
    assert "mdb002: CALC in Info.txt: a circle needs a radius_px that is finite and not negative" in told
    row = next(row for row in manifest.rows if row.image_id == "mdb002")
    assert (row.label, row.complete) == ("positive", False)


def test_two_files_of_one_image_are_refused(folder):
    PIL.Image.fromarray(np.full((1024, 1024), 9, np.uint8)).save(folder / "MDB002.PGM", format="ppm")
    with pytest.raises(ManifestError, match=r"repeated: mdb002 \(MDB002\.PGM, mdb002\.pgm\)"):
        read_data_set("mias", folder)
