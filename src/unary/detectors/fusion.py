"""Several detectors, one score: each calibrated on normal tissue alone, then added.

How unusual a part's patch score is among those of normal patches becomes a surprisal, -log p, in natural units, the
same for every part. Their weighted sum is Fisher's statistic for combining tests (R. A. Fisher, Statistical Methods for
Research Workers, 1925): two parts that are each mildly surprised count as much as one that is very. No abnormal image
has a say in it but for the weights, which are part of the configuration and fixed before any evaluation.

A part is any detector, found by its name, examined on the same view of an image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from unary.detectors import DETECTORS, find_detector_class
from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.dense_laplacian import DenseLaplacianConfig
from unary.detectors.prominence import ProminenceConfig
from unary.detectors.protocol import Detector, DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.scoring import measure_normals
from unary.detectors.segmentation import SegmentationConfig
from unary.detectors.states import describe_config, join_states, pick_state, read_config, require_fitted
from unary.errors import DetectorError, TrainingError, require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.threads import run_in_threads

_TAIL = 0.01
_KNOTS = 400
_BAND_PX = 256
_FEWEST = 100  # normal patches, for the tail to hold one


@dataclass(frozen=True)
class FusionConfig:
    """Which parts, how much each counts, and their own settings.

    Attributes
    ----------
    parts
        Names of detectors, each with its weight; a detector without settings here takes part with its defaults.
    dense_laplacian, blind_spot, prominence, segmentation
        Settings of the part of that name.
    """

    parts: tuple[tuple[str, float], ...] = (("dense_laplacian", 1.0), ("blind_spot", 1.0), ("prominence", 1.0))
    dense_laplacian: DenseLaplacianConfig = dataclasses.field(default=DenseLaplacianConfig())
    blind_spot: BlindSpotConfig = dataclasses.field(default=BlindSpotConfig())
    prominence: ProminenceConfig = dataclasses.field(default=ProminenceConfig())
    segmentation: SegmentationConfig = dataclasses.field(default=SegmentationConfig())

    def __post_init__(self) -> None:
        names = [name for name, _ in self.parts]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the parts of a fusion must be distinct detectors, at least one; got {names}")
        unknown = [name for name in names if name not in DETECTORS and ":" not in name]
        if unknown:
            raise ValueError(
                f"the parts of a fusion must be detectors: {', '.join(DETECTORS)}, or your own as module:Class; "
                f"there is no {unknown[0]!r}"
            )
        for name, weight in self.parts:
            if not 0 < weight < math.inf:
                raise ValueError(f"the weights of a fusion must be positive, that of {name} is {weight}")
        for field in dataclasses.fields(self)[1:]:
            if field.name not in names and getattr(self, field.name) != field.default:
                parts = ",".join(f"{name}={weight:g}" for name, weight in (*self.parts, (field.name, 1.0)))
                raise ValueError(
                    f"{field.name} has settings but is no part of this fusion, whose parts are {', '.join(names)}; to "
                    f"let it take part: parts, or --parts, {parts}"
                )


@dataclass(frozen=True)
class Surprisal:
    """-log p of a value among normal values, continued past the strongest 1 % by their exponential tail.

    Below the tail it is linear between the ascending knots ``values`` and ``surprisals``. At ``tail_start`` it is
    ``tail_surprisal``, -log of the share of normal values beyond: that of 1 %, or of more where the strongest values
    are equal, as they are when overlapping patches share their strongest pixel. From there the value must rise by
    ``tail_scale`` for one more unit.
    """

    values: tuple[float, ...]
    surprisals: tuple[float, ...]
    tail_start: float
    tail_scale: float
    tail_surprisal: float

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.surprisals):
            raise ValueError(f"values and surprisals must be as many: {len(self.values)}, {len(self.surprisals)}")
        if not np.isfinite([*self.values, *self.surprisals, self.tail_start, self.tail_surprisal]).all():
            raise ValueError("a surprisal must be finite")
        if any((np.diff(knots) < 0).any() for knots in (self.values, self.surprisals)):
            raise ValueError("the values and surprisals of a surprisal must ascend")
        require_positive(self, "tail_scale")
        if self.values[-1] > self.tail_start + self.tail_scale * (1 + 1e-9):
            raise ValueError("the values of a surprisal must end where its tail starts")

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the surprisal of each value, float64, non-negative and never clamped above; NaN of NaN."""
        body = np.interp(values, self.values, self.surprisals)
        tail = self.tail_surprisal + (values - self.tail_start) / self.tail_scale
        result: NDArray[np.float64] = np.where(values > self.tail_start, tail, body)
        return result


