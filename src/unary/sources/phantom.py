"""Seeded synthetic mammograms with known lesions, written as real DICOM.

A drawing with the statistics that matter to a detector, not a simulation of physics: tissue with a power-law spectrum,
thin bright strands that fool edge detectors, a skin line, noise that grows with the signal, and lesions whose place is
known exactly. What is and is not modelled is listed in ``docs/phantom.md``. Everything is drawn as a left breast with
the chest wall at column 0 and mirrored at the end for a right one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from scipy import fft, ndimage
from tqdm import tqdm

from unary.records import Lesion, Manifest, ManifestRow

Field = NDArray[np.float32]
LesionChoice = Literal["none", "calcifications", "mass"]
View = Literal["CC", "MLO"]
Laterality = Literal["L", "R"]

_FULL_SCALE = 4095
_REFERENCE_SIGNAL = 2000.0  # the value at which `PhantomConfig.noise_std` holds
_LARGEST_STRUCTURE_MM = 40.0  # below this frequency the spectrum is flat
_FONT = {  # 5 x 7 dots, one row per string
    "L": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
    "C": (".###.", "#...#", "#....", "#....", "#....", "#...#", ".###."),
    "M": ("#...#", "##.##", "#.#.#", "#.#.#", "#...#", "#...#", "#...#"),
    "O": (".###.", "#...#", "#...#", "#...#", "#...#", "#...#", ".###."),
}
_VIEW_CODES = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}
_ORIENTATION = {  # towards the right and the lower border of the image, DICOM PS3.3 C.7.6.1.1.1
    ("L", "CC"): ["A", "R"],
    ("R", "CC"): ["P", "L"],
    ("L", "MLO"): ["A", "FR"],
    ("R", "MLO"): ["P", "FL"],
}


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
    calcification_contrast: float = 9.0
    mass_contrast: float = 260.0

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
            if not 0 <= getattr(self, name) < _FULL_SCALE:
                raise ValueError(f"{name} must lie between 0 and {_FULL_SCALE}, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic mammogram.

    Attributes
    ----------
    pixels
        Shape (rows, cols), uint16, 0 to 4095, larger values brighter.
    mask
        Shape (rows, cols), bool: True inside the breast, skin and nipple included.
    lesions
        What was planted: each calcification (a point below 0.3 mm, else a circle) and the box around their cluster, or
        the contour of a mass. Named as INbreast does: ``"Calcification"``, ``"Cluster"``, ``"Mass"``.
    view, laterality
        As in `unary.records.Image`.
    spacing_mm
        Of the pixels.
    density
        ACR breast density, ``"1"`` to ``"4"``.
    """

    pixels: NDArray[np.uint16]
    mask: NDArray[np.bool_]
    lesions: tuple[Lesion, ...]
    view: View
    laterality: Laterality
    spacing_mm: float
    density: str


@dataclass(frozen=True)
class _Traits:
    """What the images of one patient share. Sizes are shares of the image; density runs from 0 to 1."""

    density: float
    height: float
    width: float
    fat_level: float


@dataclass(frozen=True, eq=False)
class _Anatomy:
    """Fields of one left breast, each (rows, cols) float32, and the nipple's (row, col)."""

    depth_mm: Field  # distance to the skin, negative outside
    gland: Field  # share of fibroglandular tissue, 0 to 1
    pectoral: Field  # share of pectoral muscle, 0 to 1
    nipple: tuple[float, float]


def build_phantom(
    config: PhantomConfig,
    *,
    rng: np.random.Generator,
    lesions: LesionChoice = "none",
    view: View = "CC",
    laterality: Laterality = "L",
    image_id: str = "phantom",
) -> Phantom:
    """Draw one breast, of a patient of its own.

    Parameters
    ----------
    rng
        Advanced by this call. The same state gives the same breast, noise included, whatever ``lesions`` says, so that
        an image with and without its lesions can be compared.
    lesions
        ``"calcifications"``: one cluster of 5 to 20. ``"mass"``: one mass.
    image_id
        Written into the lesions.
    """
    return _build(config, _draw_traits(rng), rng=rng, lesions=lesions, view=view, laterality=laterality, name=image_id)


def _draw_traits(rng: np.random.Generator) -> _Traits:
    return _Traits(
        density=float(rng.beta(1.3, 1.7)),
        height=float(rng.uniform(0.34, 0.42)),
        width=float(rng.uniform(0.6, 0.8)),
        fat_level=float(rng.uniform(1250, 1500)),
    )


