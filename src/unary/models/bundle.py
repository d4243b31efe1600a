"""A fitted detector on disk: a folder with its numbers, how images are prepared, and where the model came from.

``model.json`` holds configuration and provenance, ``weights.safetensors`` the tensors of a learned detector. Nothing is
pickled. Every field is checked when it is read. A model of a detector that is not unary's own names its class, and the
module of that name is imported; of any other model no code is run.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from unary.detectors import find_detector_class, name_of
from unary.detectors.laplacian import Laplacian
from unary.detectors.protocol import Detector, DetectorState
from unary.errors import BundleError, DetectorError
from unary.files import replacing
from unary.models.calibration import Calibration
from unary.models.findings import FindingsConfig
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import Profile
from unary.records import NOTICE, Domain, ModelIdentity

FORMAT = 3
MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"

T = TypeVar("T")


@dataclass(frozen=True)
class Provenance:
    """Where a model came from.

    Attributes
    ----------
    patient_hashes
        SHA-256 of each training patient's identifier, sorted: enough to refuse an evaluation on patients that the
        model has seen, without naming them. Held-out patients count.
    data_hash
        Of the training patches (`unary.patches.collection.Collection.data_hash`).
    images, patches
        How many images were used, and how many patches were trained on.
    held_out_patches
        How many patches of held-out patients set operating points.
    skipped
        How many images could not be used.
    seed
        Of the draw of held-out patients, and of the training.
    versions
        Of unary, Python, numpy and torch.
    """

    patient_hashes: tuple[str, ...]
    data_hash: str
    images: int
    patches: int
    held_out_patches: int
    skipped: int
    seed: int
    versions: dict[str, str]


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A fitted detector with everything that applying it must repeat.

    Attributes
    ----------
    name
        Of the detector: one of `unary.detectors.DETECTORS`, or ``module:Class``.
    detector
        Fitted.
    profile
        What is particular to the kind of image.
    preparation, grid
        How images are prepared, and where patches lie.
    level
        Findings are drawn where the map exceeds it; set on training images, and below every operating point that counts
        findings.
    findings
        How regions are merged and scored.
    calibration
        Of held-out normal patients; None as long as there is none.
    domain
        What the training images have in common.
    baseline
        The detector without learning, fitted on the same patches, so that every evaluation can show both.
    provenance
        Where the model came from.
    """

    name: str
    detector: Detector
    profile: Profile
    preparation: PreparationConfig
    grid: GridConfig
    level: float
    findings: FindingsConfig
    calibration: Calibration | None
    domain: Domain
    baseline: Laplacian
    provenance: Provenance

    def __repr__(self) -> str:
        spacing = self.preparation.working_spacing_mm
        place = "stored pixels" if spacing is None else f"{spacing:g} mm"
        known = "not calibrated" if self.calibration is None else f"{self.calibration.patients} patients calibrated it"
        return (
            f"Model({self.name}, {self.profile.name}, {self.grid.size_px} px patches at {place}, "
            f"{self.provenance.patches} patches of {self.provenance.images} images, {known})"
        )

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write the model; see `write_model`."""
        write_model(self, Path(folder), overwrite=overwrite)


@dataclass(frozen=True)
class _State:
    """A detector's state as JSON holds it: its tensors lie in another file, or, where there are few numbers, here."""

    settings: dict[str, Any]
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Document:
    """What ``model.json`` holds, in the order of `Model`."""

    format: int
    notice: str
    detector: str
    state: _State
    weights_sha256: str | None
    profile: Profile
    preparation: PreparationConfig
    grid: GridConfig
    level: float
    findings: FindingsConfig
    calibration: Calibration | None
    domain: Domain
    baseline: _State
    provenance: Provenance


