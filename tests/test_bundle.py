import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

import unary
from unary.detectors.laplacian import Laplacian
from unary.detectors.protocol import DetectorState
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.errors import BundleError
from unary.models import bundle
from unary.models.bundle import FORMAT, Model, hash_file, identify_model, read_model, require_model_folder, write_model
from unary.models.examination import score
from unary.models.fitting import FitConfig, fit
from unary.records import NOTICE

FILE = "model.json"
EARLIER = Path(__file__).parent / "data" / "model_format_2"


@pytest.fixture(scope="module")
def model(normals):
    config = FitConfig(size_px=64, stride_px=32, window=(0.0, 4095.0))
    return fit(normals, config, detector="laplacian", progress=False)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    model.save(folder)
    return folder


def write_edited(folder, document, weights):
    """Write a model folder with another document, its hash made anew, as somebody would who edits a model by hand."""
    if isinstance(document, dict) and isinstance(document.get("sha256"), str):
        document = {**document, "sha256": bundle._hash_content(document)}
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(document if isinstance(document, str) else json.dumps(document))
    (folder / bundle.name_weights(bundle.hash_bytes(weights))).write_bytes(weights)


def read_weights(folder):
    (path,) = folder.glob("weights-*.safetensors")
    return path.read_bytes()


@pytest.fixture
def change(written, tmp_path):
    """Return what writes a changed ``model.json`` beside the weights, with a hash of its own, and reads it."""

    def read_changed(document):
        write_edited(tmp_path / "changed", document, read_weights(written))
        return read_model(tmp_path / "changed")

    return read_changed


def list_places(content, place=()):
    """Every field of a document, as keys from the top; of a list the first element stands for all."""
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in items:
        yield (*place, key)
        yield from list_places(value, (*place, key))


def at(document, place):
    for key in place:
        document = document[key]
    return document


def named(place):
    return [key for key in place if isinstance(key, str)][-1]


