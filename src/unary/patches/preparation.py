"""From an image as stored to an image that a detector can use.

Preparation optionally resamples to a working pixel spacing, finds the tissue, and scales its intensity to [0, 1]. It
never flips or crops, so that a working pixel maps back to the stored image by one factor per axis.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from unary.errors import ImageError
from unary.patches.bright_region import describe_tissue, find_bright_region
from unary.patches.metal import find_metal
from unary.profiles.profile import TissueRule
from unary.records import Image, count_words

FULL_SCALE = 65535
IntensityRule = Literal["percentile", "full_scale", "window"]
T = TypeVar("T", bound=np.generic)
MOST_PIXELS = 100_000_000  # of a resampled image: the largest films have a third of that at their own spacing
MOST_SIDE_PX = 8192  # of an image that is brought to one size
_SIDE_MM = (0.01, 3000.0)  # of an image: a whole body has two metres
_MOST_ANISOTROPIC = 1.5
_BAND_PX = 512
_BLOCK_PX = 64


@dataclass(frozen=True)
class PreparationConfig:
    """How an image is prepared; stored in the model so that scoring repeats it exactly.

    Attributes
    ----------
    mask
        ``"bright_region"``: the largest bright region (`find_bright_region`). ``"none"``: every pixel that is not
        padding.
    intensity
        ``"percentile"``: ``low_percentile`` of the masked pixels becomes 0 and ``high_percentile`` becomes
        ``high_value``, linear between and beyond, clipped to [0, 1]. The head-room above ``high_value`` keeps specks
        that are brighter than tissue from being clipped. ``"full_scale"``: the range of the storage format becomes
        [0, 1], whatever the image holds. ``"window"``: ``window`` does.
    low_percentile, high_percentile
        Of the masked pixels, in percent.
    high_value
        In (0, 1].
    working_spacing_mm
        Resample to square pixels of this size before anything else; None keeps the stored grid.
    working_size_px
        Resample so that the longer side has so many pixels, whatever the image's size and with or without a pixel
        spacing; the aspect is kept, in mm where the spacing is known. Not together with ``working_spacing_mm``.
    window
        The values that become 0 and 1, in the image's own unit (Hounsfield units for CT), linear between and clipped
        beyond; for the intensity ``"window"`` alone.
    spacing_range_mm
        The lowest and highest pixel spacing that such images have; another one is noted. None for any.
    metal
        Whether clips and markers are left out of the tissue (`find_metal`), where the pixel spacing is known and the
        intensity is ``"percentile"``, whose two values are the tissue's range.
    """

    mask: TissueRule = "bright_region"
    intensity: IntensityRule = "percentile"
    low_percentile: float = 1.0
    high_percentile: float = 99.0
    high_value: float = 0.75
    working_spacing_mm: float | None = None
    window: tuple[float, float] | None = None
    spacing_range_mm: tuple[float, float] | None = None
    working_size_px: int | None = None
    metal: bool = False

    def __post_init__(self) -> None:
        if self.mask not in ("bright_region", "none"):
            raise ValueError(f"mask must be 'bright_region' or 'none', not {self.mask!r}")
        if self.intensity not in ("percentile", "full_scale", "window"):
            raise ValueError(f"intensity must be 'percentile', 'full_scale' or 'window', not {self.intensity!r}")
        if not 0 <= self.low_percentile < self.high_percentile <= 100:
            raise ValueError(
                f"need 0 <= low_percentile < high_percentile <= 100, got {self.low_percentile}, {self.high_percentile}"
            )
        if not 0 < self.high_value <= 1:
            raise ValueError(f"high_value must lie in (0, 1], got {self.high_value}")
        if self.working_spacing_mm is not None and not 0 < self.working_spacing_mm < math.inf:
            raise ValueError(f"working_spacing_mm must be positive, got {self.working_spacing_mm}")
        if self.working_size_px is not None and not 1 <= self.working_size_px <= MOST_SIDE_PX:
            raise ValueError(f"working_size_px must lie in 1 to {MOST_SIDE_PX}, got {self.working_size_px}")
        if None not in (self.working_spacing_mm, self.working_size_px):
            raise ValueError(
                "an image is brought to a spacing or to a size: give working_spacing_mm or working_size_px, not both "
                f"({self.working_spacing_mm:g}, {self.working_size_px})"
            )
        if (self.window is None) == (self.intensity == "window"):
            raise ValueError(
                f"a window goes with the intensity 'window' and with no other, got window={self.window} and "
                f"intensity={self.intensity!r}"
            )
        if self.window is not None and not -math.inf < self.window[0] < self.window[1] < math.inf:
            raise ValueError(f"window must be two numbers, the lower one first, got {self.window}")
        if self.spacing_range_mm is not None and not 0 < self.spacing_range_mm[0] < self.spacing_range_mm[1] < math.inf:
            raise ValueError(f"spacing_range_mm must be two lengths, the lower one first, got {self.spacing_range_mm}")


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image on the working grid.

    Attributes
    ----------
    pixels
        Shape (rows, cols), uint16; 65535 stands for intensity 1; 0 outside the mask, and where tissue is darkest. Two
        bytes a pixel hold 12-bit data without loss and half the memory of float32.
    mask
        Shape (rows, cols), bool: True where tissue is.
    scale
        Stored pixels per working pixel, (row, col): stored = working * scale, between pixel edges.
    stored_shape
        Rows and columns of the stored image.
    stored_spacing_mm
        Distance between its pixel centres (between rows, between columns) in mm, or None when unknown.
    notes
        Those of the image, and what preparation found unusual, one sentence each.
    """

    pixels: NDArray[np.uint16]
    mask: NDArray[np.bool_]
    scale: tuple[float, float]
    stored_shape: tuple[int, int]
    stored_spacing_mm: tuple[float, float] | None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the working grid."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    @property
    def spacing_mm(self) -> float | None:
        """Distance between working pixels in mm, the mean of both directions; None when unknown."""
        if self.stored_spacing_mm is None:
            return None
        return float(np.mean([a * b for a, b in zip(self.scale, self.stored_spacing_mm, strict=True)]))


