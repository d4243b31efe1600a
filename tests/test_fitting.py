import dataclasses
import logging
import re
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pydicom
import pytest
from slices import MR, write_pet, write_slice

import unary
from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.fusion import Fusion, FusionConfig, FusionPrior
from unary.detectors.laplacian import COARSE_LAPLACIAN, Laplacian, LaplacianConfig
from unary.detectors.scoring import measure_controls
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.errors import CalibrationError, DetectorError, ImageError, ManifestError, ProfileError, TrainingError
from unary.images.reading import read_image
from unary.models.bundle import read_model
from unary.models.calibrating import calibrate_model
from unary.models.examination import score
from unary.models.fitting import FitConfig, choose_grid, find_peaks, fit, measure_images
from unary.models.patients import read_key
from unary.models.requirements import check_detector_here
from unary.patches.collection import collect_patches
from unary.patches.grid import GridConfig, extract_patches
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import PreparationConfig
from unary.profiles import GENERAL, MAMMOGRAPHY
from unary.records import Image, Manifest
from unary.training.context import FitContext
from unary.training.engine import StepsConfig

QUICK = FitConfig(size_px=64, stride_px=32)
WEI2018 = Wei2018(Wei2018Config(training=TrainingConfig(epochs=3, batch_size=20)))


@pytest.fixture(scope="module")
def parts(phantoms):
    return unary.split_manifest(phantoms, 0.4, 0)


@pytest.fixture(scope="module")
def model(parts):
    return fit(parts[0], QUICK, detector=WEI2018)


@pytest.fixture(scope="module")
def laplacian(parts):
    return fit(parts[0], QUICK, detector="laplacian")


def patients_of(manifest):
    return sorted({row.patient_id for row in manifest.rows})


def choose(manifest, patients):
    return manifest.select(tuple(row for row in manifest.rows if row.patient_id in patients))


def test_positives_and_unknown_labels_are_refused(phantoms):
    with pytest.raises(TrainingError, match=r"6 of 18 images .* positive or unlabelled"):
        fit(phantoms, QUICK)
    unlabelled = tuple(dataclasses.replace(row, label=None) for row in phantoms.rows[:2])
    with pytest.raises(TrainingError, match="2 of 2"):
        fit(phantoms.select(unlabelled), QUICK)


def test_patch_scores_are_those_of_the_patches_and_the_image_score_that_of_the_strongest_place(model, parts):
    result = score(model, parts[1].rows[0].path)
    patches = extract_patches(result.prepared.pixels, result.origins, size_px=64)
    assert np.allclose(result.scores, model.detector.examine_patches(patches).scores, rtol=1e-5)
    assert result.image_score == result.candidates.scores[0]
    assert np.isnan(result.anomaly_map[~result.prepared.mask]).all()
    row, col = result.origins[result.scores.argmax()]
    assert np.isfinite(result.anomaly_map[row : row + 64, col : col + 64]).any()


def test_held_out_patients_set_operating_points_and_count_as_seen(normals):
    model = fit(normals, dataclasses.replace(QUICK, held_out=0.3), detector="laplacian")
    assert model.provenance.held_out_patches > 0
    assert len(model.provenance.seen.hashes) == model.provenance.seen.count == 6
    assert model.calibration.patients == 2
    names = [point.name for point in model.calibration.operating_points]
    assert names == ["0.1", "0.5", "1", "2", "patch_0.95", "patch_0.99"]
    assert model.domain.manufacturers == ("unary",)
    assert model.domain.bits == (12,)
    without = fit(normals, dataclasses.replace(QUICK, held_out=0.0), detector="laplacian")
    assert without.provenance.held_out_patches == 0
    assert without.provenance.patches == model.provenance.patches + model.provenance.held_out_patches


