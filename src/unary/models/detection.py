"""From an image to findings, and from normal images to what findings mean.

One procedure serves detection, calibration and evaluation: prepare, map, draw findings at the model's level, score.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.models.domain import compare_domain
from unary.detectors.protocol import BlendingDetector, Detector, ImageDetector
from unary.training.threads import map_in_threads
from unary.errors import CalibrationError, ImageError
from unary.images.reading import read_image
from unary.models.bundle import DetectionSettings, Model
from unary.models.calibration import MOST_FINDINGS, Calibration, NormalScores, calibrate
from unary.models.findings import Candidates, FindingsConfig, describe_findings, find_candidates
from unary.patches.grid import GridConfig, Origins, extract_patches, pad_to_patch, tissue_origins
from unary.patches.stitching import OverlapWeights, add_tapered, split_grid
from unary.patches.preparation import PreparedImage, prepare_image
from unary.records import Detection, Domain, Image, OperatingPoint

logger = logging.getLogger(__name__)

DEFAULT_POINT = "1"
REGIONS_PER_IMAGE = 4
RIM_MM = 1.1
RIM_PX = 8
_BATCH = 64
_GRID_ROWS = 4  # of windows that a thread adds up at a time
_BAND_PX = 256
_BLOCK_PX = 36
_MARGIN_PX = 16


@dataclass(frozen=True, eq=False)
class Examined:
    """An image, its map and what stands out in it, before an operating point says what counts.

    Attributes
    ----------
    prepared
        The image as the detector saw it.
    anomaly_map
        Shape (rows, cols) of the working grid, float32, NaN outside the tissue.
    candidates
        On the working grid.
    out_of_domain
        As in `unary.records.Detection`.
    """

    prepared: PreparedImage
    anomaly_map: NDArray[np.float32]
    candidates: Candidates
    out_of_domain: tuple[str, ...]

    @property
    def scored_px(self) -> int:
        """How many working pixels were scored."""
        return int(np.isfinite(self.anomaly_map).sum())


def map_prepared(
    detector: Detector | ImageDetector, prepared: PreparedImage, *, size_px: int, stride_px: int
) -> NDArray[np.float32]:
    """Return the anomaly map of a prepared image, shape (rows, cols) of the working grid, NaN where nothing is scored.

    That is outside the tissue, and in its outermost 1.1 mm (8 pixels where the spacing is unknown): folds of the skin,
    the rim of the collimated field and the edge of the film are the brightest lines of many normal mammograms.

    A detector of whole images sees the breast once. A detector of patches sees overlapping windows, ``stride_px``
    apart, wherever there is any tissue; their maps are blended with `unary.patches.stitching.taper_window`, so that no pixel is
    lost to a window's border, nor at the borders and corners of the image.
    """
    if not prepared.mask.any():
        return np.full(prepared.shape, np.nan, np.float32)
    window = _find_window(prepared.mask)
    pixels, mask = prepared.pixels[window], prepared.mask[window]
    if isinstance(detector, ImageDetector):
        padded = pad_to_patch(pixels, size_px)
        nowhere = np.zeros((0, 2), np.int32)
        found = detector.examine_image(padded, nowhere, size_px=size_px).anomaly_map[: mask.shape[0], : mask.shape[1]]
    else:
        origins = tissue_origins(mask, GridConfig(size_px, stride_px, 0.0))
        found = _blend_windows(detector, pad_to_patch(pixels, size_px), origins, size_px)[: len(mask), : mask.shape[1]]
    np.copyto(found, np.nan, where=~_find_inner(mask, _working_spacing(prepared)))
    if found.shape == prepared.shape:
        return found
    anomaly_map = np.full(prepared.shape, np.nan, np.float32)
    anomaly_map[window] = found
    return anomaly_map


def _blend_windows(
    detector: Detector, pixels: NDArray[np.uint16], origins: Origins, size_px: int
) -> NDArray[np.float32]:
    """The maps of overlapping windows as one; the same to the last bit for any number of threads."""
    found = np.zeros(pixels.shape, np.float32)
    add_up = functools.partial(_add_up, detector, pixels, size_px)
    for first, sums in map_in_threads(add_up, split_grid(origins, _GRID_ROWS)):
        found[first : first + len(sums)] += sums

    weights = OverlapWeights([(size_px, origins)], int(pixels.shape[1]))

    def divide(start: int) -> None:
        weights.divide(found[start : start + _BAND_PX], start)

    for _ in map_in_threads(divide, range(0, len(found), _BAND_PX)):
        pass
    return found


def _add_up(
    detector: Detector, pixels: NDArray[np.uint16], size_px: int, origins: Origins
) -> tuple[int, NDArray[np.float32]]:
    """The first row of some patches, and from there to their last one their weighted maps added up."""
    first, last = int(origins[0, 0]), int(origins[-1, 0]) + size_px
    strip, inside = pixels[first:last], origins - np.array([first, 0], np.int32)
    sums = np.zeros(strip.shape, np.float32)
    if isinstance(detector, BlendingDetector):
        detector.add_maps(strip, inside, sums, size_px=size_px)
    else:
        for start in range(0, len(inside), _BATCH):
            batch = inside[start : start + _BATCH]
            add_tapered(sums, detector.examine(extract_patches(strip, batch, size_px=size_px)).maps, batch)
    return first, sums


def _find_inner(mask: NDArray[np.bool_], spacing_mm: float | None) -> NDArray[np.bool_]:
    """The tissue without its rim; all of it where nothing else would be left. The image's border is no rim."""
    reach = RIM_PX if spacing_mm is None else max(round(RIM_MM / spacing_mm), 1)
    grown = np.pad(mask, ((reach, reach), (0, 0)), mode="edge")
    bands = []
    for start in range(0, len(mask), _BAND_PX):  # few enough rows to stay near the processor
        kept = _erode_down(grown[start : start + _BAND_PX + 2 * reach], reach)
        bands.append(_erode_down(np.pad(kept, ((0, 0), (reach, reach)), mode="edge").T, reach).T)
    inner = np.concatenate(bands)
    return inner if inner.any() else mask


