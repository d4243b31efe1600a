import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unary.detectors.blind_spot import BlindSpot, BlindSpotConfig, build_blind_spot, smooth_target
from unary.detectors.dense_laplacian import DenseLaplacian, scale_responses
from unary.detectors.fit_blind_spot import fit_blind_spot
from unary.detectors.fit_fusion import WITH_PRIOR, FusionConfig, NormalImage, fit_fusion
from unary.detectors.fit_segmentation import fit_segmentation
from unary.detectors.fusion import Fusion, fit_surprisal, pool_patches
from unary.detectors.fusion_parts import describe_fusion, restore_fusion
from unary.detectors.prominence import Prominence
from unary.training.threads import has_matrix_units
from unary.detectors.tissue import read_tissue
from unary.errors import BundleError, TrainingError
from unary.models.bundle import read_model, write_model
from unary.models.pipeline import FitConfig, evaluate, fit
from unary.patches.grid import GridConfig
from unary.training.engine import StepsConfig, TrainingConfig

SMALL = FusionConfig(blind_spot=StepsConfig(4, 2), segmentation=StepsConfig(3, 2))


def make_breast(seed, shape=(256, 192)):
    """Textured tissue on the left three quarters, nothing on the right; uint16."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros(shape, np.uint16)
    width = shape[1] * 3 // 4
    pixels[:, :width] = np.clip(rng.normal(26000, 800, (shape[0], width)), 1, 65535)
    return pixels


def origins_of(shape, size_px=64, step=16):
    rows = range(0, shape[0] - size_px + 1, step)
    cols = range(0, shape[1] * 3 // 4 - size_px + 1, step)
    return np.asarray([(row, col) for row in rows for col in cols], np.int32)


@pytest.fixture(scope="module")
def normals():
    return [NormalImage(make_breast(seed), origins_of((256, 192))) for seed in range(2)]


@pytest.fixture(scope="module")
def fusion(normals):
    return fit_fusion(normals, dataclasses.replace(SMALL, weights=WITH_PRIOR), size_px=64)


def test_the_rim_of_the_breast_is_no_edge():
    pixels = make_breast(0)
    pixels[:, 144] = 13000  # a column that mixes tissue and background
    tissue = read_tissue(pixels)
    assert not tissue.mask[:, 141:].any()
    assert abs(tissue.intensity[:, 141:150].mean() - tissue.intensity[:, :140].mean()) < 0.02
    assert tissue.intensity[:, 141:150].std() < tissue.intensity[:, :140].std()
    assert (tissue.noise > 0).all()


def test_tissue_survives_shapes_without_an_inside():
    tissue = read_tissue(np.zeros((40, 40), np.uint16))
    assert not tissue.mask.any()
    assert np.isfinite(tissue.intensity).all()
    thin = np.zeros((40, 40), np.uint16)
    thin[:, 20:23] = 30000
    assert read_tissue(thin).mask.sum() == 120


@pytest.mark.parametrize("hole", [3, 4])
def test_blind_spot_prediction_does_not_depend_on_what_it_predicts(hole):
    network = build_blind_spot(BlindSpotConfig(hole_px=hole), seed=3)
    structure = torch.randn(1, 1, 41, 41, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mean, log_spread = network(structure)
    (mean[0, 0, 20, 20] + log_spread[0, 0, 20, 20]).backward()
    depends = structure.grad[0, 0] != 0
    blind = hole - 2
    assert not depends[20 - blind : 21 + blind, 20 - blind : 21 + blind].any()
    assert depends[20, 20 + hole - 1]
    (target_gradient,) = torch.autograd.grad(smooth_target(structure)[0, 0, 20, 20], structure)
    reach = np.argwhere(target_gradient[0, 0].numpy() != 0)
    assert np.abs(reach - 20).max() <= blind, "the target must lie in the blind area"


def assert_alike(one, other):
    """Equal, but where a sum in another order rounded to the neighbouring bfloat16."""
    assert np.abs(one - other).max() < 0.02 * other.std()
    assert (np.abs(one - other) > 1e-4).mean() < 0.01


def compute_in_float32(network, structure):
    """The network as one would write it, without any rounding: the whole window with a hole in the weights."""
    config = network.config
    features = structure
    for layer in network.local:
        features = F.relu(F.conv2d(features, layer.weight, layer.bias, padding=1))
    centre, hole = config.window_px // 2, config.hole_px
    around = torch.ones(config.window_px, config.window_px)
    around[centre - hole : centre + hole + 1, centre - hole : centre + hole + 1] = 0
    gathered = F.relu(F.conv2d(features, network.wide.weight * around, network.wide.bias, padding=centre))
    first, last = network.point
    predicted = last(F.relu(first(gathered)))
    return predicted[:, :1], predicted[:, 1:].clamp(-6, 6)


@pytest.mark.parametrize("config", [BlindSpotConfig(), BlindSpotConfig(4, 5, window_px=11, hole_px=3)])
@pytest.mark.parametrize("matrix_units", [True, False])
def test_the_network_is_what_it_says_with_and_without_matrix_units(config, matrix_units, monkeypatch):
    if matrix_units and not has_matrix_units():
        pytest.skip("this processor has none")
    monkeypatch.setattr("unary.detectors.blind_spot.has_matrix_units", lambda: matrix_units)
    network = build_blind_spot(config, seed=1).eval()
    structure = torch.randn(2, 1, 40, 31, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, scored = compute_in_float32(network, structure), network(structure)
    for answers in (scored, network(structure)):  # the second as in training
        for got, right in zip(answers, expected, strict=True):
            assert got.dtype == torch.float32
            assert (got - right).abs().max() < 0.2 * right.std()
            assert (got - right).std() < 0.05 * right.std()


def test_processors_without_matrix_units_give_the_same_scores(monkeypatch):
    if not has_matrix_units():
        pytest.skip("nothing to compare with")
    tissue = read_tissue(make_breast(1, (200, 300)))
    detector = BlindSpot(build_blind_spot(BlindSpotConfig(), seed=0).eval())
    fast = detector.map_tissue(tissue)
    monkeypatch.setattr("unary.detectors.blind_spot.has_matrix_units", lambda: False)
    slow = detector.map_tissue(tissue)
    spread = slow[tissue.mask].std()
    assert np.abs(slow - fast).max() < 0.02 * spread, "a sum that rounds the other way"
    assert (np.abs(slow - fast) > 0.002 * spread).mean() < 0.01


def test_tiles_change_nothing():
    tissue = read_tissue(make_breast(1, (200, 300)))
    detector = BlindSpot(build_blind_spot(BlindSpotConfig(), seed=0).eval())
    tiled = detector.map_tissue(tissue)
    shifted = dataclasses.replace(
        tissue, intensity=tissue.intensity[40:], mask=tissue.mask[40:], noise=tissue.noise[40:]
    )
    inner = (slice(40, None), slice(40, -40))
    assert_alike(detector.map_tissue(shifted)[inner], tiled[40:][inner])


def test_training_is_repeatable_resumes_exactly_and_lowers_the_loss(normals, tmp_path):
    tissues = [read_tissue(normal.pixels) for normal in normals]
    losses = []
    first = fit_blind_spot(tissues, StepsConfig(60, 2, seed=5), on_step=lambda _step, loss: losses.append(loss))
    again = fit_blind_spot(tissues, StepsConfig(60, 2, seed=5))
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    checkpoint = tmp_path / "state"
    steps = StepsConfig(252, 1, seed=1)

    class Stop(Exception):
        pass

    def interrupt(step, _loss):
        if step == 251:
            raise Stop

    with pytest.raises(Stop):
        fit_blind_spot(tissues, steps, checkpoint=checkpoint, on_step=interrupt)
    resumed_from = []
    resumed = fit_blind_spot(tissues, steps, checkpoint=checkpoint, on_step=lambda step, _: resumed_from.append(step))
    whole = fit_blind_spot(tissues, steps)
    assert resumed_from == [251, 252]
    assert all(torch.equal(a, b) for a, b in zip(resumed.network.parameters(), whole.network.parameters(), strict=True))
    with pytest.raises(TrainingError, match="other settings"):
        fit_blind_spot(tissues[:1], steps, checkpoint=checkpoint)


def test_divergence_and_too_small_images_are_named(normals):
    tissues = [read_tissue(normal.pixels) for normal in normals]
    with pytest.raises(TrainingError, match="diverged"):
        fit_blind_spot(tissues, StepsConfig(30, 2, learning_rate=1e30))
    with pytest.raises(TrainingError, match="at least 96 px"):
        fit_segmentation([read_tissue(make_breast(0, (80, 80)))], StepsConfig(1, 1))
    with pytest.raises(TrainingError, match="no normal image"):
        fit_fusion([], SMALL, size_px=64)


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


def test_pooling_against_sorting():
    answer = np.random.default_rng(1).normal(size=(50, 70)).astype(np.float32)
    origins = np.asarray([(0, 0), (10, 20), (40, 60)], np.int32)
    pooled = pool_patches(answer, origins, size_px=16, strongest=5)
    for value, (row, col) in zip(pooled, origins, strict=True):
        assert np.isclose(value, np.sort(answer[row : row + 16, col : col + 16].ravel())[-5:].mean())
    means = pool_patches(answer, origins, size_px=16, strongest=None)
    assert np.isclose(means[1], answer[10:26, 20:36].mean())


def test_prominence_ranks_regions_within_their_own_breast():
    pixels = make_breast(2)
    pixels[64:128, 32:96] += 6000
    tissue = read_tissue(pixels)
    standing = Prominence(region_px=8).map_tissue(tissue)
    assert standing[96, 64] > 2
    assert abs(np.median(standing[tissue.mask])) < 0.5
    brighter = read_tissue(np.where(pixels > 0, pixels // 2 + 9000, 0).astype(np.uint16))
    rescaled = Prominence(region_px=8).map_tissue(brighter)
    assert np.allclose(rescaled[tissue.mask], standing[tissue.mask], atol=0.05), "exposure must not matter"
    flat = np.zeros((64, 64), np.uint16)
    assert not Prominence().map_tissue(read_tissue(flat)).any()


def test_dense_laplacian_answers_to_a_speck_of_either_width():
    pixels = make_breast(3)
    pixels[100:102, 60:62] += 9000
    pixels[180:186, 90:96] += 6000
    responses = scale_responses(read_tissue(pixels))
    detector = DenseLaplacian((0.0,) * len(responses), (1.0,) * len(responses))
    answer = detector.map_tissue(read_tissue(pixels))
    strongest = {tuple(place) for place in np.argwhere(answer > 0.8 * answer[182, 92])}
    assert answer[100:102, 60:62].max() > 3
    assert any(180 <= row < 186 and 90 <= col < 96 for row, col in strongest)


def test_a_fusion_finds_what_was_planted_and_adds_up(fusion, normals):
    pixels = normals[0].pixels.copy()
    pixels[100:102, 60:62] += 20000
    origins = normals[0].origins
    before = fusion.examine_image(normals[0].pixels, origins, size_px=64)
    after = fusion.examine_image(pixels, origins, size_px=64)
    held = ((origins <= (99, 59)) & (origins + 64 > (102, 62))).all(axis=1)
    far = (origins[:, 0] > 130) | (origins[:, 0] + 64 < 70)
    assert (after.scores[held] > before.scores[held]).all()
    moved = np.abs(
        after.scores[far] - before.scores[far]
    )  # the image's own scale, which parts divide by, moves a little
    assert np.median(moved) < 0.3
    assert moved.max() < (after.scores[held] - before.scores[held]).max() / 2
    row, col = np.unravel_index(np.nanargmax(after.anomaly_map), after.anomaly_map.shape)
    assert abs(row - 100) <= 3
    assert abs(col - 60) <= 3
    assert np.isnan(after.anomaly_map[:, 150:]).all()
    single = [Fusion((dataclasses.replace(part),)).examine_image(pixels, origins, size_px=64) for part in fusion.parts]
    assert np.allclose(sum(part.scores for part in single), after.scores)


def test_a_fusion_is_stored_whole(fusion, normals):
    restored = restore_fusion(*describe_fusion(fusion))
    one = fusion.examine_image(normals[1].pixels, normals[1].origins, size_px=64)
    two = restored.examine_image(normals[1].pixels, normals[1].origins, size_px=64)
    assert np.array_equal(one.scores, two.scores)
    assert [part.weight for part in restored.parts] == [weight for _, weight in WITH_PRIOR]


@pytest.mark.parametrize(
    "weights", [(), (("laplacian", 1.0), ("laplacian", 2.0)), (("x", 1.0),), (("laplacian", 0.0),)]
)
def test_a_fusion_refuses_nonsense(weights):
    with pytest.raises(ValueError, match="fusion"):
        FusionConfig(weights=weights)


def test_the_default_model_fits_evaluates_and_reads_back(phantoms, normals, tmp_path):
    training = TrainingConfig(seed=1)
    patients = sorted({row.patient_id for row in phantoms.rows if row.label == "negative"})
    train = phantoms.select(tuple(row for row in phantoms.rows if row.patient_id in patients[:5]))
    test = phantoms.select(tuple(row for row in phantoms.rows if row.patient_id not in patients[:5]))
    config = FitConfig(grid=GridConfig(64, 16), training=training, fusion=SMALL)
    model = fit(train, config, progress=False)
    assert model.name == "fusion"
    assert model.preparation.working_spacing_mm == 0.14
    write_model(model, tmp_path / "model")
    read = read_model(tmp_path / "model")
    one, two = (evaluate(either, test, progress=False).patches for either in (model, read))
    assert np.array_equal(one.scores["fusion"], two.scores["fusion"])
    weights = tmp_path / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(BundleError, match="damaged"):
        read_model(tmp_path / "model")


def test_scores_of_a_file_equal_scores_of_a_collection(phantoms):
    from unary.images.reading import read_image
    from unary.models.scoring import score_image

    negatives = phantoms.select(tuple(row for row in phantoms.rows if row.label == "negative"))
    model = fit(negatives, FitConfig(grid=GridConfig(64, 16), fusion=SMALL), progress=False)
    table = evaluate(model, phantoms, allow_seen=True, progress=False).patches
    row = next(row for row in phantoms.rows if row.label == "negative")
    scores = score_image(model, read_image(row.path)).scores
    assert np.array_equal(np.sort(table.scores["fusion"][table.image == row.image_id]), np.sort(scores))
