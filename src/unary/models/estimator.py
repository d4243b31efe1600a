"""A detector as scikit-learn knows outlier detectors. Needs scikit-learn: pip install 'unary[sklearn]'."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from unary.detectors.protocol import Detector
from unary.detectors.scoring import score_patches
from unary.models.fitting import find_detector
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext

_PERCENTILES, _HIGH = (1, 99), 0.75  # as images are prepared (`unary.patches.preparation.PreparationConfig`)


class OneClassPatchDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is not typed
    """Any detector of unary as an estimator over square patches, shape (n, size, size).

    Signs are scikit-learn's: `score_samples` and `decision_function` are **higher for more normal** patches, and
    `predict` says 1 for normal and -1 for abnormal. Everywhere else in unary a higher score is more abnormal:
    ``-estimator.score_samples(X)`` is the score of `unary.detectors.protocol.Detector.examine`.

    Each patch is examined on its own, as an image that is all tissue. Detectors that look at the surroundings of a
    patch (those of the working grid, such as ``"fusion"``) have less to look at here than in whole images.

    Parameters
    ----------
    detector
        A name of `unary.detectors.DETECTORS`, ``module:Class``, or a detector that is not fitted.
    quantile
        Share, in [0, 1), of the training patches that `predict` calls abnormal.
    value_range
        The two values of X that become intensity 0 and 1, clipped beyond. By default the 1st percentile of the
        training patches becomes 0 and the 99th becomes 0.75.
    random_state
        Seed, generator or None, of the training.

    Attributes
    ----------
    detector_
        The fitted detector.
    value_range_
        The two values in use.
    offset_
        ``decision_function = score_samples - offset_``.
    size_px_
        Side of a patch.
    """

    def __init__(
        self,
        detector: str | Detector = "laplacian",
        *,
        quantile: float = 0.05,
        value_range: tuple[float, float] | None = None,
        random_state: Any = 0,
    ) -> None:
        self.detector = detector
        self.quantile = quantile
        self.value_range = value_range
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn from normal patches.

        Parameters
        ----------
        X
            Shape (n, size, size), real and finite, larger values brighter; all of them are taken for normal.
        y
            Not used; there for scikit-learn's conventions.

        Raises
        ------
        ValueError
            If X has another shape or is not finite, or a parameter is out of range.
        TrainingError
            If there are too few patches, or they show nothing.
        """
        if not 0 <= self.quantile < 1:
            raise ValueError(f"quantile must lie in [0, 1), got {self.quantile}")
        patches = _check_patches(X)
        if self.value_range is None:
            low, high = np.percentile(patches, _PERCENTILES)
            self.value_range_ = (float(low), float(low + (high - low) / _HIGH))
        else:
            self.value_range_ = self.value_range
        if not -np.inf < self.value_range_[0] < self.value_range_[1] < np.inf:
            raise ValueError(f"value_range must be two numbers, the lower one first, got {self.value_range_}")
        seed = self.random_state
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        self.size_px_ = int(patches.shape[1])
        normals = self._to_patch_set(patches)
        self.detector_ = find_detector(self.detector).fit(normals, FitContext(seed, progress=False))
        self.offset_ = float(np.quantile(-score_patches(self.detector_, normals), self.quantile))
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return how normal each patch is, shape (n,), float64: unary's score with the other sign."""
        check_is_fitted(self)
        patches = _check_patches(X)
        if patches.shape[1] != self.size_px_:
            raise ValueError(f"X must hold patches of {self.size_px_} x {self.size_px_}, has {patches.shape}")
        return -score_patches(self.detector_, self._to_patch_set(patches))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return `score_samples` less ``offset_``, shape (n,), float64: negative for what `predict` calls abnormal."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return 1 for normal and -1 for abnormal patches, shape (n,), int64."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def _to_patch_set(self, patches: NDArray[Any]) -> PatchSet:
        """Each patch as an image of its own, all tissue."""
        low, high = self.value_range_
        count, size_px, _ = patches.shape
        scaled = (patches.astype(np.float64) - low) * (FULL_SCALE / (high - low))
        images = np.clip(np.rint(scaled), 1, FULL_SCALE).astype(np.uint16)
        index = np.zeros((count, 3), np.int32)
        index[:, 0] = np.arange(count)
        return PatchSet(tuple(images), index, size_px)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def _check_patches(values: ArrayLike) -> NDArray[Any]:
    patches = np.asarray(values)
    if patches.ndim != 3 or patches.shape[1] != patches.shape[2] or 0 in patches.shape:
        raise ValueError(f"X must be square patches of the shape (n, size, size), has {patches.shape}")
    if patches.dtype.kind not in "iuf" or not np.isfinite(patches).all():
        raise ValueError(f"X must be finite integers or floats, is {patches.dtype}")
    return patches
