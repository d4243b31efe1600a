"""A model on a labelled manifest, in one pass: patches, images, findings and pixels, beside baseline and controls.

Each image is read, prepared and examined once, and of it only scores, findings, the outlines of its lesions and a
sample of its pixels are kept. One unreadable image never stops the rest.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.detectors import name_of
from unary.detectors.scoring import measure_controls, score_patches
from unary.errors import ImageError, ManifestError, SplitError
from unary.evaluation.evaluated_image import EvaluatedImage, evaluate_image
from unary.evaluation.metrics import NORMAL_LOOKING, ScoreTable
from unary.evaluation.pixelwise import PixelSample
from unary.files import read_ahead
from unary.models.bundle import Model
from unary.models.examination import ScoredImage, examine_image
from unary.models.patients import count_seen
from unary.patches.collection import PatchLabels, label_patches, read_row
from unary.patches.grid import Origins
from unary.patches.patch_set import build_patch_set
from unary.profiles import Reading
from unary.progress import show_progress
from unary.records import Image, Lesion, Manifest, ManifestRow, count_words
from unary.training.processes import map_in_processes

logger = logging.getLogger(__name__)

_AHEAD = 2
_PIECE = 8  # rows that a worker takes at a time
_Row = tuple[int, ManifestRow, tuple[Lesion, ...]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model, its baseline and the controls make of a labelled manifest.

    Attributes
    ----------
    patches
        One row per patch, or None when no patch is known to hold a lesion. Positives are the patches that contain a
        lesion of an image labelled positive; negatives are the patches of images labelled negative that touch no
        lesion. Patches that only touch a lesion, benign lesions of negative images and images without a label are left
        out.
    images
        One row per image, or None when the images are all of one label. The model's score is the image score that
        `unary.score` and `unary.detect` give; baseline and controls, which know no findings, are taken at their highest
        patch.
    evaluated
        The images that could be used, in manifest order.
    pixels
        Samples by group of lesions, and of ``all``, of normal images and of images labelled positive. The pixels of
        lesions of another group are left out, not taken as normal.
    skipped
        One line per image that could not be used, naming file and cause.
    data_hash
        SHA-256 over prepared pixels and patches: equal data, preparation and grid, equal hash.
    seen
        How many of the manifest's patients the model was fitted on; None where that cannot be told.
    pictures
        What is kept of the pictures of images, by image, where any were drawn.
    """

    patches: ScoreTable | None
    images: ScoreTable | None
    evaluated: tuple[EvaluatedImage, ...]
    pixels: Mapping[str, tuple[PixelSample, ...]]
    skipped: tuple[str, ...]
    data_hash: str
    seen: int | None = 0
    pictures: Mapping[str, Any] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """Return what a notebook shows (`unary.outputs.notebook`)."""
        from unary.outputs.notebook import show_evaluation

        return show_evaluation(self)._repr_html_()

    def __repr__(self) -> str:
        return f"Evaluation({count_words(len(self.evaluated), 'image')}, {len(self.skipped)} skipped)"


@dataclass(frozen=True, eq=False)
class EvaluatedPart:
    """What one image adds: ``scores`` are of its patches, by detector; ``digest`` is of its patches' pixels.

    ``drawn`` is what is kept of its pictures, if any were drawn.
    """

    evaluated: EvaluatedImage
    samples: dict[str, PixelSample]
    scores: dict[str, NDArray[np.float64]]
    labels: PatchLabels
    origins: Origins
    digest: str
    drawn: Any = None


Draw = Callable[[int, EvaluatedImage, Image, ScoredImage], Any]
"""Given the place of an image in the manifest, what is said of it, its pixels and its map, returns what is kept of its
pictures, or None. With several workers, a method or function that can be pickled."""


