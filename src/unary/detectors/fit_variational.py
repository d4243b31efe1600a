"""Fitting autoencoders with a dense code on normal patches: the paper's network narrowed, and the variational one.

Both by the same loop, from the same start and on the same draws, so that they differ by the code alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unary.detectors.variational import (
    Variational,
    VariationalConfig,
    build_variational,
    start_as_pyramid,
    variational_loss,
)
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, ReconstructionDetector, build_autoencoder
from unary.errors import TrainingError
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import FULL_SCALE
from unary.training.engine import StepsConfig, optimise

DEFAULT_STEPS = StepsConfig(steps=900, batch_size=100, weight_decay=0.0)


def fit_variational(
    patches: PatchSet,
    steps: StepsConfig = DEFAULT_STEPS,
    *,
    config: VariationalConfig | None = None,
    widths: tuple[int, ...] = AutoencoderConfig.widths,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Variational:
    """Learn to reconstruct normal patches from a code of bounded information.

    Raises
    ------
    TrainingError
        If there are too few patches, they are blank, or training diverges.
    """
    chosen = config or VariationalConfig()
    network = build_variational(chosen, _shape_body(patches, widths), seed=steps.seed)

    def compute_loss(rng: np.random.Generator) -> Tensor:
        batch = _draw_batch(patches, rng, count=steps.batch_size)
        deviates = torch.from_numpy(rng.standard_normal((len(batch), chosen.latent), dtype=np.float32))
        return variational_loss(network, batch, deviates, kl_weight=chosen.kl_weight)

    # The name goes into the checkpoint: another code, weight or set of patches must not be resumed from it.
    name = f"variational ({chosen.latent} dimensions, KL weight {chosen.kl_weight:g}, {len(patches)} patches)"
    optimise(network, compute_loss, steps, name=name, checkpoint=checkpoint, on_step=on_step)
    return Variational(network, chosen)


def fit_bottleneck(
    patches: PatchSet,
    bottleneck: int,
    *,
    steps: StepsConfig = DEFAULT_STEPS,
    widths: tuple[int, ...] = AutoencoderConfig.widths,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> ReconstructionDetector:
    """Train the paper's network narrowed to ``bottleneck`` numbers, scored by RMSE like the paper's.

    `unary.training.engine.train_autoencoder` does this from a random start, which takes far longer to leave the mean; see
    `unary.detectors.variational`.

    Raises
    ------
    TrainingError
        If there are too few patches, they are blank, or training diverges.
    """
    config = dataclasses.replace(_shape_body(patches, widths), bottleneck=bottleneck)
    network = build_autoencoder(config, seed=steps.seed)
    start_as_pyramid(network, seed=steps.seed)

    def compute_loss(rng: np.random.Generator) -> Tensor:
        batch = _draw_batch(patches, rng, count=steps.batch_size)
        restored: Tensor = network(batch)
        return 0.5 * ((restored - batch) / config.input_scale).square().mean()

    name = f"bottleneck ({bottleneck} numbers, {len(patches)} patches)"
    optimise(network, compute_loss, steps, name=name, checkpoint=checkpoint, on_step=on_step)
    return ReconstructionDetector(network)


def _shape_body(patches: PatchSet, widths: tuple[int, ...]) -> AutoencoderConfig:
    mean, scale = _measure_intensity(patches)
    return AutoencoderConfig(size_px=patches.size_px, widths=widths, input_mean=mean, input_scale=scale)


def _draw_batch(patches: PatchSet, rng: np.random.Generator, *, count: int) -> Tensor:
    which = rng.choice(len(patches), min(count, len(patches)), replace=False)
    return torch.from_numpy(patches.gather(which)).float().div_(FULL_SCALE)[:, None]


def _measure_intensity(patches: PatchSet) -> tuple[float, float]:
    """Mean and standard deviation of up to 2,000 patches."""
    if len(patches) < 2:
        raise TrainingError(f"training needs at least two normal patches, there are {len(patches)}")
    which = np.unique(np.linspace(0, len(patches) - 1, 2000).round().astype(int))
    sums: NDArray[np.float64] = np.zeros(2)
    for start in range(0, len(which), 200):
        values = patches.gather(which[start : start + 200]) / np.float64(FULL_SCALE)
        sums += values.sum(), np.square(values).sum()
    mean, square = (sums / (len(which) * patches.size_px**2)).tolist()
    scale = math.sqrt(max(square - mean * mean, 0.0))
    if scale < 0.5 / FULL_SCALE:
        raise TrainingError("all normal patches have one single intensity; are the images blank?")
    return mean, scale
