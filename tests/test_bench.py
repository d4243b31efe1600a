import dataclasses
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.detectors import DETECTORS
from unary.detectors.protocol import DetectorState
from unary.detectors.residual import Residual, ResidualConfig
from unary.detectors.scoring import measure_controls, score_patches
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.detectors.windows import PatchExamination, examine_windows
from unary.errors import DetectorError, ManifestError, SplitError, TrainingError
from unary.evaluation.roc import auroc
from unary.experiments.bench import BenchConfig, run_bench
from unary.experiments.bench_data import collect_bench_data, draw_folds, name_size_groups
from unary.experiments.bench_report import (
    build_markdown,
    describe_bench,
    list_rows,
    rank_among_normals,
    write_bench_report,
)
from unary.experiments.contenders import Contender, find_contenders, list_contenders
from unary.patches.grid import GridConfig
from unary.patches.lesions import judge_patches, measure_lesion, rasterise_lesion
from unary.patches.preparation import PreparationConfig
from unary.profiles import GENERAL, MAMMOGRAPHY

GRID = GridConfig(64, 32)
CONFIG = BenchConfig(grid=GRID, seeds=(0, 1), folds=2, resamples=100)


def hash_patches(patches):
    return [zlib.crc32(np.ascontiguousarray(patch).data) for patch in patches]


def chance(patches):
    return np.asarray(hash_patches(patches)) / 2**32


def constant(patches):
    return np.ones(len(patches))


def broken(patches):
    return np.where(chance(patches) < 0.1, np.nan, chance(patches))


@dataclass(frozen=True)
class RuleConfig:
    word: str = ""


@dataclass(frozen=True, eq=False)
class Rule:
    """Scores by a rule over patches. For the test."""

    grid = "stored"
    knowledge = "normals only"

    rule: object
    config: RuleConfig = RuleConfig()
    calls: Counter = field(default_factory=Counter)
    fails_on: tuple = ()

    def fit(self, normals, context):
        assert context.checkpoint.parent.is_dir()
        self.calls[self.config.word] += 1
        if context.seed in self.fails_on:
            raise TrainingError(f"the loss is NaN with seed {context.seed}")
        return self

    def examine(self, view, origins, *, size_px, with_map=True):
        def examine(patches):
            scores = self.rule(patches)
            return PatchExamination(scores, np.broadcast_to(scores[:, None, None].astype(np.float32), patches.shape))

        return examine_windows(examine, view, origins, size_px=size_px, with_map=with_map)

    def get_state(self):
        return DetectorState({}, {"weights": np.zeros(7, np.float32)})

    @classmethod
    def from_state(cls, state):
        raise NotImplementedError


def make_row(name, rule, *, is_control=False, calls=None, fails_on=()):
    calls = Counter() if calls is None else calls
    return Contender(name, Rule(rule, RuleConfig(name), calls, fails_on), f"{name} for the test", is_control)


@pytest.fixture(scope="module")
def perfect(data):
    """Return a rule that knows which patches hold a lesion."""
    everything = data.fine.patches.gather(slice(None))
    positive = dict(zip(hash_patches(everything), data.positive, strict=True))
    return lambda patches: np.asarray([positive[key] for key in hash_patches(patches)]) + 0.1 * chance(patches)


@pytest.fixture(scope="module")
def make_rows(perfect):
    """Return what builds the rows of the bench, counting how often each is fitted."""

    def make(calls=None):
        return (
            make_row("mean_brightness", chance, is_control=True, calls=calls),
            make_row("laplacian", chance, calls=calls),
            make_row("perfect", perfect, calls=calls),
            make_row("constant", constant, calls=calls),
            make_row("broken", broken, calls=calls),
            make_row("diverging", perfect, calls=calls, fails_on=(1,)),
        )

    return make


@pytest.fixture(scope="module")
def data(phantoms):
    return collect_bench_data(phantoms, PreparationConfig(), GRID, MAMMOGRAPHY, progress=False)


