"""A model evaluated on phantoms: what is written is what its own tables give by hand."""

import csv
import dataclasses
import json
import math
import re

import numpy as np
import PIL.Image
import pyarrow.parquet as parquet
import pytest

from unary.datasets.splits import split_manifest
from unary.detectors.laplacian import Laplacian, LaplacianConfig
from unary.errors import ManifestError, SplitError
from unary.evaluation.evaluate import evaluate
from unary.evaluation.evaluated_image import build_outcomes, evaluate_image, is_normal
from unary.evaluation.lesion_query import LesionQuery, list_queries
from unary.evaluation.matching import group_targets
from unary.evaluation.metrics import summarise
from unary.evaluation.pixelwise import draw_truth
from unary.evaluation.roc import auroc, average_precision
from unary.evaluation.summary import estimate_patient_means, summarise_evaluation
from unary.models.calibrating import calibrate_model
from unary.models.examination import detect, examine_image
from unary.models.fitting import FitConfig, fit
from unary.outputs.detection_places import list_false_alarms, list_lesions
from unary.outputs.evaluation_pictures import EvaluationPictures
from unary.outputs.evaluation_report import write_evaluation
from unary.patches.collection import collect_patches, read_row
from unary.profiles import DEFAULT, GENERAL
from unary.records import Lesion

READING = DEFAULT.reading
QUERIES = list_queries(READING)


@pytest.fixture(scope="module")
def parts(phantoms):
    return split_manifest(phantoms, 0.4, np.random.default_rng(0))


@pytest.fixture(scope="module")
def model(parts):
    """Return a model with other filters than its baseline, so that their scores differ."""
    detector = Laplacian(LaplacianConfig(sigmas_px=(1.0, 2.0, 4.0), strongest=4))
    config = FitConfig(held_out=0.0, size_px=64, stride_px=32)
    fitted = fit(parts[0], config, detector=detector, progress=False)
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
    """Return the folder that was written for a manifest with partial annotations and a broken file."""
    folder = tmp_path_factory.mktemp("evaluated")
    broken = folder / "broken.dcm"
    broken.write_bytes(partly.rows[0].path.read_bytes()[:9000])
    extra = dataclasses.replace(partly.rows[0], path=broken, image_id="broken", patient_id="other", complete=True)
    manifest = dataclasses.replace(partly, rows=(extra, *partly.rows))
    pictures = EvaluationPictures(folder / "out", model, images=len(manifest.rows))
    evaluation = evaluate(model, manifest, draw=pictures.draw, progress=False)
    lines = write_evaluation(evaluation, model, folder / "out", banners=("Synthetic data.",), resamples=100)
    assert lines[-1] == str(folder / "out" / "report.html")
    return folder / "out"


@pytest.fixture(scope="module")
def evaluation(model, partly):
    return evaluate(model, partly, progress=False)


def test_several_workers_say_what_one_says(model, partly, evaluation, tmp_path):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(partly.rows[0].path.read_bytes()[:9000])
    extra = dataclasses.replace(partly.rows[0], path=broken, image_id="broken", patient_id="other", complete=True)
    manifest = dataclasses.replace(partly, rows=(*partly.rows, extra))
    draw = EvaluationPictures(tmp_path, model, images=len(manifest.rows)).draw
    found = evaluate(model, manifest, draw=draw, workers=2, progress=False)
    assert len(found.skipped) == 1
    assert list(found.pictures) == [row.image_id for row in partly.rows]
    assert all((tmp_path / "pictures" / drawn["whole"]).is_file() for drawn in found.pictures.values())
    assert "broken.dcm" in found.skipped[0]
    assert found.data_hash == evaluation.data_hash
    for name, table in (("patches", evaluation.patches), ("images", evaluation.images)):
        again = getattr(found, name)
        assert again.scores.keys() == table.scores.keys()
        assert all(np.array_equal(again.scores[key], table.scores[key]) for key in table.scores)
        assert np.array_equal(again.positive, table.positive)
    assert [image.findings for image in found.evaluated] == [image.findings for image in evaluation.evaluated]
    for name, samples in evaluation.pixels.items():
        assert [one.scores.tolist() for one in found.pixels[name]] == [one.scores.tolist() for one in samples]


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluate_adds_to_the_schema_and_names_the_broken_image(written):
    metrics = json.loads((written / "metrics.json").read_text())
    assert set(metrics) == {"detectors", "meta", "detection"}
    assert set(metrics["detectors"]) == {"laplacian", "mean_brightness", "standard_deviation"}
    assert set(metrics["detection"]) == {"counts", "froc", "operating_points", "image_auroc", "pixels"}
    assert metrics["detection"]["counts"]["skipped"] == 1
    report = (written / "report.html").read_text()
    assert "broken.dcm" in report
    assert report.count("broken.dcm") < 3  # named once as a notice, not once for each part of the evaluation
    for heading in ("Lesions found", "False alarms: guaranteed and measured", "What alarms falsely", "What is found"):
        assert f"<h2>{heading}</h2>" in report
    assert "broken" not in {row["image_id"] for row in read_csv(written / "images.csv")}
    pictures = re.findall(r"<img [^>]*>", report)
    assert len(pictures) >= 6
    told = [re.search(r' alt="([^"]*)"', picture)[1] for picture in pictures if 'class="glow"' not in picture]
    assert all(told)


