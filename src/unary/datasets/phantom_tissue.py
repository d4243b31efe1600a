"""The healthy breast of a phantom: its outline, its glandular tissue, and the lines that run through it.

Everything is drawn as a left breast with the chest wall at column 0.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Field = NDArray[np.float32]
View = Literal["CC", "MLO"]

FULL_SCALE = 4095
_STRANDS = (  # number per cm2, length in mm, full width at half maximum in mm, mean height, spread of heading in rad
    (3.0, 22.0, 0.45, 110.0, 0.8),
    (0.9, 40.0, 0.8, 130.0, 0.5),
    (0.2, 60.0, 1.6, 120.0, 0.4),
)
LINE_STEP_PX = 0.7
_LARGEST_STRUCTURE_MM = 40.0  # below this frequency the spectrum is flat


@dataclass(frozen=True)
class PhantomConfig:
    """Size and contrasts of a phantom; contrasts are in 12-bit pixel values unless stated.

    Attributes
    ----------
    rows, cols
        Of the image. The breast is scaled to fit; lesions and strands keep their size in mm.
    spacing_mm
        Distance between pixel centres. The default gives 205 x 166 mm, the field of a small mammography detector.
    texture_exponent
        The power spectrum of the tissue falls as 1 / frequency ** exponent; about 3 in mammograms (Burgess 1999).
    texture_contrast
        Standard deviation of that texture in the densest tissue.
    noise_std
        Standard deviation of the noise where the signal is 2000; it grows as the square root of the signal.
    calcification_contrast
        Peak of a calcification of 0.4 mm, in local standard deviations of the noise.
    mass_contrast
        Height of a mass at its centre.
    """

    rows: int = 1024
    cols: int = 832
    spacing_mm: float = 0.2
    texture_exponent: float = 3.0
    texture_contrast: float = 230.0
    noise_std: float = 24.0
    calcification_contrast: float = 28.0
    mass_contrast: float = 300.0

    def __post_init__(self) -> None:
        if min(self.rows, self.cols) < 128 or max(self.rows, self.cols) > 16384:
            raise ValueError(f"rows and cols must lie between 128 and 16384, got {self.rows} x {self.cols}")
        if not 0.01 <= self.spacing_mm <= 1:
            raise ValueError(f"spacing_mm must lie between 0.01 and 1 mm, got {self.spacing_mm}")
        if not 20 <= min(self.rows, self.cols) * self.spacing_mm <= 500:
            raise ValueError(
                f"a side must measure 20 to 500 mm to hold a breast with a lesion; {self.rows} x {self.cols} pixels of "
                f"{self.spacing_mm} mm measure {self.rows * self.spacing_mm:g} x {self.cols * self.spacing_mm:g} mm"
            )
        if not 1 <= self.texture_exponent <= 5:
            raise ValueError(f"texture_exponent must lie between 1 and 5, got {self.texture_exponent}")
        for name in ("texture_contrast", "noise_std", "calcification_contrast", "mass_contrast"):
            if not 0 <= getattr(self, name) < FULL_SCALE:
                raise ValueError(f"{name} must lie between 0 and {FULL_SCALE}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Traits:
    """What the images of one patient share. Sizes are shares of the image; density runs from 0 to 1."""

    density: float
    height: float
    width: float
    fat_level: float


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Fields of one left breast, each (rows, cols) float32, and the nipple's (row, col)."""

    depth_mm: Field  # distance to the skin, negative outside
    gland: Field  # share of fibroglandular tissue, 0 to 1
    pectoral: Field  # share of pectoral muscle, 0 to 1
    nipple: tuple[float, float]


def draw_traits(rng: np.random.Generator) -> Traits:
    return Traits(
        density=float(rng.beta(1.3, 1.7)),
        height=float(rng.uniform(0.34, 0.42)),
        width=float(rng.uniform(0.6, 0.8)),
        fat_level=float(rng.uniform(1250, 1500)),
    )