def fit_surprisal(normal: NDArray[np.floating]) -> Surprisal:
    """Estimate the curve from the values of normal patches, shape (n,).

    A `TrainingError` says that there are fewer than 100 values, they are not finite, or they hardly differ.
    """
    _require_enough(len(normal))
    ordered = np.sort(np.asarray(normal, np.float64))
    if not np.isfinite(ordered).all():
        raise TrainingError("a detector gave scores that are not finite on normal patches")
    start = float(np.quantile(ordered, 1 - _TAIL))
    if start == ordered[-1]:
        start = float(ordered[max(int(np.searchsorted(ordered, start)) - 1, 0)])
    beyond = ordered[ordered > start]
    if len(beyond) == 0 or not start > ordered[0]:
        raise TrainingError("a detector gives (nearly) the same score to all normal patches; are the images blank?")
    positions = np.unique(np.linspace(0, np.searchsorted(ordered, start), _KNOTS).round().astype(int))
    knots, first = np.unique(ordered[positions], return_index=True)
    exceeding = (len(ordered) - positions[first]) / (len(ordered) + 1)
    share = max(_TAIL, len(beyond) / len(ordered))
    heights = np.minimum.accumulate((-np.log(np.maximum(exceeding, share)))[::-1])[::-1]
    scale = float((beyond - start).mean())
    return Surprisal(tuple(knots.tolist()), tuple(heights.tolist()), start, scale, float(-np.log(share)))


def _require_enough(count: int) -> None:
    if count < _FEWEST:
        raise TrainingError(
            f"calibrating a fusion needs at least {_FEWEST} normal patches, there are {count}: give more images, a "
            "smaller --stride-px or --min-tissue, or --held-out 0"
        )


@dataclass(frozen=True, eq=False)
class FusedPart:
    """One fitted detector, how much it counts, and what is normal for it."""

    name: str
    detector: Detector
    weight: float
    surprisal: Surprisal


Parts = tuple[FusedPart, ...]


