"""The detectors that take part in the bench.

Learned parts that several entrants share are trained once per fold and seed: their checkpoints carry the name of the
part and of the training patches, not of the entrant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.detectors.fit_fusion import WITH_PRIOR, FusionConfig
from unary.detectors.fusion import FusedPart, Fusion, pool_patches
from unary.detectors.fusion_parts import count_weights
from unary.detectors.laplacian import LaplacianConfig, fit_laplacian
from unary.detectors.tissue import read_tissue
from unary.experiments.bench import BenchData, Entrant, Fit
from unary.experiments.entrants_learned import LEARNED, FineScorer, share_checkpoint
from unary.models.pipeline import train_fusion
from unary.models.scoring import measure_controls

Positions = NDArray[np.intp]


@dataclass(frozen=True)
class _Control:
    """A score that knows nothing of lesions."""

    name: str
    parameters: int = 0

    def score(self, data: BenchData, which: Positions) -> NDArray[np.float64]:
        return measure_controls(data.fine.patches.subset(which))[self.name]


def _fit_control(name: str, _data: BenchData, _normal: Positions, _seed: int, _checkpoint: Path) -> _Control:
    return _Control(name)


def _fit_laplacian(data: BenchData, normal: Positions, _seed: int, _checkpoint: Path) -> FineScorer:
    return FineScorer(fit_laplacian(data.fine.patches.subset(normal), LaplacianConfig()))


@dataclass(frozen=True)
class _FusedParts:
    """Calibrated parts, trained once, and which of them an entrant takes."""

    learned: tuple[Fusion, ...]
    weights: tuple[tuple[str, float], ...]

    @property
    def parameters(self) -> int:
        """Number of learned weights."""
        return sum(count_weights(fused.part) for fused, _ in self._chosen())

    def score(self, data: BenchData, which: Positions) -> NDArray[np.float64]:
        """Return the weighted sum of surprisals of the chosen parts."""
        total = np.zeros(len(which))
        for fused, weight in self._chosen():
            total += weight * fused.surprisal(_pool_part(fused, data, which.tobytes()))
        return total

    def _chosen(self) -> list[tuple[FusedPart, float]]:
        weights = dict(self.weights)
        return [(part, weights[part.name]) for fusion in self.learned for part in fusion.parts if part.name in weights]


# A part is calibrated on its own, so that entrants may share it. The bench runs all entrants of a fold in a row; the
# caches hold that fold alone, and the first entrant that needs a part is billed for its time.
@lru_cache(maxsize=2)
def _fit_parts(
    weights: tuple[tuple[str, float], ...], data: BenchData, normal: bytes, seed: int, checkpoint: Path
) -> Fusion:
    patches = data.coarse.patches.subset(np.frombuffer(normal, np.intp))
    return train_fusion(patches, FusionConfig(weights, seed=seed), checkpoint=checkpoint, title="fusion")


@lru_cache(maxsize=4)
def _pool_part(fused: FusedPart, data: BenchData, which: bytes) -> NDArray[np.float64]:
    patches = data.coarse.patches.subset(np.frombuffer(which, np.intp))
    pooled = np.empty(len(patches))
    for image in np.unique(patches.index[:, 0]):
        of_image = patches.index[:, 0] == image
        answer = fused.part.map_tissue(read_tissue(patches.images[image]))
        pooled[of_image] = pool_patches(
            answer, patches.index[of_image, 1:], size_px=patches.size_px, strongest=fused.strongest
        )
    return pooled


def _fit_fusion(
    weights: tuple[tuple[str, float], ...],
    data: BenchData,
    normal: Positions,
    seed: int,
    checkpoint: Path,
) -> _FusedParts:
    shared = share_checkpoint(checkpoint, f"dense-{seed}", data, normal)
    names = {name for name, _ in weights}
    families = [family for family in (_STRICT, (_SEGMENTATION,)) if names & {name for name, _ in family}]
    learned = tuple(_fit_parts(family, data, normal.tobytes(), seed, shared) for family in families)
    return _FusedParts(learned, weights)


_LAPLACIAN, _BLIND_SPOT, _PROMINENCE = FusionConfig().weights
_SEGMENTATION = ("segmentation", dict(WITH_PRIOR)["segmentation"])
_STRICT = FusionConfig().weights


def _fuse(*weights: tuple[str, float]) -> Fit:
    return partial(_fit_fusion, weights)


ENTRANTS = (
    Entrant("mean_brightness", "control", "mean intensity of the patch", partial(_fit_control, "mean_brightness")),
    Entrant("standard_deviation", "control", "of the patch's intensity", partial(_fit_control, "standard_deviation")),
    Entrant("laplacian", "no learning", "multi-scale Laplacian of Gaussian, locally normalised", _fit_laplacian),
    Entrant(
        "fusion",
        "normals only",
        "dense_laplacian + blind_spot + prominence, as surprisals; pays for the parts marked (*)",
        _fuse(_LAPLACIAN, _BLIND_SPOT, _PROMINENCE),
    ),
    Entrant(
        "dense_laplacian",
        "no learning",
        "the same on whole images, scaled by place and image (*)",
        _fuse(_LAPLACIAN),
    ),
    Entrant("prominence", "no learning", "regional brightness against the breast's own (*)", _fuse(_PROMINENCE)),
    Entrant("blind_spot", "normals only", "surprise of a pixel given its surroundings (*)", _fuse(_BLIND_SPOT)),
    Entrant(
        "fusion_specks",
        "normals only",
        "ablation of the fusion: without prominence (*)",
        _fuse(_LAPLACIAN, _BLIND_SPOT),
    ),
    Entrant(
        "fusion_unlearned",
        "no learning",
        "ablation of the fusion: without blind_spot (*)",
        _fuse(_LAPLACIAN, _PROMINENCE),
    ),
    *LEARNED,
    Entrant("segmentation", "normals + lesion prior", "U-Net on simulated calcifications", _fuse(_SEGMENTATION)),
    Entrant(
        "fusion_prior",
        "normals + lesion prior",
        "the fusion + segmentation (*)",
        _fuse(_LAPLACIAN, _BLIND_SPOT, _SEGMENTATION, _PROMINENCE),
    ),
)
