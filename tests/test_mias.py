import numpy as np
import PIL.Image
import pytest

from unary.errors import ManifestError
from unary.sources.mias import read_mias

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
