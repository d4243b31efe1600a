from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import resize

from unary.datasets.phantom import PhantomConfig, build_phantom
from unary.errors import ImageError
from unary.patches.bright_region import find_bright_region
from unary.patches.preparation import (
    FULL_SCALE,
    PreparationConfig,
    PreparedImage,
    describe_unusual,
    enlarge,
    erode_mask,
    find_working_shape,
    prepare_image,
)
from unary.profiles import MAMMOGRAPHY
from unary.records import Image


def make_image(pixels, **fields):
    return Image(pixels, (0, 4095), Path("made.png"), **fields)


@pytest.fixture(scope="module")
def phantom():
    return build_phantom(PhantomConfig(rows=768, cols=640), rng=np.random.default_rng(3))


def test_tissue_of_a_phantom_is_found(phantom):
    found = find_bright_region(phantom.pixels)
    overlap = (found & phantom.mask).sum() / (found | phantom.mask).sum()
    assert overlap > 0.95


def test_tissue_excludes_padding_and_is_empty_for_a_blank_image(phantom):
    padding = np.zeros(phantom.pixels.shape, bool)
    padding[:300] = True
    assert not find_bright_region(phantom.pixels, padding)[:300].any()
    assert not find_bright_region(np.full((64, 64), 7, np.uint16)).any()
    assert not find_bright_region(phantom.pixels, np.ones_like(padding)).any()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("width", [1, 5])
