"""What is told of a fit to a `unary.training.tracking.Tracker`: settings, figures, hashes; nothing of a patient."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from unary.detectors import name_of
from unary.detectors.protocol import Detector
from unary.models.bundle import Model, describe_versions
from unary.models.card import flatten
from unary.profiles import Profile
from unary.training.tracking import Tracker


def track_settings(tracker: Tracker, detector: Detector, profile: Profile, **configs: object) -> None:
    """Tell what a fit starts with: detector, profile, and configurations by name."""
    own = getattr(detector, "config", None)
    parts = {name: part for name, part in {"detector": own, **configs}.items() if dataclasses.is_dataclass(part)}
    settings = {name: dataclasses.asdict(part) for name, part in parts.items() if not isinstance(part, type)}
    tracker.log_settings({"detector": name_of(detector), "profile": profile.name, **dict(flatten(settings))})


def track_model(tracker: Tracker, model: Model) -> None:
    """Tell what came of a fit or a calibration: counts, the level, operating points, hash of the data, versions."""
    tracker.log_numbers(dict(list_figures(model)))
    versions = {f"version.{name}": version for name, version in describe_versions().items()}
    tracker.log_tags({"data_hash": model.provenance.data_hash, **versions})


def list_figures(model: Model) -> Iterator[tuple[str, float]]:
    """Yield the numbers that are known of a model, by name."""
    made, calibration = model.provenance, model.calibration
    for name in ("images", "patches", "held_out_patches", "skipped"):
        yield f"data/{name}", float(getattr(made, name))
    yield "data/patients", float(made.seen.count)
    yield "level", model.level
    if calibration is not None:
        yield "calibration/patients", float(calibration.patients)
        yield "calibration/images", float(len(calibration.images))
        for point in calibration.operating_points:
            told: Mapping[str, Any] = dataclasses.asdict(point)
            for name in ("threshold", "rate", "measured_rate", "false_alarm_rate"):
                if told[name] is not None:
                    yield f"operating_points/{point.name}/{name}", told[name]
