import copy
import dataclasses
import errno
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
from unary.errors import BundleError, UnaryError
from unary.files import hash_file, locking
from unary.images.reading import read_image
from unary.models import bundle
from unary.models.bundle import FORMAT, Model, identify_model, read_model, require_model_folder, write_model
from unary.models.examination import build_detection, choose_point, examine_image, score
from unary.models.fitting import FitConfig, fit
from unary.models.probe import Probe, ask, choose_picture, find_difference
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
        document = {**document, "sha256": bundle.hash_content(document)}
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
        (("probe",), None),
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
        ("[]", "format 6 is needed, found None"),
        (text.replace('"format": 6', '"format": 99'), "found 99; of a later version, or no model"),
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
        BundleError, match=r"format 6 is needed, found 2; an earlier unary wrote this model: fit it again"
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


def test_nothing_may_be_edited_by_hand(written, tmp_path):
    text, weights = (written / FILE).read_text(), read_weights(written)
    document = json.loads(text)
    for edited in (
        text.replace("negative", "positive").replace('"level": ', '"level": 1'),
        json.dumps({**document, "level": math.nan}),
        json.dumps({**document, "notice": "For diagnosis."}),
        json.dumps({**document, "sha256": "0" * 64}),
        json.dumps({**document, "calibration": None}),
    ):
        write_edited(tmp_path / "edited", edited, weights)
        with pytest.raises(BundleError, match="damaged, or edited"):
            read_model(tmp_path / "edited")
    write_edited(tmp_path / "edited", json.dumps(document, indent=7), weights)
    assert read_model(tmp_path / "edited").name == "laplacian", "the hash is of what it says, not of how it is laid out"


WRONG = [None, math.nan, math.inf, -1, 0, True, "", "x", "\ud800", "\x1b[2J", [], {}, 1e9, 10**30, 1e308, 10**400]


def examine(model, image):
    scored = examine_image(model, image)
    points = [choose_point(model, name) for name in (None, "0.1")]
    found = [build_detection(scored, model, point) for point in points]
    return found[0].out_of_domain, [(one.score, one.p_value) for each in found for one in each.findings]


@pytest.mark.parametrize("wrong", [*WRONG, "removed"], ids=lambda wrong: repr(wrong)[:9])
def test_whatever_is_edited_the_model_is_refused_or_says_the_same(written, wrong, phantoms):
    document, weights = json.loads((written / FILE).read_text()), read_weights(written)
    image = read_image(phantoms.rows[-1].path)
    domain, right = examine(read_model(written), image)
    assert right
    messages = []
    # Each value for every fourth field, so that every field gets four of them: all for all would take minutes.
    places = list(list_places(document))[[*map(repr, WRONG), "'removed'"].index(repr(wrong)) % 4 :: 4]
    for place in places:
        edited = copy.deepcopy(document)
        parent = at(edited, place[:-1])
        parent[place[-1]] = wrong
        if wrong == "removed":
            del parent[place[-1]]
        if place != ("sha256",):
            edited["sha256"] = bundle.hash_content(edited)
        try:
            text = json.dumps(edited)
            changed = bundle._build_model(bundle._parse(text, written / FILE), weights, written / FILE)
        except BundleError as error:
            messages.append(str(error))
            continue
        assert examine(changed, image) == (domain, [pytest.approx(pair, rel=0.05) for pair in right]), place
    assert len(messages) > 0.9 * len(places)
    assert all(message.isprintable() for message in messages)