@pytest.fixture(scope="module")
def bench(phantoms, make_rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    calls = Counter()
    result = run_bench(phantoms, make_rows(calls), out, CONFIG, progress=False, banners=["Synthetic data."])
    write_bench_report(result, out)
    return result, out, calls


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """Return phantoms at 0.07 mm per pixel, of odd size."""
    config = PhantomConfig(rows=421, cols=331, spacing_mm=0.07)
    folder = tmp_path_factory.mktemp("sharp")
    return write_phantom_dataset(folder, patients_normal=1, patients_abnormal=1, config=config, seed=3)


def mix_patients(manifest):
    """Give the first normal image to a patient with lesions."""
    positive = next(row for row in manifest.rows if row.label == "positive")
    rows = (dataclasses.replace(manifest.rows[0], patient_id=positive.patient_id), *manifest.rows[1:])
    return dataclasses.replace(manifest, rows=rows), positive.patient_id


def test_no_model_is_tested_on_a_patient_it_learned_from(phantoms):
    mixed, both = mix_patients(phantoms)
    data = collect_bench_data(mixed, PreparationConfig(), GRID, MAMMOGRAPHY, progress=False)
    patients = data.fine.column("patient_id")
    for count, seed in ((2, 0), (3, 1), (3, 2), (5, 3)):
        folds = draw_folds(data, count=count, seed=seed)
        tested = np.zeros(len(data), int)
        for fold in folds:
            assert data.normal[fold.train].all()
            assert not set(patients[fold.train]) & set(patients[fold.test])
            tested[fold.test] += 1
        assert (tested[data.normal] == 1).all()
        assert (tested[data.positive & (patients != both)] == count).all()
        assert (tested[data.positive & (patients == both)] == 1).all()
        assert (tested[~data.normal & ~data.positive & ~data.groups["normal_looking"]] == 0).all()
        largest = max(Counter(patients[data.normal].tolist()).values())
        sizes = [int(data.normal[fold.test].sum()) for fold in folds]
        assert max(sizes) - min(sizes) <= largest
    first, again, other = (draw_folds(data, count=3, seed=seed) for seed in (0, 0, 5))
    assert all((one.test == two.test).all() for one, two in zip(first, again, strict=True))
    assert any(
        len(one.test) != len(two.test) or (one.test != two.test).any() for one, two in zip(first, other, strict=True)
    )


def test_coarse_patches_are_the_fine_ones_at_less_resolution(sharp):
    data = collect_bench_data(sharp, PreparationConfig(), GridConfig(128, 64), MAMMOGRAPHY, progress=False)
    assert data.coarse.patches.size_px == 64
    assert len(data.coarse) == len(data.fine) > 20
    assert np.abs(data.coarse.origins * 2 - data.fine.origins).max() <= 2
    assert data.coarse.column("image_id").tolist() == data.fine.column("image_id").tolist()
    everything = np.arange(len(data))
    fine = data.fine.patches.gather(everything).reshape(-1, 64, 2, 64, 2).mean(axis=(2, 4))
    coarse = data.coarse.patches.gather(everything).astype(float)
    alike = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(fine, coarse, strict=True)]
    assert min(alike) > 0.95
    swapped = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(fine[1:], coarse, strict=False)]
    assert np.median(swapped) < 0.9
    assert data.data_hash != data.fine.data_hash


def test_a_coarse_or_unknown_spacing_leaves_one_grid(data, phantoms, sharp, caplog):
    assert data.coarse is data.fine  # 0.2 mm
    assert not caplog.records
    mixed = dataclasses.replace(phantoms, rows=phantoms.rows + sharp.rows[-2:], lesions=phantoms.lesions)
    renamed = tuple(dataclasses.replace(row, image_id=f"{k}") for k, row in enumerate(mixed.rows))
    lesions = tuple(dataclasses.replace(lesion, image_id="17") for lesion in phantoms.lesions[:2])
    differing = dataclasses.replace(mixed, rows=renamed, lesions=lesions)
    several = collect_bench_data(differing, PreparationConfig(), GRID, MAMMOGRAPHY)
    assert several.coarse is several.fine
    assert "pixel spacings differ" in caplog.text


def test_groups_by_size_follow_the_outlines(data, phantoms):
    largest = {name: np.full(len(data), -1.0) for name in MAMMOGRAPHY.reading.group_names}
    names = {"Mass": "mass", "Calcification": "calcification", "Cluster": "calcification"}
    for number, row in enumerate(data.fine.rows):
        own = np.flatnonzero(data.fine.image == number)
        for lesion in phantoms.lesions_of(row.image_id):
            held = judge_patches(*rasterise_lesion(lesion, (384, 320)), data.fine.origins[own], size_px=64)[0]
            points = np.asarray(lesion.points)
            size = 2 * lesion.radius_px if lesion.kind == "circle" else np.ptp(points, axis=0).max()
            places = own[held]
            best = largest[names[lesion.name]]
            best[places] = np.maximum(best[places], 0.2 * size)
    for kind, low, high in (("calcification", 0.5, 1.0), ("mass", 15, 30)):
        sizes = largest[kind]
        below, between, above = name_size_groups(next(g for g in MAMMOGRAPHY.reading.groups if g.name == kind))
        assert (data.groups[below] == ((sizes >= 0) & (sizes < low))).all()
        assert (data.groups[between] == ((sizes >= low) & (sizes <= high))).all()
        assert (data.groups[above] == (sizes > high)).all()
        assert (sizes >= 0).any()


