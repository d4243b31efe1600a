"""Several detectors, one score: each calibrated on normal tissue alone, then added.

How unusual a part's patch score is among those of normal patches becomes a surprisal, -log p, in natural units, the
same for every part. Their weighted sum is Fisher's statistic for combining tests (R. A. Fisher, Statistical Methods for
Research Workers, 1925): two parts that are each mildly surprised count as much as one that is very. No abnormal image
has a say in it but for the weights, which are part of the configuration and fixed before any evaluation.

A part is any detector, found by its name, examined on the same view of an image. One that can say nothing of small
images (``least_side_px``) is silent there. A sum without it would be compared with thresholds that were set with it;
what the others add up to is therefore told as the whole sum that is as rare among normal patches.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self, get_args

import numpy as np
from numpy.typing import NDArray

from unary.detectors import DETECTORS, find_detector_class
from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.clusters import ClustersConfig
from unary.detectors.dense_laplacian import DenseLaplacianConfig
from unary.detectors.devices import has_networks, place_detector
from unary.detectors.mass import MassConfig
from unary.detectors.prominence import ProminenceConfig
from unary.detectors.protocol import Detector, DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.scoring import measure_normals
from unary.detectors.segmentation import SegmentationConfig
from unary.detectors.states import describe_config, join_states, pick_state, read_config, require_fitted
from unary.detectors.surprisal import FEWEST_PATCHES, StandIn, Surprisal, fit_surprisal, require_enough
from unary.errors import DetectorError, TrainingError
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.threads import run_in_threads

logger = logging.getLogger(__name__)

_BAND_PX = 256


@dataclass(frozen=True)
class FusionConfig:
    """Which parts, how much each counts, and their own settings.

    Attributes
    ----------
    parts
        Names of detectors, each with its weight; a detector without settings here takes part with its defaults.
    clusters, blind_spot, mass, prominence, dense_laplacian, segmentation
        Settings of the part of that name.
    """

    parts: tuple[tuple[str, float], ...] = (("clusters", 1.0), ("blind_spot", 1.0), ("mass", 0.7), ("prominence", 0.7))
    clusters: ClustersConfig = dataclasses.field(default=ClustersConfig())
    blind_spot: BlindSpotConfig = dataclasses.field(default=BlindSpotConfig())
    mass: MassConfig = dataclasses.field(default=MassConfig())
    prominence: ProminenceConfig = dataclasses.field(default=ProminenceConfig())
    dense_laplacian: DenseLaplacianConfig = dataclasses.field(default=DenseLaplacianConfig())
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


@dataclass(frozen=True, eq=False)
class FusedPart:
    """One fitted detector, how much it counts, and what is normal for it."""

    name: str
    detector: Detector
    weight: float
    surprisal: Surprisal


@dataclass(frozen=True, eq=False)
class Parts:
    """The fitted parts, at least one, and what takes their place where some are silent, the most silent last."""

    members: tuple[FusedPart, ...]
    stand_ins: tuple[StandIn, ...] = ()

    def __iter__(self) -> Iterator[FusedPart]:
        return iter(self.members)

    def find_stand_in(self, shape: tuple[int, int]) -> StandIn | None:
        """Return what holds for a view of (rows, cols); None where every part can judge it."""
        silent = _find_silent({part.name: part.detector for part in self.members}, min(shape))
        return next((one for one in self.stand_ins if one.silent == silent), None)


def _find_least_side(parts: Parts | None) -> int:
    return min((getattr(part.detector, "least_side_px", 0) for part in parts or ()), default=0)


def _find_silent(detectors: Mapping[str, Detector], side_px: int) -> tuple[str, ...]:
    """The names of those that cannot judge a view of such a shorter side."""
    return tuple(name for name, detector in detectors.items() if side_px < getattr(detector, "least_side_px", 0))


@dataclass(frozen=True, eq=False)
class Fusion:
    """Several detectors, added up as surprisals among normal patches.

    The map holds, at each pixel, what a patch would score whose parts answered as they do there. There are no parts
    before fitting.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals only"
    fewest_patches: ClassVar[int] = FEWEST_PATCHES
    config: FusionConfig = FusionConfig()
    parts: Parts | None = dataclasses.field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Fusion:
        """Fit each part, and calibrate it; see `unary.detectors.protocol.Detector.fit`."""
        return dataclasses.replace(self, parts=_fit_parts(self.build_parts(), self.config, normals, context))

    @property
    def least_side_px(self) -> int:
        """That of the part that can judge the smallest images; 0 before fitting."""
        return _find_least_side(self.parts)

    def on_device(self, device: str) -> Self:
        """Return the same with all networks of its parts there; see `unary.detectors.devices`."""
        return dataclasses.replace(self, parts=_place_parts(require_fitted(self.parts, "fusion"), device))

    def build_parts(self) -> list[Detector]:
        """Return the parts, not fitted; a `DetectorError` says that one may not take part."""
        return [_build_part(self.config, name, self.knowledge) for name, _ in self.config.parts]

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse by a `TrainingError` what could not be learned from."""
        _check_patches(self.config, self.build_parts(), normals)

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
    fewest_patches: ClassVar[int] = FEWEST_PATCHES
    config: FusionConfig = FusionConfig((*FusionConfig().parts, ("segmentation", 1.0)))
    parts: Parts | None = dataclasses.field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> FusionPrior:
        return dataclasses.replace(self, parts=_fit_parts(self.build_parts(), self.config, normals, context))

    @property
    def least_side_px(self) -> int:
        return _find_least_side(self.parts)

    def on_device(self, device: str) -> Self:
        """Return the same with all networks of its parts there; see `unary.detectors.devices`."""
        return dataclasses.replace(self, parts=_place_parts(require_fitted(self.parts, "fusion"), device))

    def build_parts(self) -> list[Detector]:
        return [_build_part(self.config, name, self.knowledge) for name, _ in self.config.parts]

    def check_patches(self, normals: PatchSet) -> None:
        _check_patches(self.config, self.build_parts(), normals)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        parts = require_fitted(self.parts, "fusion_prior")
        return _examine_parts(parts, view, origins, size_px=size_px, with_map=with_map)

    def get_state(self) -> DetectorState:
        return _describe_parts(self.config, require_fitted(self.parts, "fusion_prior"))

    @classmethod
    def from_state(cls, state: DetectorState) -> FusionPrior:
        return cls(*_restore_parts(state))


def _check_patches(config: FusionConfig, parts: Sequence[Detector], normals: PatchSet) -> dict[str, Detector]:
    """Ask all parts, before the first of them is trained; return those that can judge an image at all."""
    require_enough(len(normals))
    largest = max(min(normals.images[number].shape) for number in np.unique(normals.index[:, 0]))
    asked = dict(zip((name for name, _ in config.parts), parts, strict=True))
    silent = _find_silent(asked, largest)
    if len(silent) == len(asked):
        raise TrainingError(f"no image is large enough for {', '.join(silent)}: the largest has {largest} working px")
    usable = {name: part for name, part in asked.items() if name not in silent}
    for part in usable.values():
        if hasattr(part, "check_patches"):
            part.check_patches(normals)
    return usable


def _fit_parts(prepared: Sequence[Detector], config: FusionConfig, normals: PatchSet, context: FitContext) -> Parts:
    """Train all parts that can judge the images, then calibrate them on the patches of those that each can judge."""
    usable = _check_patches(config, prepared, normals)
    if left_out := [name for name, _ in config.parts if name not in usable]:
        logger.warning("all images are too small for %s: the fusion is made without", ", ".join(left_out))
    fitted = {name: part.fit(normals, context) for name, part in usable.items()}

    def score(view: View, origins: Origins) -> list[NDArray[np.float64]]:
        silent = _find_silent(fitted, min(view.shape))
        return [
            np.full(len(origins), np.nan)
            if name in silent
            else part.examine(view, origins, size_px=normals.size_px, with_map=False).scores
            for name, part in fitted.items()
        ]

    scores = measure_normals(score, normals, title=context.name_bar("calibrating parts"))
    weights = dict(config.parts)
    members = tuple(
        FusedPart(name, part, weights[name], fit_surprisal(_drop_silent(part, values)))
        for (name, part), values in zip(fitted.items(), scores, strict=True)
    )
    return Parts(members, _fit_stand_ins(members, scores))


def _drop_silent(part: Detector, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of the patches that a part could judge; all of one that judges any image."""
    return scores[~np.isnan(scores)] if getattr(part, "least_side_px", 0) else scores