@pytest.mark.parametrize("learned", [False, True])
def test_whatever_becomes_of_a_tensor_the_model_is_refused_or_says_the_same(model, normals, learned, tmp_path):
    if learned:
        detector = Wei2018(Wei2018Config((2, 4), None, TrainingConfig(epochs=2, batch_size=40)))
        model = fit(normals, FitConfig(size_px=64, held_out=0), detector=detector, progress=False)
    text, weights = bundle._describe_model(model, tmp_path)
    document, tensors, picture = json.loads(text), load(weights), choose_picture(model)
    changes = {
        "zero": np.zeros_like,
        "not finite": lambda values: np.full_like(values, np.nan),
        "huge": lambda values: np.full_like(values, 1e30),
        "of the other sign": lambda values: -values,
        "of another type": lambda values: values.astype(np.float16),
        "shorter": lambda values: values.reshape(-1)[:-1].copy(),
        "of another shape": lambda values: values[None].copy(),
        "of integers": lambda values: values.astype(np.int64),
    }
    some, how = (["detector.encoder.1.weight"], [*changes][:3]) if learned else ([*tensors], changes)
    edited = [save({**tensors, key: changes[change](tensors[key])}) for key in some for change in how]
    edited += [] if learned else [weights[:cut] for cut in (0, 7, 8, 9, len(weights) // 2, len(weights) - 1)]
    refused = 0
    for other in edited:
        changed = {**document, "weights_sha256": bundle.hash_bytes(other)}
        changed["sha256"] = bundle.hash_content(changed)
        try:
            again = bundle._build_model(bundle._parse(json.dumps(changed), tmp_path / FILE), other, tmp_path / FILE)
        except BundleError:
            refused += 1
            continue
        assert find_difference(again, Probe(picture, ask(model, picture))) is None
    assert refused > 0.9 * len(edited)


def test_what_is_replaced_is_kept_and_can_be_put_back(model, tmp_path):
    folder = tmp_path / "model"
    model.save(folder)
    before = (folder / FILE).read_bytes()
    assert write_model(model, folder, overwrite=True) is None, "the same model is not written again"
    kept = write_model(dataclasses.replace(model, calibration=None), folder, overwrite=True)
    assert kept.parent == folder
    assert kept.read_bytes() == before
    assert write_model(model, folder, overwrite=True) is not None
    assert len(list(folder.glob("model-*.json"))) == 2
    other = fit_other(model)
    write_model(other, folder, overwrite=True)
    assert len(list(folder.glob("weights-*.safetensors"))) == 2
    kept.replace(folder / FILE)
    assert read_model(folder).calibration == model.calibration


def fit_other(model):
    """The same with other weights, which say the same of every picture."""
    means = tuple(mean + 1e-9 for mean in model.detector.means)
    return dataclasses.replace(model, detector=dataclasses.replace(model.detector, means=means))


@pytest.mark.parametrize("stop", [1, 2, 3])  # weights, the version before, model.json
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_whatever_interrupts_writing_leaves_a_whole_model(model, tmp_path, monkeypatch, error, stop):
    folder, real, calls = tmp_path / "model", bundle.write_durably, []
    model.save(folder)
    before = (folder / FILE).read_bytes()
    other = dataclasses.replace(fit_other(model), calibration=None)

    def write(path, content):
        calls.append(path)
        if len(calls) == stop:
            (path.parent / f".77.{path.name}").write_bytes(content[:20])  # as a kill leaves it
            raise error
        real(path, content)

    monkeypatch.setattr(bundle, "write_durably", write)
    with pytest.raises((BundleError, KeyboardInterrupt), match=r"No space left.*unchanged|^$"):
        write_model(other, folder, overwrite=True)
    assert (folder / FILE).read_bytes() == before
    assert read_model(folder).calibration == model.calibration
    monkeypatch.setattr(bundle, "write_durably", real)
    kept = write_model(other, folder, overwrite=True)
    assert kept.read_bytes() == before
    assert read_model(folder).calibration is None
    assert not list(folder.glob(".77.*")), "what was left half-written is gone"


def test_leftovers_of_a_first_run_that_was_killed_are_no_model_and_no_hindrance(model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (".unary.lock", f".123.{FILE}", ".123.weights-ab12.safetensors", "weights-ab12.safetensors"):
        (folder / name).write_text("")
    with pytest.raises(BundleError, match=r"no model\.json"):
        read_model(folder)
    model.save(folder)
    assert read_model(folder).name == "laplacian"


def test_a_folder_that_another_process_holds_is_left_alone(model, tmp_path):
    with locking(tmp_path / "model"):
        with pytest.raises(UnaryError, match="in use by"):
            model.save(tmp_path / "model")
        write_model(model, tmp_path / "model", held=True)
    assert read_model(tmp_path / "model").name == "laplacian"


def test_a_model_that_answers_otherwise_than_it_did_is_refused(written, monkeypatch):
    monkeypatch.setattr(Laplacian, "score_pooled", lambda self, pooled: pooled.mean(axis=1))
    with pytest.raises(BundleError, match=r"does not say of a test picture .* with other libraries .*numpy"):
        read_model(written)


def test_a_level_of_ones_own_is_not_written(model, tmp_path):
    with pytest.raises(BundleError, match="level must be the last of peaks"):
        dataclasses.replace(model, level=0.5).save(tmp_path / "model")
    profile = dataclasses.replace(model.profile, noun="cat")
    with pytest.raises(BundleError, match="a name of its own"):
        dataclasses.replace(model, profile=profile).save(tmp_path / "model")
    dataclasses.replace(model, profile=dataclasses.replace(profile, name="cats")).save(tmp_path / "model")
