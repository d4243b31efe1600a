"""Findings judged on phantoms: what `unary evaluate` writes is what its own tables give by hand."""

import csv
import dataclasses
import json
import math

import numpy as np
import PIL.Image
import pytest

from unary.cli.main import main
from unary.datasets.manifest import write_manifest
from unary.datasets.splits import split_manifest
from unary.evaluation.detection_evaluation import estimate_patient_means, evaluate_detection, summarise_detection
from unary.evaluation.judged_images import SOUGHT, Sought, build_outcomes, is_normal
from unary.evaluation.matching import group_targets
from unary.evaluation.pixelwise import draw_truth
from unary.evaluation.roc import auroc, average_precision
from unary.models.bundle import write_model
from unary.models.commissioning import calibrate_model
from unary.models.detection import detect_image, examine_image
from unary.models.pipeline import FitConfig, fit
from unary.outputs.detection_pictures import list_false_alarms, list_lesions, plot_sights
from unary.patches.collection import read_row
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.records import Lesion


@pytest.fixture(scope="module")
def parts(phantoms):
    return split_manifest(phantoms, 0.4, np.random.default_rng(0))


@pytest.fixture(scope="module")
def model(parts):
    fitted = fit(parts[0], FitConfig("laplacian", PreparationConfig(), GridConfig(64, 32)), progress=False)
    return calibrate_model(fitted, parts[0], allow_seen=True, progress=False)


@pytest.fixture(scope="module")
def partly(parts):
    """Return the test images, the first normal and the first abnormal one only partially annotated."""
    rows = list(parts[1].rows)
    for label in ("negative", "positive"):
        place = next(place for place, row in enumerate(rows) if row.label == label)
        rows[place] = dataclasses.replace(rows[place], complete=False)
    return dataclasses.replace(parts[1], rows=tuple(rows))


@pytest.fixture(scope="module")
def written(model, partly, tmp_path_factory):
    """Return the folder that `unary evaluate` wrote for a manifest with partial annotations and a broken file."""
    folder = tmp_path_factory.mktemp("evaluated")
    broken = folder / "broken.dcm"
    broken.write_bytes(partly.rows[0].path.read_bytes()[:9000])
    extra = dataclasses.replace(partly.rows[0], path=broken, image_id="broken", patient_id="other", complete=True)
    write_manifest(dataclasses.replace(partly, rows=(extra, *partly.rows)), folder / "test.csv")
    write_model(model, folder / "model")
    status = main(["evaluate", str(folder / "model"), str(folder / "test.csv"), "--out", str(folder / "out")])
    assert status == 3
    return folder / "out"


@pytest.fixture(scope="module")
def judged(model, partly):
    return evaluate_detection(model, partly, progress=False)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluate_adds_to_the_schema_and_names_the_broken_image(written):
    metrics = json.loads((written / "metrics.json").read_text())
    assert set(metrics) == {"detectors", "meta", "detection"}
    assert {"laplacian", "mean_brightness"} < set(metrics["detectors"])
    assert set(metrics["detection"]) == {"counts", "froc", "operating_points", "image_auroc", "pixels"}
    assert metrics["detection"]["counts"]["skipped"] == 1
    report = (written / "report.html").read_text()
    assert "broken.dcm" in report
    assert report.count("broken.dcm") < 3  # named once as a notice, not once for each part of the evaluation
    for heading in ("Lesions found", "False alarms: promised and measured", "What alarms falsely", "What is found"):
        assert f"<h2>{heading}</h2>" in report
    assert "broken" not in {row["image_id"] for row in read_csv(written / "images.csv")}


def test_froc_is_what_the_tables_give_by_hand(written):
    found = json.loads((written / "metrics.json").read_text())["detection"]["froc"]
    images = {row["image_id"]: row for row in read_csv(written / "images.csv")}
    normal = {name for name, row in images.items() if row["normal"] == "1"}
    false = [float(row["score"]) for row in read_csv(written / "findings.csv") if row["image_id"] in normal]
    lesions = [row for row in read_csv(written / "lesions.csv") if images[row["image_id"]]["label"] == "positive"]
    chosen = {
        "all": lesions,
        "calcification": [row for row in lesions if row["group"] == "calcification"],
        "calcification_clusters": [row for row in lesions if row["cluster"] == "1"],
        "mass": [row for row in lesions if row["group"] == "mass"],
    }
    assert set(found) == {name for name, rows in chosen.items() if rows}
    for name, froc in found.items():
        scores = [float(row["score"]) if row["score"] else None for row in chosen[name]]
        assert (froc["n_lesions"], froc["n_normal_images"]) == (len(scores), len(normal))
        for rate, sensitivity in froc["sensitivity"].items():
            allowed = math.floor(float(rate) * len(normal) + 1e-9)
            hits = sum(each is not None and sum(other >= each for other in false) <= allowed for each in scores)
            assert sensitivity == pytest.approx(hits / len(scores))


