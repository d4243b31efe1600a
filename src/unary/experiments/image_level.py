"""Whole pictures, one class: is there disease in the image at all, and does a detector know more than the file does?

The detector that the profile names, the paper's autoencoder at the size of the picture, and the fusion for mammograms
learn from normal pictures and rank test pictures, as the files are and again after all pictures were brought to one
resolution and bandwidth; each time with and without the test pictures that are copies of others. Beside them stand
controls that look at size, brightness, spread, sharpness and bytes alone. ``docs/image_level.md`` says how to read it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unary.detectors import find_detector_class
from unary.errors import DetectorError, TrainingError
from unary.evaluation.intervals import Estimate, FewPatientsError
from unary.evaluation.metrics import ALL, ScoreTable, compare_detectors, summarise, write_metrics, write_scores
from unary.experiments.common import as_document, describe_run
from unary.experiments.contenders import Contender, list_contenders
from unary.experiments.image_level_cells import PictureCell, PictureRow, run_picture_cells
from unary.experiments.image_level_pictures import CONTROLS, TOGETHER
from unary.experiments.image_level_sets import ImageSet
from unary.experiments.image_level_stages import AS_FILES, PARTS, WITHOUT_COPIES, WITHOUT_NEAR, Stage, read_stages
from unary.profiles import Profile, find_profile
from unary.progress import Bar, show_progress

logger = logging.getLogger(__name__)

IMAGE = "image"
TURNED = "_turned_over"
_PAPER_PX = 64
_SPECKS = "fusion_unlearned"


@dataclass(frozen=True)
class ImageLevelConfig:
    """The comparison: the kind of image, the side of a picture, and a training for each of the distinct seeds."""

    profile: Profile = dataclasses.field(default_factory=lambda: find_profile("general"))
    side_px: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    resamples: int = 2000

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct, and at least one, got {self.seeds}")
        if self.side_px < 16:
            raise ValueError(f"side_px must be at least 16, got {self.side_px}")


@dataclass(frozen=True, eq=False)
class ImageLevelResult:
    """Everything that the report shows.

    Stages by name; cells by stage, detector and seed; tables and figures by split (`SPLITS`), a table per seed.
    ``differences`` are the AUROC of the subject minus that of each other row, or control in its better direction.
    """

    data: ImageSet
    config: ImageLevelConfig
    rows: tuple[PictureRow, ...]
    stages: dict[str, Stage]
    cells: dict[str, dict[str, list[PictureCell]]]
    tables: dict[str, list[ScoreTable]]
    metrics: dict[str, dict[str, dict[str, Any]]]
    differences: dict[str, dict[str, Estimate | None]]
    failures: dict[str, str]
    meta: dict[str, Any]

    @property
    def subject(self) -> str:
        """The detector that is spoken of: the profile's, or the first that finished."""
        return next(row.name for row in self.rows if row.name in self.metrics)


def list_rows(profile: Profile) -> tuple[PictureRow, ...]:
    """Return the detectors: the profile's first, then the paper's autoencoder and the fusion for mammograms.

    Of the fusion, whose training takes hours on whole pictures, the variant that learns no network takes part.
    """
    from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
    from unary.detectors.wei2018.learning import TrainingConfig

    # A thousand pictures are few patches: with smaller batches there are as many steps as in the paper.
    paper = Wei2018(Wei2018Config(training=TrainingConfig(epochs=50, batch_size=20)))
    told = f"the paper's autoencoder; a picture, shrunk to {_PAPER_PX} px, is one patch; 50 epochs in batches of 20"
    rows = [
        PictureRow(Contender(profile.detector, find_detector_class(profile.detector)())),
        PictureRow(Contender("wei2018", paper, told), side_px=_PAPER_PX),
        *(PictureRow(row) for row in list_contenders() if row.name == _SPECKS),
    ]
    return tuple({row.name: row for row in reversed(rows)}.values())[::-1]


