"""One detector on all test pictures of one condition: fitted, scored, and kept, so that an interrupted run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.detectors import name_of
from unary.detectors.protocol import Detector
from unary.detectors.scoring import count_weights
from unary.experiments.bench_cells import complete_model, require_told_apart
from unary.experiments.common import read_arrays, write_arrays
from unary.experiments.contenders import Contender
from unary.experiments.image_level_stages import Stage
from unary.models.bundle import Model
from unary.models.examination import examine_image
from unary.models.fitting import FitConfig, choose_grid
from unary.patches.collection import Collection, collect_patches, read_row
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import Profile
from unary.progress import show_progress
from unary.records import Manifest, ManifestRow
from unary.training.context import FitContext

_SHOWN = 6
_FORMAT = 2


@dataclass(frozen=True)
class PictureRow:
    """A detector, and how it sees pictures.

    With a ``side_px`` a picture is one patch of that side, and its score is the patch's. Without, the detector sees
    what `unary.fit` would give it, and the score is that of `unary.score`.
    """

    contender: Contender
    side_px: int | None = None

    @property
    def name(self) -> str:
        """Of the contender."""
        return self.contender.name

    def choose_layout(self, rows: tuple[ManifestRow, ...], profile: Profile) -> tuple[PreparationConfig, GridConfig]:
        """Return how pictures are prepared, and where patches lie."""
        if self.side_px is None:
            detector = self.contender.detector
            own_px = getattr(detector, "working_size_px", None)
            return choose_grid(
                Manifest(rows[:1]), FitConfig(), detector_grid=detector.grid, profile=profile, detector_size_px=own_px
            )
        preparation = PreparationConfig(mask=profile.mask, working_size_px=self.side_px)
        return preparation, GridConfig(self.side_px, self.side_px, 0.0)


@dataclass(frozen=True, eq=False)
class PictureCell:
    """What one detector did under one seed: scores of the test pictures, and maps of some.

    ``shown`` are places among the test pictures, at evenly spaced percentiles of the scores of the normal ones, then of
    the others; ``maps``, shape (shown, side, side), float32, are theirs. ``state`` hashes what was learned.
    """

    scores: NDArray[np.float64]
    shown: NDArray[np.int64]
    maps: NDArray[np.float32]
    fit_seconds: float
    score_seconds_per_image: float
    parameters: int
    state: str


def run_picture_cells(
    stage: Stage, row: PictureRow, profile: Profile, *, seeds: Sequence[int], out: Path, progress: bool
) -> Iterator[PictureCell]:
    """Yield for every seed what `PictureCell` says: fit and score, or read what an earlier call has kept under ``out``.

    A detector that has learned the same under another seed is not asked again.

    Raises
    ------
    TrainingError, DetectorError
        If training fails, the detector cannot examine such pictures, or scores are not finite or all equal.
    """
    layout = row.choose_layout(stage.train, profile)
    names = [field.name for field in dataclasses.fields(PictureCell)]
    part: Collection | None = None
    known: dict[str, PictureCell] = {}
    for seed in seeds:
        path = out / "runs" / f"{row.name}-{stage.name}-{seed}-{_hash_cell(stage, row, layout, seed)}.npz"
        kept = read_arrays(path, *names)
        if kept is not None and kept[0].shape == (len(stage.test),):
            scores, shown, maps, *facts = kept
            cell = PictureCell(scores, shown, maps, float(facts[0]), float(facts[1]), int(facts[2]), str(facts[3]))
            known[cell.state] = cell
            yield cell
            continue
        part = part or collect_patches(Manifest(stage.train), *layout, profile.reading, progress=progress)
        checkpoint = out / "checkpoints" / f"{stage.name}-seed{seed}"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        context = FitContext(seed, checkpoint, progress=progress, title=row.name)
        start = time.perf_counter()
        detector = row.contender.detector.fit(part.patches.subset(np.arange(len(part))), context)
        seconds, state = time.perf_counter() - start, _hash_state(detector)
        if state not in known:
            model = complete_model(
                detector, part, np.arange(len(part)), profile=profile, layout=layout, progress=progress
            )
            known[state] = _score_pictures(stage, row, model, state, progress=progress)
        cell = dataclasses.replace(known[state], fit_seconds=seconds)
        write_arrays(path, **vars(cell))
        yield cell


def _score_pictures(stage: Stage, row: PictureRow, model: Model, state: str, *, progress: bool) -> PictureCell:
    scores, maps = np.full(len(stage.test), np.nan), []
    start = time.perf_counter()
    shown = show_progress(stage.test, title=f"{row.name} scoring", unit="picture", shown=progress, leave=False)
    for number, picture in enumerate(shown):
        scored = examine_image(model, read_row(picture))
        found = scored.image_score if row.side_px is None else scored.scores.max()
        scores[number] = np.nan if found is None else found
        maps.append(scored.stored_map)
    seconds = (time.perf_counter() - start) / len(scores)
    require_told_apart(scores)
    chosen = choose_spread(scores, stage.positive)
    kept = np.stack([maps[number] for number in chosen])
    return PictureCell(scores, chosen, kept, 0.0, seconds, count_weights(model.detector), state)


def _hash_state(detector: Detector) -> str:
    """SHA-256 of the numbers that a fitted detector consists of, and of its settings."""
    state = detector.get_state()
    digest = hashlib.sha256(json.dumps(state.settings, sort_keys=True, default=repr).encode())
    for name, values in sorted(state.tensors.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def choose_spread(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return places at evenly spaced percentiles of the scores of the negatives, then of the positives, ascending."""
    chosen = []
    for role in (~positive, positive):
        members = np.flatnonzero(role)
        ordered = members[np.argsort(scores[members], kind="stable")]
        places = np.linspace(0, len(ordered) - 1, _SHOWN + 2).round().astype(int)[1:-1]
        chosen.append(ordered[np.unique(places)])
    return np.concatenate(chosen).astype(np.int64)


def _hash_cell(stage: Stage, row: PictureRow, layout: tuple[PreparationConfig, GridConfig], seed: int) -> str:
    """A short name of everything that the scores depend on, the detector's code apart."""
    detector = row.contender.detector
    facts = [_FORMAT, metadata.version("unary"), stage.data_hash, row.name, seed, row.side_px]
    facts += [
        name_of(detector),
        dataclasses.asdict(detector.config),
        dataclasses.asdict(layout[0]),
        dataclasses.asdict(layout[1]),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()[:16]