def test_the_seed_chooses_who_is_held_out(normals):
    def find_held_out(seed):
        model = fit(normals, dataclasses.replace(QUICK, seed=seed), detector="laplacian", progress=False)
        return model.calibration.scores, model.provenance.seed

    first = find_held_out(0)
    assert find_held_out(0) == first
    assert find_held_out(1)[0] != first[0]
    # The draw is over the sorted names: the same patients as ever for a seed.
    drawn = np.random.default_rng(0).choice(np.asarray(patients_of(normals)), 2, replace=False)
    model = fit(normals, QUICK, detector="laplacian", progress=False)
    rows = [row for row in normals.rows if row.patient_id in drawn]
    scores = sorted(score(model, row.path).image_score for row in rows)
    assert (model.calibration.scores, 0) == (tuple(scores), QUICK.seed) == first


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_where_nobody_is_held_out_there_are_no_operating_points_and_a_warning_says_so(normals, held_out, caplog):
    config = dataclasses.replace(QUICK, held_out=held_out)
    with caplog.at_level(logging.WARNING):
        model = fit(choose(normals, patients_of(normals)[:2]), config, detector="laplacian", progress=False)
    assert model.calibration is None
    assert np.isfinite(model.level)
    assert "no operating points" in caplog.text
    assert "unary calibrate" in caplog.text


def test_controls_against_numpy(normals):
    collection = collect_patches(
        normals.select(normals.rows[:1]), PreparationConfig(), GridConfig(64, 32), MAMMOGRAPHY.reading
    )
    patches = collection.patches
    values = patches.gather(slice(None)).reshape(len(patches), -1) / 65535
    controls = measure_controls(patches)
    assert np.allclose(controls["mean_brightness"], values.mean(axis=1))
    assert np.allclose(controls["standard_deviation"], values.std(axis=1))


