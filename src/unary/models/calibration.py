"""What normal images do, as a guarantee: p-values and operating points from held-out normal patients alone.

Every guarantee here is conformal: it holds for a finite number of patients, without a model of the scores, as long as
the next normal patient is exchangeable with those of the calibration (same kind of scanner, preparation and population,
and none of them trained on). Patients are the unit, since images of one patient resemble each other: an image of a
patient with m images counts 1/m (hierarchical conformal prediction, Lee, Barber and Willett 2023). With n patients:

* p(s) = (1 + sum over patients of the share of their images that score s or more) / (n + 1). For a random image of a
  new normal patient, P(p <= a) <= a for every a. It is never below 1 / (n + 1): no smaller rate can be guaranteed.
* The expected loss of such an image is at most r where (n R(t) + B) / (n + 1) <= r, R(t) being the mean over patients
  of the loss of their images at the threshold t, and B its bound (conformal risk control, Angelopoulos et al. 2022).
  The loss is the number of findings above t, B then being the most findings that are ever reported of an image; or the
  share of the image's patches above t, with B = 1. The bound costs B / (n + 1) of the rate. Where that is more than
  half of r, with fewer than 2 B / r - 1 patients, nothing is guaranteed of this number: the threshold is the one at
  which R(t) <= r was measured, and it says so. The choice looks at n alone and leaves the guarantees intact.

No abnormal image has a part in any of it. The guarantee is over the draw of the calibration patients as well as of the
new one: a given calibration may lie above or below by chance, and less so the more patients there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unary.errors import CalibrationError
from unary.records import OperatingPoint, Unit

MOST_FINDINGS = 8  # that are reported of one image; without a bound nothing could be guaranteed of their mean
RATES = (0.1, 0.5, 1.0, 2.0)  # false findings per normal image
SPECIFICITIES = (0.95, 0.99)  # shares of a normal image's patches that stay at or below a threshold
_BOUNDS: dict[Unit, int] = {"finding": MOST_FINDINGS, "patch": 1}  # of what is counted in an image
_ROUNDING = 1e-12  # of sums of shares such as 1/3

Overlap = Literal["excluded", "allowed", "unknown"]
"""Whether patients of a calibration were trained on: none was; they were let in; or it could not be told."""


@dataclass(frozen=True, eq=False)
class NormalScores:
    """What a detector found in one normal image.

    Attributes
    ----------
    patient
        Any name; it is not kept.
    findings
        Scores of the findings, highest first; the first `MOST_FINDINGS` of them count.
    image_score
        Of its most abnormal place; at least that of every finding.
    patches
        Shape (n,), float64: scores of its patches, in any order; there may be none.
    """

    patient: str
    findings: tuple[float, ...]
    image_score: float
    patches: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        falling = (self.image_score, *self.findings)
        if not (np.isfinite(falling).all() and np.isfinite(self.patches).all()):
            raise CalibrationError("scores of normal images must be finite; has the detector diverged?")
        if not _falls(*falling):
            raise CalibrationError(
                "the findings of an image must come highest first, and none may score above the image"
            )


@dataclass(frozen=True)
class NormalImage:
    """What is kept of a normal image: enough to set every operating point again, and nothing of its patient.

    Attributes
    ----------
    score
        Of the image.
    weight
        1 / (number of images of its patient).
    findings
        Scores of those that count, highest first.
    patch_count
        How many patches it has.
    patches
        Scores of the highest of them, falling: those from the lowest threshold of a point that counts patches on.
    """

    score: float
    weight: float
    findings: tuple[float, ...]
    patch_count: int
    patches: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight must lie in (0, 1], got {self.weight}")
        if not _falls(self.score, *self.findings) or len(self.findings) > MOST_FINDINGS:
            raise ValueError(f"findings must be at most {MOST_FINDINGS}, fall, and not exceed the image's score")
        if len(self.patches) > self.patch_count or not _falls(*self.patches):
            raise ValueError("patches must fall, and be no more than patch_count")


def _falls(*values: float) -> bool:
    return all(later <= earlier for earlier, later in itertools.pairwise(values))


@dataclass(frozen=True)
class Calibration:
    """How held-out normal patients scored.

    Attributes
    ----------
    images
        By rising score.
    patients
        How many patients; the smallest p-value is 1 / (patients + 1).
    operating_points
        What `set_points` makes of the images: those that count findings, one for each of `RATES`, by rising rate, so
        that thresholds never rise; then those that count patches, one for each of `SPECIFICITIES`, by rising threshold.
    overlap
        Whether any of the patients were trained on. Where they were let in, nothing is guaranteed.
    """

    images: tuple[NormalImage, ...]
    patients: int
    operating_points: tuple[OperatingPoint, ...] = ()
    overlap: Overlap = "excluded"

    def __post_init__(self) -> None:
        if not _falls(*reversed(self.scores)):
            raise ValueError("the scores of images must ascend")
        if self.patients < 2 or not math.isclose(sum(self.weights), self.patients, rel_tol=1e-6):
            raise ValueError(f"patients must be 2 or more and what the weights add up to, got {self.patients}")

    @cached_property
    def scores(self) -> tuple[float, ...]:
        """Image scores, ascending."""
        return tuple(image.score for image in self.images)

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """Of each image; they add up to ``patients``."""
        return tuple(image.weight for image in self.images)

    def find_p_value(self, score: float) -> float:
        """Return how often a normal image scores as high or higher, in [1 / (patients + 1), 1]."""
        at_least = float(np.sum(np.asarray(self.weights)[np.searchsorted(self.scores, score, side="left") :]))
        return min((1 + at_least) / (self.patients + 1), 1.0)

    def find_operating_point(self, name: str | float) -> OperatingPoint:
        """Return the operating point of a name such as ``"1"`` or ``"patch_0.95"``; 1 and 1.0 are ``"1"`` too."""
        wanted = name if isinstance(name, str) else f"{name:g}"
        for point in self.operating_points:
            if point.name == wanted:
                return point
        known = ", ".join(point.name for point in self.operating_points)
        raise CalibrationError(
            f"no operating point {wanted!r}; this model has {known} (a number: false findings per normal image; "
            "patch_: the share of normal patches that stay below)"
        )


def calibrate(
    normals: Sequence[NormalScores],
    *,
    rates: Sequence[float] = RATES,
    specificities: Sequence[float] = SPECIFICITIES,
    overlap: Overlap = "excluded",
) -> Calibration:
    """Set operating points on images of held-out normal patients.

    Parameters
    ----------
    normals
        One per image; of patients that the detector has not learned from.
    rates
        False findings per normal image, each positive.
    specificities
        Shares of a normal image's patches that stay at or below a threshold, each in (0, 1). Without any patch in
        ``normals`` there are no operating points for them.
    overlap
        Whether patients of ``normals`` were trained on.

    Raises
    ------
    CalibrationError
        If there are images of fewer than two patients, a rate is not positive, or a specificity not in (0, 1).
    """
    if any(not rate > 0 for rate in rates):
        raise CalibrationError(f"rates of false findings must be positive, got {tuple(rates)}")
    if any(not 0 < specificity < 1 for specificity in specificities):
        raise CalibrationError(f"specificities must lie between 0 and 1, got {tuple(specificities)}")
    names, patient = np.unique([normal.patient for normal in normals], return_inverse=True)
    require_patients(len(names))
    weights = 1.0 / np.bincount(patient)[patient]
    images = [
        NormalImage(
            normal.image_score,
            float(weight),
            normal.findings[:MOST_FINDINGS],
            len(normal.patches),
            tuple(np.sort(normal.patches)[::-1].tolist()),
        )
        for normal, weight in zip(normals, weights, strict=True)
    ]
    plain = Calibration(tuple(sorted(images, key=lambda image: image.score)), len(names), overlap=overlap)
    points = set_points(plain, rates=rates, specificities=specificities)
    lowest = min((point.threshold for point in points if point.unit == "patch"), default=math.inf)
    kept = (
        replace(image, patches=tuple(score for score in image.patches if score >= lowest)) for image in plain.images
    )
    return replace(plain, images=tuple(kept), operating_points=points)


def require_patients(count: int) -> None:
    """Refuse by a `CalibrationError` fewer normal patients than a calibration takes."""
    if count < 2:
        raise CalibrationError(
            "a calibration needs normal images of at least two patients that were not trained on, there are "
            f"{count}; are patient identifiers missing?"
        )


def set_points(
    plain: Calibration, *, rates: Sequence[float] = RATES, specificities: Sequence[float] = SPECIFICITIES
) -> tuple[OperatingPoint, ...]:
    """Return the operating points that the images of a calibration set; those that it has play no part."""
    weights = np.asarray(plain.weights)
    points = _set_points(plain, "finding", [image.findings for image in plain.images], weights, rates)[::-1]
    if any(image.patch_count for image in plain.images):
        weights = weights / np.asarray([max(image.patch_count, 1) for image in plain.images])
        shares = [round(1 - share, 12) for share in specificities]
        points += _set_points(plain, "patch", [image.patches for image in plain.images], weights, shares)
    if plain.overlap == "allowed":  # estimates alone
        points = [
            replace(point, guaranteed=False, false_alarm_rate=1.0 if point.unit == "finding" else None)
            for point in points
        ]
    return tuple(points)


def check_points(calibration: Calibration) -> None:
    """Refuse by a `CalibrationError` operating points that are not those that the calibration's images set."""
    points, expected = calibration.operating_points, set_points(calibration)
    if [point.name for point in points] != [point.name for point in expected]:
        raise CalibrationError(f"operating_points must be {', '.join(point.name for point in expected)}")
    for point, right in zip(points, expected, strict=True):
        for name, value in vars(right).items():
            found = getattr(point, name)
            close = isinstance(value, float) and isinstance(found, float) and math.isclose(found, value, rel_tol=1e-9)
            if not (close or found == value):
                raise CalibrationError(
                    f"the operating point {point.name} has the {name} {found}, where the stored scores give {value}"
                )


