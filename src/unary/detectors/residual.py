"""Other ways to score the paper's reconstruction than by the RMSE of a patch.

A patch-wide RMSE drowns a speck in thousands of quiet pixels, takes dark for bright, and is large wherever tissue is
busy. `Residual` keeps the sign of the error (a calcification is brighter than what was expected there), divides it by
the error that is usual around the pixel, looks for blobs of several sizes and takes the strongest. `Dssim` compares
local structure instead of intensity: structural dissimilarity (Wang et al. 2004), which Hou et al. 2022 call the key
advance of their detector of calcifications. The network is the same in all of them, so that what they differ by is
the score alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.detectors.laplacian import Laplacian, LaplacianConfig, local_rms, pool_values, standardise_scales
from unary.detectors.protocol import Examination
from unary.detectors.wei2018.autoencoder import ReconstructionDetector
from unary.errors import TrainingError
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import FULL_SCALE

_FLOOR = 1e-3  # of intensity, added to the local RMS: below it an error is rounding, however quiet the surroundings
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Residual:
    """Signed, whitened and matched-filtered error of a reconstruction.

    Attributes
    ----------
    reconstruction
        The trained network.
    bank
        The filter bank, standardised on the whitened errors of normal patches; bright blobs answer positively. Its
        ``neighbourhood_px`` is also the window of the whitening.
    """

    reconstruction: ReconstructionDetector
    bank: Laplacian

    def examine(self, patches: NDArray[np.uint16]) -> Examination:
        """Score by the largest standardised pooled response over scales; see `unary.detectors.laplacian`."""
        return self.bank.examine_values(whiten_error(self.reconstruction, patches, self.bank.config.neighbourhood_px))


def whiten_error(
    reconstruction: ReconstructionDetector, patches: NDArray[np.uint16], neighbourhood_px: float
) -> NDArray[np.float32]:
    """Return input minus reconstruction in units of its local root mean square, shape (n, size, size), float32."""
    error = reconstruction.error_maps(patches)
    whitened: NDArray[np.float32] = error / (local_rms(error, neighbourhood_px) + np.float32(_FLOOR))
    return whitened


def fit_residual(
    reconstruction: ReconstructionDetector,
    patches: PatchSet,
    config: LaplacianConfig | None = None,
    *,
    at_most: int = 4000,
) -> Residual:
    """Measure how normal patches answer, on at most ``at_most`` of them, evenly spaced.

    Parameters
    ----------
    reconstruction
        A trained network.
    patches
        Normal patches, those that it was trained on.
    config
        Scales, neighbourhood and pooling; by default those of the yardstick.
    at_most
        More say nothing new.

    Raises
    ------
    TrainingError
        If there are fewer than two patches, all are reconstructed alike, or the reconstruction is not finite.
    """
    if len(patches) < 2:
        raise TrainingError(f"residual needs at least two normal patches, there are {len(patches)}")
    config = config or LaplacianConfig()
    chosen = np.unique(np.linspace(0, len(patches) - 1, at_most).round().astype(int))
    pooled = []
    for start in range(0, len(chosen), _CHUNK):
        batch = patches.gather(chosen[start : start + _CHUNK])
        pooled.append(pool_values(whiten_error(reconstruction, batch, config.neighbourhood_px), config))
    answers = np.concatenate(pooled)
    if not np.isfinite(answers).all():
        raise TrainingError("residual: the network's reconstructions are not finite; its training has diverged")
    return Residual(reconstruction, standardise_scales(answers, config))


@dataclass(frozen=True, eq=False)
class Dssim:
    """Structural dissimilarity of patch and reconstruction.

    Attributes
    ----------
    reconstruction
        The trained network.
    window_px
        Odd side of the square window.
    strongest_share
        The share, in (0, 1], of a patch's pixels whose mean is its score: the most dissimilar ones; 1 takes all.
    """

    reconstruction: ReconstructionDetector
    window_px: int = 7
    strongest_share: float = 0.01

    def __post_init__(self) -> None:
        if self.window_px < 3 or self.window_px % 2 == 0:
            raise ValueError(f"window_px must be odd and at least 3, got {self.window_px}")
        if not 0 < self.strongest_share <= 1:
            raise ValueError(f"strongest_share must lie in (0, 1], got {self.strongest_share}")

    def examine(self, patches: NDArray[np.uint16]) -> Examination:
        """Score by the mean of the most dissimilar pixels; the map is (1 - SSIM) / 2, in [0, 1]."""
        maps = self.dissimilarity_maps(patches)
        flat = maps.reshape(len(maps), -1)
        first = flat.shape[1] - max(round(self.strongest_share * flat.shape[1]), 1)
        scores = np.partition(flat, first, axis=1)[:, first:].mean(axis=1, dtype=np.float64)
        return Examination(scores, maps)

    def dissimilarity_maps(self, patches: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Return (1 - SSIM) / 2 at each pixel, shape (n, size, size), float32; the range of the data is 1."""
        from skimage.metrics import structural_similarity

        if patches.shape[1] < self.window_px:
            raise TrainingError(f"a window of {self.window_px} px does not fit into patches of {patches.shape[1]} px")
        restored = self.reconstruction.reconstruct(patches)
        maps = np.empty(patches.shape, np.float32)
        for result, patch, expected in zip(maps, patches, restored, strict=True):
            intensity = patch.astype(np.float32) / np.float32(FULL_SCALE)
            _, similarity = structural_similarity(
                intensity, expected, win_size=self.window_px, data_range=1.0, full=True
            )
            result[...] = (1 - similarity) / 2
        return maps
