"""Applying a model: patch scores and an anomaly map for an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.detectors.protocol import Detector, Examination, ImageDetector
from unary.training.threads import map_in_threads
from unary.models.bundle import Model
from unary.patches.grid import Origins, extract_patches, tissue_origins
from unary.patches.patch_set import PatchSet, build_patch_set
from unary.patches.stitching import stitch_patches
from unary.patches.preparation import FULL_SCALE, PreparedImage, prepare_image
from unary.records import Image

_BATCH = 64


@dataclass(frozen=True, eq=False)
class ImageScores:
    """What a model says of one image.

    Attributes
    ----------
    origins
        Shape (n, 2), int32: (row, col) of each scored patch on the working grid.
    scores
        Shape (n,), float64; higher is more abnormal.
    anomaly_map
        Shape (rows, cols) of the working grid, float32, in the detector's unit; NaN where nothing was scored.
    prepared
        The image as the detector saw it.
    """

    origins: Origins
    scores: NDArray[np.float64]
    anomaly_map: NDArray[np.float32]
    prepared: PreparedImage

    @property
    def image_score(self) -> float | None:
        """The largest patch score, or None when no patch held enough tissue."""
        return float(self.scores.max()) if len(self.scores) else None


def score_image(model: Model, image: Image) -> ImageScores:
    """Score one image on the model's own grid.

    Raises
    ------
    ImageError
        If the image cannot be prepared as the model demands.
    """
    prepared = prepare_image(image, model.preparation)
    origins = tissue_origins(prepared.mask, model.grid)
    if isinstance(model.detector, ImageDetector):
        scores, anomaly_map = _examine_whole(model.detector, prepared, origins, size_px=model.grid.size_px)
    else:
        scores, anomaly_map = _examine_patches(model.detector, prepared, origins, size_px=model.grid.size_px)
    anomaly_map[~prepared.mask] = np.nan
    return ImageScores(origins, scores, anomaly_map, prepared)


def _examine_patches(
    detector: Detector, prepared: PreparedImage, origins: Origins, *, size_px: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Scores, and the patches' maps laid side by side."""
    scores = np.empty(len(origins))

    def examine(batch: slice) -> Examination:
        return detector.examine(extract_patches(prepared.pixels, origins[batch], size_px=size_px))

    def maps() -> Iterator[tuple[NDArray[np.float32], Origins]]:
        batches = [slice(start, start + _BATCH) for start in range(0, len(origins), _BATCH)]
        examinations = map_in_threads(examine, batches)
        for batch, examination in zip(batches, examinations, strict=True):
            scores[batch] = examination.scores
            yield examination.maps, origins[batch]

    return scores, stitch_patches(maps(), prepared.shape)


def _examine_whole(
    detector: ImageDetector, prepared: PreparedImage, origins: Origins, *, size_px: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Scores and map from the box that the patches span: just what training and evaluation see of an image."""
    anomaly_map = np.full(prepared.shape, np.nan, np.float32)
    if len(origins) == 0:
        return np.empty(0), anomaly_map
    patches = build_patch_set(prepared.pixels, origins, size_px=size_px)
    examination = detector.examine_image(patches.images[0], patches.index[:, 1:], size_px=size_px)
    row, col = origins.min(axis=0).tolist()
    window = anomaly_map[row : row + examination.anomaly_map.shape[0], col : col + examination.anomaly_map.shape[1]]
    window[...] = examination.anomaly_map[: window.shape[0], : window.shape[1]]  # a patch may reach past the border
    return examination.scores, anomaly_map


def score_patch_set(detector: Detector | ImageDetector, patches: PatchSet) -> NDArray[np.float64]:
    """Return one score per patch, shape (n,), float64."""
    scores = np.empty(len(patches))
    if isinstance(detector, ImageDetector):
        for image in np.unique(patches.index[:, 0]):
            of_image = patches.index[:, 0] == image
            examination = detector.examine_image(
                patches.images[image], patches.index[of_image, 1:], size_px=patches.size_px
            )
            scores[of_image] = examination.scores
        return scores
    batches = [slice(start, start + _BATCH) for start in range(0, len(patches), _BATCH)]
    examined = map_in_threads(lambda batch: detector.examine(patches.gather(batch)).scores, batches)
    for batch, found in zip(batches, examined, strict=True):
        scores[batch] = found
    return scores


def measure_controls(patches: PatchSet) -> dict[str, NDArray[np.float64]]:
    """Return the scores that know nothing of lesions: each patch's mean and standard deviation of intensity.

    A detector that does not beat them has learned brightness or contrast, not anatomy.
    """
    means, deviations = np.empty(len(patches)), np.empty(len(patches))
    for start in range(0, len(patches), _BATCH):
        batch = slice(start, start + _BATCH)
        values = patches.gather(batch).reshape(-1, patches.size_px**2) / np.float64(FULL_SCALE)
        means[batch], deviations[batch] = values.mean(axis=1), values.std(axis=1)
    return {"mean_brightness": means, "standard_deviation": deviations}
