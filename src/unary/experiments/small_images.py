"""MNIST and CIFAR-10, sections 4.1 and 4.2 of Wei et al. 2018: one class against the rest.

The paper's text gives no sizes for these networks, so they follow its rule: convolutions of stride 2 that halve the
image, widths that grow with depth, a mirrored decoder, squared error, Adam, batches of 200. Each class in turn is the
normal one: the network learns from the official training images of this class alone, and every image of the official
test split is scored by the root mean square error of its reconstruction. ``docs/small_images.md`` tells how widths,
bottleneck, epochs and input scaling were chosen, without the test split, and what came out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unary.datasets.cifar10 import read_cifar10
from unary.datasets.labelled import LabelledImages
from unary.datasets.mnist import read_mnist
from unary.detectors.wei2018.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder, reconstruction_rmse
from unary.errors import ManifestError, TrainingError
from unary.evaluation.metrics import SPECIFICITIES, write_metrics
from unary.evaluation.roc import auroc, average_precision, sensitivity_at_specificity
from unary.experiments.common import read_arrays, write_arrays
from unary.experiments.small_images_report import DETECTOR, MEAN, build_small_report
from unary.files import replacing
from unary.models.bundle import describe_versions
from unary.outputs.report import write_report
from unary.progress import show_progress
from unary.training.context import FitContext
from unary.training.engine import Rounds, train

Kind = Literal["mnist", "cifar10"]

_READERS = {"mnist": read_mnist, "cifar10": read_cifar10}
_FLAT = 1e-3  # standard deviation, in units of full scale, below which an image counts as constant
_EXAMPLES = 4


@dataclass(frozen=True)
class SmallImagesConfig:
    """What was chosen for one data set: as in `AutoencoderConfig`; optimisation as in section 5 of the paper."""

    widths: tuple[int, ...]
    bottleneck: int | None
    epochs: int
    batch_size: int = 200
    learning_rate: float = 1e-3


CONFIGS: dict[Kind, SmallImagesConfig] = {
    "mnist": SmallImagesConfig(widths=(16, 32, 64, 128), bottleneck=8, epochs=10),
    "cifar10": SmallImagesConfig(widths=(8, 16, 32), bottleneck=4, epochs=4),
}


def reproduce_small_images(
    kind: Kind, data: Path, out: Path, *, runs: int = 10, epochs: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Run every class against the rest and write ``metrics.json``, ``scores.parquet`` and ``report.html``.

    Each finished network's scores are kept in ``out / "runs"``; calling again with the same data and settings goes on
    from them, and a call that was interrupted loses one network at most. There are so many runs, with different seeds,
    per class; without a number of epochs the chosen one holds. On a CPU with the same number of threads the same seed
    gives the same numbers.

    Returns
    -------
    dict
        The content of ``metrics.json``, in the schema of `unary.evaluation.metrics`, with the name of the normal class
        as the group: areas, precisions and sensitivities are means over runs, ``auroc_runs`` lists the areas and
        ``auroc_sd`` is their standard deviation (n - 1; None for a single run). Group ``mean`` averages over classes,
        run by run; its counts are sums. Positive means: of another class than the one learned.

    Raises
    ------
    ManifestError
        If the data set is damaged or a class has no images in either split.
    TrainingError
        If ``runs`` or ``epochs`` is below 1, or if training diverges.
    """
    if runs < 1 or (epochs is not None and epochs < 1):
        raise TrainingError(f"runs and epochs must be at least 1, got {runs} and {epochs}")
    config = CONFIGS[kind] if epochs is None else dataclasses.replace(CONFIGS[kind], epochs=epochs)
    images = _READERS[kind](data)
    _check_classes(images, data)
    learned, restored = _run_all(images, config, out / "runs", runs=runs, seed=seed)
    scores = {DETECTOR: learned, **{name: own[:, None] for name, own in measure_controls(images).items()}}
    detectors = {name: _summarise(own, images) for name, own in scores.items()}
    meta = {
        "data": kind,
        "data_sha256": images.sha256(),
        "seed": seed,
        "runs": runs,
        "config": {**dataclasses.asdict(config), "widths": list(config.widths)},
        "epochs": config.epochs,
        "widths": list(config.widths),
        "train_images": len(images.train_labels),
        "test_images": len(images.test_labels),
        "versions": describe_versions(),
    }
    _write_scores(out / "scores.parquet", scores, images)
    document = {"detectors": detectors, "meta": meta}
    shown = np.stack([_restore_examples(images, label, own) for label, own in enumerate(restored)])
    write_report(build_small_report(document, shown, epochs=CONFIGS[kind].epochs), out / "report.html")
    write_metrics(out / "metrics.json", detectors, meta=meta)
    return document


