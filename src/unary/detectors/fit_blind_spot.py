"""Fitting `unary.detectors.blind_spot`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unary.detectors.blind_spot import (
    BlindSpot,
    BlindSpotConfig,
    build_blind_spot,
    fine_structure,
    smooth_target,
    surprise_loss,
)
from unary.detectors.crops import draw_crop, find_sources, identify_sources, turn
from unary.detectors.tissue import Tissue
from unary.training.engine import StepsConfig, optimise

CROP_PX = 64
DEFAULT_STEPS = StepsConfig(steps=1000, batch_size=8, learning_rate=8e-3)


def fit_blind_spot(
    tissues: Sequence[Tissue],
    steps: StepsConfig = DEFAULT_STEPS,
    *,
    config: BlindSpotConfig | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> BlindSpot:
    """Learn to predict normal tissue from its surroundings.

    Raises
    ------
    TrainingError
        If no image is large enough, or training diverges.
    """
    # The crops are of the fine structure, taken once per image rather than once per crop.
    sources = find_sources([_replace_by_structure(tissue) for tissue in tissues], size_px=CROP_PX)
    network = build_blind_spot(config or BlindSpotConfig(), seed=steps.seed)

    def compute_loss(rng: np.random.Generator) -> Tensor:
        batch = np.empty((steps.batch_size, 1, CROP_PX, CROP_PX), np.float32)
        for crop in batch:
            crop[0] = turn(draw_crop(sources, rng, size_px=CROP_PX).intensity, int(rng.integers(8)))
        structure = torch.from_numpy(batch)
        mean, log_spread = network(structure.contiguous(memory_format=torch.channels_last))
        return surprise_loss(smooth_target(structure), mean, log_spread)

    optimise(
        network,
        compute_loss,
        steps,
        name=f"blind_spot {identify_sources(sources)}",
        checkpoint=checkpoint,
        on_step=on_step,
    )
    return BlindSpot(network)


def _replace_by_structure(tissue: Tissue) -> Tissue:
    structure = fine_structure(torch.from_numpy(tissue.intensity)[None, None])[0, 0].numpy()
    return dataclasses.replace(tissue, intensity=structure)
