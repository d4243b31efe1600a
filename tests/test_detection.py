import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from unary.detectors.fit_fusion import FusionConfig
from unary.detectors.protocol import Examination, ImageExamination
from unary.errors import CalibrationError, ImageError
from unary.images.reading import read_image
from unary.models.bundle import read_model, write_model
from unary.models.detection import (
    DEFAULT_POINT,
    build_detection,
    choose_point,
    detect_image,
    examine_image,
    find_level,
    map_prepared,
    require_settings,
    score_normal,
)
from unary.models.pipeline import FitConfig, fit
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparedImage
from unary.records import Image
from unary.training.engine import StepsConfig


class Identity:
    """Answers with the patch itself."""

    def examine(self, patches):
        return Examination(np.zeros(len(patches)), patches.astype(np.float32))


class WholeIdentity:
    """The same for whole images; refuses one that is smaller than a patch."""

    def examine_image(self, pixels, origins, *, size_px):
        assert min(pixels.shape) >= size_px
        return ImageExamination(np.zeros(len(origins)), pixels.astype(np.float32))


def make_prepared(shape, mask=None):
    pixels = np.random.default_rng(0).integers(1, 60000, shape, dtype=np.uint16)
    return PreparedImage(pixels, np.ones(shape, bool) if mask is None else mask, (1.0, 1.0), shape, None)


@pytest.fixture(scope="module")
def models(normals):
    """A fusion and the yardstick, fitted and calibrated on one image of each of six normal patients."""
    rows = tuple({row.patient_id: row for row in normals.rows}.values())
    quick = FusionConfig(blind_spot=StepsConfig(40, 2))
    grid = GridConfig(64, 32)
    return {
        name: fit(normals.select(rows), FitConfig(name, grid=grid, fusion=quick), progress=False)
        for name in ("fusion", "laplacian")
    }


@pytest.fixture(scope="module")
def clusters(phantoms):
    """Images with a cluster of calcifications, and the box around it."""
    boxes = {lesion.image_id: lesion.points for lesion in phantoms.lesions if lesion.name == "Cluster"}
    return [(read_image(row.path), np.asarray(boxes[row.image_id])) for row in phantoms.rows if row.image_id in boxes]


@pytest.mark.parametrize("detector", [Identity(), WholeIdentity()])
@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (16, 16), (31, 17), (50, 64)])
@pytest.mark.parametrize("stride", [1, 8, 16])
def test_an_identity_detector_maps_every_pixel_to_itself(detector, shape, stride):
    prepared = make_prepared(shape)
    found = map_prepared(detector, prepared, size_px=16, stride_px=stride)
    assert found.dtype == np.float32
    assert np.allclose(found, prepared.pixels, rtol=1e-5)


@pytest.mark.parametrize("detector", [Identity(), WholeIdentity()])
@pytest.mark.parametrize(
    "place",
    [
        (slice(0, 3), slice(0, 2)),
        (slice(90, 100), slice(70, 80)),
        (slice(40, 43), slice(9, 60)),
        (slice(0, 60), slice(20, 80)),
        (slice(30, 90), slice(10, 50)),
    ],
)
def test_tissue_anywhere_is_scored_and_nothing_else(detector, place):
    mask = np.zeros((100, 80), bool)
    mask[place] = True
    prepared = make_prepared((100, 80), mask)
    found = map_prepared(detector, prepared, size_px=16, stride_px=8)
    inner = ndimage.binary_erosion(mask, np.ones((17, 17), bool), border_value=1)
    scored = inner if inner.any() else mask  # what is all rim is scored as it is
    assert np.array_equal(np.isfinite(found), scored)
    assert np.allclose(found[scored], prepared.pixels[scored], rtol=1e-5)
    nowhere = map_prepared(detector, make_prepared((100, 80), np.zeros_like(mask)), size_px=16, stride_px=8)
    assert nowhere.shape == (100, 80)
    assert np.isnan(nowhere).all()


@pytest.mark.parametrize("name", ["fusion", "laplacian"])
def test_planted_calcifications_are_found_where_they_are(models, clusters, name):
    hits = 0
    for image, box in clusters:
        detection = detect_image(models[name], image)
        assert detection.labels.shape == image.shape
        assert detection.operating_point.name == DEFAULT_POINT
        assert len(detection.findings) >= 1
        assert detection.image_score == detection.findings[0].score
        assert detection.image_p_value == detection.findings[0].p_value == pytest.approx(1 / 3), "two patients held out"
        assert all(finding.score > detection.operating_point.threshold for finding in detection.findings)
        peak = np.asarray(detection.findings[0].peak)
        hits += bool(((peak >= box[0] - 3) & (peak < box[1] + 3)).all())
        assert detection.labels[detection.findings[0].peak] == 1
        assert detection.findings[0].area_mm2 > 0
    assert len(clusters) == 4
    assert hits >= 3


