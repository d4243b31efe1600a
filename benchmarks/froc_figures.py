"""Pictures of the cross-validated FROC: curves, the strongest false alarms, lesions missed and found."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from froc_runs import RunResult
from numpy.typing import NDArray

from unary.evaluation.evaluated_image import EvaluatedImage, build_outcomes
from unary.evaluation.froc import froc_curve, summarise_froc
from unary.evaluation.lesion_query import LesionQuery
from unary.outputs.detection_figures import plot_findings, plot_froc
from unary.outputs.detection_places import Spot, list_false_alarms, list_lesions, select_findings
from unary.outputs.figures import figure_png
from unary.outputs.gallery import Box, plot_gallery
from unary.outputs.views import cut_crop
from unary.patches.collection import read_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE = 1.0  # false findings per normal image: where lesions are called found or missed
_CROPS, _WHOLE = 18, 3
_CROP_PX = 216  # as large as `plot_gallery` shows a patch


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


def plot_places(places: Sequence[Spot]) -> Figure | None:
    """Show places of images beside each other, about 20 mm a side, the box framed; None if there is none."""
    if not places:
        return None
    pictures, boxes = [], []
    for place in places:
        picture, box = _crop(place)
        pictures.append(picture)
        boxes.append([box])
    return plot_gallery(np.stack(pictures), titles=[place.title for place in places], boxes=boxes)


def _crop(place: Spot) -> tuple[NDArray[np.uint16], Box]:
    """A square around a place, enlarged or reduced to one size, and the box in it."""
    crop = cut_crop(read_row(place.image.row), place.box)
    with PIL.Image.open(io.BytesIO(crop.png)) as opened:
        picture = np.asarray(opened.resize((_CROP_PX, _CROP_PX)), np.uint16) * np.uint16(257)
    factor = _CROP_PX / (crop.box[2] - crop.box[0])
    r0, c0, r1, c1 = (factor * (value - crop.box[k % 2]) for k, value in enumerate(place.box))
    return picture, (r0, c0, r1, c1)


def plot_evaluated(image: EvaluatedImage, *, threshold: float) -> Figure:
    """Draw a whole image with its findings above a threshold, at most as many as are reported, and its lesions."""
    findings = select_findings(image, threshold)
    shown = {finding.rank for finding in findings}
    return plot_findings(
        read_row(image.row).pixels,
        findings,
        lesions=[target.outline for target in image.match.targets],
        hits=[tuple(rank for rank in ranks if rank in shown) for ranks in image.match.hits],
        title=image.row.image_id + (f", assessment {image.row.assessment}" if image.row.assessment else ""),
    )


def _as_name(group: str) -> str:
    return group.lower().replace(",", "").replace(" ", "_").replace("-", "")


def _write(figure: Figure | None, path: Path) -> None:
    if figure is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(figure_png(figure))