def test_a_dark_strip_along_the_border_is_no_tissue(width, turns):
    """Narrower than what the region is found on, it would be an edge inside the tissue, and the sharpest of all."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 20, (1200, 1000), np.uint16)
    pixels[200:, width:700] += 2000  # tissue in a corner, air around it
    mask = np.rot90(find_bright_region(np.ascontiguousarray(np.rot90(pixels, turns))), -turns)
    assert not mask[:, :width].any()
    assert mask[210:-10, width:690].all()
    assert mask[-1, 10:690].all()  # the picture's border itself is no strip


def test_a_bright_marker_beside_the_tissue_is_left_out(phantom):
    pixels = phantom.pixels.copy()
    corner = (
        (slice(20, 60), slice(-60, -20)) if not phantom.mask[20:60, -60:-20].any() else (slice(20, 60), slice(20, 60))
    )
    assert not phantom.mask[corner].any()
    pixels[corner] = 4095
    assert not find_bright_region(pixels)[corner].any()


def test_percentiles_land_where_the_rule_says(phantom):
    config = PreparationConfig(low_percentile=5, high_percentile=90, high_value=0.5)
    prepared = prepare_image(make_image(phantom.pixels), config)
    inside = prepared.pixels[prepared.mask] / FULL_SCALE
    assert np.percentile(inside, 90) == pytest.approx(0.5, abs=0.01)
    assert np.percentile(inside, 5) == pytest.approx(0.0, abs=0.01)
    assert (prepared.pixels[~prepared.mask] == 0).all()


def test_preparation_does_not_depend_on_an_affine_change_of_values(phantom):
    config = PreparationConfig()
    plain = prepare_image(make_image(phantom.pixels), config)
    changed = prepare_image(make_image(phantom.pixels.astype(np.int32) * 7 - 1000), config)
    assert (plain.mask == changed.mask).all()
    assert np.abs(plain.pixels.astype(int) - changed.pixels).max() <= 1


def test_twelve_bits_survive():
    ramp = np.tile(np.arange(4096, dtype=np.uint16), (8, 1))
    config = PreparationConfig(mask="none", intensity="full_scale")
    prepared = prepare_image(make_image(ramp), config)
    assert len(np.unique(prepared.pixels)) == 4096
    assert prepared.pixels[0, 0] == 0
    assert prepared.pixels[0, -1] == FULL_SCALE


def test_resampling_keeps_a_spot_where_it_was():
    pixels = np.zeros((300, 200), np.uint16)
    pixels[120:124, 80:84] = 4000
    image = make_image(pixels, spacing_mm=(0.1, 0.1))
    prepared = prepare_image(image, PreparationConfig(mask="none", intensity="full_scale", working_spacing_mm=0.2))
    assert prepared.shape == (150, 100)
    brightest = np.argwhere(prepared.pixels == prepared.pixels.max()).mean(axis=0)
    stored = (brightest + 0.5) * prepared.scale - 0.5
    assert stored == pytest.approx([121.5, 81.5], abs=1.0)


@pytest.mark.parametrize("spacing", [(0.07, 0.07), (0.14, 0.07), (0.05, 0.1), (0.3, 0.2), (0.02, 0.011)])
@pytest.mark.parametrize("shape", [(301, 203), (1300, 60), (5, 7)])
def test_resampling_in_bands_is_what_scikit_image_does(spacing, shape, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 4096, shape, dtype=np.uint16)
    padding = np.zeros(shape, bool)
    padding[: shape[0] // 3] = True
    image = make_image(pixels, spacing_mm=spacing, padding=padding)
    config = PreparationConfig(mask="none", intensity="full_scale", working_spacing_mm=0.14)
    monkeypatch.setattr("unary.patches.preparation._BAND_PX", 64)
    prepared = prepare_image(image, config)
    how = {"order": 1, "anti_aliasing": max(prepared.scale) > 1, "preserve_range": True}
    expected = resize(pixels.astype(np.float32), prepared.shape, **how) * (FULL_SCALE / 4095)
    mask = resize(padding.astype(np.float32), prepared.shape, **how) <= 0.25
    assert (prepared.mask == mask).mean() > 0.999
    assert np.abs(prepared.pixels - np.maximum(expected, 1))[mask & prepared.mask].max() < 0.51


BLOCK = PreparationConfig(mask="none", intensity="full_scale", working_size_px=100)


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((400, 300), None, (100, 75)),
        ((30, 41), None, (73, 100)),
        ((400, 300), (0.5, 0.5), (100, 75)),
        ((200, 400), (2.0, 1.0), (100, 100)),  # a slice whose rows lie twice as far apart is a square in mm
        ((5000, 7), None, (100, 1)),
        ((100, 100), None, (100, 100)),
    ],
)
def test_images_of_any_size_come_to_one_longer_side(shape, spacing, expected):
    pixels = np.random.default_rng(0).integers(0, 4096, shape, dtype=np.uint16)
    prepared = prepare_image(make_image(pixels, spacing_mm=spacing), BLOCK)
    assert prepared.shape == expected == find_working_shape(shape, spacing, BLOCK)
    assert prepared.scale == (shape[0] / expected[0], shape[1] / expected[1])
    assert enlarge(prepared.pixels, prepared).shape == shape


def test_a_working_size_averages_areas_and_keeps_places():
    fine = np.kron(np.random.default_rng(0).integers(0, 3000, (50, 40)), np.ones((8, 8))).astype(np.uint16)
    fine[:, ::2] += 90  # stripes of one pixel, which a grid four times as coarse cannot show
    fine[160:168, 80:88] = 4095
    for spacing in (None, (0.7, 0.7)):
        prepared = prepare_image(make_image(fine, spacing_mm=spacing), BLOCK)
        brightest = np.argwhere(prepared.pixels == prepared.pixels.max()).mean(axis=0)
        assert (brightest + 0.5) * prepared.scale - 0.5 == pytest.approx([163.5, 83.5], abs=2)
        expected = resize(fine.astype(np.float32), (100, 80), order=1, anti_aliasing=True, preserve_range=True)
        assert np.abs(prepared.pixels - expected * (FULL_SCALE / 4095)).max() < 0.51
        assert prepared.spacing_mm == (None if spacing is None else pytest.approx(2.8))


def test_a_working_size_leaves_padding_out():
    padding = np.zeros((400, 300), bool)
    padding[:, :60] = True
    pixels = np.where(padding, 0, 2000).astype(np.uint16)
    pixels[::2] += 100
    prepared = prepare_image(make_image(pixels, padding=padding), BLOCK)
    assert not prepared.mask[:, :14].any()
    assert prepared.mask[:, 16:].all()


def test_the_tissue_is_the_same_in_bands_of_any_height(phantom, monkeypatch):
    padding = np.zeros(phantom.pixels.shape, bool)
    padding[:, :30] = True
    whole = find_bright_region(phantom.pixels, padding)
    monkeypatch.setattr("unary.patches.bright_region._BAND_PX", 7)
    assert np.array_equal(find_bright_region(phantom.pixels, padding), whole)


@pytest.mark.parametrize(
    ("pixels", "config", "cause"),
    [
        (np.zeros((0, 5), np.uint16), PreparationConfig(), "pixels"),
        (np.full((200, 200), 9, np.uint16), PreparationConfig(), "no tissue"),
        (np.full((200, 200), 9, np.uint16), PreparationConfig(mask="none"), "one single value"),
        (np.full((200, 200), np.nan, np.float32), PreparationConfig(), "not finite"),
        (np.ones((200, 200), np.uint16), PreparationConfig(working_spacing_mm=0.1), "spacing"),
    ],
)
def test_useless_images_are_refused_by_name(pixels, config, cause):
    with pytest.raises(ImageError, match=cause) as caught:
        prepare_image(make_image(pixels), config)
    assert "made.png" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask": "lung"},
        {"intensity": "log"},
        {"low_percentile": 99.5},
        {"high_value": 0},
        {"working_spacing_mm": -1},
        {"working_size_px": 0},
        {"working_size_px": 9000},
        {"working_size_px": 128, "working_spacing_mm": 0.14},
        {"intensity": "window"},
        {"window": (0, 1)},
        {"spacing_range_mm": (1, 0.1)},
        {"intensity": "window", "window": (5, 5)},
        {"intensity": "window", "window": (float("nan"), 5)},
        {"intensity": "window", "window": (0, float("inf"))},
    ],
)
def test_configuration_is_checked(wrong):
    with pytest.raises(ValueError):
        PreparationConfig(**wrong)


@pytest.mark.parametrize("corner", [-1e20, 2.0**31])
def test_an_extreme_value_in_a_corner_does_not_reach_the_other_pixels(phantom, corner):
    config = PreparationConfig(working_spacing_mm=0.2, mask="none", intensity="full_scale")
    clean, spoiled = phantom.pixels.astype(np.float32), phantom.pixels.astype(np.float32)
    spoiled[0, 0] = corner
    one, other = (
        prepare_image(make_image(pixels, spacing_mm=(0.1, 0.1)), config).pixels.astype(int)
        for pixels in (clean, spoiled)
    )
    assert np.abs(one - other)[4:].max() <= 1
    assert len(np.unique(other)) > 1000


@pytest.mark.parametrize(
    "config",
    [
        PreparationConfig(),
        PreparationConfig(mask="none"),
        PreparationConfig(intensity="full_scale", working_spacing_mm=0.17),
        PreparationConfig(intensity="window", window=(900.0, 1800.0)),
        PreparationConfig(mask="none", intensity="window", window=(-2e4, 200.0)),
    ],
)
def test_pixels_are_zero_outside_the_mask(phantom, config):
    padding = np.zeros(phantom.pixels.shape, bool)
    padding[:, 300:320] = True
    prepared = prepare_image(make_image(phantom.pixels, spacing_mm=(0.1, 0.1), padding=padding), config)
    assert not prepared.mask.all()
    assert not prepared.pixels[~prepared.mask].any()


def test_a_window_in_the_images_own_unit_becomes_the_whole_scale():
    hounsfield = np.array([[-3024, -160, -159, 40, 240, 3071]], np.int16)
    config = PreparationConfig(mask="none", intensity="window", window=(-160, 240))
    found = prepare_image(Image.from_array(hounsfield), config).pixels[0].tolist()
    assert found == [0, 0, round(FULL_SCALE / 400), pytest.approx(FULL_SCALE / 2, abs=1), FULL_SCALE, FULL_SCALE]


@pytest.mark.parametrize("window", [(-1000.0, 400.0), (5000.0, 9000.0)])
def test_a_window_that_leaves_nothing_is_named(window):
    activity = np.linspace(500, 4500, 48 * 48, dtype=np.float32).reshape(48, 48)
    config = PreparationConfig(mask="none", intensity="window", window=window)
    with pytest.raises(ImageError, match=r"beyond the window .* 500 to 4500: is the window of another unit") as caught:
        prepare_image(Image.from_array(activity), config)
    assert caught.value.reason == "BLANK"


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (600, 33), (90, 130)])
@pytest.mark.parametrize("reach", [0, 1, 4, 11, 50])
def test_erosion_is_a_minimum_filter(shape, reach):
    mask = np.random.default_rng(2).random(shape) > (0.3 if reach < 2 else 0.002)
    expected = ndimage.minimum_filter(mask, 2 * reach + 1, mode="nearest")
    assert np.array_equal(erode_mask(mask, reach), expected)
    assert erode_mask(np.ones(shape, bool), reach).all(), "the image's border is no rim"


def test_the_working_spacing_is_the_mean_of_both_directions(phantom):
    image = make_image(phantom.pixels, spacing_mm=(0.1, 0.2))
    assert prepare_image(image, PreparationConfig()).spacing_mm == pytest.approx(0.15)
    coarse = prepare_image(image, PreparationConfig(working_spacing_mm=0.3))
    assert coarse.spacing_mm == pytest.approx(0.3, rel=0.01)
    assert prepare_image(make_image(phantom.pixels), PreparationConfig()).spacing_mm is None


def test_enlarging_takes_the_nearest_working_pixel():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    blank = np.ones((3, 4), np.uint16)
    prepared = PreparedImage(blank, blank > 0, (7 / 3, 2.0), (7, 8), None)
    found = enlarge(values, prepared)
    assert found.shape == (7, 8)
    assert found.dtype == np.float32
    assert found[:, 0].tolist() == [0, 0, 4, 4, 4, 8, 8]
    assert found[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_working_grid_beyond_all_memory_is_refused_before_it_is_made():
    image = make_image(np.ones((3000, 3000), np.uint16), spacing_mm=(0.1, 0.1))
    with pytest.raises(ImageError, match=r"3000 x 3000 .* 3000000 x 3000000 .*spacing") as caught:
        prepare_image(image, PreparationConfig(working_spacing_mm=0.0001))
    assert caught.value.reason == "TOO_LARGE"


def test_a_rim_wider_than_the_image_costs_no_memory():
    mask = np.ones((5, 7), bool)
    mask[2, 3] = False
    assert not erode_mask(mask, 10**9).any()
    assert erode_mask(np.ones((5, 7), bool), 10**9).all()


@pytest.mark.parametrize("working_spacing_mm", [None, 0.14])
@pytest.mark.parametrize("spacing_mm", [(70.0, 70.0), (1e-9, 1e-9), (0.07, 70.0), (1e12, 0.07)])
def test_a_spacing_in_another_unit_is_refused_whatever_is_done_with_it(spacing_mm, working_spacing_mm):
    pixels = np.arange(200 * 100, dtype=np.uint16).reshape(200, 100)
    with pytest.raises(ImageError, match=r"pixel spacing .*another unit") as caught:
        prepare_image(
            make_image(pixels, spacing_mm=spacing_mm),
            PreparationConfig(mask="none", working_spacing_mm=working_spacing_mm),
        )
    assert caught.value.reason == "IMPLAUSIBLE_SPACING"


def test_an_array_is_prepared_as_a_file_and_named_so():
    config = PreparationConfig(mask="none")
    pixels = np.random.default_rng(0).random((40, 50))
    assert prepare_image(Image.from_array(pixels), config).shape == (40, 50)
    with pytest.raises(ImageError, match="the array: the tissue has one single value"):
        prepare_image(Image.from_array(np.zeros((40, 50))), config)


@pytest.fixture(scope="module")
def films():
    config, rng = PhantomConfig(rows=384, cols=320), np.random.default_rng(8)
    choices = [("CC", "L"), ("CC", "R"), ("MLO", "L"), ("MLO", "R")]
    return [build_phantom(config, rng=rng, view=view, laterality=side).pixels for view, side in choices]


UNUSUAL = {
    "inverted": lambda p: p.max() - p,
    "inverted and mirrored": lambda p: (p.max() - p)[::-1, ::-1],
    "white frame": lambda p: np.pad(p, 20, constant_values=4095),
    "grey frame": lambda p: np.pad(p, 20, constant_values=1500),
    "white frame inside a black one": lambda p: np.pad(np.pad(p, 20, constant_values=4095), 8),
    "white page": lambda p: np.pad(p, 120, constant_values=4095),
    "frame on three sides": lambda p: np.pad(p, ((20, 0), (20, 20)), constant_values=4095),
    "inverted in a black frame": lambda p: np.pad(p.max() - p, 20),
    "inverted in a white frame": lambda p: np.pad(p.max() - p, 20, constant_values=4095),
}


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("case", UNUSUAL)
def test_an_inverted_film_and_a_bright_frame_are_noted(case, number, films):
    pixels = UNUSUAL[case](films[number])
    image = make_image(pixels - np.random.default_rng(0).integers(0, 2, pixels.shape, np.uint16) * (pixels > 0))
    [note] = prepare_image(image, PreparationConfig()).notes
    assert "inverted" in note
    assert describe_unusual(image, PreparationConfig()) == (note,)
    assert prepare_image(image, PreparationConfig(mask="none")).notes == ()


@pytest.mark.parametrize("number", range(4))
def test_nothing_is_noted_of_a_film_as_it_should_be(number, films):
    film = films[number]
    margin = np.pad(film, 30)
    padding = np.ones(margin.shape, bool)
    padding[30:-30, 30:-30] = False
    white = np.where(padding, np.uint16(4095), margin)
    raw = np.rint(15000 * np.linspace(1, 0.8, film.shape[1]) * np.exp(film / -1500.0))
    for image in (
        make_image(film),
        make_image(margin),
        make_image(white, padding=padding),
        make_image((16383 - raw).astype(np.uint16)),
    ):
        assert prepare_image(image, PreparationConfig()).notes == ()
    [note] = prepare_image(make_image(raw.astype(np.uint16)), PreparationConfig()).notes
    assert "inverted" in note


@pytest.mark.parametrize(
    ("spacing", "words"),
    [
        ((0.07, 0.07), []),
        ((0.7, 0.7), ["0.7 x 0.7 mm is outside the 0.02 to 0.5 mm"]),
        ((0.007, 0.007), ["0.007 x 0.007 mm is outside"]),
        ((0.07, 0.7), ["0.07 x 0.7 mm is outside", "0.07 x 0.7 mm differs much between rows and columns"]),
        ((0.1, 0.2), ["differs much"]),
        (None, []),
    ],
)
def test_an_unlikely_pixel_spacing_is_noted(spacing, words, films):
    image = make_image(films[0], spacing_mm=spacing)
    image = replace(image, notes=("of the reader",))
    assert MAMMOGRAPHY.spacing_range_mm == (0.02, 0.5)
    notes = prepare_image(image, PreparationConfig(spacing_range_mm=MAMMOGRAPHY.spacing_range_mm)).notes
    assert notes[0] == "of the reader"
    assert len(notes[1:]) == len(words)
    assert all(word in note for word, note in zip(words, notes[1:], strict=True))


def test_a_small_picture_has_a_rim_too():
    pixels = np.pad(np.random.default_rng(3).integers(900, 1100, (30, 20)), ((5, 5), (0, 20)))
    assert prepare_image(
        make_image(pixels.astype(np.uint16)), PreparationConfig()
    ).mask.any()  # a mean over no pixel would warn
