import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors.wei2018.autoencoder import (
    AutoencoderConfig,
    build_autoencoder,
    layer_sizes,
    reconstruction_rmse,
)
from unary.detectors.wei2018.detector import Wei2018
from unary.patches.preparation import FULL_SCALE

PAPER = [(128, 128, 1), (64, 64, 2), (32, 32, 4), (16, 16, 8), (8, 8, 16), (4, 4, 32)]


def record_shapes(network, size, channels=1):
    shapes = []

    def keep(_module, _inputs, output):
        shapes.append((*output.shape[2:], output.shape[1]))

    hooks = [layer.register_forward_hook(keep) for layer in (*network.encoder, *network.decoder)]
    network(torch.rand(3, channels, size, size))
    for hook in hooks:
        hook.remove()
    return shapes


def test_every_layer_has_the_size_of_equation_3():
    network = build_autoencoder(AutoencoderConfig(), seed=0)
    assert record_shapes(network, 128) == PAPER[1:] + PAPER[-2::-1]
    assert sum(parameter.numel() for parameter in network.parameters()) == 12_369


@pytest.mark.parametrize(
    ("size", "channels", "widths"), [(28, 1, (8, 16, 32)), (32, 3, (16, 32, 64)), (27, 1, (2, 4)), (5, 2, (4, 4, 4))]
)
def test_other_sizes_are_mirrored(size, channels, widths):
    config = AutoencoderConfig(size_px=size, channels=channels, widths=widths)
    network = build_autoencoder(config, seed=0)
    down = [(side, side, width) for side, width in layer_sizes(config)]
    assert record_shapes(network, size, channels) == down[1:] + down[-2::-1]


def test_a_dense_bottleneck_narrows_the_code():
    network = build_autoencoder(AutoencoderConfig(bottleneck=16), seed=0)
    patches = torch.rand(2, 1, 128, 128)
    assert network.squeeze(network.halve(patches).flatten(1)).shape == (2, 16)
    assert network(patches).shape == patches.shape


def test_pyramid_start_reproduces_coarse_structure_that_a_random_start_does_not():
    rows = torch.linspace(0, 1, 128)
    patches = (0.3 + 0.4 * torch.outer(rows, rows) + 0.1 * torch.sin(6 * rows))[None, None].repeat(4, 1, 1, 1)
    spread = float(patches.std())
    settings = {"input_mean": float(patches.mean()), "input_scale": spread}
    errors = {}
    for start in ("pyramid", "random"):
        for seed in range(3):
            network = build_autoencoder(AutoencoderConfig(initialisation=start, **settings), seed=seed)
            with torch.inference_mode():
                inner = (patches - network(patches))[:, :, 16:-16, 16:-16]  # the border mixes in zero padding
            errors[start, seed] = float(inner.square().mean().sqrt()) / spread
    assert max(errors["pyramid", seed] for seed in range(3)) < 0.35
    assert min(errors["random", seed] for seed in range(3)) > 0.6


def test_a_code_of_sixteen_numbers_carries_the_whole_pyramid():
    config = AutoencoderConfig(32, widths=(4, 8, 8), input_mean=0.4, input_scale=0.1)  # down to 4 x 4
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(8, 1, 32, 32)), (0, 0, 6, 6))
    patches = torch.from_numpy(0.4 + 2 * smooth).float()
    expected = build_autoencoder(config, seed=0)(patches)
    errors = {}
    for bottleneck in (1, 4, 9, 16, 40):
        network = build_autoencoder(dataclasses.replace(config, bottleneck=bottleneck), seed=0)
        errors[bottleneck] = (network(patches) - expected).square().mean().item()
    assert errors[1] > errors[4] > errors[9] > 1e-6
    assert errors[16] < 1e-9
    assert errors[40] < 1e-9
    colour = build_autoencoder(AutoencoderConfig(32, channels=3, widths=(6, 8), bottleneck=2), seed=0)
    assert colour.squeeze.weight.abs().min() > 0, "fewer numbers than channels: the start is random"


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = build_autoencoder(AutoencoderConfig(), seed=5)
    torch.manual_seed(2)
    same, other = build_autoencoder(AutoencoderConfig(), seed=5), build_autoencoder(AutoencoderConfig(), seed=6)
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
    assert not torch.equal(one.encoder[1].weight, other.encoder[1].weight)


@pytest.mark.parametrize("bottleneck", [None, 16])  # compiled, and by torch
def test_rmse_against_numpy_and_batched_equals_one_by_one(bottleneck):
    rng = np.random.default_rng(0)
    patches = rng.integers(0, FULL_SCALE, (5, 128, 128), dtype=np.uint16)
    detector = Wei2018(network=build_autoencoder(AutoencoderConfig(bottleneck=bottleneck), seed=0).eval())
    batched = detector.examine_patches(patches)
    error = patches / FULL_SCALE - detector.reconstruct(patches)
    assert np.allclose(batched.scores, np.sqrt((error**2).mean(axis=(1, 2))), rtol=1e-5)
    assert np.allclose(detector.error_maps(patches), error, atol=2e-6)
    single = [detector.examine_patches(patches[k : k + 1]).scores[0] for k in range(5)]
    assert np.allclose(batched.scores, single, rtol=1e-5)
    tensors = torch.from_numpy(patches / FULL_SCALE).float()[:, None]
    with torch.inference_mode():
        assert np.allclose(reconstruction_rmse(tensors, detector.network(tensors)), batched.scores, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"size_px": 3}, {"widths": ()}, {"channels": 0}, {"bottleneck": 0}, {"input_scale": 0}]
)
def test_configuration_is_checked(wrong):
    with pytest.raises(ValueError):
        AutoencoderConfig(**wrong)
