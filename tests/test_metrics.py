"""The summary of score tables, and both on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from sklearn.metrics import roc_auc_score

from unary.evaluation.intervals import Run, estimate_over_seeds
from unary.evaluation.metrics import (
    ScoreTable,
    compare_detectors,
    select_runs,
    summarise,
    write_metrics,
    write_scores,
)
from unary.evaluation.roc import (
    EvaluationError,
    average_precision,
    sensitivity_at_specificity,
    weighted_average_precisions,
)


def build_table(seed: int = 0, *, split: str = "patch", images: int = 60) -> ScoreTable:
    """Ten patches per image; every third image has lesions in its first patches, and calm tissue beside them."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(images), 10)
    place = np.tile(np.arange(10), images)
    diseased = number % 3 == 0
    mass = diseased & (place < 2)
    calcification = diseased & (place >= 1) & (place < 4)
    positive = mass | calcification
    noise = rng.normal(size=number.size)
    return ScoreTable(
        scores={"good": noise + 2 * positive, "image": rng.normal(size=images)[number] + diseased, "flat": noise * 0},
        positive=positive,
        groups={"calcification": calcification, "mass": mass, "normal_looking": diseased & ~positive},
        patient=np.array([f"p{n // 2}" for n in number]),
        image=np.array([f"i{n}" for n in number]),
        row=place * 128,
        col=place * 0,
        seed=seed,
        split=split,
    )


def test_rates_get_intervals_over_patients_when_asked() -> None:
    table = build_table()
    plain = summarise([table], rng=np.random.default_rng(0), resamples=300)
    bounded = summarise([table], rng=np.random.default_rng(0), resamples=300, rate_intervals=True)
    for name, groups in plain.items():
        for group, found in groups.items():
            more = bounded[name][group]
            assert {key: more[key] for key in found} == found
            low, high = more["average_precision_ci95"] or (0, 1)
            assert low <= found["average_precision"] <= high or name == "flat"
            for level, (low, high) in more["sensitivity_ci95"].items():
                assert low <= found["sensitivity_at_specificity"][level] <= high
    assert bounded["flat"]["all"]["sensitivity_ci95"]["0.95"] == pytest.approx([0, 1 - 0.025 ** (1 / 15)])
    positive, negative = table.roles("all")
    kept = positive | negative
    drawn = np.random.default_rng(int(np.random.default_rng(0).integers(2**63)))
    run = Run(table.scores["good"][kept], positive[kept], table.patient[kept])
    expected = estimate_over_seeds([run], compute=weighted_average_precisions, rng=drawn, resamples=300)
    assert bounded["good"]["all"]["average_precision_ci95"] == pytest.approx([expected.low, expected.high])


def test_summary_equals_each_statistic_worked_out_alone() -> None:
    tables = [build_table(seed) for seed in range(3)]
    summary = summarise(tables, rng=np.random.default_rng(0), resamples=200)
    assert list(summary) == ["good", "image", "flat"]
    for name, groups in summary.items():
        assert list(groups) == ["all", "calcification", "mass", "normal_looking"]
        for group, found in groups.items():
            cases = []
            for table in tables:
                healthy = np.array([int(image[1:]) % 3 != 0 for image in table.image])
                chosen = table.positive if group == "all" else table.groups[group]
                kept = healthy | chosen
                cases.append((table.scores[name][kept], chosen[kept]))
            areas = [roc_auc_score(truth, scores) for scores, truth in cases]
            assert found["auroc_per_seed"] == pytest.approx(areas)
            assert found["auroc"] == pytest.approx(np.mean(areas))
            assert found["average_precision"] == pytest.approx(np.mean([average_precision(*case) for case in cases]))
            assert list(found["sensitivity_at_specificity"]) == ["0.90", "0.95", "0.99"]
            for level, value in found["sensitivity_at_specificity"].items():
                alone = [sensitivity_at_specificity(*case, specificity=float(level)) for case in cases]
                assert value == pytest.approx(np.mean(alone))
            if name == "flat":  # which every draw repeats
                assert found["auroc_ci95"] is None
                continue
            low, high = found["auroc_ci95"]
            assert low <= found["auroc"] <= high
    counts = summary["good"]["mass"]
    assert (counts["n_positive"], counts["n_negative"], counts["n_images"], counts["n_patients"]) == (40, 400, 60, 30)
    assert (counts["n_positive_patients"], counts["n_negative_patients"]) == (20, 30)


