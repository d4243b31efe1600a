"""A fitted detector on disk: a folder with its numbers, how images are prepared, and where the model came from.

``model.json`` holds configuration, calibration and provenance, ``weights-HASH.safetensors`` the tensors of a detector,
under a name of their own content, so that either file belongs to the other at every moment. ``model.json`` bears one
hash over all of it. What it replaces is kept beside it, as ``model-DATE.json``. ``MODEL_CARD.md`` says the same for
people (`unary.models.card`). Nothing is pickled. A model of a
detector that is not unary's own names its class, and the module of that name is imported; of any other model no code is
run.

What is read is checked three times over: the hash; every field, its type and range, operating points by the scores that
set them; and what the model says of a picture (`unary.models.probe`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, make_dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from unary.detectors import find_detector_class, name_of
from unary.detectors.devices import has_networks, place_detector
from unary.detectors.laplacian import Laplacian
from unary.detectors.protocol import Detector, DetectorState
from unary.detectors.states import describe_config, read_config
from unary.errors import BundleError, DetectorError
from unary.files import LOCK_FILE, hash_file, locking, write_durably
from unary.models.calibration import Calibration
from unary.models.card import Background, find_background, write_card
from unary.models.consistency import check_model, check_texts
from unary.models.findings import FindingsConfig
from unary.models.patients import SeenPatients
from unary.models.probe import Probe, ask, choose_picture, find_difference
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import Profile
from unary.records import NOTICE, Domain, ModelIdentity
from unary.training.devices import require_device

logger = logging.getLogger(__name__)

FORMAT = 6
MODEL_FILE = "model.json"
_OWN, _BASELINE = "detector.", "baseline."  # tensors of either, in one file
_PARTIAL = re.compile(
    r"\.\d+\.(model.*\.json|weights-.*\.safetensors|MODEL_CARD\.md)"
)  # as `unary.files.replacing` names them
_OURS = re.compile(rf"{re.escape(LOCK_FILE)}|{_PARTIAL.pattern}|weights-[0-9a-f]+\.safetensors")


@dataclass(frozen=True)
class Provenance:
    """Where a model came from.

    Attributes
    ----------
    seen
        The patients of the images, those held out included: enough to refuse an evaluation on patients that the model
        has seen, where the site's key is, without naming them.
    data_hash
        Of the training patches (`unary.patches.collection.Collection.data_hash`).
    images, patches, held_out_patches, skipped
        How many images were used, patches trained on, patches of held-out patients, and images that could not be used.
    seed
        Of the draw of held-out patients, and of the training.
    versions
        As `describe_versions`.
    """

    seen: SeenPatients
    data_hash: str
    images: int
    patches: int
    held_out_patches: int
    skipped: int
    seed: int
    versions: dict[str, str]

    def __post_init__(self) -> None:
        least = {"images": self.seen.count, "patches": 1, "held_out_patches": 0, "skipped": 0, "seed": 0}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} must be at least {number}, got {getattr(self, name)}")
        if not re.fullmatch("[0-9a-f]{64}", self.data_hash):
            raise ValueError("data_hash must be a SHA-256, 64 hexadecimal digits")


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A fitted detector with everything that applying it must repeat.

    Attributes
    ----------
    name
        Of the detector: one of `unary.detectors.DETECTORS`, or ``module:Class``.
    level
        Findings are drawn where the map exceeds it; set on training images.
    calibration
        Of held-out normal patients; None as long as there is none.
    baseline
        The detector without learning, fitted on the same patches, so that every evaluation can show both.
    peaks
        The highest values of training images, falling, the last of which is the level.
    background
        What its card says beside; not in ``model.json``, and no part of the model.
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
    peaks: tuple[float, ...] = ()
    background: Background = field(default_factory=Background)

    def __repr__(self) -> str:
        spacing, side = self.preparation.working_spacing_mm, self.preparation.working_size_px
        place = "stored pixels" if spacing is None else f"{spacing:g} mm"
        place = place if side is None else f"a longer side of {side} px"
        known = "not calibrated" if self.calibration is None else f"calibrated on {self.calibration.patients} patients"
        return (
            f"Model({self.name}, {self.profile.name}, {self.grid.size_px} px patches at {place}, "
            f"{self.provenance.images} images, trained on {self.provenance.patches} patches, {known})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows (`unary.outputs.notebook`)."""
        from unary.outputs.notebook import show_model

        return show_model(self)._repr_html_()

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write the model; see `write_model`."""
        write_model(self, Path(folder), overwrite=overwrite)


_APART = ("name", "detector", "baseline", "background")
_KEPT = {name: kind for name, kind in get_type_hints(Model).items() if name not in _APART}
_Document: Any = make_dataclass(
    "model",
    [
        ("format", int),
        ("notice", str),
        ("sha256", str),  # of all else
        ("detector", str),
        ("weights_sha256", str),
        *((name, dict[str, Any]) for name in ("state", "baseline")),  # the settings alone, without tensors
        ("probe", Probe | None),  # None of a detector that cannot examine the picture
        *_KEPT.items(),
    ],
)
"""What ``model.json`` holds."""


def require_model_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that a model must not be written to, before hours are spent on training it.

    What a run that was killed has left there does not count.

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
    elif folder.exists() and any(not _OURS.fullmatch(path.name) for path in folder.iterdir()):
        raise BundleError(f"{folder}: the folder is not empty and holds no model; choose another")


def write_model(
    model: Model, folder: Path, *, overwrite: bool = False, held: bool = False, command: str | None = None
) -> Path | None:
    """Write a model folder, so that at every moment it holds a whole model, the one before or this one.

    The one before is kept as ``model-DATE.json``, with its weights; returns where, or None without one. ``held`` says
    that the caller holds the folder (`unary.files.locking`) and has asked `require_model_folder` before. The card is
    written last (`unary.models.card.write_card`); ``command`` is the command line for it.

    Raises
    ------
    BundleError
        As `require_model_folder`; if it could not be read again, such as one whose detector's class could not be found
        or whose state is not what JSON and safetensors can hold; if the files cannot be written.
    UnaryError
        If another process holds the folder.
    """
    if not held:
        require_model_folder(folder, overwrite=overwrite)
    with nullcontext() if held else locking(folder):
        if not held:  # again: another process may have been there
            require_model_folder(folder, overwrite=overwrite)
        text, weights = _describe_model(model, folder)
        try:
            kept = _write_files(text, weights, folder)
        except OSError as error:
            raise BundleError(
                f"{folder}: the model could not be written ({error.strerror or error}); a model that was there before "
                "is there unchanged"
            ) from error
        hashes = {"sha256": hash_bytes(text), "weights_sha256": hash_bytes(weights)}
        write_card(model, folder, **hashes, command=command)
        return kept


def _describe_model(model: Model, folder: Path) -> tuple[bytes, bytes]:
    """The content of ``model.json`` and of the weights, which have been read back."""
    if has_networks(model.detector):  # on the processor it is asked about the picture when it is read
        model = replace(model, detector=place_detector(model.detector, "cpu"))
    own, name = model.detector, name_of(model.detector)
    if not can_be_found(own):
        raise BundleError(
            f"a model of {name!r} could not be read again: define the class at the top level of a module that can be "
            "imported"
        )
    state, baseline = own.get_state(), model.baseline.get_state()
    weights = _describe_weights(model.name, {_OWN: state.tensors, _BASELINE: baseline.tensors}, folder)
    probe = _ask_picture(model)
    kept = {name: getattr(model, name) for name in _KEPT}
    settings = (dict(state.settings), dict(baseline.settings))
    document = _Document(FORMAT, NOTICE, "", model.name, hash_bytes(weights), *settings, probe, **kept)
    try:
        content = describe_config(document)
        content["sha256"] = hash_content(content)
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"{folder}: settings of {model.name!r} are not what JSON can hold ({error})") from error
    path = folder / MODEL_FILE
    _build_model(_parse(_read_json(text, path), path), weights, path)
    return text.encode(), weights


def can_be_found(detector: object) -> bool:
    """Say whether the class of a detector is found again by its name, as reading its model needs."""
    try:
        return find_detector_class(name_of(detector)) is type(detector)
    except (DetectorError, ImportError):
        return False


def _describe_weights(name: str, parts: Mapping[str, Mapping[str, NDArray[Any]]], folder: Path) -> bytes:
    """The tensors of both detectors as one file."""
    tensors = {f"{part}{key}": np.ascontiguousarray(parts[part][key]) for part in parts for key in parts[part]}
    for key, values in tensors.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BundleError(f"{folder}: the tensor {key!r} of {name!r} is not finite; has training diverged?")
    try:
        return save(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder}: tensors of {name!r} are not what safetensors can hold ({error!r})") from error


def _write_files(text: bytes, weights: bytes, folder: Path) -> Path | None:
    """Write weights, keep the ``model.json`` before, and write the new one, in that order, none of them twice."""
    path, place = folder / MODEL_FILE, folder / name_weights(hash_bytes(weights))
    if not place.is_file() or place.read_bytes() != weights:
        write_durably(place, weights)
    before = path.read_bytes() if path.is_file() else None
    kept = None
    if before != text:
        kept = None if before is None else _keep_version(before, path)
        write_durably(path, text)
    for leftover in folder.iterdir():  # of a process that was killed: this one holds the folder
        if _PARTIAL.fullmatch(leftover.name):
            leftover.unlink()
    return kept


def _keep_version(before: bytes, path: Path) -> Path:
    """Keep a ``model.json`` under the time when it was written, unless it is kept already; return where."""
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    for number in itertools.count(1):
        ending = "" if number == 1 else f"-{number}"
        kept = path.with_name(f"model-{written:%Y%m%dT%H%M%SZ}{ending}.json")
        if not kept.exists():
            write_durably(kept, before)
        if kept.read_bytes() == before:
            return kept
    raise AssertionError("there is always a next number")


def name_weights(digest: str) -> str:
    """Return the name of the file of weights with this SHA-256."""
    return f"weights-{digest[:16]}.safetensors"


def read_model(folder: Path | str, *, device: str = "cpu") -> Model:
    """Read a model folder, or one that `unary.models.exporting.export_model` wrote.

    Parameters
    ----------
    device
        Where its networks are applied, in torch's notation. What is said there of the test picture must be what was
        said when the model was written.

    Raises
    ------
    TrainingError
        If torch cannot use the device here.
    DetectorError
        If a device is given, and the model has no network that it could apply.
    BundleError
        If the folder, its ``model.json`` or its weights are missing, damaged, edited, or of another program or version;
        the field is named.
    """
    from unary.models.exported import is_exported, read_exported  # which makes a model of it

    if device != "cpu":
        require_device(device, "device")
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise BundleError(f"{path.parent}: no {MODEL_FILE} there; is it a folder that `unary fit` wrote?")
    try:
        text = path.read_bytes()
        content = _read_json(text.decode("utf-8"), path)
        if is_exported(content):
            return _place_model(read_exported(content, path), None, device, path)
        document = _parse(content, path)
        place = path.with_name(name_weights(document.weights_sha256))
        if not place.is_file():
            raise BundleError(f"{place}: the weights are missing; copy the whole model folder")
        weights = place.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path.parent}: the model cannot be read ({error})") from error
    if hash_bytes(weights) != document.weights_sha256:
        raise BundleError(f"{place}: not the weights that {MODEL_FILE} was written with; damaged or from another model")
    background = find_background(path.parent, hash_bytes(text))
    model = replace(_build_model(document, weights, path), background=background)
    return _place_model(model, document.probe, device, path)


def _place_model(model: Model, probe: Probe | None, device: str, path: Path) -> Model:
    """The model with its networks on a device."""
    if device == "cpu":
        return model
    placed = replace(model, detector=place_detector(model.detector, device))
    different = None if probe is None else find_difference(placed, probe)
    if different is not None:
        raise BundleError(f"{path}: on {device} the model does not say of a test picture what it should: {different}")
    return placed


def _read_json(text: str, path: Path) -> Any:
    try:
        content = json.loads(text)
        check_texts(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not readable as JSON ({error})") from error
    return content


def _parse(content: Any, path: Path) -> Any:
    """What a ``model.json`` says, checked field by field."""
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        earlier = isinstance(found, int) and 1 <= found < FORMAT
        cause = "an earlier unary wrote this model: fit it again" if earlier else "of a later version, or no model?"
        raise BundleError(f"{path}: format {FORMAT} is needed, found {repr(found)[:40]}; {cause}")
    if content.get("sha256") != hash_content(content):
        raise BundleError(
            f"{path}: its content is not what its hash (sha256) was made of: damaged, or edited; nothing in a model "
            "may be changed by hand"
        )
    try:
        return read_config(_Document, content)
    except (ValueError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path}: damaged, or of another version: {error}") from error


def hash_content(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all that a ``model.json`` says, hashes of other files included, but for itself."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hash_bytes(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def _build_model(document: Any, weights: bytes, path: Path) -> Model:
    """The model of what was read, checked as a whole."""
    try:
        own = find_detector_class(document.detector)
    except Exception as error:  # its module is imported, and may raise anything
        raise BundleError(f"{path}: detector: {error}") from error
    try:
        tensors = load(weights)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: the weights are not readable as safetensors ({error})") from error
    if foreign := [name for name in tensors if not name.startswith((_OWN, _BASELINE))]:
        raise BundleError(f"{path}: the tensor {foreign[0]!r} belongs to no part of the model")
    model = Model(
        name=document.detector,
        detector=_restore(own, document.state, tensors, _OWN, f"{path}: state"),
        baseline=_restore(Laplacian, document.baseline, tensors, _BASELINE, f"{path}: baseline"),
        **{name: getattr(document, name) for name in _KEPT},
    )
    try:
        check_model(model)
        with np.errstate(all="ignore"):
            different = _find_difference(model, document.probe)
    except Exception as error:  # as above
        raise BundleError(f"{path}: damaged, or of another version: {error}") from error
    if different is not None:
        raise BundleError(
            f"{path}: probe: the model does not say of a test picture what it said when it was written; {different}: "
            "damaged, edited, or with other libraries than those that it was fitted with "
            f"({', '.join(f'{name} {version}' for name, version in model.provenance.versions.items())})"
        )
    return model


def _ask_picture(model: Model) -> Probe | None:
    try:
        picture = choose_picture(model)
        return Probe(picture, ask(model, picture))
    except Exception as error:  # an own detector's may be any; its images may be of another kind than the picture
        reason = "%s cannot examine a test picture, so that reading cannot try its model: %s"
        logger.warning(reason, name_of(model.detector), error)
        return None


def _find_difference(model: Model, probe: Probe | None) -> str | None:
    if probe is not None:
        return find_difference(model, probe)
    return None if _ask_picture(model) is None else "it says something now, and no answer is kept"


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
    except Exception as error:  # an own detector's may be any
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


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def identify_model(model: Model, folder: Path) -> ModelIdentity:
    """Return what every result says of the model that was read from a folder."""
    return ModelIdentity(
        detector=model.name,
        version=metadata.version("unary"),
        sha256=hash_file(folder / MODEL_FILE),
        data_hash=model.provenance.data_hash,
    )


def hash_scoring(folder: Path) -> str:
    """Return the SHA-256 of all that scores of a model in a folder depend on: calibration and p-values are left out.

    Two models of one hash give the same maps, scores and candidates; their p-values and findings may differ.
    """
    path = folder / MODEL_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    return hash_content({name: value for name, value in content.items() if name not in ("calibration", "probe")})


def describe_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("unary", "numpy", "scipy", "scikit-image", "torch", "pydicom")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
