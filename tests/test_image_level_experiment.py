"""Whole pictures, one class: reproduce brainmri and chestxray, on a few synthetic pictures."""

import dataclasses
import json
import re
import shutil

import numpy as np
import PIL.Image
import pyarrow.parquet as parquet
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from unary.cli.main import main
from unary.errors import SplitError, TrainingError
from unary.experiments import image_level, image_level_cells, image_level_copies
from unary.experiments.contenders import Contender, Control, ControlConfig
from unary.experiments.image_level import TURNED, ImageLevelConfig, list_rows, run_image_level
from unary.experiments.image_level_cells import PictureRow, choose_spread
from unary.experiments.image_level_report import find_best_control, write_image_level_report
from unary.experiments.image_level_sets import open_brain_mr, open_chest_films
from unary.experiments.image_level_stages import SPLITS
from unary.outputs.leads import judge_difference
from unary.profiles import find_profile

TRAIN, TEST = 16, 14


def draw_picture(rng, *, sick, shape):
    """A bright disc on a cloudy ground; with a bright spot in it, and darker as a whole, where it is sick."""
    rows, cols = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None] - 0.5
    values = 60 + rng.normal(0, 8) + 90 * (np.hypot(rows - rng.normal(0, 0.02), cols) < 0.35) + rng.normal(0, 4, shape)
    cloud = ndimage.gaussian_filter(rng.normal(size=shape), 5)
    values += 25 * cloud / cloud.std()  # so that no picture is nearly another
    if sick:
        values += 80 * (np.hypot(rows - rng.uniform(-0.2, 0.2), cols - 0.1) < 0.09) - 14
    return np.clip(values, 0, 255).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    """A brain MR set in which sick pictures are larger, and two normal test pictures are copies, one nearly."""
    folder, rng = tmp_path_factory.mktemp("brain"), np.random.default_rng(3)
    for name, count in (("train/normal", TRAIN), ("test/normal", TEST), ("test/abnormal", TEST)):
        for number in range(count):
            shape = (60, 64) if "abnormal" in name else (40 + number % 3, 44)
            save(folder / name / f"{number}.png", draw_picture(rng, sick="abnormal" in name, shape=shape))
    shutil.copy(folder / "train/normal/0.png", folder / "test/normal/0.png")
    shutil.copy(folder / "test/normal/1.png", folder / "test/normal/2.png")
    near = np.asarray(PIL.Image.open(folder / "train/normal/4.png")).astype(float) + rng.normal(0, 3, (41, 44))
    save(folder / "test/normal/3.png", near.clip(0, 255).astype(np.uint8))
    return folder


def quick_rows(*_):
    """What takes no time: the mean of a picture, as a detector and, of the whole picture as one patch, as another."""
    mean = Contender("mean", Control())
    spread = Contender("spread", Control(ControlConfig("standard_deviation")))
    return PictureRow(mean, side_px=32), PictureRow(spread, side_px=32)


CONFIG = ImageLevelConfig(side_px=32, seeds=(0, 1), resamples=60)