@dataclass(frozen=True, eq=False)
class Fusion:
    """Several detectors, added up as surprisals among normal patches.

    The map holds, at each pixel, what a patch would score whose parts answered as they do there. There are no parts
    before fitting.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals only"
    fewest_patches: ClassVar[int] = _FEWEST
    config: FusionConfig = FusionConfig()
    parts: Parts | None = dataclasses.field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Fusion:
        """Fit each part, and calibrate it; see `unary.detectors.protocol.Detector.fit`."""
        return dataclasses.replace(self, parts=_fit_parts(self.build_parts(), self.config, normals, context))

    def build_parts(self) -> list[Detector]:
        """Return the parts, not fitted; a `DetectorError` says that one may not take part."""
        return [_build_part(self.config, name, self.knowledge) for name, _ in self.config.parts]

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse by a `TrainingError` what could not be learned from."""
        _check_patches(self.build_parts(), normals)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`."""
        parts = require_fitted(self.parts, "fusion")
        return _examine_parts(parts, view, origins, size_px=size_px, with_map=with_map)

    def get_state(self) -> DetectorState:
        """Return the states of all parts, and what is normal for them."""
        return _describe_parts(self.config, require_fitted(self.parts, "fusion"))

    @classmethod
    def from_state(cls, state: DetectorState) -> Fusion:
        return cls(*_restore_parts(state))


@dataclass(frozen=True, eq=False)
class FusionPrior:
    """The fusion with one more part that has been told what calcifications look like; otherwise as `Fusion`."""

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals + lesion prior"
    fewest_patches: ClassVar[int] = _FEWEST
    config: FusionConfig = FusionConfig(
        (("dense_laplacian", 1.0), ("blind_spot", 1.0), ("segmentation", 1.0), ("prominence", 1.0))
    )
    parts: Parts | None = dataclasses.field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> FusionPrior:
        return dataclasses.replace(self, parts=_fit_parts(self.build_parts(), self.config, normals, context))

    def build_parts(self) -> list[Detector]:
        return [_build_part(self.config, name, self.knowledge) for name, _ in self.config.parts]

    def check_patches(self, normals: PatchSet) -> None:
        _check_patches(self.build_parts(), normals)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        parts = require_fitted(self.parts, "fusion_prior")
        return _examine_parts(parts, view, origins, size_px=size_px, with_map=with_map)

    def get_state(self) -> DetectorState:
        return _describe_parts(self.config, require_fitted(self.parts, "fusion_prior"))

    @classmethod
    def from_state(cls, state: DetectorState) -> FusionPrior:
        return cls(*_restore_parts(state))


def _check_patches(parts: Sequence[Detector], normals: PatchSet) -> None:
    """Ask all parts, before the first of them is trained."""
    _require_enough(len(normals))
    for part in parts:
        if hasattr(part, "check_patches"):
            part.check_patches(normals)


def _fit_parts(prepared: Sequence[Detector], config: FusionConfig, normals: PatchSet, context: FitContext) -> Parts:
    """Train all parts, then calibrate them on the same patches."""
    _check_patches(prepared, normals)
    fitted = [part.fit(normals, context) for part in prepared]

    def score(view: View, origins: Origins) -> list[NDArray[np.float64]]:
        return [part.examine(view, origins, size_px=normals.size_px, with_map=False).scores for part in fitted]

    scores = measure_normals(score, normals, title=context.name_bar("calibrating parts"))
    return tuple(
        FusedPart(name, part, weight, fit_surprisal(values))
        for (name, weight), part, values in zip(config.parts, fitted, scores, strict=True)
    )


def _build_part(config: FusionConfig, name: str, knowledge: Knowledge) -> Detector:
    """Return a part with its settings, not fitted."""
    found = find_detector_class(name)
    order = get_args(Knowledge)
    if order.index(found.knowledge) > order.index(knowledge):
        raise DetectorError(
            f"{name} knows more than this fusion may ({found.knowledge}, not {knowledge}): take it into fusion_prior"
        )
    part: Detector = found(getattr(config, name)) if hasattr(config, name) else found()
    return part


def _examine_parts(
    parts: Sequence[FusedPart], view: View, origins: Origins, *, size_px: int, with_map: bool
) -> Examination:
    scores = np.zeros(len(origins))
    total = np.zeros(view.shape, np.float32) if with_map else None
    for part in parts:  # one after the other, so that no two of their maps are held at a time
        examined = part.detector.examine(view, origins, size_px=size_px, with_map=with_map)
        scores += part.weight * part.surprisal(examined.scores)
        if total is not None and examined.anomaly_map is not None:
            _add_surprisal(part, examined.anomaly_map, total)
        del examined
    return Examination(scores, total)


def _add_surprisal(part: FusedPart, answer: NDArray[np.float32], total: NDArray[np.float32]) -> None:
    """Add a part's weighted surprisal, in bands, since it is float64."""

    def add(start: int) -> None:
        band = slice(start, start + _BAND_PX)
        seen = ~np.isnan(answer[band])
        total[band][seen] += (part.weight * part.surprisal(answer[band][seen])).astype(np.float32)
        np.copyto(total[band], np.float32(np.nan), where=~seen)

    run_in_threads(add, range(0, len(total), _BAND_PX))


def _describe_parts(config: FusionConfig, parts: Parts) -> DetectorState:
    states = {}
    for part in parts:
        own = part.detector.get_state()
        settings = {"settings": own.settings, "surprisal": describe_config(part.surprisal)}
        states[part.name] = DetectorState(settings, own.tensors)
    return join_states(config, states)


def _restore_parts(state: DetectorState) -> tuple[FusionConfig, Parts]:
    config = read_config(FusionConfig, state.settings["config"])
    parts = []
    for name, weight in config.parts:
        own = pick_state(state, name)
        detector = find_detector_class(name).from_state(DetectorState(own.settings["settings"], own.tensors))
        parts.append(FusedPart(name, detector, weight, read_config(Surprisal, own.settings["surprisal"])))
    return config, tuple(parts)