def test_froc_is_what_the_tables_give_by_hand(written):
    found = json.loads((written / "metrics.json").read_text())["detection"]["froc"]
    images = {row["image_id"]: row for row in read_csv(written / "images.csv")}
    normal = {name for name, row in images.items() if row["normal"] == "1"}
    false = [float(row["score"]) for row in read_csv(written / "findings.csv") if row["image_id"] in normal]
    lesions = [row for row in read_csv(written / "lesions.csv") if images[row["image_id"]]["label"] == "positive"]
    assert {row["counted"] for row in lesions} == {"1"}
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
    points = model.calibration.operating_points
    assert set(found) == {point.name for point in points}
    normal = [row for row in read_csv(written / "images.csv") if row["normal"] == "1"]
    findings = read_csv(written / "findings.csv")
    for point in (point for point in points if point.unit == "finding"):
        counts: dict[str, list[int]] = {}
        for row in normal:
            own = [each for each in findings if each["image_id"] == row["image_id"]]
            above = min(sum(float(each["score"]) > point.threshold for each in own), 8)
            counts.setdefault(row["patient_id"], []).append(above)
        entry = found[point.name]
        assert entry["false_findings"] == pytest.approx(np.mean([np.mean(own) for own in counts.values()]))
        alarms = [np.mean([count > 0 for count in own]) for own in counts.values()]
        assert entry["false_alarm_rate"] == pytest.approx(np.mean(alarms))
        assert entry["guaranteed_false_alarm_rate"] == point.false_alarm_rate
        assert entry["n_normal_images_with_finding"] == sum(count > 0 for own in counts.values() for count in own)


def test_points_that_count_patches_are_measured_on_normal_images(evaluation, model):
    points = [point for point in model.calibration.operating_points if point.unit == "patch"]
    summary = summarise_evaluation(evaluation, points, reading=READING, resamples=50)
    assert [measured.point for measured in summary.points] == points
    for measured in summary.points:
        shares: dict[str, list[float]] = {}
        for image in evaluation.evaluated:
            if image.normal:
                above = float(np.mean(image.patch_scores > measured.point.threshold))
                shares.setdefault(image.row.patient_id, []).append(above)
        assert measured.rate.value == pytest.approx(np.mean([np.mean(own) for own in shares.values()]))
        assert measured.false_alarms is None


def test_the_patch_table_is_that_of_patches_collected_one_by_one(evaluation, model, partly):
    collection = collect_patches(partly, model.preparation, model.grid, READING, progress=False)
    label = collection.column("label")
    positive = collection.lesional & (label == "positive")
    control = collection.normal_looking & (label == "positive")
    kept = positive | control | ((label == "negative") & ~collection.touches)
    table = evaluation.patches
    np.testing.assert_array_equal(table.positive, positive[kept])
    np.testing.assert_array_equal(table.groups["normal_looking"], control[kept])
    np.testing.assert_array_equal(
        table.groups["calcification"], (collection.contains["calcification"] & positive)[kept]
    )
    np.testing.assert_array_equal(np.stack([table.row, table.col], axis=1), collection.origins[kept])
    np.testing.assert_array_equal(table.image, collection.column("image_id")[kept])
    brightness = collection.patches.gather(kept.nonzero()[0]).mean(axis=(1, 2)) / 65535
    np.testing.assert_allclose(table.scores["mean_brightness"], brightness)


def test_images_are_ranked_by_the_one_image_score_and_controls_by_their_highest_patch(evaluation, model, partly):
    table = evaluation.images
    rows = {row.image_id: row for row in partly.rows}
    for place, name in enumerate(table.image.tolist()):
        scored = examine_image(model, read_row(rows[name]))
        assert table.scores["laplacian"][place] == scored.image_score
    for image, area in zip(table.image.tolist(), table.scores["mean_brightness"], strict=True):
        own = evaluation.patches.image == image
        assert not own.any() or area >= evaluation.patches.scores["mean_brightness"][own].max()
    alone = summarise([table], rng=np.random.default_rng(0), resamples=10)["laplacian"]["all"]
    summary = summarise_evaluation(evaluation, (), reading=READING, resamples=10)
    ranked = summary.images["label_negative_against_positive"]
    assert (ranked.auroc.value, ranked.auroc.interval) == (alone["auroc"], alone["auroc_ci95"])
    assert (ranked.positives, ranked.negatives) == (alone["n_positive"], alone["n_negative"])