def test_benign_lesions_are_positives_and_only_the_normal_category_is_normal(phantoms):
    rows = tuple(
        dataclasses.replace(row, assessment="2", label="negative") if row.label == "positive" else row
        for row in phantoms.rows
    )
    phantoms = dataclasses.replace(phantoms, rows=rows)
    benign = collect_bench_data(phantoms, PreparationConfig(), GRID, MAMMOGRAPHY, progress=False)
    assert benign.groups["calcification_birads2_4"].any()
    assert not benign.groups["calcification_birads5"].any()
    assert set(benign.fine.column("assessment")[benign.normal]) == {"1"}


def test_without_assessments_the_label_decides(phantoms):
    rows = tuple(dataclasses.replace(row, assessment=None) for row in phantoms.rows)
    phantoms = dataclasses.replace(phantoms, rows=rows)
    plain = collect_bench_data(phantoms, PreparationConfig(), GRID, MAMMOGRAPHY, progress=False)
    assert set(plain.fine.column("label")[plain.normal]) == {"negative"}
    assert (plain.positive == plain.fine.lesional).all()
    assert "calcification" in plain.groups
    assert "calcification_birads5" not in plain.groups


def test_figures_agree_with_the_scores(bench):
    result, out, _ = bench
    assert set(result.metrics) == {"mean_brightness", "laplacian", "perfect"}
    assert result.metrics["perfect"]["all"]["auroc"] == 1.0
    assert result.metrics["perfect"]["all"]["sensitivity_at_specificity"]["0.99"] == 1.0
    areas = {"mass": [], "all": []}
    for fold in result.folds:
        scores = chance(result.data.fine.patches.gather(fold.test))
        for group, found in areas.items():
            positive = result.data.groups["mass"] if group == "mass" else result.data.positive
            kept = result.data.normal[fold.test] | positive[fold.test]
            found.append(auroc(scores[kept], positive[fold.test][kept]))
    assert len(areas["all"]) == 4
    for group, found in areas.items():
        assert result.metrics["laplacian"][group]["auroc"] == pytest.approx(np.mean(found))
    difference = result.differences["laplacian"]["perfect"]["all"]
    assert difference.value == pytest.approx(1 - np.mean(areas["all"]))
    assert difference.low > 0
    assert "mass" not in result.differences["laplacian"]["perfect"], "of a single patient"
    stored = json.loads((out / "metrics.json").read_text())
    assert stored["detectors"] == json.loads(json.dumps(result.metrics))
    assert stored["meta"]["detectors"]["perfect"]["parameters"] == 7
    assert stored["meta"]["folds"][0]["test_normal_patients"] == 3


def test_what_fails_leaves_a_gap_with_its_reason_and_the_rest_goes_on(bench):
    result, out, _ = bench
    assert "all" in result.failures["constant"]
    assert "equal" in result.failures["constant"]
    assert "NaN" in result.failures["broken"]
    assert "seed 1, fold 0: the loss is NaN" in result.failures["diverging"]
    text = (out / "bench.md").read_text()
    for name in ("constant", "broken", "diverging"):
        line = next(line for line in text.splitlines() if f"| {name} |" in line)
        assert "| \u2013 [" in line
        assert result.failures[name] in text
    rows = json.loads((out / "bench.json").read_text())["rows"]
    gap = next(row for row in rows if row["detector"] == "broken")
    assert gap["auroc"] is None
    assert gap["note"] == result.failures["broken"]


