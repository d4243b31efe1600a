import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.fusion import Fusion, FusionConfig
from unary.detectors.protocol import Examination
from unary.detectors.windows import PatchExamination, examine_windows
from unary.errors import CalibrationError, DetectorError, ImageError
from unary.evaluation.evaluate import evaluate
from unary.images.reading import read_image
from unary.models.bundle import read_model, write_model
from unary.models.examination import (
    DEFAULT_POINT,
    build_detection,
    choose_point,
    detect,
    examine_image,
    leave_rim,
    map_prepared,
    score,
)
from unary.models.fitting import FitConfig, fit
from unary.models.probe import choose_picture, draw_picture
from unary.patches.grid import GridConfig, tissue_origins
from unary.patches.preparation import PreparedImage, prepare_image
from unary.profiles import GENERAL, MAMMOGRAPHY
from unary.records import Image
from unary.training.engine import StepsConfig


class Identity:
    """Answers with the patch itself."""

    def examine(self, view, origins, *, size_px, with_map=True):
        def examine(patches):
            return PatchExamination(np.zeros(len(patches)), patches.astype(np.float32))

        return examine_windows(examine, view, origins, size_px=size_px, with_map=with_map)


class WholeIdentity:
    """The same for whole images."""

    def examine(self, view, origins, *, size_px, with_map=True):
        return Examination(np.zeros(len(origins)), np.where(view.mask, view.pixels, np.nan).astype(np.float32))


def make_prepared(shape, mask=None):
    pixels = np.random.default_rng(0).integers(1, 60000, shape, dtype=np.uint16)
    if mask is not None:
        pixels[~mask] = 0
    return PreparedImage(pixels, np.ones(shape, bool) if mask is None else mask, (1.0, 1.0), shape, None)


