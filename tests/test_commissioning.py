"""A commissioning test: what it asks is repeated exactly, what it counts is right, and what it must say it says."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from unary.cli.main import main
from unary.datasets.manifest import write_manifest
from unary.datasets.simulated.plans import LesionPlan
from unary.detectors.laplacian import Laplacian
from unary.evaluation.clustered import weigh_alarms
from unary.evaluation.commissioning import Answer, Answers, Insertion, ask_model, choose_rows, insert_row, measure_image
from unary.evaluation.commissioning_plans import CommissionConfig, MassGrid, SpeckGrid, choose_plans
from unary.evaluation.commissioning_summary import describe_alarms, describe_readers_care, summarise
from unary.models.calibration import NormalScores, calibrate
from unary.models.examination import build_detection
from unary.models.fitting import FitConfig, fit
from unary.patches.collection import read_row
from unary.records import NOTICE, ManifestRow

PLANS = (
    LesionPlan("speck", 1, 0.0, 0.5, 1.0),
    LesionPlan("speck", 1, 0.0, 0.5, 30.0),
    LesionPlan("irregular_mass", 1, 0.0, 200.0, 1.0),  # no breast has room for it
)
MADE = {"model": "m", "unary": "1"}


@pytest.fixture(scope="module")
def model(normals):
    patients = sorted({row.patient_id for row in normals.rows})[:4]
    rows = tuple(row for row in normals.rows if row.patient_id in patients)
    made = fit(normals.select(rows), FitConfig(held_out=0), detector=Laplacian(), progress=False)
    rng = np.random.default_rng(0)
    scored = [NormalScores(f"P{n}", (float(s),), float(s)) for n, s in enumerate(rng.uniform(3, 6, 25))]
    return dataclasses.replace(made, calibration=calibrate(scored))


@pytest.fixture(scope="module")
def new_rows(normals):
    patients = sorted({row.patient_id for row in normals.rows})[4:]
    return [row for row in normals.rows if row.patient_id in patients]


@pytest.fixture(scope="module")
def asked(model, new_rows, tmp_path_factory):
    kept = tmp_path_factory.mktemp("kept")
    broken = kept / "broken.dcm"
    broken.write_bytes(b"no image")
    rows = [*new_rows, ManifestRow(broken, "broken", "PX", label="negative")]
    return kept, rows, ask_model(model, rows, PLANS, seed=3, kept=kept, made_from=MADE, progress=False)


def test_one_bad_image_stops_nothing_and_faint_and_strong_specks_differ(asked, new_rows):
    _, _, answers = asked
    assert [row.image_id for row in answers.rows] == [row.image_id for row in new_rows]
    ((name, reason, detail),) = answers.failed
    assert (name, reason) == ("broken", "NOT_READABLE")
    assert str(asked[0]) not in detail
    for answer in answers.answers:
        faint, strong, huge = answer.insertions
        assert strong.score > 0
        assert strong.added > faint.added > 0
        assert huge == Insertion(2, None)
        assert list(answer.findings) == sorted(answer.findings, reverse=True)


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(asked, model):
    kept, rows, answers = asked
    (path,) = kept.glob("answers-*.jsonl")
    whole = path.read_text()
    path.write_text(whole[: whole.index("\n") + 40])  # the second line is cut off
    again = ask_model(model, rows, PLANS, seed=3, kept=kept, made_from=MADE, progress=False)
    assert again.kept == 1
    plain = [dataclasses.replace(answer, seconds=0) for answer in again.answers]
    assert plain == [dataclasses.replace(answer, seconds=0) for answer in answers.answers]
    other = ask_model(model, rows[:1], PLANS[:1], seed=4, kept=kept, made_from=MADE, progress=False)
    assert other.kept == 0, "another seed asks something else"
    assert other.answers[0].insertions[0].centre != answers.answers[0].insertions[0].centre


def test_what_is_inserted_is_the_same_at_every_call_and_found_as_detect_would(asked, model):
    _, rows, answers = asked
    image = read_row(rows[0])
    clean, tissue = measure_image(model, image)
    one, two = (insert_row(rows[0], image, tissue, PLANS[1], place=1, seed=3) for _ in range(2))
    assert np.array_equal(one.pixels, two.pixels)
    assert one.centre == answers.answers[0].insertions[1].centre
    changed = dataclasses.replace(image, pixels=one.pixels)
    found = build_detection(measure_image(model, changed)[0], model, None)
    assert answers.answers[0].insertions[1].score in [finding.score for finding in found.findings]
    untouched = build_detection(clean, model, None)
    assert answers.answers[0].findings == tuple(finding.score for finding in untouched.findings)


def build_answers(count, images, *, findings, hits):
    """Answers of so many patients: the findings of each image, and whether a lesion's finding scores above 5."""
    rows, answers = [], []
    for number in range(count):
        for each in range(images):
            name = f"I{number}-{each}"
            rows.append(ManifestRow(None, name, f"P{number}", label="negative"))
            score = 5.9 if hits(number, each) else None
            own = (Insertion(0, (1.0, 1.0), score, None, 10.0), *(Insertion(place, None) for place in (1, 2)))
            found = findings(number, each)
            top = found[0] if found else 0.123
            answers.append(Answer(name, "", top, found, own, (), 1.0))
    return Answers(tuple(rows), tuple(answers), ())