def _fit_stand_ins(members: Sequence[FusedPart], scores: Sequence[NDArray[np.float64]]) -> tuple[StandIn, ...]:
    """Measure what normal patches add up to, with all parts and without those that smaller images silence."""
    expected = _list_silent(members)
    if not expected:
        return ()
    judged = ~np.isnan(scores).any(axis=0)
    told = {
        part.name: part.weight * part.surprisal(values[judged]) for part, values in zip(members, scores, strict=True)
    }
    whole = fit_surprisal(np.sum(list(told.values()), axis=0))
    rest = (np.sum([values for name, values in told.items() if name not in silent], axis=0) for silent in expected)
    return tuple(StandIn(silent, whole, fit_surprisal(sums)) for silent, sums in zip(expected, rest, strict=True))


def _list_silent(members: Sequence[FusedPart]) -> list[tuple[str, ...]]:
    """Which parts can be silent together, the others having a say; larger sets for smaller images."""
    detectors = {part.name: part.detector for part in members}
    sides = sorted({getattr(part, "least_side_px", 0) for part in detectors.values()} - {0}, reverse=True)
    found = [_find_silent(detectors, side - 1) for side in sides]
    return [silent for silent in found if len(silent) < len(members)]


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


def _place_parts(parts: Parts, device: str) -> Parts:
    if device != "cpu" and not any(has_networks(part.detector) for part in parts):
        raise DetectorError(f"no part of the fusion has a network that {device} could apply")
    members = tuple(
        dataclasses.replace(part, detector=place_detector(part.detector, device))
        if has_networks(part.detector)
        else part
        for part in parts
    )
    return dataclasses.replace(parts, members=members)