def _build(
    config: PhantomConfig,
    traits: _Traits,
    *,
    rng: np.random.Generator,
    lesions: LesionChoice,
    view: View,
    laterality: Laterality,
    name: str,
) -> Phantom:
    for value, allowed in ((lesions, ("none", "calcifications", "mass")), (view, _VIEW_CODES), (laterality, "LR")):
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
    anatomy = _draw_anatomy(config, traits, rng=rng, view=view)
    signal = _draw_tissue(config, traits, anatomy, rng=rng)
    noise = ndimage.gaussian_filter(rng.standard_normal(signal.shape, np.float32), 0.5, truncate=4)
    noise *= config.noise_std / float(noise.std())
    with_marker = bool(rng.random() < 0.6)
    found: tuple[Lesion, ...] = ()
    if lesions == "calcifications":
        found = _add_calcifications(signal, anatomy, config, rng=rng, image_id=name)
    elif lesions == "mass":
        found = _add_mass(signal, anatomy, config, rng=rng, image_id=name)
    signal = ndimage.gaussian_filter(signal, 0.5, truncate=4)  # the detector's own blur
    signal += noise * np.sqrt(np.maximum(signal, 60) / _REFERENCE_SIGNAL)
    mask = anatomy.depth_mm > 0
    if laterality == "R":
        signal, mask, found = signal[:, ::-1], mask[:, ::-1], tuple(_mirror(item, config.cols) for item in found)
    if with_marker:
        signal = _stamp_marker(signal, mask, text=laterality + view, dot_px=max(1, round(0.9 / config.spacing_mm)))
    pixels = np.clip(np.rint(signal), 0, _FULL_SCALE).astype(np.uint16)
    density = str(1 + min(int(4 * traits.density), 3))
    return Phantom(pixels, np.ascontiguousarray(mask), found, view, laterality, config.spacing_mm, density)


def _mirror(lesion: Lesion, cols: int) -> Lesion:
    points = tuple((row, cols - 1 - col) for row, col in lesion.points)
    if lesion.kind == "box":  # keep the corners in order; a box is half-open
        (r0, c0), (r1, c1) = lesion.points
        points = ((r0, cols - c1), (r1, cols - c0))
    return replace(lesion, points=points)


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


def _draw_anatomy(config: PhantomConfig, traits: _Traits, *, rng: np.random.Generator, view: View) -> _Anatomy:
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
    if view == "MLO":
        rise = _smoothstep(row, 0, middle)
        inside |= (row < middle) & (col < width * (rng.uniform(0.42, 0.52) + 0.4 * rise))
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    depth = ndimage.gaussian_filter(depth.astype(np.float32) * unit, 0.02 * high / unit)
    cut = (slice(margin, -margin), slice(margin, -margin))
    depth, row, col = depth[cut], row[cut], col[cut]
    tip_row = float(np.clip(round(middle / unit), 0, shape[0] - 1))
    tip_col = float(np.count_nonzero(depth[int(tip_row)] > 0))
    radius = min(4.0, 0.06 * wide)
    nipple_depth = radius - np.hypot((row - tip_row * unit) / 1.1, col - tip_col * unit - 0.1 * radius)
    depth = np.maximum(depth, nipple_depth.astype(np.float32))

    blotches = _power_law(shape, exponent=3.4, spacing_mm=unit, rng=rng)
    reach = np.hypot((row - tip_row * unit) / (0.75 * half), (col - 0.52 * tip_col * unit) / (0.5 * width))
    gland = (1.5 - 1.35 * reach + 0.45 * blotches + 1.3 * (traits.density - 0.5)).astype(np.float32)
    gland = _smoothstep(gland, 0, 1.1) * _smoothstep(depth, 0.03 * wide, 0.12 * wide)
    pectoral = np.zeros(shape, np.float32)
    if view == "MLO":
        foot, top = high * rng.uniform(0.5, 0.68), wide * rng.uniform(0.28, 0.4)
        edge = top * np.clip(1 - row / foot, 0, None) ** float(rng.uniform(0.8, 1.05))
        pectoral = _smoothstep(edge - col + 0.4 * blotches, -0.012 * wide, 0.012 * wide)
    full = (config.rows, config.cols)
    return _Anatomy(
        _enlarge(depth, full, step),
        _enlarge(gland * (1 - pectoral), full, step),
        _enlarge(pectoral, full, step),
        (tip_row * step, tip_col * step),
    )


