"""What every detector can do, whatever it learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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


class Detector(Protocol):
    """A fitted one-class detector of patches."""

    def examine(self, patches: NDArray[np.uint16]) -> Examination:
        """Score patches of shape (n, size, size), uint16, 65535 being intensity 1; each independently of the others."""
        ...