def test_counts_and_intervals_are_those_of_patients(model):
    answers = build_answers(
        10, 2, findings=lambda n, e: (9.0, 8.0) if n < 3 and e == 0 else (), hits=lambda n, e: n < 5
    )
    made = summarise(model, PLANS, answers, seed=0, seen=0)
    points = model.calibration.operating_points
    alarms = made.false_alarms[0]
    assert alarms.share.value == pytest.approx(3 * 0.5 / 10)
    assert alarms.findings.value == pytest.approx(3 * 1 / 10)
    assert alarms.alarmed == 3
    first = made.sensitivities[0]
    threshold = points[0].threshold
    assert (first.lesions, first.patients, first.share.value) == (20, 10, 0.5 if threshold < 5.9 else 0.0)
    sure = next(each for each in made.sensitivities if each.point == "2")
    assert sure.found == 10
    assert sure.share.low < 0.25, "ten images of five patients are not ten of ten"
    missing = [each for each in made.sensitivities if each.plan == PLANS[2]]
    assert {each.no_room for each in missing} == {20}
    assert all(each.share is None for each in missing)


def test_false_alarms_are_judged_by_the_exact_test_and_not_where_patients_are_known(model):
    every = build_answers(12, 1, findings=lambda n, e: (9.0,), hits=lambda n, e: True)
    made = summarise(model, PLANS, every, seed=0, seen=0)
    strict = made.false_alarms[0]
    assert strict.verdict == "exceeded"
    assert strict.p_value == weigh_alarms(12, 12, strict.point.false_alarm_rate, 25)
    assert "MORE THAN GUARANTEED" in describe_alarms(strict)
    quiet = summarise(
        model, PLANS, build_answers(12, 1, findings=lambda n, e: (), hits=lambda n, e: True), seed=0, seen=0
    )
    assert {each.verdict for each in quiet.false_alarms} <= {"kept", "nothing guaranteed"}
    seen = summarise(model, PLANS, every, seed=0, seen=4)
    assert {each.verdict for each in seen.false_alarms} <= {"not judged", "nothing guaranteed"}
    assert "fitted on 4 of these 12 patients" in describe_readers_care(seen)[0]
    unknown = summarise(model, PLANS, every, seed=0, seen=None)
    assert "cannot be told" in describe_readers_care(unknown)[0]


def test_images_of_the_calibration_are_recognised_by_their_scores(model):
    scores = model.calibration.scores
    answers = build_answers(5, 1, findings=lambda n, e: (scores[n],), hits=lambda n, e: True)
    made = summarise(model, PLANS, answers, seed=0, seen=0)
    assert made.calibrated_on == 5
    assert not made.independent
    assert "of the model's calibration" in describe_readers_care(made)[0]


def test_settings_are_checked_and_images_spread():
    assert len(choose_plans(CommissionConfig())) == 27
    assert {plan.kind for plan in choose_plans(CommissionConfig(), ("masses",))} == {"irregular_mass"}
    with pytest.raises(ValueError, match="sizes_mm"):
        SpeckGrid(sizes_mm=(0.0,))
    with pytest.raises(ValueError, match="most_images"):
        CommissionConfig(most_images=0)
    assert choose_plans(CommissionConfig(masses=MassGrid((10.0,), (1.0, 1.0))), ("masses",)) == (
        LesionPlan("irregular_mass", 1, 0.0, 10.0, 1.0),
    )
    assert choose_rows(list("abcdefg"), 3) == ["a", "d", "g"]
    assert choose_rows(list("ab"), None) == ["a", "b"]


def test_the_command_writes_a_report_to_sign(normals, new_rows, model, tmp_path, capsys):
    fitted = fit(normals, FitConfig(held_out=0.5), detector=Laplacian(), progress=False)
    fitted.save(tmp_path / "model")
    write_manifest(normals.select(tuple(new_rows)), tmp_path / "own.csv")
    words = ["commission", str(tmp_path / "model"), str(tmp_path / "own.csv"), "--out", str(tmp_path / "out")]
    asked = ["--only", "specks", "--specks-sizes-mm", "0.5", "--specks-contrasts", "3,20", "--most-images", "2"]
    assert main([*words, *asked]) == 0
    said = capsys.readouterr().out
    assert "The model was fitted on" in said, "the patients are those that it was fitted on"
    page = (tmp_path / "out" / "report.html").read_text()
    document = json.loads((tmp_path / "out" / "commissioning.json").read_text())
    for words_ in (NOTICE, "To be signed", document["model_sha256"], document["moment"], "data:image/png"):
        assert words_ in page
    assert document["images"]["used"] == 2
    assert {each["verdict"] for each in document["false_alarms"]} <= {"not judged", "nothing guaranteed"}
    rows = list(csv.DictReader((tmp_path / "out" / "sensitivity.csv").read_text().splitlines()))
    assert {(row["size_mm"], row["contrast"]) for row in rows} == {("0.5", "3.0"), ("0.5", "20.0")}
    lesions = list(csv.DictReader((tmp_path / "out" / "lesions.csv").read_text().splitlines()))
    assert len(lesions) == 4
    assert main([*words, *asked]) == 0
    assert "2 of them done before" in capsys.readouterr().out
    assert main([*words, "--only", "spots"]) == 2
    assert "--only needs some of specks" in capsys.readouterr().err
    dataclasses.replace(fitted, calibration=None).save(tmp_path / "plain")
    assert main(["commission", str(tmp_path / "plain"), *words[2:]]) == 2
    assert "not calibrated" in capsys.readouterr().err
