"""The one way from an image to patch scores, a map and findings: whoever applies a model goes through here.

Prepare, lay the grid, cut the box of the tissue and its patches, let the detector examine it, lay the map back, take
the rim away, draw what stands out at the model's level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unary.detectors import name_of
from unary.detectors.protocol import Detector, Examination, View
from unary.errors import CalibrationError, DetectorError, ImageError, Reason
from unary.images.reading import check_pixels, read_image
from unary.models.calibration import MOST_FINDINGS
from unary.models.domain import compare_domain
from unary.models.findings import Candidates, describe_findings, find_candidates
from unary.models.gate import admit_image, build_gate, require_admission, require_room
from unary.models.vascular import find_vascular
from unary.patches.grid import GridConfig, Origins, tissue_origins
from unary.patches.patch_set import cut_window, find_window
from unary.patches.preparation import PreparedImage, enlarge, erode_mask, prepare_image
from unary.profiles import Lengths
from unary.records import Detection, Image, OperatingPoint, take_spacing

if TYPE_CHECKING:
    from unary.models.bundle import Model  # which asks its model about a picture

AnyImage = Image | NDArray[Any] | Path | str
Spacing = float | tuple[float, float] | None
DEFAULT_POINT = "1"
_CORNER = 3  # rims


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """What a model says of one image, before an operating point says what counts.

    Attributes
    ----------
    prepared
        The image as the detector saw it.
    origins
        Shape (n, 2), int32: (row, col) of the first pixel of each patch on the working grid.
    scores
        Shape (n,), float64, of the patches; higher is more abnormal.
    anomaly_map
        Shape (rows, cols) of the working grid, float32, in the detector's unit; NaN where nothing was scored: outside
        the tissue and in its rim.
    candidates
        What stands out at the model's level, on the working grid.
    out_of_domain
        How the image differs from those that the model has learned from, one line each.
    """

    prepared: PreparedImage
    origins: Origins
    scores: NDArray[np.float64]
    anomaly_map: NDArray[np.float32]
    candidates: Candidates
    out_of_domain: tuple[str, ...] = ()

    @property
    def image_score(self) -> float | None:
        """The score of the most abnormal place, the strongest finding's; None where nothing was scored."""
        return self.candidates.image_score

    @property
    def scored_px(self) -> int:
        """How many working pixels were scored."""
        return int(np.isfinite(self.anomaly_map).sum())

    @property
    def stored_map(self) -> NDArray[np.float32]:
        """The map on the grid of the stored image, shape (rows, cols), float32."""
        return enlarge(self.anomaly_map, self.prepared)

    def _repr_html_(self) -> str:
        """Return what a notebook shows (`unary.outputs.notebook`)."""
        from unary.outputs.notebook import show_scored

        return show_scored(self)._repr_html_()

    def to_arrow(self) -> Any:
        """Return the patches as a `pyarrow.Table`: ``row``, ``col`` (working pixels) and ``score``.

        The scores are the memory of `scores` (`unary.outputs.tables.PATCHES`).
        """
        from unary.outputs.tables import tabulate_patches

        return tabulate_patches(self)

    def to_frame(self) -> Any:
        """Return the table of `to_arrow` as a `pandas.DataFrame`; its columns are read-only."""
        from unary.outputs.tables import convert_to_frame

        return convert_to_frame(self.to_arrow())

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Let any library that speaks Arrow's PyCapsule interface take the table of `to_arrow`."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        score = "nothing scored" if self.image_score is None else f"image score {self.image_score:.4g}"
        return f"ScoredImage({score}, {len(self.scores)} patches, {len(self.candidates.scores)} candidates)"


def score(model: Model, image: AnyImage, *, spacing_mm: Spacing = None, accept: Sequence[Reason] = ()) -> ScoredImage:
    """Score one image: its patches, its map, and the image as a whole.

    Parameters
    ----------
    image
        As `unary.read_image` returns it, an array of shape (rows, cols), or a path; larger values are brighter.
    spacing_mm
        Distance between pixel centres in mm, both directions or (between rows, between columns), where the image does
        not state it itself.
    accept
        Reasons for which a file would be refused by its header that do not count this time (`unary.models.gate`); the
        notes name them.

    Raises
    ------
    ImageError
        If the image cannot be read, is blank, or cannot be prepared as the model demands; a path also if the gate
        refuses the file, with its reason.
    UnaryError
        If a reason cannot be accepted.
    DetectorError
        If the detector cannot examine it.
    """
    return examine_image(model, _take_image(model, image, spacing_mm, accept))