def test_a_file_that_is_no_image_is_an_error(laplacian, tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(ImageError, match=r"notes\.png"):
        score(laplacian, tmp_path / "notes.png")


@pytest.mark.parametrize("shape", [(40, 30), (64, 64), (30, 700), (900, 50)])
def test_images_smaller_than_a_patch_and_of_any_aspect_are_scored(model, shape, tmp_path):
    pixels = np.random.default_rng(0).integers(2000, 4000, shape, dtype=np.uint16)
    pixels[: shape[0] // 4] = 10  # background
    PIL.Image.fromarray(pixels).save(tmp_path / "odd.png")
    whole = dataclasses.replace(
        model, preparation=PreparationConfig(mask="none"), grid=GridConfig(64, 32, 0.1), profile=GENERAL
    )
    result = score(whole, tmp_path / "odd.png")
    assert result.anomaly_map.shape == shape
    assert np.isfinite(result.anomaly_map).sum() == result.scored_px > 0
    assert len(result.scores) >= 1


def test_every_field_is_chosen_on_its_own(normals):
    def choose_for(config, detector_grid="working", profile=MAMMOGRAPHY):
        preparation, grid = choose_grid(normals, config, detector_grid=detector_grid, profile=profile)
        assert (preparation.spacing_range_mm, preparation.metal) == (profile.spacing_range_mm, profile.metal)
        return dataclasses.replace(preparation, spacing_range_mm=None, metal=False), grid

    assert choose_for(FitConfig()) == (PreparationConfig(working_spacing_mm=0.14), GridConfig(64, 64))
    assert choose_for(FitConfig(), "stored") == (PreparationConfig(), GridConfig(128, 128))
    # A mask that is asked for leaves the working spacing as it is, and so on.
    preparation, grid = choose_for(FitConfig(mask="none", stride_px=32))
    assert preparation == PreparationConfig(mask="none", working_spacing_mm=0.14)
    assert grid == GridConfig(64, 32)
    preparation, grid = choose_for(FitConfig(intensity="full_scale", min_tissue=0.9))
    assert preparation == PreparationConfig(intensity="full_scale", working_spacing_mm=0.14)
    assert grid == GridConfig(64, 64, 0.9)
    assert choose_for(FitConfig(window=(0, 4095)))[0].intensity == "window"
    preparation, grid = choose_for(FitConfig(working_spacing_mm=0.28))
    assert (preparation.working_spacing_mm, grid.size_px) == (0.28, 32), "a patch keeps its size in mm"
    preparation, grid = choose_for(FitConfig(working_spacing_mm=0.28), "stored")
    assert (preparation.working_spacing_mm, grid.size_px) == (0.28, 128)
    assert choose_for(FitConfig(), profile=GENERAL) == (PreparationConfig(mask="none"), GridConfig(64, 64))
    # A size takes the place of the profile's spacing, and a spacing that of its size.
    preparation, grid = choose_for(FitConfig(working_size_px=256))
    assert (preparation, grid) == (PreparationConfig(working_size_px=256), GridConfig(64, 64))
    sized = dataclasses.replace(
        GENERAL, lengths=dataclasses.replace(GENERAL.lengths, working_size_px=192, working_spacing_mm=None)
    )
    assert choose_for(FitConfig(), profile=sized)[0].working_size_px == 192
    assert choose_for(FitConfig(), "stored", profile=sized)[0].working_size_px is None
    for profile, expected in ((GENERAL, 128), (sized, 192), (MAMMOGRAPHY, None)):  # the detector's own size comes last
        found, _ = choose_grid(normals, FitConfig(), detector_grid="working", profile=profile, detector_size_px=128)
        assert found.working_size_px == expected
    assert choose_for(FitConfig(working_size_px=96), profile=sized)[0].working_size_px == 96
    preparation, grid = choose_for(FitConfig(working_spacing_mm=0.56), profile=sized)
    assert (preparation.working_size_px, preparation.working_spacing_mm, grid.size_px) == (None, 0.56, 16)


def test_what_check_refuses_is_taken_as_listed_and_named(normals, tmp_path, caplog):
    first, *others = normals.rows
    dataset = pydicom.dcmread(first.path)
    dataset.BreastImplantPresent = "YES"
    dataset.save_as(tmp_path / "implant.dcm")
    implant = dataclasses.replace(first, path=tmp_path / "implant.dcm")
    with caplog.at_level(logging.WARNING):
        config = FitConfig(size_px=64, stride_px=64, held_out=0)
        model = fit(Manifest((implant, *others)), config, detector="laplacian", progress=False)
        told = [record.getMessage() for record in caplog.records if "IMPLANT" in record.getMessage()]
        caplog.clear()
        calibrate_model(model, Manifest((implant, *others)), allow_seen=True, progress=False)
    assert told == [
        f"1 image would be refused as IMPLANT by check, score and detect, and taken here as listed: {first.image_id}"
    ]
    assert told[0] in caplog.text


def test_images_that_teach_nothing_are_named(normals, caplog):
    first, *others = normals.rows
    manifest = dataclasses.replace(normals, rows=(dataclasses.replace(first, complete=False), *others))
    with caplog.at_level(logging.WARNING):
        model = fit(manifest, FitConfig(size_px=64, stride_px=64), detector="laplacian", progress=False)
    assert model.provenance.images == len(others)
    assert "1 image without a patch to learn from" in caplog.text
    assert first.image_id in caplog.text


def test_images_without_a_spacing_are_taken_as_stored_and_that_is_said(caplog):
    images = list(np.random.default_rng(0).integers(0, 255, (3, 80, 80), np.uint8))
    manifest = unary.build_manifest(images)
    with caplog.at_level(logging.WARNING):
        preparation, grid = choose_grid(manifest, FitConfig(), detector_grid="working", profile=MAMMOGRAPHY)
    assert preparation.working_spacing_mm is None
    assert grid == GridConfig(64, 64)
    assert "do not state their pixel spacing" in caplog.text
    with pytest.raises(TrainingError, match=r"working_spacing_mm is 0\.2, but the images do not state"):
        fit(images, FitConfig(working_spacing_mm=0.2), detector="laplacian")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("held_out", 1.0),
        ("held_out", float("nan")),
        ("seed", -1),
        ("size_px", 0),
        ("stride_px", -3),
        ("min_tissue", 1.5),
        ("mask", "moon"),
        ("intensity", "bright"),
        ("window", (5.0, 1.0)),
        ("working_spacing_mm", 0.0),
        ("working_spacing_mm", float("inf")),
        ("working_size_px", 0),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        FitConfig(**{field: value})


def test_images_of_several_sizes_are_fitted_at_one(tmp_path, caplog):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, shape, np.uint8) for shape in ((300, 200), (80, 90), (512, 512), (40, 64))]
    config = FitConfig(working_size_px=96, size_px=32, held_out=0)
    with caplog.at_level(logging.WARNING):
        model = fit(images, config, detector="laplacian", profile=GENERAL, progress=False)
    assert "spacing" not in caplog.text, "a size needs none"
    model.save(tmp_path / "model")
    read = read_model(tmp_path / "model")
    assert read.preparation.working_size_px == 96
    assert "longer side of 96 px" in repr(read)
    for image in images:
        scored = score(read, image)
        assert max(scored.prepared.shape) == 96
        assert scored.stored_map.shape == image.shape
        assert np.isfinite(scored.stored_map).all()


