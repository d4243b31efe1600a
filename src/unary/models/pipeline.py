"""The three things people do with unary, as plain functions: fit, score, evaluate.

The command line is a thin layer over these, and a notebook needs nothing else::

    import unary
    model = unary.fit(unary.read_manifest("normals.csv"))
    model.save("model")
    result = unary.score(model, "image.dcm")
    print(result.image_score)
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unary.datasets.splits import split_by_patient
from unary.detectors.dense_laplacian import COARSE_LAPLACIAN
from unary.detectors.fit_fusion import WITH_PRIOR, FusionConfig, NormalImage, fit_fusion
from unary.detectors.fusion import Fusion
from unary.detectors.laplacian import LaplacianConfig, fit_laplacian
from unary.detectors.protocol import Detector, ImageDetector
from unary.detectors.wei2018.native import build_reconstruction
from unary.errors import CalibrationError, ImageError, ManifestError, SplitError, TrainingError
from unary.evaluation.metrics import NORMAL_LOOKING, SPECIFICITIES, ScoreTable
from unary.images.reading import read_image
from unary.models.bundle import DETECTORS, DetectorName, Model, Provenance, describe_versions, hash_patients
from unary.models.commissioning import add_detection, set_operating_points
from unary.models.scoring import ImageScores, measure_controls, score_image, score_patch_set
from unary.patches.collection import GROUPS, Collection, collect_patches
from unary.patches.grid import GridConfig
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import PreparationConfig
from unary.records import Manifest
from unary.training.engine import Trained, TrainingConfig, train_autoencoder

logger = logging.getLogger(__name__)

FUSIONS: tuple[DetectorName, ...] = ("fusion", "fusion_prior")
DENSE_SPACING_MM = 0.14
DENSE_SIZE_PX = 64
_FEWEST_PATIENTS_TO_HOLD_OUT = 5


@dataclass(frozen=True)
class FitConfig:
    """Everything that `fit` can be told; each part documents itself.

    ``preparation`` and ``grid`` are the detector's own defaults where they are None: for the fusions 64 px patches at
    0.14 mm per pixel, or on the stored grid where the images do not state their pixel spacing; for the others the
    paper's 128 px patches on the stored grid. ``training`` is for ``wei2018``, ``fusion`` for the fusions;
    ``training.seed`` also draws the held-out patients, and is the seed of the fusions. ``held_out`` is the share of
    the patients without any annotated lesion, in [0, 1), whose images set the thresholds and operating points and
    nothing else. With 0, or fewer than five such patients, the training patches set the thresholds, which promises too
    few false alarms, and there are no
    operating points until the model is calibrated (`unary.models.commissioning.calibrate_model`).
    """

    detector: DetectorName = "fusion"
    preparation: PreparationConfig | None = None
    grid: GridConfig | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    held_out: float = 0.3
    fusion: FusionConfig = field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        if self.detector not in DETECTORS:
            raise ValueError(f"detector must be one of {DETECTORS}, not {self.detector!r}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")


def fit(
    manifest: Manifest,
    config: FitConfig = FitConfig(),
    *,
    checkpoint: Path | None = None,
    store: Path | None = None,
    progress: bool = True,
) -> Model:
    """Learn what normal tissue looks like.

    Parameters
    ----------
    manifest
        Negative images alone. Patches that touch an annotated (benign) lesion are left out.
    config
        Detector, preparation, grid and training.
    checkpoint
        A file that keeps the state of training after every epoch; an interrupted call goes on from it.
    store
        A folder for the prepared images, which then need not fit in memory (`unary.patches.collection.collect_patches`). Not
        for the fusions, which draw crops from all images at once.
    progress
        Show progress bars.

    Raises
    ------
    TrainingError
        If the manifest holds an image that is not labelled negative, a fusion is given a store, or training fails.
    ManifestError
        If no image could be used.
    """
    wrong = [row.image_id for row in manifest.rows if row.label != "negative"]
    if wrong:
        raise TrainingError(
            f"unary learns from negative images alone, but {len(wrong)} of {len(manifest.rows)} images of the manifest "
            f"are positive or unlabelled (first: {wrong[0]}); keep the negatives with `unary manifest --only negative` "
            "or divide the manifest with `unary split`"
        )
    if store is not None and config.detector in FUSIONS:
        raise TrainingError(f"{config.detector} is trained from memory alone; a store goes with wei2018 and laplacian")
    preparation, grid = choose_preparation(manifest, config)
    collection = collect_patches(manifest, preparation, grid, store=store, progress=progress)
    return _fit_collection(collection, config, (preparation, grid), checkpoint=checkpoint, progress=progress)


def choose_preparation(manifest: Manifest, config: FitConfig) -> tuple[PreparationConfig, GridConfig]:
    """Return how images are prepared and where patches lie: what the configuration says, or the detector's default.

    The first readable image decides whether the images of a manifest state their pixel spacing.
    """
    dense = config.detector in FUSIONS
    grid = config.grid or (GridConfig(DENSE_SIZE_PX, DENSE_SIZE_PX) if dense else GridConfig())
    if config.preparation is not None or not dense:
        return config.preparation or PreparationConfig(), grid
    for row in manifest.rows:
        try:
            known = row.spacing_mm is not None or read_image(row.path).spacing_mm is not None
        except ImageError:
            continue
        if known:
            return PreparationConfig(working_spacing_mm=DENSE_SPACING_MM), grid
        logger.warning(
            "the images do not state their pixel spacing: patches are %d stored pixels a side, whatever that is in mm",
            grid.size_px,
        )
        break
    return PreparationConfig(), grid


def _fit_collection(
    collection: Collection,
    config: FitConfig,
    prepared_as: tuple[PreparationConfig, GridConfig],
    *,
    checkpoint: Path | None,
    progress: bool,
) -> Model:
    usable = ~collection.touches
    patients = collection.column("patient_id")
    held = np.zeros(len(collection), bool)
    # A patient with a benign lesion can be learned from, but cannot say what normal images do.
    candidates = ~np.isin(patients, np.unique(patients[collection.touches]))
    if config.held_out > 0 and len(np.unique(patients[candidates])) >= _FEWEST_PATIENTS_TO_HOLD_OUT:
        rng = np.random.default_rng(config.training.seed)
        held[candidates] = split_by_patient(patients[candidates], config.held_out, rng)
    normal = collection.patches.subset(np.flatnonzero(usable & ~held))
    if len(normal) < 2:
        raise TrainingError(
            f"only {len(normal)} normal patches were found in {len(collection.rows)} images; are the images "
            f"smaller than {collection.patches.size_px} px, or is no tissue found? (see PreparationConfig.mask)"
        )
    dense = config.detector in FUSIONS
    yardstick = fit_laplacian(normal, COARSE_LAPLACIAN if dense else LaplacianConfig())
    detector: Detector | ImageDetector = yardstick
    training: dict[str, object] = {}
    history: dict[str, object] = {}
    if dense:
        fusion = dataclasses.replace(config.fusion, seed=config.training.seed)
        if config.detector == "fusion_prior":
            fusion = dataclasses.replace(fusion, weights=WITH_PRIOR)
        detector = train_fusion(normal, fusion, checkpoint=checkpoint, progress=progress)
        training = dataclasses.asdict(fusion)
    elif config.detector == "wei2018":
        trained = train_network(normal, config.training, checkpoint=checkpoint, progress=progress)
        detector = build_reconstruction(trained.network)
        training = dataclasses.asdict(config.training)
        history = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(trained.history).items()}
    judges = collection.patches.subset(np.flatnonzero(usable & held)) if held.any() else normal
    thresholds = find_thresholds(score_patch_set(detector, judges))
    used = np.unique(collection.image[usable])
    provenance = Provenance(
        patient_hashes=hash_patients(collection.rows[number].patient_id for number in used),
        data_hash=collection.data_hash,
        images=len(used),
        patches=len(normal),
        threshold_patches=len(judges) if held.any() else 0,
        skipped=len(collection.skipped),
        training=training,
        history=history,
        versions=describe_versions(),
    )
    model = Model(config.detector, detector, yardstick, *prepared_as, thresholds, provenance)
    return _commission(model, collection, held, progress=progress)


def _commission(model: Model, collection: Collection, held: NDArray[np.bool_], *, progress: bool) -> Model:
    """Add what findings need: level and domain from the training images, operating points from the held-out ones."""
    judges, touched = (set(collection.image[where].tolist()) for where in (held, collection.touches))
    free = [(number, row) for number, row in enumerate(collection.rows) if number not in touched]
    trained = [row for number, row in free if number not in judges]
    model = add_detection(model, trained or list(collection.rows), progress=progress)
    try:
        return set_operating_points(model, [row for number, row in free if number in judges], progress=progress)
    except CalibrationError:  # a fitted model is worth keeping
        logger.warning("too few patients to hold any out: no operating points; see `unary calibrate`")
        return model


def train_fusion(
    normal: PatchSet,
    config: FusionConfig,
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
    title: str = "training",
) -> Fusion:
    """Fit a fused detector under a progress bar; see `unary.detectors.fit_fusion.fit_fusion`."""
    numbers = np.unique(normal.index[:, 0])
    normals = [NormalImage(normal.images[number], normal.index[normal.index[:, 0] == number, 1:]) for number in numbers]
    with tqdm(desc=title, unit="step", delay=2, disable=None if progress else True) as bar:

        def advance(part: str, step: int, steps: int) -> None:
            if bar.total != steps or step < bar.n:
                bar.reset(steps)
                bar.set_description(f"{title} {part}")
            bar.update(step - bar.n)

        return fit_fusion(normals, config, size_px=normal.size_px, checkpoint=checkpoint, on_step=advance)


def train_network(
    normal: PatchSet,
    training: TrainingConfig,
    *,
    bottleneck: int | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
    title: str = "training",
) -> Trained:
    """Train the paper's network under a progress bar; see `unary.training.engine.train_autoencoder`."""
    with tqdm(total=training.epochs, desc=title, unit="epoch", delay=2, disable=None if progress else True) as bar:

        def advance(epoch: int, loss: float) -> None:
            bar.update(epoch - bar.n)
            bar.set_postfix(loss=f"{loss:.3e}")

        return train_autoencoder(normal, training, bottleneck=bottleneck, checkpoint=checkpoint, on_epoch=advance)


