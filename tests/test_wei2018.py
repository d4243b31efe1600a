import dataclasses
import json

import numpy as np
import pyarrow.parquet
import pytest

from unary.detectors.laplacian import Laplacian
from unary.detectors.scoring import score_patches
from unary.detectors.wei2018.detector import Wei2018
from unary.detectors.wei2018.learning import TrainingConfig
from unary.errors import ManifestError
from unary.evaluation.roc import auroc
from unary.experiments.wei2018 import SPLITS, PaperConfig, hold_out, run_wei2018
from unary.experiments.wei2018_air import ANY_TISSUE, PARTS, measure_tissue, name_parts
from unary.experiments.wei2018_report import describe_result, write_wei2018_report
from unary.patches.collection import collect_patches
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import PreparationConfig
from unary.profiles import DEFAULT
from unary.training.context import FitContext

CONFIG = PaperConfig(
    training=TrainingConfig(epochs=2, batch_size=20), grid=GridConfig(64, 32), seeds=(0, 1), held_out=0.3, resamples=200
)


@pytest.fixture(scope="module")
def result(phantoms, tmp_path_factory):
    return run_wei2018(phantoms, tmp_path_factory.mktemp("wei"), CONFIG, progress=False)


def test_metrics_agree_with_the_stored_scores(phantoms, tmp_path):
    result = run_wei2018(phantoms, tmp_path, dataclasses.replace(CONFIG, seeds=(4,)), progress=False)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    for reading, found in result.readings.items():
        table = pyarrow.parquet.read_table(tmp_path / f"scores_{reading}.parquet").to_pydict()
        columns = {name: np.asarray(values) for name, values in table.items()}
        for split in SPLITS:
            for detector in ("wei2018", "laplacian", "mean_brightness", "standard_deviation"):
                kept = (columns["split"] == split) & ~columns["group_normal_looking"].astype(bool)
                expected = auroc(columns[f"score_{detector}"][kept], columns["positive"][kept])
                entry = stored["detectors"][detector][reading][split]["all"]
                assert entry["auroc"] == pytest.approx(expected)
        assert stored["meta"]["readings"][reading]["data_hash"] == found.collection.data_hash
    assert stored["meta"]["config"]["seeds"] == [4]


def test_the_readings_differ_in_what_is_negative_alone(result):
    whole, tissue = (result.readings[name].collection for name in ("whole_image", "tissue"))
    assert [row.image_id for row in whole.rows] == [row.image_id for row in tissue.rows]
    places = [
        set(zip(of.column("image_id").tolist(), map(tuple, of.origins.tolist()), strict=True)) for of in (whole, tissue)
    ]
    assert places[1] < places[0]
    share = result.readings["whole_image"].tissue
    assert (share == 0).any()
    assert result.readings["tissue"].tissue.min() >= 0.5


def test_the_area_is_the_mixture_of_the_areas_against_each_part(result):
    for found in result.readings.values():
        for split in SPLITS:
            for name in found.metrics:
                expected = []
                for run in found.runs[split]:
                    negative = run.table.roles("all")[1]
                    named = name_parts(found.tissue[run.kept][negative])
                    scores, positive = run.table.scores[name], run.table.positive
                    areas = {
                        part: auroc(
                            np.concatenate([scores[positive], scores[negative][named == part]]),
                            np.repeat([True, False], [positive.sum(), (named == part).sum()]),
                        )
                        for part in np.unique(named).tolist()
                    }
                    expected.append(sum((named == part).mean() * area for part, area in areas.items()))
                assert found.metrics[name][split]["all"]["auroc"] == pytest.approx(np.mean(expected))
                assert set(found.parts[split][name]) <= {*PARTS, ANY_TISSUE}
    parts = result.readings["whole_image"].parts["patch"]["mean_brightness"]
    assert parts["air"].value > 0.99 > parts[ANY_TISSUE].value


def test_laplacian_is_the_detector_that_fits_and_scores_by_itself(result):
    found = result.readings["tissue"]
    run, positions = found.runs["patch"][0], np.arange(len(found.collection))
    fitted = np.setdiff1d(positions[found.collection.column("assessment") == "1"], run.kept)
    alone = Laplacian().fit(found.collection.patches.subset(fitted), FitContext(progress=False))
    scores = score_patches(alone, found.collection.patches.subset(run.kept))
    assert np.array_equal(run.table.scores["laplacian"], scores)


def test_share_of_tissue_is_counted_pixel_by_pixel():
    pixels = np.zeros((96, 64), np.uint16)
    pixels[:48, :40] = 30000 + np.arange(40)
    patches = build_patch_set(pixels, grid_origins(pixels.shape, GridConfig(32, 32)), size_px=32, mask=pixels >= 0)
    share = measure_tissue(patches, masked=False)
    expected = [(pixels[row : row + 32, col : col + 32] > 0).mean() for _, row, col in patches.index]
    assert share == pytest.approx(expected, abs=0.005), "but for a rounded corner"
    assert name_parts(share)[1:].tolist() == ["skin line", "skin line", "skin line", "air", "air"]
    assert (measure_tissue(patches, masked=True) == 1).all()


