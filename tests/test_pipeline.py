import dataclasses

import numpy as np
import PIL.Image
import pytest

import unary
from unary.datasets.splits import split_manifest
from unary.errors import BundleError, ImageError, ManifestError, SplitError, TrainingError
from unary.evaluation.roc import auroc
from unary.models.pipeline import evaluate, find_thresholds, fit, score
from unary.models.scoring import measure_controls, score_patch_set
from unary.patches.grid import GridConfig, extract_patches
from unary.patches.preparation import PreparationConfig


@pytest.fixture(scope="module")
def parts(phantoms):
    return split_manifest(phantoms, 0.4, np.random.default_rng(0))


@pytest.fixture(scope="module")
def model(parts, quick):
    return fit(parts[0], quick)


def test_positives_and_unknown_labels_are_refused(phantoms, quick):
    with pytest.raises(TrainingError, match=r"6 of 18 images .* positive or unlabelled"):
        fit(phantoms, quick)
    unlabelled = tuple(dataclasses.replace(row, label=None) for row in phantoms.rows[:2])
    with pytest.raises(TrainingError, match="2 of 2"):
        fit(phantoms.select(unlabelled), quick)


def test_model_survives_the_disk(model, parts, tmp_path):
    model.save(tmp_path / "model")
    again = unary.read_model(tmp_path / "model")
    path = parts[1].rows[-1].path
    one, other = score(model, path), score(again, path)
    assert (one.scores == other.scores).all()
    assert np.array_equal(one.anomaly_map, other.anomaly_map, equal_nan=True)
    assert again.provenance == model.provenance
    assert (again.preparation, again.grid, again.thresholds) == (model.preparation, model.grid, model.thresholds)
    assert again.yardstick == model.yardstick


def test_image_scores_are_the_scores_of_its_patches(model, parts):
    result = score(model, parts[1].rows[0].path)
    patches = extract_patches(result.prepared.pixels, result.origins, size_px=64)
    assert np.allclose(result.scores, model.detector.examine(patches).scores, rtol=1e-5)
    assert result.image_score == result.scores.max()
    assert np.isnan(result.anomaly_map[~result.prepared.mask]).all()
    row, col = result.origins[result.scores.argmax()]
    assert np.isfinite(result.anomaly_map[row : row + 64, col : col + 64]).any()


def test_evaluation_against_scores_one_by_one(model, parts):
    evaluation = evaluate(model, parts[1])
    table, collection = evaluation.patches, evaluation.collection
    assert set(table.scores) == {"wei2018", "laplacian", "mean_brightness", "standard_deviation"}
    scores = score_patch_set(model.detector, collection.patches)
    label = collection.column("label")
    positive = collection.lesional & (label == "positive")
    negative = label == "negative"
    kept = positive | negative
    chosen, rest = table.roles("all")
    measured = auroc(table.scores["wei2018"][chosen | rest], chosen[chosen | rest])
    assert measured == pytest.approx(auroc(scores[kept], positive[kept]))
    images = evaluation.images
    best = [scores[collection.image == number].max() for number in range(len(collection.rows))]
    assert np.allclose(images.scores["wei2018"], best)
    assert images.positive.tolist() == [row.label == "positive" for row in collection.rows]


def test_the_yardstick_sees_the_planted_specks(model, parts):
    table = evaluate(model, parts[1]).patches
    chosen, rest = table.roles("calcification")
    kept = chosen | rest
    assert auroc(table.scores["laplacian"][kept], chosen[kept]) > 0.7


def test_seen_patients_and_missing_labels_are_refused(model, parts, phantoms):
    with pytest.raises(SplitError, match="were in the training set"):
        evaluate(model, phantoms)
    assert evaluate(model, phantoms, allow_seen=True).patches is not None
    positives = tuple(row for row in parts[1].rows if row.label == "positive")
    with pytest.raises(ManifestError, match="no negative image"):
        evaluate(model, parts[1].select(positives))


def test_thresholds_hold_their_rate_on_the_scores_that_set_them():
    scores = np.random.default_rng(0).normal(size=500)
    for level, value in find_thresholds(scores).items():
        assert 0 <= (1 - float(level)) - (scores > value).mean() < 2 / 500
    tied = np.array([1.0] * 99 + [2.0])
    assert find_thresholds(tied)["0.95"] == 1.0


def test_held_out_patients_set_the_thresholds_and_count_as_seen(normals, quick):
    model = fit(normals, dataclasses.replace(quick, detector="laplacian", held_out=0.3))
    assert model.provenance.threshold_patches > 0
    assert len(model.provenance.patient_hashes) == 6
    without = fit(normals, dataclasses.replace(quick, detector="laplacian", held_out=0.0))
    assert without.provenance.threshold_patches == 0
    assert without.provenance.patches == model.provenance.patches + model.provenance.threshold_patches


def test_controls_against_numpy(model, normals, quick):
    from unary.patches.collection import collect_patches

    patches = collect_patches(normals.select(normals.rows[:1]), quick.preparation, quick.grid).patches
    values = patches.gather(slice(None)).reshape(len(patches), -1) / 65535
    controls = measure_controls(patches)
    assert np.allclose(controls["mean_brightness"], values.mean(axis=1))
    assert np.allclose(controls["standard_deviation"], values.std(axis=1))


def test_no_patient_identifier_is_stored(model, parts, tmp_path):
    model.save(tmp_path / "m")
    text = (tmp_path / "m" / "model.json").read_text()
    assert not any(f'"{row.patient_id}"' in text for row in parts[0].rows)


def test_missing_foreign_and_damaged_model_folders(model, tmp_path):
    with pytest.raises(BundleError, match=r"no model\.json"):
        unary.read_model(tmp_path)
    folder = tmp_path / "model"
    model.save(folder)
    weights = folder / "weights.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(BundleError, match="damaged or from another model"):
        unary.read_model(folder)
    weights.unlink()
    with pytest.raises(BundleError, match="weights are missing"):
        unary.read_model(folder)
    weights.write_bytes(original)
    text = (folder / "model.json").read_text()
    for broken, cause in [
        ("{", "JSON"),
        (text.replace('"format": 2', '"format": 99'), "format 2 is needed, found 99"),
        (text.replace('"mask": "breast"', '"mask": "moon"'), "out of range"),
        (text.replace('"stride_px"', '"strid"'), "unknown"),
    ]:
        (folder / "model.json").write_text(broken)
        with pytest.raises(BundleError, match=cause):
            unary.read_model(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(BundleError, match="not empty"):
        model.save(tmp_path / "other")


def test_a_file_that_is_no_image_is_an_error(model, tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(ImageError, match=r"notes\.png"):
        score(model, tmp_path / "notes.png")


@pytest.mark.parametrize("shape", [(40, 30), (64, 64), (30, 700), (900, 50)])
def test_images_smaller_than_a_patch_and_of_any_aspect_are_scored(model, shape, tmp_path):
    pixels = np.random.default_rng(0).integers(2000, 4000, shape, dtype=np.uint16)
    pixels[: shape[0] // 4] = 10  # background
    PIL.Image.fromarray(pixels).save(tmp_path / "odd.png")
    whole = dataclasses.replace(model, preparation=PreparationConfig(mask="none"), grid=GridConfig(64, 32, 0.1))
    result = score(whole, tmp_path / "odd.png")
    assert result.anomaly_map.shape == shape
    assert np.isfinite(result.anomaly_map).all()
    assert len(result.scores) >= 1
