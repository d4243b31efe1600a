"""Pictures of the cross-validated FROC: curves, the strongest false alarms, lesions missed and found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from froc_runs import RunResult

from unary.evaluation.evaluated_image import build_outcomes
from unary.evaluation.froc import froc_curve, summarise_froc
from unary.evaluation.lesion_query import LesionQuery
from unary.outputs.detection_figures import plot_froc
from unary.outputs.detection_pictures import list_false_alarms, list_lesions, plot_evaluated, plot_places
from unary.outputs.figures import figure_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE = 1.0  # false findings per normal image: where lesions are called found or missed
_CROPS, _WHOLE = 18, 3


def find_threshold(run: RunResult) -> float:
    """Return the score above which a run makes at most one false finding per normal image, on its own test images."""
    false_rates, _, thresholds = froc_curve(build_outcomes(run.images, LesionQuery()))
    return float(np.nextafter(thresholds[false_rates <= RATE + 1e-9][-1], -np.inf))


def write_figures(runs: Mapping[str, Sequence[RunResult]], groups: Mapping[str, LesionQuery], out: Path) -> None:
    """Write FROC curves by group of lesions, and pictures of the first run of every detector, as PNG under ``out``."""
    for group, query in groups.items():
        outcomes = {name: [build_outcomes(run.images, query) for run in own] for name, own in runs.items()}
        kept = {name: [run for run in own if any(o.target_scores for o in run)] for name, own in outcomes.items()}
        kept = {name: own for name, own in kept.items() if own}
        if kept:
            summaries = {name: summarise_froc(own, rng=np.random.default_rng(0)) for name, own in kept.items()}
            _write(plot_froc(kept, summaries=summaries), out / f"froc-{_as_name(group)}.png")
    for name, own in runs.items():
        for run in own:
            if run.plan.seed == own[0].plan.seed:
                places = list_false_alarms(run.images, threshold=-np.inf, count=_CROPS)
                _write(plot_places(places), out / f"alarms-{name}-fold{run.plan.fold}.png")
        for group, query in groups.items():
            for found in (False, True):
                _write_lesions(own[0], query, out, found=found, group=group)


def _write_lesions(run: RunResult, query: LesionQuery, out: Path, *, found: bool, group: str) -> None:
    threshold = find_threshold(run)
    places = list_lesions(run.images, query, threshold=threshold, found=found, count=_CROPS)
    stem = f"{'found' if found else 'missed'}-{run.plan.detector}-{_as_name(group)}"
    _write(plot_places(places), out / f"{stem}.png")
    whole = {place.image.row.image_id: place.image for place in places}
    for image_id, image in list(whole.items())[:_WHOLE]:
        _write(plot_evaluated(image, threshold=threshold), out / f"{stem}-{image_id}.png")


def _as_name(group: str) -> str:
    return group.lower().replace(",", "").replace(" ", "_").replace("-", "")


def _write(figure: Figure | None, path: Path) -> None:
    if figure is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(figure_png(figure))
