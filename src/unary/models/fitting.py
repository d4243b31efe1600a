"""Learning what normal tissue looks like: from normal images to a model that is ready for use.

import unary
model = unary.fit(unary.read_manifest("normals.csv"))
model.save("model")
print(unary.score(model, "image.dcm").image_score)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unary.datasets.splits import split_by_patient
from unary.detectors import check_detector, find_detector_class, name_of
from unary.detectors.laplacian import COARSE_LAPLACIAN, Laplacian, LaplacianConfig
from unary.detectors.protocol import Detector, Grid
from unary.errors import CalibrationError, ImageError, TrainingError
from unary.models.bundle import Model, Provenance, describe_versions, hash_patients
from unary.models.calibrating import Images, examine_rows, set_operating_points, take_normals
from unary.models.domain import describe_image, join_domains
from unary.models.examination import map_prepared
from unary.models.findings import FindingsConfig
from unary.patches.collection import Collection, collect_patches, read_row
from unary.patches.grid import GridConfig
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import PreparationConfig, prepare_image
from unary.profiles import DEFAULT, Profile, find_profile
from unary.profiles.profile import TissueRule
from unary.records import Domain, Image, Manifest, ManifestRow
from unary.training.context import FitContext

logger = logging.getLogger(__name__)

REGIONS_PER_IMAGE = 4
STORED_PATCH_PX = 128  # as in Wei et al. 2018
_LEVEL_IMAGES = 24
_BLOCK_PX = 36
_FEWEST_PATIENTS_TO_HOLD_OUT = 5


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
    window
        The values that become 0 and 1, in the image's own unit, such as Hounsfield units.
    working_spacing_mm
        Pixel spacing to which images are resampled.
    """

    held_out: float = 0.3
    seed: int = 0
    size_px: int | None = None
    stride_px: int | None = None
    min_tissue: float | None = None
    mask: TissueRule | None = None
    intensity: Literal["percentile", "full_scale", "window"] | None = None
    window: tuple[float, float] | None = None
    working_spacing_mm: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        for name in ("size_px", "stride_px"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.min_tissue is not None and not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue must lie in [0, 1], got {self.min_tissue}")
        self.prepare("none", None)  # which checks the rest

    def prepare(self, mask: TissueRule, working_spacing_mm: float | None) -> PreparationConfig:
        """Return how images are prepared, given what holds where nothing was said.

        Raises
        ------
        ValueError
            If a setting is out of range or contradicts another.
        """
        return PreparationConfig(
            mask=self.mask or mask,
            intensity=self.intensity or ("percentile" if self.window is None else "window"),
            window=self.window,
            working_spacing_mm=working_spacing_mm if self.working_spacing_mm is None else self.working_spacing_mm,
        )


def fit(
    images: Images,
    config: FitConfig = FitConfig(),
    *,
    detector: str | Detector | type[Any] | None = None,
    profile: str | Profile = DEFAULT,
    checkpoint: Path | None = None,
    store: Path | None = None,
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
    progress
        Show progress bars.

    Raises
    ------
    TrainingError
        If there is an image that is not labelled negative, there are too few patches, or training fails.
    DetectorError, ProfileError
        If there is no such detector or profile.
    ManifestError
        If no image could be used.
    """
    kind = find_profile(profile)
    chosen = find_detector(detector, kind)
    manifest = take_normals(images)
    wrong = [row.image_id for row in manifest.rows if row.label != "negative"]
    if wrong:
        raise TrainingError(
            f"unary learns from negative images alone, but {len(wrong)} of {len(manifest.rows)} images of the manifest "
            f"are positive or unlabelled (first: {wrong[0]}); keep the negatives with `unary manifest --only negative` "
            "or divide the manifest with `unary split`"
        )
    preparation, grid = choose_grid(manifest, config, detector_grid=chosen.grid, profile=kind)
    collection = collect_patches(manifest, preparation, grid, kind.reading, store=store, progress=progress)
    held = hold_out(collection, config)
    normal = collection.patches.subset(np.flatnonzero(~collection.touches & ~held))
    if len(normal) < 2:
        raise TrainingError(
            f"only {len(normal)} normal patches were found in {len(collection.rows)} images; are the images smaller "
            f"than {grid.size_px} px, or is no tissue found? (size_px, min_tissue and mask of the configuration)"
        )
    context = FitContext(config.seed, checkpoint, progress)
    baseline = fit_baseline(normal, chosen.grid, context)
    fitted = chosen.fit(normal, context)
    trained, judging = _divide_rows(collection, held)
    level, domain = measure_images(fitted, trained, preparation, grid, kind, progress=progress)
    model = Model(
        name=name_of(fitted),
        detector=fitted,
        profile=kind,
        preparation=preparation,
        grid=grid,
        level=level,
        findings=FindingsConfig(kind.lengths.merge_mm, kind.lengths.merge_px),
        calibration=None,
        domain=domain,
        baseline=baseline,
        provenance=_describe_provenance(collection, held, config.seed),
    )
    return _calibrate_held_out(model, judging, progress)


def _divide_rows(collection: Collection, held: NDArray[np.bool_]) -> tuple[list[ManifestRow], list[ManifestRow]]:
    """Images without lesions: those that are learned from, or all where there are none; and those held out."""
    free = set(range(len(collection.rows))) - set(collection.image[collection.touches].tolist())
    judging = set(collection.image[held].tolist())
    trained, kept = ([collection.rows[n] for n in sorted(which)] for which in (free - judging, free & judging))
    return trained or list(collection.rows), kept


def _describe_provenance(collection: Collection, held: NDArray[np.bool_], seed: int) -> Provenance:
    used = np.unique(collection.image[~collection.touches])
    return Provenance(
        patient_hashes=hash_patients(collection.rows[number].patient_id for number in used),
        data_hash=collection.data_hash,
        images=len(used),
        patches=int((~collection.touches & ~held).sum()),
        held_out_patches=int((~collection.touches & held).sum()),
        skipped=len(collection.skipped),
        seed=seed,
        versions=describe_versions(),
    )


def find_detector(detector: str | Detector | type[Any] | None, profile: Profile) -> Detector:
    """Return the detector that is meant: by name, as an object, as a class, or the profile's.

    Raises
    ------
    DetectorError
        If there is none of that name, or it lacks what a detector must have.
    """
    if detector is None:
        detector = profile.detector
    found = find_detector_class(detector) if isinstance(detector, str) else detector
    check_detector(found)
    meant: Detector = found() if isinstance(found, type) else found
    return meant


def choose_grid(
    manifest: Manifest, config: FitConfig, *, detector_grid: Grid, profile: Profile
) -> tuple[PreparationConfig, GridConfig]:
    """Return how images are prepared and where patches lie: what the configuration says, else what suits the detector.

    A detector of the stored grid sees patches of 128 stored pixels a side. One of the working grid sees the profile's
    working spacing and patches; where the images do not state their pixel spacing, stored pixels, and a warning says
    so.

    Raises
    ------
    TrainingError
        If the configuration asks for a working spacing and the first readable image does not state its own.
    """
    lengths = profile.lengths
    spacing = config.working_spacing_mm
    default = lengths.working_spacing_mm if detector_grid == "working" else None
    size_px = STORED_PATCH_PX
    if detector_grid == "working":
        size_px = lengths.patch_px if spacing is None else max(round(lengths.patch_mm / spacing), 1)
    size_px = config.size_px or size_px
    if (spacing or default) is not None and not _states_spacing(manifest):
        if spacing is not None:
            raise TrainingError(
                f"working_spacing_mm is {spacing:g}, but the images do not state their pixel spacing: state it (column "
                "spacing_mm of a manifest, spacing_mm of Image.from_array), or leave working_spacing_mm out"
            )
        default = None
        logger.warning(
            "the images do not state their pixel spacing: patches are %d stored pixels a side, whatever that is in mm",
            size_px,
        )
    min_tissue = 0.5 if config.min_tissue is None else config.min_tissue
    return config.prepare(profile.mask, default), GridConfig(size_px, config.stride_px or size_px, min_tissue)


def _states_spacing(manifest: Manifest) -> bool:
    """Whether the first readable image does; if none can be read, whoever reads them all says why."""
    for row in manifest.rows:
        try:
            return read_row(row).spacing_mm is not None
        except ImageError:
            continue
    return True


def hold_out(collection: Collection, config: FitConfig) -> NDArray[np.bool_]:
    """Return which patches belong to held-out patients, shape (n,), bool; none where there are too few patients.

    A patient with a benign lesion can be learned from, but cannot say what normal images do.
    """
    patients = collection.column("patient_id")
    held = np.zeros(len(collection), bool)
    candidates = ~np.isin(patients, np.unique(patients[collection.touches]))
    if config.held_out > 0 and len(np.unique(patients[candidates])) >= _FEWEST_PATIENTS_TO_HOLD_OUT:
        rng = np.random.default_rng(config.seed)
        held[candidates] = split_by_patient(patients[candidates], config.held_out, rng)
    return held


def fit_baseline(normal: PatchSet, detector_grid: Grid, context: FitContext) -> Laplacian:
    """Return the detector without learning that stands beside every other, fitted on the same patches.

    Raises
    ------
    TrainingError
        If there are too few patches, or they show nothing.
    """
    return Laplacian(COARSE_LAPLACIAN if detector_grid == "working" else LaplacianConfig()).fit(normal, context)


def measure_images(
    detector: Detector,
    rows: list[ManifestRow],
    preparation: PreparationConfig,
    grid: GridConfig,
    profile: Profile,
    *,
    progress: bool = True,
) -> tuple[float, Domain]:
    """Return the level at which findings are drawn, and the domain, from training images.

    At most 24 images, evenly spread over the rows, have a say.

    Raises
    ------
    CalibrationError
        If none of them can be used.
    """
    places = np.unique(np.linspace(0, len(rows) - 1, min(_LEVEL_IMAGES, len(rows))).round().astype(int))
    domains: list[Domain] = []

    def examine(_row: ManifestRow, image: Image) -> NDArray[np.float32]:
        prepared = prepare_image(image, preparation)
        domains.append(describe_image(image))
        return map_prepared(detector, prepared, grid, profile.lengths)[2]

    chosen = [rows[place] for place in places]
    level = find_level(examine_rows(chosen, examine, title="findings", progress=progress))
    return level, join_domains(domains)


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


def _calibrate_held_out(model: Model, rows: list[ManifestRow], progress: bool) -> Model:
    """Set operating points where somebody was held out; a fitted model is worth keeping without them."""
    try:
        return set_operating_points(model, rows, progress=progress)
    except CalibrationError:
        logger.warning(
            "no operating points: %s; see `unary calibrate`",
            "no normal patients were held out (fewer than five of them, or held_out is 0)"
            if not rows
            else "images of fewer than two held-out patients could be used",
        )
        return model
