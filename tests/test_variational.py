import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors.fit_variational import fit_bottleneck, fit_variational
from unary.detectors.variational import (
    Variational,
    VariationalConfig,
    build_variational,
    measure_divergence,
    start_as_pyramid,
)
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder
from unary.errors import TrainingError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training.engine import StepsConfig

SIZE = 32
CONFIG = VariationalConfig(latent=8)
STEPS = StepsConfig(steps=150, batch_size=16, learning_rate=5e-3, weight_decay=0.0)
WIDTHS = (4, 8, 8)


def make_patches(seed, count=60):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(count * SIZE, SIZE)), 6)
    return np.clip((0.4 + 2 * smooth) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)


def as_set(tall):
    return build_patch_set(tall, grid_origins(tall.shape, GridConfig(SIZE, SIZE)), size_px=SIZE)


@pytest.fixture(scope="module")
def fitted():
    losses = []
    detector = fit_variational(
        as_set(make_patches(0)), STEPS, config=CONFIG, widths=WIDTHS, on_step=lambda _, loss: losses.append(loss)
    )
    return detector, losses


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


def test_training_lowers_the_loss_and_explains_more_than_each_patchs_mean(fitted):
    detector, losses = fitted
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    unseen = as_set(make_patches(1)).gather(slice(None))
    values = unseen / FULL_SCALE
    assert np.square(detector.examine(unseen).scores).mean() < values.var(axis=(1, 2)).mean()


def test_score_is_the_rmse_of_the_mean_reconstruction_and_can_take_the_divergence_in(fitted):
    detector, _ = fitted
    patches = as_set(make_patches(2)).gather(slice(0, 12))
    examination = detector.examine(patches)
    assert np.array_equal(examination.scores, detector.examine(patches).scores)  # nothing is drawn
    assert np.allclose(examination.scores, np.sqrt(np.square(examination.maps).mean(axis=(1, 2))), rtol=1e-5)
    values = torch.from_numpy(patches / FULL_SCALE).float()[:, None]
    mean, log_variance = (tensor.detach() for tensor in detector.network.encode(values))
    with_kl = Variational(detector.network, dataclasses.replace(CONFIG, score_kl=True)).examine(patches).scores
    error = 0.5 * np.square(examination.scores / detector.network.body.config.input_scale)
    assert np.allclose(with_kl, error + measure_divergence(mean, log_variance).numpy() / SIZE**2, rtol=1e-4)
    single = [detector.examine(patches[k : k + 1]).scores[0] for k in range(12)]
    assert np.allclose(examination.scores, single, rtol=1e-4)


def test_a_large_weight_empties_the_code():
    patches = as_set(make_patches(0))
    values = torch.from_numpy(patches.gather(slice(None)) / FULL_SCALE).float()[:, None]
    told = []
    for weight in (0.01, 1000.0):
        config = dataclasses.replace(CONFIG, kl_weight=weight)
        network = fit_variational(patches, STEPS, config=config, widths=WIDTHS).network
        with torch.inference_mode():
            told.append(network(values)[1].mean().item())
    assert told[0] > 5
    assert told[1] < told[0] / 10


def test_equal_seeds_give_equal_networks_and_a_resumed_run_too(tmp_path):
    patches, steps = as_set(make_patches(0)), dataclasses.replace(STEPS, steps=260)
    one = fit_variational(patches, steps, config=CONFIG, widths=WIDTHS)
    other = fit_variational(patches, dataclasses.replace(steps, seed=1), config=CONFIG, widths=WIDTHS)
    assert not torch.equal(weights(one), weights(other))

    def interrupt(step, _loss):
        if step == 255:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        fit_variational(patches, steps, config=CONFIG, widths=WIDTHS, checkpoint=checkpoint, on_step=interrupt)
    resumed = fit_variational(patches, steps, config=CONFIG, widths=WIDTHS, checkpoint=checkpoint)
    assert torch.equal(weights(one), weights(resumed))
    with pytest.raises(TrainingError, match="other settings"):
        fit_variational(patches, steps, config=VariationalConfig(latent=9), widths=WIDTHS, checkpoint=checkpoint)


def test_useless_input_is_refused():
    with pytest.raises(TrainingError, match="at least two"):
        fit_variational(as_set(make_patches(0, count=1)), STEPS)
    with pytest.raises(TrainingError, match="blank"):
        fit_variational(as_set(np.full((3 * SIZE, SIZE), 9, np.uint16)), STEPS)
    with pytest.raises(TrainingError, match="diverged"):
        fit_variational(as_set(make_patches(0)), dataclasses.replace(STEPS, learning_rate=1e18), widths=WIDTHS)
    for wrong in ({"latent": 0}, {"kl_weight": -1.0}, {"kl_weight": float("nan")}):
        with pytest.raises(ValueError):
            VariationalConfig(**wrong)


def test_a_code_of_sixteen_numbers_carries_the_whole_pyramid():
    config = AutoencoderConfig(SIZE, widths=(4, 8, 8), input_mean=0.4, input_scale=0.1)  # down to 4 x 4
    patches = torch.from_numpy(as_set(make_patches(0, 8)).gather(slice(None)) / FULL_SCALE).float()[:, None]
    expected = build_autoencoder(config, seed=0)(patches)
    errors = {}
    for bottleneck in (1, 4, 9, 16, 40):
        network = build_autoencoder(dataclasses.replace(config, bottleneck=bottleneck), seed=0)
        start_as_pyramid(network, seed=0)
        errors[bottleneck] = (network(patches) - expected).square().mean().item()
    assert errors[1] > errors[4] > errors[9] > 1e-6
    assert errors[16] < 1e-9
    assert errors[40] < 1e-9
    plain = build_autoencoder(config, seed=0)
    start_as_pyramid(plain, seed=0)  # nothing to do
    assert torch.equal(plain(patches), expected)


def test_a_wider_bottleneck_reconstructs_better_and_equally_twice():
    patches, unseen = as_set(make_patches(0)), as_set(make_patches(1)).gather(slice(None))
    errors = [
        fit_bottleneck(patches, bottleneck, steps=STEPS, widths=WIDTHS).examine(unseen).scores
        for bottleneck in (1, 16, 16)
    ]
    assert errors[1].mean() < 0.8 * errors[0].mean()
    assert np.array_equal(errors[1], errors[2])
    with pytest.raises(TrainingError, match="blank"):
        fit_bottleneck(as_set(np.full((3 * SIZE, SIZE), 9, np.uint16)), 4, steps=STEPS)


def test_the_default_has_the_sizes_of_the_papers_network():
    network = build_variational(VariationalConfig(), AutoencoderConfig(), seed=0)
    restored, divergence = network(torch.rand((2, 1, 128, 128), generator=torch.Generator().manual_seed(0)))
    assert restored.shape == (2, 1, 128, 128)
    assert network.encode(restored)[0].shape == (2, 32)
    assert (divergence > 0).all()