def test_a_model_survives_the_disk_bit_for_bit(model, written, phantoms):
    again = read_model(written)
    for field in dataclasses.fields(Model):
        if field.name not in ("detector", "baseline"):
            assert getattr(again, field.name) == getattr(model, field.name), field.name
    for own in ("detector", "baseline"):
        one, other = getattr(model, own).get_state(), getattr(again, own).get_state()
        assert one.settings == other.settings
        assert all(np.array_equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
    path = phantoms.rows[-1].path
    one, other = score(model, path), score(again, path)
    assert (one.scores == other.scores).all()
    assert np.array_equal(one.anomaly_map, other.anomaly_map, equal_nan=True)
    assert again.preparation.window == (0.0, 4095.0)


def test_the_file_says_what_it_is_and_holds_the_whole_profile(written):
    document = json.loads((written / "model.json").read_text())
    assert (document["format"], document["notice"]) == (FORMAT, NOTICE)
    assert document["profile"]["lengths"]["rim_mm"] == 1.1
    assert document["weights_sha256"] == bundle.hash_bytes(read_weights(written))
    assert identify_model(read_model(written), written).sha256 == hash_file(written / "model.json")


def test_a_model_is_shown_in_one_line(model):
    assert repr(model).count("\n") == 0
    assert len(repr(model)) < 200
    for part in ("laplacian", "mammography", "64 px", "calibrated on 2 patients"):
        assert part in repr(model)
    assert "not calibrated" in repr(dataclasses.replace(model, calibration=None))


def test_every_missing_field_is_named(written, change):
    document = json.loads((written / "model.json").read_text())
    places = [place for place in list_places(document) if isinstance(place[-1], str) and "versions" not in place[:-1]]
    assert len(places) > 100
    for place in places:
        damaged = copy.deepcopy(document)
        del at(damaged, place[:-1])[place[-1]]
        with pytest.raises(BundleError) as caught:
            change(damaged)
        assert named(place) in str(caught.value), place
        assert "\n" not in str(caught.value)


def test_every_unknown_field_is_named(written, change):
    document = json.loads((written / "model.json").read_text())
    objects = [(), *(place for place in list_places(document) if isinstance(at(document, place), dict))]
    objects.remove(("provenance", "versions"))
    assert len(objects) > 15
    for place in objects:
        damaged = copy.deepcopy(document)
        at(damaged, place)["colour"] = 1
        with pytest.raises(BundleError, match="colour"):
            change(damaged)


@pytest.mark.parametrize("wrong", [[[1]], math.nan, math.inf, -math.inf])
def test_every_field_of_another_type_or_not_finite_is_named(written, change, wrong):
    document = json.loads((written / "model.json").read_text())
    for place in list_places(document):
        if isinstance(wrong, float) and type(at(document, place)) not in (int, float):
            continue
        damaged = copy.deepcopy(document)
        at(damaged, place[:-1])[place[-1]] = wrong
        with pytest.raises(BundleError) as caught:
            change(damaged)
        name = "versions" if "versions" in place else named(place)
        assert name in str(caught.value).lower(), (place, str(caught.value))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("preparation", "mask"), "moon"),
        (("grid", "stride_px"), 0),
        (("findings", "strongest"), 0),
        (("level",), 1e9),
        (("peaks", 0), -1e9),
        (("peaks", 3), 1e9),
        (("calibration", "images", 0, "score"), 1e9),
        (("calibration", "images", 0, "weight"), 0.0),
        (("calibration", "operating_points"), []),
        (("calibration", "operating_points", 0, "threshold"), 1e9),
        (("calibration", "operating_points", 4, "threshold"), -1e9),
        (("calibration", "operating_points", 1, "rate"), 0.4),
        (("calibration", "operating_points", 1, "guaranteed"), True),
        (("calibration", "operating_points", 2, "measured_rate"), 0.0001),
        (("domain", "spacing_mm"), [1.0, 0.5]),
        (("domain", "brightness"), [0.0, 1e9]),
        (("domain", "bits", 0), 1000),
        (("provenance", "seen", "key"), None),
        (("provenance", "seen", "hashes"), []),
        (("provenance", "seen", "hashes", 0), "P0001"),
        (("provenance", "data_hash"), "0"),
        (("provenance", "images"), 0),
        (("provenance", "patches"), 0),
        (("profile", "headers"), {"sop_classes": [], "capture_modalities": [], "refusal": ["A", "b"], "flags": []}),
        (("profile", "noun"), "mummy"),
        (("probe", "answer", "patches", 0), 1e9),
        (("probe", "picture", "side_px"), 500),
        (("grid", "size_px"), 1_000_000),
        (("grid", "min_tissue"), 0.99),
        (("findings", "merge_mm"), 1e9),
        (("state", "config", "sigmas_px", 0), 30.0),
        (("calibration", "patients"), 1),
        (("calibration", "operating_points", 0, "unit"), "bone"),
        (("preparation", "window"), [0.0, 2000.0]),
        (("profile", "lengths", "patch_mm"), -1.0),
        (("profile", "lengths", "rim_mm"), -1.0),
        (("profile", "lengths", "merge_px"), 0.0),
        (("profile", "lengths", "working_spacing_mm"), 0.0),
        (("profile", "mask"), "moon"),
        (("state", "config", "strongest"), 0),
        (("baseline", "size_px"), 0),
    ],
)
def test_values_out_of_range_are_named(written, change, place, value):
    document = json.loads((written / "model.json").read_text())
    at(document, place[:-1])[place[-1]] = value
    with pytest.raises(BundleError, match=f"{named(place).removesuffix('_px')}|probe"):
        change(document)


