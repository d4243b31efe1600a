"""What lesions can be simulated, and in which ranges; sources in `unary.datasets.simulated.insertion`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from unary.datasets.simulated.masses import Margin

LesionClass = Literal[
    "speck",
    "round_cluster",
    "amorphous_cluster",
    "pleomorphic_cluster",
    "branching_cluster",
    "faint_field",
    "ring",
    "circumscribed_mass",
    "irregular_mass",
    "spiculated_mass",
]
LESION_CLASSES: tuple[LesionClass, ...] = get_args(LesionClass)
MASSES: dict[LesionClass, Margin] = {
    "circumscribed_mass": "circumscribed",
    "irregular_mass": "irregular",
    "spiculated_mass": "spiculated",
}


@dataclass(frozen=True)
class Ranges:
    """Lowest and highest of what is drawn, log-uniformly: number, spread and size in mm, contrast."""

    count: tuple[int, int]
    spread_mm: tuple[float, float]
    size_mm: tuple[float, float]
    contrast: tuple[float, float]


RANGES: dict[LesionClass, Ranges] = {
    "speck": Ranges((1, 1), (0, 0), (0.2, 1.0), (3, 20)),
    "round_cluster": Ranges((3, 60), (5, 30), (0.2, 1.0), (2, 15)),
    "amorphous_cluster": Ranges((10, 60), (5, 30), (0.1, 0.3), (1.5, 6)),
    "pleomorphic_cluster": Ranges((5, 60), (5, 30), (0.15, 0.7), (2, 15)),
    "branching_cluster": Ranges((5, 40), (8, 30), (0.4, 2.0), (2, 12)),
    "faint_field": Ranges((40, 200), (10, 30), (0.1, 0.4), (1, 4)),
    "ring": Ranges((1, 1), (0, 0), (1.0, 4.0), (3, 15)),
    "circumscribed_mass": Ranges((1, 1), (0, 0), (6, 40), (0.5, 2.5)),
    "irregular_mass": Ranges((1, 1), (0, 0), (6, 40), (0.5, 2.5)),
    "spiculated_mass": Ranges((1, 1), (0, 0), (6, 40), (0.5, 2.5)),
}


@dataclass(frozen=True)
class LesionPlan:
    """What is to be inserted.

    Attributes
    ----------
    kind
        Class of lesion.
    count
        Number of specks; 1 for a mass.
    spread_mm
        Longest diameter of the area in which the specks lie; 0 for a single one.
    size_mm
        Typical diameter of a speck (of a fine linear one the length), or the diameter of the body of a mass.
    contrast
        Of calcifications, the typical peak in units of the local noise (`TissueMeasures.noise`); of a mass, the mean of
        its body in units of the regional spread (`TissueMeasures.spread`).
    """

    kind: LesionClass
    count: int
    spread_mm: float
    size_mm: float
    contrast: float

    def __post_init__(self) -> None:
        if self.kind not in LESION_CLASSES:
            raise ValueError(f"a lesion is one of {', '.join(LESION_CLASSES)}, not {self.kind!r}")
        if self.count < 1 or (self.kind in MASSES and self.count > 1):
            raise ValueError(f"a {self.kind} cannot consist of {self.count}")
        if not (0 <= self.spread_mm < math.inf and (self.count == 1 or self.spread_mm > 0)):
            raise ValueError(f"spread_mm must be positive for {self.count} specks, got {self.spread_mm}")
        if not (0 < self.size_mm < math.inf and 0 < self.contrast < math.inf):
            raise ValueError(f"size_mm and contrast must be positive, got {self.size_mm} and {self.contrast}")

    @property
    def reach_mm(self) -> float:
        """How far its outline lies from its centre, but for strands, in mm."""
        return (self.spread_mm + self.size_mm) / 2


def draw_plan(kind: LesionClass, rng: np.random.Generator) -> LesionPlan:
    """Draw number, spread, size and contrast of a class from its `RANGES`; many specks need room, and large masses
    differ more from their surroundings.
    """
    ranges = RANGES[kind]
    count = round(_draw_log(ranges.count, rng))
    spread, size, contrast = (_draw_log(span, rng) for span in (ranges.spread_mm, ranges.size_mm, ranges.contrast))
    if kind in MASSES:
        contrast = float(np.clip(contrast * math.sqrt(size / 20), *ranges.contrast))
    elif count > 1:
        spread = min(max(spread, 1.5 * size * math.sqrt(count)), ranges.spread_mm[1])
    return LesionPlan(kind, count, spread, size, contrast)


def _draw_log(span: tuple[float, float], rng: np.random.Generator) -> float:
    return float(span[0]) if span[0] == span[1] else math.exp(rng.uniform(math.log(span[0]), math.log(span[1])))