def _examine_parts(parts: Parts, view: View, origins: Origins, *, size_px: int, with_map: bool) -> Examination:
    stand_in = parts.find_stand_in(view.shape)
    silent = () if stand_in is None else stand_in.silent
    scores = np.zeros(len(origins))
    total = np.zeros(view.shape, np.float32) if with_map else None
    for part in parts:  # one after the other, so that no two of their maps are held at a time
        if part.name in silent:
            continue
        examined = part.detector.examine(view, origins, size_px=size_px, with_map=with_map)
        scores += part.weight * part.surprisal(examined.scores)
        if total is not None:
            _convert(partial(_add_surprisal, part, examined.require_map(), total), len(total))
        del examined
    if stand_in is not None:
        scores = stand_in(scores)
        if total is not None:
            _convert(partial(_replace_sums, stand_in, total), len(total))
    return Examination(scores, total, silent)


def _convert(convert: Callable[[slice], None], rows: int) -> None:
    """Do so many rows in bands, since what comes between is float64."""
    run_in_threads(convert, [slice(start, start + _BAND_PX) for start in range(0, rows, _BAND_PX)])


def _add_surprisal(part: FusedPart, answer: NDArray[np.float32], total: NDArray[np.float32], band: slice) -> None:
    """Add a part's weighted surprisal in a band of rows."""
    seen = ~np.isnan(answer[band])
    total[band][seen] += (part.weight * part.surprisal(answer[band][seen])).astype(np.float32)
    np.copyto(total[band], np.float32(np.nan), where=~seen)


def _replace_sums(stand_in: StandIn, total: NDArray[np.float32], band: slice) -> None:
    seen = ~np.isnan(total[band])
    total[band][seen] = stand_in(total[band][seen]).astype(np.float32)


def _describe_parts(config: FusionConfig, parts: Parts) -> DetectorState:
    states = {}
    for part in parts:
        own = part.detector.get_state()
        settings = {"settings": own.settings, "surprisal": describe_config(part.surprisal)}
        states[part.name] = DetectorState(settings, own.tensors)
    joined = join_states(config, states)
    told = {
        "left_out": [name for name, _ in config.parts if name not in states],  # too large for every training image
        "stand_ins": [describe_config(one) for one in parts.stand_ins],
    }
    return DetectorState({**joined.settings, **told}, joined.tensors)


def _restore_parts(state: DetectorState) -> tuple[FusionConfig, Parts]:
    config = read_config(FusionConfig, state.settings["config"])
    members = []
    for name, weight in config.parts:
        if name in state.settings["left_out"]:
            continue
        own = pick_state(state, name)
        detector = find_detector_class(name).from_state(DetectorState(own.settings["settings"], own.tensors))
        members.append(FusedPart(name, detector, weight, read_config(Surprisal, own.settings["surprisal"])))
    stand_ins = tuple(read_config(StandIn, one) for one in state.settings["stand_ins"])
    stored = {*state.settings["parts"], *state.settings["left_out"]}
    if not members or stored != {name for name, _ in config.parts} or len(members) != len(state.settings["parts"]):
        raise ValueError("the parts of a fusion and those left out must be those of its configuration")
    if [one.silent for one in stand_ins] != _list_silent(members):
        raise ValueError("a fusion must have a stand-in for each set of its parts that small images silence")
    return config, Parts(tuple(members), stand_ins)
