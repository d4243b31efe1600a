"""The C source against torch: same losses, same gradients, same weights, whatever the number of threads."""

import copy
import ctypes
import dataclasses
import itertools
import math
import pickle
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors.native import compiler
from unary.detectors.wei2018 import native
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder, to_tensor
from unary.detectors.wei2018.detector import Wei2018
from unary.detectors.wei2018.learning import TrainingConfig, train_autoencoder
from unary.detectors.wei2018.native import NativeLearner, compile_errors, why_unsupported
from unary.errors import CompilerError
from unary.patches.grid import GridConfig, extract_patches, grid_origins
from unary.patches.patch_set import PatchSet, build_patch_set, join_patch_sets
from unary.patches.preparation import FULL_SCALE
from unary.patches.stitching import add_tapered
from unary.training.context import FitContext

PAPER = AutoencoderConfig(input_mean=0.4, input_scale=0.1)


@pytest.fixture(autouse=True, scope="module")
def _library():
    try:
        compiler.load_library("autoencoder.c")
    except CompilerError as error:
        pytest.skip(f"nothing to test without compiled code: {error}")


def make_patches(count, size, seed=0):
    """Smooth images of two widths, overlapping patches in no particular order."""
    sets, rng, stride = [], np.random.default_rng(seed), max(1, size // 3)
    for cols in (3 * size + 5, 2 * size):
        smooth = ndimage.gaussian_filter(rng.normal(size=(2 * size + count * stride // 8, cols)), max(1, size // 16))
        pixels = np.clip((0.4 + smooth) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)
        origins = grid_origins(pixels.shape, GridConfig(size, stride))
        sets.append(build_patch_set(pixels, origins, size_px=size))
    whole = join_patch_sets(sets)
    assert len(whole) >= count
    return whole.subset(rng.permutation(len(whole))[:count])


def build_network(config, seed=1):
    """Random weights and biases, with dead units in every layer that has several."""
    network = build_autoencoder(dataclasses.replace(config, initialisation="random"), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (*network.encoder, *network.decoder):
            layer.bias.normal_(0, 0.1, generator=generator)
            if len(layer.bias) > 2:
                layer.bias[1] = -100
    return network


def plain_loss(network, patches, which):
    batch = to_tensor(patches.gather(which))
    return (network(batch) - batch).square().mean()


def gradients(network):
    return [parameter.grad.clone() for parameter in network.parameters()]


def assert_agrees_with_autograd(config, count):
    patches = make_patches(count + 3, config.size_px)
    which = np.random.default_rng(5).permutation(len(patches))[:count]
    network = build_network(config)
    loss = plain_loss(network, patches, which)
    loss.backward()
    expected = gradients(network)
    learn = NativeLearner(network, patches, threads=2)
    learn(which[:1])  # what an earlier batch left must not matter
    assert learn(which) == pytest.approx(loss.item(), rel=1e-5)
    for parameter, right in zip(network.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, right, rtol=1e-3, atol=1e-5 * float(right.abs().max()) + 1e-9)


@pytest.mark.parametrize("count", [1, 16, 41])
def test_gradients_of_the_papers_network_are_autograds(count):
    assert_agrees_with_autograd(PAPER, count)


@pytest.mark.parametrize(
    ("size", "widths"), [(16, (2, 4)), (24, (3, 5, 6)), (8, (1,)), (32, (4, 8, 16, 32, 64)), (2, (7,)), (40, (12, 6))]
)
def test_gradients_of_other_sizes_are_autograds(size, widths):
    assert_agrees_with_autograd(AutoencoderConfig(size, widths=widths, input_mean=0.4, input_scale=0.1), 37)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the options are those of x86")
@pytest.mark.parametrize(("option", "lanes"), [("-mavx", 8), ("-mno-avx", 4)])
def test_shorter_vectors_compute_the_same(option, lanes, tmp_path, monkeypatch):
    if compiler.load_library("autoencoder.c").unary_lanes() < lanes:
        pytest.skip("this processor's vectors are shorter")
    command = next(path for name in ("cc", "gcc", "clang") if (path := shutil.which(name)))
    options = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-march=x86-64", option]
    source = Path(compiler.__file__).with_name("autoencoder.c")
    subprocess.run([command, *options, "-o", tmp_path / "short.so", source], check=True)
    library = ctypes.CDLL(str(tmp_path / "short.so"))
    assert library.unary_lanes() == lanes
    monkeypatch.setattr(native, "load_library", lambda _: library)
    assert_agrees_with_autograd(PAPER, 21)
    assert_agrees_with_autograd(AutoencoderConfig(24, widths=(3, 6), input_mean=0.4, input_scale=0.1), 9)


def test_losses_step_by_step_and_final_weights_are_the_plain_loops():
    patches = make_patches(430, 128)
    config = dataclasses.replace(PAPER, initialisation="pyramid")
    networks = [build_autoencoder(config, seed=0) for _ in range(2)]
    plain, native = networks
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3, fused=True) for network in networks]
    learn = NativeLearner(native, patches, threads=2)
    losses = []
    for epoch in range(7):
        order = np.random.default_rng(epoch).permutation(len(patches))
        for start in (0, 200, 400):  # 200, 200 and 30 patches
            which = order[start : start + 200]
            loss = plain_loss(plain, patches, which)
            optimizers[0].zero_grad()
            loss.backward()
            losses.append((loss.item(), learn(which)))
            for optimizer in optimizers:
                optimizer.step()
    expected, got = np.asarray(losses).T
    assert len(expected) == 21
    assert expected[-1] < 0.9 * expected[0]
    assert np.allclose(got, expected, rtol=1e-4, atol=0)
    for one, other in zip(plain.parameters(), native.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=2e-4)


def test_training_ends_where_torch_ends():
    patches = make_patches(60, 32)
    with_c, with_torch = (
        train_autoencoder(
            patches,
            TrainingConfig(epochs=8, batch_size=25, compiled=compiled),
            FitContext(progress=False),
            widths=(2, 4),
        )
        for compiled in (True, False)
    )
    assert np.allclose(with_c[1].losses, with_torch[1].losses, rtol=1e-4, atol=0)
    assert with_c[1].dead_units == with_torch[1].dead_units
    for one, other in zip(with_c[0].parameters(), with_torch[0].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_neither_threads_nor_repetition_change_a_bit():
    patches = make_patches(1100, 16)  # more than one call to the library takes
    config = AutoencoderConfig(16, widths=(2, 4), input_mean=0.4, input_scale=0.1)
    which = np.random.default_rng(2).permutation(1100)
    results = []
    for threads in (1, 2, 3, 2):
        network = build_network(config)
        loss = NativeLearner(network, patches, threads=threads)(which)
        results.append((loss, torch.cat([gradient.flatten() for gradient in gradients(network)])))
    for one, other in itertools.pairwise(results):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])


def test_images_are_read_where_they_lie():
    patches = make_patches(20, 16)
    odd = tuple(np.asfortranarray(image) for image in patches.images)
    wide = tuple(np.pad(image, ((0, 0), (3, 4)))[:, 3:-4] for image in patches.images)
    config = AutoencoderConfig(16, widths=(2,), input_mean=0.4, input_scale=0.1)
    losses = [
        NativeLearner(build_network(config), PatchSet(images, patches.index, 16), threads=1)(np.arange(20))
        for images in (patches.images, odd, wide)
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (PAPER, 21),
        (AutoencoderConfig(24, widths=(3, 5, 6), input_mean=0.4, input_scale=0.1), 16),
        (AutoencoderConfig(2, widths=(7,)), 5),
    ],
)
def test_errors_and_scores_are_torchs(config, count):
    patches = make_patches(count, config.size_px).gather(slice(None))
    network = build_network(config)
    compiled, values = compile_errors(network), to_tensor(patches)
    with torch.inference_mode():
        expected = (values - network(values))[:, 0].numpy()
    errors, scores = compiled.examine(patches)
    assert np.allclose(errors, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.allclose(scores, np.sqrt(np.square(expected, dtype=np.float64).mean(axis=(1, 2))), rtol=1e-5, atol=0)
    detector = Wei2018(network=network)
    assert np.array_equal(detector.error_maps(patches), errors)
    assert np.array_equal(detector.examine_patches(patches).scores, scores)
    assert np.array_equal(detector.examine_patches(patches).maps, np.abs(errors))
    assert np.allclose(detector.reconstruct(patches), values[:, 0].numpy() - expected, atol=1e-6)
    assert compiled.examine(patches[:0])[1].shape == (0,)


def test_a_patch_scores_the_same_in_any_company_and_thread():
    patches = make_patches(50, 32).gather(slice(None))
    compiled = compile_errors(build_network(AutoencoderConfig(32, widths=(2, 4))))
    errors, scores = compiled.examine(patches)
    with ThreadPoolExecutor(3) as pool:
        alone = list(pool.map(lambda n: compiled.examine(patches[n : n + 1]), range(50)))
    assert np.array_equal(errors, np.concatenate([one for one, _ in alone]))
    assert np.array_equal(scores, np.concatenate([one for _, one in alone]))


@pytest.mark.parametrize("config", [PAPER, AutoencoderConfig(24, widths=(3, 5), input_mean=0.4, input_scale=0.1)])
def test_maps_added_up_where_patches_overlap_are_those_of_single_patches(config):
    side = config.size_px
    pixels = np.random.default_rng(3).integers(0, 2**16, (2 * side + 5, 3 * side + 7), dtype=np.uint16)
    origins = grid_origins(pixels.shape, GridConfig(side, side // 2))
    compiled = compile_errors(build_network(config))
    expected, sums = np.ones(pixels.shape, np.float32), np.ones(pixels.shape, np.float32)
    add_tapered(expected, np.abs(compiled.examine(extract_patches(pixels, origins, size_px=side))[0]), origins)
    compiled.add_maps(pixels, origins, sums)
    assert np.allclose(sums, expected, rtol=1e-5)
    wide, apart = np.pad(pixels, ((0, 0), (3, 4)))[:, 3:-4], np.ones((len(sums), 9 + sums.shape[1]), np.float32)
    compiled.add_maps(wide, origins.astype(np.int64), apart[:, :-9])
    assert np.array_equal(apart[:, :-9], sums)
    assert (apart[:, -9:] == 1).all()
    compiled.add_maps(pixels, origins[:0], sums)
    assert np.array_equal(apart[:, :-9], sums)


def test_a_network_that_computes_nonsense_does_not_hide_it_in_a_map():
    network = build_network(AutoencoderConfig(16, widths=(2,)))
    with torch.no_grad():
        network.decoder[-1].bias.fill_(torch.nan)
    sums = np.zeros((16, 16), np.float32)
    compile_errors(network).add_maps(np.zeros((16, 16), np.uint16), np.zeros((1, 2), np.int32), sums)
    assert np.isnan(sums).all()


def test_without_a_compiler_torch_scores_and_says_so(monkeypatch, caplog):
    def fail(_):
        raise CompilerError("no C compiler was found")

    network = build_network(AutoencoderConfig(16, widths=(2,)))
    patches = make_patches(6, 16).gather(slice(None))
    _, expected = compile_errors(network).examine(patches)
    monkeypatch.setattr(native, "load_library", fail)
    assert compile_errors(network) is None
    assert "no C compiler" in caplog.text
    assert np.allclose(Wei2018(network=network).examine_patches(patches).scores, expected, rtol=1e-5)
    caplog.clear()
    assert compile_errors(build_network(AutoencoderConfig(16, bottleneck=3))) is None
    assert not caplog.text


def test_compiled_errors_keep_the_weights_they_were_built_with_and_can_be_copied():
    patches = make_patches(10, 16).gather(slice(None))
    network = build_network(AutoencoderConfig(16, widths=(2, 4)))
    compiled = compile_errors(network.to(memory_format=torch.contiguous_format))
    before, _ = compiled.examine(patches)
    twin = pickle.loads(pickle.dumps(compiled))
    network.double()
    assert np.array_equal(compiled.examine(patches)[0], before)
    assert np.array_equal(twin.examine(patches)[0], before)
    detector = Wei2018(network=build_network(AutoencoderConfig(16, widths=(2, 4))))
    assert np.array_equal(detector.error_maps(patches), before)
    for again in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        assert np.array_equal(again.error_maps(patches), before)
    other = dataclasses.replace(detector, network=build_network(AutoencoderConfig(16, widths=(2, 4)), seed=9))
    assert not np.allclose(other.error_maps(patches), before)


def test_patches_of_another_size_or_type_are_refused():
    compiled = compile_errors(build_network(AutoencoderConfig(16, widths=(2,))))
    for wrong in (np.zeros((2, 8, 8), np.uint16), np.zeros((2, 16, 16), np.float32)):
        with pytest.raises(ValueError, match=r"need \(n, 16, 16\) uint16"):
            compiled.examine(wrong)


@pytest.mark.parametrize("origin", [(-1, 0), (0, -1), (9, 0), (0, 5)])
def test_what_would_write_to_other_memory_is_refused(origin):
    compiled = compile_errors(build_network(AutoencoderConfig(16, widths=(2,))))
    pixels, sums = np.zeros((24, 20), np.uint16), np.zeros((24, 20), np.float32)
    with pytest.raises(ValueError, match="past an image"):
        compiled.add_maps(pixels, np.array([(0, 0), origin], np.int32), sums)
    for wrong in (sums[:-1], sums.astype(np.float64), np.asfortranarray(sums)):
        with pytest.raises(ValueError, match="need sums of shape"):
            compiled.add_maps(pixels, np.zeros((1, 2), np.int32), wrong)
    assert not sums.any()


def test_what_would_read_other_memory_is_refused():
    patches = make_patches(4, 16)
    network = build_network(AutoencoderConfig(16, widths=(2,)))
    learn = NativeLearner(network, patches, threads=1)
    for wrong in ([4], [-1], []):
        with pytest.raises(IndexError, match="patch numbers"):
            learn(np.asarray(wrong, np.int64))
    for shift in ((0, 10**6, 0), (0, 0, -1)):
        with pytest.raises(ValueError, match="reach past"):
            NativeLearner(network, PatchSet(patches.images, patches.index + np.int32(shift), 16), threads=1)


def test_a_diverged_network_shows():
    patches = make_patches(4, 16)
    network = build_network(AutoencoderConfig(16, widths=(2, 4)))
    with torch.no_grad():
        network.encoder[1].bias[0] = math.nan
    assert math.isnan(NativeLearner(network, patches, threads=1)(np.arange(4)))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (AutoencoderConfig(32, channels=3), "channels"),
        (AutoencoderConfig(bottleneck=8), "dense bottleneck"),
        (AutoencoderConfig(28, widths=(8, 16, 32)), "cannot be halved 3 times"),
    ],
)
def test_what_is_not_supported_is_named(config, reason):
    assert reason in why_unsupported(config)
    with pytest.raises(ValueError, match=reason):
        NativeLearner(build_autoencoder(config, seed=0), make_patches(4, config.size_px), threads=1)


def test_the_papers_network_is_supported():
    assert why_unsupported(AutoencoderConfig()) is None


def test_patches_of_one_value_are_computed_as_one_and_count_as_many():
    patches = make_patches(90, 32)
    air = build_patch_set(
        np.zeros((32 * 60, 32), np.uint16), grid_origins((32 * 60, 32), GridConfig(32, 32)), size_px=32
    )
    grey = np.full((32 * 40, 32), 9000, np.uint16)
    film = build_patch_set(grey, grid_origins(grey.shape, GridConfig(32, 32)), size_px=32)
    whole = join_patch_sets([patches, air, film])
    config = AutoencoderConfig(32, widths=(2, 4, 8), input_mean=0.4, input_scale=0.1)
    network = build_network(config)
    learn = NativeLearner(network, whole, threads=2)
    computed = []
    add = learn._add_gradient
    learn._add_gradient = lambda which, weight, shares: computed.append(len(which)) or add(which, weight, shares)
    which = np.random.default_rng(2).permutation(len(whole))
    loss = plain_loss(network, whole, which)
    loss.backward()
    expected = gradients(network)
    assert learn(which) == pytest.approx(loss.item(), rel=1e-5)
    assert sum(computed) == 90 + 2 * learn._lanes < len(whole)
    for parameter, right in zip(network.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, right, rtol=1e-3, atol=1e-5 * float(right.abs().max()) + 1e-9)
