import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from unary.patches.metal import find_metal
from unary.patches.preparation import PreparationConfig, prepare_image
from unary.records import Image

SPACING = (0.14, 0.14)
CONFIG = PreparationConfig(mask="bright_region", metal=True)


def make_breast():
    rng = np.random.default_rng(0)
    pixels = np.zeros((400, 300))
    pixels[40:360, :220] = ndimage.gaussian_filter(rng.normal(size=(320, 220)), 4) * 800 + 1000
    return pixels


def add_clip(pixels):
    changed = pixels.copy()
    changed[200:230, 100:107] = 4000
    return changed


def add_calcification(pixels, radius=14):
    """Round, as bright at its middle as metal."""
    row, col = np.mgrid[:400, :300]
    dome = np.sqrt(np.clip(1 - (np.square(row - 120) + np.square(col - 80)) / radius**2, 0, None))
    return pixels + 3000 * dome


def prepare(pixels, config=CONFIG, spacing_mm=SPACING):
    return prepare_image(Image.from_array(pixels.astype(np.float32), spacing_mm=spacing_mm), config)


def test_a_clip_is_no_tissue_and_noted():
    plain, prepared = prepare(make_breast()), prepare(add_clip(make_breast()))
    gone = plain.mask & ~prepared.mask
    assert gone[200:230, 100:107].all()
    assert gone.sum() <= 38 * 15  # with half a millimetre around
    assert not prepared.pixels[gone].any()
    assert [note for note in prepared.notes if "1 piece of metal" in note]
    assert not [note for note in plain.notes if "metal" in note]


def test_a_calcification_however_bright_stays():
    prepared = prepare(add_calcification(make_breast()))
    assert prepared.mask[110:130, 70:90].all()
    assert not [note for note in prepared.notes if "metal" in note]


def test_pieces_are_counted_and_small_ones_left_alone():
    pixels = add_clip(make_breast())
    pixels[300:330, 60:66] = 4000
    pixels[100:104, 60:64] = 4000
    mask = pixels > 0
    low, high = np.percentile(pixels[mask], [1, 99])
    metal, count = find_metal(pixels, mask, low=low, high=high, spacing_mm=SPACING)
    assert count == 2
    assert not metal[95:110, 50:70].any()
    # The same in units of millimetres: at half the spacing both are too small.
    assert find_metal(pixels, mask, low=low, high=high, spacing_mm=(0.05, 0.05)) == (None, 0)


@pytest.mark.parametrize(
    "config", [dataclasses.replace(CONFIG, metal=False), dataclasses.replace(CONFIG, intensity="full_scale")]
)
def test_only_where_it_is_asked_for_and_the_tissues_range_is_known(config):
    assert prepare(add_clip(make_breast()), config).mask[200:230, 100:107].all()


def test_without_a_spacing_nobody_knows_how_large_it_is():
    assert prepare(add_clip(make_breast()), spacing_mm=None).mask[200:230, 100:107].all()
