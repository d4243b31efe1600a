"""What every detector can do, whatever it learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from unary.patches.grid import Origins


@dataclass(frozen=True, eq=False)
class Examination:
    """What a detector says of a batch of patches.

    Attributes
    ----------
    scores
        Shape (n,), float64; higher is more abnormal. Never clamped or rescaled.
    maps
        Shape (n, size, size), float32; higher is more abnormal, in the detector's own unit.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ImageExamination:
    """What a detector says of patches of one image, having seen the whole.

    Attributes
    ----------
    scores
        Shape (n,), float64; higher is more abnormal. Never clamped or rescaled.
    anomaly_map
        Shape (rows, cols) of the image, float32, in the detector's own unit; NaN outside the tissue.
    """

    scores: NDArray[np.float64]
    anomaly_map: NDArray[np.float32]


@runtime_checkable
class ImageDetector(Protocol):
    """A fitted one-class detector that uses what surrounds a patch."""

    def examine_image(self, pixels: NDArray[np.uint16], origins: Origins, *, size_px: int) -> ImageExamination:
        """Score the patches of one prepared image, (rows, cols) uint16, zero outside the tissue.

        ``origins``, shape (n, 2), are the patches' first pixels; a patch may reach past the lower and right border.
        """
        ...


class Detector(Protocol):
    """A fitted one-class detector of patches, each on its own."""

    def examine(self, patches: NDArray[np.uint16]) -> Examination:
        """Score patches of shape (n, size, size), uint16, 65535 being intensity 1; each independently of the others."""
        ...


@runtime_checkable
class BlendingDetector(Protocol):
    """A detector of patches that adds up its maps where they overlap, in fewer passes over memory than by itself."""

    def add_maps(
        self, pixels: NDArray[np.uint16], origins: Origins, sums: NDArray[np.float32], *, size_px: int
    ) -> None:
        """Add the maps of an image's patches, times the weights of `unary.patches.grid.taper_window`, to ``sums``.

        ``pixels``, (rows, cols) uint16, holds every patch whole; ``origins``, shape (n, 2), are the patches' first
        pixels; ``sums`` has the image's shape, float32. `ValueError` if these do not fit, or the detector sees patches
        of another size.
        """
        ...
