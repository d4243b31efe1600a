"""A trained model on disk: a folder with the weights, how images are prepared, and where the model came from.

``model.json`` holds configuration and provenance, ``weights.safetensors`` the numbers of a learned detector. Nothing is
pickled, so that opening a model from elsewhere runs no code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unary.detectors.fusion import Fusion
from unary.detectors.fusion_parts import describe_fusion, restore_fusion
from unary.detectors.laplacian import Laplacian, LaplacianConfig
from unary.detectors.protocol import Detector, ImageDetector
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, ReconstructionDetector, build_autoencoder
from unary.detectors.wei2018.native import build_reconstruction
from unary.errors import BundleError
from unary.files import replacing
from unary.models.calibration import Calibration
from unary.models.findings import FindingsConfig
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.records import Domain, ModelIdentity, OperatingPoint

FORMAT = 2
MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"

DetectorName = Literal["fusion", "fusion_prior", "wei2018", "laplacian"]
DETECTORS: tuple[DetectorName, ...] = ("fusion", "fusion_prior", "wei2018", "laplacian")


@dataclass(frozen=True)
class Provenance:
    """Where a model came from.

    Attributes
    ----------
    patient_hashes
        SHA-256 of each training patient's identifier, sorted: enough to refuse an evaluation on patients that the
        model has seen, without naming them.
    data_hash
        Of the training patches (`unary.patches.collection.Collection.data_hash`).
    images, patches
        How many images were used, and how many patches were trained on.
    threshold_patches
        How many patches of held-out patients set the thresholds; 0 when the training patches did.
    skipped
        How many images of the manifest could not be used.
    training
        The optimisation's configuration, or empty for a detector that learns no weights.
    history
        Losses and the like (`unary.training.engine.History`), or empty.
    versions
        Of unary, Python, numpy and torch.
    """

    patient_hashes: tuple[str, ...]
    data_hash: str
    images: int
    patches: int
    threshold_patches: int
    skipped: int
    training: dict[str, Any]
    history: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class DetectionSettings:
    """What turns anomaly maps of this model into findings.

    Attributes
    ----------
    level
        Findings are drawn where the map exceeds it; set on training images, and below every operating point that a
        calibration may set.
    findings
        How regions are merged and scored.
    stride_px
        Step between windows, for detectors of single patches.
    calibration
        Of held-out normal patients; None as long as there is none.
    domain
        What the training images have in common.
    """

    level: float
    findings: FindingsConfig
    stride_px: int
    calibration: Calibration | None
    domain: Domain


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted detector with everything that scoring must repeat.

    ``thresholds`` are scores by specificity, such as ``{"0.95": 0.031}``: the share of normal patches that stays at or
    below them. ``yardstick`` is the no-learning detector fitted on the same patches, so that every
    evaluation can show both. ``detection`` is None in models of versions before 0.2.
    """

    name: DetectorName
    detector: Detector | ImageDetector
    yardstick: Laplacian
    preparation: PreparationConfig
    grid: GridConfig
    thresholds: dict[str, float]
    provenance: Provenance
    detection: DetectionSettings | None = None

    def save(self, folder: Path | str) -> None:
        """Write the model; see `write_model`."""
        write_model(self, Path(folder))


