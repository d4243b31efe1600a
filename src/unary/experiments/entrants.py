"""The detectors that take part in the bench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.detectors.laplacian import LaplacianConfig, fit_laplacian
from unary.detectors.protocol import Detector
from unary.experiments.bench import BenchData, Entrant
from unary.scoring import measure_controls, score_patch_set


@dataclass(frozen=True)
class _Fine:
    """A detector of fine patches."""

    detector: Detector
    parameters: int = 0

    def score(self, data: BenchData, which: NDArray[np.intp]) -> NDArray[np.float64]:
        return score_patch_set(self.detector, data.fine.patches.subset(which))


@dataclass(frozen=True)
class _Brightness:
    parameters: int = 0

    def score(self, data: BenchData, which: NDArray[np.intp]) -> NDArray[np.float64]:
        return measure_controls(data.fine.patches.subset(which))["mean_brightness"]


def _fit_laplacian(data: BenchData, normal: NDArray[np.intp], _seed: int, _checkpoint: Path) -> _Fine:
    return _Fine(fit_laplacian(data.fine.patches.subset(normal), LaplacianConfig()))


def _fit_brightness(_data: BenchData, _normal: NDArray[np.intp], _seed: int, _checkpoint: Path) -> _Brightness:
    return _Brightness()


ENTRANTS = (
    Entrant("mean_brightness", "control", "mean intensity of the patch", _fit_brightness),
    Entrant("laplacian", "no learning", "multi-scale Laplacian of Gaussian, locally normalised", _fit_laplacian),
)
