import dataclasses
import errno
import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import ndimage

from unary.detectors.protocol import View
from unary.detectors.scoring import count_weights, score_patches
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder, to_tensor
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.errors import DetectorError, TrainingError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training import checkpoints, engine
from unary.training.context import FitContext
from unary.training.engine import Rounds, StepsConfig, compute_gradient, train, train_steps

QUIET = FitContext(progress=False)


def make_patches(seed=0, count=30, size=16):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(count * size, size)), 3)
    pixels = np.clip((0.4 + smooth) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)
    return build_patch_set(pixels, grid_origins(pixels.shape, GridConfig(size, size)), size_px=size)


def fit(patches, training, *, widths=(2, 4), bottleneck=None, **context):
    return Wei2018(Wei2018Config(widths, bottleneck, training)).fit(patches, dataclasses.replace(QUIET, **context))


def weights(trained):
    return torch.cat([parameter.detach().ravel() for parameter in trained.network.parameters()])


def test_loss_falls_below_both_baselines_and_history_tells():
    trained = fit(make_patches(), TrainingConfig(epochs=60, batch_size=10, learning_rate=5e-3))
    history = trained.history
    assert len(history.losses) == len(history.dead_units) == 60
    assert history.losses[-1] < history.losses[0] / 2
    assert history.losses[-1] < history.patch_mean_error < history.mean_patch_error
    assert history.unexplained == pytest.approx(history.losses[-1] / history.patch_mean_error)
    assert all(0 <= share <= 1 for share in history.dead_units)


def test_baselines_agree_with_numpy():
    patches = make_patches(1)
    values = patches.gather(slice(None)).reshape(len(patches), -1) / FULL_SCALE
    history = fit(patches, TrainingConfig(epochs=1)).history
    assert history.mean_patch_error == pytest.approx(values.var())
    assert history.patch_mean_error == pytest.approx(values.var(axis=1).mean())


def test_one_step_is_equation_2_and_adam():
    patches = make_patches(2, count=4)
    trained = fit(patches, TrainingConfig(epochs=1, batch_size=4), seed=7)
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
def test_interrupted_and_resumed_ends_with_the_same_weights(compiled, tmp_path, monkeypatch):
    patches, config = make_patches(), TrainingConfig(epochs=6, batch_size=8, compiled=compiled)
    whole = fit(patches, config, seed=3)
    keep, saved, checkpoint = engine.save_checkpoint, [], tmp_path / "state"

    def interrupt_after(count):
        def save(*arguments):
            keep(*arguments)
            saved.append(arguments)
            if len(saved) == count:
                raise KeyboardInterrupt

        return save

    monkeypatch.setattr(engine, "save_checkpoint", interrupt_after(4))
    with pytest.raises(KeyboardInterrupt):
        fit(patches, config, seed=3, checkpoint=checkpoint)
    resumed = fit(patches, config, seed=3, checkpoint=checkpoint)
    assert len(saved) == 6
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.history == resumed.history
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("state.wei2018-")


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bottleneck", [None, 3])
def test_the_number_of_threads_changes_no_bit(compiled, bottleneck):
    patches, config = make_patches(), TrainingConfig(epochs=2, batch_size=7, compiled=compiled)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            detector = fit(patches, config, bottleneck=bottleneck)
            found.append((weights(detector), detector.history, score_patches(detector, patches)))
    finally:
        torch.set_num_threads(threads)
    for trained, history, scores in found[1:]:
        assert torch.equal(trained, found[0][0])
        assert history == found[0][1]
        assert np.array_equal(scores, found[0][2])


def test_a_run_may_go_on_without_the_compiler_it_began_with(tmp_path):
    patches, config = make_patches(), TrainingConfig(epochs=4, batch_size=8)
    whole = fit(patches, config)
    checkpoint = tmp_path / "state"
    fit(patches, dataclasses.replace(config, epochs=2), checkpoint=checkpoint)
    without = dataclasses.replace(config, compiled=False)
    resumed = fit(patches, without, checkpoint=checkpoint)
    assert np.allclose(whole.history.losses, resumed.history.losses, rtol=1e-4)
    assert torch.allclose(weights(whole), weights(resumed), rtol=1e-3, atol=1e-4)


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    fit(make_patches(), TrainingConfig(epochs=1))
    assert torch.get_num_threads() == before


def test_the_seed_decides():
    patches, config = make_patches(), TrainingConfig(epochs=2)
    one, same = (fit(patches, config) for _ in range(2))
    other = fit(patches, config, seed=1)
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))


