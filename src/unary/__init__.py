"""unary: one-class anomaly detection in medical images.

Learn what normal tissue looks like from normal images alone, then show where a new image departs from it.
Research software; not for diagnosis.
"""

from __future__ import annotations

import importlib
from typing import Any

_READERS: dict[str, str] = importlib.import_module("unary.datasets").READERS  # names alone, no reader
_HOME = {
    "BenchConfig": "unary.experiments.bench",
    "DEFAULT": "unary.profiles",
    "DETECTORS": "unary.detectors",
    "FitConfig": "unary.models.fitting",
    "FusionConfig": "unary.detectors.fusion",
    "Image": "unary.records",
    "Manifest": "unary.records",
    "OneClassPatchDetector": "unary.models.estimator",
    "PROFILES": "unary.profiles",
    "Profile": "unary.profiles",
    "UnaryError": "unary.errors",
    "build_manifest": "unary.datasets.manifest",
    "calibrate_model": "unary.models.calibrating",
    "detect": "unary.models.examination",
    "evaluate": "unary.evaluation.evaluate",
    "fit": "unary.models.fitting",
    "read_image": "unary.images.reading",
    "read_manifest": "unary.datasets.manifest",
    "read_model": "unary.models.bundle",
    "run_bench": "unary.experiments.bench",
    "score": "unary.models.examination",
    "split_manifest": "unary.datasets.splits",
    "write_manifest": "unary.datasets.manifest",
} | {f"read_{name}": place.partition(":")[0] for name, place in _READERS.items()}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes a second, and ``unary --help`` needs none of it."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("unary")
    if name not in _HOME:
        raise AttributeError(f"module 'unary' has no attribute {name!r}")
    if name == "OneClassPatchDetector":
        importlib.import_module("unary.errors").require("sklearn", extra="sklearn")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
