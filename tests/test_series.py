import json

import numpy as np
import pytest
from slices import write_slice

from unary.clinic.acceptance import check_files, describe_checks, format_checks
from unary.datasets.folder import read_folder
from unary.datasets.series import describe_series
from unary.images.dicom import read_header
from unary.models.gate import Gate
from unary.profiles import GENERAL

PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)


def describe(folder, places, *, series="1.2.3.4", frame="1.2.9", **elements):
    """What is said of slices that lie so far along the axis of the body, each a file named after its number."""
    paths = [
        write_slice(
            folder / f"{series}-{number}.dcm",
            PIXELS,
            SeriesInstanceUID=series,
            FrameOfReferenceUID=frame,
            **{"ImagePositionPatient": [-180.0, -180.0, place], **elements},
        )
        for number, place in enumerate(places, start=1)
    ]
    return [read_header(path).place for path in paths], [path.stem for path in paths]


def test_a_whole_series_in_any_order_is_counted(tmp_path):
    assert describe_series(*describe(tmp_path, [10.0, -5.0, 0.0, 5.0])) == ("1 series of slices, of 4 slices",)


def test_a_missing_slice_and_a_double_one_are_named(tmp_path):
    _, twice, gap = describe_series(*describe(tmp_path, [0.0, 2.5, 5.0, 5.0, 12.5, 15.0]))
    assert twice == "the series of 1.2.3.4-1 (6 slices) has 1 slice at the place of another: 1.2.3.4-4"
    assert "where slices are 2.5 mm apart: 7.5 mm between 1.2.3.4-4 and 1.2.3.4-5" in gap


def test_places_count_along_the_normal_of_a_tilted_plane(tmp_path):
    tilted = {"ImageOrientationPatient": [1, 0, 0, 0, 0.8, 0.6]}
    normal = np.array([0, -0.6, 0.8])
    places, names = [], []
    for number, place in enumerate((0.0, 4.0, 8.0)):
        corner = [round(float(part), 4) for part in place * normal + np.array([3.0 * number, 0.0, 0.0])]
        found = describe(tmp_path / str(number), [0.0], ImagePositionPatient=corner, **tilted)
        places += found[0]
        names += found[1]
    assert [place.position_mm for place in places] == pytest.approx([0, 4, 8])
    assert describe_series(places, names) == ("1 series of slices, of 3 slices",)


def test_two_reconstructions_of_one_scan_are_told(tmp_path):
    sharp, sharp_names = describe(tmp_path, [0.0, 5.0, 10.0], series="1.1")
    soft, soft_names = describe(tmp_path, [0.0, 5.0, 10.0, 15.0], series="1.2")
    _, told = describe_series(sharp + soft, sharp_names + soft_names)
    assert "the series of 1.1-1 and of 1.2-1 show 3 slices at the same places" in told
    elsewhere, names = describe(tmp_path, [0.0, 5.0, 10.0], series="1.3", frame="1.2.8")
    assert len(describe_series(sharp + elsewhere, sharp_names + names)) == 1, "of another patient"
    below, names = describe(tmp_path, [20.0, 25.0, 30.0], series="1.4")
    assert len(describe_series(sharp + below, sharp_names + names)) == 1


@pytest.mark.parametrize(
    ("keyword", "stated"),
    [
        ("ImagePositionPatient", None),
        ("ImagePositionPatient", [1, 2]),
        ("ImagePositionPatient", ["1e300", "0", "0"]),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("ImageOrientationPatient", ["1e200", "0", "0", "0", "1e200", "0"]),
        ("ImageOrientationPatient", [1, 0, 0]),
    ],
)
def test_what_states_no_place_is_of_no_series(tmp_path, keyword, stated):
    places, names = describe(tmp_path, [0.0, 1.0], **{keyword: stated})
    assert places == [None, None]
    assert describe_series([*places, None], [*names, "a.png"]) == ()


def test_a_folder_of_both_classes_is_one_series(tmp_path):
    for number in range(6):
        folder = tmp_path / ("normal" if number % 2 else "abnormal") / "p1"
        place = {"ImagePositionPatient": [0, 0, 5.0 * number + (5 if number > 3 else 0)]}
        write_slice(folder / f"{number}.dcm", PIXELS, **place)
    _, notices = read_folder(tmp_path)
    assert "1 series of slices, of 6 slices" in notices
    assert any("10 mm between normal/p1/3 and abnormal/p1/4" in notice for notice in notices)


def test_check_counts_the_slices_of_a_folder_and_tells_no_identifier(tmp_path):
    describe(tmp_path / "in", [0.0, 2.0, 4.0, 10.0])
    write_slice(tmp_path / "in" / "scout.dcm", PIXELS, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    checks = check_files([tmp_path / "in"], Gate(GENERAL), progress=False)
    counted, gap = checks.series
    assert counted == "1 series of slices, of 4 slices", "a localizer is none"
    assert "6 mm between" in gap
    assert gap in format_checks(checks)
    text = json.dumps(describe_checks(checks))
    assert '"series": [' in text
    assert '"place"' not in text
    assert "1.2.9" not in text
