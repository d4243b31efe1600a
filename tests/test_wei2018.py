import dataclasses
import json

import numpy as np
import pyarrow.parquet
import pytest

from unary.detectors.wei2018.detector import Wei2018
from unary.detectors.wei2018.learning import TrainingConfig
from unary.errors import ManifestError
from unary.evaluation.roc import auroc
from unary.experiments.wei2018 import SPLITS, PaperConfig, hold_out, run_wei2018
from unary.experiments.wei2018_report import describe_result, write_wei2018_report
from unary.patches.collection import collect_patches
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import DEFAULT

CONFIG = PaperConfig(
    training=TrainingConfig(epochs=2, batch_size=20), grid=GridConfig(64, 32), seeds=(0, 1), held_out=0.3, resamples=200
)


@pytest.fixture(scope="module")
def result(phantoms, tmp_path_factory):
    return run_wei2018(phantoms, tmp_path_factory.mktemp("wei"), CONFIG, progress=False)


def test_metrics_agree_with_the_stored_scores(phantoms, tmp_path):
    result = run_wei2018(phantoms, tmp_path, dataclasses.replace(CONFIG, seeds=(4,)), progress=False)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    table = pyarrow.parquet.read_table(tmp_path / "scores.parquet").to_pydict()
    columns = {name: np.asarray(values) for name, values in table.items()}
    for split in SPLITS:
        for detector in ("wei2018", "laplacian", "mean_brightness", "standard_deviation"):
            kept = (columns["split"] == split) & ~columns["group_normal_looking"].astype(bool)
            expected = auroc(columns[f"score_{detector}"][kept], columns["positive"][kept])
            assert stored["detectors"][detector][split]["all"]["auroc"] == pytest.approx(expected)
    assert stored["meta"]["config"]["seeds"] == [4]
    assert stored["meta"]["data_hash"] == result.collection.data_hash


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
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert run_wei2018(phantoms, tmp_path, CONFIG, progress=False).metrics == result.metrics


def test_report_shows_the_numbers_and_every_figure(result, tmp_path):
    write_wei2018_report(result, tmp_path / "report.html", banners=("Synthetic data.",))
    text = (tmp_path / "report.html").read_text()
    assert f"{result.metrics['wei2018']['patient']['all']['auroc']:.3f}" in text
    assert "Synthetic data." in text
    assert text.count("data:image/png;base64,") == 8
    assert len(list((tmp_path / "figures").glob("*.png"))) == 8
    assert (
        "<h1>Wei et al. 2018, not as published: 2 of 500 epochs, 2 runs, 12 negative and 6 positive images in" in text
    )
    assert "batch_size 20" in text.split("</h1>")[0]
    assert "reproduced" not in text
    assert "means over 2 runs" in text
    assert "Too few patients to tell" in text.split('class="lead">')[1].split("</p>")[0]
    lines = list(describe_result(result))
    assert any("wei2018" in line and "AUROC" in line for line in lines)


def test_one_run_is_called_one_run_and_controls_stand_in_the_lead(result, tmp_path):
    """As if of twelve patients a side: with them the lead makes claims, and names every control."""
    counts = {"n_positive_patients": 12, "n_negative_patients": 12}
    metrics = {
        name: {split: {group: {**found, **counts} for group, found in groups.items()} for split, groups in of.items()}
        for name, of in result.metrics.items()
    }
    runs = {split: of[:1] for split, of in result.runs.items()}
    meta = {**result.meta, "config": {**result.meta["config"], "seeds": (0,)}}
    write_wei2018_report(dataclasses.replace(result, runs=runs, metrics=metrics, meta=meta), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "2 of 500 epochs, one run," in text
    assert "of one run" in text
    assert "means over" not in text
    lead = text.split('class="lead">')[1].split("</p>")[0]
    assert "chance" in lead
    verdicts = ("better than", "worse than", "not told apart from")
    for name in ("laplacian", "mean_brightness", "standard_deviation"):
        assert any(f"{verdict} {name}" in text for verdict in verdicts)


def test_what_is_not_compared_is_said(result, tmp_path):
    write_wei2018_report(result, tmp_path / "report.html")  # of a few phantoms
    assert "There are fewer, and nothing is compared." in (tmp_path / "report.html").read_text()


def test_stability_is_reported_per_seed(result):
    for entries in result.meta["stability"].values():
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
