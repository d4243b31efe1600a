"""unary: one-class anomaly detection in medical images.

Learn what normal tissue looks like from normal images alone, then show where a new image departs from it.
Research software; not for diagnosis.
"""

from __future__ import annotations

import importlib
from typing import Any

_READERS: dict[str, str] = importlib.import_module("unary.datasets").READERS  # names alone, no reader
_HOME = {
    name: module
    for module, names in {
        "unary.clinic.shard_results": "read_results",
        "unary.datasets.manifest": "build_manifest read_manifest write_manifest",
        "unary.datasets.splits": "split_manifest",
        "unary.detectors": "DETECTORS",
        "unary.detectors.fusion": "FusionConfig",
        "unary.errors": "UnaryError",
        "unary.evaluation.evaluate": "evaluate",
        "unary.experiments.bench": "BenchConfig run_bench",
        "unary.images.reading": "read_image",
        "unary.models.asymmetry": "compare_breasts",
        "unary.models.bundle": "read_model",
        "unary.models.calibrating": "calibrate_model",
        "unary.models.estimator": "OneClassPatchDetector",
        "unary.models.examination": "detect score",
        "unary.models.fitting": "FitConfig FitPlan fit plan_fit",
        "unary.outputs.notebook": "show",
        "unary.outputs.tables": "tabulate_findings",
        "unary.profiles": "DEFAULT PROFILES Profile",
        "unary.records": "Image Manifest",
        "unary.training.tracking": "open_tracker",
    }.items()
    for name in names.split()
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