def run_image_level(
    data: ImageSet,
    out: Path,
    config: ImageLevelConfig | None = None,
    *,
    rows: Sequence[PictureRow] | None = None,
    progress: bool = True,
    banners: Sequence[str] = (),
) -> ImageLevelResult:
    """Run every detector in every condition, and write ``metrics.json`` and ``scores.parquet`` under ``out``.

    What is done is kept under ``out / "runs"``, and running again after an interruption goes on from there; after
    changing the code of a detector, use a new folder. A detector that fails is reported and left out of the figures.

    Raises
    ------
    ManifestError, ImageError
        If a side is empty, or no picture can be read.
    TrainingError
        If not one detector could be run.
    """
    config = config or ImageLevelConfig()
    rows = tuple(list_rows(config.profile) if rows is None else rows)
    stages, skipped, cutoff = read_stages(data, side_px=config.side_px, progress=progress)
    cells, failures = _run_cells(stages, rows, config, out=out, progress=progress)
    finished = [row.name for row in rows if row.name not in failures]
    if not finished:
        raise TrainingError(f"no detector could be run; the first: {next(iter(failures.values()))}")
    tables = _build_tables(stages, cells, finished, config.seeds)
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for split, own in tables.items():
        found = summarise(own, rng=np.random.default_rng(0), resamples=config.resamples, progress=progress)
        for name, groups in found.items():
            metrics.setdefault(name, {})[split] = {IMAGE: groups[ALL]}
    differences = {
        split: _compare(own, metrics, split, subject=finished[0], others=finished[1:], resamples=config.resamples)
        for split, own in tables.items()
    }
    result = ImageLevelResult(data, config, rows, stages, cells, tables, metrics, differences, failures, meta={})
    result.meta.update(_describe(result, skipped, cutoff), banners=list(banners))
    write_scores(out / "scores.parquet", [table for own in tables.values() for table in own])
    write_metrics(out / "metrics.json", metrics, meta=result.meta)
    return result


def _run_cells(
    stages: Mapping[str, Stage], rows: Sequence[PictureRow], config: ImageLevelConfig, *, out: Path, progress: bool
) -> tuple[dict[str, dict[str, list[PictureCell]]], dict[str, str]]:
    """Cells by stage, detector and seed, and why some are missing."""
    cells: dict[str, dict[str, list[PictureCell]]] = {name: {row.name: [] for row in rows} for name in stages}
    failures: dict[str, str] = {}
    count = len(rows) * len(stages) * len(config.seeds)
    bar: Bar[None] = show_progress(title="detectors", unit="run", total=count, shown=progress)
    with bar:
        for row in rows:
            for stage in stages.values():
                bar.set_postfix_str(f"{row.name}, {stage.name}")
                done = cells[stage.name][row.name]
                try:
                    for cell in run_picture_cells(
                        stage, row, config.profile, seeds=config.seeds, out=out, progress=progress
                    ):
                        done.append(cell)
                        bar.update()
                except (TrainingError, DetectorError) as error:
                    where = f"{row.name}, {stage.name}, seed {config.seeds[len(done)]}"
                    failures.setdefault(row.name, f"{where}: {error}")
                    logger.warning("failed: %s: %s", where, error)
    return cells, failures


def _build_tables(
    stages: Mapping[str, Stage],
    cells: Mapping[str, Mapping[str, Sequence[PictureCell]]],
    finished: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, list[ScoreTable]]:
    """A table per split and seed, of detectors and controls."""
    tables: dict[str, list[ScoreTable]] = {}
    for stage in stages.values():
        image = np.asarray([row.image_id for row in stage.test])
        unit_of = np.asarray([row.patient_id for row in stage.test])
        origin = np.zeros(len(stage.test), np.int64)
        for number, seed in enumerate(seeds):
            scores = {name: cells[stage.name][name][number].scores for name in finished} | dict(stage.controls)
            for part, kept in ((part, stage.select(part)) for part in PARTS):
                if stage.positive[kept].all() or not stage.positive[kept].any():
                    continue
                own = {name: values[kept] for name, values in scores.items()}
                split, zeros = stage.name + part, origin[kept]
                truth, unit = stage.positive[kept], unit_of[kept]
                table = ScoreTable(own, truth, {}, unit, image[kept], zeros, zeros, seed=seed, split=split)
                tables.setdefault(split, []).append(table)
    return tables


