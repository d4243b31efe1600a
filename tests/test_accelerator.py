"""The GPU's learner, run on the processor: everything but the recording of its graph."""

import dataclasses

import numpy as np
import pytest
import torch
from test_native_autoencoder import build_network, make_patches, plain_loss

from unary.detectors.wei2018 import learning
from unary.detectors.wei2018.accelerator import DeviceLearner, DevicePatches, rounding
from unary.detectors.wei2018.autoencoder import AutoencoderConfig
from unary.detectors.wei2018.learning import TrainingConfig, train_autoencoder
from unary.errors import TrainingError
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext

CONFIG = AutoencoderConfig(16, widths=(2, 4), input_mean=0.4, input_scale=0.1)


def gradients(network):
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def build_learner(patches, precision="float32"):
    network = build_network(CONFIG)
    return network, DeviceLearner(network, patches, device="cpu", precision=precision)


def test_patches_are_gathered_from_images_of_several_widths():
    patches = make_patches(40, 16)
    patches = dataclasses.replace(
        patches, images=tuple(np.where(image > 40000, FULL_SCALE, image).astype(np.uint16) for image in patches.images)
    )
    which = np.random.default_rng(0).permutation(40)[:17]
    gathered = DevicePatches(patches, "cpu").gather(torch.from_numpy(which))
    assert gathered.shape == (17, 1, 16, 16)
    assert np.array_equal((gathered[:, 0].numpy() * FULL_SCALE).round(), patches.gather(which))


def test_loss_and_gradient_are_autograds():
    patches = make_patches(40, 16)
    which = np.random.default_rng(1).permutation(40)[:25]
    network, learn = build_learner(patches)
    learn(which[:3])  # what an earlier batch left must not matter
    loss, found = learn(which), gradients(network).clone()
    network.zero_grad()
    expected = plain_loss(network, patches, which)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(found, gradients(network), rtol=1e-4, atol=1e-6)


def test_bfloat16_is_close_and_not_the_same():
    patches = make_patches(40, 16)
    (plain, learn), (rounded, learn_rounded) = build_learner(patches), build_learner(patches, "bfloat16")
    which = np.arange(40)
    assert learn_rounded(which) == pytest.approx(learn(which), rel=0.02)
    one, other = gradients(plain), gradients(rounded)
    assert not torch.equal(one, other)
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.999


def test_short_memory_halves_the_pieces_and_keeps_the_gradient(monkeypatch, caplog):
    patches = make_patches(40, 16)
    network, learn = build_learner(patches)
    whole = learn(np.arange(40)), gradients(network).clone()
    gather = DevicePatches.gather

    def gather_few(self, which):
        if len(which) > 11:
            raise torch.OutOfMemoryError
        return gather(self, which)

    monkeypatch.setattr(DevicePatches, "gather", gather_few)
    loss = learn(np.arange(40))
    assert [record.message.split()[-2] for record in caplog.records] == ["20", "10"]
    assert loss == pytest.approx(whole[0], rel=1e-6)
    assert torch.allclose(gradients(network), whole[1], rtol=1e-4, atol=1e-7)
    caplog.clear()
    learn(np.arange(25))
    assert not caplog.records, "once found, the size stays"
    monkeypatch.setattr(DevicePatches, "gather", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError, match="single patch"):
        learn(np.arange(40))


def test_images_that_do_not_fit_are_sent_batch_by_batch(monkeypatch, caplog):
    """The device "cpu" never comes here by itself: it stands for a GPU that is too small."""

    def refuse(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(learning, "DeviceLearner", refuse)
    network, patches = build_network(CONFIG), make_patches(4, 16)
    learn = learning._learn_on_device(network, patches, TrainingConfig())
    assert "do not fit on cpu" in caplog.text
    loss, found = learn(np.arange(4)), gradients(network).clone()
    network.zero_grad()
    expected = plain_loss(network, patches, np.arange(4))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(found, gradients(network), rtol=1e-4, atol=1e-6)


def test_convolutions_use_cudnn_and_round_as_asked():
    before = torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32
    for precision in ("float32", "tf32", "bfloat16"):
        with rounding("cpu", precision):
            assert torch.backends.cudnn.enabled
            assert torch.backends.cudnn.allow_tf32 == (precision != "float32")
            assert torch.is_autocast_enabled("cpu") == (precision == "bfloat16")
    assert (torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32) == before


def test_a_recorded_graph_is_given_up_before_batches_are_made_smaller(caplog):
    """A stand-in for the graph: without a GPU there is no other."""
    _, learn = build_learner(make_patches(40, 16))
    learn._graph = object()
    learn._make_smaller(1)
    assert (learn._graph, learn._most) == (None, None)
    assert "no longer recorded" in caplog.text
    learn._make_smaller(7)
    assert learn._most == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(TrainingError, match="device: torch cannot use 'cuda' here"):
        train_autoencoder(
            make_patches(4, 16), TrainingConfig(epochs=1, device="cuda"), FitContext(progress=False), widths=(2, 4)
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_gpu_ends_where_the_processor_ends(precision):
    patches = make_patches(60, 32)
    config = TrainingConfig(epochs=8, batch_size=25)
    on_gpu = dataclasses.replace(config, device="cuda", precision=precision)
    quiet = FitContext(progress=False)
    _, here = train_autoencoder(patches, config, quiet, widths=(2, 4))
    network, there = train_autoencoder(patches, on_gpu, quiet, widths=(2, 4))
    assert np.allclose(here.losses, there.losses, rtol=1e-3 if precision == "float32" else 0.05)
    assert next(network.parameters()).device.type == "cpu"