def find_thresholds(normal_scores: NDArray[np.float64]) -> dict[str, float]:
    """Return, by specificity, the score that this share of normal patches does not exceed.

    A patch is called abnormal when its score is *above* the threshold, which makes the detector the paper's one-class
    classifier. No abnormal patch has a say.
    """
    return {
        f"{specificity:.2f}": float(np.quantile(normal_scores, specificity, method="higher"))
        for specificity in SPECIFICITIES
    }


def score(model: Model, path: Path | str) -> ImageScores:
    """Score one image file.

    Raises
    ------
    ImageError
        If the file cannot be read or used.
    """
    return score_image(model, read_image(Path(path)))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of a labelled manifest.

    Attributes
    ----------
    patches
        One row per patch, or None when no patch is known to hold a lesion.
    images
        One row per image, scored by its highest patch, or None when the images are all of one label.
    collection
        What was scored.
    """

    patches: ScoreTable | None
    images: ScoreTable | None
    collection: Collection


def evaluate(model: Model, manifest: Manifest, *, allow_seen: bool = False, progress: bool = True) -> Evaluation:
    """Score every patch of a labelled manifest by the model, the yardstick and the controls.

    Positives are the patches that contain a lesion of an image labelled positive; negatives are the patches of images
    labelled negative that touch no lesion. Patches that only touch a lesion, benign lesions of negative images and
    images without a label are left out.

    Raises
    ------
    SplitError
        If a patient of the manifest was trained on, unless ``allow_seen``.
    ManifestError
        If there are no negatives or no positives.
    """
    seen = set(hash_patients(row.patient_id for row in manifest.rows)) & set(model.provenance.patient_hashes)
    if seen and not allow_seen:
        raise SplitError(
            f"{len(seen)} patient(s) of the manifest were in the training set of the model, which flatters every "
            "figure; evaluate on other patients (see `unary split`), or allow it with --allow-seen"
        )
    labels = [row.label for row in manifest.rows]
    if "negative" not in labels or "positive" not in labels:
        missing = "negative" if "negative" not in labels else "positive"
        raise ManifestError(f"an evaluation needs images of both labels; the manifest has no {missing} image")
    collection = collect_patches(manifest, model.preparation, model.grid, progress=progress)
    detectors = {model.name: model.detector, "laplacian": model.yardstick}
    scores = {
        name: score_patch_set(detector, collection.patches)
        for name, detector in tqdm(detectors.items(), desc="scoring", delay=2, disable=None if progress else True)
    }
    scores |= measure_controls(collection.patches)
    return Evaluation(_patch_table(collection, scores), _image_table(collection, scores), collection)


def _patch_table(collection: Collection, scores: dict[str, NDArray[Any]]) -> ScoreTable | None:
    label = collection.column("label")
    positive = collection.lesional & (label == "positive")
    control = collection.normal_looking & (label == "positive")
    kept = positive | control | ((label == "negative") & ~collection.touches)
    if not positive.any() or not (kept & ~positive & ~control).any():
        return None
    groups = {name: collection.contains[name] & positive for name in GROUPS} | {NORMAL_LOOKING: control}
    chosen = {name: values[kept] for name, values in scores.items()}
    return build_table(collection, chosen, kept, positive=positive, groups=groups)


def build_table(
    collection: Collection,
    scores: dict[str, NDArray[Any]],
    kept: NDArray[Any],
    *,
    positive: NDArray[Any],
    groups: dict[str, NDArray[Any]],
    seed: int = 0,
    split: str = "test",
) -> ScoreTable:
    """Return the table of the patches that are ``kept`` (a mask, or positions).

    ``scores`` has one entry per kept patch; ``positive`` and ``groups`` have one per patch of the collection.
    """
    return ScoreTable(
        scores=scores,
        positive=positive[kept],
        groups={name: member[kept] for name, member in groups.items()},
        patient=collection.column("patient_id")[kept],
        image=collection.column("image_id")[kept],
        row=collection.origins[kept, 0].astype(np.int64),
        col=collection.origins[kept, 1].astype(np.int64),
        seed=seed,
        split=split,
    )


def _image_table(collection: Collection, scores: dict[str, NDArray[Any]]) -> ScoreTable | None:
    """Each image by its highest patch."""
    count = len(collection.rows)
    known = np.asarray([row.label is not None for row in collection.rows])
    kept = np.flatnonzero(known & (np.bincount(collection.image, minlength=count) > 0))
    positive = np.asarray([row.label == "positive" for row in collection.rows])[kept]
    if not positive.any() or positive.all():
        return None
    highest = {}
    for name, values in scores.items():
        best = np.full(count, -np.inf)
        np.maximum.at(best, collection.image, values)
        highest[name] = best[kept]
    return ScoreTable(
        scores=highest,
        positive=positive,
        groups={},
        patient=np.asarray([collection.rows[number].patient_id for number in kept]),
        image=np.asarray([collection.rows[number].image_id for number in kept]),
        row=np.zeros(len(kept), np.int64),
        col=np.zeros(len(kept), np.int64),
        seed=0,
        split="image",
    )
