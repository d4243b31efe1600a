"""Detectors as ONNX graphs: from a prepared image, its mask and its patches to an anomaly map and patch scores.

One graph holds all that a detector does after preparation, so that whoever runs it needs no unary and no torch. What a
graph cannot hold well is an input: where the pectoral muscle is (`unary.detectors.pectoral`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from unary.detectors import name_of
from unary.detectors.blind_spot import BlindSpot
from unary.detectors.clusters import Clusters
from unary.detectors.denoising import Denoising
from unary.detectors.dense_laplacian import DenseLaplacian
from unary.detectors.fusion import Fusion, FusionPrior
from unary.detectors.graphs.builder import Graph
from unary.detectors.graphs.filters import enlarge_cells
from unary.detectors.graphs.fusion import examine_fusion
from unary.detectors.graphs.networks import examine_blind_spot, examine_unet
from unary.detectors.graphs.regions import examine_mass, examine_prominence
from unary.detectors.graphs.specks import examine_clusters, examine_dense_laplacian
from unary.detectors.graphs.view import Examined, Inputs, read_inputs
from unary.detectors.graphs.windows import (
    examine_autoencoder,
    examine_dssim,
    examine_laplacian,
    examine_residual,
    examine_variational,
    examine_windows,
)
from unary.detectors.laplacian import Laplacian
from unary.detectors.mass import Mass
from unary.detectors.nearest_neighbour import NearestNeighbour
from unary.detectors.prominence import Prominence
from unary.detectors.protocol import Detector
from unary.detectors.residual import Dssim, Residual
from unary.detectors.segmentation import Segmentation
from unary.detectors.states import require_fitted
from unary.detectors.surprisal import Surprisal
from unary.detectors.variational import Variational
from unary.detectors.wei2018.detector import Wei2018
from unary.errors import DetectorError

_DENSE: dict[type[Any], Any] = {
    DenseLaplacian: examine_dense_laplacian,
    Clusters: examine_clusters,
    BlindSpot: examine_blind_spot,
    Denoising: examine_unet,
    Segmentation: examine_unet,
    Mass: examine_mass,
    Prominence: examine_prominence,
}
_PATCHES: dict[type[Any], Any] = {
    Laplacian: examine_laplacian,
    Wei2018: examine_autoencoder,
    Variational: examine_variational,
    Residual: examine_residual,
    Dssim: examine_dssim,
}


def list_parts(detector: Detector) -> list[Detector]:
    """Return the fitted parts of a fusion; of any other detector, itself."""
    if isinstance(detector, Fusion | FusionPrior):
        return [part.detector for part in require_fitted(detector.parts, name_of(detector))]
    return [detector]


def reads_muscle(detector: Detector) -> bool:
    """Say whether a detector leaves the pectoral muscle out, and so must be told where it is."""
    return isinstance(detector, Mass | Prominence) and detector.config.muscle


def smooth_out(detector: Detector) -> Detector | None:
    """Return a detector without what makes last digits count: to compare arithmetics with.

    That is rounding to bfloat16, and in a fusion the small step of a surprisal where its tail starts
    (`unary.detectors.surprisal`). None where there is neither.
    """
    if isinstance(detector, BlindSpot):
        network = require_fitted(detector.network, "blind_spot")
        return dataclasses.replace(detector, network=network.without_rounding())
    if not isinstance(detector, Fusion | FusionPrior):
        return None
    parts = require_fitted(detector.parts, name_of(detector))
    members = tuple(
        dataclasses.replace(
            part, detector=smooth_out(part.detector) or part.detector, surprisal=_join_tail(part.surprisal)
        )
        for part in parts
    )
    stand_ins = tuple(
        dataclasses.replace(one, whole=_join_tail(one.whole), rest=_join_tail(one.rest)) for one in parts.stand_ins
    )
    return dataclasses.replace(detector, parts=dataclasses.replace(parts, members=members, stand_ins=stand_ins))


def _join_tail(surprisal: Surprisal) -> Surprisal:
    """The same, whose body ends where and as high as its tail starts."""
    values, start = surprisal.values, surprisal.tail_start
    if len(values) < 2 or not values[-2] < start < values[-1]:
        return surprisal
    heights = (*surprisal.surprisals[:-1], surprisal.tail_surprisal)
    return dataclasses.replace(surprisal, values=(*values[:-1], start), surprisals=heights)


def find_step(detector: Detector) -> float:
    """Return by how much a fusion's sum may step where tails of its parts start; 0 of any other detector."""
    if not isinstance(detector, Fusion | FusionPrior):
        return 0.0
    steps = []
    for part in require_fitted(detector.parts, name_of(detector)):
        start = np.asarray([part.surprisal.tail_start])
        steps.append(part.weight * abs(part.surprisal.tail_surprisal - float(part.surprisal(start)[0])))
    return float(sum(steps))


def why_not_exportable(detector: Detector) -> str | None:
    """Return why a detector cannot become a graph, or None."""
    for part in list_parts(detector):
        name = name_of(part)
        if isinstance(part, NearestNeighbour):
            return (
                "nearest_neighbour keeps its normal pictures and compares with all of them; a graph would give them "
                "away with the model and save nothing"
            )
        if type(part) not in _DENSE and type(part) not in _PATCHES:
            return f"{name} is no detector of unary's own, and only its author knows what it computes"
    return None


def build_graph(detector: Detector, size_px: int) -> Any:
    """Return the `onnx.ModelProto` of a fitted detector, for patches of a side.

    Inputs are ``pixels``, (rows, cols), uint16; ``mask``, (rows, cols), bool, with tissue somewhere; ``muscle``,
    (ceil(rows / 8), ceil(cols / 8)), bool; ``origins``, (n, 2), int32. Outputs are ``map``, (rows, cols), float32, and
    ``scores``, (n,), float64: as `unary.detectors.protocol.Examination`.

    Raises
    ------
    DetectorError
        If the detector cannot become a graph, with the reason.
    MissingPackageError
        If onnx is not installed.
    """
    reason = why_not_exportable(detector)
    if reason is not None:
        raise DetectorError(f"it cannot be exported: {reason}")
    g = Graph()
    view = read_inputs(g, size_px)
    found = _examine(g, view, detector)
    cells = found.cells
    if found.step > 1:
        cells = enlarge_cells(g, cells, view.rows, view.cols, found.step)
    anomaly_map = g.where(found.seen, cells, np.float32(np.nan))
    shape = ("rows", "cols")
    inputs: dict[str, Any] = {
        "pixels": (np.uint16, shape),
        "mask": (np.bool_, shape),
        "muscle": (np.bool_, ("muscle_rows", "muscle_cols")),
        "origins": (np.int32, ("n", 2)),
    }
    return g.build_model(
        inputs, {"map": (anomaly_map, np.float32, shape), "scores": (found.scores, np.float64, ("n",))}
    )


def _examine(g: Graph, view: Inputs, detector: Detector) -> Examined:
    if isinstance(detector, Fusion | FusionPrior):
        return examine_fusion(g, view, require_fitted(detector.parts, name_of(detector)), _examine)
    if type(detector) in _DENSE:
        found: Examined = _DENSE[type(detector)](g, view, detector)
        return found
    return examine_windows(g, view, _PATCHES[type(detector)](detector))
