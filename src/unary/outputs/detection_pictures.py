"""Pictures of evaluated images: the strongest false alarms, lesions that were missed and found, whole images.

Images are read again, one after the other, for the few that are shown.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize

from unary.errors import ImageError
from unary.evaluation.evaluated_image import EvaluatedImage
from unary.evaluation.lesion_query import LesionQuery
from unary.evaluation.matching import STANDARD, Target
from unary.models.calibration import MOST_FINDINGS
from unary.outputs.detection_figures import plot_findings
from unary.outputs.gallery import Box, plot_gallery
from unary.patches.collection import read_row
from unary.progress import show_progress
from unary.records import Image, count_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_CROP_MM, _CROP_PX = 20.0, 216  # as large as `plot_gallery` shows a patch
_AROUND = 1.25  # times the box
_PER_IMAGE = 2
_DARK = 0.1  # of the image's range of values: what is darker is background
_BACKGROUND = 0.02  # of a crop's pixels: with fewer of it, the whole range is shown
_THIN = 0.75  # of the tissue's median: below, the tissue is thin


@dataclass(frozen=True, eq=False)
class Place:
    """A place of an evaluated image to look at: a half-open box in stored pixels, and a title, never a patient's."""

    image: EvaluatedImage
    box: Box
    title: str


def list_false_alarms(images: Sequence[EvaluatedImage], *, threshold: float, count: int) -> list[Place]:
    """Return the strongest findings in normal images above a threshold, at most two of each."""
    found = [(image, each) for image in images if image.normal for each in image.findings if each.score > threshold]
    found.sort(key=lambda pair: -pair[1].score)
    return _thin(
        (
            Place(
                image,
                finding.box,
                f"{image.row.image_id[-16:]}\nscore {finding.score:.3g}, rank {finding.rank}"
                + (", vascular" if finding.kind == "vascular pattern" else ""),
            )
            for image, finding in found
        ),
        count,
    )


def list_lesions(
    images: Sequence[EvaluatedImage], query: LesionQuery, *, threshold: float, found: bool, count: int
) -> list[Place]:
    """Return lesions that are missed, largest first, or found, highest score first; at most two of each image.

    A lesion is found when its best finding scores above the threshold.
    """
    listed: list[tuple[float, Place]] = []
    for image in images:
        if image.normal or not query.selects_image(image.row):
            continue
        for number, target in enumerate(image.match.targets):
            score = image.score_target(number)
            if not query.selects(target) or (score is not None and score > threshold) is not found:
                continue
            said = f"score {score:.3g}" if score is not None else "not hit"
            title = f"{image.row.image_id[-16:]}\n{_describe(target)}, {said}"
            low, high = target.outline.min(axis=0).tolist(), target.outline.max(axis=0).tolist()
            box = (low[0], low[1], high[0] + 1.0, high[1] + 1.0)
            listed.append((-score if found and score is not None else -target.area_mm2, Place(image, box, title)))
    listed.sort(key=lambda entry: entry[0])
    return _thin([place for _, place in listed], count)


def plot_places(places: Sequence[Place]) -> Figure | None:
    """Show places of images beside each other, about 20 mm a side, the box framed; None if no image can be read."""
    crops: dict[int, tuple[NDArray[np.uint16], Box]] = {}
    rows = dict.fromkeys(place.image.row for place in places)
    for row in show_progress(rows, title="pictures", unit="image", leave=False):
        try:
            image = read_row(row)
        except ImageError as error:
            logger.warning("not shown: %s", error)
            continue
        crops |= {k: _crop(image, place.box) for k, place in enumerate(places) if place.image.row == row}
    if not crops:
        return None
    kept = sorted(crops)
    pictures, boxes = np.stack([crops[k][0] for k in kept]), [[crops[k][1]] for k in kept]
    return plot_gallery(pictures, titles=[places[k].title for k in kept], boxes=boxes)


def plot_evaluated(image: EvaluatedImage, *, threshold: float) -> Figure:
    """Draw a whole image with its findings above a threshold, at most as many as are reported, and its lesions."""
    above = [finding for finding in image.findings if finding.score > threshold]
    findings = sorted(above, key=lambda finding: -finding.score)[:MOST_FINDINGS]
    shown = {finding.rank for finding in findings}
    return plot_findings(
        read_row(image.row).pixels,
        findings,
        lesions=[target.outline for target in image.match.targets],
        hits=[tuple(rank for rank in ranks if rank in shown) for ranks in image.match.hits],
        title=image.row.image_id + (f", assessment {image.row.assessment}" if image.row.assessment else ""),
    )


def _crop(image: Image, box: Box) -> tuple[NDArray[np.uint16], Box]:
    """A square around a box, enlarged or reduced to one size, and the box in it."""
    spacing = STANDARD.find_spacing(image.spacing_mm).tolist()
    wanted = [max(_CROP_MM / each, _AROUND * (box[k + 2] - box[k])) for k, each in enumerate(spacing)]
    side = min(math.ceil(max(wanted)), *image.shape)
    corner = [
        int(np.clip(round((box[k] + box[k + 2] - side) / 2), 0, length - side)) for k, length in enumerate(image.shape)
    ]
    square: NDArray[Any] = image.pixels[corner[0] : corner[0] + side, corner[1] : corner[1] + side].astype(np.float32)
    low, high = _find_window(square, image.pixels[::8, ::8])
    scaled = ((square - low) / max(high - low, 1e-6)).clip(0, 1)
    sized = resize(scaled, (_CROP_PX, _CROP_PX), order=1, anti_aliasing=side > _CROP_PX)
    factor = _CROP_PX / side
    r0, c0, r1, c1 = (factor * (value - corner[k % 2]) for k, value in enumerate(box))
    return np.rint(sized * 65535).astype(np.uint16), (r0, c0, r1, c1)


def _find_window(square: NDArray[np.float32], image: NDArray[Any]) -> tuple[float, float]:
    """The lowest and highest value to show: of the tissue, where a part is background, or no speck would be seen."""
    dark, bright = np.percentile(image, [0.5, 99.5]).tolist()
    tissue = square[square >= dark + _DARK * (bright - dark)]
    if tissue.size > (1 - _BACKGROUND) * square.size or tissue.size == 0:
        return float(square.min()), float(square.max())
    middle = float(np.median(tissue))
    tissue = tissue[tissue >= dark + _THIN * (middle - dark)]  # without the fall towards the edge
    return float(np.percentile(tissue, 1)), float(square.max())


def _describe(target: Target) -> str:
    count = len(target.lesions)
    if target.cluster:
        return f"cluster of {count}" if count > 1 else "cluster"
    return count_words(count, target.group) if count > 1 else target.group


def _thin(places: Iterable[Place], count: int) -> list[Place]:
    """The first few, at most two of each image."""
    taken = Counter[str]()
    chosen = []
    for place in places:
        taken[place.image.row.image_id] += 1
        if taken[place.image.row.image_id] <= _PER_IMAGE:
            chosen.append(place)
    return chosen[:count]