def test_controls_show_image_identity() -> None:
    """A score that knows only the image is above chance on patches that hold no lesion; a lesion score is not."""
    summary = summarise([build_table(seed) for seed in range(3)], rng=np.random.default_rng(0), resamples=300)
    assert summary["image"]["normal_looking"]["auroc_ci95"][0] > 0.5
    low, high = summary["good"]["normal_looking"]["auroc_ci95"]
    assert low < 0.5 < high


def test_counts_are_of_distinct_patches_over_seeds() -> None:
    first, other = build_table(0), build_table(1)
    moved = ScoreTable(
        other.scores, other.positive, other.groups, other.patient, other.image, other.row + 64, other.col, 1, "patch"
    )
    rng = np.random.default_rng(0)
    same = summarise([first, other], rng=rng, resamples=5)["good"]["all"]
    apart = summarise([first, moved], rng=rng, resamples=5)["good"]["all"]
    assert (same["n_positive"], same["n_negative"]) == (80, 400)
    assert (apart["n_positive"], apart["n_negative"], apart["n_patients"]) == (160, 800, 30)


def test_constant_detector_is_reported_with_a_note() -> None:
    found = summarise([build_table()], rng=np.random.default_rng(0), resamples=20)["flat"]["all"]
    assert (found["auroc"], found["auroc_ci95"]) == (0.5, None)
    assert "all scores are equal" in found["note"]
    assert "note" not in summarise([build_table()], rng=np.random.default_rng(0), resamples=20)["good"]["all"]


def test_few_patients_are_said() -> None:
    few = summarise([build_table(images=12)], rng=np.random.default_rng(0), resamples=20)["good"]["all"]
    assert "rests on 4 patients with positives and 6 with negatives" in few["note"]
    table = build_table(images=4)
    alone = ScoreTable(
        table.scores,
        table.positive,
        table.groups,
        np.full(40, "p"),
        table.image,
        table.row,
        table.col,
        0,
        "patch",
    )
    found = summarise([alone], rng=np.random.default_rng(0), resamples=20)["good"]["all"]
    assert found["auroc_ci95"] is None
    assert "no interval: 1 patient with positives and 1 with negatives: too few to tell" in found["note"]


def test_a_detector_more_changes_no_number_of_the_others() -> None:
    table = build_table()
    alone = ScoreTable(
        {"image": table.scores["image"]},
        table.positive,
        table.groups,
        table.patient,
        table.image,
        table.row,
        table.col,
        0,
        "patch",
    )
    whole = summarise([table], rng=np.random.default_rng(3), resamples=50)
    assert summarise([alone], rng=np.random.default_rng(3), resamples=50)["image"] == whole["image"]


def test_groups_without_positives_are_left_out_and_seeds_without_them_are_none() -> None:
    full, bare = build_table(0), build_table(1)
    nothing = np.zeros(len(bare), bool)
    bare = ScoreTable(
        bare.scores,
        bare.positive,
        {"calcification": bare.groups["calcification"], "mass": nothing, "asymmetry": nothing},
        bare.patient,
        bare.image,
        bare.row,
        bare.col,
        1,
        "patch",
    )
    summary = summarise([full, bare], rng=np.random.default_rng(0), resamples=20)["good"]
    assert "asymmetry" not in summary
    assert summary["mass"]["auroc_per_seed"][1] is None
    assert summary["mass"]["auroc"] == summary["mass"]["auroc_per_seed"][0]
    assert select_runs([full, bare], detector="good", group="mass")[1] is None


def test_comparison_is_paired_and_signed() -> None:
    tables = [build_table(seed) for seed in range(2)]
    found = compare_detectors(tables, first="good", second="image", rng=np.random.default_rng(0), resamples=300)
    areas = summarise(tables, rng=np.random.default_rng(0), resamples=5)
    assert found.value == pytest.approx(areas["good"]["all"]["auroc"] - areas["image"]["all"]["auroc"])
    assert found.low is not None
    assert 0 < found.low < found.value