def test_grids_and_positives_are_counted(result, phantoms):
    counts = {one.name: one for one in result.grids}
    assert {one.images for one in result.grids} == {sum(row.assessment == "1" for row in phantoms.rows)}
    whole = result.readings["whole_image"].collection
    negative = whole.column("assessment") == "1"
    assert counts["whole image, every 32 px"].count == negative.sum()
    assert (
        counts["nothing but tissue, every 32 px"].count == (result.readings["whole_image"].tissue[negative] == 1).sum()
    )
    listed = [lesion for lesion in phantoms.lesions if lesion.image_id in {r.image_id for r in phantoms.rows}]
    assert result.positives[-1].count == len(listed)
    assert result.positives[0].count >= result.positives[1].count > 0


def test_no_patient_on_two_sides_and_no_positive_in_training(phantoms):
    rows = list(phantoms.rows)
    positive = next(row for row in rows if row.label == "positive")
    rows[0] = dataclasses.replace(rows[0], patient_id=positive.patient_id)  # a normal image of an abnormal patient
    mixed = dataclasses.replace(phantoms, rows=tuple(rows))
    collection = collect_patches(mixed, PreparationConfig(), CONFIG.grid, DEFAULT.reading)
    patients, birads = collection.column("patient_id"), collection.column("assessment")
    for seed in range(5):
        held = hold_out(collection, "patient", share=0.3, seed=seed)
        fitted = (birads == "1") & ~held
        assert not set(patients[fitted]) & (set(patients[held]) | set(patients[birads == "5"]))
        assert held[collection.image == 0].all()
        by_patch = hold_out(collection, "patch", share=0.3, seed=seed)
        assert by_patch.sum() == pytest.approx(0.3 * (birads == "1").sum(), abs=1)
        assert not by_patch[birads == "5"].any()


def test_interrupted_runs_go_on_to_the_same_result(phantoms, result, tmp_path, monkeypatch):
    calls = []

    def stop_at_third(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    fit = Wei2018.fit
    monkeypatch.setattr(Wei2018, "fit", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run_wei2018(phantoms, tmp_path, CONFIG, progress=False)
    monkeypatch.undo()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "one of either reading"
    assert run_wei2018(phantoms, tmp_path, CONFIG, progress=False).metrics == result.metrics


def test_report_shows_the_numbers_and_every_figure(result, tmp_path):
    write_wei2018_report(result, tmp_path / "report.html", banners=("Synthetic data.",))
    text = (tmp_path / "report.html").read_text()
    for found in result.readings.values():
        assert f"{found.metrics['wei2018']['patient']['all']['auroc']:.3f}" in text
    assert "Synthetic data." in text
    assert text.count("data:image/png;base64,") == 17
    assert len(list((tmp_path / "figures").glob("*.png"))) == 17
    assert (
        "<h1>Wei et al. 2018, not as published: 2 of 500 epochs, 2 runs, 12 negative and 6 positive images in" in text
    )
    assert "batch_size 20" in text.split("</h1>")[0]
    assert "reproduced" not in text
    assert "means over 2 runs" in text
    assert "Too few patients to tell where" in text.split('class="lead">')[1].split("</p>")[0]
    lines = list(describe_result(result))
    assert any(line.startswith("whole_image by patch") and "wei2018" in line for line in lines)


def test_one_run_is_called_one_run_and_controls_stand_in_the_lead(result, tmp_path):
    """As if of twelve patients a side: with them the lead makes claims, and names every control."""
    counts = {"n_positive_patients": 12, "n_negative_patients": 12}

    def enlarge(found):
        metrics = {
            name: {split: {group: {**one, **counts} for group, one in groups.items()} for split, groups in of.items()}
            for name, of in found.metrics.items()
        }
        runs = {split: of[:1] for split, of in found.runs.items()}
        return dataclasses.replace(found, metrics=metrics, runs=runs)

    readings = {name: enlarge(found) for name, found in result.readings.items()}
    meta = {**result.meta, "config": {**result.meta["config"], "seeds": (0,)}}
    write_wei2018_report(dataclasses.replace(result, readings=readings, meta=meta), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "2 of 500 epochs, one run," in text
    assert "of one run" in text
    assert "means over" not in text
    lead = text.split('class="lead">')[1].split("</p>")[0]
    assert "of which are air" in lead
    verdicts = ("better than", "worse than", "not told apart from")
    for name in ("laplacian", "mean_brightness", "standard_deviation"):
        assert any(f"{verdict} {name}" in text for verdict in verdicts)


def test_what_is_not_compared_is_said(result, tmp_path):
    write_wei2018_report(result, tmp_path / "report.html")  # of a few phantoms
    assert "There are fewer, and nothing is compared." in (tmp_path / "report.html").read_text()


def test_stability_is_reported_per_seed(result):
    for reading in result.meta["readings"].values():
        for entries in reading["stability"].values():
            assert [entry["seed"] for entry in entries] == [0, 1]
            assert all(entry["last_loss"] < entry["first_loss"] for entry in entries)


@pytest.mark.parametrize(("missing", "role"), [("1", "negatives"), ("5", "positives")])
def test_a_missing_class_is_named(phantoms, missing, role, tmp_path):
    kept = phantoms.select(tuple(row for row in phantoms.rows if row.assessment != missing))
    with pytest.raises(ManifestError, match=role):
        run_wei2018(kept, tmp_path, CONFIG, progress=False)


def test_images_without_lesions_are_no_positives(phantoms, tmp_path):
    with pytest.raises(ManifestError, match="contains a lesion"):
        run_wei2018(dataclasses.replace(phantoms, lesions=()), tmp_path, CONFIG, progress=False)
