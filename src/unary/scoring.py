"""Applying a model: patch scores and an anomaly map for an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.bundle import Model
from unary.detectors.protocol import Detector
from unary.patches import Origins, PatchSet, extract_patches, stitch_patches, tissue_origins
from unary.prepare import FULL_SCALE, PreparedImage, prepare_image
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
    scores = np.empty(len(origins))

    def maps() -> Iterator[tuple[NDArray[np.float32], Origins]]:
        for start in range(0, len(origins), _BATCH):
            chosen = origins[start : start + _BATCH]
            patches = extract_patches(prepared.pixels, chosen, size_px=model.grid.size_px)
            examination = model.detector.examine(patches)
            scores[start : start + _BATCH] = examination.scores
            yield examination.maps, chosen

    anomaly_map = stitch_patches(maps(), prepared.shape)
    anomaly_map[~prepared.mask] = np.nan
    return ImageScores(origins, scores, anomaly_map, prepared)


def score_patch_set(detector: Detector, patches: PatchSet) -> NDArray[np.float64]:
    """Return one score per patch, shape (n,), float64."""
    scores = np.empty(len(patches))
    for start in range(0, len(patches), _BATCH):
        batch = slice(start, start + _BATCH)
        scores[batch] = detector.examine(patches.gather(batch)).scores
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
