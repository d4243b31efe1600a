import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import unary.detectors.blind_spot
from unary.detectors.blind_spot import (
    BlindSpot,
    BlindSpotConfig,
    build_blind_spot,
    fine_structure,
    measure_surprise,
    smooth_target,
    surprise_loss,
)
from unary.detectors.tissue import scan_tissue
from unary.errors import TrainingError
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.engine import StepsConfig
from unary.training.threads import has_matrix_units


def make_tissue(seed, shape=(256, 192)):
    """Noisy tissue on the left three quarters, nothing on the right."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros(shape, np.uint16)
    width = shape[1] * 3 // 4
    pixels[:, :width] = np.clip(rng.normal(26000, 800, (shape[0], width)), 1, 65535)
    return pixels


def scan(pixels):
    return scan_tissue(pixels, pixels > 0)


@pytest.fixture(scope="module")
def normals():
    return PatchSet((make_tissue(0), make_tissue(1)), np.array([[0, 0, 0], [1, 0, 0]], np.int32), 64)


@pytest.fixture(scope="module")
def network():
    return build_blind_spot(BlindSpotConfig(), seed=0).eval()


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


def test_processors_without_matrix_units_give_the_same_scores(network, monkeypatch):
    if not has_matrix_units():
        pytest.skip("nothing to compare with")
    tissue = scan(make_tissue(1, (200, 300)))
    fast = measure_surprise(network, tissue)
    monkeypatch.setattr("unary.detectors.blind_spot.has_matrix_units", lambda: False)
    slow = measure_surprise(network, tissue)
    spread = slow[tissue.mask].std()
    assert np.abs(slow - fast).max() < 0.02 * spread, "a sum that rounds the other way"
    assert (np.abs(slow - fast) > 0.002 * spread).mean() < 0.01


def test_tiles_change_nothing(network):
    tissue = scan(make_tissue(1, (200, 300)))
    tiled = measure_surprise(network, tissue)
    shifted = dataclasses.replace(tissue, intensity=tissue.intensity[40:], mask=tissue.mask[40:])
    inner = (slice(40, None), slice(40, -40))
    assert_alike(measure_surprise(network, shifted)[inner], tiled[40:][inner])


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True))


def test_training_lowers_the_loss(normals):
    context = FitContext(seed=5, progress=False)
    trained = BlindSpot(BlindSpotConfig(training=StepsConfig(60, 2))).fit(normals, context)
    structure = fine_structure(torch.from_numpy(scan(make_tissue(7)).intensity)[None, None])
    untrained = build_blind_spot(BlindSpotConfig(), seed=5)
    with torch.no_grad():
        before, after = (
            float(surprise_loss(smooth_target(structure), *network(structure)))
            for network in (untrained, trained.network)
        )
    assert after < before - 0.1


def test_training_resumes_exactly(normals, tmp_path, monkeypatch):
    detector = BlindSpot(BlindSpotConfig(training=StepsConfig(252, 1)))
    context = FitContext(seed=1, checkpoint=tmp_path / "state", progress=False)
    draw, drawn = unary.detectors.blind_spot.draw_crop, []

    def interrupt(*arguments, **options):
        if len(drawn) == 251:
            raise KeyboardInterrupt
        drawn.append(None)
        return draw(*arguments, **options)

    monkeypatch.setattr(unary.detectors.blind_spot, "draw_crop", interrupt)
    with pytest.raises(KeyboardInterrupt):
        detector.fit(normals, context)
    drawn.clear()
    resumed = detector.fit(normals, context)
    assert len(drawn) == 2, "it goes on after step 250"
    drawn.clear()
    again = detector.fit(normals, context)
    assert not drawn, "what is trained is not trained again"
    monkeypatch.undo()
    whole = detector.fit(normals, FitContext(seed=1, progress=False))
    assert same_weights(resumed, whole)
    assert same_weights(again, whole)
    drawn.extend([None] * 251)
    monkeypatch.setattr(unary.detectors.blind_spot, "draw_crop", interrupt)
    with pytest.raises(KeyboardInterrupt):  # other images, another training
        detector.fit(normals.subset(np.array([0])), context)


def test_divergence_is_named(normals):
    with pytest.raises(TrainingError, match="diverged"):
        BlindSpot(BlindSpotConfig(training=StepsConfig(30, 2, learning_rate=1e30))).fit(
            normals, FitContext(progress=False)
        )


@pytest.mark.parametrize(
    "wrong", [{"window_px": 12}, {"hole_px": 2}, {"hole_px": 6}, {"features": 0}, {"strongest": 0}]
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BlindSpotConfig(**wrong)