def describe_unusual(image: Image, config: PreparationConfig) -> tuple[str, ...]:
    """Return what is unusual about an image for whoever prepares it so, one sentence each; none refuses it.

    `prepare_image` adds them to the image's own notes; who only checks an image asks for them here. They are on the
    pixel spacing, which may lie outside ``config.spacing_range_mm`` or differ between directions, and, with the mask
    ``"bright_region"``, on what that takes for tissue: most of the picture's border in an inverted film or a white
    frame, nearly all of the picture, or bright parts that look like air.
    """
    notes = []
    if image.spacing_mm is not None:
        low, high = sorted(image.spacing_mm)
        stated = f"the pixel spacing of {image.spacing_mm[0]:g} x {image.spacing_mm[1]:g} mm"
        lowest, highest = config.spacing_range_mm or (0.0, math.inf)
        if not lowest <= low <= high <= highest:
            bounds = f"{lowest:g} to {highest:g} mm"
            notes.append(f"{stated} is outside the {bounds} of such images; in another unit, or of a reduced copy?")
        if high > _MOST_ANISOTROPIC * low:
            notes.append(f"{stated} differs much between rows and columns; are its two values right?")
    if config.mask == "bright_region" and 0 not in image.shape:
        notes += describe_tissue(image.pixels, image.padding)
    return tuple(notes)


def prepare_image(image: Image, config: PreparationConfig) -> PreparedImage:
    """Prepare one image, in any unit and dtype; it stays as it is.

    Raises
    ------
    ImageError
        If the image is empty, constant or so within the window, holds a value that is not finite, shows no tissue, must
        be resampled to a spacing and states none, or, said before memory is asked for, would have more than 100 million
        pixels, or by its pixel spacing a side below 0.01 mm or above 3 m.
    """
    pixels = image.pixels
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise ImageError(f"{image.name}: a two-dimensional image with pixels is needed, its shape is {pixels.shape}")
    if pixels.dtype.kind == "f" and not bool(np.isfinite(pixels).all()):
        raise ImageError(f"{image.name}: it holds values that are not finite (NaN or infinity)")
    _check_sides(image)
    pixels, padding, scale = _resample(image, config)
    if config.mask == "bright_region":
        mask = find_bright_region(pixels, padding)
    else:
        mask = np.ones(pixels.shape, bool) if padding is None else ~padding
    if not mask.any():
        raise ImageError(
            f"{image.name}: no tissue was found, only background; is the image blank, constant, or of a kind whose "
            "tissue fills it? Such images are prepared with the mask 'none'",
            reason="BLANK",
        )
    low, high = _intensity_anchors(image, pixels, mask, config)
    if not high > low:
        raise ImageError(
            f"{image.name}: the tissue has one single value ({low:g}); the image looks blank or damaged", reason="BLANK"
        )
    top = config.high_value if config.intensity == "percentile" else 1.0
    notes = (*image.notes, *describe_unusual(image, config))
    if config.metal and config.intensity == "percentile" and image.spacing_mm is not None:
        spacing = (image.spacing_mm[0] * scale[0], image.spacing_mm[1] * scale[1])
        metal, count = find_metal(pixels, mask, low=low, high=high, spacing_mm=spacing)
        if metal is not None and (mask & ~metal).any():
            mask = mask & ~metal
            notes = (*notes, f"{count_words(count, 'piece')} of metal, such as a clip, left out: it is no tissue")
    values = _rescale(pixels, low, high, top=top, mask=mask)
    if config.window is not None and (inside := values[mask]).min() == inside.max():
        raise ImageError(
            f"{image.name}: all its values lie beyond the window of {low:g} to {high:g}, on one side; they are "
            f"{pixels[mask].min():g} to {pixels[mask].max():g}: is the window of another unit, or the image empty?",
            reason="BLANK",
        )
    return PreparedImage(values, mask, scale, image.shape, image.spacing_mm, notes)


