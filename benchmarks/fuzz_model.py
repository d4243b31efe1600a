"""Folders of models for `fuzz.py`: every leaf of ``model.json``, the tensors, their file, and the folder itself.

Most damage is tried twice: as it is, and with both hashes made anew, as somebody would who knows the format. The
oracle is what the undamaged model says of a picture: its scores, map, findings at every operating point, and its
fields.

- Without new hashes, a model that is read must be the undamaged one, in every field and to the last bit.
- With new hashes, after damage that no fitting gives (NaN, another length or type, a tensor shuffled), it must say the
  same of the picture within the tolerance that a model has for other machines.
- With new hashes, after a change to another value that fitting could give, it is another model. It must say
  something finite, with the operating points and the level of the undamaged one, and never quietly find nothing. A
  whole calibration of another model of the same kind brings its own points.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_common import BYTES, Case, Rng, pick
from fuzz_model_damage import EXACT, FILES, LEAVES, OTHER, SAME, SANE, TENSORS, Sample, join_weights, split_weights

TOLERANCE = 0.05  # of the largest score
DETECTORS = ("laplacian", "laplacian", "dense_laplacian", "prominence", "blind_spot", "wei2018", "variational")
_WEIGHTS = re.compile(r"weights-[0-9a-f]+\.safetensors")


class ModelKind:
    """Models in turn; a tenth of the cases are undamaged but for the form of their JSON."""

    def __init__(self, folder: Path, detectors: Sequence[str] = DETECTORS) -> None:
        os.environ["UNARY_PATIENT_KEY"] = str(folder / "patients.key")
        from unary.images.reading import read_image

        if not (folder / "whole").exists():
            write_samples(folder, detectors)
            (folder / "whole").touch()
        self.picture = read_image(next(iter((folder / "picture").iterdir())))
        self.samples = [self._read_sample(path) for path in sorted((folder / "models").iterdir())]
        if not self.samples[0].said["findings"]:
            raise AssertionError("the first model finds nothing in the picture")

    def _read_sample(self, folder: Path) -> Sample:
        from unary.models.bundle import read_model

        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}
        document = json.loads(files["model.json"])
        [weights] = [name for name in files if _WEIGHTS.fullmatch(name)]
        if seal(document, files[weights]) != (files["model.json"], weights):
            raise AssertionError(f"{folder.name}: the hashes are made in another way")
        said = self.ask(read_model(folder))
        return Sample(folder.name, files, document, weights, said)

    def ask(self, model: Any) -> dict[str, Any]:
        """Return what a model is and says of the picture."""
        from unary.models.examination import build_detection, score

        scored = score(model, self.picture)
        points = () if model.calibration is None else model.calibration.operating_points
        detections = [build_detection(scored, model, point) for point in (None, *points) if _counts(point)]
        fields = {
            name: value for name, value in vars(model).items() if name not in ("detector", "baseline", "background")
        }
        plain = {
            name: dataclasses.asdict(one) if dataclasses.is_dataclass(one) else one for name, one in fields.items()
        }
        return {
            "scores": scored.scores,
            "map": scored.anomaly_map,
            "findings": [(one.score, one.box) for detection in detections for one in detection.findings],
            "image": scored.image_score,
            "level": model.level,
            "points": points,
            "fields": repr(plain),
        }

    def build_case(self, seed: int, number: int) -> Case:
        """Return the case of one number."""
        rng = np.random.default_rng((seed, number))
        sample = self.samples[number % len(self.samples)]
        name = "another form" if rng.random() < 0.1 else pick(rng, [*LEAVES, *TENSORS, *FILES, "bytes"])
        sealed = bool(rng.random() < 0.5)
        files, document, right = dict(sample.files), copy.deepcopy(sample.document), SANE
        others = [one for one in self.samples if one is not sample]
        if name == "another form":
            files["model.json"] = write_json(document, rng)
        elif name in LEAVES:
            right = LEAVES[name](document, pick(rng, others).document, rng)
            files["model.json"] = json.dumps(document, indent=2).encode()
        elif name in TENSORS:
            header, body = split_weights(files[sample.weights])
            right = TENSORS[name](header, body, rng)
            files[sample.weights] = join_weights(header, bytes(body))
        elif name in FILES:
            right = OTHER
            FILES[name](files, sample, pick(rng, others), rng)
        else:
            damaged = pick(rng, ("model.json", sample.weights))
            way = pick(rng, tuple(BYTES))
            files[damaged], name = (
                BYTES[way](files[damaged], rng),
                f"{way} of {'JSON' if damaged == 'model.json' else 'weights'}",
            )
        if sealed and name != "another form" and sample.weights in files and "model.json" in files:
            seal_files(files, sample.weights)
            name += ", new hashes"
        else:
            right = EXACT
        return Case(sample.name, name, files or {"nothing": b""}, (sample.name, right), name == "another form")

    def judge(self, case: Case, folder: Path) -> tuple[str, str]:
        """A `BundleError` that names the folder, or what the rules above allow."""
        from unary.errors import BundleError, UnaryError
        from unary.models.bundle import read_model

        name, right = case.right
        expected = next(sample for sample in self.samples if sample.name == name).said
        try:
            model = read_model(folder)
        except BundleError as error:
            message = str(error)
            if str(folder) not in message or "\n" in message or len(message) > 3000:
                return "FAILED: the message", message[:500]
            if case.valid:
                return "FAILED: refused though ordinary", message
            return "refused", describe_refusal(message.replace(str(folder), ""))
        try:
            said = self.ask(model)
        except UnaryError as error:
            return ("FAILED: refused in use", str(error)) if right == EXACT else ("refused", "in use")
        return compare(said, expected, right)


def _counts(point: Any) -> bool:
    return point is None or point.unit == "finding"


def compare(said: dict[str, Any], expected: dict[str, Any], right: str) -> tuple[str, str]:
    """The verdict on a model that was read."""
    same = all(_equals(said[name], expected[name]) for name in expected if name != "fields")
    if same and said["fields"] == expected["fields"]:
        return "equal", ""
    if right == EXACT:
        return "FAILED: another model under old hashes", next(n for n in expected if not _equals(said[n], expected[n]))
    numbers = [said["scores"], [score for score, _ in said["findings"]], [said["image"] or 0.0, said["level"]]]
    numbers += [[point.threshold, point.measured_rate, point.rate] for point in said["points"]]
    if not all(np.isfinite(np.asarray(values, float)).all() for values in numbers):
        return "FAILED: not finite", ""
    if expected["findings"] and not said["findings"]:
        return "FAILED: quietly finds nothing", ""
    if right == OTHER:  # the points of another calibration, which sets them
        return "as stored", ""
    if said["level"] != expected["level"] or said["points"] != expected["points"]:
        return "FAILED: another level or operating point", f"{said['points']}"[:300]
    if right == SAME and not same:
        shape = said["scores"].shape == expected["scores"].shape
        within = TOLERANCE * float(np.abs(expected["scores"]).max())
        if not shape or not np.allclose(said["scores"], expected["scores"], rtol=0, atol=within):
            return "FAILED: other scores", "" if not shape else f"{np.abs(said['scores'] - expected['scores']).max():g}"
        if abs(said["image"] - expected["image"]) > TOLERANCE * abs(expected["image"]):
            return "FAILED: another score of the image", f"{said['image']} {expected['image']}"
    return "as stored", ""


def _equals(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=True) if isinstance(one, np.ndarray) else bool(one == other)


def describe_refusal(message: str) -> str:
    """What was refused, for the table of reasons."""
    known = (
        "hash (sha256)", "not the weights", "weights are missing", "no model.json", "not readable as JSON",
        "format 4", "probe", "safetensors", "missing required", "Invalid enum", "cannot examine", "lacks",
        "unknown field", "finite", "Expected", "belongs to no part", "weights do not belong", "the weights",
        "operating point", "level", "peaks", "detector", "profile", "domain", "state", "baseline", "calibration",
        "stored", "versions", "must", "cannot be read", "is missing", "is unknown",
    )  # fmt: skip
    return next((words for words in known if words in message), re.sub(r"\d+", "_", message)[-60:])


# Samples.


def write_samples(folder: Path, detectors: Sequence[str]) -> None:
    """Fit a small model of every detector on phantoms; training is as short as can be."""
    from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
    from unary.detectors.blind_spot import BlindSpot, BlindSpotConfig
    from unary.detectors.variational import Variational, VariationalConfig
    from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
    from unary.detectors.wei2018.learning import TrainingConfig
    from unary.models.fitting import FitConfig, fit
    from unary.training.engine import StepsConfig

    config = PhantomConfig(rows=224, cols=192)
    manifest = write_phantom_dataset(
        folder / "phantoms", patients_normal=6, patients_abnormal=1, config=config, seed=11
    )
    normals = manifest.select(tuple(row for row in manifest.rows if row.label == "negative"))
    [abnormal, *_] = [row.path for row in manifest.rows if row.label == "positive" and row.path is not None]
    (folder / "picture").mkdir()
    abnormal.rename(folder / "picture" / abnormal.name)
    brief = StepsConfig(steps=20, batch_size=4)
    small: dict[str, Any] = {
        "blind_spot": BlindSpot(BlindSpotConfig(features=4, hidden=8, training=brief)),
        "variational": Variational(VariationalConfig(latent=4, widths=(4, 8), training=brief)),
        "wei2018": Wei2018(Wei2018Config(training=TrainingConfig(epochs=1, compiled=False))),
    }
    for number, name in enumerate(detectors):
        held_out = 0.0 if number == 1 else 0.4
        settings = FitConfig(size_px=48, stride_px=32, held_out=held_out, window=(0.0, 4095.0) if number == 2 else None)
        fit(normals, settings, detector=small.get(name, name), progress=False).save(
            folder / "models" / f"{number} {name}"
        )


def hash_document(document: dict[str, Any]) -> str:
    """The SHA-256 over all but the hash itself, in the compact form of JSON with sorted keys."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal(document: dict[str, Any], weights: bytes) -> tuple[bytes, str]:
    """The bytes of ``model.json`` with both hashes made anew, and the name of the weights."""
    sealed = dict(document)
    sealed["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    sealed["sha256"] = hash_document(sealed)
    text = json.dumps(sealed, indent=2, sort_keys=True) + "\n"
    return text.encode(), f"weights-{sealed['weights_sha256'][:16]}.safetensors"


def seal_files(files: dict[str, bytes], weights: str) -> None:
    """Make the hashes of a folder anew, in place; where its JSON is none, only the name of the weights."""
    content = files.pop(weights)
    name = f"weights-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    try:
        document = json.loads(files["model.json"])
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        with suppress(ValueError, RecursionError, TypeError):
            files["model.json"], name = seal(document, content)
    files[name] = content


def write_json(document: dict[str, Any], rng: Rng) -> bytes:
    """The same content in another form."""
    keys = [list(document)[place] for place in rng.permutation(len(document))]
    indent = pick(rng, (None, 1, 8, "\t"))
    return json.dumps(
        {key: document[key] for key in keys}, indent=indent, ensure_ascii=bool(rng.random() < 0.5)
    ).encode()
