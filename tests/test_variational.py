import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors.protocol import View
from unary.detectors.scoring import count_weights, score_patches
from unary.detectors.variational import Variational, VariationalConfig, VariationalNetwork, measure_divergence
from unary.detectors.wei2018.autoencoder import AutoencoderConfig
from unary.errors import DetectorError, TrainingError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training import engine
from unary.training.context import FitContext
from unary.training.engine import StepsConfig

SIZE = 32
STEPS = StepsConfig(steps=150, batch_size=16, learning_rate=5e-3, weight_decay=0.0)
CONFIG = VariationalConfig(latent=8, widths=(4, 8, 8), training=STEPS)
QUIET = FitContext(progress=False)


def make_patches(seed, count=60):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(count * SIZE, SIZE)), 6)
    return np.clip((0.4 + 2 * smooth) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)


def as_set(tall):
    return build_patch_set(tall, grid_origins(tall.shape, GridConfig(SIZE, SIZE)), size_px=SIZE)


@pytest.fixture(scope="module")
def fitted():
    return Variational(CONFIG).fit(as_set(make_patches(0)), QUIET)


def weights(detector):
    return torch.cat([parameter.detach().ravel() for parameter in detector.network.parameters()])


def test_divergence_agrees_with_torch_and_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn((2, 50, 4), generator=generator)
    one = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0)).sum(dim=1)
    divergence = measure_divergence(mean, log_variance)
    assert torch.allclose(divergence, expected, rtol=1e-5)
    assert (divergence >= 0).all()
    assert measure_divergence(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_training_explains_more_than_each_patchs_mean(fitted):
    unseen = as_set(make_patches(1)).gather(slice(None))
    values = unseen / FULL_SCALE
    assert np.square(fitted.examine_patches(unseen).scores).mean() < values.var(axis=(1, 2)).mean()


def test_score_is_the_rmse_of_the_mean_reconstruction_and_can_take_the_divergence_in(fitted):
    detector, patches = fitted, as_set(make_patches(2)).gather(slice(0, 12))
    examination = detector.examine_patches(patches)
    assert np.array_equal(examination.scores, detector.examine_patches(patches).scores)  # nothing is drawn
    assert np.allclose(examination.scores, np.sqrt(np.square(examination.maps).mean(axis=(1, 2))), rtol=1e-5)
    values = torch.from_numpy(patches / FULL_SCALE).float()[:, None]
    mean, log_variance = (tensor.detach() for tensor in detector.network.encode(values))
    with_kl = Variational(dataclasses.replace(CONFIG, score_kl=True), detector.network).examine_patches(patches).scores
    error = 0.5 * np.square(examination.scores / detector.network.body.config.input_scale)
    assert np.allclose(with_kl, error + measure_divergence(mean, log_variance).numpy() / SIZE**2, rtol=1e-4)
    single = [detector.examine_patches(patches[k : k + 1]).scores[0] for k in range(12)]
    assert np.allclose(examination.scores, single, rtol=1e-4)


def test_a_large_weight_empties_the_code():
    patches = as_set(make_patches(0))
    values = torch.from_numpy(patches.gather(slice(None)) / FULL_SCALE).float()[:, None]
    told = []
    for weight in (0.01, 1000.0):
        config = dataclasses.replace(CONFIG, kl_weight=weight)
        network = Variational(config).fit(patches, QUIET).network
        with torch.inference_mode():
            told.append(network(values)[1].mean().item())
    assert told[0] > 5
    assert told[1] < told[0] / 10


def test_equal_seeds_give_equal_networks_and_a_resumed_run_too(tmp_path, monkeypatch):
    patches, config = (
        as_set(make_patches(0)),
        dataclasses.replace(CONFIG, training=dataclasses.replace(STEPS, steps=260)),
    )
    one = Variational(config).fit(patches, QUIET)
    other = Variational(config).fit(patches, dataclasses.replace(QUIET, seed=1))
    assert not torch.equal(weights(one), weights(other))
    keep, context = engine.save_checkpoint, FitContext(checkpoint=tmp_path / "state", progress=False)

    def interrupt(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Variational(config).fit(patches, context)
    assert torch.equal(weights(one), weights(Variational(config).fit(patches, context)))
    assert len(list(tmp_path.iterdir())) == 1
    Variational(dataclasses.replace(CONFIG, latent=9)).fit(patches, context)
    assert len(list(tmp_path.iterdir())) == 2, "another code is another network"


def test_neither_fit_nor_scores_depend_on_threads():
    patches, config = as_set(make_patches(0)), dataclasses.replace(CONFIG, training=dataclasses.replace(STEPS, steps=5))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            detector = Variational(config).fit(patches, QUIET)
            found.append((weights(detector), torch.from_numpy(score_patches(detector, patches))))
    finally:
        torch.set_num_threads(before)
    for trained, scores in found[1:]:
        assert torch.equal(trained, found[0][0])
        assert torch.equal(scores, found[0][1])


def test_useless_input_is_refused():
    def fit(patches, **training):
        return Variational(dataclasses.replace(CONFIG, training=dataclasses.replace(STEPS, **training))).fit(
            patches, QUIET
        )

    with pytest.raises(TrainingError, match="at least two"):
        fit(as_set(make_patches(0, count=1)))
    with pytest.raises(TrainingError, match="blank"):
        fit(as_set(np.full((3 * SIZE, SIZE), 9, np.uint16)))
    with pytest.raises(TrainingError, match="diverged"):
        fit(as_set(make_patches(0)), learning_rate=1e18)
    with pytest.raises(TrainingError, match="needs patches of 64 px or more"):
        Variational(VariationalConfig(widths=(2,) * 7)).fit(as_set(make_patches(0)), QUIET)
    for wrong in ({"latent": 0}, {"kl_weight": -1.0}, {"kl_weight": float("nan")}, {"widths": ()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VariationalConfig(**wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named():
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(STEPS, device="cuda"))
    with pytest.raises(TrainingError, match="device: torch cannot use 'cuda' here"):
        Variational(config).fit(as_set(make_patches(0)), QUIET)


def test_the_state_survives_json_bit_for_bit(fitted):
    patches, state = as_set(make_patches(3)), fitted.get_state()
    again = Variational.from_state(dataclasses.replace(state, settings=json.loads(json.dumps(state.settings))))
    assert again.config == CONFIG
    assert torch.equal(weights(again), weights(fitted))
    assert np.array_equal(score_patches(again, patches), score_patches(fitted, patches))
    assert count_weights(fitted) == sum(parameter.numel() for parameter in fitted.network.parameters())
    without = dict(state.tensors)
    without.pop("spread.bias")
    with pytest.raises(ValueError, match=r"spread\.bias"):
        Variational.from_state(dataclasses.replace(state, tensors=without))
    assert len(repr(fitted)) < 300


def test_what_it_cannot_do_is_said(fitted):
    view, origins = View(make_patches(0, count=1), np.ones((SIZE, SIZE), bool)), np.zeros((1, 2), np.int32)
    with pytest.raises(DetectorError, match="fit it first"):
        Variational().examine(view, origins, size_px=SIZE)
    with pytest.raises(DetectorError, match="patches of 32 px and cannot examine those of 16 px"):
        fitted.examine(view, origins, size_px=16)


def test_the_default_has_the_sizes_of_the_papers_network():
    sizes = AutoencoderConfig(widths=VariationalConfig().widths, bottleneck=VariationalConfig().latent)
    network = VariationalNetwork(sizes, seed=0)
    restored, divergence = network(torch.rand((2, 1, 128, 128), generator=torch.Generator().manual_seed(0)))
    assert restored.shape == (2, 1, 128, 128)
    assert network.encode(restored)[0].shape == (2, 32)
    assert (divergence > 0).all()
