"""The detectors, each named once: a new one is one class in one module, and one line here."""

from __future__ import annotations

import importlib
import re
from typing import Any

from unary.errors import DetectorError

DETECTORS: dict[str, str] = {
    "fusion": "unary.detectors.fusion:Fusion",
    "fusion_prior": "unary.detectors.fusion:FusionPrior",
    "laplacian": "unary.detectors.laplacian:Laplacian",
    "dense_laplacian": "unary.detectors.dense_laplacian:DenseLaplacian",
    "prominence": "unary.detectors.prominence:Prominence",
    "clusters": "unary.detectors.clusters:Clusters",
    "mass": "unary.detectors.mass:Mass",
    "blind_spot": "unary.detectors.blind_spot:BlindSpot",
    "segmentation": "unary.detectors.segmentation:Segmentation",
    "denoising": "unary.detectors.denoising:Denoising",
    "wei2018": "unary.detectors.wei2018.detector:Wei2018",
    "residual": "unary.detectors.residual:Residual",
    "residual_dssim": "unary.detectors.residual:Dssim",
    "variational": "unary.detectors.variational:Variational",
    "nearest_neighbour": "unary.detectors.nearest_neighbour:NearestNeighbour",
}
"""By name, the module and the class; a class is imported when it is asked for."""


def find_detector_class(name: str) -> type[Any]:
    """Return a detector's class by its name in `DETECTORS`, or by ``module:Class``.

    Raises
    ------
    DetectorError
        If there is none, or it lacks what a detector must have.
    """
    place = DETECTORS.get(name, name)
    if not re.fullmatch(r"[\w.]+:\w+", place):
        raise DetectorError(
            f"no detector is called {name[:80]!r}; there are {', '.join(DETECTORS)}, and your own as module:Class"
        )
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise
        raise DetectorError(f"the detector {name!r} is not there: no module {module!r} can be imported") from error
    except AttributeError as error:
        raise DetectorError(f"the detector {name!r} is not there: {module} has no {attribute!r}") from error
    check_detector(found)
    return found  # type: ignore[no-any-return]


def check_detector(detector: object) -> None:
    """Refuse by a `DetectorError` what is no detector, class or object, naming what it lacks."""
    needed = ("grid", "knowledge", "fit", "examine", "get_state", "from_state")
    missing = [name for name in needed if not hasattr(detector, name)]
    if missing:
        shown = detector.__name__ if isinstance(detector, type) else type(detector).__name__
        raise DetectorError(
            f"{shown} is no detector: it has no {', '.join(missing)} (see unary.detectors.protocol.Detector)"
        )


def name_of(detector: object) -> str:
    """Return the name by which `find_detector_class` finds a detector's class again."""
    own = detector if isinstance(detector, type) else type(detector)
    place = f"{own.__module__}:{own.__qualname__}"
    return next((name for name, listed in DETECTORS.items() if listed == place), place)
