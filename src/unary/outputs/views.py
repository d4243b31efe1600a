"""The pictures that pages show of one image: the whole of it, its map in colour, and places of it at full resolution.

They are made while the pixels are there, and are plain: outlines, numbers and names are drawn by the page over them
(`unary.outputs.cards`), so that they can be switched off. Colour is on one scale with the findings' scores, from the
model's level to the highest score of a normal image that set its operating points: yellow is above all of those.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.outputs.figures import find_factor, reduce_maximum, reduce_mean
from unary.outputs.heat_map import FAINTEST, STRONGEST
from unary.records import Finding, Image

if TYPE_CHECKING:
    from unary.models.bundle import Model
    from unary.models.examination import ScoredImage

Box = tuple[float, float, float, float]
Square = tuple[int, int, int, int]

WHOLE_FILE, MAP_FILE, PLACE_FILE = "view.jpg", "view_map.png", "place-{}.png"
_QUALITY = 88  # of the whole image, which is there to tell the place
_ASSUMED_MM = 0.1  # between pixels where that is unknown, as in `unary.evaluation.matching`
_CROP_MM, _AROUND = 20.0, 1.25  # a crop's side at least, and times the box
_MOST_CROP_PX = 640  # of a crop's side: what is larger is reduced
_DARK = 0.1  # of the image's range of values: what is darker is background
_BACKGROUND = 0.02  # of a crop's pixels: with fewer of it, the whole range is shown
_THIN = 0.75  # of the tissue's median: below, the tissue is thin


@dataclass(frozen=True)
class Scale:
    """The scale of colours: red at ``low``, the model's level, yellow at ``high`` and above; and the threshold."""

    low: float
    high: float
    threshold: float | None = None

    def place(self, score: float) -> float:
        """Return where on the scale a score lies, in [0, 1]."""
        return min(max((score - self.low) / max(self.high - self.low, 1e-12), 0.0), 1.0)

    def colour(self, score: float) -> str:
        """Return the colour of a score, as CSS knows it.

        >>> Scale(0.0, 2.0).colour(1.0), Scale(0.0, 2.0).colour(5.0)
        ('#ff7f00', '#ffff00')
        """
        return f"#ff{int(255 * self.place(score)):02x}00"


@dataclass(frozen=True)
class Crop:
    """A square of the stored image, half-open ``(r0, c0, r1, c1)`` in its pixels, reduced by a factor if large."""

    box: Square
    png: bytes = field(repr=False)
    factor: int = 1


@dataclass(frozen=True, eq=False)
class Views:
    """What `draw_views` returns: JPEG, PNG with transparency (None where nothing glows), and the crops.

    ``shape`` are the rows and columns of the stored image, ``reach`` those that the first two cover: whole blocks, so a
    little more.
    """

    whole: bytes = field(repr=False)
    glow: bytes | None = field(repr=False)
    crops: tuple[Crop, ...]
    shape: tuple[int, int]
    reach: tuple[float, float]
    scale: Scale


def choose_scale(model: Model, scored: ScoredImage, threshold: float | None) -> Scale:
    """Return the model's scale; without calibration, one that ends at the highest score of the image."""
    normal = () if model.calibration is None else model.calibration.scores[-1:]
    low = float(scored.candidates.level)
    high = max([*normal, *(() if normal else [scored.image_score or low]), threshold or low])
    return Scale(low, max(float(high), low + 1e-6 * max(abs(low), 1.0)), threshold)


