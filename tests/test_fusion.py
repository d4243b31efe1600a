import dataclasses
import json

import numpy as np
import pytest

from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.dense_laplacian import DenseLaplacianConfig
from unary.detectors.fusion import Fusion, FusionConfig, FusionPrior, Parts
from unary.detectors.laplacian import Laplacian
from unary.detectors.prominence import Prominence
from unary.detectors.protocol import DetectorState, View
from unary.detectors.segmentation import Segmentation, SegmentationConfig
from unary.detectors.surprisal import fit_surprisal
from unary.errors import DetectorError, TrainingError
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.engine import StepsConfig

pytestmark = pytest.mark.usefixtures("few_templates")

QUIET = FitContext(progress=False)
SMALL = FusionConfig(blind_spot=BlindSpotConfig(training=StepsConfig(4, 2)))
PRIOR = dataclasses.replace(
    FusionPrior().config, blind_spot=SMALL.blind_spot, segmentation=SegmentationConfig(training=StepsConfig(3, 2))
)


def make_tissue(seed, shape=(256, 192)):
    """Noisy tissue on the left three quarters, nothing on the right."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros(shape, np.uint16)
    width = shape[1] * 3 // 4
    pixels[:, :width] = np.clip(rng.normal(26000, 800, (shape[0], width)), 1, 65535)
    return pixels


def origins_of(shape, size_px=64, step=16):
    rows = range(0, shape[0] - size_px + 1, step)
    cols = range(0, shape[1] * 3 // 4 - size_px + 1, step)
    return np.asarray([(row, col) for row in rows for col in cols], np.int32)


def gather(images, origins):
    index = np.concatenate([np.insert(origins, 0, number, axis=1) for number in range(len(images))])
    return PatchSet(tuple(images), index.astype(np.int32), 64)


def view_of(pixels):
    return View(pixels, pixels > 0)


@pytest.fixture(scope="module")
def normals():
    return gather([make_tissue(seed) for seed in range(2)], origins_of((256, 192)))


@pytest.fixture(scope="module")
def fusion(normals):
    return FusionPrior(PRIOR).fit(normals, QUIET)


def test_surprisal_is_the_empirical_tail_probability():
    values = np.random.default_rng(0).exponential(size=20000)
    surprisal = fit_surprisal(values)
    asked = np.asarray([0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 30.0])
    # Of an exponential variable P(X > x) = exp(-x), so that the surprisal of x is x itself, in the tail too.
    assert np.allclose(surprisal(asked), asked, rtol=0.1, atol=0.05)
    assert (np.diff(surprisal(np.linspace(-1, 40, 500))) >= -1e-12).all()
    with pytest.raises(TrainingError, match="at least 100"):
        fit_surprisal(values[:50])
    with pytest.raises(TrainingError, match="same score"):
        fit_surprisal(np.ones(200))
    with pytest.raises(TrainingError, match="not finite"):
        fit_surprisal(np.where(np.arange(200) == 7, np.nan, values[:200]))


def test_a_fusion_finds_what_was_planted_and_adds_up(fusion, normals):
    clean, origins = normals.images[0], origins_of((256, 192))
    pixels = clean.copy()
    pixels[100:102, 60:62] += 20000
    before = fusion.examine(view_of(clean), origins, size_px=64)
    after = fusion.examine(view_of(pixels), origins, size_px=64)
    held = ((origins <= (99, 59)) & (origins + 64 > (102, 62))).all(axis=1)
    far = (origins[:, 0] > 130) | (origins[:, 0] + 64 < 70)
    assert (after.scores[held] > before.scores[held]).all()
    # The image's own scale, which parts divide by, moves a little.
    moved = np.abs(after.scores[far] - before.scores[far])
    assert np.median(moved) < 0.5
    assert moved.max() < (after.scores[held] - before.scores[held]).max() / 2
    row, col = np.unravel_index(np.nanargmax(after.anomaly_map), after.anomaly_map.shape)
    assert abs(row - 100) <= 3
    assert abs(col - 60) <= 3
    assert np.isnan(after.anomaly_map[:, 150:]).all()
    single = [
        dataclasses.replace(fusion, parts=Parts((part,))).examine(view_of(pixels), origins, size_px=64)
        for part in fusion.parts
    ]
    assert np.allclose(sum(part.scores for part in single), after.scores)
    assert np.allclose(sum(part.anomaly_map for part in single), after.anomaly_map, rtol=1e-4, equal_nan=True)


def test_weights_count(fusion, normals):
    view, origins = view_of(normals.images[1]), origins_of((256, 192))
    doubled = Parts(tuple(dataclasses.replace(part, weight=2 * part.weight) for part in fusion.parts))
    once, twice = (
        one.examine(view, origins, size_px=64) for one in (fusion, dataclasses.replace(fusion, parts=doubled))
    )
    assert np.allclose(twice.scores, 2 * once.scores)
    assert np.allclose(twice.anomaly_map, 2 * once.anomaly_map, rtol=1e-4, equal_nan=True)


def test_a_part_of_a_fusion_is_the_detector_itself(fusion, normals):
    alone = Segmentation(PRIOR.segmentation).fit(normals, QUIET).get_state()
    (part,) = (part for part in fusion.parts if part.name == "segmentation")
    state = part.detector.get_state()
    assert state.settings == alone.settings
    assert all(np.array_equal(tensor, alone.tensors[name]) for name, tensor in state.tensors.items())


def test_any_detector_may_take_part(normals):
    config = FusionConfig((("laplacian", 2.0), ("dense_laplacian", 1.0)), dense_laplacian=DenseLaplacianConfig((2.0,)))
    fused = Fusion(config).fit(normals, QUIET)
    view, origins = view_of(make_tissue(5)), origins_of((256, 192))
    examined = fused.examine(view, origins, size_px=64)
    laplacian = Laplacian().fit(normals, QUIET).examine(view, origins, size_px=64)
    first, second = fused.parts
    assert np.array_equal(first.detector.examine(view, origins, size_px=64).scores, laplacian.scores)
    assert second.detector.config.sigmas_px == (2,)
    others = second.surprisal(second.detector.examine(view, origins, size_px=64).scores)
    assert np.allclose(examined.scores, 2 * first.surprisal(laplacian.scores) + others)
    state = fused.get_state()
    again = Fusion.from_state(DetectorState(json.loads(json.dumps(state.settings)), state.tensors))
    assert np.array_equal(again.examine(view, origins, size_px=64).scores, examined.scores)


class Particular(Prominence):
    """A part that can judge large images alone."""

    least_side_px = 150


def fuse_particular(images, shape):
    config = FusionConfig((("laplacian", 1.0), (f"{__name__}:Particular", 2.0)))
    return Fusion(config).fit(gather(images, origins_of(shape)), QUIET)


def test_where_a_part_is_silent_the_others_stand_in_as_rare_as_before():
    shape = (256, 256)
    fused = fuse_particular([make_tissue(seed, shape) for seed in range(4)], shape)
    large = fused.examine(view_of(make_tissue(8, shape)), origins_of(shape), size_px=64)
    assert large.silent == ()
    small = make_tissue(8, shape)[:140, :180]
    origins = origins_of((140, 180))
    cut = fused.examine(view_of(small), origins, size_px=64)
    assert cut.silent == (f"{__name__}:Particular",)
    # A threshold of the whole sum is exceeded by as many normal patches of cut-outs, where a part has no say.
    alone = fused.parts.members[0]
    for share in (0.5, 0.8, 0.95):
        scores = [fused.examine(view_of(make_tissue(s, shape)), origins_of(shape), size_px=64).scores for s in range(4)]
        threshold = np.quantile(np.concatenate(scores), share)
        rest = [
            alone.detector.examine(view_of(make_tissue(s, shape)), origins_of(shape), size_px=64).scores
            for s in range(4)
        ]
        told = fused.parts.stand_ins[0](alone.surprisal(np.concatenate(rest)))
        assert np.isclose((told > threshold).mean(), 1 - share, atol=0.02)
    # The order is that of the others.
    plain = alone.surprisal(alone.detector.examine(view_of(small), origins, size_px=64).scores)
    assert (np.diff(cut.scores[np.argsort(plain, kind="stable")]) >= -1e-9).all()
    state = fused.get_state()
    again = Fusion.from_state(DetectorState(json.loads(json.dumps(state.settings)), state.tensors))
    assert np.array_equal(again.examine(view_of(small), origins, size_px=64).scores, cut.scores)


def test_a_part_that_can_judge_no_image_is_left_out_and_named(caplog):
    shape = (140, 256)
    fused = fuse_particular([make_tissue(seed, shape) for seed in range(4)], shape)
    assert [part.name for part in fused.parts] == ["laplacian"]
    assert "too small for" in caplog.text
    state = fused.get_state()
    again = Fusion.from_state(DetectorState(json.loads(json.dumps(state.settings)), state.tensors))
    assert [part.name for part in again.parts] == ["laplacian"]
    alone = Fusion(FusionConfig(((f"{__name__}:Particular", 1.0),)))
    few = gather([make_tissue(0, shape)], origins_of(shape, step=4))
    with pytest.raises(TrainingError, match="no image is large enough"):
        alone.fit(few, QUIET)


def test_a_surprisal_is_inverted():
    surprisal = fit_surprisal(np.random.default_rng(1).normal(size=5000))
    values = np.linspace(-1, 6, 50)
    assert np.allclose(surprisal.invert(surprisal(values)), values, atol=0.02)
    assert np.isnan(surprisal.invert(np.asarray([np.nan]))).all()


def test_a_prior_is_not_smuggled_in(normals):
    with pytest.raises(DetectorError, match="fusion_prior"):
        Fusion(FusionConfig((("segmentation", 1.0),))).fit(normals, QUIET)


def test_too_few_patches_are_named_before_any_training(normals):
    few = normals.subset(np.arange(99))
    with pytest.raises(TrainingError, match=r"at least 100 normal patches, there are 99.*--stride-px"):
        Fusion(FusionConfig(blind_spot=BlindSpotConfig(training=StepsConfig(10**9)))).fit(few, QUIET)
    small = gather([make_tissue(0, (80, 120))], origins_of((80, 120), step=1))
    with pytest.raises(TrainingError, match="at least 96 px"):
        FusionPrior(FusionConfig((("segmentation", 1.0),))).fit(small, QUIET)


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (("prominence", 1.0), ("prominence", 2.0)),
        (("x", 1.0),),
        (("prominence", 0.0),),
        (("prominence", float("nan")),),
        (("prominence", float("inf")),),
    ],
)
def test_a_fusion_refuses_nonsense(parts):
    with pytest.raises(ValueError, match="fusion"):
        FusionConfig(parts)


def test_settings_of_what_takes_no_part_are_refused():
    with pytest.raises(ValueError, match="segmentation has settings but is no part"):
        FusionConfig(segmentation=SegmentationConfig(strongest=4))