def test_another_detector_stands_beside_its_baseline(parts):
    """Named otherwise, the model does not hide the baseline, which sees the same patches."""
    config = FitConfig(held_out=0.0, size_px=64, stride_px=32)
    fitted = fit(parts[0], config, detector="prominence", progress=False)
    some = [next(row for row in parts[1].rows if row.label == label) for label in ("negative", "positive")]
    table = evaluate(fitted, parts[1].select(tuple(some)), progress=False).patches
    assert list(table.scores) == ["prominence", "laplacian", "mean_brightness", "standard_deviation"]
    assert not np.array_equal(table.scores["prominence"], table.scores["laplacian"])


def test_the_general_profile_has_no_groups_and_no_assessments(parts, tmp_path):
    config = FitConfig(held_out=0.0, size_px=64, stride_px=64)
    fitted = fit(parts[0], config, detector="laplacian", profile=GENERAL, progress=False)
    found = evaluate(fitted, parts[1], progress=False)
    write_evaluation(found, fitted, tmp_path, resamples=20)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["detectors"]["laplacian"]) == {"all", "normal_looking", "image"}
    assert set(metrics["detection"]["froc"]) == set(metrics["detection"]["pixels"]) == {"all"}
    assert set(metrics["detection"]["image_auroc"]) == {"label_negative_against_positive"}
    text = (tmp_path / "report.html").read_text().lower()
    assert not any(word in text for word in ("breast", "mammo", "bi-rads", "calcification"))


def test_seen_patients_one_label_and_unreadable_sets_are_refused(model, parts, partly, tmp_path):
    with pytest.raises(SplitError, match="fitted on"):
        evaluate(model, parts[0], progress=False)
    for label in ("negative", "positive"):
        some = partly.select(tuple(row for row in partly.rows if row.label == label))
        with pytest.raises(ManifestError, match="both labels"):
            evaluate(model, some, progress=False)
    (tmp_path / "no.dcm").write_bytes(b"no image")
    rows = tuple(dataclasses.replace(row, path=tmp_path / "no.dcm") for row in partly.rows)
    with pytest.raises(ManifestError, match=r"none of \d+ images could be used"):
        evaluate(model, dataclasses.replace(partly, rows=rows), progress=False)
    with pytest.raises(ManifestError, match=r"as unary\.read_manifest returns it, not str"):
        evaluate(model, "test.csv", progress=False)


@pytest.fixture(scope="module")
def seven(model, phantoms, tmp_path_factory):
    """Return the folder that was written for four positive and three negative images without lesions, all seen."""
    some = [
        [row for row in phantoms.rows if row.label == label][:count]
        for label, count in (("positive", 4), ("negative", 3))
    ]
    unlisted = dataclasses.replace(phantoms.select((*some[0], *some[1])), lesions=())
    out = tmp_path_factory.mktemp("seven")
    found = evaluate(model, unlisted, allow_seen=True, progress=False)
    lines = write_evaluation(found, model, out, resamples=50, progress=False)
    return found, lines, out


def test_few_images_without_lesions_make_no_claim_and_no_patches(seven):
    _, lines, out = seven
    lead = lines[-2]
    assert lead.startswith(
        "Too few patients to tell: 4 images labelled positive (2 patients) against 3 images labelled"
    )
    report = (out / "report.html").read_text()
    assert lead in report
    results = report.split("<h2>Results</h2>")[1].split("</section>")[0].split("<dl")[0]
    for words in ("patch", "lesion", "seeds"):
        assert words not in lead + results
    assert "on the same images" in results
    assert "4 images of 2 patients against 3 of 2" in results
    areas = [line for line in lines if line.startswith(("images", "laplacian", "mean", "standard"))]
    assert len(areas) >= 4
    assert all("too few patients to tell: 2 against 2" in line for line in areas)
    assert "Nothing is said of findings: no lesion is listed to be found." in report