@pytest.fixture(scope="module")
def models(normals):
    """A fusion and the baseline, fitted and calibrated on one image of each of six normal patients."""
    rows = tuple({row.patient_id: row for row in normals.rows}.values())
    quick = FusionConfig(blind_spot=BlindSpotConfig(training=StepsConfig(40, 2)))
    config = FitConfig(size_px=64, stride_px=32)
    return {
        name: fit(normals.select(rows), config, detector=detector, progress=False)
        for name, detector in (("fusion", Fusion(quick)), ("laplacian", "laplacian"))
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
    origins, examined = map_prepared(detector, prepared, GridConfig(16, stride), GENERAL.lengths)
    scores, found = examined.scores, examined.require_map()
    assert np.array_equal(origins, tissue_origins(prepared.mask, GridConfig(16, stride)))
    assert len(scores) == len(origins)
    assert found.dtype == np.float32
    assert np.allclose(found, prepared.pixels, rtol=1e-5)


@pytest.mark.parametrize("rim", [0, 1, 3])
@pytest.mark.parametrize("strip", [0, 2])
def test_the_rim_lies_along_edges_and_borders_and_is_wider_in_corners(rim, strip):
    rows, cols = np.mgrid[:60, :50]
    mask = (cols < 40 - rows // 3) & (rows < 52)
    away = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]  # beyond the picture is no tissue
    from_edge = ndimage.distance_transform_cdt(np.pad(mask, 60, mode="edge"), "chessboard")[60:-60, 60:-60]
    corner = (from_edge <= 3 * rim) & (np.minimum(rows, cols) < 3 * rim)
    expected = mask & (away > rim) & ~corner
    framed, at_left = (np.pad(each, ((0, 0), (strip, 0))) for each in (mask, expected))
    assert np.array_equal(leave_rim(framed, rim), at_left), "a strip of the film's frame is beyond the picture"


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
    found = map_prepared(detector, prepared, GridConfig(16, 8), MAMMOGRAPHY.lengths)[1].require_map()
    inner = leave_rim(mask, 8)
    scored = inner if inner.any() else mask  # what is all rim is scored as it is
    assert np.array_equal(np.isfinite(found), scored)
    assert np.allclose(found[scored], prepared.pixels[scored], rtol=1e-5)
    whole = map_prepared(detector, prepared, GridConfig(16, 8), GENERAL.lengths)[1].require_map()
    assert np.array_equal(np.isfinite(whole), mask), "a profile may have no rim"
    empty = make_prepared((100, 80), np.zeros_like(mask))
    origins, examined = map_prepared(detector, empty, GridConfig(16, 8), MAMMOGRAPHY.lengths)
    scores, nowhere = examined.scores, examined.require_map()
    assert len(origins) == len(scores) == 0
    assert nowhere.shape == (100, 80)
    assert np.isnan(nowhere).all()


@pytest.mark.parametrize("name", ["fusion", "laplacian"])
def test_planted_calcifications_are_found_where_they_are(models, clusters, name):
    hits = 0
    for image, box in clusters:
        detection = detect(models[name], image)
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
    one, other = detect(models[name], image), detect(models[name], mirrored)
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
    for field in ("profile", "preparation", "grid", "level", "findings", "calibration", "domain", "provenance"):
        assert getattr(again, field) == getattr(models[name], field)
    one, other = (detect(model, clusters[0][0], operating_point="2") for model in (models[name], again))
    assert one.findings == other.findings
    assert (one.image_score, one.image_p_value) == (other.image_score, other.image_p_value)
    assert (one.operating_point, one.out_of_domain) == (other.operating_point, other.out_of_domain)
    assert np.array_equal(one.labels, other.labels)


def test_patches_in_a_batch_equal_patches_one_by_one(models, clusters, monkeypatch):
    image = clusters[0][0]
    batched = examine_image(models["laplacian"], image)
    monkeypatch.setattr("unary.detectors.windows._BATCH", 1)
    single = examine_image(models["laplacian"], image)
    assert np.allclose(batched.anomaly_map, single.anomaly_map, atol=1e-4, equal_nan=True)
    assert np.allclose(batched.scores, single.scores, atol=1e-4)


@pytest.mark.parametrize("name", ["fusion", "laplacian"])
def test_every_way_to_apply_a_model_gives_the_same_bits(models, phantoms, name):
    model, row = models[name], phantoms.rows[-1]
    image = read_image(row.path)
    bare = Image.from_array(image.pixels, spacing_mm=image.spacing_mm, value_range=image.value_range)
    one = score(model, row.path)
    others = [
        score(model, str(row.path)),
        score(model, image),
        score(model, dataclasses.replace(bare, padding=image.padding)),
        examine_image(model, image),
    ]
    for other in others:
        assert np.array_equal(one.anomaly_map, other.anomaly_map, equal_nan=True)
        assert np.array_equal(one.scores, other.scores)
        assert one.image_score == other.image_score
    assert detect(model, row.path).image_score == detect(model, image).image_score == one.image_score


@pytest.mark.parametrize("name", ["fusion", "laplacian"])
def test_an_evaluation_holds_what_scoring_says(models, phantoms, name):
    model = models[name]
    evaluation = evaluate(model, phantoms, allow_seen=True, progress=False)
    scored = {row.image_id: score(model, row.path) for row in phantoms.rows}
    for image_id, found in zip(evaluation.images.image, evaluation.images.scores[name], strict=True):
        assert found == scored[image_id].image_score
    table = evaluation.patches
    for image_id, place, found in zip(
        table.image, np.column_stack([table.row, table.col]), table.scores[name], strict=True
    ):
        patch = (scored[image_id].origins == place).all(axis=1)
        assert scored[image_id].scores[patch].tolist() == [found]


def test_an_array_is_scored_with_a_spacing_beside_it(models, clusters):
    model, image = models["fusion"], clusters[0][0]
    assert image.padding is None or not image.padding.any()
    one = score(model, image)
    for spacing in (image.spacing_mm, image.spacing_mm[0]):
        other = score(model, image.pixels, spacing_mm=spacing)
        assert np.array_equal(one.anomaly_map, other.anomaly_map, equal_nan=True)
    assert other.stored_map.shape == image.shape
    detection = detect(model, image.pixels, spacing_mm=image.spacing_mm, operating_point=1)
    assert detection.findings == detect(model, image, operating_point="1").findings
    with pytest.raises(ImageError, match="does not state its pixel spacing"):
        score(model, image.pixels)
    with pytest.raises(ImageError, match="spacing_mm must be positive"):
        score(model, image.pixels, spacing_mm=-1)
    with pytest.raises(ImageError, match=r"an array of shape .* got list"):
        score(model, [image])
    with pytest.raises(ImageError, match="every pixel has the value 0"):
        score(model, np.zeros((90, 90), np.uint8), spacing_mm=0.2)


@pytest.mark.parametrize(
    "answer",
    [
        lambda view, n: Examination(np.zeros(n + 1), np.zeros(view.shape, np.float32)),
        lambda view, n: Examination(np.zeros(n), np.zeros((3, 3), np.float32)),
        lambda view, n: Examination(np.zeros(n), None),
        lambda view, n: Examination(np.full(n, np.nan), np.zeros(view.shape, np.float32)),
        lambda view, n: Examination(np.zeros(n), np.full(view.shape, np.inf, np.float32)),
    ],
)
def test_a_detector_that_answers_otherwise_is_named(answer):
    class Wrong:
        def examine(self, view, origins, *, size_px, with_map=True):
            return answer(view, len(origins))

    with pytest.raises(DetectorError, match="Wrong"):
        map_prepared(Wrong(), make_prepared((50, 40)), GridConfig(16, 16), MAMMOGRAPHY.lengths)


def test_operating_points_nest(models, clusters):
    model = models["laplacian"]
    points = [point for point in model.calibration.operating_points if point.unit == "finding"]
    for image, _ in clusters:
        scored = examine_image(model, image)
        found = [build_detection(scored, model, point).findings for point in points]
        for fewer, more in itertools.pairwise(found):
            assert fewer == more[: len(fewer)], "another threshold must not redraw a finding"
        for point in points:
            assert point.threshold >= model.level
        assert len(build_detection(scored, model, None, most=2).findings) == 2


def test_the_picture_that_a_model_is_checked_by_is_judged_by_all_its_parts(models):
    model = models["fusion"]
    prepared = prepare_image(draw_picture(choose_picture(model)), model.preparation)
    examined = map_prepared(model.detector, prepared, model.grid, model.profile.lengths)[1]
    assert examined.silent == ()


def test_an_uncalibrated_model_shows_the_strongest_few(models, clusters):
    model = models["laplacian"]
    bare = dataclasses.replace(model, calibration=None)
    detection = detect(bare, clusters[0][0])
    assert detection.operating_point is None
    assert detection.image_p_value is None
    assert detection.image_score == detection.findings[0].score
    assert 1 <= len(detection.findings) <= 8
    assert all(finding.p_value is None for finding in detection.findings)
    scores = [finding.score for finding in detection.findings]
    assert scores == sorted(scores, reverse=True)
    for name in ("1", 1):
        with pytest.raises(CalibrationError, match=r"not calibrated; see `unary calibrate`"):
            choose_point(bare, name)
    with pytest.raises(CalibrationError, match="no operating point '7'"):
        choose_point(model, "7")
    with pytest.raises(CalibrationError, match="counts patches, not findings"):
        choose_point(model, "patch_0.95")
    assert choose_point(model, None) == choose_point(model, 1) == choose_point(model, "1")


def test_another_scanner_is_named(models, clusters):
    model, image = models["laplacian"], clusters[0][0]
    assert detect(model, image).out_of_domain == ()
    other = dataclasses.replace(
        image,
        manufacturer="Other",
        intent="FOR PROCESSING",
        spacing_mm=(0.1, 0.1),
        pixels=image.pixels * 4,
        value_range=(0, 16383),
    )
    lines = detect(model, other).out_of_domain
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