def evaluate(
    model: Model,
    manifest: Manifest,
    *,
    allow_seen: bool = False,
    draw: Draw | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Evaluation:
    """Examine every image of a labelled manifest, and judge what is said of it by the listed lesions.

    Parameters
    ----------
    model
        Fitted; its profile says which lesions are told apart.
    manifest
        Images of both labels, and their lesions in stored pixels, (row, col).
    allow_seen
        Accept patients that the model was trained on or calibrated with, which flatters every figure.
    draw
        Called for every image that could be used while its pixels are there; what it returns is in ``pictures``.
    workers
        How many processes examine images, each with a model and an image in memory; the result does not depend on it.
        For thousands of small images take as many as there are processors; one examines a large image on all of them.
    progress
        Show a bar on standard error when that is a terminal.

    Raises
    ------
    SplitError
        If a patient of the manifest was trained on, unless ``allow_seen``.
    ManifestError
        If there are no negatives or no positives, or not one image could be used.
    UnaryError
        If a worker ends without an answer (`unary.training.processes`).
    """
    seen = require_evaluable(model, manifest, allow_seen=allow_seen)
    found = _examine_rows(model, manifest, draw, workers)
    bar = show_progress(found, total=len(manifest.rows), title="evaluating", unit="image", shown=progress)
    return gather_evaluation(model, bar, seen=seen)


def require_evaluable(model: Model, manifest: Manifest, *, allow_seen: bool) -> int | None:
    """Return how many patients of a manifest the model was fitted on; raises as `evaluate`, before images are read."""
    if not isinstance(manifest, Manifest):
        raise ManifestError(
            f"evaluate needs a manifest, as unary.read_manifest returns it, not {type(manifest).__name__}"
        )
    seen = count_seen(model.provenance.seen, (row.patient_id for row in manifest.rows))
    if seen and not allow_seen:
        raise SplitError(
            f"the model was fitted on {count_words(seen, 'patient')} of the manifest, which flatters every "
            "figure; evaluate on other patients (see `unary split`), or allow it with --allow-seen "
            "(in Python allow_seen=True)"
        )
    for label in ("negative", "positive"):
        if all(row.label != label for row in manifest.rows):
            raise ManifestError(f"an evaluation needs images of both labels; the manifest has no {label} image")
    return seen


def gather_evaluation(model: Model, found: Iterable[EvaluatedPart | ImageError], *, seen: int | None) -> Evaluation:
    """Return the evaluation of images, or why they cannot be used, in the order of the manifest.

    Raises
    ------
    ManifestError
        If not one image could be used.
    """
    parts: list[EvaluatedPart] = []
    skipped: list[str] = []
    for part in found:
        if isinstance(part, ImageError):
            skipped.append(str(part))
            logger.warning("skipped: %s", part)
        else:
            parts.append(part)
    if not parts:
        of_all = count_words(len(skipped), "image")
        raise ManifestError(f"none of {of_all} could be used: {'; '.join(skipped[:3])}")
    digest = hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest()
    names = dict.fromkeys(name for part in parts for name in part.samples)
    samples = {name: tuple(part.samples[name] for part in parts if name in part.samples) for name in names}
    return Evaluation(
        _build_patch_table(parts, model.profile.reading),
        _build_image_table(parts, model.name),
        tuple(part.evaluated for part in parts),
        samples,
        tuple(skipped),
        digest,
        seen,
        {part.evaluated.row.image_id: part.drawn for part in parts if part.drawn is not None},
    )


@dataclass(frozen=True, eq=False)
class _Task:
    """What is done with every row: the model, how many images there are, how many are read ahead, and who draws."""

    model: Model
    images: int
    ahead: int
    draw: Draw | None


def _examine_rows(
    model: Model, manifest: Manifest, draw: Draw | None, workers: int
) -> Iterator[EvaluatedPart | ImageError]:
    """What each image adds, in manifest order."""
    lesions: dict[str, list[Lesion]] = {}
    for lesion in manifest.lesions:
        lesions.setdefault(lesion.image_id, []).append(lesion)
    # masks are read here, and no two threads may read DICOM at a time (`read_ahead` says why)
    ahead = 0 if any(lesion.mask_path is not None for lesion in manifest.lesions) else _AHEAD
    task = _Task(model, len(manifest.rows), ahead, draw)
    rows = [(number, row, tuple(lesions.get(row.image_id, ()))) for number, row in enumerate(manifest.rows)]
    if workers == 1:
        yield from _examine_piece(task, rows)
        return
    pieces = [rows[start : start + _PIECE] for start in range(0, len(rows), _PIECE)]
    for parts in map_in_processes(_examine_whole_piece, pieces, state=task, workers=workers):
        yield from parts


def _examine_whole_piece(task: _Task, rows: Sequence[_Row]) -> list[EvaluatedPart | ImageError]:
    return list(_examine_piece(task, rows))


def _examine_piece(task: _Task, rows: Sequence[_Row]) -> Iterator[EvaluatedPart | ImageError]:
    """What each of some rows adds; images are read ahead."""
    images = read_ahead(_try_reading, [row for _, row, _ in rows], ahead=task.ahead)
    for (number, row, lesions), image in zip(rows, images, strict=True):
        try:
            if isinstance(image, ImageError):
                raise image
            yield _examine_row(task, number, row, image, lesions)
        except ImageError as error:
            yield error


def _try_reading(row: ManifestRow) -> Image | ImageError:
    try:
        return read_row(row)
    except ImageError as error:
        return error


def _examine_row(task: _Task, number: int, row: ManifestRow, image: Image, lesions: Sequence[Lesion]) -> EvaluatedPart:
    model = task.model
    scored = examine_image(model, image)
    prepared, size_px = scored.prepared, model.grid.size_px
    labels = label_patches(row, lesions, prepared, scored.origins, size_px, model.profile.reading)
    evaluated, samples = evaluate_image(model, row, lesions, scored, images=task.images)
    patches = build_patch_set(prepared.pixels, scored.origins, size_px=size_px, mask=prepared.mask)
    scores = {model.name: scored.scores}
    if name_of(model.baseline) != model.name:
        scores[name_of(model.baseline)] = score_patches(model.baseline, patches)
    scores |= measure_controls(patches)
    drawn = None if task.draw is None else task.draw(number, evaluated, image, scored)
    return EvaluatedPart(evaluated, samples, scores, labels, scored.origins, patches.digest(), drawn)


def _build_patch_table(parts: Sequence[EvaluatedPart], reading: Reading) -> ScoreTable | None:
    positives, controls, kept = [], [], []
    for part in parts:
        label, touches = part.evaluated.row.label, part.labels.touches
        lesional = functools.reduce(np.logical_or, part.labels.contains.values())
        positives.append(lesional & (label == "positive"))
        # a patch beside the lesions of an image says how far images differ, rather than lesions
        controls.append((label == "positive") & touches.any() & ~touches)
        kept.append(positives[-1] | controls[-1] | ((label == "negative") & ~touches))
    chosen = np.concatenate(kept)
    positive, control = np.concatenate(positives)[chosen], np.concatenate(controls)[chosen]
    if not positive.any() or not (~positive & ~control).any():
        return None
    groups = {
        name: np.concatenate([part.labels.contains[name] for part in parts])[chosen] & positive
        for name in (reading.group_names if reading.groups else ())
    }
    origins = np.concatenate([part.origins for part in parts])[chosen].astype(np.int64)
    return _build_table(
        [part.evaluated.row for part in parts],
        np.repeat(np.arange(len(parts)), [len(part.origins) for part in parts])[chosen],
        {name: np.concatenate([part.scores[name] for part in parts])[chosen] for name in parts[0].scores},
        positive,
        groups={**groups, NORMAL_LOOKING: control},
        origins=origins,
        split="test",
    )


def _build_image_table(parts: Sequence[EvaluatedPart], model: str) -> ScoreTable | None:
    known = [part for part in parts if part.evaluated.row.label is not None and part.evaluated.ranked]
    positive = np.asarray([part.evaluated.row.label == "positive" for part in known], bool)
    if not positive.any() or positive.all():
        return None
    highest = {name: [part.scores[name].max() for part in known] for name in known[0].scores}
    scores = highest | {model: [part.evaluated.image_score for part in known]}
    return _build_table(
        [part.evaluated.row for part in known],
        np.arange(len(known)),
        {name: np.asarray(values, np.float64) for name, values in scores.items()},
        positive,
        groups={},
        origins=np.zeros((len(known), 2), np.int64),
        split="image",
    )


def _build_table(
    rows: Sequence[ManifestRow],
    owner: NDArray[np.intp],
    scores: Mapping[str, NDArray[np.float64]],
    positive: NDArray[np.bool_],
    *,
    groups: Mapping[str, NDArray[np.bool_]],
    origins: NDArray[np.int64],
    split: str,
) -> ScoreTable:
    patient = np.asarray([row.patient_id for row in rows])[owner]
    image = np.asarray([row.image_id for row in rows])[owner]
    return ScoreTable(scores, positive, groups, patient, image, origins[:, 0], origins[:, 1], seed=0, split=split)