def test_the_image_area_is_one_everywhere(seven, written):
    """In both parts of metrics.json, in the table of detectors, in that of images, and on the terminal."""
    for out in (seven[2], written):
        metrics = json.loads((out / "metrics.json").read_text())
        ranked = metrics["detectors"]["laplacian"]["image"]
        alone = metrics["detection"]["image_auroc"]["label_negative_against_positive"]
        for key in alone:
            assert ranked[key] == alone[key], key
        report = (out / "report.html").read_text()
        assert report.count(f"{ranked['auroc']:.3f} (too few patients to tell") >= 1
        assert f'data-value="{ranked["auroc"]}"' in report
    told = [line for line in seven[1] if line.startswith(("laplacian", "images, label"))]
    assert len({line.split("AUROC ")[1] for line in told}) == 1


def test_what_the_model_has_seen_heads_the_report(seven, written):
    found, lines, out = seven
    assert 0 < found.seen <= 4
    said = f"The model was fitted on {found.seen} of these 4 patients: every figure is flattered."
    assert said in lines
    assert f'<p class="banner" role="note">{said}</p>' in (out / "report.html").read_text()
    report = (written / "report.html").read_text()
    assert "The model was fitted on none of these" in report
    assert "every figure is flattered" not in report


def test_a_model_that_cannot_tell_whom_it_has_seen_says_so(evaluation, model, tmp_path):
    lines = write_evaluation(dataclasses.replace(evaluation, seen=None), model, tmp_path, resamples=20, progress=False)
    assert any("cannot be told here" in line for line in lines)
    assert "cannot be told here" in (tmp_path / "report.html").read_text().split("<nav")[0]


def test_scores_are_written_for_patches_and_images(written, evaluation):
    frame = parquet.read_table(written / "scores.parquet").to_pydict()
    assert frame["split"].count("image") == len(evaluation.images)
    assert frame["split"].count("test") == len(evaluation.patches)


def test_image_areas_are_what_the_tables_give_by_hand(written):
    found = json.loads((written / "metrics.json").read_text())["detection"]["image_auroc"]
    rows = read_csv(written / "images.csv")
    scores = [float(row["score"]) for row in rows]
    expected = auroc(scores, [row["label"] == "positive" for row in rows])
    assert set(found) == {"birads_1_against_5", "birads_1_against_3_to_6", "label_negative_against_positive"}
    assert all(entry["auroc"] == pytest.approx(expected) for entry in found.values())


def test_pixels_against_every_pixel_one_by_one(evaluation, model, partly):
    summary = summarise_evaluation(evaluation, (), reading=READING, resamples=50).pixels["calcification"]
    scores, truth = [], []
    for row in partly.rows:
        if not row.complete and row.label == "negative":
            continue
        examined = examine_image(model, read_row(row))
        shape = examined.prepared.stored_shape
        spacing = examined.prepared.stored_spacing_mm
        targets = group_targets(partly.lesions_of(row.image_id), shape, reading=READING, spacing_mm=spacing)
        own, rest = draw_truth(targets, shape, group="calcification"), draw_truth(targets, shape)
        kept = np.isfinite(examined.stored_map) & (own | (~rest & row.complete))
        scores.append(examined.stored_map[kept])
        truth.append(own[kept])
    values, positive = np.concatenate(scores), np.concatenate(truth)
    assert (summary.positives, summary.negatives) == (positive.sum(), (~positive).sum())
    assert summary.auroc.value == pytest.approx(auroc(values, positive), abs=1e-3)
    assert summary.average_precision.value == pytest.approx(average_precision(values, positive), rel=0.01)


def test_partial_annotations_count_lesions_and_no_false_alarm(evaluation, partly):
    partial = [image for image in evaluation.evaluated if not image.row.complete]
    assert [image.normal for image in partial] == [False, False]
    assert partial[1].match.targets
    outcomes = build_outcomes(evaluation.evaluated, QUERIES["all"])
    assert len(outcomes) == len(partly.rows) - 1  # the partial negative one tells nothing
    assert sum(outcome.normal for outcome in outcomes) == 5
    assert not any(outcome.counts_false("normal") and not outcome.normal for outcome in outcomes)
    strict = build_outcomes(evaluation.evaluated, LesionQuery(complete_only=True))
    assert len(strict) == len(outcomes) - 1
    assert partial[0].row.image_id not in {
        place.image.row.image_id for place in list_false_alarms(evaluation.evaluated, threshold=-np.inf, count=99)
    }


def test_candidates_hold_what_detection_reports(evaluation, model, partly):
    for image in evaluation.evaluated[:3]:
        reported = detect(model, read_row(image.row), operating_point="2")
        assert reported.findings == image.findings[: len(reported.findings)]
        assert reported.image_score == image.image_score