def test_contradicting_tables_are_refused() -> None:
    table = build_table()
    parts = {
        "scores": table.scores,
        "positive": table.positive,
        "groups": table.groups,
        "patient": table.patient,
        "image": table.image,
        "row": table.row,
        "col": table.col,
        "seed": 0,
        "split": "patch",
    }
    for change, words in (
        ({"row": table.row[:-1]}, "column 'row' must have 600 entries"),
        ({"scores": {}}, "at least one detector"),
        ({"groups": {"mass": ~table.positive}}, "not marked positive"),
        ({"groups": {"normal_looking": table.positive}}, "contain a lesion"),
    ):
        with pytest.raises(EvaluationError, match=words):
            ScoreTable(**{**parts, **change})
    rng = np.random.default_rng(0)
    with pytest.raises(EvaluationError, match="one split"):
        summarise([table, build_table(split="patient")], rng=rng)
    with pytest.raises(EvaluationError, match="one split"):
        summarise([], rng=rng)
    with pytest.raises(EvaluationError, match="same detectors"):
        summarise([table, ScoreTable(**{**parts, "scores": {"other": table.scores["good"]}})], rng=rng)


def test_a_set_without_positives_is_refused() -> None:
    table = build_table()
    nothing = np.zeros(len(table), bool)
    bare = ScoreTable(table.scores, nothing, {}, table.patient, table.image, table.row, table.col, 0, "test")
    with pytest.raises(EvaluationError, match="0 positive and 600 negative"):
        summarise([bare], rng=np.random.default_rng(0))


def test_metrics_file_is_sorted_strict_and_whole(tmp_path: Path) -> None:
    summary = summarise([build_table()], rng=np.random.default_rng(0), resamples=20)
    detectors = {name: {"patch": groups} for name, groups in summary.items()}
    path = tmp_path / "deep" / "metrics.json"
    write_metrics(path, detectors, meta={"seeds": [0], "data": "Ärzte"})
    text = path.read_text(encoding="utf-8")
    document = json.loads(text)
    assert document == {"detectors": detectors, "meta": {"seeds": [0], "data": "Ärzte"}}
    assert text == json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    with pytest.raises(ValueError, match="JSON"):
        write_metrics(path, detectors, meta={"loss": float("nan")})
    assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.json"]


def test_scores_file_gives_back_every_column(tmp_path: Path) -> None:
    first, second = build_table(0), build_table(1, split="patient")
    second = ScoreTable(
        {"good": second.scores["good"]},
        second.positive,
        {"mass": second.groups["mass"]},
        second.patient,
        second.image,
        second.row,
        second.col,
        1,
        "patient",
    )
    path = tmp_path / "scores.parquet"
    write_scores(path, [first, second])
    frame = parquet.read_table(path)
    assert frame.column_names == [
        *["split", "seed", "image_id", "patient_id", "row", "col", "positive"],
        *["group_calcification", "group_mass", "group_normal_looking", "score_good", "score_image", "score_flat"],
    ]
    columns = frame.to_pydict()
    np.testing.assert_array_equal(columns["score_good"], np.concatenate([first.scores["good"], second.scores["good"]]))
    assert columns["split"] == ["patch"] * 600 + ["patient"] * 600
    assert columns["seed"] == [0] * 600 + [1] * 600
    assert columns["image_id"][:600] == first.image.tolist()
    assert columns["patient_id"][600:] == second.patient.tolist()
    assert columns["row"][:600] == first.row.tolist()
    assert columns["group_mass"][600:] == second.groups["mass"].tolist()
    assert columns["group_calcification"][600:] == [None] * 600
    assert columns["score_image"][600:] == [None] * 600
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.parquet"]
    with pytest.raises(EvaluationError, match="no scores"):
        write_scores(path, [])


def test_runs_hold_group_and_negatives_only() -> None:
    table = build_table()
    (run,) = select_runs([table], detector="good", group="calcification")
    assert isinstance(run, Run)
    assert run.positive.sum() == table.groups["calcification"].sum()
    assert (~run.positive).sum() == 400
