"""Fitting the fused detectors: train the parts, calibrate them on normal patches, add them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.detectors.dense_laplacian import STRONGEST as LAPLACIAN_STRONGEST
from unary.detectors.dense_laplacian import DenseLaplacian, fit_dense_laplacian, scale_responses
from unary.detectors.fit_blind_spot import DEFAULT_STEPS as BLIND_SPOT_STEPS
from unary.detectors.fit_blind_spot import fit_blind_spot
from unary.detectors.fit_segmentation import DEFAULT_STEPS as SEGMENTATION_STEPS
from unary.detectors.fit_segmentation import fit_segmentation
from unary.detectors.fusion import Fusion, Part, fuse_parts, pool_patches
from unary.detectors.prominence import Prominence
from unary.detectors.segmentation import STRONGEST as SEGMENTATION_STRONGEST
from unary.training.threads import map_in_threads
from unary.detectors.tissue import Tissue, read_tissue
from unary.errors import TrainingError
from unary.patches.grid import Origins
from unary.training.engine import StepsConfig

BLIND_SPOT_STRONGEST = 2
Progress = Callable[[str, int, int], None]  # what is trained, steps done, steps in all


@dataclass(frozen=True)
class FusionConfig:
    """Which parts, and how much each counts.

    Attributes
    ----------
    weights
        By part: ``laplacian``, ``blind_spot``, ``prominence``, ``segmentation``. A part that is not named is not
        fitted.
    blind_spot, segmentation
        Optimisation of the learned parts.
    seed
        Of the initial weights and all draws.
    """

    weights: tuple[tuple[str, float], ...] = (("laplacian", 1.0), ("blind_spot", 1.0), ("prominence", 1.0))
    blind_spot: StepsConfig = field(default_factory=lambda: BLIND_SPOT_STEPS)
    segmentation: StepsConfig = field(default_factory=lambda: SEGMENTATION_STEPS)
    seed: int = 0

    def __post_init__(self) -> None:
        known = ("laplacian", "blind_spot", "prominence", "segmentation")
        names = [name for name, _ in self.weights]
        if not names or len(set(names)) < len(names) or any(name not in known for name in names):
            raise ValueError(f"the parts of a fusion must be distinct and among {known}, got {names}")
        if any(not weight > 0 for _, weight in self.weights):
            raise ValueError(f"the weights of a fusion must be positive: {self.weights}")


WITH_PRIOR = (("laplacian", 1.0), ("blind_spot", 1.0), ("segmentation", 1.0), ("prominence", 1.0))


@dataclass(frozen=True, eq=False)
class NormalImage:
    """A prepared image, (rows, cols) uint16, and the origins of its normal patches, (n, 2)."""

    pixels: NDArray[np.uint16]
    origins: Origins


def fit_fusion(
    normals: Sequence[NormalImage],
    config: FusionConfig,
    *,
    size_px: int,
    checkpoint: Path | None = None,
    on_step: Progress | None = None,
) -> Fusion:
    """Train and calibrate every part on images of normal tissue.

    Parameters
    ----------
    normals
        Images alone, or with patches that are left out because a benign lesion is near; the tissue around such
        patches is trained on all the same, which a few pixels in a million do not change.
    config
        Parts and training.
    size_px
        Side of a patch.
    checkpoint
        Each learned part writes its state to this name with the part's name appended.
    on_step
        Called with the part's name, the steps done and the steps in all.

    Raises
    ------
    TrainingError
        If there are too few normal patches or images, or training diverges.
    """
    if not normals:
        raise TrainingError("there is no normal image to learn from")
    simulates = any(name == "segmentation" for name, _ in config.weights)
    tissues = list(map_in_threads(lambda normal: read_tissue(normal.pixels, with_noise=simulates), normals))
    parts: list[tuple[str, Part, int | None, float]] = []
    for name, weight in config.weights:
        strongest, part = _fit_part(name, tissues, normals, config, size_px, checkpoint, on_step)
        parts.append((name, part, strongest, weight))
    return fuse_parts(
        parts, [(tissue, normal.origins) for tissue, normal in zip(tissues, normals, strict=True)], size_px=size_px
    )


def _fit_part(
    name: str,
    tissues: Sequence[Tissue],
    normals: Sequence[NormalImage],
    config: FusionConfig,
    size_px: int,
    checkpoint: Path | None,
    on_step: Progress | None,
) -> tuple[int | None, Part]:
    """Return how many of the strongest pixels a patch takes from the part, and the part."""
    if name == "prominence":
        return None, Prominence()
    if name == "laplacian":
        return LAPLACIAN_STRONGEST, calibrate_laplacian(tissues, normals, size_px=size_px)
    own = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{name}")
    steps = config.blind_spot if name == "blind_spot" else config.segmentation
    seeded = StepsConfig(**{**vars(steps), "seed": config.seed})

    def advance(step: int, _loss: float) -> None:
        if on_step is not None:
            on_step(name, step, seeded.steps)

    if name == "blind_spot":
        return BLIND_SPOT_STRONGEST, fit_blind_spot(tissues, seeded, checkpoint=own, on_step=advance)
    return SEGMENTATION_STRONGEST, fit_segmentation(tissues, seeded, checkpoint=own, on_step=advance)


def calibrate_laplacian(tissues: Sequence[Tissue], normals: Sequence[NormalImage], *, size_px: int) -> DenseLaplacian:
    """Measure the pooled response of each scale on normal patches."""

    def pool(number: int) -> list[NDArray[np.float64]]:
        return [
            pool_patches(response, normals[number].origins, size_px=size_px, strongest=LAPLACIAN_STRONGEST)
            for response in scale_responses(tissues[number])
        ]

    pooled = list(map_in_threads(pool, range(len(normals))))
    return fit_dense_laplacian([np.concatenate(scale) for scale in zip(*pooled, strict=True)])
