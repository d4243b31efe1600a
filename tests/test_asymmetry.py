"""Tests for `unary.models.asymmetry` and its figure."""

import dataclasses
import io

import numpy as np
import PIL.Image
import pytest
from scipy import ndimage

import unary
from unary.errors import ImageError
from unary.models.asymmetry import Asymmetry, AsymmetryConfig, compare_breasts, describe_asymmetry
from unary.outputs.asymmetry_figure import plot_asymmetry
from unary.outputs.figures import figure_png
from unary.records import Image

SPACING = 0.28
ROWS, COLS = 500, 360
PLACE = (300, 150)  # of the added mass


def draw(*, seed=0, mass=False, height=220, depth=280, place=PLACE):
    """A left breast, half an ellipse with glandular tissue of its own pattern, with a mass of 8 mm or none."""
    rows, cols = np.mgrid[:ROWS, :COLS]
    inside = ((rows - ROWS / 2) / height) ** 2 + (cols / depth) ** 2 < 1
    rng = np.random.default_rng(seed)
    gland = ndimage.gaussian_filter(rng.normal(size=(ROWS, COLS)), 18)
    noise = np.random.default_rng(seed + 100 + mass).normal(size=(ROWS, COLS))
    pixels = 1500 + 300 * gland / gland.std() + 10 * noise
    if mass:
        pixels += 1500 * np.exp(-(((rows - place[0]) ** 2 + (cols - place[1]) ** 2) / (2 * (15 / 1.5) ** 2)))
    return np.where(inside, pixels, 0).clip(0, 4000).astype(np.uint16)


def take(pixels, **given):
    return dataclasses.replace(Image.from_array(pixels, spacing_mm=SPACING), **given)


def is_near(found, place, *, mm):
    return np.hypot(*(np.subtract(found.place, place) * SPACING)) < mm


def test_a_mass_in_one_breast_is_the_first_place_and_the_other_has_none_there():
    with_mass, without = take(draw(mass=True)), take(draw()[:, ::-1].copy())
    found = compare_breasts(with_mass, without)
    assert is_near(found.places[0], PLACE, mm=3)
    assert found.places[0].excess > 5
    assert found.places[0].excess > 2 * found.places[1].excess
    assert found.correlation > 0.7
    back = compare_breasts(without, with_mass)
    mirrored = (PLACE[0], COLS - 1 - PLACE[1])
    assert not any(is_near(each, mirrored, mm=8) for each in back.places)


@pytest.mark.parametrize("mirrored", [False, True])
def test_sides_may_lie_either_way(mirrored):
    one, other = draw(mass=True), draw()
    turned = lambda pixels, do: pixels[:, ::-1].copy() if do else pixels  # noqa: E731
    found = compare_breasts(take(turned(one, mirrored)), take(turned(other, not mirrored)))
    place = (PLACE[0], COLS - 1 - PLACE[1] if mirrored else PLACE[1])
    assert is_near(found.places[0], place, mm=3)
    unturned = compare_breasts(take(one), take(other))  # as some archives mirror all to one side
    expected = unturned.excess[:, ::-1] if mirrored else unturned.excess
    assert np.allclose(found.excess, expected, atol=0.05, equal_nan=True)


def test_a_breast_is_no_different_from_itself():
    found = compare_breasts(take(draw()), take(draw()[:, ::-1].copy()))
    assert found.correlation > 0.999
    assert np.nanmax(np.abs(found.excess)) < 0.1
    depth = ndimage.distance_transform_edt(np.pad(found.prepared.mask, ((1, 1), (0, 1))))[1:-1, :-1] * 0.56
    assert np.isnan(found.excess[depth < 5.5]).all()  # the rim
    assert np.isfinite(found.excess[depth > 7.5]).all()  # up to the chest wall


