"""unary: one-class anomaly detection in medical images.

Learn what normal tissue looks like from normal images alone, then show where a new image departs from it.
Research software; not for diagnosis.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "FitConfig": "unary.models.pipeline",
    "GridConfig": "unary.patches.grid",
    "PreparationConfig": "unary.patches.preparation",
    "TrainingConfig": "unary.training.engine",
    "UnaryError": "unary.errors",
    "calibrate_model": "unary.models.commissioning",
    "detect": "unary.models.detection",
    "evaluate": "unary.models.pipeline",
    "fit": "unary.models.pipeline",
    "read_image": "unary.images.reading",
    "read_manifest": "unary.datasets.manifest",
    "read_model": "unary.models.bundle",
    "score": "unary.models.pipeline",
    "split_manifest": "unary.datasets.splits",
    "write_manifest": "unary.datasets.manifest",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes a second, and ``unary --help`` needs none of it."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'unary' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