SMALL = FitConfig(size_px=16, held_out=0)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("slices"), np.random.default_rng(0)
    kinds = {
        "ct": lambda path, part: write_slice(path, part.astype(np.uint16)),
        "pet": lambda path, part: write_pet(path, part, slope=1.0),
        "suv": lambda path, part: write_pet(path, part / 400, slope=0.01, Units="GML"),
        "mr": lambda path, part: write_slice(path, part.astype(np.uint16), SOPClassUID=MR, Modality="MR"),
    }
    return {
        name: [write(folder / f"{name}{number}.dcm", rng.uniform(0, 4000, (48, 48))) for number in range(3)]
        for name, write in kinds.items()
    }


def fit_small(paths, **config):
    config = dataclasses.replace(SMALL, **config)
    return fit(paths, config, detector="laplacian", profile=GENERAL, progress=False)


@pytest.mark.parametrize(("kind", "unit"), [("ct", "HU"), ("suv", "GML")])
def test_values_in_an_absolute_unit_need_a_window_or_a_word(slices, kind, unit, caplog):
    with pytest.raises(TrainingError, match=rf"values are in {unit}, .*--window LOW,HIGH .*--intensity percentile"):
        fit_small(slices[kind])
    window = (-1000.0, 400.0) if kind == "ct" else (0.0, 10.0)
    with caplog.at_level(logging.WARNING):
        model = fit_small(slices[kind], window=window)
        assert "compare" not in caplog.text
        fit_small(slices[kind], intensity="percentile")
    assert f"values are in {unit}, and --intensity percentile scales every image by itself" in caplog.text
    assert model.domain.units == (unit,)
    with pytest.raises(ImageError, match="values in BQML, the model has learned from") as caught:
        score(model, slices["pet"][0])
    assert caught.value.reason == "UNITS_MODEL_MISMATCH"


def test_images_in_several_units_share_no_window_and_are_named(slices, caplog):
    for others in ("pet", "mr", "suv"):
        with pytest.raises(TrainingError, match=r"several units or of several modalities: HU: 3 images, .*ct0"):
            fit_small(slices["ct"] + slices[others], window=(-1000.0, 400.0))
    with caplog.at_level(logging.WARNING):
        fit_small(slices["pet"] + slices["mr"])
    assert "several units or of several modalities, and do not compare: BQML: 3 images" in caplog.text
    assert "values are in BQML, and --intensity percentile scales every image by itself" in caplog.text
    caplog.clear()
    fit_small(slices["mr"])
    assert "units" not in caplog.text


def test_images_that_are_not_equally_fine_are_told(slices, tmp_path, caplog):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (side, side), np.uint8) for side in (40, 64, 90)]
    with caplog.at_level(logging.WARNING):
        fit_small(images)
        assert "longer sides of 40 to 90 px" in caplog.text
        assert "--working-size-px N" in caplog.text
        caplog.clear()
        fit_small(images, working_size_px=64)
        fit_small(images[:1] + images[:1])
        fit_small(slices["mr"])
        assert "longer sides" not in caplog.text
        coarse = write_slice(tmp_path / "c.dcm", images[0].astype(np.uint16), SOPClassUID=MR, PixelSpacing=[1.4, 1.4])
        fit_small([slices["mr"][0], coarse])
    assert "pixel spacings lie between 0.7 and 1.4 mm" in caplog.text
    assert "--working-spacing-mm X" in caplog.text