def hash_patients(patients: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted SHA-256 of distinct patient identifiers."""
    return tuple(sorted(hashlib.sha256(patient.encode()).hexdigest() for patient in set(patients)))


def require_model_folder(folder: Path) -> None:
    """Refuse a folder that a model must not be written to, before hours are spent on training it.

    Raises
    ------
    BundleError
        If it is a file, or a folder that holds something else than a model.
    """
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"{folder}: a folder is needed, and there is a file of that name")
    if folder.exists() and any(folder.iterdir()) and not (folder / MODEL_FILE).exists():
        raise BundleError(f"{folder}: the folder is not empty and holds no model; choose another")


def write_model(model: Model, folder: Path) -> None:
    """Write a model folder; ``model.json`` comes last, so that a folder that has it is whole.

    Raises
    ------
    BundleError
        As `require_model_folder`.
    """
    require_model_folder(folder)
    detector = model.detector
    if isinstance(detector, ReconstructionDetector):
        settings: dict[str, Any] = dataclasses.asdict(detector.network.config)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in detector.network.state_dict().items()}
        weights_hash = _write_weights(tensors, folder)
    elif isinstance(detector, Fusion):
        settings, tensors = describe_fusion(detector)
        weights_hash = _write_weights(tensors, folder)
    elif isinstance(detector, Laplacian):
        settings, weights_hash = {}, None
    else:
        raise BundleError(f"models of the detector {model.name!r} cannot be stored")
    document = {
        "format": FORMAT,
        "notice": "Research software. Not for diagnosis.",
        "detector": model.name,
        "settings": settings,
        "yardstick": dataclasses.asdict(model.yardstick),
        "weights_sha256": weights_hash,
        "preparation": dataclasses.asdict(model.preparation),
        "grid": dataclasses.asdict(model.grid),
        "thresholds": model.thresholds,
        "provenance": dataclasses.asdict(model.provenance),
        "detection": None if model.detection is None else dataclasses.asdict(model.detection),
    }
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with replacing(folder / MODEL_FILE) as partial:
        partial.write_text(text, encoding="utf-8")


def _write_weights(tensors: dict[str, Tensor], folder: Path) -> str:
    with replacing(folder / WEIGHTS_FILE) as partial:
        save_file(tensors, partial)
    return hash_file(folder / WEIGHTS_FILE)


def read_model(folder: Path | str) -> Model:
    """Read a model folder.

    Raises
    ------
    BundleError
        If the folder, its ``model.json`` or its weights are missing, damaged or of another program or version.
    """
    folder = Path(folder)
    path = folder / MODEL_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: no {MODEL_FILE} there; is it a folder that `unary fit` wrote?") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise BundleError(f"{path}: format {FORMAT} is needed, found {found}; written by another version or program?")
    try:
        yardstick = _read_laplacian(document["yardstick"])
        return Model(
            document["detector"],
            yardstick if document["detector"] == "laplacian" else _read_detector(document, folder),
            yardstick,
            PreparationConfig(**document["preparation"]),
            GridConfig(**document["grid"]),
            {name: float(value) for name, value in document["thresholds"].items()},
            _read_provenance(document["provenance"]),
            _read_detection(document.get("detection")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: a setting is missing, unknown or out of range ({error!r})") from error


def _read_provenance(entry: dict[str, Any]) -> Provenance:
    return Provenance(**{**entry, "patient_hashes": tuple(entry["patient_hashes"])})


def _read_detection(entry: dict[str, Any] | None) -> DetectionSettings | None:
    if entry is None:
        return None
    calibration = entry["calibration"]
    if calibration is not None:
        points = tuple(OperatingPoint(**point) for point in calibration["operating_points"])
        calibration = Calibration(
            tuple(calibration["scores"]), tuple(calibration["weights"]), calibration["patients"], points
        )
    domain = {name: tuple(value) if isinstance(value, list) else value for name, value in entry["domain"].items()}
    return DetectionSettings(
        float(entry["level"]),
        FindingsConfig(**entry["findings"]),
        int(entry["stride_px"]),
        calibration,
        Domain(**domain),
    )


def _read_laplacian(entry: dict[str, Any]) -> Laplacian:
    config = LaplacianConfig(**{**entry["config"], "sigmas_px": tuple(entry["config"]["sigmas_px"])})
    return Laplacian(config, tuple(entry["means"]), tuple(entry["deviations"]))


def _read_detector(document: dict[str, Any], folder: Path) -> Detector | ImageDetector:
    if document["detector"] not in DETECTORS:
        raise ValueError(f"unknown detector {document['detector']!r}")
    settings, weights = document["settings"], folder / WEIGHTS_FILE
    if not weights.exists():
        raise BundleError(f"{weights}: the weights are missing; copy the whole model folder")
    if hash_file(weights) != document["weights_sha256"]:
        raise BundleError(
            f"{weights}: not the weights that {MODEL_FILE} was written with; damaged or from another model"
        )
    try:
        tensors = load_file(weights)
        if document["detector"] != "wei2018":
            return restore_fusion(settings, tensors)
        network = build_autoencoder(AutoencoderConfig(**{**settings, "widths": tuple(settings["widths"])}), seed=0)
        network.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{weights}: the weights do not fit the network that {MODEL_FILE} describes") from error
    return build_reconstruction(network)


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