def detect(
    model: Model,
    image: AnyImage,
    *,
    operating_point: str | float | None = None,
    spacing_mm: Spacing = None,
    accept: Sequence[Reason] = (),
) -> Detection:
    """Find what departs from normal tissue in one image that is trusted.

    Files that nobody vouches for are better left to `unary.clinic.batch_detection.detect_files`, which reads them in a
    process of its own. A model without a calibration shows the strongest few places, whatever they score.

    Parameters
    ----------
    image, spacing_mm, accept
        As for `score`.
    operating_point
        False findings per normal image: 0.1, 0.5, 1 (default) or 2, as a number or a name.

    Raises
    ------
    ImageError, DetectorError
        As `score`.
    CalibrationError
        If the model has no such operating point.
    """
    point = choose_point(model, operating_point)
    return build_detection(score(model, image, spacing_mm=spacing_mm, accept=accept), model, point)


def _take_image(model: Model, image: AnyImage, spacing_mm: Spacing, accept: Sequence[Reason]) -> Image:
    spacing = take_spacing(spacing_mm)
    if isinstance(image, (str, Path)):
        from unary.images.headers import read_attributes

        path = Path(image)
        gate = build_gate(model, spacing_mm=None if spacing is None else spacing[0], accept=accept)
        verdict = require_admission(read_attributes(path, gate.profile.headers), gate, str(path))
        taken = admit_image(read_image(path), verdict)
    elif isinstance(image, Image):
        taken = image
    elif hasattr(image, "__array__"):
        taken = Image.from_array(image)
    else:
        raise ImageError(
            f"an image, an array of shape (rows, cols) or a path is needed, got {type(image).__name__}; for several, "
            "one call each"
        )
    if taken.path is None:  # what is read from a file has been checked
        check_pixels(taken)
    if taken.spacing_mm is None and spacing is not None:
        taken = dataclasses.replace(taken, spacing_mm=spacing)
    return taken


def examine_image(model: Model, image: Image) -> ScoredImage:
    """Prepare and map an image, and draw what stands out at the model's level; raises as `score`."""
    out_of_domain = tuple(compare_domain(image, model.domain))  # first, while memory is free for a copy of the pixels
    prepared = prepare_image(image, model.preparation)
    require_room(prepared, model.grid, image.name)
    origins, examined = map_prepared(model.detector, prepared, model.grid, model.profile.lengths)
    if examined.silent:
        note = f"too small for {', '.join(examined.silent)}, which had no say: the others stand in, in the same unit"
        prepared = dataclasses.replace(prepared, notes=(*prepared.notes, note))
    anomaly_map = examined.require_map()
    candidates = find_candidates(anomaly_map, model.level, model.findings, spacing_mm=prepared.spacing_mm)
    return ScoredImage(prepared, origins, examined.scores, anomaly_map, candidates, out_of_domain)


def map_prepared(
    detector: Detector, prepared: PreparedImage, grid: GridConfig, lengths: Lengths
) -> tuple[Origins, Examination]:
    """Return the patches of a prepared image, and what is said of it; the map is that of its whole working grid.

    The map is NaN outside the tissue and in its rim (`leave_rim`), whose width ``lengths`` gives: folds of the skin,
    the border of the exposed field and the edge of a film are the brightest lines of many normal images. Where nothing
    but rim would be left, all of it is kept.

    Raises
    ------
    ImageError
        If the image is too small for the detector.
    DetectorError
        If the detector cannot examine the image, or answers with other shapes or infinite numbers.
    """
    origins = tissue_origins(prepared.mask, grid)
    anomaly_map = np.full(prepared.shape, np.nan, np.float32)
    if not prepared.mask.any():
        return origins, Examination(np.empty(len(origins)), anomaly_map)
    window = find_window(prepared.mask, origins, size_px=grid.size_px)
    view = View(cut_window(prepared.pixels, window), cut_window(prepared.mask, window))
    least_px = getattr(detector, "least_side_px", 0)
    if min(view.shape) < least_px:
        shape = f"{view.shape[0]} x {view.shape[1]}"
        raise ImageError(
            f"{name_of(detector)} can say nothing of an image of {shape} working pixels; it needs {least_px} at least",
            reason="TOO_SMALL",
        )
    corner = np.array([window[0].start, window[1].start], np.int32)
    examination = detector.examine(view, origins - corner, size_px=grid.size_px, with_map=True)
    scores, found, name = examination.scores, examination.anomaly_map, name_of(detector)
    if found is None or found.shape != view.shape or scores.shape != (len(origins),):
        raise DetectorError(
            f"{name} must answer with {len(origins)} scores and a map of the shape {view.shape}, and answers with "
            f"{scores.shape} and {None if found is None else found.shape}"
        )
    if not np.isfinite(scores).all() or np.isinf(found).any():
        raise DetectorError(f"{name} answers with scores that are not finite; has training diverged?")
    rim_px, spacing = lengths.rim_px, prepared.spacing_mm
    if spacing is not None:
        rim_px = max(round(lengths.rim_mm / spacing), 1) if lengths.rim_mm > 0 else 0
    mask, inner = prepared.mask[window], leave_rim(prepared.mask, rim_px)[window]
    place = anomaly_map[window]
    np.copyto(place, found[: place.shape[0], : place.shape[1]], where=inner if inner.any() else mask)
    return origins, Examination(scores, anomaly_map, examination.silent)