def _draw_tissue(config: PhantomConfig, traits: _Traits, anatomy: _Anatomy, *, rng: np.random.Generator) -> Field:
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


def _draw_strands(config: PhantomConfig, anatomy: _Anatomy, *, rng: np.random.Generator) -> Field:
    """Draw ligaments and ducts: wandering bright lines, mostly towards the nipple, many thin, few thick."""
    area_cm2 = np.count_nonzero(anatomy.depth_mm > 0) * config.spacing_mm**2 / 100
    result = np.zeros(anatomy.depth_mm.shape, np.float32)
    for per_cm2, length_mm, width_mm, height in ((2.2, 14.0, 0.22, 170.0), (0.7, 26.0, 0.4, 190.0)):
        count = max(4, round(per_cm2 * area_cm2))
        starts = _sample_positions(anatomy.depth_mm > 1.5, 0.25 + anatomy.gland, count, rng=rng)
        towards = np.arctan2(anatomy.nipple[0] - starts[:, 0], anatomy.nipple[1] - starts[:, 1])
        steps = round(length_mm / config.spacing_mm / 0.7)
        heading = (towards + rng.normal(0, 0.7, count))[:, None] + _wander(count, steps, rng=rng)
        path = starts[:, :, None] + 0.7 * np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=2)
        reach = np.sort(rng.uniform(0, 1, (count, 2)), axis=1)[:, :, None] * steps
        where = np.arange(steps)
        taper = np.clip((where - reach[:, 0]) * (reach[:, 1] - where), 0, None)
        taper = np.sqrt(taper / np.maximum(taper.max(axis=1, keepdims=True), 1e-6))
        weight = taper * rng.gamma(1.5, height / 1.5, count)[:, None]
        result += _draw_lines(result.shape, path, weight, sigma_px=width_mm / config.spacing_mm)
    return result