def test_an_image_too_small_for_a_patch_is_refused_with_the_option_that_helps():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (64, 64), np.uint8) for _ in range(3)]
    model = fit_small(images, size_px=32)
    tiny = rng.integers(0, 255, (20, 21), np.uint8)
    with pytest.raises(
        ImageError, match=r"20 x 21 working pixels hold no patch of 32 .*--size-px.*--working-size-px"
    ) as caught:
        score(model, tiny)
    assert caught.value.reason == "TOO_SMALL"
    with pytest.raises(ImageError, match=r"8 x 60 working pixels hold no patch.*or cut it to pieces"):
        score(model, rng.integers(0, 255, (8, 60), np.uint8))
    assert np.isfinite(score(model, tiny[:, :1].repeat(40, 1).repeat(2, 0)).stored_map).all()
    assert score(fit_small(images, size_px=32, working_size_px=64), tiny).stored_map.shape == (20, 21)


def test_a_window_and_another_intensity_contradict_each_other():
    with pytest.raises(ValueError, match="window"):
        FitConfig(window=(0.0, 100.0), intensity="percentile")
    with pytest.raises(ValueError, match="window"):
        FitConfig(intensity="window")


def test_detectors_are_named_built_or_refused(normals, laplacian):
    own = fit(normals, QUICK, detector=Laplacian(LaplacianConfig(strongest=3)), progress=False)
    assert own.name == "laplacian"
    assert own.detector.config.strongest == 3
    assert fit(normals, QUICK, detector=Laplacian, progress=False).detector.config == LaplacianConfig()
    by_place = fit(normals, QUICK, detector="unary.detectors.laplacian:Laplacian", progress=False)
    assert by_place.name == "laplacian"
    with pytest.raises(DetectorError, match="no detector is called 'laplace'"):
        fit(normals, QUICK, detector="laplace")
    with pytest.raises(DetectorError, match="object is no detector: it has no grid"):
        fit(normals, QUICK, detector=object())
    with pytest.raises(ProfileError, match="no profile is called 'ct'"):
        fit(normals, QUICK, detector="laplacian", profile="ct")
    assert laplacian.baseline.config == LaplacianConfig()


def test_the_baseline_of_a_detector_of_the_working_grid_has_finer_filters(normals):
    model = fit(normals, dataclasses.replace(QUICK, held_out=0.0), detector="dense_laplacian", progress=False)
    assert model.preparation.working_spacing_mm == 0.14
    assert model.baseline.config == COARSE_LAPLACIAN


def test_too_few_patches_are_told_before_training_and_where_headers_say_so_before_reading(normals, monkeypatch):
    with pytest.raises(TrainingError, match=r"2 normal patches are needed, .* can hold 0 of 4000 .* --min-tissue"):
        fit(normals, FitConfig(size_px=4000), detector=WEI2018, progress=False)
    with pytest.raises(TrainingError, match=r"only 0 normal patches were found .* --mask none .*"):
        fit(normals, FitConfig(size_px=300, min_tissue=0.9), detector=WEI2018, progress=False)
    monkeypatch.setattr("unary.models.fitting.collect_patches", None)
    with pytest.raises(TrainingError, match=r"100 normal patches are needed, .* can hold \d+ of .* --stride-px"):
        fit(normals, FitConfig(size_px=400), detector="fusion", progress=False)


def test_a_working_grid_without_bound_is_refused_image_by_image(normals):
    config = FitConfig(working_spacing_mm=1e-5)  # 155 GiB for the origins of the patches alone
    with pytest.raises(unary.UnaryError, match=r"none of \d+ images could be used: .* more than 100,000,000"):
        fit(normals, config, detector="laplacian", progress=False)


def test_arrays_images_and_paths_are_fitted_alike(normals):
    rows = normals.rows[:6]
    images = [read_image(row.path) for row in rows]
    arrays = [
        unary.Image.from_array(image.pixels, spacing_mm=image.spacing_mm, value_range=(0, 4095)) for image in images
    ]
    models = [
        fit(given, QUICK, detector="laplacian", progress=False)
        for given in (images, [row.path for row in rows], [str(row.path) for row in rows])
    ]
    assert len({model.level for model in models}) == 1
    assert len({model.provenance.data_hash for model in models}) == 1
    plain = fit(arrays, QUICK, detector="laplacian", progress=False)
    assert plain.provenance.data_hash == models[0].provenance.data_hash
    assert plain.calibration.patients == 2
    stack = np.stack([image.pixels for image in images])
    assert fit(stack, QUICK, detector="laplacian", progress=False).provenance.data_hash == plain.provenance.data_hash
    for alone in (images[0], rows[0].path, str(rows[0].path)):
        with pytest.raises(ManifestError, match="one alone"):
            fit(alone, QUICK, detector="laplacian")
    with pytest.raises(ImageError, match="two-dimensional"):
        fit(images[0].pixels, QUICK, detector="laplacian")