def hash_patients(patients: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted SHA-256 of distinct patient identifiers."""
    return tuple(sorted(hashlib.sha256(patient.encode()).hexdigest() for patient in set(patients)))


def require_model_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that a model must not be written to, before hours are spent on training it.

    Raises
    ------
    BundleError
        If it is a file, holds something else than a model, or holds a model and ``overwrite`` is False.
    """
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"{folder}: a folder is needed, and there is a file of that name")
    if (folder / MODEL_FILE).exists():
        if not overwrite:
            raise BundleError(f"{folder}: there is a model already; choose another folder, or allow it with overwrite")
    elif folder.exists() and any(folder.iterdir()):
        raise BundleError(f"{folder}: the folder is not empty and holds no model; choose another")


def write_model(model: Model, folder: Path, *, overwrite: bool = False) -> None:
    """Write a model folder; ``model.json`` comes last, so that a folder that has it is whole.

    Raises
    ------
    BundleError
        As `require_model_folder`; if the class of an own detector could not be found again, or its state is not what
        JSON and safetensors can hold.
    """
    require_model_folder(folder, overwrite=overwrite)
    require_findable(model.detector)
    state = model.detector.get_state()
    if state.tensors:
        weights_hash: str | None = _write_weights(model.name, state.tensors, folder)
    else:
        weights_hash = None
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # of a model that is replaced
    parts = {field.name: getattr(model, field.name) for field in fields(model)}
    del parts["name"]
    document = _Document(
        **parts
        | {
            "format": FORMAT,
            "notice": NOTICE,
            "detector": model.name,
            "state": _State(dict(state.settings), tuple(sorted(state.tensors))),
            "weights_sha256": weights_hash,
            "baseline": _State(dict(model.baseline.get_state().settings)),
        }
    )
    try:
        text = json.dumps(msgspec.to_builtins(document), indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"{folder}: settings of {model.name!r} are not what JSON can hold ({error})") from error
    with replacing(folder / MODEL_FILE) as partial:
        partial.write_text(text, encoding="utf-8")


def require_findable(detector: Detector) -> None:
    """Refuse a detector whose class could not be found when a model of it is read.

    Raises
    ------
    BundleError
        If it is defined inside a function, or its module cannot be imported.
    """
    name = name_of(detector)
    try:
        found: object = find_detector_class(name)
    except DetectorError:
        found = None
    if found is not type(detector):
        raise BundleError(
            f"a model of {name!r} could not be read again: define the class at the top level of a module that can be "
            "imported"
        )


def _write_weights(name: str, tensors: Mapping[str, NDArray[Any]], folder: Path) -> str:
    kept = {key: np.ascontiguousarray(values) for key, values in tensors.items()}
    wrong = [key for key, values in kept.items() if values.dtype.kind == "f" and not np.isfinite(values).all()]
    if wrong:
        raise BundleError(f"{folder}: the tensor {wrong[0]!r} of {name!r} is not finite; has training diverged?")
    try:
        with replacing(folder / WEIGHTS_FILE) as partial:
            save_file(kept, partial)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder}: tensors of {name!r} are not what safetensors can hold ({error!r})") from error
    return hash_file(folder / WEIGHTS_FILE)


def read_model(folder: Path | str) -> Model:
    """Read a model folder.

    Raises
    ------
    BundleError
        If the folder, its ``model.json`` or its weights are missing, damaged or of another program or version; the
        field is named.
    """
    folder = Path(folder)
    path = folder / MODEL_FILE
    document = _read_document(path)
    try:
        own = find_detector_class(document.detector)
    except DetectorError as error:
        raise BundleError(f"{path}: $.detector: {error}") from error
    tensors = _read_weights(document, folder)
    detector = _restore(own, document.state, tensors, f"{path}: $.state")
    return Model(
        document.detector,
        detector,
        document.profile,
        document.preparation,
        document.grid,
        document.level,
        document.findings,
        document.calibration,
        document.domain,
        _restore(Laplacian, document.baseline, {}, f"{path}: $.baseline"),
        document.provenance,
    )


def _read_document(path: Path) -> _Document:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path.parent}: no {MODEL_FILE} there; is it a folder that `unary fit` wrote?") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path}: not readable as JSON ({error})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        cause = (
            "an earlier version of unary wrote this model; fit it again"
            if found in (1, 2)
            else "written by another version or program?"
        )
        raise BundleError(f"{path}: format {FORMAT} is needed, found {found!r}; {cause}")
    return _convert(content, _Document, str(path))