def _set_points(
    plain: Calibration,
    unit: Unit,
    counted: Sequence[ArrayLike],
    weights: NDArray[np.float64],
    rates: Sequence[float],
) -> list[OperatingPoint]:
    """One point for each rate, by falling rate: the lowest score that keeps it, guaranteed or else as measured.

    Never below the threshold of the next larger rate. A guarantee asks for more than a measurement, so that without it
    an estimated rate could come out with a lower threshold than a larger, guaranteed one. Where nothing was counted in
    any image, the threshold is the highest score of any.
    """
    count, bound = plain.patients, _BOUNDS[unit]
    values = np.concatenate([np.asarray(found, float) for found in counted])
    shares = np.repeat(weights, [np.size(found) for found in counted]) / count
    order = np.argsort(-values, kind="stable")
    levels, first = np.unique(-values[order], return_index=True)  # ascending in -score: highest score first
    above = np.concatenate([[0.0], np.cumsum(shares[order])])[first]  # the share strictly above each score
    points: list[OperatingPoint] = []
    threshold = -math.inf
    for rate in sorted(rates, reverse=True):
        guaranteed = _can_guarantee(rate, count, unit)
        most = rate * (count + 1) / count - bound / count if guaranteed else rate
        lowest = -levels[np.flatnonzero(above <= most + _ROUNDING)[-1]] if len(levels) else plain.scores[-1]
        threshold = max(float(lowest), threshold)
        point = OperatingPoint(
            name=f"{rate:g}" if unit == "finding" else f"patch_{1 - rate:g}",
            unit=unit,
            rate=float(rate),
            threshold=threshold,
            measured_rate=float(shares[values > threshold].sum()),
            guaranteed=guaranteed,
            false_alarm_rate=plain.find_p_value(np.nextafter(threshold, math.inf)) if unit == "finding" else None,
            patients=count,
        )
        points.append(point)
    return points