def _check_sides(image: Image) -> None:
    """Refuse a spacing that can only be of another unit: lengths in mm, of rims and findings, are divided by it."""
    if image.spacing_mm is None:
        return
    high, wide = (count * step for count, step in zip(image.shape, image.spacing_mm, strict=True))
    if not all(_SIDE_MM[0] <= side <= _SIDE_MM[1] for side in (high, wide)):
        raise ImageError(
            f"{image.name}: its pixel spacing of {image.spacing_mm[0]:g} x {image.spacing_mm[1]:g} mm would make it "
            f"{high:g} x {wide:g} mm large; stated in another unit, such as micrometres, or damaged?",
            reason="IMPLAUSIBLE_SPACING",
        )


def erode_mask(mask: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
    """Return a mask without its rim: where every pixel at most ``reach_px`` rows and columns away is set.

    The image's border is no rim: what lies beyond it does not count. A reach of 0 changes nothing.
    """
    eroded = np.empty_like(mask)
    reach_px = min(reach_px, max(mask.shape))  # beyond that it makes no difference but to memory
    grown = np.pad(mask, reach_px, constant_values=True)
    for start in range(0, len(mask), _BAND_PX):  # few enough rows to stay near the processor
        kept = _erode_down(grown[start : start + _BAND_PX + 2 * reach_px], reach_px)
        eroded[start : start + _BAND_PX] = _erode_down(kept.T, reach_px).T
    return eroded


def _erode_down(grown: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """The rows that have ``reach`` rows above and below: what is set there together with all between. Few passes do."""
    kept, seen = grown, 1
    while seen <= 2 * reach:
        step = min(seen, 2 * reach + 1 - seen)
        kept = kept[:-step] & kept[step:]
        seen += step
    return kept


def enlarge(values: NDArray[T], prepared: PreparedImage) -> NDArray[T]:
    """Return values of an image's working grid on its stored grid; a stored pixel takes the nearest working pixel's."""
    rows, cols = (
        np.minimum(((np.arange(length) + 0.5) / factor).astype(int), size - 1)
        for length, factor, size in zip(prepared.stored_shape, prepared.scale, values.shape, strict=True)
    )
    enlarged: NDArray[T] = values[rows][:, cols]
    return enlarged


def _intensity_anchors(
    image: Image, pixels: NDArray[Any], mask: NDArray[np.bool_], config: PreparationConfig
) -> tuple[float, float]:
    """The two values that become 0 and the highest intensity, ``high_value`` or 1."""
    if config.intensity == "full_scale":
        return image.value_range
    if config.window is not None:
        return config.window
    inside = pixels[mask]
    if inside.size > 4_000_000:  # every k-th pixel estimates a percentile as well and keeps 100 megapixels fast
        inside = inside[:: inside.size // 2_000_000]
    low, high = np.percentile(inside, [config.low_percentile, config.high_percentile])
    return float(low), float(high)


def _rescale(
    pixels: NDArray[Any], low: float, high: float, *, top: float, mask: NDArray[np.bool_]
) -> NDArray[np.uint16]:
    """Map [low, high] to [0, top] in units of 1/65535, a band of rows at a time to bound memory; 0 outside the mask."""
    result = np.empty(pixels.shape, np.uint16)
    factor = np.float32(top * FULL_SCALE / (high - low))
    for start in range(0, pixels.shape[0], _BAND_PX):
        rows = slice(start, start + _BAND_PX)
        band = pixels[rows].astype(np.float32)
        band -= np.float32(low)
        band *= factor
        np.clip(band, 0, FULL_SCALE, out=band)
        np.rint(band, out=band)
        band[~mask[rows]] = 0
        result[rows] = band
    return result


def find_working_shape(
    shape: tuple[int, int], spacing_mm: tuple[float, float] | None, config: PreparationConfig
) -> tuple[int, int] | None:
    """Return rows and columns of the working grid of a stored image; None where only a pixel spacing would tell.

    >>> find_working_shape((512, 400), None, PreparationConfig(working_size_px=128))
    (128, 100)
    >>> find_working_shape((512, 400), (0.7, 0.7), PreparationConfig(working_spacing_mm=1.4))
    (256, 200)
    """
    steps = spacing_mm or (1.0, 1.0)
    high, wide = shape[0] * steps[0], shape[1] * steps[1]
    if config.working_size_px is not None:
        unit = max(high, wide) / config.working_size_px
    elif config.working_spacing_mm is None:
        return shape
    elif spacing_mm is None:
        return None
    else:
        unit = config.working_spacing_mm
    return max(1, round(high / unit)), max(1, round(wide / unit))


def _resample(
    image: Image, config: PreparationConfig
) -> tuple[NDArray[Any], NDArray[np.bool_] | None, tuple[float, float]]:
    """Pixels, padding and scale on the working grid: area-averaging when shrinking, bilinear when enlarging."""
    if config.working_spacing_mm is None and config.working_size_px is None:
        return image.pixels, image.padding, (1.0, 1.0)
    shape = find_working_shape(image.shape, image.spacing_mm, config)
    if shape is None:
        raise ImageError(
            f"{image.name}: it is to be resampled to {config.working_spacing_mm} mm per pixel but does not state its "
            "pixel spacing; state it yourself: spacing_mm, a column of a manifest, --spacing-mm on the command line; "
            "or bring all to one size with --working-size-px",
            reason="NO_SPACING",
        )
    (rows, cols), (high, wide) = image.shape, shape
    if high * wide > MOST_PIXELS:
        raise ImageError(
            f"{image.name}: {rows} x {cols} pixels of {image.spacing_mm} mm would become {high} x {wide} of "
            f"{config.working_spacing_mm} mm, more than {MOST_PIXELS:,}; is one of the spacings wrong?",
            reason="TOO_LARGE",
        )
    if shape == image.shape:
        return image.pixels.astype(np.float32), image.padding, (1.0, 1.0)
    padding = None if image.padding is None else resize_pixels(image.padding, shape) > 0.25
    return resize_pixels(image.pixels, shape), padding, (rows / high, cols / wide)


def resize_pixels(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """What `skimage.transform.resize` does with order 1 and anti-aliasing, a band of rows at a time to bound memory.

    A Gaussian of half the reduction less one, where it shrinks, and linear interpolation between pixel centres, edges
    of both grids aligned and borders mirrored. Both together are one sparse matrix per axis.
    """
    if values.min() == values.max():  # a blank image must not become uneven by rounding
        return np.full(shape, values[0, 0], np.float32)
    result = np.empty(shape, np.float32)
    down, across = _resampling(values.shape[0], shape[0]), _resampling(values.shape[1], shape[1])
    for start in range(0, shape[0], _BLOCK_PX):
        part = down[start : start + _BLOCK_PX]
        first, last = int(part.indices.min()), int(part.indices.max()) + 1
        band = part[:, first:last] @ values[first:last].astype(np.float32)
        result[start : start + _BLOCK_PX] = (across @ np.ascontiguousarray(band.T)).T
    return result


@functools.lru_cache(maxsize=16)  # most images of a set are of one size
def _resampling(length: int, new_length: int) -> sparse.csr_array[np.float32, tuple[int, int]]:
    """Return the weights of the old samples of an axis, columns, in every new one, rows."""
    factor = length / new_length
    sigma = max(0.0, (factor - 1) / 2)
    reach = int(4 * sigma + 0.5)
    taps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * np.square(taps / sigma)) if reach else np.ones(1)
    weights /= weights.sum()
    place = factor * (np.arange(new_length) + 0.5) - 0.5
    below = np.floor(place).astype(int)[:, None]
    share = place[:, None] - below
    old = np.concatenate([below + taps, below + 1 + taps], axis=1)
    period = max(2 * (length - 1), 1)  # places beyond the border are folded back, the outermost sample standing once
    old = np.abs((old + length - 1) % period - (length - 1))
    values = np.concatenate([(1 - share) * weights, share * weights], axis=1)
    new = np.broadcast_to(np.arange(new_length)[:, None], old.shape)
    matrix = sparse.coo_array((values.ravel(), (new.ravel(), old.ravel())), shape=(new_length, length))
    return matrix.tocsr().astype(np.float32)  # which adds up what falls on the same place
