"""Pictures of one size and bandwidth, and the controls."""

import numpy as np
import PIL.Image
import pytest

from unary.errors import ImageError
from unary.experiments.image_level_pictures import (
    CONTROLS,
    PASSED,
    bring_to_size,
    find_common_bandwidth,
    join_controls,
    measure_bandwidth,
    read_pictures,
)
from unary.records import ManifestRow


def draw_wave(cycles: float, shape: tuple[int, int]) -> np.ndarray:
    """A wave of so many cycles from left to right, around grey, in [0, 1]."""
    phase = 2 * np.pi * cycles * (np.arange(shape[1]) + 0.5) / shape[1]
    return np.broadcast_to(0.5 + 0.4 * np.sin(phase), shape).astype(np.float32)


def amplitude(values: np.ndarray) -> float:
    """Of a wave, in the middle of the picture, away from its borders."""
    return float(np.ptp(values[len(values) // 2, 32:96]) / 2)


@pytest.mark.parametrize("cycles", [10, 40])
@pytest.mark.parametrize("shape", [(256, 256), (150, 300), (64, 512)])
def test_the_bandwidth_of_a_wave_is_its_frequency_whatever_the_size(cycles, shape):
    assert abs(measure_bandwidth(draw_wave(cycles, shape)) - cycles) <= 2


@pytest.mark.parametrize("shape", [(256, 256), (180, 512)])
def test_at_one_bandwidth_pictures_of_all_sizes_lose_alike(shape):
    cutoff = 20.0
    for cycles in (5, 10, 20):
        kept = amplitude(bring_to_size(draw_wave(cycles, shape), 128, cutoff=cutoff)) / 0.4
        assert kept == pytest.approx(PASSED ** ((cycles / cutoff) ** 2), abs=0.03)


def test_without_a_cutoff_what_the_grid_can_hold_stays():
    assert amplitude(bring_to_size(draw_wave(8, (256, 256)), 128)) == pytest.approx(0.4, abs=0.03)
    flat = np.full((50, 80), 0.3, np.float32)
    np.testing.assert_allclose(bring_to_size(flat, 32), 0.3, rtol=1e-5)
    np.testing.assert_allclose(bring_to_size(flat, 32, cutoff=5), 0.3, rtol=1e-5)


def test_one_odd_picture_does_not_decide_for_all():
    widths = np.r_[[3.0], np.full(999, 40.0)]
    assert find_common_bandwidth(widths) == 40
    assert find_common_bandwidth(np.array([0.0])) == 1


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)
    return ManifestRow(path, path.stem, path.stem, "negative")


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    found = [write(tmp_path / f"{k}.png", rng.integers(0, 200, (40 + k, 50), dtype=np.uint8)) for k in range(4)]
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    damaged = ManifestRow(tmp_path / "damaged.png", "damaged", "damaged", "negative")
    return [*found, damaged, write(tmp_path / "blank.png", np.full((30, 30), 7, np.uint8))]


def test_pictures_are_read_with_what_the_files_tell_and_bad_ones_are_named(rows, caplog):
    pictures = read_pictures(rows, side_px=32, progress=False)
    assert [row.image_id for row in pictures.rows] == ["0", "1", "2", "3"]
    assert all(row.image.pixels.shape == (32, 32) for row in pictures.rows)
    assert pictures.controls["image_size"].tolist() == [2000, 2050, 2100, 2150]
    assert pictures.controls["file_bytes"].tolist() == [row.path.stat().st_size for row in rows[:4]]
    for name, place in (("mean_brightness", np.mean), ("standard_deviation", np.std)):
        own = [place(row.image.pixels / 255) for row in pictures.rows]
        np.testing.assert_allclose(pictures.controls[name], own, rtol=1e-5)
    assert len(pictures.skipped) == 2
    assert "damaged.png" in pictures.skipped[0]
    assert "blank.png" in pictures.skipped[1]
    assert "skipped" in caplog.text
    with pytest.raises(ImageError, match="none of 2 pictures could be used"):
        read_pictures(rows[4:], side_px=32, progress=False)


def test_at_one_bandwidth_size_tells_nothing_and_sharpness_hardly_anything(rows):
    plain = read_pictures(rows[:4], side_px=32, progress=False)
    even = read_pictures(rows[:4], side_px=32, cutoff=6.0, progress=False)
    assert set(even.controls["image_size"]) == {32 * 32}
    assert (even.controls["high_frequency"] < 0.01 * plain.controls["high_frequency"]).all()
    assert (even.bandwidths < plain.bandwidths).all()
    assert set(plain.controls) == set(CONTROLS)


def test_controls_taken_together_are_far_where_any_of_them_is():
    rng = np.random.default_rng(1)
    controls = {name: rng.uniform(1, 2, 200) for name in CONTROLS}
    controls["image_size"][:] = 100.0  # the same everywhere, and so left out
    controls["file_bytes"][150] = 40.0
    training = np.arange(200) < 100
    distance = join_controls(controls, training)
    assert np.argmax(distance) == 150
    assert np.isfinite(distance).all()
    table = np.stack([controls[name] for name in CONTROLS[1:]], axis=1)
    table[:, -1] = np.log(table[:, -1])
    offset = table - table[training].mean(axis=0)
    inverse = np.linalg.inv(np.cov(table[training], rowvar=False))
    np.testing.assert_allclose(distance, np.sqrt(((offset @ inverse) * offset).sum(axis=1)), rtol=0.01)
    assert not join_controls({name: np.ones(3) for name in CONTROLS}, np.ones(3, bool)).any()