def draw_anatomy(config: PhantomConfig, traits: Traits, *, rng: np.random.Generator, view: View) -> Anatomy:
    """Lay out the breast on a grid of about 200 pixels, where distances are cheap, and enlarge."""
    step = max(1, round(max(config.rows, config.cols) / 200))
    unit = step * config.spacing_mm
    shape = (config.rows - 1) // step + 2, (config.cols - 1) // step + 2
    high, wide = config.rows * config.spacing_mm, config.cols * config.spacing_mm
    margin = math.ceil(0.3 * max(shape))  # beyond the chest wall and the border, where the body goes on
    row, col = np.mgrid[-margin : shape[0] + margin, -margin : shape[1] + margin].astype(np.float32) * np.float32(unit)
    middle = high * (rng.uniform(0.46, 0.54) if view == "CC" else rng.uniform(0.56, 0.62))
    half = high * (traits.height if view == "CC" else 0.85 * traits.height)
    width = wide * traits.width
    tilted = row - middle + np.float32(rng.uniform(-0.12, 0.12)) * col
    power = float(rng.uniform(2.0, 2.4))
    inside = (np.abs(tilted) / half) ** power + (np.abs(col) / width) ** power < 1
    tail = float(rng.uniform(0.42, 0.55))
    if view == "MLO":
        rise = _smoothstep(row, 0, middle)
        inside |= (row < middle) & (col < width * (tail + (1 - tail) * rise))
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    depth = ndimage.gaussian_filter(depth.astype(np.float32) * unit, 0.02 * high / unit)
    cut = (slice(margin, -margin), slice(margin, -margin))
    depth, row, col = depth[cut], row[cut], col[cut]
    tip_row = float(np.clip(round(middle / unit), 0, shape[0] - 1))
    tip_col = float(np.count_nonzero(depth[int(tip_row)] > 0))
    radius = min(4.0, 0.05 * wide)
    nipple = radius - np.hypot(row - tip_row * unit, col - tip_col * unit + 0.2 * radius)
    depth = np.logaddexp(3 * depth, 3 * nipple).astype(np.float32) / 3  # a maximum with a rounded corner

    blotches = _power_law(shape, exponent=3.4, spacing_mm=unit, rng=rng)
    reach = np.hypot((row - tip_row * unit) / (0.75 * half), (col - 0.52 * tip_col * unit) / (0.5 * width))
    gland = (1.5 - 1.35 * reach + 0.45 * blotches + 1.3 * (traits.density - 0.5)).astype(np.float32)
    gland = _smoothstep(gland, 0, 1.1) * _smoothstep(depth, 0.03 * wide, 0.12 * wide)
    pectoral = np.zeros(shape, np.float32)
    if view == "MLO":
        foot, top = high * rng.uniform(0.5, 0.68), width * tail * rng.uniform(0.65, 0.9)
        edge = top * np.clip(1 - row / foot, 0, None) ** float(rng.uniform(0.8, 1.05))
        pectoral = _smoothstep(edge - col + 0.4 * blotches, -0.012 * wide, 0.012 * wide)
    full = (config.rows, config.cols)
    return Anatomy(
        _enlarge(depth, full, step),
        _enlarge(gland * (1 - pectoral), full, step),
        _enlarge(pectoral, full, step),
        (tip_row * step, tip_col * step),
    )


def draw_tissue(config: PhantomConfig, traits: Traits, anatomy: Anatomy, *, rng: np.random.Generator) -> Field:
    """Return the noise-free signal of a breast without lesions, shape (rows, cols), in pixel values."""
    depth, gland = anatomy.depth_mm, anatomy.gland
    texture = _power_law(depth.shape, exponent=config.texture_exponent, spacing_mm=config.spacing_mm, rng=rng)
    signal = traits.fat_level * (0.72 + 0.28 * _smoothstep(depth, 0, 0.12 * config.cols * config.spacing_mm))
    signal += gland * np.float32(350 + 450 * traits.density) + 420 * anatomy.pectoral
    signal += texture * np.float32(config.texture_contrast) * (0.4 + 0.6 * gland)
    signal += _draw_strands(config, anatomy, rng=rng) * (1 - 0.7 * anatomy.pectoral)
    signal += 420 * np.exp(-(((depth - 0.9) / 0.8) ** 2))
    background = np.float32(rng.uniform(15, 40))
    share = _smoothstep(depth, -0.4, 0.7)
    return background + (signal - background) * share