def test_size_brightness_and_contrast_of_the_other_do_not_matter():
    one, other = take(draw(mass=True)), draw()
    expected = compare_breasts(one, take(other))
    brighter = np.where(other > 0, other * 2.0 + 500, 0).astype(np.uint16)
    found = compare_breasts(one, take(brighter))
    assert is_near(found.places[0], PLACE, mm=3)
    assert found.places[0].excess == pytest.approx(expected.places[0].excess, rel=0.1)
    larger = ndimage.zoom(other, (1.15, 1.1), order=1)
    found = compare_breasts(one, take(larger))
    assert is_near(found.places[0], PLACE, mm=3)
    assert found.correlation > 0.6


def test_a_clip_in_one_breast_is_no_place_of_the_other():
    """Metal is left out of the tissue and is 0 there, which is no darkness."""
    clipped = draw()[:, ::-1].copy()
    clipped[PLACE[0] - 7 : PLACE[0] + 7, COLS - 1 - PLACE[1] - 7 : COLS - 1 - PLACE[1] + 7] = 6000
    found = compare_breasts(take(clipped), take(draw()))
    assert any("metal" in note for note in found.prepared.notes)
    for each in (found, compare_breasts(take(draw()), take(clipped))):
        assert each.correlation > 0.99
        assert np.nanmax(np.abs(each.excess)) < 3


def test_breasts_that_have_nothing_in_common_say_so():
    found = compare_breasts(take(draw(seed=3)), take(draw(seed=8)))
    assert abs(found.correlation) < 0.4
    assert "correlate by" in describe_asymmetry(found)


def test_places_are_apart_and_fall_and_are_on_the_map():
    found = compare_breasts(take(draw(seed=3)), take(draw(seed=8)), AsymmetryConfig(apart_mm=12, most=5))
    assert len(found.places) == 5
    heights = [each.excess for each in found.places]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] == pytest.approx(float(np.nanmax(found.excess)))
    for number, each in enumerate(found.places):
        row, col = ((np.asarray(each.place) + 0.5) / np.asarray(found.prepared.scale)).astype(int)
        assert found.excess[row, col] == pytest.approx(each.excess)
        assert not any(is_near(each, before.place, mm=11.5) for before in found.places[:number])


def test_without_the_other_breast_nothing_is_judged():
    assert unary.compare_breasts is compare_breasts
    assert compare_breasts(take(draw()), None) is None
    assert describe_asymmetry(None) == "Asymmetry: not judged, an image of the other breast is missing."


@pytest.mark.parametrize(
    ("own", "other", "words"),
    [
        ({"laterality": "L"}, {"laterality": "L"}, "both are L"),
        ({"view": "CC"}, {"view": "MLO"}, "they are CC and MLO"),
        ({"spacing_mm": None}, {}, "no pixel spacing"),
        ({}, {"spacing_mm": None}, "no pixel spacing"),
    ],
)
def test_what_is_no_pair_is_refused(own, other, words):
    with pytest.raises(ImageError, match=words):
        compare_breasts(take(draw(), **own), take(draw(), **other))


@pytest.mark.parametrize("name", ["spacing_mm", "smooth_mm", "rim_mm", "apart_mm", "most"])
def test_a_comparison_is_made_of_positive_numbers(name):
    with pytest.raises(ValueError, match=name):
        AsymmetryConfig(**{name: 0})


def test_the_figure_shows_places_and_says_that_nothing_is_calibrated():
    found = compare_breasts(take(draw(mass=True)), take(draw()[:, ::-1].copy()))
    figure = plot_asymmetry(found)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts[: len(found.places)] == [str(number) for number in range(1, len(found.places) + 1)]
    assert "Not calibrated" in " ".join(" ".join(text.get_text().split()) for text in figure.texts)
    drawn = np.asarray(PIL.Image.open(io.BytesIO(figure_png(figure))).convert("RGB")).astype(int)
    bare = dataclasses.replace(found, excess=np.full_like(found.excess, np.nan))
    plain = np.asarray(PIL.Image.open(io.BytesIO(figure_png(plot_asymmetry(bare)))).convert("RGB")).astype(int)
    assert ((drawn != plain).any(axis=2)).sum() > 200
    assert isinstance(found, Asymmetry)