def test_another_network_has_another_checkpoint_and_a_broken_one_is_refused(tmp_path):
    checkpoint, config = tmp_path / "state", TrainingConfig(epochs=2)
    fit(make_patches(), config, checkpoint=checkpoint)
    (path,) = tmp_path.iterdir()
    with pytest.raises(TrainingError, match="trained for 2 epochs, more than the 1 asked for"):
        fit(make_patches(), TrainingConfig(epochs=1), checkpoint=checkpoint)
    fit(make_patches(), config, checkpoint=checkpoint, seed=9)
    fit(make_patches(), dataclasses.replace(config, learning_rate=2e-3), checkpoint=checkpoint)
    fit(make_patches(), config, checkpoint=checkpoint, bottleneck=3)
    fit(make_patches(seed=1), config, checkpoint=checkpoint)
    assert len(list(tmp_path.iterdir())) == 5
    fit(make_patches(), dataclasses.replace(config, compiled=False), checkpoint=checkpoint)
    assert len(list(tmp_path.iterdir())) == 5, "how it is computed makes no other network"
    path.write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        fit(make_patches(), config, checkpoint=checkpoint)
    for other in tmp_path.iterdir():
        if other != path:
            other.replace(path)
    with pytest.raises(TrainingError, match="other settings"):
        fit(make_patches(), config, checkpoint=checkpoint)


def test_divergence_and_useless_data_are_errors():
    with pytest.raises(TrainingError, match="diverged"):
        fit(make_patches(), TrainingConfig(epochs=30, learning_rate=1e18))
    blank = build_patch_set(np.full((64, 16), 9, np.uint16), grid_origins((64, 16), GridConfig(16, 16)), size_px=16)
    with pytest.raises(TrainingError, match="blank"):
        fit(blank, TrainingConfig(epochs=1))
    with pytest.raises(TrainingError, match="at least two"):
        fit(make_patches(count=1), TrainingConfig(epochs=1))
    with pytest.raises(TrainingError, match="6 widths needs patches of 32 px or more, these have 16 px"):
        fit(make_patches(), TrainingConfig(epochs=1), widths=(2,) * 6)


def test_learning_nothing_is_said(caplog):
    fit(make_patches(), TrainingConfig(epochs=1, learning_rate=1e-9), widths=(1,))
    assert "explains little more than each patch's mean" in caplog.text


def test_input_statistics_reach_the_network():
    config = fit(make_patches(), TrainingConfig(epochs=1)).network.config
    assert isinstance(config, AutoencoderConfig)
    assert 0.2 < config.input_mean < 0.6
    assert config.input_scale > 0


def test_a_dense_bottleneck_is_trained_from_a_pyramid():
    patches, unseen = make_patches(count=60), make_patches(1)
    config = TrainingConfig(epochs=15, batch_size=10, learning_rate=5e-3)
    errors = []
    for bottleneck in (1, 16):
        trained = fit(patches, config, bottleneck=bottleneck, widths=(4, 8))
        assert trained.network.config.bottleneck == bottleneck
        assert all(0 <= share <= 1 for share in trained.history.dead_units)
        errors.append(score_patches(trained, unseen).mean())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"device": "gpu please"},
        {"precision": "float8"},
        {"precision": "tf32"},
    ],
)
def test_configuration_is_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": float("nan")}, {"device": "?"}]
)
def test_configuration_of_steps_is_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StepsConfig(**wrong)


@pytest.mark.parametrize("bottleneck", [None, 3])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_state_survives_json_bit_for_bit(bottleneck, compiled):
    patches = make_patches()
    detector = fit(patches, TrainingConfig(epochs=2, compiled=compiled), bottleneck=bottleneck)
    state = detector.get_state()
    assert all(type(tensor) is np.ndarray for tensor in state.tensors.values())
    again = Wei2018.from_state(dataclasses.replace(state, settings=json.loads(json.dumps(state.settings))))
    assert (again.config, again.history) == (detector.config, detector.history)
    assert state.settings["history"]["losses"] == list(detector.history.losses)
    assert torch.equal(weights(again), weights(detector))
    view = View(patches.images[0], patches.images[0] > 0)
    origins = patches.index[:, 1:]
    one, other = (each.examine(view, origins, size_px=16) for each in (detector, again))
    assert np.array_equal(one.scores, other.scores)
    assert np.array_equal(one.anomaly_map, other.anomaly_map, equal_nan=True)
    assert count_weights(detector) == len(weights(detector))
    assert len(repr(detector)) < 400
    assert "\n" not in repr(detector)


def test_a_damaged_state_is_refused_by_name():
    state = fit(make_patches(), TrainingConfig(epochs=1)).get_state()
    for change, said in (
        ({"config": {**state.settings["config"], "widths": [2, 4, 8]}}, "sizes must be those"),
        ({"network": {**state.settings["network"], "input_scale": -1.0}}, "input_scale"),
        ({"network": {**state.settings["network"], "colour": True}}, "colour"),
        ({"history": {}}, "losses"),
    ):
        with pytest.raises(ValueError, match=said):
            Wei2018.from_state(dataclasses.replace(state, settings={**state.settings, **change}))
    name, values = "encoder.0.weight", state.tensors["encoder.0.weight"]
    for wrong in (values[:1], values.astype(np.float64), np.full_like(values, np.nan)):
        with pytest.raises(ValueError, match=r"encoder\.0\.weight"):
            Wei2018.from_state(dataclasses.replace(state, tensors={**state.tensors, name: wrong}))