def _compare(
    tables: Sequence[ScoreTable],
    metrics: Mapping[str, Any],
    split: str,
    *,
    subject: str,
    others: Sequence[str],
    resamples: int,
) -> dict[str, Estimate | None]:
    """The subject's AUROC minus that of each other, controls in their better direction; None where units are few."""
    found: dict[str, Estimate | None] = {}
    for name in (*others, *CONTROLS, TOGETHER):
        turned = name not in others and metrics[name][split][IMAGE]["auroc"] < 0.5
        both = tables
        if turned:
            both = [dataclasses.replace(one, scores={**one.scores, name + TURNED: -one.scores[name]}) for one in tables]
        reference = name + TURNED if turned else name
        rng = np.random.default_rng(0)
        try:
            found[reference] = compare_detectors(both, first=subject, second=reference, rng=rng, resamples=resamples)
        except FewPatientsError:
            found[reference] = None
    return found


def _describe(result: ImageLevelResult, skipped: Sequence[str], cutoff: float) -> dict[str, Any]:
    """What a reader of ``metrics.json`` needs to judge and repeat the figures."""
    data, config, stage = result.data, result.config, result.stages[AS_FILES]
    copies, negative = stage.copies, ~stage.positive
    return {
        **describe_run(data.name),
        "subject": result.subject,
        "data_hash": stage.data_hash,
        "config": {**dataclasses.asdict(config), "profile": config.profile.name, "seeds": list(config.seeds)},
        "counts": {
            "train": len(stage.train),
            "test_negative": int((~stage.positive).sum()),
            "test_positive": int(stage.positive.sum()),
            "test_copies_of_training": int(copies.learned.sum()),
            "test_negative_copies_of_training": int((copies.learned & negative).sum()),
            "test_copies_of_test": int((copies.again & ~copies.learned).sum()),
            "test_near_copies_of_training": int(copies.near_learned.sum()),
            "test_negative_near_copies_of_training": int((copies.near_learned & negative).sum()),
            "test_near_copies_of_test": int((copies.near_again & ~copies.near_learned).sum()),
            "test_without_copies": int(stage.select(WITHOUT_COPIES).sum()),
            "test_without_near_copies": int(stage.select(WITHOUT_NEAR).sum()),
        },
        "patients_known": data.has_patients,
        "common_bandwidth_cycles": cutoff,
        "bandwidth_percentiles": {
            name: {side: np.percentile(widths, [1, 50, 99]).tolist() for side, widths in own.bandwidths.items()}
            for name, own in result.stages.items()
        },
        "detectors": {row.name: _describe_row(row, result) for row in result.rows},
        "differences": {
            split: {name: one and as_document(one) for name, one in found.items()}
            for split, found in result.differences.items()
        },
        "published": [dataclasses.asdict(one) for one in data.published],
        "published_in": data.source or None,
        "failures": dict(result.failures),
        "notices": list(data.notices),
        "remarks": list(data.remarks),
        "skipped": list(skipped),
    }


def _describe_row(row: PictureRow, result: ImageLevelResult) -> dict[str, Any]:
    done = [cell for own in result.cells.values() for cell in own[row.name]]
    facts: dict[str, Any] = {"kind": row.contender.kind, "summary": row.contender.describe(), "runs": len(done)}
    if done:
        facts["fit_seconds"] = float(np.mean([cell.fit_seconds for cell in done]))
        facts["score_seconds_per_image"] = float(np.mean([cell.score_seconds_per_image for cell in done]))
        facts["parameters"] = max(cell.parameters for cell in done)
    return facts
