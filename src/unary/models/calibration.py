"""What normal images do, as a promise: p-values and operating points from held-out normal patients alone.

Every promise here is conformal: it holds for a finite number of patients, without a model of the scores, as long as the
next normal patient is exchangeable with those of the calibration (same kind of scanner, preparation and population, and
none of them trained on). Patients are the unit, since images of one patient resemble each other: an image of a patient
with m images counts 1/m (hierarchical conformal prediction, Lee, Barber and Willett 2023). With n patients:

* p(s) = (1 + sum over patients of the share of their images that score s or more) / (n + 1). For a random image of a
  new normal patient, P(p <= a) <= a for every a. It is never below 1 / (n + 1): no smaller rate can be promised.
* The expected number of findings in such an image is at most r where (n R(t) + B) / (n + 1) <= r, R(t) being the mean
  over patients of the number of findings above t in their images, and B the most findings that are ever reported of an
  image (conformal risk control, Angelopoulos et al. 2022). The bound B costs B / (n + 1) of the rate. Where that is
  more than half of r, with fewer than 2 B / r - 1 patients, nothing is promised of this number: the threshold is the
  one at which R(t) <= r was measured, and it says so. The choice looks at n alone and leaves the promises intact.

No abnormal image has a part in any of it. The promise is over the draw of the calibration patients as well as of the
new one: a given calibration may lie above or below by chance, and less so the more patients there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.errors import CalibrationError
from unary.records import OperatingPoint

MOST_FINDINGS = 8
"""The most findings that are reported of one image; without a bound nothing could be promised of their mean."""
RATES = (0.1, 0.5, 1.0, 2.0)
"""False findings per normal image for which operating points are set."""

_ROUNDING = 1e-12  # of sums of shares such as 1/3


@dataclass(frozen=True)
class NormalScores:
    """What a detector found in one normal image.

    Attributes
    ----------
    patient
        Identifier, or a hash of it.
    findings
        Scores of the findings, highest first; the first `MOST_FINDINGS` of them count.
    image_score
        Of its most abnormal place; at least that of every finding.
    """

    patient: str
    findings: tuple[float, ...]
    image_score: float

    def __post_init__(self) -> None:
        values = (*self.findings, self.image_score)
        if not all(math.isfinite(value) for value in values):
            raise CalibrationError("scores of normal images must be finite; has the detector diverged?")
        falling = (self.image_score, *self.findings)
        if any(later > earlier for earlier, later in itertools.pairwise(falling)):
            raise CalibrationError(
                "the findings of an image must come highest first, and none may score above the image"
            )


@dataclass(frozen=True)
class Calibration:
    """How held-out normal patients scored.

    Attributes
    ----------
    scores
        Image scores, ascending.
    weights
        Of each, 1 / (number of images of its patient); they add up to ``patients``.
    patients
        How many patients; the smallest p-value is 1 / (patients + 1).
    operating_points
        By rising rate, so that thresholds never rise, one for each of `RATES`.
    """

    scores: tuple[float, ...]
    weights: tuple[float, ...]
    patients: int
    operating_points: tuple[OperatingPoint, ...]

    def find_p_value(self, score: float) -> float:
        """Return how often a normal image scores as high or higher, in [1 / (patients + 1), 1]."""
        at_least = float(np.sum(np.asarray(self.weights)[np.searchsorted(self.scores, score, side="left") :]))
        return min((1 + at_least) / (self.patients + 1), 1.0)

    def find_operating_point(self, name: str) -> OperatingPoint:
        """Return the operating point of a name such as ``"1"``.

        Raises
        ------
        CalibrationError
            If there is none of that name.
        """
        for point in self.operating_points:
            if point.name == name:
                return point
        known = ", ".join(point.name for point in self.operating_points)
        raise CalibrationError(f"no operating point {name!r}; this model has {known} (false findings per normal image)")


def calibrate(normals: Sequence[NormalScores], *, rates: Sequence[float] = RATES) -> Calibration:
    """Set operating points on images of held-out normal patients.

    Parameters
    ----------
    normals
        One per image; of patients that the detector has not learned from.
    rates
        False findings per normal image, each positive.

    Raises
    ------
    CalibrationError
        If there are images of fewer than two patients, or a rate is not positive.
    """
    if any(not rate > 0 for rate in rates):
        raise CalibrationError(f"rates of false findings must be positive, got {tuple(rates)}")
    names, patient = np.unique([normal.patient for normal in normals], return_inverse=True)
    if len(names) < 2:
        raise CalibrationError(
            "a calibration needs normal images of at least two patients that were not trained on, there are "
            f"{len(names)}; are patient identifiers missing?"
        )
    weights = 1.0 / np.bincount(patient)[patient]
    order = np.argsort([normal.image_score for normal in normals], kind="stable")
    scores = np.asarray([normals[place].image_score for place in order])
    plain = Calibration(tuple(scores.tolist()), tuple(weights[order].tolist()), len(names), ())
    found = np.concatenate([np.asarray(normal.findings[:MOST_FINDINGS], float) for normal in normals])
    shares = np.repeat(weights, [len(normal.findings[:MOST_FINDINGS]) for normal in normals]) / len(names)
    points: list[OperatingPoint] = []
    for rate in sorted(rates, reverse=True):
        least = points[-1].threshold if points else -math.inf
        points.append(_set_point(rate, found, shares, plain, least=least))
    return Calibration(plain.scores, plain.weights, plain.patients, tuple(reversed(points)))


def _set_point(
    rate: float, found: NDArray[np.float64], shares: NDArray[np.float64], plain: Calibration, *, least: float
) -> OperatingPoint:
    """The lowest threshold whose expected number of findings is promised, or else measured, to be at most ``rate``.

    Never below ``least``, the threshold of the next larger rate. A promise asks for more than a measurement, so that
    without it an estimated rate could come out with a lower threshold than a larger, promised one.
    """
    count = plain.patients
    most = rate * (count + 1) / count - MOST_FINDINGS / count
    promised = rate * (count + 1) >= 2 * MOST_FINDINGS - _ROUNDING
    threshold = max(_find_threshold(found, shares, most if promised else rate, plain.scores[-1]), least)
    above = float(np.sum(np.asarray(plain.weights)[np.searchsorted(plain.scores, threshold, side="right") :]))
    return OperatingPoint(
        name=f"{rate:g}",
        false_findings_per_image=float(rate),
        threshold=threshold,
        measured_rate=float(shares[found > threshold].sum()),
        promised=promised,
        false_alarm_rate=min((1 + above) / (count + 1), 1.0),
        patients=count,
    )


def _find_threshold(found: NDArray[np.float64], shares: NDArray[np.float64], most: float, highest: float) -> float:
    """The lowest of the findings' scores above which their summed shares are at most ``most``.

    Where there are fewer findings than that, the lowest score: nothing is known of findings below it. Where there is
    none at all, ``highest``, the highest score of any image.
    """
    if len(found) == 0:
        return highest
    order = np.argsort(-found, kind="stable")
    values, last = np.unique(-found[order], return_index=True)  # ascending in -score: highest score first
    above = np.concatenate([[0.0], np.cumsum(shares[order])])[last]  # the share strictly above each distinct score
    allowed = np.flatnonzero(above <= most + _ROUNDING)
    return float(-values[allowed[-1]])


def describe_promise(point: OperatingPoint) -> str:
    """Say in one or two sentences what an operating point promises; printed with every result."""
    alarm = (
        f"At most {point.false_alarm_rate:.3g} of normal images have a finding (promised, from {point.patients} normal "
        f"patients; below 1/{point.patients + 1} nothing can be)."
    )
    rate = f"{point.false_findings_per_image:g} false findings per normal image"
    if point.promised:
        return f"At most {rate} are expected (promised; {point.measured_rate:.2g} measured). {alarm}"
    return (
        f"About {rate} are expected (an estimate, {point.measured_rate:.2g} measured; {point.patients} normal patients "
        f"are too few for a promise). {alarm}"
    )
