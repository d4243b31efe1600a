"""The frozen values that pass between stages.

Coordinates are (row, col), zero-based, in pixels of the stored image; boxes are half-open ``(r0, c0, r1, c1)``.
Pixel centres lie at integer coordinates.  Unknown is `None`, never a sentinel number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unary.errors import ImageError, ManifestError

NOTICE = "Research software. Not for diagnosis."


def take_spacing(spacing_mm: float | tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the distances between rows and between columns, or raise an `ImageError`.

    >>> take_spacing(0.1), take_spacing((0.1, 0.2)), take_spacing(None)
    ((0.1, 0.1), (0.1, 0.2), None)
    """
    if spacing_mm is None:
        return None
    lengths = tuple(spacing_mm) if isinstance(spacing_mm, (tuple, list, np.ndarray)) else (spacing_mm, spacing_mm)
    real = len(lengths) == 2 and all(isinstance(length, Real) and not isinstance(length, bool) for length in lengths)
    if not (real and all(0 < length < np.inf for length in lengths)):
        raise ImageError(f"spacing_mm must be positive, one number of millimetres or two, got {spacing_mm!r}")
    return float(lengths[0]), float(lengths[1])


def count_words(count: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count_words(1, "finding"), count_words(2000, "finding"), count_words(0, "patch")
    ('1 finding', '2,000 findings', '0 patches')
    """
    ending = "" if count == 1 else "es" if noun.endswith(("ch", "s")) else "s"
    return f"{count:,} {noun}{ending}"


LesionKind = Literal["point", "contour", "circle", "box", "mask"]
LESION_KINDS: tuple[LesionKind, ...] = get_args(LesionKind)
_POINTS: dict[LesionKind, int] = {"point": 1, "contour": 3, "circle": 1, "box": 2, "mask": 0}

Label = Literal["negative", "positive"]


def _fill_padding(values: NDArray[Any], outside: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Floats with the lowest value where no measurement is and none is finite; an `ImageError` if others are not."""
    finite = np.isfinite(values)
    if finite.all():
        return values
    if outside is None or not (finite | outside).all() or not finite.any():
        raise ImageError(
            "the array: it holds values that are not finite (NaN or infinity); where no measurement is, say so by "
            "`padding=`, or give a masked array"
        )
    return np.where(finite, values, values[finite].min())


@dataclass(frozen=True, eq=False)
class Image:
    """One decoded two-dimensional image.

    Attributes
    ----------
    pixels
        Shape (rows, cols); integers of 8, 16 or 32 bits or float32 as stored, larger values brighter (denser tissue):
        MONOCHROME1 has been inverted. Never rescaled.
    value_range
        The lowest and highest value that the storage format can hold, for example ``(0, 4095)`` at 12 bits.
        For float images, the smallest and largest value present.
    path
        Where it came from; None for an array in memory.
    padding
        Shape (rows, cols), bool: True where the file declares padding rather than measurement. None when it declares
        none.
    spacing_mm
        Distance between pixel centres (between rows, between columns) in mm, or None when the file does not say.
    laterality
        ``"L"`` or ``"R"``.
    view
        The standard abbreviation, for example ``"CC"`` or ``"MLO"``.
    intent
        ``"FOR PRESENTATION"`` or ``"FOR PROCESSING"`` (DICOM PS3.3 C.8.7.1, Presentation Intent Type); None for
        rasters.
    manufacturer, model_name
        Of the equipment.
    instance_uid
        SOP Instance UID of a DICOM object.
    modality
        DICOM's word for the kind of device, such as ``"CT"``.
    units
        What the values of a CT or PET slice are, such as ``"HU"`` or ``"BQML"``; None for other images, and where it is
        not stated.
    notes
        What reading found unusual and has put right or let pass, one sentence each; shown with every result.
    """

    pixels: NDArray[Any]
    value_range: tuple[float, float]
    path: Path | None = None
    padding: NDArray[np.bool_] | None = None
    spacing_mm: tuple[float, float] | None = None
    laterality: str | None = None
    view: str | None = None
    intent: str | None = None
    manufacturer: str | None = None
    model_name: str | None = None
    instance_uid: str | None = field(default=None, repr=False)
    modality: str | None = None
    units: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.spacing_mm, Real):  # one number for both directions, as `from_array` takes
            object.__setattr__(self, "spacing_mm", take_spacing(self.spacing_mm))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    @property
    def name(self) -> str:
        """What messages call it."""
        return "the array" if self.path is None else str(self.path)

    @classmethod
    def from_array(
        cls,
        pixels: ArrayLike,
        *,
        spacing_mm: float | tuple[float, float] | None = None,
        padding: ArrayLike | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> Image:
        """Take an array as an image; larger values are brighter.

        Parameters
        ----------
        pixels
            Shape (rows, cols), integers or floats; 64-bit floats become float32, booleans are refused.
        spacing_mm
            Distance between pixel centres, one for both directions or (between rows, between columns).
        padding
            Shape (rows, cols), bool: True where no measurement is; as is what a masked array masks. Only there may
            floats be NaN or infinite.
        value_range
            Lowest and highest value that the pixels could have; by default those of the type, or, for floats, those
            present.

        Raises
        ------
        ImageError
            If the array is not two-dimensional, empty, of another type, not finite, or spacing or padding do not fit.
        """
        masked = np.ma.getmaskarray(pixels) if isinstance(pixels, np.ma.MaskedArray) else None
        values = np.asarray(pixels)
        if values.ndim != 2 or 0 in values.shape:
            raise ImageError(
                f"the array: a two-dimensional array with pixels is needed, its shape is {values.shape}; give the "
                "slices of a volume, or the images of a stack, one by one, and of several channels the one that matters"
            )
        if values.dtype.kind not in "iuf":
            raise ImageError(f"the array: integers or floats are needed, its type is {values.dtype}")
        outside = masked if padding is None else np.asarray(padding, bool)
        if outside is not None and outside.shape != values.shape:
            raise ImageError(f"the array: its padding has the shape {outside.shape}, its pixels {values.shape}")
        if outside is not None and masked is not None:
            outside = outside | masked
        if values.dtype.kind == "f":
            with np.errstate(over="ignore"):  # becomes infinity, which is refused
                values = values.astype(np.float32)
            values = _fill_padding(values, outside)
        if value_range is None and values.dtype.kind == "f":
            value_range = (float(values.min()), float(values.max()))
        elif value_range is None:
            value_range = (float(np.iinfo(values.dtype).min), float(np.iinfo(values.dtype).max))
        return cls(values, value_range, padding=outside, spacing_mm=take_spacing(spacing_mm))

    def _repr_html_(self) -> str:
        """Return what a notebook shows (`unary.outputs.notebook`)."""
        from unary.outputs.notebook import show_image

        return show_image(self)._repr_html_()

    def __repr__(self) -> str:
        rows, cols = self.shape
        return f"Image({rows} x {cols}, {self.pixels.dtype}, spacing_mm={self.spacing_mm})"


@dataclass(frozen=True)
class Lesion:
    """One annotated lesion of one image.

    Attributes
    ----------
    image_id
        Joins it to its `ManifestRow`.
    name
        As the data set calls it, for example ``"Calcification"``.
    kind
        ``point``: one point. ``contour``: three or more vertices of a closed polygon. ``circle``: its centre, with
        ``radius_px``. ``box``: two opposite corners, kept as (r0, c0) and (r1, c1), half-open. ``mask``: none, with
        ``mask_path``.
    points
        (row, col) pairs; sub-pixel values are kept.
    radius_px
        Of a circle.
    mask_path
        An image of the same rows and columns, non-zero inside the lesion.

    Raises
    ------
    ManifestError
        If it has not the points or the radius of its kind, or one that is not finite.
    """

    image_id: str
    name: str
    kind: LesionKind
    points: tuple[tuple[float, float], ...] = ()
    radius_px: float | None = None
    mask_path: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in LESION_KINDS:
            raise ManifestError(f"kind must be one of {', '.join(LESION_KINDS)}, not {self.kind!r}")
        needed = _POINTS[self.kind]
        if len(self.points) < needed or (len(self.points) > needed and self.kind != "contour"):
            more = " or more" if self.kind == "contour" else ""
            raise ManifestError(f"a {self.kind} needs {needed} point(s){more}, not {len(self.points)}")
        if not np.isfinite(np.asarray(self.points, float)).all():
            raise ManifestError(f"a {self.kind} with a point that is not finite")
        if self.kind == "circle" and not (self.radius_px is not None and 0 <= self.radius_px < np.inf):
            raise ManifestError(f"a circle needs a radius_px that is finite and not negative, not {self.radius_px}")
        if self.kind == "box":
            rows, cols = zip(*self.points, strict=True)
            object.__setattr__(self, "points", ((min(rows), min(cols)), (max(rows), max(cols))))


@dataclass(frozen=True)
class ManifestRow:
    """One image of a data set, before it is read.

    Attributes
    ----------
    path
        Absolute path of the image file; None where ``image`` is given.
    image_id
        Unique within a manifest.
    patient_id
        The unit of every split and interval. Equal to ``image_id`` only when nothing better is known.
    label
        Negative images show nothing suspicious, positive ones do; None when unknown.
    laterality, view
        As in `Image`.
    assessment
        The category of the reading, such as ``"4a"``, by the profile (`unary.profiles.Reading`); None when unknown.
    density
        ACR density of the tissue, ``"1"`` to ``"4"``; None when unknown.
    complete
        Whether every lesion of the image is annotated. Where False, what lies outside the listed lesions is unknown
        and is never taken as normal.
    spacing_mm
        Pixel spacing for files that cannot say it themselves; the file's own value wins.
    image
        An image in memory, in place of a file.
    """

    path: Path | None
    image_id: str
    patient_id: str = field(repr=False)
    label: Label | None = None
    laterality: str | None = None
    view: str | None = None
    assessment: str | None = None
    density: str | None = None
    complete: bool = True
    spacing_mm: float | None = None
    image: Image | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Manifest:
    """Images and their lesions: what every later stage starts from."""

    rows: tuple[ManifestRow, ...]
    lesions: tuple[Lesion, ...] = ()

    def lesions_of(self, image_id: str) -> tuple[Lesion, ...]:
        """Return the lesions of one image, in file order."""
        return tuple(lesion for lesion in self.lesions if lesion.image_id == image_id)

    def select(self, rows: tuple[ManifestRow, ...]) -> Manifest:
        """Return a manifest of just these rows and their lesions."""
        kept = {row.image_id for row in rows}
        return Manifest(rows, tuple(lesion for lesion in self.lesions if lesion.image_id in kept))


Unit = Literal["finding", "patch"]
FindingKind = Literal["unusual region", "vascular pattern"]


@dataclass(frozen=True)
class OperatingPoint:
    """A score above which something is reported, with what normal images do there.

    Attributes
    ----------
    name
        A short word, such as ``"1"`` for one false finding per normal image, or ``"patch_0.95"`` for the score that
        95 % of normal patches do not exceed.
    unit
        What is counted: findings or patches.
    rate
        What was asked for: the expected number of findings in a normal image, or the share of its patches.
    threshold
        Findings, or patches, score above it. Set on held-out normal images alone.
    measured_rate
        The same of those images at this threshold, the mean over patients.
    guaranteed
        Whether ``rate`` holds as a finite-sample guarantee (`unary.models.calibration`); where False there are too few
        normal patients for one, and ``measured_rate`` is an estimate.
    false_alarm_rate
        Bound on the chance that a normal image has any finding here, in (0, 1]; a finite-sample guarantee. None for
        patches.
    patients
        How many normal patients set it.
    """

    name: str
    unit: Unit
    rate: float
    threshold: float
    measured_rate: float
    guaranteed: bool
    false_alarm_rate: float | None
    patients: int


@dataclass(frozen=True)
class Finding:
    """One region, or cluster of regions, that departs from normal tissue.

    Coordinates are (row, col) of the stored image.

    Attributes
    ----------
    rank
        1 is the first of its image: unusual regions come first, vascular patterns after them, each by falling score.
    score
        The mean of the highest values of its strongest regions, in the detector's unit (`unary.models.findings`).
    p_value
        How often the most abnormal finding of a normal image scores as high, in (0, 1]; None for a model that has not
        been calibrated.
    box
        Half-open ``(r0, c0, r1, c1)``: the smallest that holds its pixels.
    outline
        Vertices (row, col) of the convex hull of its pixels' areas, a closed polygon in which the last vertex is not a
        repetition of the first; at least four. It may hold pixels between its regions that are not its own.
    peak
        Where the score was found.
    regions
        How many connected regions were merged into it.
    area_mm2, diameter_mm
        Area of its pixels, those of `Detection.labels`, and the longest distance between two vertices of the outline,
        with the spacing of rows and of columns; None where it is unknown.
    kind
        A vascular pattern is a chain of specks as in the walls of an artery (`unary.models.vascular`). Its score and
        p-value are those of any finding.
    """

    rank: int
    score: float
    p_value: float | None
    box: tuple[int, int, int, int]
    outline: tuple[tuple[float, float], ...]
    peak: tuple[int, int]
    regions: int
    area_mm2: float | None
    diameter_mm: float | None
    kind: FindingKind = "unusual region"


@dataclass(frozen=True, eq=False)
class Detection:
    """What was found in one image.

    Attributes
    ----------
    findings
        By rank; those above the threshold of ``operating_point``.
    labels
        Shape (rows, cols) of the stored image, uint8: a finding's rank on its pixels, 0 elsewhere.
    image_score, image_p_value
        The score of the most abnormal place, whether above the threshold or not, and its p-value; None when nothing
        could be scored, and when the model has not been calibrated.
    operating_point
        None for a model that has not been calibrated: then the findings are the strongest few, whatever they score.
    out_of_domain
        How the image differs from those that the model has learned from, one line each; empty when it does not. A
        different scanner looks abnormal without being so.
    notes
        What else was unusual about the image, from reading and preparation, one sentence each.
    """

    findings: tuple[Finding, ...]
    labels: NDArray[np.uint8]
    image_score: float | None
    image_p_value: float | None
    operating_point: OperatingPoint | None
    out_of_domain: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """Return what a notebook shows (`unary.outputs.notebook`)."""
        from unary.outputs.notebook import show_detection

        return show_detection(self)._repr_html_()

    def to_arrow(self, image: str | None = None) -> Any:
        """Return the findings as a `pyarrow.Table`, one row each; ``image`` is what the image is called in it.

        Columns and units are those of `unary.outputs.tables.FINDINGS`; `unary.tabulate_findings` joins several images.
        """
        from unary.outputs.tables import build_findings

        return build_findings([(image, self.findings)])

    def to_frame(self, image: str | None = None) -> Any:
        """Return the table of `to_arrow` as a `pandas.DataFrame`.

        Raises
        ------
        MissingPackageError
            If pandas is not installed.
        """
        from unary.outputs.tables import convert_to_frame

        return convert_to_frame(self.to_arrow(image))

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Let any library that speaks Arrow's PyCapsule interface take the table of `to_arrow`."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)


@dataclass(frozen=True)
class ModelIdentity:
    """Which model produced a result; stands in every output.

    Attributes
    ----------
    detector
        Its name, such as ``"fusion"``.
    version
        Of unary.
    sha256
        Of the model's ``model.json``, which in turn holds the hash of the weights.
    data_hash
        Fingerprint of the training patches.
    """

    detector: str
    version: str
    sha256: str
    data_hash: str


@dataclass(frozen=True)
class Domain:
    """What the images that a model has learned from have in common; None and empty stand for unknown.

    Of one image it says what that image is like.

    Attributes
    ----------
    intents
        Presentation Intent Types, as in `Image`.
    manufacturers, model_names
        Of the equipment.
    spacing_mm
        The smallest and the largest pixel spacing of the images as stored, either direction, in mm.
    bits
        How many bits a stored value has.
    brightness
        The lowest and the highest, over the images, of the 99th percentile of an image's stored pixels without padding.
        Another range means another kind of detector, processing or encoding; preparation may still even it out.
    modalities, units
        As in `Image`.
    """

    intents: tuple[str, ...] = ()
    manufacturers: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ()
    spacing_mm: tuple[float, float] | None = None
    bits: tuple[int, ...] = ()
    brightness: tuple[float, float] | None = None
    modalities: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
