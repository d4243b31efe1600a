"""Learned detectors that take part in the bench: the paper's network scored in several ways, and its relatives."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from unary.detectors.fit_denoising import DEFAULT_STEPS as DENOISING_STEPS
from unary.detectors.fit_denoising import fit_denoising
from unary.detectors.fit_variational import DEFAULT_STEPS as CODE_STEPS
from unary.detectors.fit_variational import fit_bottleneck, fit_variational
from unary.detectors.protocol import Detector, ImageDetector
from unary.detectors.residual import Dssim, fit_residual
from unary.detectors.tissue import read_tissue
from unary.detectors.wei2018.autoencoder import ReconstructionDetector
from unary.detectors.wei2018.native import build_reconstruction
from unary.errors import TrainingError
from unary.experiments.bench import BenchData, Entrant
from unary.models.pipeline import train_network
from unary.models.scoring import score_patch_set
from unary.training.engine import StepsConfig, TrainingConfig

PAPER_TRAINING = TrainingConfig(epochs=50)
CODE_EPOCHS = 30


@dataclass(frozen=True, eq=False)
class FineScorer:
    """A detector of fine patches."""

    detector: Detector
    parameters: int = 0

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


def share_checkpoint(checkpoint: Path, name: str, data: BenchData, normal: NDArray[np.intp]) -> Path:
    """A path beside ``checkpoint`` that depends on what is learned from, and not on which entrant asks for it."""
    digest = hashlib.sha256(data.data_hash.encode())
    digest.update(np.asarray(normal, np.int64).tobytes())
    return checkpoint.with_name(f"{name}-{digest.hexdigest()[:16]}")


def _train_paper(
    data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path
) -> tuple[ReconstructionDetector, int]:
    """The paper's network, trained by the first entrant that needs it and read back by the others."""
    training = dataclasses.replace(PAPER_TRAINING, seed=seed)
    shared = share_checkpoint(checkpoint, f"wei2018-{seed}-{PAPER_TRAINING.epochs}", data, normal)
    trained = train_network(data.fine.patches.subset(normal), training, checkpoint=shared, title="wei2018")
    return build_reconstruction(trained.network), _count(trained.network)


def _fit_wei2018(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> FineScorer:
    return FineScorer(*_train_paper(data, normal, seed, checkpoint))


def _fit_residual(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> FineScorer:
    reconstruction, parameters = _train_paper(data, normal, seed, checkpoint)
    return FineScorer(fit_residual(reconstruction, data.fine.patches.subset(normal)), parameters)


def _fit_residual_dssim(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> FineScorer:
    reconstruction, parameters = _train_paper(data, normal, seed, checkpoint)
    return FineScorer(Dssim(reconstruction), parameters)


def _enter_bottleneck(bottleneck: int) -> Entrant:
    name = f"bottleneck_{bottleneck}"

    def fit(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> FineScorer:
        patches = data.fine.patches.subset(normal)
        steps = _plan_steps(len(patches), seed)
        with _show(name, steps.steps) as advance:
            detector = fit_bottleneck(patches, bottleneck, steps=steps, checkpoint=checkpoint, on_step=advance)
        return FineScorer(detector, _count(detector.network))

    summary = f"wei2018 narrowed to {bottleneck} numbers, patch RMSE; {_CODE_SUMMARY}"
    return Entrant(name, "normals only", summary, fit)


def _fit_variational(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> FineScorer:
    patches = data.fine.patches.subset(normal)
    steps = _plan_steps(len(patches), seed)
    with _show("variational", steps.steps) as advance:
        detector = fit_variational(patches, steps, checkpoint=checkpoint, on_step=advance)
    return FineScorer(detector, _count(detector.network))


def _plan_steps(patches: int, seed: int) -> StepsConfig:
    """The steps that make up `CODE_EPOCHS` passes over the patches."""
    steps = CODE_EPOCHS * math.ceil(patches / CODE_STEPS.batch_size)
    return dataclasses.replace(CODE_STEPS, steps=max(steps, 1), seed=seed)


def _fit_denoising(data: BenchData, normal: NDArray[np.intp], seed: int, checkpoint: Path) -> _Coarse:
    patches = data.coarse.patches
    numbers = np.unique(patches.index[normal, 0])
    if len(numbers) == 0:
        raise TrainingError("denoising needs at least one image of normal tissue, there is none")
    tissues = [read_tissue(patches.images[number]) for number in numbers.tolist()]
    steps = dataclasses.replace(DENOISING_STEPS, seed=seed)
    with _show("denoising", steps.steps) as advance:
        detector = fit_denoising(tissues, steps, checkpoint=checkpoint, on_step=advance)
    return _Coarse(detector, _count(detector.network))


@contextmanager
def _show(title: str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Give what moves a progress bar on: called with the steps done and the loss."""
    with tqdm(total=total, desc=title, unit="step", delay=2, disable=None) as bar:

        def advance(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3e}", refresh=False)

        yield advance


_CODE_SUMMARY = (
    f"{CODE_EPOCHS} epochs, batches of {CODE_STEPS.batch_size}, learning rate {CODE_STEPS.learning_rate:g} falling, "
    "pyramid start"
)

LEARNED: tuple[Entrant, ...] = (
    Entrant(
        "wei2018",
        "normals only",
        f"the paper's autoencoder (4 x 4 x 32 = 512 numbers), patch RMSE; {PAPER_TRAINING.epochs} epochs, batches of "
        f"{PAPER_TRAINING.batch_size}, learning rate {PAPER_TRAINING.learning_rate:g}",
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
        f"variational autoencoder, 32 dimensions, KL weight 1, RMSE of the mean reconstruction; {_CODE_SUMMARY}",
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
