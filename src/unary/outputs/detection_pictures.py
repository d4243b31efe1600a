"""Pictures of evaluated images: the strongest false alarms, lesions that were missed and found, whole images.

Images are read again, one after the other, for the few that are shown.
"""

from __future__ import annotations

import logging
import math
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
    """A place of an evaluated image to look at.

    Attributes
    ----------
    image
        Where it lies.
    box
        Half-open ``(r0, c0, r1, c1)`` in stored pixels, framed.
    title
        Shown above; never a patient's.
    """

    image: EvaluatedImage
    box: Box
    title: str


def list_false_alarms(images: Sequence[EvaluatedImage], *, count: int) -> list[Place]:
    """Return the strongest findings in normal images, at most two of each."""
    found = [(finding.score, image, finding) for image in images if image.normal for finding in image.findings]
    found.sort(key=lambda entry: -entry[0])
    places = [
        Place(image, finding.box, f"{_name(image)}\nscore {score:.3g}, rank {finding.rank}")
        for score, image, finding in found
    ]
    return _thin(places, count)


def list_lesions(
    images: Sequence[EvaluatedImage], query: LesionQuery, *, threshold: float, found: bool, count: int
) -> list[Place]:
    """Return lesions that are missed, largest first, or found, highest score first; at most two of each image.

    Parameters
    ----------
    images
        Of one model.
    query
        Which lesions.
    threshold
        A lesion is found when its best finding scores above it.
    found
        Which of both to list.
    count
        At most so many.
    """
    listed: list[tuple[float, Place]] = []
    for image in images:
        if image.normal or not query.selects_image(image.row):
            continue
        for number, target in enumerate(image.match.targets):
            if not query.selects(target):
                continue
            score = image.score_target(number)
            hit = score is not None and score > threshold
            if hit is not found:
                continue
            said = f"score {score:.3g}" if score is not None else "not hit"
            title = f"{_name(image)}\n{_describe(target)}, {said}"
            key = -score if found and score is not None else -target.area_mm2
            listed.append((key, Place(image, _box_around(target), title)))
    listed.sort(key=lambda entry: entry[0])
    return _thin([place for _, place in listed], count)


def plot_places(places: Sequence[Place]) -> Figure | None:
    """Show places of images beside each other, about 20 mm a side, the box framed; None if no image can be read."""
    crops: dict[int, NDArray[np.uint16]] = {}
    frames: dict[int, Box] = {}
    for row in dict.fromkeys(place.image.row for place in places):
        try:
            image = read_row(row)
        except ImageError as error:
            logger.warning("not shown: %s", error)
            continue
        for number, place in enumerate(places):
            if place.image.row == row:
                crops[number], frames[number] = _crop(image, place.box)
    if not crops:
        return None
    kept = sorted(crops)
    return plot_gallery(
        np.stack([crops[number] for number in kept]),
        titles=[places[number].title for number in kept],
        boxes=[[frames[number]] for number in kept],
    )


def plot_evaluated(image: EvaluatedImage, *, threshold: float) -> Figure:
    """Draw a whole image with its findings above a threshold, at most as many as are reported, and its lesions.

    Raises
    ------
    ImageError
        If the image cannot be read again.
    """
    findings = [finding for finding in image.findings if finding.score > threshold][:MOST_FINDINGS]
    shown = {finding.rank for finding in findings}
    return plot_findings(
        read_row(image.row).pixels,
        findings,
        lesions=[target.outline for target in image.match.targets],
        hits=[tuple(rank for rank in ranks if rank in shown) for ranks in image.match.hits],
        title=", ".join(
            [image.row.image_id, *([f"assessment {image.row.assessment}"] if image.row.assessment else ())]
        ),
    )


def _crop(image: Image, box: Box) -> tuple[NDArray[np.uint16], Box]:
    """A square around a box, enlarged or reduced to one size, and the box in it."""
    spacing = image.spacing_mm or (STANDARD.assumed_spacing_mm,) * 2
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


def _box_around(target: Target) -> Box:
    low, high = target.outline.min(axis=0), target.outline.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]) + 1.0, float(high[1]) + 1.0


def _describe(target: Target) -> str:
    count = len(target.lesions)
    if target.cluster:
        return f"cluster of {count}" if count > 1 else "cluster"
    return count_words(count, target.group) if count > 1 else target.group


def _name(image: EvaluatedImage) -> str:
    return image.row.image_id[-16:]


def _thin(places: Iterable[Place], count: int) -> list[Place]:
    """The first few, at most two of each image."""
    taken: dict[str, int] = {}
    chosen = []
    for place in places:
        name = place.image.row.image_id
        taken[name] = taken.get(name, 0) + 1
        if taken[name] <= _PER_IMAGE:
            chosen.append(place)
    return chosen[:count]