def draw_views(
    image: Image, scored: ScoredImage, findings: Sequence[Finding], scale: Scale, *, places: Sequence[Box] = ()
) -> Views:
    """Draw one image, what glows in its map, and the surroundings of its findings, then of further places.

    Findings are those reported, by rank; a box of a place is half-open, in stored pixels.
    """
    prepared, count = scored.prepared, len(findings)
    factor = find_factor(prepared.shape)
    grey, inside = reduce_mean(prepared.pixels, factor), reduce_mean(prepared.mask, factor) > 0
    dark, bright = np.percentile(grey[inside] if inside.any() else grey, [0.5, 99.8]).tolist()
    glowing = (scored.candidates.labels > 0) & (scored.candidates.labels <= count)
    boxes = [*(finding.box for finding in findings), *places]
    blocks = [-(-length // factor) * factor for length in prepared.shape]
    return Views(
        _encode(_to_bytes(grey, dark, bright), "JPEG", quality=_QUALITY),
        _draw_glow(scored.anomaly_map, glowing, factor, scale) if glowing.any() else None,
        tuple(cut_crop(image, box) for box in boxes),
        prepared.stored_shape,
        (blocks[0] * prepared.scale[0], blocks[1] * prepared.scale[1]),
        scale,
    )


def _draw_glow(
    anomaly_map: NDArray[np.floating[Any]], glowing: NDArray[np.bool_], factor: int, scale: Scale
) -> bytes | None:
    """The part of the map that belongs to findings, in colour, each block at its highest value."""
    rows, cols = (np.flatnonzero(glowing.any(axis=axis)) for axis in (1, 0))
    corner = [int(lines[0]) // factor * factor for lines in (rows, cols)]
    inner = slice(corner[0], int(rows[-1]) + 1), slice(corner[1], int(cols[-1]) + 1)
    heat = reduce_maximum(np.where(glowing[inner], anomaly_map[inner], np.float32(np.nan)), factor)
    shining = np.isfinite(heat)
    if not shining.any():
        return None
    strength = np.clip((np.where(shining, heat, scale.low) - scale.low) / (scale.high - scale.low), 0, 1)
    shape = [-(-length // factor) for length in anomaly_map.shape]
    colours = np.zeros((*shape, 4), np.uint8)
    place = colours[
        corner[0] // factor : corner[0] // factor + heat.shape[0],
        corner[1] // factor : corner[1] // factor + heat.shape[1],
    ]
    place[..., 0] = np.where(shining, 255, 0)
    place[..., 1] = np.where(shining, 255 * strength, 0)
    place[..., 3] = np.where(shining, 255 * (FAINTEST + (STRONGEST - FAINTEST) * strength), 0)
    return _encode(colours, "PNG", compress_level=1)


def cut_crop(image: Image, box: Box) -> Crop:
    """Return a square around a half-open box in stored pixels, about 20 mm a side or more, in a grey window of its own.

    A pixel of it is a pixel of the image, unless it is larger than 640 pixels a side. Its window is that of the tissue
    in it, so that a speck beside the edge of a breast is seen.
    """
    spacing = image.spacing_mm or (_ASSUMED_MM, _ASSUMED_MM)
    wanted = [max(_CROP_MM / each, _AROUND * (box[k + 2] - box[k])) for k, each in enumerate(spacing)]
    side = min(math.ceil(max(wanted)), *image.shape)
    corner = [
        int(np.clip(round((box[k] + box[k + 2] - side) / 2), 0, length - side)) for k, length in enumerate(image.shape)
    ]
    place = (corner[0], corner[1], corner[0] + side, corner[1] + side)
    square: NDArray[np.float32] = image.pixels[place[0] : place[2], place[1] : place[3]].astype(np.float32)
    factor = -(-side // _MOST_CROP_PX)
    low, high = _find_window(square, image.pixels[::8, ::8])
    if factor > 1:
        square = reduce_mean(square, factor)
    return Crop(place, _encode(_to_bytes(square, low, high), "PNG", compress_level=1), factor)


def _find_window(square: NDArray[np.float32], image: NDArray[Any]) -> tuple[float, float]:
    """The lowest and highest value to show: of the tissue, where a part is background, or no speck would be seen."""
    dark, bright = np.percentile(image, [0.5, 99.5]).tolist()
    tissue = square[square >= dark + _DARK * (bright - dark)]
    if tissue.size > (1 - _BACKGROUND) * square.size or tissue.size == 0:
        low, high = np.percentile(square, [0.5, 99.8]).tolist()
        return low, high
    middle = float(np.median(tissue))
    tissue = tissue[tissue >= dark + _THIN * (middle - dark)]  # without the fall towards the edge
    low, high = np.percentile(tissue, [1, 99.8]).tolist()
    return low, high


def _to_bytes(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (np.asarray(values, np.float32) - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def _encode(picture: NDArray[np.uint8], kind: str, **options: int) -> bytes:
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def write_views(views: Views, folder: Path, stem: str = "") -> dict[str, Any]:
    """Write the pictures into a folder, their names after ``stem``; return what a page needs to know of them."""
    whole = f"{stem}{WHOLE_FILE}"
    (folder / whole).write_bytes(views.whole)
    glow = None if views.glow is None else f"{stem}{MAP_FILE}"
    if glow is not None and views.glow is not None:
        (folder / glow).write_bytes(views.glow)
    places = []
    for number, crop in enumerate(views.crops, 1):
        name = stem + PLACE_FILE.format(number)
        (folder / name).write_bytes(crop.png)
        places.append({"file": name, "box": list(crop.box), "factor": crop.factor})
    scale = {"low": views.scale.low, "high": views.scale.high, "threshold": views.scale.threshold}
    shapes = {"shape": list(views.shape), "reach": list(views.reach)}
    return {"whole": whole, "map": glow, "places": places, **shapes, "scale": scale}