def leave_rim(mask: NDArray[np.bool_], rim_px: int) -> NDArray[np.bool_]:
    """Return a mask of tissue, (rows, cols), without its rim.

    The rim is as wide along the border of the picture as along the edge of the tissue, and three times as wide where
    one meets the other: in the corners at the chest wall folds of the skin, muscle and the edge of a film lie upon each
    other. Where a strip without tissue, no wider than two rims, runs along the border, the border is where it ends.
    """
    if rim_px == 0 or not mask.any():
        return mask
    box = tuple(_find_picture(np.asarray(mask.any(axis=1 - axis)), 2 * rim_px) for axis in (0, 1))
    wide, inside = _CORNER * rim_px, mask[box]
    middle = np.zeros_like(inside)
    middle[wide:-wide, wide:-wide] = True
    left: NDArray[np.bool_] = np.zeros_like(mask)
    left[box] = erode_mask(np.pad(inside, 1), rim_px)[1:-1, 1:-1] & (middle | erode_mask(inside, wide))
    return left


def _find_picture(has_tissue: NDArray[np.bool_], strip_px: int) -> slice:
    """Return the rows or columns without an empty strip, of a width or less, at either end."""
    first, last = np.flatnonzero(has_tissue)[[0, -1]].tolist()
    length = len(has_tissue)
    return slice(first if first <= strip_px else 0, last + 1 if length - 1 - last <= strip_px else length)


def choose_point(model: Model, name: str | float | None) -> OperatingPoint | None:
    """Return the operating point of that name, by default one false finding per normal image; None if uncalibrated.

    Raises
    ------
    CalibrationError
        If one is asked for by name that the model does not have, or that counts patches, not findings.
    """
    calibration = model.calibration
    if calibration is None and name is None:
        return None
    if calibration is None:
        raise CalibrationError(
            f"the model has no operating point '{name}': it is not calibrated; see `unary calibrate`"
        )
    point = calibration.find_operating_point(DEFAULT_POINT if name is None else name)
    if point.unit != "finding":
        raise CalibrationError(
            f"the operating point {point.name!r} counts patches, not findings; for findings there are "
            + ", ".join(other.name for other in calibration.operating_points if other.unit == "finding")
        )
    return point


def build_detection(
    scored: ScoredImage, model: Model, point: OperatingPoint | None, *, most: int = MOST_FINDINGS
) -> Detection:
    """Return the findings above an operating point, the strongest ``most`` of them at the most.

    Without a point, the strongest, whatever they score. Which findings there are does not depend on their kind;
    vascular patterns are told from the others, and ranked after them, where the profile has vessels.
    """
    scores, highest, calibration = scored.candidates.scores, scored.image_score, model.calibration
    count = min(len(scores) if point is None else int((scores > point.threshold).sum()), most)
    p_values = [None if calibration is None else calibration.find_p_value(float(score)) for score in scores[:count]]
    vascular = find_vascular(scored.candidates, scored.prepared, count=count) if model.profile.vessels else False
    findings, labels = describe_findings(scored.candidates, scored.prepared, p_values, count=count, vascular=vascular)
    p_value = None if calibration is None or highest is None else calibration.find_p_value(highest)
    return Detection(findings, labels, highest, p_value, point, scored.out_of_domain, scored.prepared.notes)