def test_operating_points_are_what_the_tables_give_by_hand(written, model):
    found = json.loads((written / "metrics.json").read_text())["detection"]["operating_points"]
    points = model.detection.calibration.operating_points
    assert set(found) == {point.name for point in points}
    normal = [row for row in read_csv(written / "images.csv") if row["normal"] == "1"]
    findings = read_csv(written / "findings.csv")
    for point in points:
        counts: dict[str, list[int]] = {}
        for row in normal:
            own = [each for each in findings if each["image_id"] == row["image_id"]]
            above = min(sum(float(each["score"]) > point.threshold for each in own), 8)
            counts.setdefault(row["patient_id"], []).append(above)
        entry = found[point.name]
        assert entry["false_findings"] == pytest.approx(np.mean([np.mean(own) for own in counts.values()]))
        alarms = [np.mean([count > 0 for count in own]) for own in counts.values()]
        assert entry["false_alarm_rate"] == pytest.approx(np.mean(alarms))
        assert entry["promised_false_alarm_rate"] == point.false_alarm_rate
        assert entry["n_normal_images_with_finding"] == sum(count > 0 for own in counts.values() for count in own)


def test_image_areas_are_what_the_tables_give_by_hand(written):
    found = json.loads((written / "metrics.json").read_text())["detection"]["image_auroc"]
    rows = read_csv(written / "images.csv")
    scores = [float(row["score"]) for row in rows]
    expected = auroc(scores, [row["label"] == "positive" for row in rows])
    assert set(found) == {"birads_1_against_5", "birads_1_against_3_to_6", "label_negative_against_positive"}
    assert all(entry["auroc"] == pytest.approx(expected) for entry in found.values())


def test_pixels_against_every_pixel_one_by_one(judged, model, partly):
    summary = summarise_detection(judged, (), resamples=50).pixels["calcification"]
    scores, truth = [], []
    for row in partly.rows:
        if not row.complete and row.label == "negative":
            continue
        examined = examine_image(model, read_row(row))
        shape = examined.prepared.stored_shape
        targets = group_targets(partly.lesions_of(row.image_id), shape, spacing_mm=examined.prepared.stored_spacing_mm)
        own, rest = draw_truth(targets, shape, groups=("calcification",)), draw_truth(targets, shape)
        kept = np.isfinite(examined.anomaly_map) & (own | (~rest & row.complete))
        scores.append(examined.anomaly_map[kept])
        truth.append(own[kept])
    values, positive = np.concatenate(scores), np.concatenate(truth)
    assert (summary.positives, summary.negatives) == (positive.sum(), (~positive).sum())
    assert summary.auroc.value == pytest.approx(auroc(values, positive), abs=1e-3)
    assert summary.average_precision.value == pytest.approx(average_precision(values, positive), rel=0.01)


def test_partial_annotations_count_lesions_and_no_false_alarm(judged, partly):
    partial = [image for image in judged.images if not image.row.complete]
    assert [image.normal for image in partial] == [False, False]
    assert partial[1].match.targets
    outcomes = build_outcomes(judged.images, SOUGHT["all"])
    assert len(outcomes) == len(partly.rows) - 1  # the partial negative one tells nothing
    assert sum(outcome.normal for outcome in outcomes) == 5
    assert not any(outcome.counts_false("normal") and not outcome.normal for outcome in outcomes)
    strict = build_outcomes(judged.images, Sought(None, complete_only=True))
    assert len(strict) == len(outcomes) - 1
    assert partial[0].row.image_id not in {
        sight.image.row.image_id for sight in list_false_alarms(judged.images, count=99)
    }


def test_candidates_hold_what_detection_reports(judged, model, partly):
    for image in judged.images[:3]:
        reported = detect_image(model, read_row(image.row), operating_point="2")
        assert reported.findings == image.findings[: len(reported.findings)]
        assert reported.image_score == image.image_score


def test_one_image_alone_is_judged_as_among_others(judged, model, partly):
    last = partly.select(partly.rows[-1:])
    (alone,) = evaluate_detection(model, last, progress=False).images
    assert alone.findings == judged.images[-1].findings
    assert alone.match.hits == judged.images[-1].match.hits


