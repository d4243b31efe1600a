import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder
from unary.errors import TrainingError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training.engine import TrainingConfig, train_autoencoder

SMALL = {"widths": (2, 4)}


def make_patches(seed=0, count=30, size=16):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(count * size, size)), 3)
    pixels = np.clip((0.4 + smooth) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)
    return build_patch_set(pixels, grid_origins(pixels.shape, GridConfig(size, size)), size_px=size)


def weights(trained):
    return torch.cat([parameter.detach().ravel() for parameter in trained.network.parameters()])


def test_loss_falls_below_both_baselines_and_history_tells():
    trained = train_autoencoder(make_patches(), TrainingConfig(epochs=60, batch_size=10, learning_rate=5e-3), **SMALL)
    history = trained.history
    assert len(history.losses) == len(history.dead_units) == 60
    assert history.losses[-1] < history.losses[0] / 2
    assert history.losses[-1] < history.patch_mean_error < history.mean_patch_error
    assert history.unexplained == pytest.approx(history.losses[-1] / history.patch_mean_error)
    assert all(0 <= share <= 1 for share in history.dead_units)


def test_baselines_agree_with_numpy():
    patches = make_patches(1)
    values = patches.gather(slice(None)).reshape(len(patches), -1) / FULL_SCALE
    history = train_autoencoder(patches, TrainingConfig(epochs=1), **SMALL).history
    assert history.mean_patch_error == pytest.approx(values.var())
    assert history.patch_mean_error == pytest.approx(values.var(axis=1).mean())


def test_one_step_is_equation_2_and_adam():
    patches = make_patches(2, count=4)
    trained = train_autoencoder(patches, TrainingConfig(epochs=1, batch_size=4, seed=7), **SMALL)
    network = build_autoencoder(trained.network.config, seed=7)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.999))
    batch = torch.from_numpy(patches.gather(slice(None)) / FULL_SCALE).float()[:, None]
    loss = (network(batch) - batch).square().sum() / batch.numel()
    loss.backward()
    optimizer.step()
    expected = torch.cat([parameter.detach().ravel() for parameter in network.parameters()])
    assert torch.allclose(weights(trained), expected, atol=1e-6)
    assert trained.history.losses[0] == pytest.approx(loss.item(), rel=1e-4)


def test_the_defaults_are_the_papers():
    config = TrainingConfig()
    stated = (config.epochs, config.batch_size, config.learning_rate, config.beta1, config.beta2)
    assert stated == (500, 200, 1e-3, 0.9, 0.999)


@pytest.mark.parametrize("compiled", [True, False])
def test_interrupted_and_resumed_ends_with_the_same_weights(compiled, tmp_path):
    patches, config = make_patches(), TrainingConfig(epochs=6, batch_size=8, seed=3, compiled=compiled)
    whole = train_autoencoder(patches, config, **SMALL)

    def interrupt(epoch, _loss):
        if epoch == 4:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(patches, config, checkpoint=checkpoint, on_epoch=interrupt, **SMALL)
    epochs = []
    resumed = train_autoencoder(
        patches, config, checkpoint=checkpoint, on_epoch=lambda epoch, _: epochs.append(epoch), **SMALL
    )
    assert epochs == [5, 6]
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.history == resumed.history
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_run_may_go_on_without_the_compiler_it_began_with(tmp_path):
    patches, config = make_patches(), TrainingConfig(epochs=4, batch_size=8)
    whole = train_autoencoder(patches, config, **SMALL)
    checkpoint = tmp_path / "state"
    train_autoencoder(patches, dataclasses.replace(config, epochs=2), checkpoint=checkpoint, **SMALL)
    without = dataclasses.replace(config, compiled=False)
    resumed = train_autoencoder(patches, without, checkpoint=checkpoint, **SMALL)
    assert np.allclose(whole.history.losses, resumed.history.losses, rtol=1e-4)
    assert torch.allclose(weights(whole), weights(resumed), rtol=1e-3, atol=1e-4)


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    train_autoencoder(make_patches(), TrainingConfig(epochs=1), **SMALL)
    assert torch.get_num_threads() == before


def test_the_seed_decides():
    patches, config = make_patches(), TrainingConfig(epochs=2)
    one, same = (train_autoencoder(patches, config, **SMALL) for _ in range(2))
    other = train_autoencoder(patches, dataclasses.replace(config, seed=1), **SMALL)
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))


def test_a_foreign_or_broken_checkpoint_is_refused(tmp_path):
    checkpoint = tmp_path / "state"
    train_autoencoder(make_patches(), TrainingConfig(epochs=1), checkpoint=checkpoint, **SMALL)
    with pytest.raises(TrainingError, match="other settings"):
        train_autoencoder(make_patches(), TrainingConfig(epochs=2, seed=9), checkpoint=checkpoint, **SMALL)
    checkpoint.write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        train_autoencoder(make_patches(), TrainingConfig(epochs=2), checkpoint=checkpoint, **SMALL)


def test_divergence_and_useless_data_are_errors():
    with pytest.raises(TrainingError, match="diverged"):
        train_autoencoder(make_patches(), TrainingConfig(epochs=30, learning_rate=1e18), **SMALL)
    blank = build_patch_set(np.full((64, 16), 9, np.uint16), grid_origins((64, 16), GridConfig(16, 16)), size_px=16)
    with pytest.raises(TrainingError, match="blank"):
        train_autoencoder(blank, TrainingConfig(epochs=1), **SMALL)
    with pytest.raises(TrainingError, match="at least two"):
        train_autoencoder(make_patches(count=1), TrainingConfig(epochs=1), **SMALL)


def test_learning_nothing_is_said(caplog):
    train_autoencoder(make_patches(), TrainingConfig(epochs=1, learning_rate=1e-9), widths=(1,))
    assert "explains little more than each patch's mean" in caplog.text


def test_input_statistics_reach_the_network():
    config = train_autoencoder(make_patches(), TrainingConfig(epochs=1), **SMALL).network.config
    assert isinstance(config, AutoencoderConfig)
    assert 0.2 < config.input_mean < 0.6
    assert config.input_scale > 0


def test_a_dense_bottleneck_is_trained_and_known_by_its_checkpoint(tmp_path):
    checkpoint = tmp_path / "state"
    trained = train_autoencoder(make_patches(), TrainingConfig(epochs=2), bottleneck=3, checkpoint=checkpoint, **SMALL)
    assert trained.network.config.bottleneck == 3
    assert all(0 <= share <= 1 for share in trained.history.dead_units)
    with pytest.raises(TrainingError, match="other settings"):
        train_autoencoder(make_patches(), TrainingConfig(epochs=3), bottleneck=4, checkpoint=checkpoint, **SMALL)
