"""How far an exported graph is from the model that it was made of, on synthetic pictures and on images.

Every pixel of the map, every patch, the image's score, and the findings at every operating point are compared.

Two things make last digits count, in the model itself as from one processor to another. A part that computes with
numbers rounded to bfloat16 (`unary.detectors.blind_spot`) now and then rounds to the neighbouring number, half a
percent away, when sums are taken in another order. And the surprisal of a part of a fusion has a small step where its
tail starts. A detector with either is compared twice: without rounding and step, by the strict limit; and as it is
written, where hardly any pixel may differ by more, and none by more than two steps of such numbers and that of the
surprisals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unary.detectors.graphs import build_graph, find_step, smooth_out
from unary.models.bundle import Model
from unary.models.examination import ScoredImage, build_detection, examine_image
from unary.models.exported import ExportedConfig, ExportedDetector
from unary.models.probe import Picture, choose_picture, draw_picture
from unary.records import Detection, Image, OperatingPoint

LIMIT = 1e-4
STEP_LIMIT = 2.0**-7
STEP_SHARE = 1e-3


@dataclass(frozen=True)
class Parity:
    """How far a graph is from its model on one image.

    Attributes
    ----------
    name
        Of the image.
    map, scores
        The largest difference of a pixel, and of a patch, over the largest absolute value of the model's; infinite
        where one knows a place that the other does not.
    image_score
        The difference of the image's score, over the largest absolute value of the map.
    beyond
        The share of the map's pixels that differ by more than `LIMIT`.
    exact
        The largest of the three differences between graph and model if neither rounds to bfloat16 nor has a step; None
        where that is so anyway.
    step
        How large a step of the map may be, over its largest absolute value.
    findings
        Where the findings differ, in words, one line for each operating point; empty where they do not.
    """

    name: str
    map: float
    scores: float
    image_score: float
    beyond: float
    exact: float | None = None
    step: float = 0.0
    findings: tuple[str, ...] = ()

    @property
    def largest(self) -> float:
        """The largest of the three differences."""
        return max(self.map, self.scores, self.image_score)

    @property
    def is_close(self) -> bool:
        """Whether the graph says what the model says."""
        if self.exact is None:
            return self.largest <= LIMIT
        return self.exact <= LIMIT and self.largest <= STEP_LIMIT + self.step and self.beyond <= STEP_SHARE


def compare_models(model: Model, exported: ExportedDetector, images: Iterable[tuple[str, Image]]) -> Iterator[Parity]:
    """Yield how graph and model compare on the synthetic pictures, and on images with their names."""
    pairs = [(model, dataclasses.replace(model, detector=exported))]
    smooth = smooth_out(model.detector)
    if smooth is not None:
        graph = ExportedDetector(exported.config, build_graph(smooth, model.grid.size_px).SerializeToString())
        pairs.append((dataclasses.replace(model, detector=smooth), dataclasses.replace(model, detector=graph)))
    for name, picture in choose_pictures(model, exported.config).items():
        yield _compare(pairs, name, draw_picture(picture))
    for name, image in images:
        yield _compare(pairs, name, image)


def choose_pictures(model: Model, config: ExportedConfig) -> dict[str, Picture]:
    """Return the test picture, and smaller ones in which parts are silent, by name."""
    first = choose_picture(model)
    found = {"the test picture": first}
    preparation = model.preparation
    if preparation.working_size_px is None:
        scale = 1.0 if preparation.working_spacing_mm is None else preparation.working_spacing_mm / first.spacing_mm
        for number, one in enumerate(config.silences, 1):
            side_px = max(int((one.below_px - 8) * scale), 1)
            found[f"the small test picture {number}"] = dataclasses.replace(first, side_px=side_px)
    return found


def _compare(pairs: Sequence[tuple[Model, Model]], name: str, image: Image) -> Parity:
    """Compare model and graph, the first pair, and the same without rounding and step, the second, if there is one."""
    measured = []
    findings: tuple[str, ...] = ()
    step = 0.0
    for number, (model, exported) in enumerate(pairs):
        one, other = examine_image(model, image), examine_image(exported, image)
        measured.append(_measure(one, other))
        if number == 0:
            findings = _compare_findings(model, one, other)
            step = find_step(model.detector) / max(float(np.nanmax(np.abs(one.anomaly_map), initial=0.0)), 1e-30)
    exact = measured[1].largest if len(measured) > 1 else None
    return dataclasses.replace(measured[0], name=name, findings=findings, exact=exact, step=step)


def _measure(one: ScoredImage, other: ScoredImage) -> Parity:
    seen, value = ~np.isnan(one.anomaly_map), np.abs(one.anomaly_map.astype(np.float64))
    largest = max(float(np.nanmax(value, initial=0.0)), 1e-30)
    if not np.array_equal(seen, ~np.isnan(other.anomaly_map)):
        return Parity("", np.inf, np.inf, np.inf, 1.0)
    away = np.abs(one.anomaly_map.astype(np.float64) - other.anomaly_map)[seen] / largest
    scores = np.abs(one.scores - other.scores) / max(float(np.abs(one.scores).max(initial=0.0)), 1e-30)
    highest = abs((one.image_score or 0.0) - (other.image_score or 0.0)) / largest
    beyond = float((away > LIMIT).mean()) if away.size else 0.0
    return Parity("", float(away.max(initial=0.0)), float(scores.max(initial=0.0)), highest, beyond)


def _compare_findings(model: Model, one: ScoredImage, other: ScoredImage) -> tuple[str, ...]:
    """In words, where the findings differ: in number, place, kind or p-value."""
    points = () if model.calibration is None else model.calibration.operating_points
    asked: list[OperatingPoint | None] = [point for point in points if point.unit == "finding"]
    told = []
    for point in asked or [None]:
        first, second = (build_detection(scored, model, point) for scored in (one, other))
        if (said := _tell_difference(first, second)) is not None:
            told.append(f"{'without an operating point' if point is None else f'operating point {point.name}'}: {said}")
    return tuple(told)


def _tell_difference(one: Detection, other: Detection) -> str | None:
    if len(one.findings) != len(other.findings):
        return f"the model has {len(one.findings)} findings, the graph {len(other.findings)}"
    for mine, theirs in zip(one.findings, other.findings, strict=True):
        for name in ("box", "peak", "regions", "kind", "p_value"):
            if getattr(mine, name) != getattr(theirs, name):
                return f"finding {mine.rank} has the {name} {getattr(mine, name)}, of the graph {getattr(theirs, name)}"
    return None if np.array_equal(one.labels, other.labels) else "some pixels at the border of a finding differ"


def describe_parity(parity: Parity) -> str:
    """Say in one line how far graph and model are apart."""
    exact = (
        ""
        if parity.exact is None
        else f"; {parity.exact:.1e} without rounding and steps, {parity.beyond:.4%} of the map beyond"
    )
    return (
        f"{parity.name}: map {parity.map:.1e}, patch scores {parity.scores:.1e}, image score {parity.image_score:.1e}"
        f"{exact}"
    )