def _erode_down(grown: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """The rows that have ``reach`` rows above and below: what is set there together with all between. Few passes do."""
    kept, seen = grown, 1
    while seen <= 2 * reach:
        step = min(seen, 2 * reach + 1 - seen)
        kept = kept[:-step] & kept[step:]
        seen += step
    return kept


def _find_window(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The box of the tissue with a small margin."""
    bounds = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis=axis))
        bounds.append(
            slice(max(int(places[0]) - _MARGIN_PX, 0), min(int(places[-1]) + 1 + _MARGIN_PX, mask.shape[1 - axis]))
        )
    return bounds[0], bounds[1]


def examine_image(model: Model, image: Image) -> Examined:
    """Prepare and map an image, and draw what stands out at the model's level.

    Raises
    ------
    ImageError
        If the image cannot be prepared as the model demands.
    CalibrationError
        If the model was fitted by a version that knew no findings.
    """
    settings = require_settings(model)
    out_of_domain = compare_domain(image, settings.domain)  # first, while memory is free for a copy of the pixels
    prepared = prepare_image(image, model.preparation)
    anomaly_map = map_prepared(model.detector, prepared, size_px=model.grid.size_px, stride_px=settings.stride_px)
    candidates = find_candidates(anomaly_map, settings.level, settings.findings, spacing_mm=_working_spacing(prepared))
    return Examined(prepared, anomaly_map, candidates, out_of_domain)


def _working_spacing(prepared: PreparedImage) -> float | None:
    """Distance between working pixels in mm, the mean of both directions."""
    if prepared.stored_spacing_mm is None:
        return None
    return float(np.mean([a * b for a, b in zip(prepared.scale, prepared.stored_spacing_mm, strict=True)]))


def require_settings(model: Model) -> DetectionSettings:
    """Return a model's detection settings.

    Raises
    ------
    CalibrationError
        If it has none.
    """
    if model.detection is None:
        raise CalibrationError("the model was fitted by a version of unary that knew no findings; fit it again")
    return model.detection


def choose_point(model: Model, name: str | None) -> OperatingPoint | None:
    """Return the operating point of that name, by default one false finding per normal image; None if uncalibrated.

    Raises
    ------
    CalibrationError
        If a point is asked for by name and the model has none of that name, or no calibration.
    """
    calibration = require_settings(model).calibration
    if calibration is not None:
        return calibration.find_operating_point(name or DEFAULT_POINT)
    if name is not None:
        raise CalibrationError(
            f"the model has no operating point {name!r}: it is not calibrated; see `unary calibrate`"
        )
    return None


def build_detection(
    examined: Examined,
    settings: DetectionSettings,
    point: OperatingPoint | None,
    *,
    most: int = MOST_FINDINGS,
) -> Detection:
    """Return the findings above an operating point, the strongest ``most`` of them at the most.

    Without a point, the strongest, whatever they score.
    """
    scores = examined.candidates.scores
    count = min(len(scores) if point is None else int((scores > point.threshold).sum()), most)
    calibration = settings.calibration
    p_values = [None if calibration is None else calibration.find_p_value(float(score)) for score in scores[:count]]
    findings, labels = describe_findings(examined.candidates, examined.prepared, p_values, count=count)
    highest = examined.candidates.image_score
    p_value = None if calibration is None or highest is None else calibration.find_p_value(highest)
    return Detection(findings, labels, highest, p_value, point, examined.out_of_domain)


def detect_image(model: Model, image: Image, *, operating_point: str | None = None) -> Detection:
    """Find what departs from normal tissue in one image.

    Parameters
    ----------
    operating_point
        False findings per normal image, by name: ``"0.1"``, ``"0.5"``, ``"1"`` (default) or ``"2"``.

    Raises
    ------
    ImageError, CalibrationError
        As `examine_image` and `choose_point`.
    """
    point = choose_point(model, operating_point)
    return build_detection(examine_image(model, image), require_settings(model), point)


def detect(model: Model, path: Path | str, *, operating_point: str | None = None) -> Detection:
    """Find what departs from normal tissue in one image file that is trusted; see `detect_image`.

    Files that nobody vouches for are better left to `unary.clinic.batch_detection.detect_files`, which reads them in a process
    of its own.

    Raises
    ------
    ImageError
        If the file cannot be read or used.
    CalibrationError
        As `detect_image`.
    """
    return detect_image(model, read_image(Path(path)), operating_point=operating_point)


def find_level(maps: Iterable[NDArray[np.float32]]) -> float:
    """Return the level at which findings are drawn: about four regions of a training image lie above it.

    Counted without drawing any: the highest value of each block of 36 x 36 pixels stands for a region.

    Raises
    ------
    CalibrationError
        If no map holds a value.
    """
    blocks, images = [], 0
    for anomaly_map in maps:
        rows, cols = anomaly_map.shape
        padded = np.pad(
            np.where(np.isfinite(anomaly_map), anomaly_map, -np.inf),
            ((0, -rows % _BLOCK_PX), (0, -cols % _BLOCK_PX)),
            constant_values=-np.inf,
        )
        shape = (padded.shape[0] // _BLOCK_PX, _BLOCK_PX, padded.shape[1] // _BLOCK_PX, _BLOCK_PX)
        highest = padded.reshape(shape).max(axis=(1, 3))
        blocks.append(highest[np.isfinite(highest)])
        images += 1
    values = np.sort(np.concatenate(blocks))[::-1] if blocks else np.zeros(0)
    if len(values) == 0:
        raise CalibrationError("no training image has a scored pixel; is no tissue found?")
    return float(values[min(REGIONS_PER_IMAGE * images, len(values) - 1)])


def score_normal(examined: Examined, patient: str) -> NormalScores:
    """Return what a calibration needs to know of a normal image.

    Raises
    ------
    ImageError
        If nothing of it could be scored.
    """
    highest = examined.candidates.image_score
    if highest is None:
        raise ImageError("no pixel of the image could be scored")
    return NormalScores(patient, tuple(examined.candidates.scores[:MOST_FINDINGS].tolist()), highest)


def build_settings(
    level: float, *, size_px: int, domain: Domain, findings: FindingsConfig | None = None
) -> DetectionSettings:
    """Return the settings of a model that is not yet calibrated; windows overlap by half."""
    return DetectionSettings(level, findings or FindingsConfig(), max(size_px // 2, 1), None, domain)


def with_calibration(model: Model, normals: Sequence[NormalScores]) -> Model:
    """Return the model with operating points set on images of normal patients that it has not learned from.

    Raises
    ------
    CalibrationError
        As `unary.models.calibration.calibrate`.
    """
    calibration: Calibration = calibrate(normals)
    return dataclasses.replace(model, detection=dataclasses.replace(require_settings(model), calibration=calibration))
