"""Simulated microcalcifications, to be added to images of normal tissue.

Calcifications of 0.12 to 3 mm: compact with irregular outline, rings (calcified walls), rods, and clumps of several
grains; single, in small groups, or in clusters of up to 25. Shapes are drawn four times finer than the grid, averaged
onto it at a random sub-pixel position and blurred as by a detector. Contrast is drawn relative to the local noise,
since it is noise that hides a speck. The ranges follow the radiology of calcifications (reporting atlas of the American
College of Radiology, 5th edition, 2013: morphology and distribution), not the annotations of any data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.datasets.simulated.specks import Plane, Shape, draw_calcification
from unary.errors import require_positive

_SMALL_MM = 0.8
_SHARES: dict[bool, dict[Shape, float]] = {  # by whether the calcification is small
    True: {"compact": 0.55, "ring": 0.15, "rod": 0.15, "clump": 0.15},
    False: {"compact": 0.40, "ring": 0.40, "rod": 0.10, "clump": 0.10},
}
_LESION_LEVEL = 0.4  # of the peak: what counts as lesion in the target


@dataclass(frozen=True)
class CalcificationConfig:
    """Ranges of simulated calcifications.

    Attributes
    ----------
    spacing_mm
        Of the grid; where the images' spacing is unknown, the size of a pixel is taken for this.
    smallest_mm, largest_mm
        Diameter.
    faintest, strongest
        Peak contrast in units of the local noise.
    """

    spacing_mm: float = 0.14
    smallest_mm: float = 0.12
    largest_mm: float = 3.0
    faintest: float = 2.0
    strongest: float = 20.0

    def __post_init__(self) -> None:
        require_positive(self, *vars(self))
        for low, high in (("smallest_mm", "largest_mm"), ("faintest", "strongest")):
            if not getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"{low} and {high} must be ascending, got {getattr(self, low)} and {getattr(self, high)}"
                )


@dataclass(frozen=True, eq=False)
class CalcificationLibrary:
    """Templates with peak 1, ordered by diameter, to be pasted quickly."""

    config: CalcificationConfig
    diameters_mm: NDArray[np.float64]
    templates: tuple[Plane, ...]


def build_library(config: CalcificationConfig, rng: np.random.Generator, *, count: int = 3000) -> CalcificationLibrary:
    """Draw templates, log-uniform in diameter."""
    diameters = np.sort(np.exp(rng.uniform(math.log(config.smallest_mm), math.log(config.largest_mm), count)))
    templates = []
    for diameter in diameters.tolist():
        shares = _SHARES[diameter < _SMALL_MM]
        shape: Shape = list(shares)[int(rng.choice(len(shares), p=list(shares.values())))]
        templates.append(draw_calcification(diameter / config.spacing_mm, shape, rng))
    return CalcificationLibrary(config, diameters, tuple(templates))


def add_calcifications(
    intensity: Plane, noise: Plane, library: CalcificationLibrary, rng: np.random.Generator
) -> tuple[Plane, NDArray[np.bool_]]:
    """Return a crop of normal tissue with calcifications added, and where they are.

    Intensity and noise, shape (rows, cols), float32, are as in `unary.detectors.tissue`. The new intensity is not
    clipped; the target is True where a calcification exceeds 0.4 of its own peak.
    """
    config = library.config
    changed, target = intensity.copy(), np.zeros(intensity.shape, bool)
    kind = rng.random()
    count = 1 if kind < 0.4 else int(rng.integers(2, 5)) if kind < 0.7 else int(rng.integers(5, 26))
    largest = min(config.largest_mm, 3.0 if count == 1 else 1.5 if count < 5 else 0.7)
    typical = math.exp(rng.uniform(math.log(1.5 * config.smallest_mm), math.log(largest)))
    contrast = math.exp(rng.uniform(math.log(config.faintest), math.log(config.strongest)))
    middle = rng.uniform(8, np.asarray(intensity.shape) - 8)
    spread = rng.uniform(0.7, 4.0) / config.spacing_mm if count > 1 else 0.0
    for _ in range(count):
        diameter = typical * math.exp(0.3 * rng.normal())
        nearest = int(np.searchsorted(library.diameters_mm, diameter)) + int(rng.integers(-20, 20))
        template = library.templates[min(max(nearest, 0), len(library.templates) - 1)]
        if rng.random() < 0.5:
            template = template[::-1]
        if rng.random() < 0.5:
            template = template.T
        corner = np.rint(middle + rng.normal(0, 1, 2) * spread).astype(int) - template.shape[0] // 2
        _paste(changed, target, template, corner, noise, contrast * math.exp(0.3 * rng.normal()))
    return changed, target


def _paste(
    changed: Plane,
    target: NDArray[np.bool_],
    template: Plane,
    corner: NDArray[np.int_],
    noise: Plane,
    contrast: float,
) -> None:
    """Add one template in place, as far as it lies inside."""
    low = np.clip(corner, 0, changed.shape)
    high = np.clip(corner + template.shape, 0, changed.shape)
    if (high <= low).any():
        return
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    part = template[low[0] - corner[0] : high[0] - corner[0], low[1] - corner[1] : high[1] - corner[1]]
    centre = np.clip(corner + template.shape[0] // 2, 0, np.asarray(changed.shape) - 1)
    changed[window] += np.float32(contrast) * noise[centre[0], centre[1]] * part
    target[window] |= part > _LESION_LEVEL
