"""Writing a model as an ONNX graph, once it is shown to say what the model says.

Graph and model are compared on synthetic pictures and on the images given (`unary.models.export_parity`). What differs
too much is not written.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.detectors import name_of
from unary.detectors.fusion import Fusion, FusionPrior
from unary.detectors.graphs import build_graph, list_parts, reads_muscle, why_not_exportable
from unary.detectors.protocol import View
from unary.detectors.states import describe_config
from unary.errors import BundleError, DetectorError, require
from unary.files import hash_file, locking
from unary.models.bundle import MODEL_FILE, Model, hash_bytes, hash_content, read_model
from unary.models.export_parity import LIMIT, Parity, choose_pictures, compare_models, describe_parity
from unary.models.exported import (
    EXAMPLE_FILE,
    FORMAT,
    GRAPH_FILE,
    KEPT,
    ExportedConfig,
    ExportedDetector,
    Silence,
)
from unary.models.patients import SeenPatients
from unary.models.probe import draw_picture
from unary.patches.grid import tissue_origins
from unary.patches.patch_set import cut_window, find_window
from unary.patches.preparation import prepare_image
from unary.records import NOTICE, Image

_FILES = (GRAPH_FILE, MODEL_FILE, EXAMPLE_FILE)


@dataclass(frozen=True)
class Export:
    """What was written, and how it was compared."""

    folder: Path
    detector: str
    graph_bytes: int
    parities: tuple[Parity, ...]


def export_model(
    model_folder: Path | str,
    out: Path | str,
    *,
    images: Callable[[Model], Iterable[tuple[str, Image]]] = lambda model: (),
    overwrite: bool = False,
) -> Export:
    """Write the model of a folder as an ONNX graph, with all that applying it needs, into another folder.

    Parameters
    ----------
    images
        Takes the model and yields names and images on which graph and model are compared, beside synthetic pictures.
    overwrite
        Whether an export that is there is replaced.

    Raises
    ------
    DetectorError
        If the detector cannot become a graph, with the reason.
    BundleError
        If ``out`` cannot be used, the model cannot be read, or the graph does not say what the model says; then ``out``
        is as it was.
    MissingPackageError
        If onnx or onnxruntime is not installed.
    """
    folder, out = Path(model_folder), Path(out)
    require_export_folder(out, overwrite=overwrite)
    model = read_model(folder)
    if isinstance(model.detector, ExportedDetector):
        raise BundleError(f"{folder}: that is an exported model already; export the model that it came from")
    reason = why_not_exportable(model.detector)
    if reason is not None:
        raise DetectorError(f"{folder}: {model.name} cannot be exported: {reason}")
    require("onnx", extra="onnx")
    require("onnxruntime", extra="onnx")
    graph = _write_graph(model, folder)
    exported = ExportedDetector(_describe_running(model), graph)
    parities: list[Parity] = []
    for parity in compare_models(model, exported, images(model)):
        parities.append(parity)
        if parity.is_close:
            continue
        raise BundleError(
            f"{out}: nothing is written, for the graph does not say what the model says: more than {LIMIT:g} of the "
            f"largest value apart; {describe_parity(parity)}"
        )
    document = _describe_export(model, folder, graph, parities)
    _write_folder(graph, document, _build_example(model, exported), out)
    return Export(out, model.name, len(graph), tuple(parities))


def require_export_folder(out: Path, *, overwrite: bool) -> None:
    """Refuse by a `BundleError` a folder that an export must not be written to."""
    if out.exists() and not out.is_dir():
        raise BundleError(f"{out}: a folder is needed, and there is a file of that name")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / GRAPH_FILE).is_file():
        raise BundleError(f"{out}: the folder is not empty and holds no exported model; choose another")
    if not overwrite:
        raise BundleError(
            f"{out}: there is an exported model already; choose another folder, or replace it (--overwrite)"
        )


def _describe_running(model: Model) -> ExportedConfig:
    detector = model.detector
    stand_ins = detector.parts.stand_ins if isinstance(detector, Fusion | FusionPrior) and detector.parts else ()
    silences, heard = [], list(detector.parts or ()) if isinstance(detector, Fusion | FusionPrior) else []
    for one in stand_ins:
        least = max(getattr(part.detector, "least_side_px", 0) for part in heard)
        silences.append(Silence(one.silent, least))
        heard = [part for part in heard if part.name not in one.silent]
    return ExportedConfig(
        detector=model.name,
        size_px=model.grid.size_px,
        least_side_px=getattr(detector, "least_side_px", 0),
        muscle=any(reads_muscle(part) for part in list_parts(detector)),
        silences=tuple(silences),
    )


def _write_graph(model: Model, folder: Path) -> bytes:
    """The graph as bytes, with what belongs to it as metadata: texts, of JSON but for the notice."""
    graph = build_graph(model.detector, model.grid.size_px)
    about = {
        "unary.notice": NOTICE,
        "unary.version": metadata.version("unary"),
        "unary.export_format": FORMAT,
        "unary.model_sha256": hash_file(folder / MODEL_FILE),
        "unary.running": describe_config(_describe_running(model)),
        "unary.settings": _describe_settings(model),
        **{f"unary.{name}": value for name, value in _describe_kept(model).items()},
    }
    for key, value in about.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    graph.doc_string = NOTICE
    serialized: bytes = graph.SerializeToString()
    return serialized


def _describe_kept(model: Model) -> dict[str, Any]:
    """Everything but the detector, as JSON; of the patients that the model was fitted on, their number alone."""
    seen = SeenPatients(model.provenance.seen.count, None, ())
    nameless = dataclasses.replace(model.provenance, seen=seen)
    document = make_dataclass("kept", list(KEPT.items()))
    return describe_config(document(**{name: getattr(model, name) for name in KEPT} | {"provenance": nameless}))


def _describe_settings(model: Model) -> dict[str, Any]:
    config = describe_config(model.detector.config)
    return {"config": config, "detector": name_of(model.detector)}


def _describe_export(model: Model, folder: Path, graph: bytes, parities: Sequence[Parity]) -> bytes:
    """The content of ``model.json``."""
    baseline = model.baseline.get_state()
    content = {
        "export_format": FORMAT,
        "notice": NOTICE,
        "graph_sha256": hash_bytes(graph),
        "model_sha256": hash_file(folder / MODEL_FILE),
        "unary": metadata.version("unary"),
        "exported": describe_config(_describe_running(model)),
        "settings": _describe_settings(model),
        "baseline": dict(baseline.settings),
        "baseline_tensors": {name: values.tolist() for name, values in baseline.tensors.items()},
        "parity": _summarize(parities),
        **_describe_kept(model),
    }
    content = json.loads(json.dumps(content))
    content["sha256"] = hash_content(content)
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _summarize(parities: Sequence[Parity]) -> dict[str, Any]:
    """How graph and model were compared, without a name of an image."""
    exact = [parity.exact for parity in parities if parity.exact is not None]
    return {
        "images": len(parities),
        "map": max(parity.map for parity in parities),
        "scores": max(parity.scores for parity in parities),
        "image_score": max(parity.image_score for parity in parities),
        "without_steps": max(exact) if exact else None,
        "other_findings": sum(bool(parity.findings) for parity in parities),
    }


def _write_folder(graph: bytes, document: bytes, example: Mapping[str, NDArray[Any]], out: Path) -> None:
    """Write all files beside the folder, read them back, and put them in its place."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise BundleError(f"{out.parent}: nothing can be written there ({error.strerror})") from error
    try:
        (partial / GRAPH_FILE).write_bytes(graph)
        (partial / MODEL_FILE).write_bytes(document)
        np.savez_compressed(partial / EXAMPLE_FILE, allow_pickle=False, **example)
        read_model(partial)
        with locking(out):
            for name in _FILES:
                os.replace(partial / name, out / name)
    except OSError as error:
        raise BundleError(f"{out}: the export could not be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _build_example(model: Model, exported: ExportedDetector) -> dict[str, NDArray[Any]]:
    """The test picture as the graph is given it, and its answers."""
    picture = choose_pictures(model, exported.config)["the test picture"]
    prepared = prepare_image(draw_picture(picture), model.preparation)
    origins = tissue_origins(prepared.mask, model.grid)
    window = find_window(prepared.mask, origins, size_px=model.grid.size_px)
    view = View(cut_window(prepared.pixels, window), cut_window(prepared.mask, window))
    given = exported.build_inputs(view, origins - np.array([window[0].start, window[1].start], np.int32))
    anomaly_map, scores = exported.open_session().run(["map", "scores"], given)
    return {**given, "map": anomaly_map, "scores": scores}
