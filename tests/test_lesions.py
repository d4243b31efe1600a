import numpy as np
import pytest

from unary.patches.grid import GridConfig, count_pixels, grid_origins
from unary.patches.lesions import judge_patches, rasterise_lesion
from unary.records import Lesion

SHAPE = (64, 64)
GRID = grid_origins(SHAPE, GridConfig(size_px=16, stride_px=16))


def lesion(kind, *points, **fields):
    return Lesion("i", "Mass", kind, points, **fields)


def full(made, shape=SHAPE, **options):
    inside, (row, col) = rasterise_lesion(made, shape, **options)
    canvas = np.zeros(shape, bool)
    canvas[row : row + inside.shape[0], col : col + inside.shape[1]] = inside
    return canvas


def test_shapes_cover_what_they_should():
    assert np.argwhere(full(lesion("point", (10.2, 20.4)))).tolist() == [[10, 20]]
    assert full(lesion("box", (4, 5), (6, 9))).sum() == 2 * 4
    circle = full(lesion("circle", (30, 30), radius_px=10))
    assert circle.sum() == pytest.approx(np.pi * 100, rel=0.05)
    assert circle[30, 40]
    assert not circle[38, 38]
    square = full(lesion("contour", (10, 10), (10, 30), (30, 30), (30, 10)))
    assert square.sum() == 21 * 21  # vertices are pixel centres, and the border belongs to it
    assert square[20, 20]


def test_mask_and_scale():
    mask = np.zeros((128, 128), bool)
    mask[40:60, 80:100] = True
    half = full(lesion("mask"), scale=(2.0, 2.0), mask=mask)
    assert half[20:30, 40:50].all()
    assert half.sum() == pytest.approx(100, abs=25)
    assert np.argwhere(full(lesion("point", (40.5, 80.5)), scale=(2.0, 2.0))).tolist() == [[20, 40]]


def test_a_lesion_outside_the_image_holds_nothing():
    for made in (
        lesion("point", (100, 10)),
        lesion("box", (-9, -9), (-3, -3)),
        lesion("circle", (90, 90), radius_px=3),
    ):
        inside, corner = rasterise_lesion(made, SHAPE)
        assert not judge_patches(inside, corner, GRID, size_px=16)[1].any()


def test_a_tiny_lesion_keeps_one_pixel():
    assert full(lesion("contour", (10.1, 10.1), (10.1, 10.3), (10.3, 10.3))).sum() == 1
    assert full(lesion("circle", (12, 13), radius_px=0.0)).sum() == 1


@pytest.mark.parametrize("kind", ["circle", "box", "contour"])
def test_overlaps_agree_with_counting(kind):
    points = {"circle": [(30, 28)], "box": [(3, 7), (40, 29)], "contour": [(5, 5), (50, 20), (20, 60)]}[kind]
    made = lesion(kind, *points, radius_px=13.0 if kind == "circle" else None)
    canvas = full(made)
    counted = [canvas[r : r + 16, c : c + 16].sum() for r, c in GRID]
    inside, corner = rasterise_lesion(made, SHAPE)
    assert count_pixels(inside, GRID - np.array(corner), size_px=16).tolist() == counted


def test_the_rule_for_small_and_for_large_lesions():
    small = rasterise_lesion(lesion("box", (14, 2), (20, 4)), SHAPE)  # 6 rows: 2 in the first patch, 4 in the second
    contains, touches = judge_patches(*small, GRID, size_px=16)
    assert GRID[contains].tolist() == [[16, 0]]
    assert GRID[touches].tolist() == [[0, 0], [16, 0]]
    large = rasterise_lesion(lesion("box", (0, 0), (41, 64)), SHAPE)  # no patch holds half of it
    contains, touches = judge_patches(*large, GRID, size_px=16)
    assert contains[:8].all()
    assert contains[8:12].all()  # rows 32 to 40: 9 of 16 rows, over a quarter of the patch
    assert not touches[12:].any()
