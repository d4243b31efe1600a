"""What ``nested.py`` compares: sets of parts with weights, fixed in advance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Variant:
    """A fusion: how much each part counts, and how many regions a finding's score is the mean of."""

    name: str
    weights: tuple[tuple[str, float], ...]
    strongest: int = 1

    def combine(self, answers: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the weighted sum of surprisals, each of any one shape."""
        return np.sum([weight * answers[name] for name, weight in self.weights], axis=0)


def _add(*names: str) -> tuple[tuple[str, float], ...]:
    return tuple((name, 1.0) for name in names)


FIRST = "0.2.0"
VARIANTS = (
    Variant(FIRST, _add("dense_laplacian", "blind_spot", "prominence"), strongest=2),
    Variant("clusters + blind + mass", _add("clusters", "blind_spot", "mass")),
    Variant("laplacian + blind + mass", _add("dense_laplacian", "blind_spot", "mass")),
    Variant("all four", _add("clusters", "dense_laplacian", "blind_spot", "mass")),
    Variant("half a mass", (*_add("clusters", "blind_spot"), ("mass", 0.5))),
    Variant("two regions", _add("clusters", "blind_spot", "mass"), strongest=2),
    Variant("without mass", _add("clusters", "blind_spot")),
    Variant("prominence for mass", _add("clusters", "blind_spot", "prominence")),
    Variant("without blind spot", _add("clusters", "mass")),
)
PARTS = tuple(dict.fromkeys(name for variant in VARIANTS for name, _ in variant.weights))
