"""The other breast as a patient's own normal: where one breast is brighter than the other at the same place.

The other image is mirrored and stretched to the height and depth of this breast; both are smoothed over some
millimetres, less what is usual at the same depth under the skin; and their difference is counted in spreads of this
pair's own differences. Nothing is learned, and nothing calibrated: too few normal patients with both breasts are known
here to say how large a difference is usual (`docs/asymmetry.md`). So it points at places and is no score, is added to
none, and alarms nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.errors import ImageError, require_positive
from unary.images.reading import read_image
from unary.patches.preparation import PreparationConfig, PreparedImage, prepare_image
from unary.records import Image

Plane = NDArray[np.float32]

_BINS = 12  # of depth under the skin
_LEAST_SPREAD = 0.05  # of one breast's own; that of pairs is about 1, and of one picture twice nothing
_LEAST_SEEN = 0.1  # of what is smoothed into a place is tissue; in the middle of large metal nothing is seen
_SIDE_PX = 8  # at either side of the picture: where more of it is tissue, the chest wall is


@dataclass(frozen=True)
class AsymmetryConfig:
    """How two breasts are compared.

    Attributes
    ----------
    spacing_mm
        Of the grid on which they are.
    smooth_mm
        Sigma of what one place is.
    rim_mm
        What is nearer to the skin, or to the upper and lower border of the image, is not compared.
    apart_mm
        Between two places that are named.
    most
        Places that are named.
    """

    spacing_mm: float = 0.56
    smooth_mm: float = 4.0
    rim_mm: float = 6.0
    apart_mm: float = 10.0
    most: int = 3

    def __post_init__(self) -> None:
        require_positive(self, *vars(self))


@dataclass(frozen=True)
class AsymmetricPlace:
    """A place where this breast is brighter than the other: (row, col) of the stored image, and by how many spreads."""

    place: tuple[int, int]
    excess: float


@dataclass(frozen=True, eq=False)
class Asymmetry:
    """One breast against the other; not calibrated.

    Attributes
    ----------
    excess
        Shape (rows, cols) of the grid of ``prepared``, float32: how many spreads of all differences this breast is
        brighter than the other by, NaN where it was not compared.
    places
        The highest places, highest first.
    correlation
        Of the two breasts over all places: 1 is one picture twice, and about 0 two that have nothing in common, so that
        no difference means anything.
    prepared
        This image on the grid of the comparison.
    """

    excess: Plane
    places: tuple[AsymmetricPlace, ...]
    correlation: float
    prepared: PreparedImage = field(repr=False)


def compare_breasts(
    image: Image | Path | str, other: Image | Path | str | None, config: AsymmetryConfig | None = None
) -> Asymmetry | None:
    """Return where a breast is brighter than the other one in the same view; None where there is no other image.

    Parameters
    ----------
    image, other
        Both of one examination, one breast each, as `unary.read_image` returns them, or trusted paths. The chest wall
        is taken to be at the side where more of the image's border is tissue.

    Raises
    ------
    ImageError
        If an image cannot be read or prepared, states no pixel spacing, both are said to be of one side or of different
        views, or hardly anything of the breasts lies over each other.
    """
    config = config or AsymmetryConfig()
    if other is None:
        return None
    first, second = (each if isinstance(each, Image) else read_image(Path(each)) for each in (image, other))
    _check_pair(first, second)
    preparation = PreparationConfig(working_spacing_mm=config.spacing_mm, metal=True)
    prepared, opposite = (prepare_image(each, preparation) for each in (first, second))
    own, turned = _face_left(prepared)
    one = _measure_standing(own, config)
    two = _lay_over(_measure_standing(_face_left(opposite)[0], config), opposite, prepared)
    both = np.isfinite(one) & np.isfinite(two)
    if np.count_nonzero(both) < 0.25 * np.count_nonzero(np.isfinite(one)) or not both.any():
        raise ImageError(f"{first.name}: hardly any of it lies over {second.name}; are both of one view?")
    excess = np.where(both, one - two, np.nan)
    values = excess[both]
    spread = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    excess = np.asarray(excess / max(spread, _LEAST_SPREAD), np.float32)
    excess = excess[:, ::-1] if turned else excess
    return Asymmetry(excess, _find_places(excess, prepared, config), _correlate(one[both], two[both]), prepared)


def describe_asymmetry(found: Asymmetry | None) -> str:
    """Say in a sentence or two what a comparison says, and what it does not."""
    if found is None:
        return "Asymmetry: not judged, an image of the other breast is missing."
    if not found.places:
        return "Asymmetry: no place of this breast is brighter than the other. Not calibrated."
    where = ", ".join(f"{each.place} by {each.excess:.1f}" for each in found.places)
    return (
        f"Asymmetry, in spreads of this pair's differences, at (row, col): {where}; the breasts correlate by "
        f"{found.correlation:.2f}. Not calibrated: normal breasts differ too."
    )


def _check_pair(first: Image, second: Image) -> None:
    for each in (first, second):
        if each.spacing_mm is None:
            raise ImageError(f"{each.name}: breasts are compared in mm, and it states no pixel spacing")
    if first.laterality is not None and first.laterality == second.laterality:
        raise ImageError(f"{first.name}: the other image must be of the other breast, and both are {first.laterality}")
    if None not in (first.view, second.view) and first.view != second.view:
        raise ImageError(f"{first.name}: both images must be of one view, they are {first.view} and {second.view}")


def _face_left(prepared: PreparedImage) -> tuple[PreparedImage, bool]:
    """The image with its chest wall to the left, and whether it had to be mirrored."""
    mask = prepared.mask
    turned = np.count_nonzero(mask[:, -_SIDE_PX:]) > np.count_nonzero(mask[:, :_SIDE_PX])
    if not turned:
        return prepared, False
    flipped = PreparedImage(
        prepared.pixels[:, ::-1], mask[:, ::-1], prepared.scale, prepared.stored_shape, prepared.stored_spacing_mm
    )
    return flipped, True


def _measure_standing(prepared: PreparedImage, config: AsymmetryConfig) -> Plane:
    """How bright each place is against what is usual as deep under the skin, in spreads; NaN outside and in the rim."""
    known, sigma = prepared.mask, config.smooth_mm / config.spacing_mm
    weight = ndimage.gaussian_filter(known.astype(np.float32), sigma)
    values = ndimage.gaussian_filter(np.where(known, prepared.pixels, 0).astype(np.float32), sigma)
    values /= np.maximum(weight, 1e-3)
    # neither metal that was left out nor the chest wall, where the breast is cut off, is skin
    mask = ndimage.binary_fill_holes(known)
    depth = ndimage.distance_transform_edt(np.pad(mask, ((1, 1), (0, 1))))[1:-1, :-1] * config.spacing_mm
    inner = mask & (depth > config.rim_mm) & (weight > _LEAST_SEEN)
    standing = np.full(mask.shape, np.nan, np.float32)
    if not inner.any():
        return standing
    deep, found = depth[inner], values[inner]
    parts = np.array_split(np.argsort(deep, kind="stable"), min(_BINS, len(deep)))
    middles, usual = (np.array([np.median(each[part]) for part in parts]) for each in (deep, found))
    found -= np.interp(deep, middles, usual)
    standing[inner] = found / max(1.4826 * float(np.median(np.abs(found))), 1e-6)
    return standing


def _lay_over(standing: Plane, prepared: PreparedImage, target: PreparedImage) -> Plane:
    """Stretch one breast, facing left, to the box of another; NaN where it is none."""
    (r0, c0, r1, c1), (s0, d0, s1, d1) = (_find_box(_face_left(each)[0].mask) for each in (target, prepared))
    rows = s0 + (np.arange(target.shape[0]) - r0) * (s1 - s0) / max(r1 - r0, 1)
    cols = d0 + (np.arange(target.shape[1]) - c0) * (d1 - d0) / max(c1 - c0, 1)
    places = np.meshgrid(rows, cols, indexing="ij")
    return np.asarray(ndimage.map_coordinates(standing, places, order=1, cval=np.nan), np.float32)


def _find_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """First and last row and column of the tissue."""
    rows, cols = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(cols[0]), int(rows[-1]), int(cols[-1])


def _correlate(one: Plane, two: Plane) -> float:
    if not (np.ptp(one) > 0 and np.ptp(two) > 0):
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def _find_places(excess: Plane, prepared: PreparedImage, config: AsymmetryConfig) -> tuple[AsymmetricPlace, ...]:
    """The highest places that exceed 0, so far apart."""
    left = np.where(np.isfinite(excess), excess, -np.inf)
    rows, cols = np.ogrid[: left.shape[0], : left.shape[1]]
    last, places = np.asarray(prepared.stored_shape) - 1, []
    for _ in range(config.most):
        row, col = np.unravel_index(int(left.argmax()), left.shape)
        if not left[row, col] > 0:
            break
        stored = np.minimum((np.asarray([row, col]) + 0.5) * np.asarray(prepared.scale), last).astype(int).tolist()
        places.append(AsymmetricPlace((stored[0], stored[1]), float(left[row, col])))
        left[np.hypot(rows - row, cols - col) * config.spacing_mm < config.apart_mm] = -np.inf
    return tuple(places)