def test_masks_are_read_and_bad_ones_named(model, parts, tmp_path):
    row = next(row for row in parts[1].rows if row.label == "positive")
    shape = read_row(row).shape
    right, wrong = np.zeros(shape, np.uint8), np.zeros((9, 9), np.uint8)
    right[100:140, 60:90] = wrong[2:4, 2:4] = 255
    for name, mask in (("right", right), ("wrong", wrong)):
        PIL.Image.fromarray(mask).save(tmp_path / f"{name}.png")
    rows = (row, dataclasses.replace(row, image_id="second"))
    lesions = (
        Lesion(row.image_id, "Mass", "mask", mask_path=tmp_path / "right.png"),
        Lesion("second", "Mass", "mask", mask_path=tmp_path / "wrong.png"),
    )
    found = evaluate_detection(model, dataclasses.replace(parts[1], rows=rows, lesions=lesions), progress=False)
    assert [image.row.image_id for image in found.images] == [row.image_id]
    (target,) = found.images[0].match.targets
    assert target.group == "mass"
    assert target.area_mm2 == pytest.approx(40 * 30 * row.spacing_mm**2, rel=1e-6)
    (reason,) = found.skipped
    assert "wrong.png" in reason


def test_old_models_skip_findings_with_a_notice(model, parts, tmp_path, caplog, capsys):
    old = dataclasses.replace(model, detection=None)
    assert evaluate_detection(old, parts[1], progress=False) is None
    assert "knew no findings" in caplog.text
    write_model(old, tmp_path / "old")
    write_manifest(parts[1], tmp_path / "test.csv")
    out = tmp_path / "out"
    assert main(["evaluate", str(tmp_path / "old"), str(tmp_path / "test.csv"), "--out", str(out)]) == 0
    assert "detection" not in json.loads((out / "metrics.json").read_text())
    assert "Findings were not evaluated" in (out / "report.html").read_text()
    assert not (out / "findings.csv").exists()


def test_without_normals_or_lesions_there_is_no_curve(judged):
    normal = tuple(image for image in judged.images if image.normal)
    ill = tuple(image for image in judged.images if not image.normal)
    for images in (normal, ill):
        summary = summarise_detection(dataclasses.replace(judged, images=images), (), resamples=50)
        assert summary.froc == {}
    assert summary.pixels  # what positive images hold beside their lesions counts here


@pytest.mark.parametrize(
    ("birads", "label", "complete", "lesions", "normal"),
    [
        ("1", "negative", True, 0, True),
        (None, "negative", True, 0, True),
        ("2", "negative", True, 0, False),
        ("1", "negative", False, 0, False),
        (None, "negative", True, 1, False),
        (None, None, True, 0, False),
        ("1", "positive", True, 0, False),
    ],
)
def test_what_counts_as_normal(birads, label, complete, lesions, normal, phantoms):
    row = dataclasses.replace(phantoms.rows[0], birads=birads, label=label, complete=complete)
    assert is_normal(row, phantoms.lesions[:lesions]) is normal


def test_lesions_are_either_missed_or_found(judged):
    for name, sought in SOUGHT.items():
        outcomes = build_outcomes(judged.images, sought)
        scores = [score for outcome in outcomes for score in outcome.target_scores]
        median = float(np.median([score for score in scores if score is not None] or [0.0]))
        listed = {
            found: list_lesions(judged.images, sought, threshold=median, found=found, count=999)
            for found in (True, False)
        }
        hits = sum(score is not None and score > median for score in scores)
        per_image = [len(outcome.target_scores) for outcome in outcomes]
        if max(per_image) <= 2:  # of an image with more, two are shown
            assert (len(listed[True]), len(listed[False])) == (hits, len(scores) - hits), name


def test_false_alarms_are_shown_strongest_first(judged):
    sights = list_false_alarms(judged.images, count=7)
    scores = [max(f.score for f in sight.image.findings if f.box == sight.box) for sight in sights]
    assert scores == sorted(scores, reverse=True)
    assert all(sight.image.normal for sight in sights)
    strongest = max(finding.score for image in judged.images if image.normal for finding in image.findings)
    assert scores[0] == strongest
    assert plot_sights(sights) is not None
    gone = dataclasses.replace(sights[0].image, row=dataclasses.replace(sights[0].image.row, path="gone.dcm"))
    assert plot_sights([dataclasses.replace(sights[0], image=gone)]) is None


def test_means_over_patients_against_arithmetic():
    rng = np.random.default_rng(0)
    one, other = estimate_patient_means([[1, 0, 1], [4, 2, 0]], ["a", "a", "b"], rng=rng, resamples=100)
    assert one.value == 0.75
    assert other.value == 1.5
    (alone,) = estimate_patient_means([3.0, 5.0], ["a", "a"], rng=rng)
    assert (alone.value, alone.low, alone.high) == (4.0, None, None)
    values = rng.normal(size=400)
    (many,) = estimate_patient_means(values, [str(k) for k in range(400)], rng=rng, resamples=4000)
    assert many.high - many.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