def _run_all(
    images: LabelledImages, config: SmallImagesConfig, folder: Path, *, runs: int, seed: int
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Train and score every class and run that ``folder`` does not hold yet.

    Returned are scores of shape (classes, runs, n_test): RMSE of each reconstruction, in standard deviations of its
    image; and by class the first run's reconstructions of `_pick_examples`, in standardised units.
    """
    test, count = standardise_images(images.test_images), len(images.classes)
    identity = [dataclasses.asdict(config), seed, images.sha256(), torch.__version__]
    folder = folder / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    scores = np.empty((count, runs, len(test)), np.float32)
    shown: dict[int, NDArray[np.float32]] = {}
    pairs = [(label, run) for run in range(runs) for label in range(count)]
    for label, run in show_progress(pairs, title="classes x runs", unit="network"):
        path = folder / f"class{label}-run{run}.npz"
        kept = read_arrays(path, "scores", "reconstructions")
        if kept is None or kept[0].shape != (len(test),):
            train = standardise_images(images.train_images[images.train_labels == label])
            network = train_network(train, config, seeds=(seed, label, run))
            kept = _score_test(network, test, _pick_examples(images, label))
            write_arrays(path, scores=kept[0], reconstructions=kept[1])
        scores[label, run] = kept[0]
        shown.setdefault(label, kept[1])
    return scores, list(shown.values())


def standardise_images(images: NDArray[np.uint8]) -> Tensor:
    """Give each image mean 0 and standard deviation 1 over all its pixels and channels.

    Otherwise the error mostly measures how dark or how flat an image is. A constant image becomes zero. From uint8 of
    shape (n, rows, cols) or (n, rows, cols, channels) to float32 of shape (n, channels, rows, cols), `channels_last`.
    """
    values = torch.from_numpy(images.reshape(*images.shape[:3], -1).astype(np.float32)).permute(0, 3, 1, 2)
    values /= 255
    values -= values.mean(dim=(1, 2, 3), keepdim=True)
    values /= values.std(dim=(1, 2, 3), correction=0, keepdim=True).clamp_min_(_FLAT)
    return values.contiguous(memory_format=torch.channels_last)


def train_network(images: Tensor, config: SmallImagesConfig, *, seeds: tuple[int, ...]) -> Autoencoder:
    """Train on standardised images of one class, shape (n, channels, side, side), by equation 2.

    ``seeds`` fixes the initial weights and, with the number of the epoch, the order of the images.
    """
    sizes = AutoencoderConfig(
        size_px=images.shape[2],
        channels=images.shape[1],
        widths=config.widths,
        bottleneck=config.bottleneck,
        initialisation="random",
    )
    network = build_autoencoder(sizes, seed=int(np.random.SeedSequence(seeds).generate_state(1)[0]))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate, (0.9, 0.999), fused=True)

    def advance(_rng: np.random.Generator, epoch: int) -> float:
        order = torch.from_numpy(np.random.default_rng([*seeds, epoch]).permutation(len(images)))
        for start in range(0, len(order), config.batch_size):
            batch = images[order[start : start + config.batch_size]]
            loss = (network(batch) - batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.item())

    rounds, context = Rounds(DETECTOR, config.epochs, "epoch"), FitContext(seed=seeds[0], progress=False)
    train(network, optimizer, advance, rounds, context, settings=dataclasses.asdict(config), data=None)
    return network


def _pick_examples(images: LabelledImages, label: int) -> NDArray[np.int64]:
    """The places in the test split of the first images of one class, then of the first others."""
    normal = images.test_labels == label
    return np.concatenate([np.flatnonzero(normal)[:_EXAMPLES], np.flatnonzero(~normal)[:_EXAMPLES]])


def measure_controls(images: LabelledImages) -> dict[str, NDArray[np.float32]]:
    """Return scores that need no network, by name, each of shape (classes, n_test).

    ``mean_brightness`` and ``standard_deviation`` are those of an image, in [0, 1], whatever the class.
    ``mean_image`` is the root mean square distance from the mean of the class's training images, both standardised:
    the score of an autoencoder that returns one and the same picture for everything.
    """
    flat = images.test_images.reshape(len(images.test_images), -1) / np.float32(255)
    test, count = standardise_images(images.test_images), len(images.classes)
    distances = []
    for label in range(count):
        typical = standardise_images(images.train_images[images.train_labels == label]).mean(dim=0, keepdim=True)
        distances.append(reconstruction_rmse(test, typical.expand_as(test)).numpy())
    return {
        "mean_brightness": np.stack([flat.mean(axis=1)] * count),
        "standard_deviation": np.stack([flat.std(axis=1)] * count),
        "mean_image": np.stack(distances),
    }


def _summarise(scores: NDArray[np.float32], images: LabelledImages) -> dict[str, Any]:
    """One detector's part of ``metrics.json`` from its scores, of shape (classes, runs, n_test)."""
    positive = images.test_labels != np.arange(len(images.classes))[:, None]
    values = np.array(
        [[_measure_run(one, truth) for one in runs] for runs, truth in zip(scores, positive, strict=True)]
    )
    groups = {
        name: _describe(found, truth) for name, found, truth in zip(images.classes, values, positive, strict=True)
    }
    return {**groups, MEAN: _describe(values.mean(axis=0), positive)}


def _measure_run(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> list[float]:
    rates = [sensitivity_at_specificity(scores, positive, specificity=level) for level in SPECIFICITIES]
    return [auroc(scores, positive), average_precision(scores, positive), *rates]


def _describe(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> dict[str, Any]:
    """Summarise measurements of shape (runs, 2 + levels) as `_measure_run` orders them."""
    area, precision, *rates = values.mean(axis=0).tolist()
    return {
        "auroc": area,
        "auroc_sd": float(values[:, 0].std(ddof=1)) if len(values) > 1 else None,
        "auroc_ci95": None,
        "auroc_runs": values[:, 0].tolist(),
        "average_precision": precision,
        "sensitivity_at_specificity": {f"{level:.2f}": rate for level, rate in zip(SPECIFICITIES, rates, strict=True)},
        "n_positive": int(positive.sum()),
        "n_negative": int((~positive).sum()),
    }


def _write_scores(path: Path, scores: Mapping[str, NDArray[np.float32]], images: LabelledImages) -> None:
    """Write ``scores.parquet``: one row per normal class, run and test image.

    Columns: ``class`` (the one learned), ``run``, ``index`` (place in the test split), ``label`` (name of the image's
    own class), ``positive``, and ``score_<detector>``, float32.
    """
    import pyarrow
    import pyarrow.parquet

    shape = scores[DETECTOR].shape
    label, run, index = np.indices(shape, np.int32)
    own = np.broadcast_to(images.test_labels, shape)

    def name(labels: Any) -> pyarrow.DictionaryArray:
        return pyarrow.DictionaryArray.from_arrays(labels.astype(np.uint8).ravel(), list(images.classes))

    columns = {
        "class": name(label),
        "run": run.ravel(),
        "positive": (own != label).ravel(),
        **{f"score_{detector}": np.broadcast_to(each, shape).ravel() for detector, each in scores.items()},
        "index": index.ravel(),
        "label": name(own),
    }
    with replacing(path) as partial:
        pyarrow.parquet.write_table(pyarrow.table(columns), partial)


def _score_test(
    network: Autoencoder, test: Tensor, examples: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.inference_mode():
        restored = torch.cat([network(test[start : start + 500]) for start in range(0, len(test), 500)])
    shown = restored[torch.from_numpy(examples)].permute(0, 2, 3, 1)
    return reconstruction_rmse(test, restored).numpy(), np.ascontiguousarray(shown.numpy())


def _restore_examples(images: LabelledImages, label: int, reconstructions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images and reconstructions in intensities, shape (2, m, rows, cols, channels)."""
    chosen = images.test_images[_pick_examples(images, label)]
    inputs = chosen.reshape(*chosen.shape[:3], -1) / np.float32(255)
    spread = np.maximum(inputs.std(axis=(1, 2, 3), keepdims=True), _FLAT)
    restored = reconstructions * spread + inputs.mean(axis=(1, 2, 3), keepdims=True)
    return np.stack([inputs, restored.astype(np.float32)])


def _check_classes(images: LabelledImages, data: Path) -> None:
    for split, labels in (("training", images.train_labels), ("test", images.test_labels)):
        missing = [name for label, name in enumerate(images.classes) if label not in labels]
        if missing:
            raise ManifestError(f"{data}: the {split} split has no image of class {missing[0]}; is the data set whole?")