@pytest.mark.parametrize("detector", ["laplacian", "dense_laplacian", WEI2018])
def test_a_store_changes_nothing(normals, detector, tmp_path):
    few = normals.select(normals.rows[:6])
    one = fit(few, QUICK, detector=detector, progress=False)
    other = fit(few, QUICK, detector=detector, store=tmp_path, progress=False)
    assert (one.level, one.provenance) == (other.level, other.provenance)
    assert any(tmp_path.iterdir())


def test_arrays_that_were_learned_from_are_recognised_and_others_are_not(normals):
    stack = np.stack([read_image(row.path).pixels for row in normals.rows])
    model = fit(stack[:6], QUICK, detector="laplacian", progress=False)
    assert unary.calibrate_model(model, stack[6:], progress=False).calibration.patients == 6
    with pytest.raises(unary.UnaryError, match="fitted on 1 patient "):
        unary.calibrate_model(model, stack[5:], progress=False)


@pytest.mark.parametrize("images", [1, 3])
def test_the_level_lies_below_four_regions_per_image(images):
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(200, 150)).astype(np.float32) for _ in range(images)]
    maps[0][:50] = np.nan
    level = find_peaks(maps)[-1]
    highest = []
    for values in maps:
        for row in range(0, 200, 36):
            for col in range(0, 150, 36):
                block = values[row : row + 36, col : col + 36]
                if np.isfinite(block).any():
                    highest.append(np.nanmax(block))
    assert (np.asarray(highest) > level).sum() == 4 * images
    assert level in highest
    assert find_peaks([np.ones((5, 5), np.float32)]) == (1,)
    for nothing in ([], [np.full((5, 5), np.nan, np.float32)]):
        with pytest.raises(CalibrationError, match="no training image has a scored pixel"):
            find_peaks(nothing)


def test_the_level_comes_from_images_spread_over_the_rows(laplacian, normals, monkeypatch):
    read = []
    real = unary.models.calibrating.read_row

    def remember(row):
        read.append(row.image_id)
        return real(row)

    monkeypatch.setattr("unary.models.calibrating.read_row", remember)
    monkeypatch.setattr("unary.models.fitting._LEVEL_IMAGES", 3)
    rows = normals.rows[:8]
    measured = measure_images(laplacian, rows, progress=False)
    assert measured.detector is laplacian.detector
    assert read == [rows[0].image_id, rows[4].image_id, rows[7].image_id]
    with pytest.raises(CalibrationError, match="no training image"):
        measure_images(laplacian, [], progress=False)


def test_patients_are_known_by_hashes_alone(laplacian, parts, tmp_path):
    assert laplacian.provenance.seen.hashes == read_key().hash_patients(row.patient_id for row in parts[0].rows)
    laplacian.save(tmp_path / "m")
    text = (tmp_path / "m" / "model.json").read_text()
    assert not any(f'"{row.patient_id}"' in text for row in parts[0].rows)


def test_a_blank_array_is_refused_by_name():
    with pytest.raises(ManifestError, match="the array"):
        fit([Image.from_array(np.zeros((200, 200), np.uint8))], QUICK, detector="laplacian")


def test_too_few_patches_for_a_fusion_are_told_before_any_part_is_trained_with_what_helps(normals, monkeypatch):
    monkeypatch.setattr("unary.models.fitting.Laplacian", None)
    config = FitConfig(size_px=200)
    with pytest.raises(
        TrainingError, match=r"at least 100 .*there are \d+: .*--stride-px.*would be free with --held-out 0"
    ):
        fit(normals, config, detector="fusion", progress=False)


