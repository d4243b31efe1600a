"""unary: one-class anomaly detection in medical images.

Learn what normal tissue looks like from normal images alone, then show where a new image departs from it.
Research software; not for diagnosis.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "FitConfig": "unary.pipeline",
    "GridConfig": "unary.patches",
    "PreparationConfig": "unary.prepare",
    "TrainingConfig": "unary.training",
    "UnaryError": "unary.errors",
    "calibrate_model": "unary.commissioning",
    "detect": "unary.detection",
    "evaluate": "unary.pipeline",
    "fit": "unary.pipeline",
    "read_image": "unary.sources.images",
    "read_manifest": "unary.sources.manifest",
    "read_model": "unary.bundle",
    "score": "unary.pipeline",
    "split_manifest": "unary.splits",
    "write_manifest": "unary.sources.manifest",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes a second, and ``unary --help`` needs none of it."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'unary' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