def test_missing_foreign_and_damaged_model_folders(normals, written, change, tmp_path):
    with pytest.raises(BundleError, match=r"no model\.json"):
        read_model(tmp_path)
    text = (written / "model.json").read_text()
    for broken, cause in [
        ("{", "not readable as JSON"),
        ("[]", "format 4 is needed, found None"),
        (text.replace('"format": 4', '"format": 99'), "found 99; of a later version, or no model"),
    ]:
        with pytest.raises(BundleError, match=cause):
            change(broken)
    for name, cause in (
        ("dream", "no detector is called"),
        ("os:getcwd", "is no detector"),
        ("nowhere.at:X", "no module"),
    ):
        with pytest.raises(BundleError, match=cause):
            change({**json.loads(text), "detector": name})
    (tmp_path / "changed" / "model.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="cannot be read"):
        read_model(tmp_path / "changed")
    detector = Wei2018(Wei2018Config(training=TrainingConfig(epochs=1, batch_size=20)))
    folder = tmp_path / "learned"
    fit(normals, FitConfig(size_px=64), detector=detector, progress=False).save(folder)
    (weights,) = folder.glob("weights-*.safetensors")
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(BundleError, match="damaged or from another model"):
        read_model(folder)
    weights.unlink()
    with pytest.raises(BundleError, match="weights are missing"):
        read_model(folder)


def swap_weights(folder, change_tensors):
    """Change tensors, and the hashes with them, as somebody would who edits a model by hand."""
    tensors = load(read_weights(folder))
    change_tensors(tensors)
    weights, document = save(tensors), json.loads((folder / FILE).read_text())
    write_edited(folder, {**document, "weights_sha256": bundle.hash_bytes(weights)}, weights)


def test_weights_that_do_not_fit_are_named(model, tmp_path):
    for number, (what, cause) in enumerate(
        [
            (lambda tensors: tensors.pop("detector.means"), "means"),
            (lambda tensors: tensors.update({"baseline.deviations": np.zeros(6)}), "deviations"),
            (lambda tensors: tensors.update({"detector.means": np.full(6, np.nan)}), "means"),
            (lambda tensors: tensors.update({"detector.colours": np.zeros(6)}), "colours"),
            (lambda tensors: tensors.update({"other": np.zeros(6)}), "other"),
            (lambda tensors: tensors.update({"detector.means": np.zeros(6)}), "test picture"),
            (lambda tensors: tensors.update({"baseline.means": np.zeros(6)}), "test picture"),
        ]
    ):
        model.save(tmp_path / str(number))
        swap_weights(tmp_path / str(number), what)
        with pytest.raises(BundleError, match=cause):
            read_model(tmp_path / str(number))


def test_a_model_of_an_earlier_format_is_refused_in_one_clear_line():
    with pytest.raises(
        BundleError, match=r"format 4 is needed, found 2; an earlier unary wrote this model: fit it again"
    ):
        read_model(EARLIER)


def test_nothing_is_overwritten_unless_told(model, written, tmp_path):
    folder = tmp_path / "model"
    model.save(folder)
    before = (folder / "model.json").read_bytes()
    with pytest.raises(BundleError, match="there is a model already"):
        model.save(folder)
    with pytest.raises(BundleError, match="there is a model already"):
        require_model_folder(folder)
    bare = dataclasses.replace(model, calibration=None)
    bare.save(folder, overwrite=True)
    assert (folder / "model.json").read_bytes() != before
    assert read_model(folder).calibration is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="not empty and holds no model"):
            model.save(tmp_path / "other", overwrite=overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="a file of that name"):
        write_model(model, tmp_path / "file")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


class Unstorable(Laplacian):
    """Answers as another detector, with a state that no file can hold."""

    wrong = DetectorState({"config": object()})

    def get_state(self):
        return self.wrong


class Infinite(Unstorable):
    """The same with a tensor that is not finite."""

    wrong = DetectorState({}, {"weights": np.array([np.inf])})


def test_what_could_not_be_read_again_is_not_written(model, tmp_path):
    class Local(Laplacian):
        """Defined where nobody finds it again."""

    state = model.detector.get_state()
    for own, cause in [
        (Local, "define the class at the top level"),
        (Unstorable, "not what JSON can hold"),
        (Infinite, "'detector.weights' .* is not finite"),
    ]:
        changed = dataclasses.replace(model, detector=own.from_state(state))
        with pytest.raises(BundleError, match=cause):
            changed.save(tmp_path / own.__name__)
        assert not (tmp_path / own.__name__ / "model.json").exists()


def test_the_package_reads_models_and_knows_its_version(written):
    assert unary.read_model(written).name == "laplacian"
    assert unary.__version__ == unary.read_model(str(written)).provenance.versions["unary"]