def test_images_smaller_than_a_parts_crops_are_told_before_any_part_is_trained(normals, monkeypatch):
    patches = build_patch_set(np.full((90, 90), 9, np.uint16), np.zeros((120, 2), np.int32), size_px=16)
    fusion = FusionPrior()
    monkeypatch.setattr("unary.detectors.blind_spot.BlindSpot.fit", None)
    with pytest.raises(TrainingError, match="at least 96 px a side"):
        fusion.fit(patches, FitContext(progress=False))
    with pytest.raises(TrainingError, match=r"needs patches of 16 px or more, these have 8 px"):
        Fusion(FusionConfig((("wei2018", 1.0),))).check_patches(dataclasses.replace(patches, size_px=8))


def test_what_a_detector_needs_of_the_machine_is_told_before_images_are_read(normals, monkeypatch):
    monkeypatch.setattr("unary.models.fitting.collect_patches", None)
    fusion = Fusion(FusionConfig(blind_spot=BlindSpotConfig(training=StepsConfig(device="cuda:99"))))
    with pytest.raises(TrainingError, match="cannot use 'cuda:99'"):
        fit(normals, detector=fusion)
    monkeypatch.setattr("unary.training.distributed.is_joined", lambda: True)
    with pytest.raises(TrainingError, match="blind_spot is trained in one process"):
        fit(normals, detector="fusion")
    check_detector_here(WEI2018)
    with pytest.raises(DetectorError, match="take it into fusion_prior"):
        fit(normals, detector=Fusion(FusionConfig((("segmentation", 1.0),))))


def test_a_disk_too_small_for_the_store_is_told_before_images_are_read(normals, tmp_path, monkeypatch):
    monkeypatch.setattr("unary.models.fitting.collect_patches", None)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1e5))
    with pytest.raises(
        TrainingError, match=r"up to 0\.0 GB there, and 0\.0 GB are free; give another folder with --store"
    ):
        fit(normals, QUICK, detector="laplacian", store=tmp_path / "new" / "store")


def test_a_class_that_nobody_finds_again_is_told_before_training(normals, caplog):
    class Local(Laplacian):
        """Defined where nobody finds it again."""

    fit(normals, QUICK, detector=Local(), progress=False)
    assert "its model can be used, but not saved" in caplog.text


def test_nobody_to_hold_out_is_said_before_images_are_read(normals, caplog, monkeypatch):
    monkeypatch.setattr("unary.models.fitting.collect_patches", None)
    one = normals.select(normals.rows[:1])
    for config, cause in ((QUICK, "5 patients or more .* not 1"), (FitConfig(held_out=0), "held_out is 0")):
        caplog.clear()
        with pytest.raises(TypeError):
            fit(one, config, detector="laplacian", progress=False)
        assert re.search(f"nobody is held out, since {cause}", caplog.text)


def test_a_library_that_fails_on_one_image_ends_nothing(normals, caplog, monkeypatch):
    real = unary.patches.collection.read_image

    def read(path):
        if path == normals.rows[0].path:
            raise IndexError("of patient Doe")
        image = real(path)
        return dataclasses.replace(image, notes=("the film is inverted",)) if path == normals.rows[1].path else image

    monkeypatch.setattr("unary.patches.collection.read_image", read)
    with caplog.at_level(logging.WARNING):
        model = fit(normals, dataclasses.replace(QUICK, held_out=0), detector="laplacian", progress=False)
    assert model.provenance.skipped == 1
    assert f"skipped: {normals.rows[0].path}: an unexpected IndexError" in caplog.text
    assert "Doe" not in caplog.text
    assert caplog.text.count("the film is inverted") == 1
    assert f"noted: {normals.rows[1].path}: the film is inverted" in caplog.text


def test_a_model_is_fitted_where_no_key_can_be_kept(normals, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNARY_PATIENT_KEY", str(tmp_path / "file" / "key"))
    model = fit(normals, QUICK, detector="laplacian", progress=False)
    assert "will not be able to tell whom it has seen" in caplog.text
    assert (model.provenance.seen.key, model.provenance.seen.count) == (None, 6)
    model.save(tmp_path / "model")
    again = unary.calibrate_model(unary.read_model(tmp_path / "model"), normals, progress=False)
    assert again.calibration.overlap == "unknown"
    assert "cannot be told here: it was fitted without a key" in caplog.text