def _convert(content: object, wanted: type[T], where: str) -> T:
    """Turn plain values into a dataclass; whatever is missing, unknown, not finite or out of range is named."""
    place = _find_not_finite(content, "$")
    if place is not None:
        raise BundleError(f"{where}: {place} is not a finite number; the file is damaged")
    try:
        converted = msgspec.convert(content, wanted)
    except msgspec.ValidationError as error:
        raise BundleError(f"{where}: a setting is missing or wrong: {error}") from error
    place = _find_unknown(content, converted, "$")
    if place is not None:
        raise BundleError(f"{where}: {place} is unknown to this version of unary; of another version, or damaged?")
    return converted


def _find_not_finite(content: object, place: str) -> str | None:
    """Where a number is NaN or infinite, None if nowhere."""
    if isinstance(content, float):
        return None if math.isfinite(content) else place
    if isinstance(content, dict):
        parts = ((f"{place}.{key}", value) for key, value in content.items())
    elif isinstance(content, list):
        parts = ((f"{place}[{number}]", value) for number, value in enumerate(content))
    else:
        return None
    return next((wrong for inside, value in parts if (wrong := _find_not_finite(value, inside)) is not None), None)


def _find_unknown(content: object, converted: object, place: str) -> str | None:
    """Where a field is that no dataclass has, None if nowhere; msgspec passes over them."""
    if isinstance(content, dict) and is_dataclass(converted):
        known = {field.name for field in fields(converted)}
        parts = [(f"{place}.{key}", value, getattr(converted, key, None)) for key, value in content.items()]
        wrong = next((f"{place}.{key}" for key in content if key not in known), None)
        if wrong is not None:
            return wrong
    elif isinstance(content, list) and isinstance(converted, tuple):
        parts = [(f"{place}[{k}]", *pair) for k, pair in enumerate(zip(content, converted, strict=True))]
    else:
        return None
    return next((wrong for inside, *pair in parts if (wrong := _find_unknown(*pair, inside)) is not None), None)


def _read_weights(document: _Document, folder: Path) -> dict[str, NDArray[Any]]:
    path = folder / WEIGHTS_FILE
    if document.weights_sha256 is None:
        if document.state.tensors:
            raise BundleError(f"{folder / MODEL_FILE}: $.weights_sha256 is missing, and the detector has weights")
        return {}
    if not path.exists():
        raise BundleError(f"{path}: the weights are missing; copy the whole model folder")
    if hash_file(path) != document.weights_sha256:
        raise BundleError(f"{path}: not the weights that {MODEL_FILE} was written with; damaged or from another model")
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not readable as safetensors ({error})") from error
    if tuple(sorted(tensors)) != document.state.tensors:
        raise BundleError(f"{path}: other tensors than {MODEL_FILE} lists in $.state.tensors")
    return tensors


def _restore(own: type[Any], state: _State, tensors: Mapping[str, NDArray[Any]], where: str) -> Any:
    """A detector of its state; its configuration is checked field by field where it is kept as ``config``."""
    kept, config = state.settings.get("config"), getattr(own(), "config", None)
    if isinstance(kept, dict) and is_dataclass(config):
        _convert(kept, type(config), f"{where}.settings.config")
    try:
        return own.from_state(DetectorState(state.settings, tensors))
    except (KeyError, TypeError, ValueError, RuntimeError, DetectorError) as error:
        raise BundleError(f"{where}: a setting or tensor is missing, unknown or out of range ({error!r})") from error


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identify_model(model: Model, folder: Path) -> ModelIdentity:
    """Return what every result says of the model that was read from a folder."""
    return ModelIdentity(
        detector=model.name,
        version=metadata.version("unary"),
        sha256=hash_file(folder / MODEL_FILE),
        data_hash=model.provenance.data_hash,
    )


def describe_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("unary", "numpy", "scipy", "scikit-image", "torch", "pydicom")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