def test_reports_name_every_detector_but_no_patient(bench, phantoms):
    result, out, _ = bench
    for name in ("bench.md", "bench.json", "metrics.json", "report.html"):
        text = (out / name).read_text()
        assert "not for diagnosis" in text.lower()
        assert "Synthetic data." in text
        assert all(contender.name in text for contender in result.contenders)
        if name != "report.html":  # the pictures there name images, which the phantoms name by patient
            assert not [row.patient_id for row in phantoms.rows if row.patient_id in text]
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(result.main_groups) - 1 + 2 + 1  # ROC, misses, alarms
    assert f"{result.metrics['laplacian']['all']['auroc']:.3f}" in page
    assert len(list(describe_bench(result))) == len(result.main_groups) * len(result.contenders) + 1


def test_the_shown_detector_is_the_best_that_is_no_control(bench):
    result, _, _ = bench
    assert result.best == "perfect"
    controls = dataclasses.replace(
        result, contenders=tuple(dataclasses.replace(c, is_control=True) for c in result.contenders)
    )
    assert controls.best is None
    assert "Only controls took part" in build_markdown(controls)


def with_patients(result, count):
    """Return the result as if it rested on so many patients of either side."""
    counts = {"n_positive_patients": count, "n_negative_patients": count}
    metrics = {
        name: {group: {**found, **counts} for group, found in groups.items()} for name, groups in result.metrics.items()
    }
    metrics["perfect"]["all"]["auroc_ci95"] = [0.74, 1.0]
    return dataclasses.replace(result, metrics=metrics)


def test_the_lead_claims_nothing_of_few_patients_and_names_controls_of_many(bench):
    result, out, _ = bench
    few, page = list(describe_bench(result))[-1], (out / "report.html").read_text()
    assert few.startswith("Too few patients to tell: ")
    assert few in (out / "bench.md").read_text()
    assert f'<p class="lead">{few}</p>' in page
    assert "perfect" in few
    assert "1.000" not in few
    many = list(describe_bench(with_patients(result, 12)))[-1]
    assert result.metrics["perfect"]["all"]["auroc_ci95"] == pytest.approx([0.025 ** (1 / 3), 1])  # of 3 pairs
    for words in (
        "The highest of 2 detectors, perfect, tells patches with a lesion",
        "AUROC of 1.000 (0.740 to 1.000)",
    ):
        assert words in many
    assert "It is better than laplacian (difference +" in many
    assert "and mean_brightness (difference +" in many
    assert "means over 4 runs (2 folds, seeds 0 and 1)" in page
    assert "too few patients to tell" in page
    assert "best detector" not in page


def test_places_among_normals_count_those_below(bench):
    result, _, _ = bench
    place = rank_among_normals(result, "laplacian")
    tested = np.zeros(len(result.data), bool)
    for fold in result.folds:
        tested[fold.test] = True
    assert (np.isnan(place) == ~tested).all()
    position = int(np.flatnonzero(result.data.positive)[0])
    shares = []
    for fold in result.folds:
        scores = chance(result.data.fine.patches.gather(fold.test))
        normal = scores[result.data.normal[fold.test]]
        shares.append(np.mean(normal < scores[fold.test == position]))
    assert place[position] == pytest.approx(np.mean(shares))


def test_a_second_call_fits_only_what_failed(bench, make_rows, phantoms):
    result, out, calls = bench
    before = Counter(calls)
    assert before == dict.fromkeys(before, 4)
    again = run_bench(phantoms, make_rows(calls), out, CONFIG, progress=False)
    assert calls - before == {"constant": 4, "broken": 4, "diverging": 2}
    assert again.metrics == result.metrics
    assert again.meta["detectors"]["perfect"] == result.meta["detectors"]["perfect"]


def test_nothing_stale_or_damaged_is_used_again(perfect, phantoms, tmp_path, caplog):
    calls = Counter()
    few = (make_row("perfect", perfect, calls=calls),)
    one = dataclasses.replace(CONFIG, seeds=(0,))
    first = run_bench(phantoms, few, tmp_path, one, progress=False)
    kept = sorted((tmp_path / "runs").iterdir())
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    second = run_bench(phantoms, few, tmp_path, one, progress=False)
    assert calls["perfect"] == 3
    assert "not readable" in caplog.text
    assert second.metrics == first.metrics
    brighter = dataclasses.replace(one, preparation=PreparationConfig(high_value=0.7))
    by_chance = (make_row("perfect", chance, calls=calls),)
    run_bench(phantoms, by_chance, tmp_path, brighter, progress=False)
    assert calls["perfect"] == 5
    other = Contender("perfect", dataclasses.replace(few[0].detector, config=RuleConfig("another setting")))
    run_bench(phantoms, [other], tmp_path, one, progress=False)
    assert calls["another setting"] == 2


