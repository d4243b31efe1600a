import numpy as np
import pytest
from scipy import ndimage

from unary.datasets.phantom import PhantomConfig, build_phantom
from unary.datasets.simulated.insertion import insert_lesion, simulate_lesion
from unary.datasets.simulated.plans import LESION_CLASSES, MASSES, RANGES, LesionPlan, draw_plan
from unary.datasets.simulated.tissue import measure_tissue
from unary.errors import ImageError
from unary.evaluation.matching import group_targets
from unary.patches.lesions import rasterise_lesion
from unary.profiles import DEFAULT

SPACING = 0.2


@pytest.fixture(scope="module")
def phantom():
    return build_phantom(PhantomConfig(), rng=np.random.default_rng(3))


@pytest.fixture(scope="module")
def tissue(phantom):
    return measure_tissue(phantom.pixels, phantom.mask, phantom.spacing_mm)


def plan_small(kind):
    mass = kind in MASSES
    single = mass or kind in ("speck", "ring")
    return LesionPlan(kind, 1 if single else 8, 0 if single else 10.0, 9.0 if mass else 0.8, 1.5 if mass else 8.0)


@pytest.mark.parametrize("kind", LESION_CLASSES)
def test_nothing_changes_outside_the_lesion_and_what_changes_is_tissue(phantom, tissue, kind):
    before = phantom.pixels.copy()
    found = insert_lesion(phantom.pixels, tissue, plan_small(kind), np.random.default_rng(1), value_range=(0, 4095))
    assert np.array_equal(phantom.pixels, before), "the image must stay as it is"
    assert found.pixels.dtype == before.dtype
    assert np.array_equal(found.pixels[~found.changed], before[~found.changed])
    assert phantom.mask[found.changed].all()
    assert found.pixels.max() <= 4095
    assert found.inside.any()
    gained = found.pixels.astype(float) - before
    beside = gained[found.changed & ~found.inside].sum() / max((found.changed & ~found.inside).sum(), 1)
    assert gained[found.inside].mean() > 1.5 * abs(beside)