@pytest.mark.parametrize("name", ["fusion", "laplacian"])
def test_a_mirrored_image_has_mirrored_findings(models, clusters, name):
    image, _ = clusters[-1]
    mirrored = dataclasses.replace(image, pixels=np.ascontiguousarray(image.pixels[:, ::-1]), padding=None)
    one, other = detect_image(models[name], image), detect_image(models[name], mirrored)
    row, col = other.findings[0].peak
    low, high = np.asarray(one.findings[0].box[:2]), np.asarray(one.findings[0].box[2:])
    # The windows of patches lie otherwise in the mirrored image, and another of two like specks may be the stronger.
    peak = np.asarray((row, image.shape[1] - 1 - col))
    assert ((peak >= low - 4) & (peak < high + 4)).all()
    if name == "fusion":
        assert np.abs(peak - one.findings[0].peak).max() <= 4
    assert other.findings[0].score == pytest.approx(one.findings[0].score, rel=0.3)


@pytest.mark.parametrize("name", ["fusion", "laplacian"])
def test_a_model_read_back_detects_the_same(models, clusters, name, tmp_path):
    write_model(models[name], tmp_path / "model")
    again = read_model(tmp_path / "model")
    assert again.detection == models[name].detection
    one, other = (detect_image(model, clusters[0][0], operating_point="2") for model in (models[name], again))
    assert one.findings == other.findings
    assert (one.image_score, one.image_p_value) == (other.image_score, other.image_p_value)
    assert (one.operating_point, one.out_of_domain) == (other.operating_point, other.out_of_domain)
    assert np.array_equal(one.labels, other.labels)


def test_patches_in_a_batch_equal_patches_one_by_one(models, clusters, monkeypatch):
    image = clusters[0][0]
    batched = examine_image(models["laplacian"], image).anomaly_map
    monkeypatch.setattr("unary.models.detection._BATCH", 1)
    single = examine_image(models["laplacian"], image).anomaly_map
    assert np.allclose(batched, single, atol=1e-4, equal_nan=True)


def test_operating_points_nest(models, clusters):
    model = models["laplacian"]
    settings = require_settings(model)
    for image, _ in clusters:
        examined = examine_image(model, image)
        found = [build_detection(examined, settings, point).findings for point in settings.calibration.operating_points]
        for fewer, more in itertools.pairwise(found):
            assert fewer == more[: len(fewer)], "another threshold must not redraw a finding"
        for point in settings.calibration.operating_points:
            assert point.threshold >= settings.level
        assert len(build_detection(examined, settings, None, most=2).findings) == 2


def test_an_uncalibrated_model_shows_the_strongest_few(models, clusters):
    model = models["laplacian"]
    bare = dataclasses.replace(model, detection=dataclasses.replace(model.detection, calibration=None))
    detection = detect_image(bare, clusters[0][0])
    assert detection.operating_point is None
    assert detection.image_p_value is None
    assert detection.image_score == detection.findings[0].score
    assert 1 <= len(detection.findings) <= 8
    assert all(finding.p_value is None for finding in detection.findings)
    scores = [finding.score for finding in detection.findings]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(CalibrationError, match=r"not calibrated; see `unary calibrate`"):
        choose_point(bare, "1")
    with pytest.raises(CalibrationError, match="no operating point '7'"):
        choose_point(model, "7")
    with pytest.raises(CalibrationError, match="fit it again"):
        detect_image(dataclasses.replace(model, detection=None), clusters[0][0])


def test_another_scanner_is_named(models, clusters):
    model, image = models["laplacian"], clusters[0][0]
    assert detect_image(model, image).out_of_domain == ()
    other = dataclasses.replace(
        image,
        manufacturer="Other",
        intent="FOR PROCESSING",
        spacing_mm=(0.1, 0.1),
        pixels=image.pixels * 4,
        value_range=(0, 16383),
    )
    lines = detect_image(model, other).out_of_domain
    assert [line.split(",")[0].split(" ")[0] for line in lines] == [
        "presentation",
        "manufacturer",
        "14",
        "pixel",
        "bright",
    ]


def test_a_blank_image_cannot_be_examined(models):
    blank = Image(np.full((100, 90), 7, np.uint16), (0, 4095), Path("blank.png"), spacing_mm=(0.2, 0.2))
    with pytest.raises(ImageError, match=r"blank\.png.*no tissue"):
        examine_image(models["fusion"], blank)


@pytest.mark.parametrize("images", [1, 3])
def test_the_level_lies_below_four_regions_per_image(images):
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(200, 150)).astype(np.float32) for _ in range(images)]
    maps[0][:50] = np.nan
    level = find_level(maps)
    highest = []
    for values in maps:
        for row in range(0, 200, 36):
            for col in range(0, 150, 36):
                block = values[row : row + 36, col : col + 36]
                if np.isfinite(block).any():
                    highest.append(np.nanmax(block))
    assert (np.asarray(highest) > level).sum() == 4 * images
    assert level in highest
    small = find_level([np.ones((5, 5), np.float32)])
    assert small == 1
    for nothing in ([], [np.full((5, 5), np.nan, np.float32)]):
        with pytest.raises(CalibrationError, match="no training image has a scored pixel"):
            find_level(nothing)


def test_a_normal_image_counts_with_its_strongest_findings(models, clusters):
    model, image = models["laplacian"], clusters[0][0]
    examined = examine_image(model, image)
    normal = score_normal(examined, "somebody")
    assert normal.image_score == examined.candidates.scores[0]
    assert normal.findings == tuple(examined.candidates.scores[:8])
    empty = dataclasses.replace(
        examined,
        candidates=dataclasses.replace(examined.candidates, scores=np.zeros(0), highest=None),
    )
    with pytest.raises(ImageError, match="could be scored"):
        score_normal(empty, "somebody")