def test_an_interrupted_bench_goes_on(bench, perfect, phantoms, tmp_path):
    calls = Counter()

    def stop(patches):
        raise KeyboardInterrupt

    stopping = (make_row("perfect", perfect, calls=calls), make_row("laplacian", stop, calls=calls))
    with pytest.raises(KeyboardInterrupt):
        run_bench(phantoms, stopping, tmp_path, CONFIG, progress=False)
    going = (stopping[0], make_row("laplacian", chance, calls=calls))
    result = run_bench(phantoms, going, tmp_path, CONFIG, progress=False)
    assert calls == {"perfect": 4, "laplacian": 5}
    assert result.metrics["laplacian"] == bench[0].metrics["laplacian"]


@pytest.fixture(scope="module")
def without_masses(phantoms):
    lesions = tuple(lesion for lesion in phantoms.lesions if lesion.name != "Mass")
    return dataclasses.replace(phantoms, lesions=lesions)


def test_a_group_without_positives_is_a_gap(without_masses, make_rows, tmp_path, caplog):
    result = run_bench(without_masses, make_rows()[:2], tmp_path, CONFIG, progress=False)
    assert "mass: there is no such patch" in caplog.text
    row = list_rows(result, ["mass"])[0]
    assert row["auroc"] is None
    assert row["note"] == "mass: there is no such patch"
    write_bench_report(result, tmp_path)
    assert "mass: there is no such patch" in (tmp_path / "bench.md").read_text()


def test_a_fold_without_positives_is_told(phantoms, make_rows, tmp_path, caplog):
    """All lesions are of a patient who also has normals, so that one fold alone may score them."""
    positive = {row.image_id for row in phantoms.rows if row.label == "positive"}
    owner = phantoms.rows[0].patient_id
    rows = tuple(
        dataclasses.replace(row, patient_id=owner) if row.image_id in positive else row for row in phantoms.rows
    )
    owned = dataclasses.replace(phantoms, rows=rows)
    result = run_bench(owned, make_rows()[1:3], tmp_path, CONFIG, progress=False)
    assert "no such patch in fold" in caplog.text
    found = result.metrics["perfect"]["all"]
    assert found["auroc_per_seed"].count(None) == 2
    assert found["auroc"] == 1.0
    assert "no such patch in fold" in list_rows(result, ["all"])[0]["note"]


def test_too_little_data_is_said_in_one_line(phantoms, make_rows, tmp_path):
    rows = make_rows()[:2]
    with pytest.raises(SplitError, match="7 folds need normal images of at least 7 patients, there are 6"):
        run_bench(phantoms, rows, tmp_path, dataclasses.replace(CONFIG, folds=7), progress=False)
    with pytest.raises(SplitError, match="at least 2 folds"):
        BenchConfig(folds=1)
    healthy = phantoms.select(tuple(row for row in phantoms.rows if row.label == "negative"))
    with pytest.raises(ManifestError, match="no patch contains a lesion"):
        run_bench(healthy, rows, tmp_path, CONFIG, progress=False)
    sick = phantoms.select(tuple(row for row in phantoms.rows if row.assessment == "5"))
    with pytest.raises(ManifestError, match="no normal patch"):
        run_bench(sick, rows, tmp_path, CONFIG, progress=False)
    with pytest.raises(TrainingError, match=r"no detector could be run.*NaN"):
        run_bench(phantoms, [make_row("broken", broken)], tmp_path, CONFIG, progress=False)


def test_without_lesions_images_are_ranked_by_the_score_of_a_model(phantoms, tmp_path):
    unlisted = dataclasses.replace(phantoms, lesions=())
    config = dataclasses.replace(CONFIG, seeds=(0,))
    result = run_bench(unlisted, ["mean_brightness", "laplacian"], tmp_path, config, progress=False)
    assert result.data.by_image
    assert {tuple(groups) for groups in result.metrics.values()} == {("image",)}
    labels = {row.image_id: row.label == "positive" for row in phantoms.rows}
    areas = []
    for table in result.tables:
        assert [labels[name] for name in table.image.tolist()] == table.positive.tolist()
        areas.append(auroc(table.scores["laplacian"], table.positive))
    found = result.metrics["laplacian"]["image"]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    assert (found["n_positive"], found["n_negative"]) == (6, 12)
    write_bench_report(result, tmp_path)
    assert [row["group"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]] == ["image"] * 2
    report = (tmp_path / "report.html").read_text()
    assert "abnormal by" not in report  # no pictures of patches
    lead = report.split('class="lead">')[1].split("</p>")[0]
    assert "6 images labelled positive (3 patients) against 12 images labelled negative (6 patients)" in lead
    results = report.split("<h2>Results</h2>")[1].split("</section>")[0]
    for words in ("patch", "lesion", "highest patch"):
        assert words not in lead
        assert words not in re.sub(r'lesions</th>|data-label="lesions"', "", results.split("<dl")[0])
    assert "means over 2 runs (2 folds, seed 0)" in results