def _can_guarantee(rate: float, patients: int, unit: Unit) -> bool:
    """Whether the bound leaves at least half of a rate."""
    return rate * (patients + 1) >= 2 * _BOUNDS[unit] - _ROUNDING


def describe_guarantee(point: OperatingPoint) -> str:
    """Say in one or two sentences what an operating point guarantees; printed with every result."""
    count, measured, of_patches = point.patients, f"{point.measured_rate:.2g} measured", point.unit == "patch"
    findings = "finding per normal image is" if point.rate == 1 else "findings per normal image are"
    rate = f"{point.rate:g} false {findings} expected"
    if of_patches:
        rate = f"{point.rate:.2g} of a normal image's patches are expected above"
    if point.guaranteed:
        source = f", from {count} normal patients" if of_patches else ""
        said = f"At most {rate} (guaranteed{source}; {measured})."
    else:
        few = f"{count} normal patients are too few for a guarantee"
        why = "no guarantee, since patients were trained on" if _can_guarantee(point.rate, count, point.unit) else few
        said = f"About {rate} (an estimate, {measured}; {why})."
    if of_patches or point.false_alarm_rate is None:
        return said
    if point.false_alarm_rate >= 1:
        return f"{said} Nothing is guaranteed of how many normal images have a finding."
    return (
        f"{said} At most {point.false_alarm_rate:.3g} of normal images have a finding (guaranteed, from {count} normal "
        f"patients; below 1/{count + 1} nothing can be)."
    )