@pytest.fixture(scope="module")
def result(brain, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    found = run_image_level(open_brain_mr(brain), out, CONFIG, rows=quick_rows(), progress=False)
    write_image_level_report(found, out / "report.html")
    return found, out


def test_figures_agree_with_the_stored_scores_and_with_scikit_learn(result):
    found, out = result
    table = parquet.read_table(out / "scores.parquet")
    columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    stored = json.loads((out / "metrics.json").read_text())
    assert set(stored["detectors"]) == {"mean", "spread", *found.stages["as_files"].controls}
    for name, splits in stored["detectors"].items():
        assert set(splits) == set(SPLITS)
        for split, groups in splits.items():
            areas = [
                roc_auc_score(columns["positive"][chosen], columns[f"score_{name}"][chosen])
                for seed in CONFIG.seeds
                for chosen in [(columns["split"] == split) & (columns["seed"] == seed)]
            ]
            assert groups["image"]["auroc"] == pytest.approx(np.mean(areas))
            assert groups["image"]["auroc_per_seed"] == pytest.approx(areas)
    assert stored["meta"]["subject"] == "mean"
    assert stored["meta"]["notice"].startswith("Research software")


def test_copies_are_counted_left_out_and_never_resampled_apart(result):
    found, _ = result
    counts = found.meta["counts"]
    assert counts["test_copies_of_training"] == counts["test_negative_copies_of_training"] == 1
    assert counts["test_copies_of_test"] == 1
    both, without = found.tables["as_files"][0], found.tables["as_files_without_copies"][0]
    assert len(both) == 2 * TEST
    assert len(without) == counts["test_without_copies"] == 2 * TEST - 2
    assert not {"test/normal/0", "test/normal/2"} & set(without.image)
    unit = dict(zip(both.image, both.patient, strict=True))
    assert unit["test/normal/1"] == unit["test/normal/2"]
    assert len(set(both.patient)) == 2 * TEST - 1


def test_near_copies_are_left_out_too(result):
    found, _ = result
    counts = found.meta["counts"]
    assert counts["test_near_copies_of_training"] == counts["test_negative_near_copies_of_training"] == 2
    assert counts["test_without_near_copies"] == 2 * TEST - 3
    left = set(found.tables["one_bandwidth_without_near_copies"][0].image)
    assert {f"test/normal/{number}" for number in range(TEST)} - left == {
        "test/normal/0",
        "test/normal/2",
        "test/normal/3",
    }


def test_where_near_copies_leave_one_side_empty_there_is_no_such_figure(brain, tmp_path, monkeypatch):
    monkeypatch.setattr(image_level_copies, "NEAR", -1.0)  # everything is nearly everything
    config = dataclasses.replace(CONFIG, seeds=(0,))
    found = run_image_level(open_brain_mr(brain), tmp_path, config, rows=quick_rows(), progress=False)
    assert set(found.tables) == {split for split in SPLITS if not split.endswith("near_copies")}
    write_image_level_report(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Without copies" in page
    assert "Without near copies" not in page
    assert "nothing here tells how new pictures would fare" in page


def test_no_more_is_said_where_pictures_are_left(result):
    assert "nothing here tells" not in (result[1] / "report.html").read_text()


def test_size_tells_all_of_the_files_and_nothing_at_one_bandwidth(result):
    found, _ = result
    size = found.metrics["image_size"]
    assert size["as_files"]["image"]["auroc"] == 1
    assert size["one_bandwidth"]["image"]["auroc"] == 0.5
    assert find_best_control(found, "as_files") == ("image_size", 1.0)


def test_a_control_below_chance_is_compared_in_its_better_direction(result):
    found, _ = result
    area = found.metrics["mean_brightness"]["one_bandwidth"]["image"]["auroc"]
    assert area < 0.5
    own = found.metrics["mean"]["one_bandwidth"]["image"]["auroc"]
    differences = found.differences["one_bandwidth"]
    assert differences["mean_brightness" + TURNED].value == pytest.approx(own - (1 - area))
    assert "mean_brightness" not in differences
    assert differences["spread"].value == pytest.approx(
        own - found.metrics["spread"]["one_bandwidth"]["image"]["auroc"]
    )


def test_the_report_opens_with_what_was_found_and_names_the_publication(result):
    found, out = result
    page = (out / "report.html").read_text()
    lead = re.search(r'class="lead">(.*?)</p>', page, re.DOTALL)
    assert lead is not None
    text = " ".join(lead[1].split())
    assert "Compared were 14 slices with a tumour (14 distinct pictures) against 14 slices without one" in text
    assert "With the files as they are, mean has an AUROC of" in text
    verdict = judge_difference(found.differences["as_files"]["image_size"])
    assert f"the best control, image size, has 1.000, and mean is {verdict} it" in text
    assert "the interval of mean, with the files as they are, lies below it" in text
    for words in ("arXiv:2403.09303", "Autoencoder (32)", "No patient is known", "turned over", "cycles per side"):
        assert words in page
    assert page.count("data:image/png") == 9
    assert all(link not in page for link in ('src="http', 'href="http'))
    for name in ("mean", "spread"):
        assert f"{found.metrics[name]['one_bandwidth']['image']['auroc']:.3f}" in page


def test_an_interrupted_run_goes_on_and_gives_the_same(brain, tmp_path, monkeypatch, result):
    examine, seen = image_level_cells.examine_image, []

    def examine_some(model, image):
        seen.append(image)
        if len(seen) == 3 * 2 * TEST:  # in the third of four; a control learns the same under every seed
            raise KeyboardInterrupt
        return examine(model, image)

    monkeypatch.setattr(image_level_cells, "examine_image", examine_some)
    data = open_brain_mr(brain)
    with pytest.raises(KeyboardInterrupt):
        run_image_level(data, tmp_path, CONFIG, rows=quick_rows(), progress=False)
    assert not (tmp_path / "metrics.json").exists()
    kept = sorted((tmp_path / "runs").glob("*.npz"))
    assert len(kept) == 4
    for path in kept[:2]:  # both seeds of one condition: what is damaged is done again
        path.write_bytes(path.read_bytes()[:50])
    seen.clear()
    monkeypatch.setattr(image_level_cells, "examine_image", lambda *given: (seen.append(given), examine(*given))[1])
    resumed = run_image_level(data, tmp_path, CONFIG, rows=quick_rows(), progress=False)
    assert len(seen) == 3 * 2 * TEST
    assert resumed.metrics == result[0].metrics


class Failing(Control):
    """A detector whose training fails."""

    def fit(self, normals, context):
        raise TrainingError("has diverged")


def test_a_detector_that_fails_is_named_and_the_others_go_on(brain, tmp_path):
    rows = (PictureRow(Contender("failing", Failing()), side_px=32), *quick_rows())
    config = dataclasses.replace(CONFIG, seeds=(4,))
    found = run_image_level(open_brain_mr(brain), tmp_path, config, rows=rows, progress=False)
    assert found.failures == {"failing": "failing, as_files, seed 4: has diverged"}
    assert found.subject == "mean"
    with pytest.raises(TrainingError, match="no detector could be run"):
        run_image_level(open_brain_mr(brain), tmp_path, config, rows=rows[:1], progress=False)


def test_pictures_shown_are_spread_over_the_scores():
    scores, positive = np.r_[np.arange(100.0), np.arange(50.0)], np.arange(150) >= 100
    chosen = choose_spread(scores, positive)
    assert scores[chosen].tolist() == sorted(scores[chosen[:6]]) + sorted(scores[chosen[6:]])
    assert positive[chosen].tolist() == [False] * 6 + [True] * 6
    assert np.ptp(np.diff(scores[chosen[:6]])) <= 1


def test_the_detectors_are_the_profile_s_first_and_each_once():
    rows = list_rows(find_profile("general"))
    assert rows[0].name == find_profile("general").detector
    assert {"wei2018", "fusion_unlearned"} <= {row.name for row in rows}
    assert len({row.name for row in rows}) == len(rows)
    twice = list_rows(dataclasses.replace(find_profile("general"), detector="wei2018"))
    assert [row.name for row in twice] == ["wei2018", "fusion_unlearned"]


def test_a_patient_on_both_sides_is_refused(brain, tmp_path):
    data = open_brain_mr(brain)
    one = dataclasses.replace(data.train[0], patient_id=data.test[0].patient_id)
    mixed = dataclasses.replace(data, train=(one, *data.train[1:]), has_patients=True)
    with pytest.raises(SplitError):
        run_image_level(mixed, tmp_path, CONFIG, rows=quick_rows(), progress=False)


@pytest.fixture
def quick(monkeypatch):
    """Make the commands run on small pictures with quick detectors."""
    monkeypatch.setattr(image_level, "list_rows", quick_rows)
    small = dataclasses.replace(CONFIG)
    monkeypatch.setattr(image_level, "ImageLevelConfig", lambda seeds: dataclasses.replace(small, seeds=seeds))


def test_brainmri_is_one_command(brain, tmp_path, capsys, quick):
    words = ["reproduce", "brainmri", "--data", str(brain), "--out", str(tmp_path), "--runs", "1"]
    assert main([*words, "--note", "few pictures"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^one_bandwidth_without_near_copies +mean +AUROC", told, re.MULTILINE)
    assert str(tmp_path / "report.html") in told
    assert {"metrics.json", "report.html", "scores.parquet", "runs"} <= {path.name for path in tmp_path.iterdir()}
    assert "few pictures" in (tmp_path / "report.html").read_text()


def test_chestxray_is_one_command_that_skips_damaged_films_by_name(tmp_path, capsys, quick):
    rng = np.random.default_rng(5)
    for number in range(40):
        save(tmp_path / f"in/normal/IM-{number:04d}-0001.png", draw_picture(rng, sick=False, shape=(40, 40)))
        save(tmp_path / f"in/abnormal/person{number}_virus_9.png", draw_picture(rng, sick=True, shape=(40, 40)))
    (tmp_path / "in/normal/IM-0002-0009.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = ["reproduce", "chestxray", "--data", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--runs", "1"]
    assert main(words) == 3
    document = json.loads((tmp_path / "out/metrics.json").read_text())
    assert len(document["meta"]["skipped"]) == 1
    assert "IM-0002-0009.png" in document["meta"]["skipped"][0]
    page = (tmp_path / "out/report.html").read_text()
    assert "made smaller" in page
    assert "films with pneumonia" in page
    assert "Beside published figures" not in page
    shutil.copytree(tmp_path / "in/abnormal", tmp_path / "test/abnormal")
    save(tmp_path / "test/normal/IM-0900-0001.png", draw_picture(rng, sick=False, shape=(40, 40)))
    words = [*words[:5], str(tmp_path / "other"), "--test", str(tmp_path / "test"), "--runs", "1"]
    assert main(words) == 3
    document = json.loads((tmp_path / "other/metrics.json").read_text())
    assert document["meta"]["counts"]["train"] == 40
    assert (document["meta"]["counts"]["test_negative"], document["meta"]["counts"]["test_positive"]) == (1, 40)
    assert "Too few to tell" in capsys.readouterr().out


def test_a_wrong_folder_is_named(tmp_path, capsys):
    assert main(["reproduce", "brainmri", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "train/normal, test/normal, test/abnormal" in capsys.readouterr().err


def test_open_chest_films_is_divided_by_patient(tmp_path):
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        save(tmp_path / f"normal/IM-{number:04d}-0001.png", pixels)
        save(tmp_path / f"abnormal/person{number}_virus_9.png", pixels + 1)
    data = open_chest_films(tmp_path)
    assert not {row.patient_id for row in data.train} & {row.patient_id for row in data.test}