def test_another_profile_names_no_lesions(phantoms, tmp_path):
    config = dataclasses.replace(CONFIG, profile=GENERAL, seeds=(0,))
    result = run_bench(phantoms, [make_row("chance", chance)], tmp_path, config, progress=False)
    assert result.main_groups == ("all",)
    assert result.data.coarse is result.data.fine
    write_bench_report(result, tmp_path)
    for name in ("bench.md", "report.html"):
        assert "BI-RADS" not in (tmp_path / name).read_text()


def test_rows_are_found_by_name_class_and_instance():
    listed = {row.name: row for row in list_contenders()}
    assert {"mean_brightness", "standard_deviation", *DETECTORS, "bottleneck_4", "fusion_specks"} <= set(listed)
    assert all(contender.describe() for contender in listed.values())
    assert [row.is_control for row in find_contenders(["standard_deviation", "prominence"])] == [True, False]
    own = Rule(chance, RuleConfig("mine"))
    found = find_contenders(["fusion", own, Contender("other", own), "unary.detectors.prominence:Prominence"])
    assert [row.name for row in found] == ["fusion", "Rule", "other", "Prominence"]
    assert found[1].describe() == "Scores by a rule over patches. For the test"
    for wrong, message in (
        (["fusion", "fusion"], "two rows"),
        ([], "no detector is named"),
        (["fussion"], "no detector is called 'fussion'.*bottleneck_4"),
        ([3], "int is no detector"),
    ):
        with pytest.raises(DetectorError, match=message):
            find_contenders(wrong)


def test_a_network_that_several_share_is_trained_once(phantoms, tmp_path):
    paper = Wei2018Config(training=TrainingConfig(epochs=2, batch_size=20))
    rows = [Contender("wei2018", Wei2018(paper)), Contender("residual", Residual(ResidualConfig(paper)))]
    config = dataclasses.replace(CONFIG, seeds=(0,))
    result = run_bench(phantoms, rows, tmp_path, config, progress=False)
    assert not result.failures
    assert len(list((tmp_path / "checkpoints").iterdir())) == CONFIG.folds
    alone = run_bench(phantoms, rows[1:], tmp_path / "alone", config, progress=False)
    assert alone.metrics["residual"] == result.metrics["residual"]


def test_controls_are_what_an_evaluation_measures(data):
    everything = np.arange(len(data))
    measured = measure_controls(data.fine.patches)
    for name in ("mean_brightness", "standard_deviation"):
        (row,) = find_contenders([name])
        control = row.detector.fit(data.fine.patches, None)
        np.testing.assert_allclose(score_patches(control, data.fine.patches.subset(everything)), measured[name])
        assert type(control).from_state(control.get_state()).config == control.config


def test_sizes_of_lesions(phantoms):
    def lesion(kind, points, **more):
        return dataclasses.replace(phantoms.lesions[0], kind=kind, points=points, **{"radius_px": None, **more})

    assert measure_lesion(lesion("point", ((3.0, 4.0),)), (0.1, 0.1)) == 0
    assert measure_lesion(lesion("circle", ((3.0, 4.0),), radius_px=5.0), (0.1, 0.2)) == pytest.approx(2.0)
    assert measure_lesion(lesion("box", ((0.0, 0.0), (10.0, 4.0))), (0.1, 0.2)) == pytest.approx(1.0)
    assert measure_lesion(lesion("contour", ((0.0, 0.0), (2.0, 9.0), (5.0, 1.0))), (0.1, 0.1)) == pytest.approx(0.9)
    mask = np.zeros((20, 20), bool)
    mask[4:7, 2:12] = True
    assert measure_lesion(lesion("mask", ()), (0.1, 0.1), mask=mask) == pytest.approx(1.0)
    assert measure_lesion(lesion("mask", ()), (0.1, 0.1), mask=~(mask | True)) == 0
