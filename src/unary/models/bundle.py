"""A fitted detector on disk: a folder with its numbers, how images are prepared, and where the model came from.

``model.json`` holds configuration and provenance, ``weights.safetensors`` the tensors of a learned detector. Nothing is
pickled. Every field is checked when it is read. A model of a detector that is not unary's own names its class, and the
module of that name is imported; of any other model no code is run.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, make_dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from unary.detectors import find_detector_class, name_of
from unary.detectors.laplacian import Laplacian
from unary.detectors.protocol import Detector, DetectorState
from unary.detectors.states import describe_config, read_config
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
_OWN, _BASELINE = "detector.", "baseline."  # tensors of either, in one file


@dataclass(frozen=True)
class Provenance:
    """Where a model came from.

    Attributes
    ----------
    patient_hashes
        SHA-256 of each patient's identifier, sorted, those held out included: enough to refuse an evaluation on
        patients that the model has seen, without naming them.
    data_hash
        Of the training patches (`unary.patches.collection.Collection.data_hash`).
    images, patches, held_out_patches, skipped
        How many images were used, patches trained on, patches of held-out patients, and images that could not be used.
    seed
        Of the draw of held-out patients, and of the training.
    versions
        As `describe_versions`.
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
    level
        Findings are drawn where the map exceeds it; set on training images, and below every operating point that counts
        findings.
    calibration
        Of held-out normal patients; None as long as there is none.
    baseline
        The detector without learning, fitted on the same patches, so that every evaluation can show both.
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
        known = "not calibrated" if self.calibration is None else f"calibrated on {self.calibration.patients} patients"
        return (
            f"Model({self.name}, {self.profile.name}, {self.grid.size_px} px patches at {place}, "
            f"{self.provenance.patches} patches of {self.provenance.images} images, {known})"
        )

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write the model; see `write_model`."""
        write_model(self, Path(folder), overwrite=overwrite)


_KEPT = {name: kind for name, kind in get_type_hints(Model).items() if name not in ("name", "detector", "baseline")}
_Document: Any = make_dataclass(
    "model",
    [
        ("format", int),
        ("notice", str),
        ("detector", str),
        ("weights_sha256", str),
        *((name, dict[str, Any]) for name in ("state", "baseline")),  # the settings alone, without tensors
        *_KEPT.items(),
    ],
)
"""What ``model.json`` holds."""


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
            raise BundleError(
                f"{folder}: there is a model already; choose another folder, or replace it (overwrite=True, "
                "--overwrite)"
            )
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
    own, name = model.detector, name_of(model.detector)
    try:
        found: object = find_detector_class(name)
    except DetectorError:
        found = None
    if found is not type(own):
        raise BundleError(
            f"a model of {name!r} could not be read again: define the class at the top level of a module that can be "
            "imported"
        )
    state, baseline = own.get_state(), model.baseline.get_state()
    weights_hash = _write_weights(model.name, {_OWN: state.tensors, _BASELINE: baseline.tensors}, folder)
    kept = {name: getattr(model, name) for name in _KEPT}
    document = _Document(
        FORMAT, NOTICE, model.name, weights_hash, dict(state.settings), dict(baseline.settings), **kept
    )
    try:
        text = json.dumps(describe_config(document), indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"{folder}: settings of {model.name!r} are not what JSON can hold ({error})") from error
    with replacing(folder / MODEL_FILE) as partial:
        partial.write_text(text, encoding="utf-8")


def _write_weights(name: str, parts: Mapping[str, Mapping[str, NDArray[Any]]], folder: Path) -> str:
    """Write the tensors of both detectors into one file, and return its hash."""
    tensors = {f"{part}{key}": np.ascontiguousarray(parts[part][key]) for part in parts for key in parts[part]}
    for key, values in tensors.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BundleError(f"{folder}: the tensor {key!r} of {name!r} is not finite; has training diverged?")
    try:
        with replacing(folder / WEIGHTS_FILE) as partial:
            save_file(tensors, partial)
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
        raise BundleError(f"{path}: detector: {error}") from error
    tensors = _read_weights(folder / WEIGHTS_FILE, document.weights_sha256)
    return Model(
        name=document.detector,
        detector=_restore(own, document.state, tensors, _OWN, f"{path}: state"),
        baseline=_restore(Laplacian, document.baseline, tensors, _BASELINE, f"{path}: baseline"),
        **{name: getattr(document, name) for name in _KEPT},
    )


def _read_document(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path.parent}: no {MODEL_FILE} there; is it a folder that `unary fit` wrote?") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not readable as JSON ({error})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        earlier = isinstance(found, int) and 1 <= found < FORMAT
        cause = "an earlier unary wrote this model: fit it again" if earlier else "of a later version, or no model?"
        raise BundleError(f"{path}: format {FORMAT} is needed, found {found!r}; {cause}")
    try:
        return read_config(_Document, content)
    except ValueError as error:
        raise BundleError(f"{path}: damaged, or of another version: {error}") from error


def _read_weights(path: Path, expected: str) -> dict[str, NDArray[Any]]:
    if not path.exists():
        raise BundleError(f"{path}: the weights are missing; copy the whole model folder")
    if hash_file(path) != expected:
        raise BundleError(f"{path}: not the weights that {MODEL_FILE} was written with; damaged or from another model")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not readable as safetensors ({error})") from error


def _restore(
    own: type[Any], settings: dict[str, Any], tensors: Mapping[str, NDArray[Any]], prefix: str, where: str
) -> Any:
    """The detector of a state; what its class makes of a damaged one is told in one line."""
    part = {key.removeprefix(prefix): values for key, values in tensors.items() if key.startswith(prefix)}
    try:
        restored = own.from_state(DetectorState(settings, part))
        again = restored.get_state()
    except KeyError as error:
        raise BundleError(f"{where}: {error} is missing; damaged, or of another version?") from error
    except (TypeError, ValueError, RuntimeError, DetectorError) as error:
        raise BundleError(f"{where}: damaged, or of another version: {error}") from error
    foreign = next(chain(_find_foreign(settings, again.settings), _find_foreign(part, again.tensors)), None)
    if foreign is not None:
        raise BundleError(f"{where}: {foreign!r} is unknown to {own.__name__}; damaged, or of another version?")
    return restored


def _find_foreign(given: object, kept: object) -> Iterator[str]:
    """Names that a detector has passed over, at any depth."""
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        for key, value in given.items():
            yield from _find_foreign(value, kept[key]) if key in kept else (key,)


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
