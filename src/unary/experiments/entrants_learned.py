"""Learned detectors that take part in the bench: the paper's network scored in several ways, and its relatives."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from unary.detectors.autoencoder import ReconstructionDetector
from unary.detectors.protocol import Detector, ImageDetector
from unary.detectors.residual import Dssim, fit_residual
from unary.detectors.tissue import read_tissue
from unary.errors import TrainingError
from unary.experiments.bench import BenchData, Entrant
from unary.fitting.denoising import DEFAULT_STEPS as DENOISING_STEPS
from unary.fitting.denoising import fit_denoising
from unary.fitting.variational import DEFAULT_STEPS as VARIATIONAL_STEPS
from unary.fitting.variational import fit_variational
from unary.pipeline import train_network
from unary.scoring import score_patch_set
from unary.training import TrainingConfig, train_autoencoder

PAPER_TRAINING = TrainingConfig(epochs=50)
BOTTLENECK_TRAINING = TrainingConfig(epochs=30)


@dataclass(frozen=True, eq=False)
class _Fine:
    """A detector of fine patches."""

    detector: Detector
    parameters: int

    def score(self, data: BenchData, which: NDArray[np.intp]) -> NDArray[np.float64]:
        return score_patch_set(self.detector, data.fine.patches.subset(which))


@dataclass(frozen=True, eq=False)
class _Coarse:
    """A detector of whole coarse images."""

    detector: ImageDetector
    parameters: int

    def score(self, data: BenchData, which: NDArray[np.intp]) -> NDArray[np.float64]:
        return score_patch_set(self.detector, data.coarse.patches.subset(which))


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _share_checkpoint(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> Path:
    """A path in the same folder that depends on what the paper's network learns from, and not on who asks for it."""
    digest = hashlib.sha256(f"{data.data_hash} {PAPER_TRAINING}".encode())
    digest.update(np.asarray(normal, np.int64).tobytes())
    return checkpoint.with_name(f"wei2018-{seed}-shared-{digest.hexdigest()[:16]}")


def _train_paper(
    data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path
) -> tuple[ReconstructionDetector, int]:
    """The paper's network, trained by the first entrant that needs it and read back by the others."""
    training = dataclasses.replace(PAPER_TRAINING, seed=seed)
    shared = _share_checkpoint(data, normal, seed, checkpoint)
    trained = train_network(data.fine.patches.subset(normal), training, checkpoint=shared, title="wei2018")
    return ReconstructionDetector(trained.network), _count(trained.network)


def _fit_wei2018(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> _Fine:
    return _Fine(*_train_paper(data, normal, seed, checkpoint))


def _fit_residual(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> _Fine:
    reconstruction, parameters = _train_paper(data, normal, seed, checkpoint)
    return _Fine(fit_residual(reconstruction, data.fine.patches.subset(normal)), parameters)


def _fit_residual_dssim(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> _Fine:
    reconstruction, parameters = _train_paper(data, normal, seed, checkpoint)
    return _Fine(Dssim(reconstruction), parameters)


def _enter_bottleneck(bottleneck: int) -> Entrant:
    name = f"bottleneck_{bottleneck}"

    def fit(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> _Fine:
        training = dataclasses.replace(BOTTLENECK_TRAINING, seed=seed)
        with _show(name, training.epochs, "epoch") as bar:

            def advance(epoch: int, loss: float) -> None:
                bar.update(epoch - bar.n)
                bar.set_postfix(loss=f"{loss:.3e}")

            trained = train_autoencoder(
                data.fine.patches.subset(normal),
                training,
                bottleneck=bottleneck,
                checkpoint=checkpoint,
                on_epoch=advance,
            )
        return _Fine(ReconstructionDetector(trained.network), _count(trained.network))

    summary = f"wei2018 narrowed to {bottleneck} numbers, patch RMSE; {_describe(BOTTLENECK_TRAINING)}"
    return Entrant(name, "normals only", summary, fit)


def _fit_variational(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> _Fine:
    patches = data.fine.patches.subset(normal)
    per_epoch = math.ceil(len(patches) / VARIATIONAL_STEPS.batch_size)
    steps = dataclasses.replace(VARIATIONAL_STEPS, steps=max(BOTTLENECK_TRAINING.epochs * per_epoch, 1), seed=seed)
    with _show("variational", steps.steps, "step") as bar:

        def advance(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3e}", refresh=False)

        detector = fit_variational(patches, steps, checkpoint=checkpoint, on_step=advance)
    return _Fine(detector, _count(detector.network))


def _fit_denoising(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> _Coarse:
    patches = data.coarse.patches
    numbers = np.unique(patches.index[normal, 0])
    if len(numbers) == 0:
        raise TrainingError("denoising needs at least one image of normal tissue, there is none")
    tissues = [read_tissue(patches.images[number]) for number in numbers.tolist()]
    steps = dataclasses.replace(DENOISING_STEPS, seed=seed)
    with _show("denoising", steps.steps, "step") as bar:

        def advance(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3e}", refresh=False)

        detector = fit_denoising(tissues, steps, checkpoint=checkpoint, on_step=advance)
    return _Coarse(detector, _count(detector.network))


@contextmanager
def _show(title: str, total: int, unit: str) -> Iterator[tqdm]:
    """A progress bar that appears for what takes long, on a terminal alone."""
    with tqdm(total=total, desc=title, unit=unit, delay=2, disable=None, leave=False) as bar:
        yield bar


def _describe(training: TrainingConfig) -> str:
    return f"{training.epochs} epochs, batches of {training.batch_size}, learning rate {training.learning_rate:g}"


LEARNED: tuple[Entrant, ...] = (
    Entrant(
        "wei2018",
        "normals only",
        f"the paper's autoencoder, patch RMSE; {_describe(PAPER_TRAINING)}",
        _fit_wei2018,
    ),
    Entrant(
        "residual",
        "normals only",
        "wei2018's network (trained once for all that share it): signed residual, whitened, matched filters",
        _fit_residual,
    ),
    Entrant(
        "residual_dssim",
        "normals only",
        "wei2018's network (trained once for all that share it): structural dissimilarity, strongest 1 %",
        _fit_residual_dssim,
    ),
    *(_enter_bottleneck(bottleneck) for bottleneck in (4, 32, 128)),
    Entrant(
        "variational",
        "normals only",
        f"variational autoencoder, 32 dimensions, KL weight 1, RMSE of the mean reconstruction; "
        f"{BOTTLENECK_TRAINING.epochs} epochs, batches of {VARIATIONAL_STEPS.batch_size}",
        _fit_variational,
    ),
    Entrant(
        "denoising",
        "normals only",
        f"denoising U-Net at 0.14 mm, corrupted at the scale of a speck; {DENOISING_STEPS.steps} steps of "
        f"{DENOISING_STEPS.batch_size} crops",
        _fit_denoising,
    ),
)
