"""Pictures of a commissioning test: what was inserted, and what was found of it by size and contrast."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.datasets.simulated.plans import MASSES, LesionPlan
from unary.errors import ImageError
from unary.evaluation.commissioning import insert_row, measure_image
from unary.evaluation.commissioning_summary import Commissioning, Sensitivity
from unary.models.bundle import Model
from unary.outputs.figures import FAINT, draw_picture, line_style, new_figure, plain_axes
from unary.patches.collection import read_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_AROUND = {"speck": 10.0, "mass": 2.2}  # mm for a speck; of its size for a mass
_MOST_PX = 400
_TRIES = 4  # images, until one has room for all lesions of a kind


@dataclass(frozen=True, eq=False)
class Crop:
    """The surroundings of a lesion as they are and with it, of one shape, and their side in mm."""

    plan: LesionPlan
    without: NDArray[Any]
    inserted: NDArray[Any]
    side_mm: float


def take_crops(made: Commissioning, model: Model, kind: str, *, seed: int) -> list[Crop]:
    """Insert the lesions of a kind once more, into the first image that has room for most, and cut them out."""
    best: list[Crop] = []
    rows = made.answers.rows
    chosen = [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, _TRIES).astype(int))]
    places = [place for place, plan in enumerate(made.plans) if plan.kind == kind]
    for row in chosen:
        crops = []
        try:
            image = read_row(row)
            tissue = measure_image(model, image)[1]
        except ImageError as error:  # it was there before
            logger.warning("no picture: %s", error)
            continue
        for place in places:
            plan = made.plans[place]
            try:
                lesion = insert_row(row, image, tissue, plan, place=place, seed=seed)
            except ImageError:
                continue
            side_mm = _find_side(plan)
            window = _cut(image.pixels.shape, lesion.centre, side_mm / tissue.spacing_mm)
            crops.append(Crop(plan, image.pixels[window], lesion.pixels[window], side_mm))
        if len(crops) > len(best):
            best = crops
        if len(best) == len(places):
            break
    return best


def _find_side(plan: LesionPlan) -> float:
    if plan.kind in MASSES:
        return _AROUND["mass"] * plan.size_mm
    return max(_AROUND["speck"], 1.5 * plan.spread_mm)


def _cut(shape: tuple[int, ...], centre: tuple[float, float], side_px: float) -> tuple[slice, slice]:
    half = max(round(side_px / 2), 4)
    low = [
        min(max(round(place) - half, 0), max(length - 2 * half, 0)) for place, length in zip(centre, shape, strict=True)
    ]
    return slice(low[0], low[0] + 2 * half), slice(low[1], low[1] + 2 * half)


def plot_insertions(crops: Sequence[Crop]) -> Figure:
    """Lay out pairs of crops, without and with the lesion: a row for each size, a pair of columns for each contrast."""
    if not crops:
        raise ValueError("at least one crop is needed")
    sizes = sorted({crop.plan.size_mm for crop in crops})
    contrasts = sorted({crop.plan.contrast for crop in crops})
    inches, gap, pair_gap, left, head, foot = 1.3, 0.04, 0.22, 0.75, 0.62, 0.28
    width = left + len(contrasts) * (2 * inches + gap + pair_gap)
    height = head + len(sizes) * (inches + 0.18) + foot
    with new_figure(max(width, 3.2), height) as figure:
        across, down = figure.get_size_inches()
        for crop in crops:
            row, column = sizes.index(crop.plan.size_mm), contrasts.index(crop.plan.contrast)
            base = foot + (len(sizes) - 1 - row) * (inches + 0.18) + 0.14
            start = left + column * (2 * inches + gap + pair_gap)
            low, high = np.percentile(crop.without, [0.5, 99.8]).tolist()
            high = max(high, float(np.percentile(crop.inserted, 99.8)))
            for place, pixels in enumerate((crop.without, crop.inserted)):
                step = max(1, round(max(pixels.shape) / _MOST_PX))
                corner = (start + place * (inches + gap), base, inches, inches)
                axes = draw_picture(figure, corner, pixels[::step, ::step], window=(low, high))
                if row == 0:
                    axes.set_title(("as it is", "with it")[place], fontsize=7, pad=2)
            if column == 0:
                said = f"{crop.plan.size_mm:g} mm"
                figure.text((left - 0.08) / across, (base + inches / 2) / down, said, ha="right", va="center")
            if row == 0:
                middle = (start + inches + gap / 2) / across
                said = f"contrast {crop.plan.contrast:g}"
                figure.text(middle, 1 - 0.22 / down, said, ha="center", weight="bold", fontsize=9)
            said = f"{crop.side_mm:g} mm wide"
            figure.text(start / across, (base - 0.12) / down, said, fontsize=6, color=FAINT)
    return figure


def plot_sensitivities(rows: Sequence[Sensitivity], *, point: str) -> Figure:
    """Draw the share found by contrast, a line with intervals for each size, and dotted what chance finds."""
    with new_figure(6.4, 3.6) as figure:
        axes = plain_axes(figure, left=0.75, bottom=0.68)
        sizes = sorted({each.plan.size_mm for each in rows})
        for number, size in enumerate(sizes):
            own = sorted((each for each in rows if each.plan.size_mm == size), key=lambda each: each.plan.contrast)
            known = [(each, each.share) for each in own if each.share is not None]
            if not known:
                continue
            style = line_style(number)
            shift = 1 + 0.025 * (number - (len(sizes) - 1) / 2)
            places = [each.plan.contrast * shift for each, _ in known]
            axes.plot(places, [share.value for _, share in known], marker="o", label=f"{size:g} mm", **style)
            for place, (_, share) in zip(places, known, strict=True):
                if share.low is not None and share.high is not None:
                    axes.plot([place, place], [share.low, share.high], color=style["color"], linewidth=1)
            chance = [each.by_chance or 0.0 for each, _ in known]
            axes.plot(places, chance, color=style["color"], linewidth=0.8, linestyle=":")
        ticks = sorted({each.plan.contrast for each in rows})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("Contrast")
        axes.set_ylabel(f"Share found at {point}")
        if any(each.share is not None for each in rows):
            axes.legend(loc="best", title="size", title_fontsize=8, fontsize=8)
    return figure
