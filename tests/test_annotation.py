import dataclasses

import numpy as np
import PIL.Image
import pytest

from unary.datasets import read_data_set
from unary.datasets.annotation import check_lesions, find_place, has_area, name_some
from unary.datasets.manifest import read_manifest, write_manifest
from unary.errors import ManifestError
from unary.patches.lesions import rasterise_lesion
from unary.records import Image, Lesion, Manifest, ManifestRow

SHAPE = (60, 40)


def row(name, label="positive", **fields):
    image = Image.from_array(np.arange(2400, dtype=np.uint16).reshape(SHAPE))
    return ManifestRow(None, name, f"of {name}", label, image=image, **fields)


def point(image_id, at, name="Mass"):
    return Lesion(image_id, name, "point", (at,))


def check(lesions, rows=None):
    names = dict.fromkeys(lesion.image_id for lesion in lesions)
    return check_lesions(Manifest(tuple(rows or map(row, names)), tuple(lesions)), progress=False)


@pytest.mark.parametrize(
    ("kind", "points", "radius", "place"),
    [
        ("point", [(0, 0)], None, "inside"),
        ("point", [(-0.5, 39.9)], None, "inside"),
        ("point", [(60, 40)], None, "inside"),  # the far corner, where pixels begin at their corners
        ("point", [(60.5, 3)], None, "outside"),
        ("point", [(-3, 3)], None, "outside"),
        ("circle", [(59, 39)], 9, "inside"),  # its centre counts
        ("circle", [(65, 3)], 9, "leaving"),
        ("circle", [(65, 3)], 2, "outside"),
        ("box", [(0, 0), (60, 40)], None, "inside"),
        ("box", [(50, 30), (60, 41)], None, "leaving"),
        ("box", [(60, 3), (70, 9)], None, "outside"),
        ("box", [(-9, 3), (0, 9)], None, "outside"),
        ("contour", [(1, 1), (5, 45), (3, 3)], None, "leaving"),
        ("contour", [(1, 41), (5, 45), (3, 48)], None, "outside"),
    ],
)
def test_a_lesion_is_outside_when_no_pixel_is_its_own(kind, points, radius, place):
    lesion = Lesion("i", "Mass", kind, tuple(points), radius)
    assert find_place(lesion, SHAPE) == place
    for scale in ((1.0, 1.0), (2.0, 2.0), (0.5, 0.5)):
        shape = tuple(round(size / factor) for size, factor in zip(SHAPE, scale, strict=True))
        assert rasterise_lesion(lesion, shape, scale=scale)[0].any() == (place != "outside")


def test_the_order_of_corners_does_not_matter():
    orders = [((10, 5), (20, 9)), ((20, 9), (10, 5)), ((20, 5), (10, 9)), ((10, 9), (20, 5))]
    assert {Lesion("i", "Mass", "box", order) for order in orders} == {Lesion("i", "Mass", "box", orders[0])}
    inside, corner = rasterise_lesion(Lesion("i", "Mass", "box", orders[2]), SHAPE)
    assert inside.sum() == 10 * 4
    assert corner[1] in (4, 5)


@pytest.mark.parametrize(
    ("kind", "points", "radius", "cause"),
    [
        ("contour", [(1, 1), (2, 2)], None, "needs 3"),
        ("point", [(np.nan, 1)], None, "not finite"),
        ("box", [(1, np.inf), (2, 2)], None, "not finite"),
        ("circle", [(1, 1)], None, "radius_px"),
        ("circle", [(1, 1)], -1.0, "not negative"),
        ("circle", [(1, 1)], np.nan, "finite"),
        ("blob", [(1, 1)], None, "kind must be one of"),
    ],
)
def test_a_lesion_without_the_geometry_of_its_kind_cannot_be_made(kind, points, radius, cause):
    with pytest.raises(ManifestError, match=cause):
        Lesion("i", "Mass", kind, tuple(points), radius)


def test_lesions_outside_are_named_and_their_images_incomplete():
    lesions = [
        point("a", (5, 5)),
        point("b", (5, 6)),
        point("b", (90, 6)),
        Lesion("c", "M", "box", ((55, 30), (65, 39))),
    ]
    manifest, notices = check(lesions)
    assert [one.complete for one in manifest.rows] == [True, False, True]
    assert notices == (
        "1 lesion outside the image: b; the rest of these images is not taken as normal (complete: no)",
        "1 lesion across the border of the image: c; kept",
    )
    assert list(manifest.lesions) == lesions, "none is dropped"