def test_one_image_alone_is_evaluated_as_among_others(evaluation, model, partly):
    last = partly.rows[-1]
    scored = examine_image(model, read_row(last))
    alone, _ = evaluate_image(model, last, partly.lesions_of(last.image_id), scored)
    assert alone.findings == evaluation.evaluated[-1].findings
    assert alone.match.hits == evaluation.evaluated[-1].match.hits


def test_masks_are_read_and_bad_ones_named(model, parts, tmp_path):
    row = next(row for row in parts[1].rows if row.label == "positive")
    other = next(row for row in parts[1].rows if row.label == "negative")
    shape = read_row(row).shape
    right, wrong = np.zeros(shape, np.uint8), np.zeros((9, 9), np.uint8)
    right[100:140, 60:90] = wrong[2:4, 2:4] = 255
    for name, mask in (("right", right), ("wrong", wrong)):
        PIL.Image.fromarray(mask).save(tmp_path / f"{name}.png")
    rows = (row, dataclasses.replace(row, image_id="second"), other)
    lesions = (
        Lesion(row.image_id, "Mass", "mask", mask_path=tmp_path / "right.png"),
        Lesion("second", "Mass", "mask", mask_path=tmp_path / "wrong.png"),
    )
    found = evaluate(model, dataclasses.replace(parts[1], rows=rows, lesions=lesions), progress=False)
    assert [image.row.image_id for image in found.evaluated] == [row.image_id, other.image_id]
    (target,) = found.evaluated[0].match.targets
    assert target.group == "mass"
    assert target.area_mm2 == pytest.approx(40 * 30 * row.spacing_mm**2, rel=1e-6)
    (reason,) = found.skipped
    assert "wrong.png" in reason


def test_without_normals_or_lesions_there_is_no_curve(evaluation):
    normal = tuple(image for image in evaluation.evaluated if image.normal)
    ill = tuple(image for image in evaluation.evaluated if not image.normal)
    for images in (normal, ill):
        part = dataclasses.replace(evaluation, evaluated=images)
        summary = summarise_evaluation(part, (), reading=READING, resamples=50)
        assert summary.froc == {}
    assert summary.pixels  # what positive images hold beside their lesions counts here


@pytest.mark.parametrize(
    ("assessment", "label", "complete", "lesions", "normal"),
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
def test_what_counts_as_normal(assessment, label, complete, lesions, normal, phantoms):
    row = dataclasses.replace(phantoms.rows[0], assessment=assessment, label=label, complete=complete)
    assert is_normal(row, phantoms.lesions[:lesions], READING) is normal
    if assessment is None:
        assert is_normal(row, phantoms.lesions[:lesions], GENERAL.reading) is normal


def test_lesions_are_either_missed_or_found(evaluation):
    for name, query in QUERIES.items():
        outcomes = build_outcomes(evaluation.evaluated, query)
        scores = [score for outcome in outcomes for score in outcome.target_scores]
        median = float(np.median([score for score in scores if score is not None] or [0.0]))
        listed = {
            found: list_lesions(evaluation.evaluated, query, threshold=median, found=found, count=999)
            for found in (True, False)
        }
        hits = sum(score is not None and score > median for score in scores)
        per_image = [len(outcome.target_scores) for outcome in outcomes]
        if max(per_image) <= 2:  # of an image with more, two are shown
            assert (len(listed[True]), len(listed[False])) == (hits, len(scores) - hits), name


def test_false_alarms_are_shown_strongest_first(evaluation):
    places = list_false_alarms(evaluation.evaluated, threshold=-np.inf, count=7)
    scores = [max(f.score for f in place.image.findings if f.box == place.box) for place in places]
    assert scores == sorted(scores, reverse=True)
    assert all(place.image.normal for place in places)
    strongest = max(finding.score for image in evaluation.evaluated if image.normal for finding in image.findings)
    assert scores[0] == strongest
    above = list_false_alarms(evaluation.evaluated, threshold=scores[2], count=7)  # no alarm is below its threshold
    assert [place.title for place in above] == [
        p.title for p, score in zip(places, scores, strict=True) if score > scores[2]
    ]
    assert list_false_alarms(evaluation.evaluated, threshold=strongest, count=7) == []


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


def test_a_lesion_outside_its_image_leaves_it_incomplete(model, partly, caplog):
    row = next(row for row in partly.rows if row.label == "positive" and row.complete)
    outside = Lesion(row.image_id, "Mass", "point", ((9000.0, 5.0),))
    found, _ = evaluate_image(
        model, row, (outside, *partly.lesions_of(row.image_id)), examine_image(model, read_row(row))
    )
    assert not found.row.complete
    assert found.match.targets
    assert not build_outcomes([found], QUERIES["all"])[0].complete
