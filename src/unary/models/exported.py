"""An exported model: a graph that onnxruntime runs, and beside it all else that applying the model must repeat.

The folder holds ``graph.onnx``, ``model.json`` with preparation, grid, level, calibration, profile, domain and
provenance, and ``example.npz``, a synthetic picture with the answers. `read_exported` makes a `Model` of it that
`score`, `detect` and every command for files take like any other; torch is not imported. `unary.models.exporting`
writes such folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray

from unary.detectors.coarse import STEP
from unary.detectors.laplacian import Laplacian
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import read_config, require_size
from unary.errors import BundleError, DetectorError, require
from unary.models.bundle import MODEL_FILE, Model, hash_bytes, hash_content
from unary.models.consistency import check_model
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.threads import count_threads

FORMAT = 1
GRAPH_FILE = "graph.onnx"
EXAMPLE_FILE = "example.npz"


@dataclass(frozen=True)
class Silence:
    """The parts of a detector that have no say in a view whose shorter side is below so many pixels."""

    silent: tuple[str, ...]
    below_px: int


@dataclass(frozen=True)
class ExportedConfig:
    """What running a graph needs to be told.

    Attributes
    ----------
    detector
        The name of the detector that it was made of.
    size_px
        The side of its patches.
    least_side_px
        The shorter side of the smallest view that it can judge; 0 for any.
    muscle
        Whether it is told where the pectoral muscle is.
    silences
        Ever more parts that are silent, in ever smaller views.
    """

    detector: str
    size_px: int
    least_side_px: int = 0
    muscle: bool = False
    silences: tuple[Silence, ...] = ()


@dataclass(frozen=True, eq=False)
class ExportedDetector:
    """A detector as a graph, for `unary.detectors.protocol.Detector.examine` alone; it cannot learn."""

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals only"
    config: ExportedConfig
    graph: bytes = field(repr=False)
    sessions: dict[int, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """Of the detector that the graph was made of."""
        return self.config.detector

    @property
    def least_side_px(self) -> int:
        """The shorter side of the smallest view that it can judge."""
        return self.config.least_side_px

    def fit(self, normals: PatchSet, context: FitContext) -> NoReturn:
        """Refuse: what is exported has been fitted."""
        raise DetectorError(f"an exported {self.name} cannot be fitted; fit the detector and export it")

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`. Without tissue nothing is said."""
        require_size(size_px, self.config.size_px, self.name)
        if not view.mask.any():
            nothing = np.full(view.shape, np.nan, np.float32)
            return Examination(np.zeros(len(origins)), nothing if with_map else None)
        given = self.build_inputs(view, origins)
        wanted = ["scores", "map"] if with_map else ["scores"]
        scores, *maps = self.open_session().run(wanted, given)
        return Examination(scores, maps[0] if with_map else None, self._find_silent(min(view.shape)))

    def build_inputs(self, view: View, origins: Origins) -> dict[str, NDArray[Any]]:
        """Return what the graph is given, by name."""
        muscle = np.zeros([-(-length // STEP) for length in view.shape], bool)
        if self.config.muscle:
            muscle = view.coarse.muscle
        return {"pixels": view.pixels, "mask": view.mask, "muscle": muscle, "origins": origins.astype(np.int32)}

    def _find_silent(self, side_px: int) -> tuple[str, ...]:
        return next((one.silent for one in reversed(self.config.silences) if side_px < one.below_px), ())

    def open_session(self) -> Any:
        """Return onnxruntime's session for as many threads as are used here, opened once.

        A thread with a piece of its own among several (`unary.training.threads`) has a session that uses that thread
        alone. Results do not depend on the number.
        """
        threads = count_threads()
        if threads not in self.sessions:
            onnxruntime = require("onnxruntime", extra="onnxruntime")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            options.log_severity_level = 4
            options.enable_cpu_mem_arena = False  # which keeps the most that any image has needed
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            providers = ["CPUExecutionProvider"]
            self.sessions[threads] = onnxruntime.InferenceSession(self.graph, options, providers=providers)
        return self.sessions[threads]

    def get_state(self) -> DetectorState:
        """Refuse: a model is written from the detector, not from its graph."""
        raise DetectorError(f"an exported {self.name} is not written as a model again; the model that it came from is")

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """Refuse: see `get_state`."""
        raise ValueError("an exported detector has no state")


KEPT = {name: kind for name, kind in get_type_hints(Model).items() if name not in ("name", "detector", "baseline")}
Document: Any = make_dataclass(
    "exported model",
    [
        ("export_format", int),
        ("notice", str),
        ("sha256", str),  # of all else
        ("graph_sha256", str),
        ("model_sha256", str),  # of the model.json that it was made from
        ("unary", str),  # the version that exported it
        ("exported", ExportedConfig),
        ("settings", dict[str, Any]),  # of the detector
        ("baseline", dict[str, Any]),  # settings
        ("baseline_tensors", dict[str, list[float]]),
        ("parity", dict[str, Any]),
        *KEPT.items(),
    ],
)
"""What ``model.json`` of an exported model holds."""


def is_exported(content: object) -> bool:
    """Say whether this is what JSON gave of an exported model's ``model.json``."""
    return isinstance(content, dict) and "export_format" in content


def read_exported(content: Mapping[str, Any], path: Path) -> Model:
    """Return the model of a folder, from what its ``model.json``, ``path``, says.

    Raises
    ------
    BundleError
        If the graph is missing or another one, or ``model.json`` is damaged, edited or of another version.
    """
    found = content.get("export_format")
    if found != FORMAT:
        raise BundleError(
            f"{path}: an exported model of format {FORMAT} is needed, found {repr(found)[:40]}: another unary exported "
            "it; export the model again with this one"
        )
    if content.get("sha256") != hash_content(content):
        raise BundleError(
            f"{path}: its content is not what its hash (sha256) was made of: damaged, or edited; nothing in a model "
            "may be changed by hand"
        )
    place = path.with_name(GRAPH_FILE)
    try:
        document = read_config(Document, content)
        graph = place.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{place}: the graph is missing; copy the whole folder") from error
    except OSError as error:
        raise BundleError(f"{place}: the graph cannot be read ({error.strerror})") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path}: damaged, or of another version: {error}") from error
    if hash_bytes(graph) != document.graph_sha256:
        raise BundleError(
            f"{place}: not the graph that {MODEL_FILE} was written with; damaged, changed or another model's"
        )
    tensors = {name: np.asarray(values, np.float64) for name, values in document.baseline_tensors.items()}
    try:
        baseline = Laplacian.from_state(DetectorState(document.baseline, tensors))
        kept = {name: getattr(document, name) for name in KEPT}
        detector = ExportedDetector(document.exported, graph)
        model = Model(name=document.exported.detector, detector=detector, baseline=baseline, **kept)
        check_model(model)
    except Exception as error:
        raise BundleError(f"{path}: damaged, or of another version: {error}") from error
    return model
