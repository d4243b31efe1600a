import numpy as np
import PIL.Image
import pytest
import tifffile

from unary.errors import ImageError
from unary.sources.images import read_image, read_mask

RAMP = (np.arange(12 * 20, dtype=np.uint16).reshape(12, 20) * 17) % 4096


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_survive(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    pixels = RAMP * 16 + 255
    if suffix == "tif":
        tifffile.imwrite(path, pixels)
    else:
        PIL.Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.pixels.dtype == np.uint16
    assert (image.pixels == pixels).all()
    assert image.value_range == (0, 65535)
    assert image.spacing_mm is None


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_eight_bits_stay_eight_bits(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    pixels = (RAMP % 256).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.pixels.dtype == np.uint8
    assert (image.pixels == pixels).all()


@pytest.mark.parametrize(("maximum", "kind"), [(4095, ">u2"), (1023, ">u2"), (100, "u1")])
def test_pgm_keeps_stored_values_below_full_scale(maximum, kind, tmp_path):
    pixels = (RAMP % (maximum + 1)).astype(kind)
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n# made here\n20 12\n%d\n" % maximum + pixels.tobytes())
    image = read_image(path)
    assert (image.pixels == pixels).all()
    assert image.value_range == (0, maximum)


def test_grey_stored_as_colour_is_grey_and_colour_is_refused(tmp_path):
    grey = (RAMP % 256).astype(np.uint8)
    PIL.Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png").pixels == grey).all()
    PIL.Image.fromarray(np.stack([grey, grey, 255 - grey], axis=-1)).save(tmp_path / "colour.png")
    with pytest.raises(ImageError, match=r"colour\.png: it is in colour"):
        read_image(tmp_path / "colour.png")


def test_float_tiff_must_be_finite(tmp_path):
    values = RAMP.astype(np.float32) / 7
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert (read_image(tmp_path / "a.tif").pixels == values).all()
    values[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values)
    with pytest.raises(ImageError, match="not finite"):
        read_image(tmp_path / "nan.tif")


def test_damaged_and_foreign_files_are_named(tmp_path):
    PIL.Image.fromarray(RAMP).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "report.pdf").write_text("x")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([RAMP, RAMP]), photometric="minisblack")
    PIL.Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / "blank.png")
    for name, cause in [
        ("cut.png", "truncated"),
        ("text.tif", "not readable"),
        ("empty.png", "empty"),
        ("report.pdf", "neither DICOM"),
        ("pages.tif", "2 pages"),
        ("blank.png", "every pixel has the value 7"),
        ("gone.png", "cannot be opened"),
    ]:
        with pytest.raises(ImageError, match=cause) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


def test_white_is_zero_tiff_is_turned_round(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAMP, photometric="miniswhite")
    assert (read_image(tmp_path / "a.tif").pixels == 65535 - RAMP).all()


def test_mask_is_what_is_not_zero(tmp_path):
    PIL.Image.fromarray(((RAMP > 2000) * 255).astype(np.uint8)).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == (RAMP > 2000)).all()