@pytest.mark.parametrize("kind", LESION_CLASSES)
def test_equal_generators_draw_equal_lesions_and_others_others(phantom, tissue, kind):
    one, two, other = (
        insert_lesion(phantom.pixels, tissue, plan_small(kind), np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    assert np.array_equal(one.pixels, two.pixels)
    assert one.lesions == two.lesions
    assert not np.array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("contrast", [4.0, 12.0])
def test_a_speck_is_as_many_times_brighter_than_the_noise_as_was_said(phantom, tissue, contrast):
    values = phantom.pixels.astype(np.float32)
    for seed in range(8):
        plan = LesionPlan("speck", 1, 0, 0.8, contrast)
        found = insert_lesion(values, tissue, plan, np.random.default_rng(seed))
        gained = ndimage.uniform_filter(found.pixels - values, tissue.block_px)
        assert gained.max() == pytest.approx(contrast * tissue.find_noise(*found.lesions[0].points[0]), rel=1e-3)


@pytest.mark.parametrize("kind", sorted(MASSES))
def test_the_body_of_a_mass_is_as_many_spreads_brighter_as_was_said(phantom, tissue, kind):
    values = phantom.pixels.astype(np.float32)
    found = insert_lesion(values, tissue, LesionPlan(kind, 1, 0, 9.0, 2.0), np.random.default_rng(2))
    gained = (found.pixels - values)[found.inside].mean()
    assert gained == pytest.approx(2.0 * tissue.spread, rel=0.25 if kind == "spiculated_mass" else 0.05)
    diameter = 2 * np.sqrt(found.inside.sum() / np.pi) * tissue.spacing_mm
    assert diameter == pytest.approx(9.0, rel=0.25)


@pytest.mark.parametrize("kind", LESION_CLASSES)
def test_a_lesion_is_annotated_where_it_is_and_is_one_target(phantom, tissue, kind):
    found = insert_lesion(phantom.pixels, tissue, plan_small(kind), np.random.default_rng(4))
    drawn = np.zeros(found.inside.shape, bool)
    for lesion in found.lesions:
        inside, (row, col) = rasterise_lesion(lesion, drawn.shape)
        drawn[row : row + inside.shape[0], col : col + inside.shape[1]] |= inside
    grown = ndimage.binary_dilation(drawn, iterations=5)
    assert (found.inside & grown).sum() > 0.9 * found.inside.sum()
    spacing = (phantom.spacing_mm, phantom.spacing_mm)
    targets = group_targets(found.lesions, drawn.shape, reading=DEFAULT.reading, spacing_mm=spacing)
    assert len(targets) == 1
    assert targets[0].group == ("mass" if kind in MASSES else "calcification")
    assert targets[0].cluster == (plan_small(kind).count > 1)
    assert len(found.lesions) == (plan_small(kind).count + 1 if plan_small(kind).count > 1 else 1)


@pytest.mark.parametrize("kind", LESION_CLASSES)
def test_plans_keep_to_their_ranges(kind):
    rng = np.random.default_rng(0)
    ranges = RANGES[kind]
    for _ in range(200):
        plan = draw_plan(kind, rng)
        assert ranges.count[0] <= plan.count <= ranges.count[1]
        for value, (low, high) in (
            (plan.spread_mm, ranges.spread_mm),
            (plan.size_mm, ranges.size_mm),
            (plan.contrast, ranges.contrast),
        ):
            assert low * 0.999 <= value <= high * 1.001


def test_lesions_keep_away_from_the_rim_and_from_each_other(phantom, tissue):
    depth = ndimage.distance_transform_edt(np.pad(phantom.mask, 1))[1:-1, 1:-1] * phantom.spacing_mm
    centres = []
    for seed in range(4):
        plan = LesionPlan("pleomorphic_cluster", 5, 5.0, 0.3, 5.0)
        rng = np.random.default_rng(seed)
        found = insert_lesion(phantom.pixels, tissue, plan, rng, away_from=centres, apart_mm=8.0)
        row, col = (round(place) for place in found.centre)
        assert depth[row, col] > plan.reach_mm + 1
        for other in centres:
            assert np.hypot(*np.subtract(other, found.centre)) * phantom.spacing_mm > 8.0
        centres.append(found.centre)


def test_noise_and_blur_of_an_image_are_measured():
    rng = np.random.default_rng(0)
    for blur in (0.5, 0.8, 1.1):
        grain = ndimage.gaussian_filter(rng.standard_normal((512, 512)), blur)
        values = 1000 + 200 * np.linspace(0, 1, 512)[:, None] + 10 * grain / grain.std()
        found = measure_tissue(values, np.ones((512, 512), bool), 0.14)
        assert found.blur_px == pytest.approx(blur, abs=0.12)
        assert np.median(found.grain_at) == pytest.approx(10, rel=0.15)
        assert 5 < np.median(found.noise) < 10.5  # without what the high-pass takes


@pytest.mark.parametrize("shape", [(60, 60), (60, 300), (300, 64), (65, 65)])
def test_a_small_image_is_measured_too(shape):
    rng = np.random.default_rng(2)
    values = 1000 + 200 * np.linspace(0, 1, shape[1]) + 10 * rng.standard_normal(shape)
    found = measure_tissue(values, np.ones(shape, bool), 0.14)
    assert 0.3 <= found.blur_px <= 1.5
    assert np.isfinite(found.grain_at).all()
    assert np.median(found.grain_at) > 0


def test_contrast_means_the_same_at_half_the_pixel_spacing():
    rng = np.random.default_rng(1)
    fine = 1000 + 100 * np.linspace(0, 1, 800)[:, None] + 20 * rng.standard_normal((800, 800))
    coarse = fine.reshape(400, 2, 400, 2).mean(axis=(1, 3))
    one = measure_tissue(fine, np.ones(fine.shape, bool), 0.07)
    two = measure_tissue(coarse, np.ones(coarse.shape, bool), 0.14)
    assert np.median(one.noise) == pytest.approx(np.median(two.noise), rel=1e-6)
    assert one.spread == pytest.approx(two.spread, rel=1e-6)


def test_images_without_tissue_or_room_are_refused(phantom, tissue):
    with pytest.raises(ImageError, match="no tissue to put a lesion into"):
        measure_tissue(phantom.pixels, np.zeros(phantom.pixels.shape, bool), 0.1)
    with pytest.raises(ImageError, match="one single brightness"):
        measure_tissue(np.full((200, 200), 7), np.ones((200, 200), bool), 0.1)
    with pytest.raises(ImageError, match="no place for a irregular_mass of 400 mm"):
        insert_lesion(phantom.pixels, tissue, LesionPlan("irregular_mass", 1, 0, 400.0, 1.0), np.random.default_rng(0))
    with pytest.raises(ValueError, match="measured on another image"):
        simulate_lesion(phantom.pixels[:-1], tissue, "speck", np.random.default_rng(0))


@pytest.mark.parametrize(
    "wrong",
    [
        ("blob", 1, 0, 1, 1),
        ("speck", 0, 0, 1, 1),
        ("ring", 3, 0, 1, 1),
        ("ring", 1, 0, -1, 1),
        ("irregular_mass", 2, 1, 1, 1),
    ],
)
def test_nonsense_is_no_plan(wrong):
    with pytest.raises(ValueError):
        LesionPlan(*wrong)
