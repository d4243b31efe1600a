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


_OLD, _SECOND, _REGION, _MEMORY, _CRITICISM, _DENSITY = (
    f"nested_parts:{name}"
    for name in (
        "WithMuscle",
        "SecondBlindSpot",
        "RegionBlindSpot",
        "Memory",
        "HigherCriticism",
        "HigherCriticismByDensity",
    )
)
_SPECKS = (("clusters", 1.0), ("blind_spot", 1.0))
_REGIONS = (("mass", 0.7), ("prominence", 0.7))
FIRST, DEFAULT = "0.2.0", "the default"
VARIANTS = (
    Variant(FIRST, (("dense_laplacian", 1.0), ("blind_spot", 1.0), (_OLD, 1.0)), strongest=2),
    Variant(DEFAULT, (*_SPECKS, *_REGIONS)),
    Variant("Laplacian for clusters", (("dense_laplacian", 1.0), ("blind_spot", 1.0), *_REGIONS)),
    Variant("mass alone for regions", (*_SPECKS, ("mass", 1.0))),
    Variant("prominence alone for regions", (*_SPECKS, ("prominence", 1.0))),
    Variant("without blind spot", (("clusters", 1.0), *_REGIONS)),
    Variant("two blind spots", (("clusters", 1.0), ("blind_spot", 0.5), (_SECOND, 0.5), *_REGIONS)),
    Variant("with a region predicted", (*_SPECKS, *_REGIONS, (_REGION, 0.5))),
    Variant("with a memory", (*_SPECKS, *_REGIONS, (_MEMORY, 0.5))),
    Variant("higher criticism for clusters", ((_CRITICISM, 1.0), ("blind_spot", 1.0), *_REGIONS)),
    Variant("the same by density", ((_DENSITY, 1.0), ("blind_spot", 1.0), *_REGIONS)),
)
PARTS = tuple(dict.fromkeys(name for variant in VARIANTS for name, _ in variant.weights))
