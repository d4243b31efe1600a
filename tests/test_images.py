import dataclasses

import numpy as np
import PIL.Image
import pytest

from unary.errors import ImageError
from unary.images.reading import check_pixels, is_image_file, read_image, read_mask, read_shape
from unary.records import Image

RAMP = np.arange(12 * 20, dtype=np.uint16).reshape(12, 20)


def test_content_decides_before_the_name(phantoms, tmp_path):
    content = phantoms.rows[0].path.read_bytes()
    for name in ("a.png", "1.2.840.5", "none"):
        (tmp_path / name).write_bytes(content)
        assert (read_image(tmp_path / name).pixels == read_image(phantoms.rows[0].path).pixels).all()
        assert is_image_file(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert not is_image_file(tmp_path / "notes.txt")


def test_shape_comes_from_the_header(phantoms, tmp_path):
    assert read_shape(phantoms.rows[0].path) == read_image(phantoms.rows[0].path).shape
    for suffix in ("png", "tif", "pgm"):
        PIL.Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}")
        assert read_shape(tmp_path / f"a.{suffix}") == (12, 20)
    with pytest.raises(ImageError, match=r"gone\.png"):
        read_shape(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("pixels", "cause"),
    [
        (np.zeros((0, 5)), "no pixels"),
        (np.full((3, 3), 4), "every pixel has the value 4"),
        (np.array([[1.0, np.nan]]), "not finite"),
        (np.array([[1.0, -np.inf]]), "not finite"),
    ],
)
def test_unusable_pixels_are_refused_by_name(pixels, cause, tmp_path):
    with pytest.raises(ImageError, match=cause) as caught:
        check_pixels(Image(pixels, (0, 9), tmp_path / "x.png"))
    assert "x.png" in str(caught.value)


def test_a_mask_may_be_full_but_not_empty(tmp_path):
    PIL.Image.fromarray(np.full((4, 5), 255, np.uint8)).save(tmp_path / "full.png")
    assert read_mask(tmp_path / "full.png").all()
    PIL.Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "none.png")
    with pytest.raises(ImageError, match=r"none\.png: the mask marks no pixel"):
        read_mask(tmp_path / "none.png")


def test_an_array_has_a_name_in_messages():
    with pytest.raises(ImageError, match=r"^the array: every pixel has the value 4"):
        check_pixels(Image.from_array(np.full((3, 3), 4)))


@pytest.mark.parametrize("spacing_mm", [0, -1, float("nan"), float("inf"), "0.1", True, (0.1,), (0.1, "0,1")])
def test_a_spacing_is_one_positive_number_or_two(spacing_mm):
    with pytest.raises(ImageError, match="spacing_mm must be positive"):
        Image.from_array(RAMP, spacing_mm=spacing_mm)
    assert Image.from_array(RAMP, spacing_mm=np.array([0.1, 0.2])).spacing_mm == (0.1, 0.2)


def test_what_an_array_masks_is_padding():
    masked = np.ma.masked_less(RAMP, 5)
    assert (Image.from_array(masked).padding == (RAMP < 5)).all()
    assert (Image.from_array(masked, padding=RAMP > 7).padding == ((RAMP < 5) | (RAMP > 7))).all()
    assert Image.from_array(RAMP).padding is None


def test_values_beyond_32_bits_are_not_finite_and_nothing_else_is_said():
    with pytest.raises(ImageError, match="not finite"):
        Image.from_array(RAMP * 1e300)


def test_what_is_no_measurement_need_not_be_finite():
    pixels = np.array([[1.0, np.nan], [2.0, 3.0]])
    for image in (
        Image.from_array(np.ma.masked_invalid(pixels), spacing_mm=0.1),
        Image.from_array(pixels, padding=np.isnan(pixels)),
    ):
        assert image.pixels.tolist() == [[1.0, 1.0], [2.0, 3.0]]
        assert image.padding.tolist() == [[False, True], [False, False]]
        assert image.value_range == (1.0, 3.0)
    for padding in (None, np.zeros((2, 2), bool)):
        with pytest.raises(ImageError, match="say so by `padding=`"):
            Image.from_array(pixels, padding=padding)
    assert dataclasses.replace(image, spacing_mm=0.2).spacing_mm == (0.2, 0.2)
