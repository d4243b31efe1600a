"""One class against the rest on small images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from test_cifar10 import write_cifar10
from test_mnist import write_idx, write_mnist

from unary.datasets.mnist import read_mnist
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder, layer_sizes
from unary.errors import ManifestError, TrainingError
from unary.experiments import small_images
from unary.experiments.small_images import CONFIGS, Kind, reproduce_small_images, standardise_images


def draw_bars(labels: NDArray[np.uint8], *, seed: int) -> NDArray[np.uint8]:
    """One bright bar per class at its own place, jittered, so that each class is learned in a few steps."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 30, (len(labels), 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        start = 2 * int(label) + int(rng.integers(2))
        image[start : start + 5, 4:24] = rng.integers(150, 256)
    return images


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bars")
    for name, count, seed in (("train", 400, 1), ("t10k", 200, 2)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{name}-images-idx3-ubyte", draw_bars(labels, seed=seed))
        write_idx(folder / f"{name}-labels-idx1-ubyte", labels)
    return folder


@pytest.mark.parametrize(
    ("kind", "sides", "channels"), [("mnist", (28, 14, 7, 4, 2), 1), ("cifar10", (32, 16, 8, 4), 3)]
)
def test_networks_follow_the_rule_of_equation_3(kind: Kind, sides: tuple[int, ...], channels: int) -> None:
    """Every layer halves and widens, the decoder mirrors, and the image comes back in its own size."""
    config = CONFIGS[kind]
    sizes = AutoencoderConfig(size_px=sides[0], channels=channels, widths=config.widths, bottleneck=config.bottleneck)
    layers = layer_sizes(sizes)
    assert [side for side, _ in layers] == list(sides)
    assert all(2 * narrow == wide for narrow, wide in zip(config.widths, config.widths[1:], strict=False))
    network = build_autoencoder(sizes, seed=0)
    seen = [(layer.in_channels, layer.out_channels) for layer in network.encoder]
    mirrored = [(layer.out_channels, layer.in_channels) for layer in network.decoder]
    assert seen == mirrored[::-1]
    assert config.bottleneck is not None
    assert network.squeeze is not None
    images = torch.rand(3, channels, sides[0], sides[0])
    assert network.squeeze(network.halve(images).flatten(1)).shape == (3, config.bottleneck)
    assert network(images).shape == images.shape


def test_standardising_removes_brightness_and_contrast_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 80, (5, 32, 32, 3), dtype=np.uint8)
    values = standardise_images(images)
    torch.testing.assert_close(values, standardise_images(2 * images + np.uint8(40)))
    torch.testing.assert_close(values.mean(dim=(1, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(dim=(1, 2, 3), correction=0), torch.ones(5))
    expected = (images[2, :, :, 1] - images[2].mean()) / images[2].std()
    np.testing.assert_allclose(values[2, 1].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_constant_image_becomes_zero() -> None:
    values = standardise_images(np.full((1, 28, 28), 200, np.uint8))
    np.testing.assert_allclose(values.numpy(), 0, atol=1e-3)


def test_numbers_agree_with_the_stored_scores_and_with_scikit_learn(bars: Path, tmp_path: Path) -> None:
    document = reproduce_small_images("mnist", bars, tmp_path, runs=2, epochs=30)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored == document
    assert document["meta"]["epochs"] == 30
    table = parquet.read_table(tmp_path / "scores.parquet")
    columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    assert len(table) == 10 * 2 * 200
    for detector, groups in document["detectors"].items():
        areas = {}
        for name in "0123456789":
            for run in range(2):
                chosen = (columns["class"] == name) & (columns["run"] == run)
                truth, scores = columns["positive"][chosen], columns[f"score_{detector}"][chosen]
                areas[name, run] = (roc_auc_score(truth, scores), average_precision_score(truth, scores))
        for name in "0123456789":
            group = groups[name]
            assert group["auroc"] == pytest.approx(np.mean([areas[name, run][0] for run in range(2)]))
            assert group["average_precision"] == pytest.approx(np.mean([areas[name, run][1] for run in range(2)]))
            assert (group["n_positive"], group["n_negative"]) == (180, 20)
        mean = groups["mean"]
        assert mean["auroc"] == pytest.approx(np.mean([value[0] for value in areas.values()]))
        spread = pytest.approx(np.std(mean["auroc_runs"], ddof=1)) if detector == "wei2018" else None
        assert mean["auroc_sd"] == spread
        assert set(mean["sensitivity_at_specificity"]) == {"0.90", "0.95", "0.99"}
    np.testing.assert_array_equal(columns["positive"], columns["class"] != columns["label"])
    assert set(document["detectors"]) == {"wei2018", "mean_brightness", "standard_deviation", "mean_image"}
    page = (tmp_path / "report.html").read_text()
    assert f"{document['detectors']['wei2018']['mean']['auroc']:.3f}" in page
    assert "MNIST: one class against the rest, not as chosen in docs/small_images.md: 30 epochs, not 10, 2 runs" in page
    assert "2 runs cannot tell which is better" in page
    assert "means over 2 runs" in page
    assert all(link not in page for link in ('src="http', 'href="http'))
    assert document["detectors"]["wei2018"]["mean"]["auroc"] > 0.9
    assert document["detectors"]["mean_brightness"]["mean"]["auroc"] < 0.6


def test_an_interrupted_call_goes_on_to_the_same_numbers(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reproduce_small_images("mnist", bars, tmp_path / "whole", runs=2, epochs=1)
    train = small_images.train_network
    trained: list[tuple[int, ...]] = []

    def train_some(*args: object, seeds: tuple[int, ...]) -> object:
        if len(trained) == 7:
            raise KeyboardInterrupt
        trained.append(seeds)
        return train(*args, seeds=seeds)  # type: ignore[arg-type]

    monkeypatch.setattr(small_images, "train_network", train_some)
    with pytest.raises(KeyboardInterrupt):
        reproduce_small_images("mnist", bars, tmp_path / "cut", runs=2, epochs=1)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    first = set(trained)
    trained.clear()
    monkeypatch.setattr(
        small_images, "train_network", lambda *args, seeds: (trained.append(seeds), train(*args, seeds=seeds))[1]
    )
    resumed = reproduce_small_images("mnist", bars, tmp_path / "cut", runs=2, epochs=1)
    assert len(trained) == 13
    assert not first & set(trained)
    assert resumed == whole


def test_finished_runs_are_kept_damaged_ones_done_again_and_other_settings_kept_apart(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = reproduce_small_images("mnist", bars, tmp_path, runs=1, epochs=1)
    files = sorted((tmp_path / "runs").rglob("*.npz"))
    assert len(files) == 10
    files[3].write_bytes(files[3].read_bytes()[:100])
    train = small_images.train_network
    trained: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        small_images, "train_network", lambda *args, seeds: (trained.append(seeds), train(*args, seeds=seeds))[1]
    )
    assert reproduce_small_images("mnist", bars, tmp_path, runs=1, epochs=1) == before
    assert len(trained) == 1
    other = reproduce_small_images("mnist", bars, tmp_path, runs=1, epochs=1, seed=1)
    assert len(trained) == 11
    assert other["detectors"]["wei2018"] != before["detectors"]["wei2018"]
    assert other["detectors"]["mean_brightness"] == before["detectors"]["mean_brightness"]


def test_mean_image_control_is_the_distance_from_the_class_mean(bars: Path) -> None:
    images = read_mnist(bars)
    found = small_images.measure_controls(images)["mean_image"][3]

    def standardise(image: NDArray[np.uint8]) -> NDArray[np.float64]:
        return (image - image.mean()) / image.std()

    typical = np.mean([standardise(image) for image in images.train_images[images.train_labels == 3]], axis=0)
    expected = [np.sqrt(np.mean((standardise(image) - typical) ** 2)) for image in images.test_images[:20]]
    np.testing.assert_allclose(found[:20], expected, rtol=1e-4)


def test_colour_images_go_through(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "data", records=20)
    document = reproduce_small_images("cifar10", tmp_path / "data", tmp_path / "out", runs=1, epochs=1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 of 4 epochs, one run" in page
    assert "The autoencoder, of one run" in page
    assert not [words for words in ("1 runs", "means over") if words in page]
    groups = document["detectors"]["wei2018"]
    assert list(groups)[:2] == ["airplane", "automobile"]
    assert groups["truck"]["n_negative"] == 2
    assert groups["truck"]["auroc_sd"] is None


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path, test=9)
    with pytest.raises(ManifestError, match="test split has no image of class 9"):
        reproduce_small_images("mnist", tmp_path, tmp_path / "out", runs=1)


@pytest.mark.parametrize(("runs", "epochs"), [(0, None), (1, 0)])
def test_nothing_to_do_is_refused(tmp_path: Path, runs: int, epochs: int | None) -> None:
    with pytest.raises(TrainingError, match="at least 1"):
        reproduce_small_images("mnist", tmp_path, tmp_path, runs=runs, epochs=epochs)