@pytest.mark.parametrize(
    ("points", "cause"),
    [
        ([(30, 50), (20, 59), (5, 5)], "2 of 3 lesions lie outside .* a, b .*row and column exchanged"),
        ([(300, 500), (200, 90), (5, 5)], "2 of 3 lesions .*row 300, col 500 in an image of 60 rows and 40 columns"),
        ([(0.5, 0.25), (0.1, 0.9)], "fractions of the image"),
    ],
)
def test_lesions_that_are_mostly_outside_are_refused_with_the_likely_cause(points, cause):
    with pytest.raises(ManifestError, match=cause):
        check([point(name, at) for name, at in zip("abc", points, strict=False)])


def test_outlines_without_area_are_named_and_count_as_few_pixels():
    flat = [
        Lesion("a", "Mass", "box", ((9, 5), (9, 20))),
        Lesion("b", "Mass", "contour", ((1, 1), (2, 2), (5, 5))),
        Lesion("b", "Mass", "circle", ((9, 9),), 0.0),
        Lesion("b", "Mass", "contour", ((1, 1), (9, 1), (9, 9))),
    ]
    assert [has_area(lesion) for lesion in flat] == [False, False, False, True]
    assert check(flat)[1] == ("3 lesions without any area: a, b; each counts as the pixels that it lies on",)
    assert [int(rasterise_lesion(lesion, SHAPE)[0].sum()) for lesion in flat[:3]] == [1, 3, 1]


def test_a_lesion_that_is_listed_twice_counts_once():
    manifest, notices = check([point("a", (5, 5)), point("a", (5, 5)), point("a", (5, 5), "Calcification")])
    assert len(manifest.lesions) == 2
    assert notices == ("1 lesion listed more than once: a; each counts once",)


def test_a_positive_image_without_a_lesion_is_incomplete_where_others_have_some():
    rows = [row("a"), row("b"), row("c", "negative"), row("d", None), row("e", complete=False)]
    manifest, notices = check([point("a", (5, 5))], rows)
    assert [one.complete for one in manifest.rows] == [True, False, True, True, False]
    assert len(notices) == 1
    assert "1 image labelled positive without a listed lesion: b" in notices[0]
    by_image = Manifest(tuple(rows))
    assert check_lesions(by_image) == (by_image, ()), "labels of whole images are no annotation of lesions"


def test_negative_images_with_lesions_are_counted():
    rows = [row("a"), row("b", "negative"), row("c", "negative")]
    manifest, (notice,) = check([point("a", (5, 5)), point("b", (5, 5))], rows)
    assert notice.startswith("1 image labelled negative with lesions: b; they are taken as benign")
    assert manifest.rows == tuple(rows)


def test_sizes_come_from_headers_and_a_mask_has_that_of_its_image(tmp_path):
    for name, shape in (("a", SHAPE), ("b", SHAPE), ("right", SHAPE), ("turned", SHAPE[::-1])):
        pixels = np.random.default_rng(len(name)).integers(0, 255, shape, dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    rows = tuple(ManifestRow(tmp_path / f"{name}.png", name, name, "positive") for name in "ab")
    masks = {
        name: Lesion("ab"[name == "right"], "Mass", "mask", mask_path=tmp_path / f"{name}.png")
        for name in ("turned", "right")
    }
    _, notices = check_lesions(Manifest(rows, tuple(masks.values())))
    assert notices == ("1 lesion with a mask of another size than the image: a; these images cannot be used",)
    gone = dataclasses.replace(rows[0], path=tmp_path / "gone.png")
    assert check_lesions(Manifest((gone,), (point("a", (900, 900)),)))[1] == (), "whoever reads it says so"


def test_every_command_reads_manifests_that_are_checked(tmp_path, caplog):
    PIL.Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(SHAPE)).save(tmp_path / "a.png")
    rows = (ManifestRow(tmp_path / "a.png", "a", "p", "positive"),)
    write_manifest(Manifest(rows, (point("a", (5, 5)), point("a", (70, 5)))), tmp_path / "m.csv")
    assert not read_manifest(tmp_path / "m.csv").rows[0].complete
    assert "1 lesion outside the image: a" in caplog.text
    assert any("1 lesion outside the image: a" in notice for notice in read_data_set("manifest", tmp_path / "m.csv")[1])
    write_manifest(Manifest(rows, (point("a", (70, 5)),)), tmp_path / "m.csv")
    with pytest.raises(ManifestError, match=r"m\.csv and m\.lesions\.csv: 1 of 1 lesion lies outside its image"):
        read_manifest(tmp_path / "m.csv")


def test_many_names_are_counted():
    assert name_some("ab") == "a, b"
    assert name_some(str(number) for number in range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
