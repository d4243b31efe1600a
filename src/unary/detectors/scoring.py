"""What is asked of any detector: the scores of a set of patches, its size, and what knows nothing to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from unary.detectors.protocol import Detector, View
from unary.detectors.windows import examine_in_batches
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import FULL_SCALE
from unary.progress import show_progress
from unary.training.threads import map_in_threads

ImageView = tuple[NDArray[np.uint16], NDArray[np.bool_], Origins, NDArray[np.int64]]
"""What `PatchSet.views` yields."""


def measure_normals(
    measure: Callable[[View, Origins], Sequence[NDArray[np.float64]]], normals: PatchSet, *, title: str | None = None
) -> list[NDArray[np.float64]]:
    """Return what is measured of each image's patches, one array after the other, of all images joined.

    With a title, a bar is shown, as by `score_patches`.
    """

    def measure_one(image: ImageView) -> Sequence[NDArray[np.float64]]:
        pixels, mask, origins, _ = image
        return measure(View(pixels, mask), origins)

    # An image each keeps more threads busy than pieces of one.
    found = map_in_threads(measure_one, show_views(normals, title))
    return [np.concatenate(values) for values in zip(*found, strict=True)]


def score_patches(detector: Detector, patches: PatchSet, *, title: str | None = None) -> NDArray[np.float64]:
    """Return the score of each patch, shape (n,), float64, higher being more abnormal; an image at a time, no maps.

    With a title, a bar of that name is shown on standard error when that is a terminal.
    """
    scores = np.empty(len(patches))
    for pixels, mask, origins, which in show_views(patches, title):
        scores[which] = detector.examine(View(pixels, mask), origins, size_px=patches.size_px, with_map=False).scores
    return scores


def show_views(patches: PatchSet, title: str | None) -> Iterable[ImageView]:
    """Go over images as `PatchSet.views` does; with a title, show a bar."""
    count, shown = len(np.unique(patches.index[:, 0])), title is not None
    return show_progress(patches.views(), total=count, title=title or "", unit="image", shown=shown, leave=False)


def measure_controls(patches: PatchSet) -> dict[str, NDArray[np.float64]]:
    """Return the scores that know nothing of lesions, by name: each patch's mean and standard deviation of intensity.

    Shape (n,), float64. A detector that does not beat them has learned brightness or contrast, not anatomy.
    """

    def measure(some: NDArray[np.uint16]) -> NDArray[np.float64]:
        values = some.reshape(len(some), -1) / np.float64(FULL_SCALE)
        return np.stack([values.mean(axis=1), values.std(axis=1)], axis=1)

    found = examine_in_batches(measure, patches.gather, np.arange(len(patches))) if len(patches) else np.empty((0, 2))
    return {"mean_brightness": found[:, 0], "standard_deviation": found[:, 1]}


def count_weights(detector: Detector) -> int:
    """Return how many fitted numbers a detector's tensors hold."""
    return sum(tensor.size for tensor in detector.get_state().tensors.values())