def _draw_strands(config: PhantomConfig, anatomy: Anatomy, *, rng: np.random.Generator) -> Field:
    """Draw ligaments and ducts: wandering bright lines, mostly towards the nipple, many fine, few thick."""
    area_cm2 = np.count_nonzero(anatomy.depth_mm > 0) * config.spacing_mm**2 / 100
    result = np.zeros(anatomy.depth_mm.shape, np.float32)
    for per_cm2, length_mm, width_mm, height, spread in _STRANDS:
        count = max(4, round(per_cm2 * area_cm2))
        starts = sample_positions(anatomy.depth_mm > 1.5, 0.3 + anatomy.gland, count, rng=rng)
        towards = np.arctan2(anatomy.nipple[0] - starts[:, 0], anatomy.nipple[1] - starts[:, 1])
        steps = max(8, round(length_mm / config.spacing_mm / LINE_STEP_PX))
        heading = (towards + rng.normal(0, spread, count))[:, None] + draw_headings(count, steps, rng=rng)
        path = np.cumsum(LINE_STEP_PX * np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=2)
        path += starts[:, :, None] - path[:, :, steps // 2, None]  # lines are brightest in the middle
        weight = np.sin(np.linspace(0, np.pi, steps)) ** 1.5 * rng.gamma(1.3, height / 1.3, count)[:, None]
        result += draw_lines(result.shape, path, weight, sigma_px=width_mm / 2.355 / config.spacing_mm)
    return result


def _enlarge(coarse: Field, shape: tuple[int, int], step: int) -> Field:
    """Interpolate a coarse grid, whose pixel k lies at k * step, bilinearly."""
    for axis in (0, 1):
        position = np.arange(shape[axis], dtype=np.float32) / np.float32(step)
        low = np.minimum(position.astype(int), coarse.shape[axis] - 2)
        weight = np.expand_dims((position - low).astype(np.float32), 1 - axis)
        coarse = coarse.take(low, axis) * (1 - weight) + coarse.take(low + 1, axis) * weight
    return coarse


def _power_law(shape: tuple[int, int], *, exponent: float, spacing_mm: float, rng: np.random.Generator) -> Field:
    """Draw a Gaussian field of zero mean and unit variance whose power falls as 1 / frequency ** exponent."""
    padded = [fft.next_fast_len(length, real=True) for length in shape]
    spectrum = fft.rfft2(rng.standard_normal(padded, np.float32))
    frequency = np.hypot(np.fft.fftfreq(padded[0])[:, None], np.fft.rfftfreq(padded[1])[None, :]) / spacing_mm
    spectrum *= np.hypot(frequency, 1 / _LARGEST_STRUCTURE_MM).astype(np.float32) ** np.float32(-exponent / 2)
    spectrum[0, 0] = 0
    field: Field = fft.irfft2(spectrum, s=padded)[: shape[0], : shape[1]]
    field /= field.std()
    return field


def _smoothstep(values: Field, low: float, high: float) -> Field:
    share = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def draw_headings(count: int, steps: int, *, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth random changes of heading in radians, shape (count, steps)."""
    phase = rng.uniform(0, 2 * np.pi, (count, 3, 1))
    size = rng.normal(0, 1, (count, 3, 1)) * np.array([0.45, 0.25, 0.12])[None, :, None]
    turns = np.array([0.6, 1.7, 4.1])[None, :, None] * np.linspace(0, 2 * np.pi, steps)
    wander: NDArray[np.float64] = (size * np.sin(turns + phase)).sum(axis=1)
    return wander


def draw_lines(
    shape: tuple[int, ...], path: NDArray[np.float64], weight: NDArray[np.float64], *, sigma_px: float
) -> Field:
    """Draw lines of Gaussian profile; ``path`` (n, 2, steps) is points 0.7 pixels apart, ``weight`` their heights."""
    low = np.floor(path).astype(int)
    part = path - low
    canvas = np.zeros(shape[0] * shape[1])
    for dr, dc in itertools.product((0, 1), repeat=2):
        row, col = low[:, 0] + dr, low[:, 1] + dc
        share = np.abs(1 - dr - part[:, 0]) * np.abs(1 - dc - part[:, 1]) * weight
        on = (row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])
        canvas += np.bincount(row[on] * shape[1] + col[on], share[on], minlength=canvas.size)
    scale = LINE_STEP_PX * math.sqrt(2 * math.pi) * max(sigma_px, 0.4)
    drawn = ndimage.gaussian_filter(canvas.reshape(shape).astype(np.float32), max(sigma_px, 0.4), truncate=3)
    return np.asarray(drawn * np.float32(scale), np.float32)


def sample_positions(
    allowed: NDArray[np.bool_], weight: Field, count: int, *, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw (row, col) positions among the allowed pixels, with a chance in proportion to weight, shape (count, 2)."""
    chosen = np.flatnonzero(allowed)
    total = np.cumsum(weight.ravel()[chosen], dtype=np.float64)
    picked = chosen[np.searchsorted(total, rng.uniform(0, total[-1], count)).clip(max=len(chosen) - 1)]
    return np.stack(np.unravel_index(picked, allowed.shape), axis=1).astype(np.float64)