def test_what_it_cannot_do_is_said():
    patches, origins = make_patches(), np.zeros((1, 2), np.int32)
    view = View(patches.images[0], patches.images[0] > 0)
    for use in (lambda: Wei2018().examine(view, origins, size_px=16), Wei2018().get_state):
        with pytest.raises(DetectorError, match="fit it first"):
            use()
    with pytest.raises(DetectorError, match="patches of 16 px and cannot examine those of 8 px"):
        fit(patches, TrainingConfig(epochs=1)).examine(view, origins, size_px=8)


def test_the_gradient_of_shares_is_the_batchs_in_the_layout_of_the_weights():
    patches = make_patches(3, count=9)
    network = build_autoencoder(AutoencoderConfig(16, widths=(2, 4)), seed=0)
    batch, parameters = to_tensor(patches.gather(slice(None))), list(network.parameters())

    def compute_loss(some):
        return (network(some) - some).square().mean()

    loss = compute_loss(batch)
    expected = torch.autograd.grad(loss, parameters)
    assert compute_gradient(parameters, compute_loss, [batch], device="cpu") == pytest.approx(loss.item(), rel=1e-5)
    for parameter, right in zip(parameters, expected, strict=True):
        assert torch.allclose(parameter.grad, right, rtol=1e-3, atol=1e-6)
        assert parameter.grad.stride() == parameter.stride()


def test_rounds_are_drawn_by_seed_and_number_and_kept_as_often_as_asked(tmp_path):
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    context, drawn = FitContext(7, tmp_path / "state", progress=False), []

    def advance(rng, number):
        drawn.append((number, rng.integers(2**31)))
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return 1.0 / (number + 1)

    rounds = Rounds("toy", 6, "step", keep_every=3)
    with pytest.raises(KeyboardInterrupt):
        train(network, optimizer, advance, rounds, context, settings=None, data=None)
    losses, measured = train(network, optimizer, advance, rounds, context, settings=None, data=None)
    assert [number for number, _ in drawn] == [0, 1, 2, 3, 4, 3, 4, 5]
    assert drawn[3:5] == drawn[5:7]
    assert [value for _, value in drawn[:5]] == [np.random.default_rng([7, n]).integers(2**31) for n in range(5)]
    assert losses == pytest.approx([1 / (n + 1) for n in range(6)])
    assert measured == ()


def test_steps_warm_up_and_fall_along_a_cosine():
    network, rates = torch.nn.Linear(1, 1), []

    def compute_loss(values):
        return network(values).square().mean()

    config = StepsConfig(steps=200, batch_size=2, learning_rate=1e-3)
    step = torch.optim.AdamW.step

    def note(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", note)
        means = train_steps(
            network,
            lambda rng, count: [torch.from_numpy(rng.random((count, 1), np.float32))],
            compute_loss,
            config,
            QUIET,
            name="toy",
            settings=None,
            data=None,
        )
    expected = [1e-3 * min(1, (n + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * n / 200)) for n in range(200)]
    assert rates == pytest.approx(expected)
    assert len(means) == 4
    assert not network.training


@pytest.mark.parametrize("first", [True, False])
def test_a_full_disk_stops_training_and_says_what_is_kept_and_how_to_go_on(tmp_path, monkeypatch, first):
    patches, config, checkpoint = make_patches(), TrainingConfig(epochs=5, batch_size=8), tmp_path / "state"
    whole = fit(patches, config)
    real, saved = checkpoints.write_durably, []

    def write(path, content):
        saved.append(path)
        if len(saved) == (1 if first else 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(checkpoints, "write_durably", write)
    kept = "nothing was kept before" if first else "the state written before is there"
    with pytest.raises(TrainingError, match=f"No space left on device.*{kept}: make room and run the same command"):
        fit(patches, config, checkpoint=checkpoint)
    saved.clear()
    monkeypatch.setattr(checkpoints, "write_durably", lambda path, content: (saved.append(path), real(path, content)))
    resumed = fit(patches, config, checkpoint=checkpoint)
    assert len(saved) == (5 if first else 3), "what was trained before is not trained again"
    assert torch.equal(weights(whole), weights(resumed))


def test_nothing_of_a_patient_is_in_a_checkpoint(tmp_path):
    fit(make_patches(), TrainingConfig(epochs=1), checkpoint=tmp_path / "state")
    (path,) = tmp_path.iterdir()
    with safe_open(path, "np") as file:
        kept = file.metadata()
    assert set(kept) == {"fingerprint", "curves"}
    name, settings, seed, digest = json.loads(kept["fingerprint"])
    assert (name, seed, digest) == ("wei2018", 0, make_patches().digest())
    assert "path" not in json.dumps(settings)