def _wander(count: int, steps: int, *, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth random changes of heading in radians, shape (count, steps)."""
    phase = rng.uniform(0, 2 * np.pi, (count, 3, 1))
    size = rng.normal(0, 1, (count, 3, 1)) * np.array([0.45, 0.25, 0.12])[None, :, None]
    turns = np.array([0.6, 1.7, 4.1])[None, :, None] * np.linspace(0, 2 * np.pi, steps)
    wander: NDArray[np.float64] = (size * np.sin(turns + phase)).sum(axis=1)
    return wander


def _draw_lines(
    shape: tuple[int, ...], path: NDArray[np.float64], weight: NDArray[np.float64], *, sigma_px: float
) -> Field:
    """Draw lines of Gaussian profile; ``path`` (n, 2, steps) is points 0.7 pixels apart, ``weight`` their heights."""
    low = np.floor(path).astype(int)
    part = path - low
    canvas = np.zeros(shape[0] * shape[1])
    for dr in (0, 1):
        for dc in (0, 1):
            row, col = low[:, 0] + dr, low[:, 1] + dc
            share = np.abs(1 - dr - part[:, 0]) * np.abs(1 - dc - part[:, 1]) * weight
            on = (row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])
            canvas += np.bincount(row[on] * shape[1] + col[on], share[on], minlength=canvas.size)
    scale = 0.7 * math.sqrt(2 * math.pi) * max(sigma_px, 0.4)
    drawn = ndimage.gaussian_filter(canvas.reshape(shape).astype(np.float32), max(sigma_px, 0.4), truncate=3)
    return np.asarray(drawn * np.float32(scale), np.float32)


def _sample_positions(
    allowed: NDArray[np.bool_], weight: Field, count: int, *, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw (row, col) positions among the allowed pixels, with a chance in proportion to weight, shape (count, 2)."""
    chosen = np.flatnonzero(allowed)
    total = np.cumsum(weight.ravel()[chosen], dtype=np.float64)
    picked = chosen[np.searchsorted(total, rng.uniform(0, total[-1], count)).clip(max=len(chosen) - 1)]
    return np.stack(np.unravel_index(picked, allowed.shape), axis=1).astype(np.float64)


def _lesion_centre(anatomy: _Anatomy, radius_mm: float, *, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a place, more often in glandular tissue, that lies deeper than the lesion's radius and off the border."""
    depth = anatomy.depth_mm
    room = min(radius_mm + 4.0, 0.6 * float(depth.max()))
    border = max(1, round(0.06 * min(depth.shape)))
    allowed = np.zeros(depth.shape, bool)
    allowed[border:-border, border:-border] = depth[border:-border, border:-border] > room
    weight = (0.15 + anatomy.gland) * (1.01 - anatomy.pectoral)
    return _sample_positions(allowed, weight, 1, rng=rng).reshape(2)


def _add_calcifications(
    signal: Field, anatomy: _Anatomy, config: PhantomConfig, *, rng: np.random.Generator, image_id: str
) -> tuple[Lesion, ...]:
    """Add one cluster to a signal that the caller owns, and return its lesions."""
    largest = 0.3 * min(config.rows, config.cols) * config.spacing_mm
    radius_mm = min(float(rng.uniform(2.5, 7.5)), largest / 2)
    centre = _lesion_centre(anatomy, radius_mm, rng=rng)
    specks = []
    for _ in range(int(rng.integers(5, 21))):
        turn, out = rng.uniform(0, 2 * np.pi), radius_mm / config.spacing_mm * math.sqrt(rng.random())
        place = centre + out * np.array([math.sin(turn), 0.8 * math.cos(turn)])
        row, col = (int(v) for v in np.rint(place))
        if not (2 < row < config.rows - 3 and 2 < col < config.cols - 3 and anatomy.depth_mm[row, col] > 1.5):
            continue
        diameter_mm = float(np.clip(rng.lognormal(math.log(0.32), 0.45), 0.15, 0.8))
        local_noise = config.noise_std * math.sqrt(max(float(signal[row, col]), 1.0) / _REFERENCE_SIGNAL)
        peak = config.calcification_contrast * local_noise * (diameter_mm / 0.4) * float(rng.lognormal(0, 0.3))
        _add_speck(signal, place, radius_px=diameter_mm / config.spacing_mm / 2, peak=peak, rng=rng)
        point = (float(place[0]), float(place[1]))
        if diameter_mm < 0.3:
            specks.append(Lesion(image_id, "Calcification", "point", (point,)))
        else:
            radius_px = diameter_mm / config.spacing_mm / 2
            specks.append(Lesion(image_id, "Calcification", "circle", (point,), radius_px=radius_px))
    places = np.array([lesion.points[0] for lesion in specks])
    low, high = np.floor(places.min(axis=0)) - 1, np.ceil(places.max(axis=0)) + 2
    low, high = np.maximum(low, 0), np.minimum(high, signal.shape)
    corners = ((float(low[0]), float(low[1])), (float(high[0]), float(high[1])))
    return (*specks, Lesion(image_id, "Cluster", "box", corners))


def _add_speck(
    signal: Field, place: NDArray[np.float64], *, radius_px: float, peak: float, rng: np.random.Generator
) -> None:
    """Add the union of three random ellipses, drawn eight times finer so that small ones keep their sum."""
    reach = math.ceil(radius_px) + 1
    corner = np.rint(place).astype(int) - reach
    fine = (np.arange((2 * reach + 1) * 8) + 0.5) / 8 - 0.5
    row, col = (fine[:, None] + corner[0] - place[0]), (fine[None, :] + corner[1] - place[1])
    shape = np.zeros((fine.size, fine.size), bool)
    for _ in range(3):
        shift, turn = rng.uniform(-0.4, 0.4, 2) * radius_px, rng.uniform(0, np.pi)
        along = (row - shift[0]) * math.cos(turn) + (col - shift[1]) * math.sin(turn)
        across = (col - shift[1]) * math.cos(turn) - (row - shift[0]) * math.sin(turn)
        axes = radius_px * rng.uniform(0.5, 1.0, 2)
        shape |= (along / axes[0]) ** 2 + (across / axes[1]) ** 2 < 1
    share = shape.reshape(2 * reach + 1, 8, 2 * reach + 1, 8).mean(axis=(1, 3))
    top, left = max(corner[0], 0), max(corner[1], 0)
    share = share[top - corner[0] : signal.shape[0] - corner[0], left - corner[1] : signal.shape[1] - corner[1]]
    signal[top : top + share.shape[0], left : left + share.shape[1]] += (peak * share).astype(np.float32)


def _add_mass(
    signal: Field, anatomy: _Anatomy, config: PhantomConfig, *, rng: np.random.Generator, image_id: str
) -> tuple[Lesion, ...]:
    """Add a lobulated or spiculated mass to a signal that the caller owns, and return its contour."""
    largest = 0.3 * min(config.rows, config.cols) * config.spacing_mm
    radius_mm = min(float(rng.uniform(3.0, 7.5)), largest / 2)
    centre = _lesion_centre(anatomy, 1.3 * radius_mm, rng=rng)
    radius_px = radius_mm / config.spacing_mm
    orders, phases = np.arange(2, 6), rng.uniform(0, 2 * np.pi, 4)
    sizes = rng.normal(0, 0.16, 4) / (orders - 1)

    def outline(angle: NDArray[Any]) -> NDArray[np.float64]:
        waves = np.cos(np.multiply.outer(angle, orders) + phases) @ sizes
        return np.asarray(radius_px * np.clip(1 + waves, 0.6, 1.4))

    row, col = np.ogrid[: signal.shape[0], : signal.shape[1]]
    down, right = row - centre[0], col - centre[1]
    near = np.hypot(down, right) < 2 * radius_px
    rows, cols = np.nonzero(near)
    ratio = np.hypot(rows - centre[0], cols - centre[1]) / outline(np.arctan2(rows - centre[0], cols - centre[1]))
    signal[rows, cols] += (config.mass_contrast / (1 + np.exp((ratio - 0.95) / 0.1))).astype(np.float32)
    if rng.random() < 0.5:
        count, steps = int(rng.integers(12, 24)), round(radius_px * 1.6 / 0.7)
        heading = rng.uniform(0, 2 * np.pi, count)[:, None] + 0.5 * _wander(count, steps, rng=rng)
        path = 0.7 * np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=2) + centre[None, :, None]
        fade = np.linspace(1, 0, steps) * rng.uniform(0.3, 1, (count, 1)) * 0.6 * config.mass_contrast
        signal += _draw_lines(signal.shape, path, fade, sigma_px=0.25 / config.spacing_mm)
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    reach = outline(angles)
    vertices = np.stack([centre[0] + reach * np.sin(angles), centre[1] + reach * np.cos(angles)], axis=1)
    contour = tuple((float(r), float(c)) for r, c in vertices)
    return (Lesion(image_id, "Mass", "contour", contour),)


def _stamp_marker(signal: Field, mask: NDArray[np.bool_], *, text: str, dot_px: int) -> Field:
    """Return the image with lead letters in the upper corner away from the chest wall, unless the breast is there."""
    rows = [".".join(_FONT[letter][k] for letter in text) for k in range(7)]
    letters = np.array([[dot == "#" for dot in row] for row in rows]).repeat(dot_px, axis=0).repeat(dot_px, axis=1)
    top, gap = 4 * dot_px, 4 * dot_px
    left = signal.shape[1] - gap - letters.shape[1] if text[0] == "L" else gap
    box = (slice(top, top + letters.shape[0]), slice(left, left + letters.shape[1]))
    if left < 0 or mask[box].shape != letters.shape or mask[box].any():
        return signal
    stamped = signal.copy()
    stamped[box] += 3600 * ndimage.gaussian_filter(letters.astype(np.float32), 0.5)
    return stamped


def write_phantom(phantom: Phantom, path: Path, *, image_id: str, patient_id: str, seed: int = 0) -> None:
    """Write a Digital Mammography X-Ray Image - For Presentation (DICOM PS3.3 A.27), uncompressed.

    The same arguments give the same bytes: the identifiers come from ``seed``, ``patient_id`` and ``image_id``, the
    dates are fixed. All images of a patient are one study.

    Parameters
    ----------
    path
        Its folder must exist; a file there is replaced.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["unary image", str(seed), patient_id, image_id])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["unary study", str(seed), patient_id])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["unary series", str(seed), patient_id, image_id])
    dataset.PatientName, dataset.PatientID = f"Phantom^{patient_id}", patient_id
    dataset.PatientBirthDate, dataset.PatientSex = "", "F"
    _describe_acquisition(dataset, phantom)
    _attach_pixels(dataset, phantom)
    dataset.save_as(path, enforce_file_format=True)


def _describe_acquisition(dataset: Dataset, phantom: Phantom) -> None:
    """Fill in study, series, equipment, view and breast."""
    for name in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{name}Date", "20200101")
        setattr(dataset, f"{name}Time", "120000")
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "", "1", ""
    dataset.SeriesNumber = dataset.InstanceNumber = dataset.AcquisitionNumber = 1
    dataset.Modality, dataset.PresentationIntentType = "MG", "FOR PRESENTATION"
    dataset.Manufacturer, dataset.ManufacturerModelName = "unary", "synthetic phantom"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "0", "1"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.ImageComments = "Synthetic phantom, not a patient"
    dataset.BodyPartExamined, dataset.OrganExposed = "BREAST", "BREAST"
    dataset.ImageLaterality, dataset.ViewPosition = phantom.laterality, phantom.view
    dataset.PatientOrientation = _ORIENTATION[phantom.laterality, phantom.view]
    dataset.PositionerType, dataset.PositionerPrimaryAngle = "MAMMOGRAPHIC", 0 if phantom.view == "CC" else 45
    dataset.BreastImplantPresent, dataset.PartialView = "NO", "NO"
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.DetectorType = "DIRECT"
    view = _code(*_VIEW_CODES[phantom.view])
    view.ViewModifierCodeSequence = Sequence()
    dataset.ViewCodeSequence = Sequence([view])
    dataset.AnatomicRegionSequence = Sequence([_code("76752008", "Breast")])
    dataset.AcquisitionContextSequence = Sequence()


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _attach_pixels(dataset: Dataset, phantom: Phantom) -> None:
    """Fill in the pixels, their spacing and how to display them."""
    dataset.Rows, dataset.Columns = phantom.pixels.shape
    dataset.ImagerPixelSpacing = [phantom.spacing_mm, phantom.spacing_mm]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1  # bright: few X-rays left
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.WindowCenter, dataset.WindowWidth = 1700, 2800
    dataset.PixelData = np.ascontiguousarray(phantom.pixels, "<u2").tobytes()


def write_phantom_dataset(
    folder: Path,
    *,
    patients_normal: int,
    patients_abnormal: int,
    config: PhantomConfig,
    seed: int,
    images_per_patient: int = 2,
) -> Manifest:
    """Write patients as ``normal/P001_L_CC.dcm``, ``abnormal/...`` under ``folder`` and return their manifest.

    The images of a patient share density and size and run through both views of one breast, then of the other. Every
    image of an abnormal patient (BI-RADS 5) holds a lesion: calcifications, or a mass in every fourth such patient.
    The same arguments give the same bytes.

    Parameters
    ----------
    images_per_patient
        1 to 4.

    Raises
    ------
    ValueError
        If a count is out of range.
    """
    if min(patients_normal, patients_abnormal) < 0 or patients_normal + patients_abnormal < 1:
        raise ValueError(f"need at least one patient, got {patients_normal} normal and {patients_abnormal} abnormal")
    if not 1 <= images_per_patient <= 4:
        raise ValueError(f"images_per_patient must lie between 1 and 4, got {images_per_patient}")
    rows: list[ManifestRow] = []
    lesions: list[Lesion] = []
    streams = np.random.SeedSequence(seed).spawn(patients_normal + patients_abnormal)
    for number, stream in enumerate(tqdm(streams, desc="drawing phantoms", unit="patient", delay=2)):
        rng = np.random.default_rng(stream)
        traits, sides = _draw_traits(rng), "LR" if rng.random() < 0.5 else "RL"
        normal = number < patients_normal
        kind: LesionChoice = "none" if normal else "mass" if (number - patients_normal) % 4 == 2 else "calcifications"
        patient_id = f"P{number + 1:03d}"
        target = folder.resolve() / ("normal" if normal else "abnormal")
        target.mkdir(parents=True, exist_ok=True)
        for index in range(images_per_patient):
            view: View = "CC" if index % 2 == 0 else "MLO"
            side: Laterality = "L" if sides[index // 2] == "L" else "R"
            name = f"{patient_id}_{side}_{view}"
            phantom = _build(config, traits, rng=rng, lesions=kind, view=view, laterality=side, name=name)
            path = target / f"{name}.dcm"
            write_phantom(phantom, path, image_id=name, patient_id=patient_id, seed=seed)
            lesions.extend(phantom.lesions)
            rows.append(
                ManifestRow(
                    path,
                    name,
                    patient_id,
                    label="negative" if normal else "positive",
                    laterality=side,
                    view=view,
                    birads="1" if normal else "5",
                    density=phantom.density,
                    spacing_mm=config.spacing_mm,
                )
            )
    return Manifest(tuple(rows), tuple(lesions))
