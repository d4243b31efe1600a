"""Learning what normal tissue looks like: from normal images to a model that is ready for use.

import unary
model = unary.fit(unary.read_manifest("normals.csv"))
model.save("model")
print(unary.score(model, "image.dcm").image_score)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import block_reduce

from unary.datasets.annotation import name_some
from unary.datasets.splits import split_by_patient
from unary.detectors import check_detector, find_detector_class, name_of
from unary.detectors.laplacian import COARSE_LAPLACIAN, Laplacian, LaplacianConfig
from unary.detectors.protocol import Detector, Grid
from unary.errors import CalibrationError, TrainingError
from unary.images.attributes import Attributes
from unary.models.bundle import Model, Provenance, can_be_found, describe_versions
from unary.models.calibrating import Images, calibrate_rows, examine_rows, take_normals
from unary.models.card import Background, count_images
from unary.models.domain import describe_image, join_domains
from unary.models.examination import map_prepared
from unary.models.findings import FindingsConfig
from unary.models.gate import Gate
from unary.models.patients import make_key, note_patients
from unary.models.requirements import (
    FEWEST_PATIENTS_TO_HOLD_OUT,
    check_detector_here,
    check_images,
    check_patches,
    check_units,
    judge_headers,
    warn_of_few_patients,
    warn_of_sizes,
)
from unary.models.tracked import track_model, track_settings
from unary.patches.collection import Collection, collect_patches, read_row
from unary.patches.grid import GridConfig
from unary.patches.preparation import IntensityRule, PreparationConfig, prepare_image
from unary.profiles import DEFAULT, Profile, find_profile
from unary.profiles.profile import TissueRule
from unary.records import Domain, Image, Manifest, ManifestRow, count_words
from unary.training.context import FitContext
from unary.training.tracking import Tracker

logger = logging.getLogger(__name__)

REGIONS_PER_IMAGE = 4
STORED_PATCH_PX = 128  # as in Wei et al. 2018
_LEVEL_IMAGES = 24
_BLOCK_PX = 36


@dataclass(frozen=True)
class FitConfig:
    """What `fit` can be told beside the detector; None is the profile's and the detector's default.

    Attributes
    ----------
    held_out
        Share, in [0, 1), of the patients without any annotated lesion whose images set the operating points and nothing
        else. With 0, or fewer than five such patients, there are no operating points until the model is calibrated.
    seed
        Of the draw of the held-out patients, and of the training.
    size_px, stride_px
        Side of a patch, and step between neighbours (by default the side), in working pixels.
    min_tissue
        The least share of a patch, in [0, 1], that must be tissue; by default 0.5.
    mask
        How tissue is found: ``"bright_region"`` or ``"none"``.
    intensity
        ``"percentile"``, ``"full_scale"`` or ``"window"``; by default the first, or the last where a window is given.
        Images in Hounsfield units or SUV need one to be said.
    window
        The values that become 0 and 1, in the image's own unit, such as Hounsfield units.
    working_spacing_mm
        Pixel spacing to which images are resampled.
    working_size_px
        Length of the longer side to which images are resampled, whatever their size and pixel spacing; the aspect is
        kept. Not together with a working spacing.
    """

    held_out: float = 0.3
    seed: int = 0
    size_px: int | None = None
    stride_px: int | None = None
    min_tissue: float | None = None
    mask: TissueRule | None = None
    intensity: IntensityRule | None = None
    window: tuple[float, float] | None = None
    working_spacing_mm: float | None = None
    working_size_px: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        self.prepare("none", None, None)  # which, with the grid, checks the rest
        self.lay_grid(STORED_PATCH_PX)

    def prepare(
        self, mask: TissueRule, working_spacing_mm: float | None, working_size_px: int | None
    ) -> PreparationConfig:
        """Return how images are prepared, given what holds where nothing was said; a size said leaves no spacing."""
        if self.working_spacing_mm is not None:
            working_size_px = None
        elif self.working_size_px is not None:
            working_spacing_mm = None
        return PreparationConfig(
            mask=self.mask or mask,
            intensity=self.intensity or ("percentile" if self.window is None else "window"),
            window=self.window,
            working_spacing_mm=working_spacing_mm if self.working_spacing_mm is None else self.working_spacing_mm,
            working_size_px=working_size_px if self.working_size_px is None else self.working_size_px,
        )

    def lay_grid(self, size_px: int) -> GridConfig:
        """Return where patches lie, given their side where nothing was said."""
        size_px = size_px if self.size_px is None else self.size_px
        stride_px = size_px if self.stride_px is None else self.stride_px
        return GridConfig(size_px, stride_px, 0.5 if self.min_tissue is None else self.min_tissue)


@dataclass(frozen=True)
class FitPlan:
    """What `fit` would learn from, and how.

    Attributes
    ----------
    detector, profile, preparation, grid
        As in the model; the detector is not fitted.
    manifest
        The normal images.
    headers
        What the header of each says; None where it could not be read, or where there is no file.
    """

    detector: Detector
    profile: Profile
    manifest: Manifest
    preparation: PreparationConfig
    grid: GridConfig
    headers: Sequence[Attributes | None] = field(repr=False)

    @property
    def patients(self) -> int:
        """How many patients the images are of."""
        return len({row.patient_id for row in self.manifest.rows})


def plan_fit(
    images: Images,
    config: FitConfig = FitConfig(),
    *,
    detector: str | Detector | type[Any] | None = None,
    profile: str | Profile = DEFAULT,
    store: Path | None = None,
    progress: bool = True,
) -> FitPlan:
    """Return what `fit` would learn from and how, by the headers of the images; arguments and errors are the same.

    Pixels are not read: an image that cannot be read, or holds no tissue, is found by `fit` alone.
    """
    kind = find_profile(profile)
    chosen = find_detector(kind.detector if detector is None else detector)
    check_detector_here(chosen)
    if not can_be_found(chosen):
        logger.warning("%s is not at the top level of a module: its model can be used, but not saved", name_of(chosen))
    manifest = take_normals(images, TrainingError, "unary learns from")
    warn_of_few_patients(len({row.patient_id for row in manifest.rows}), config.held_out)
    own_px = getattr(chosen, "working_size_px", None)
    preparation, grid = choose_grid(manifest, config, detector_grid=chosen.grid, profile=kind, detector_size_px=own_px)
    headers = judge_headers(manifest.rows, Gate(kind), progress=progress)
    check_units(manifest.rows, headers, config.intensity or ("window" if config.window else None))
    warn_of_sizes(manifest.rows, headers, preparation)
    fewest = getattr(chosen, "fewest_patches", 2)
    check_images(manifest.rows, headers, preparation, grid, fewest=fewest, store=store)
    return FitPlan(chosen, kind, manifest, preparation, grid, headers)


def fit(
    images: Images,
    config: FitConfig = FitConfig(),
    *,
    detector: str | Detector | type[Any] | None = None,
    profile: str | Profile = DEFAULT,
    checkpoint: Path | None = None,
    store: Path | None = None,
    tracker: Tracker | None = None,
    progress: bool = True,
) -> Model:
    """Learn what normal tissue looks like.

    Parameters
    ----------
    images
        A manifest of negative images alone, of which patches that touch an annotated (benign) lesion are left out; or
        a sequence of normal images, arrays or paths, each of a patient of its own.
    config
        Patches, preparation, seed.
    detector
        A name of `unary.detectors.DETECTORS`, ``module:Class``, or a detector that is not fitted, with the
        configuration that it is to have; by default the profile's.
    profile
        What kind of images they are.
    checkpoint
        The beginning of the names of files that keep the state of training; an interrupted call goes on from them.
    store
        A folder for the prepared images, which then need not fit in memory (see `collect_patches`).
    tracker
        Told settings, losses and figures as they come (`unary.open_tracker`).

    Raises
    ------
    TrainingError
        If there is an image that is not labelled negative, there are too few patches, or training fails.
    DetectorError, ProfileError
        If there is no such detector or profile.
    ManifestError
        If no image could be used.
    """
    plan = plan_fit(images, config, detector=detector, profile=profile, store=store, progress=progress)
    chosen, kind, manifest, preparation, grid = plan.detector, plan.profile, plan.manifest, plan.preparation, plan.grid
    key = make_key()
    if tracker is not None:
        track_settings(tracker, chosen, kind, fit=config, preparation=preparation, grid=grid)
    collection = collect_patches(manifest, preparation, grid, kind.reading, store=store, progress=progress)
    held = hold_out(collection, config)
    usable = ~collection.touches
    _name_unused(collection, usable)
    normal = collection.patches.subset(np.flatnonzero(usable & ~held))
    count = int((usable & held).sum())
    check_patches(chosen, normal, held_out=count, images=len(collection.rows), size_px=grid.size_px)
    context = FitContext(config.seed, checkpoint, progress, tracker=tracker)
    baseline = Laplacian(COARSE_LAPLACIAN if chosen.grid == "working" else LaplacianConfig()).fit(normal, context)
    fitted = chosen.fit(normal, context)
    used, lesional, judging = (set(collection.image[which].tolist()) for which in (usable, ~usable, held))
    rows = collection.rows
    trained = [row for number, row in enumerate(rows) if number not in lesional | judging] or list(rows)
    provenance = Provenance(
        seen=note_patients([rows[number].patient_id for number in used], key),
        data_hash=collection.data_hash,
        images=len(used),
        patches=len(normal),
        held_out_patches=count,
        skipped=len(collection.skipped),
        seed=config.seed,
        versions=describe_versions(),
    )
    findings = FindingsConfig(kind.lengths.merge_mm, kind.lengths.merge_px)
    name, level = name_of(fitted), math.nan  # until it is measured
    background = Background(count_images(*_pair_sources(rows, manifest.rows, plan.headers)))
    model = Model(name, fitted, kind, preparation, grid, level, findings, None, Domain(), baseline, provenance)
    model = replace(model, background=background)
    model = measure_images(model, trained, progress=progress)
    model = _calibrate(model, [rows[number] for number in sorted(judging - lesional)], config, progress=progress)
    if tracker is not None:
        track_model(tracker, model)
    return model


def _calibrate(model: Model, judged: Sequence[ManifestRow], config: FitConfig, *, progress: bool) -> Model:
    """The model with the operating points of held-out images; without them a fitted model is still worth keeping."""
    try:
        return replace(model, calibration=calibrate_rows(model, judged, known=True, progress=progress))
    except CalibrationError:
        logger.warning(
            "no operating points: images of %s were held out and could be used, and two normal patients at least are "
            "needed (held_out is %g, and takes five patients or more); see `unary calibrate`",
            count_words(len({row.patient_id for row in judged}), "patient"),
            config.held_out,
        )
        return model


def _pair_sources(
    used: Sequence[ManifestRow], rows: Sequence[ManifestRow], headers: Sequence[Attributes | None]
) -> tuple[Sequence[ManifestRow], list[Attributes | Image | None]]:
    """The rows that were used, and what is known of the image of each."""
    known = {row.image_id: row.image or header for row, header in zip(rows, headers, strict=True)}
    return used, [known[row.image_id] for row in used]


def find_detector(detector: str | Detector | type[Any]) -> Detector:
    """Return the detector that is meant by a name, a class or an object; raises as `find_detector_class`."""
    found = find_detector_class(detector) if isinstance(detector, str) else detector
    check_detector(found)
    meant: Detector = found() if isinstance(found, type) else found
    return meant


def choose_grid(
    manifest: Manifest,
    config: FitConfig,
    *,
    detector_grid: Grid,
    profile: Profile,
    detector_size_px: int | None = None,
) -> tuple[PreparationConfig, GridConfig]:
    """Return how images are prepared and where patches lie: what the configuration says, else what suits the detector.

    A detector of the stored grid sees patches of 128 stored pixels a side. One of the working grid sees the profile's
    working spacing or size, and its patches; where a spacing is needed and the images do not state theirs, stored
    pixels, and a warning says so. ``detector_size_px`` is the working size where the profile has neither.

    Raises
    ------
    TrainingError
        If the configuration asks for a working spacing and the first readable image does not state its own.
    """
    lengths, asked_mm = profile.lengths, config.working_spacing_mm
    default_mm, default_px, size_px = None, None, STORED_PATCH_PX
    if detector_grid == "working":
        default_mm = None if config.working_size_px else lengths.working_spacing_mm
        default_px = lengths.working_size_px
        if (lengths.working_spacing_mm, lengths.working_size_px) == (None, None):
            default_px = detector_size_px
        size_px = lengths.patch_px if asked_mm is None else max(round(lengths.patch_mm / asked_mm), 1)
    grid = config.lay_grid(size_px)
    if (asked_mm or default_mm) and not _states_spacing(manifest):
        if asked_mm:
            raise TrainingError(
                f"working_spacing_mm is {asked_mm:g}, but the images do not state their pixel spacing: state it "
                "(column spacing_mm of a manifest, spacing_mm of Image.from_array), or leave working_spacing_mm out"
            )
        default_mm = None
        logger.warning(
            "the images do not state their pixel spacing: patches are %d stored pixels a side, whatever that is "
            "in mm; where it is known, give the manifest the column spacing_mm (unary manifest --spacing-mm)",
            grid.size_px,
        )
    preparation = config.prepare(profile.mask, default_mm, default_px)
    return replace(preparation, spacing_range_mm=profile.spacing_range_mm, metal=profile.metal), grid


def _states_spacing(manifest: Manifest) -> bool:
    """Whether the first readable image does; if none can be read, whoever reads them all says why."""
    for row in manifest.rows:
        try:
            return read_row(row).spacing_mm is not None
        except Exception:  # of a library, on this file
            continue
    return True


def _name_unused(collection: Collection, usable: NDArray[np.bool_]) -> None:
    """Say which images were read and teach nothing."""
    unused = set(range(len(collection.rows))) - set(collection.image[usable].tolist())
    if unused:
        logger.warning(
            "%s without a patch to learn from: too little tissue, a lesion in every patch, smaller than a patch "
            "(--size-px, --working-size-px), or not completely annotated, so that nothing there is known to be "
            "normal: %s",
            count_words(len(unused), "image"),
            name_some(collection.rows[number].image_id for number in sorted(unused)),
        )


def hold_out(collection: Collection, config: FitConfig) -> NDArray[np.bool_]:
    """Return which patches belong to held-out patients, shape (n,), bool; none where there are too few patients.

    A patient with a benign lesion can be learned from, but cannot say what normal images do.
    """
    patients = collection.column("patient_id")
    held = np.zeros(len(collection), bool)
    candidates = ~np.isin(patients, np.unique(patients[collection.touches]))
    if config.held_out > 0 and len(np.unique(patients[candidates])) >= FEWEST_PATIENTS_TO_HOLD_OUT:
        rng = np.random.default_rng(config.seed)
        held[candidates] = split_by_patient(patients[candidates], config.held_out, rng)
    return held


def measure_images(model: Model, rows: list[ManifestRow], *, progress: bool = True) -> Model:
    """Return the model with the level at which findings are drawn, and the domain, of at most 24 training images.

    They are evenly spread over the rows; raises as `find_peaks`.
    """
    places = np.unique(np.linspace(0, len(rows) - 1, min(_LEVEL_IMAGES, len(rows))).round().astype(int))
    domains: list[Domain] = []

    def examine(_row: ManifestRow, image: Image) -> NDArray[np.float32]:
        prepared = prepare_image(image, model.preparation)
        domains.append(describe_image(image))
        return map_prepared(model.detector, prepared, model.grid, model.profile.lengths)[1].require_map()

    chosen = [rows[place] for place in places]
    peaks = find_peaks(examine_rows(chosen, examine, title="findings", progress=progress))
    return replace(model, level=peaks[-1], peaks=peaks, domain=join_domains(domains))


def find_peaks(maps: Iterable[NDArray[np.float32]]) -> tuple[float, ...]:
    """Return the highest values of some maps, falling, the last of which is the level at which findings are drawn.

    About four regions of a training image lie above it. Counted without drawing any: the highest value of each block of
    36 x 36 pixels stands for a region.

    Raises
    ------
    CalibrationError
        If no map holds a value.
    """
    highest = [
        block_reduce(np.where(np.isfinite(values), values, -np.inf), _BLOCK_PX, np.max, cval=-np.inf).ravel()
        for values in maps
    ]
    blocks = np.sort(np.concatenate([np.zeros(0), *highest]))[::-1]
    blocks = blocks[np.isfinite(blocks)]
    if len(blocks) == 0:
        raise CalibrationError("no training image has a scored pixel; is no tissue found?")
    return tuple(blocks[: REGIONS_PER_IMAGE * len(highest) + 1].tolist())
