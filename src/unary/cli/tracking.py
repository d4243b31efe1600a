"""``--track``: what a command tells MLflow or TensorBoard."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unary.training.tracking import Tracker

_SETTINGS = ("model", "config", "preparation", "grid", "seed")  # of metrics.json, under meta
_TAGS = ("data_hash", "commit")


def add_tracking_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--track`` and ``--track-files``."""
    group = parser.add_argument_group("following the run elsewhere")
    group.add_argument(
        "--track",
        metavar="KIND[:PLACE]",
        help="mlflow (a file of SQLite or a URI; default sqlite:///mlflow.db) or tensorboard (a folder; default runs)",
    )
    group.add_argument(
        "--track-files",
        action="store_true",
        help="send report and model too; they show images and their names, and a model may hold copies of images",
    )


@contextmanager
def tracking(options: argparse.Namespace, name: str, *, state: Path | None = None) -> Iterator[Tracker | None]:
    """Give the tracker that was asked for, or None; at the end say where the run is.

    ``name`` is what the run is called, ``state`` as for `unary.training.tracking.open_tracker`.
    """
    if options.track is None:
        yield None
        return
    from unary.training.tracking import open_tracker

    with open_tracker(options.track, name=name, state=state) as tracker:
        yield tracker
    print(f"{'followed' if tracker.is_whole else 'not followed, or not whole,'} as {name}: {tracker.destination}")


def track_model_folder(tracker: Tracker | None, options: argparse.Namespace, folder: Path) -> None:
    """Tell the hash of the model that a folder holds, its card, and, if asked for, the model."""
    if tracker is None:
        return
    from unary.files import hash_file
    from unary.models.bundle import MODEL_FILE
    from unary.models.card import CARD_FILE

    tracker.log_tags({"model_sha256": hash_file(folder / MODEL_FILE)})
    weights = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))["weights_sha256"]
    named = [folder / MODEL_FILE, *folder.glob(f"weights-{weights[:16]}.safetensors")]
    for path in (folder / CARD_FILE, *(named if options.track_files else ())):
        if path.is_file():
            tracker.log_file(path)


def track_metrics(tracker: Tracker | None, options: argparse.Namespace, out: Path) -> None:
    """Tell the figures of ``metrics.json`` as they stand there, settings and hashes, and, if asked for, the report."""
    if tracker is None:
        return
    from unary.evaluation.metrics import list_figures
    from unary.models.card import flatten

    document: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    meta = document["meta"]
    for figure in list_figures(document):
        name = "/".join(figure.path)
        ends = {f"{name}_ci95/low": figure.low, f"{name}_ci95/high": figure.high}
        tracker.log_numbers({name: figure.value} | {end: value for end, value in ends.items() if value is not None})
    tracker.log_settings(dict(flatten({name: meta[name] for name in _SETTINGS if name in meta})))
    versions = {f"version.{name}": version for name, version in meta["versions"].items()}
    tracker.log_tags(versions | {name: str(meta[name]) for name in _TAGS if meta.get(name)})
    if options.track_files:
        for path in (out / "report.html", out / "metrics.json"):
            tracker.log_file(path)
