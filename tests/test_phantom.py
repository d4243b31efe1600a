"""Phantoms: determinism, statistics, lesions where the list says, and DICOM that a validator accepts."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from unary.datasets.phantom import Phantom, PhantomConfig, build_phantom, write_phantom, write_phantom_dataset
from unary.patches.bright_region import find_bright_region
from unary.patches.grid import GridConfig, extract_patches, tissue_origins
from unary.patches.lesions import judge_patches, rasterise_lesion

SMALL = PhantomConfig(rows=384, cols=320)


def build(seed: int = 0, config: PhantomConfig = SMALL, **options: object) -> Phantom:
    return build_phantom(config, rng=np.random.default_rng(seed), **options)  # type: ignore[arg-type]


def lesion_mask(phantom: Phantom, name: str) -> NDArray[np.bool_]:
    mask = np.zeros(phantom.pixels.shape, bool)
    for lesion in phantom.lesions:
        if lesion.name == name:
            inside, (row, col) = rasterise_lesion(lesion, phantom.pixels.shape)
            mask[row : row + inside.shape[0], col : col + inside.shape[1]] |= inside
    return mask


def power_exponent(field: NDArray[np.float64], inside: NDArray[np.bool_], spacing_mm: float) -> float:
    """Slope of the radial power spectrum between 0.15 and 0.7 cycles/mm, over windowed squares wholly inside."""
    size = 128
    window = np.outer(np.hanning(size), np.hanning(size))
    row, col = np.mgrid[:size, :size]
    plane = np.stack([np.ones(size * size), row.ravel(), col.ravel()], axis=1)
    power = np.zeros((size, size))
    for r in range(0, field.shape[0] - size + 1, size // 2):
        for c in range(0, field.shape[1] - size + 1, size // 2):
            square = (slice(r, r + size), slice(c, c + size))
            if inside[square].all():
                values = field[square].ravel()
                trend = plane @ np.linalg.lstsq(plane, values, rcond=None)[0]
                power += np.abs(np.fft.fft2((values - trend).reshape(size, size) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(size, spacing_mm)[:, None], np.fft.fftfreq(size, spacing_mm)[None, :])
    edges = np.geomspace(0.15, 0.7, 9)
    rings = [(frequency >= low) & (frequency < high) for low, high in pairwise(edges)]
    x = np.log([frequency[ring].mean() for ring in rings if ring.any()])
    y = np.log([power[ring].mean() for ring in rings if ring.any()])
    return -float(np.polyfit(x, y, 1)[0])


def test_the_same_seed_gives_the_same_breast_and_another_seed_another() -> None:
    first, again, other = build(3, lesions="mass"), build(3, lesions="mass"), build(4, lesions="mass")
    assert np.array_equal(first.pixels, again.pixels)
    assert first.lesions == again.lesions
    assert not np.array_equal(first.pixels, other.pixels)
    assert first.lesions != other.lesions


def test_the_default_is_a_12_bit_breast_on_a_dark_background() -> None:
    phantom = build(0, PhantomConfig())
    assert phantom.pixels.dtype == np.uint16
    assert phantom.pixels.max() <= 4095
    assert 0.2 < phantom.mask.mean() < 0.7
    outside = ~ndimage.binary_dilation(phantom.mask, iterations=5)
    assert np.median(phantom.pixels[outside]) < 60 < 800 < np.median(phantom.pixels[phantom.mask])
    assert phantom.pixels[outside & (phantom.pixels < 1000)].std() > 0


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0])
def test_the_texture_has_the_exponent_that_was_asked_for(exponent: float) -> None:
    config = PhantomConfig(texture_exponent=exponent, noise_std=0.0)
    textured, smooth = (build(1, replace(config, texture_contrast=contrast)) for contrast in (230.0, 0.0))
    texture = textured.pixels.astype(float) - smooth.pixels
    assert power_exponent(texture, textured.mask, config.spacing_mm) == pytest.approx(exponent, abs=0.3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_breast_has_an_exponent_near_three(seed: int) -> None:
    phantom = build(seed, PhantomConfig())
    measured = power_exponent(phantom.pixels.astype(float), phantom.mask, phantom.spacing_mm)
    assert measured == pytest.approx(3.0, abs=0.3)


def test_the_noise_grows_as_the_square_root_of_the_signal() -> None:
    clean, noisy = (build(2, PhantomConfig(noise_std=std)) for std in (0.0, 24.0))
    noise = noisy.pixels.astype(float) - clean.pixels
    dim, bright = ((clean.pixels > low) & (clean.pixels < low + 200) for low in (1000, 2000))
    assert noise[bright].std() == pytest.approx(24 * math.sqrt(2100 / 2000), rel=0.05)
    assert noise[dim].std() == pytest.approx(24 * math.sqrt(1100 / 2000), rel=0.05)


def test_no_lesion_is_listed_when_none_is_asked_for() -> None:
    assert build().lesions == ()


@pytest.mark.parametrize("view", ["CC", "MLO"])
@pytest.mark.parametrize(("kind", "name"), [("calcifications", "Calcification"), ("mass", "Mass")])
@pytest.mark.parametrize("seed", range(4))
def test_lesions_are_exactly_where_the_list_says_and_inside_the_breast(
    seed: int, kind: str, name: str, view: str
) -> None:
    with_lesions, without = build(seed, lesions=kind, view=view), build(seed, view=view)
    mask = lesion_mask(with_lesions, name)
    assert mask.any()
    assert with_lesions.mask[mask].all()
    difference = with_lesions.pixels.astype(int) - without.pixels
    reach = 4 if kind == "calcifications" else 45  # the spicules of a mass stand out of its contour
    assert (difference[~ndimage.binary_dilation(mask, iterations=reach)] == 0).mean() > 0.999
    for lesion in with_lesions.lesions:
        row, col = np.rint(np.mean(lesion.points, axis=0)).astype(int)
        if lesion.name != "Cluster":
            assert difference[row - 1 : row + 2, col - 1 : col + 2].max() > 20
    if kind == "calcifications":
        specks = [lesion for lesion in with_lesions.lesions if lesion.name == "Calcification"]
        assert 1 <= len(specks) <= 20
        assert {lesion.kind for lesion in specks} <= {"point", "circle"}
        assert lesion_mask(with_lesions, "Cluster")[mask].all()


@pytest.mark.parametrize(("kind", "name"), [("calcifications", "Calcification"), ("mass", "Mass")])
def test_lesions_are_brighter_than_their_surroundings(kind: str, name: str) -> None:
    contrasts = []
    for seed in range(12):
        phantom = build(seed, lesions=kind)
        mask = lesion_mask(phantom, name)
        around = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_dilation(mask, iterations=3)
        contrasts.append(phantom.pixels[mask].mean() - phantom.pixels[around & phantom.mask].mean())
    assert np.median(contrasts) > 100
    assert np.mean(np.array(contrasts) > 0) > 0.8


def test_a_right_breast_is_the_mirror_image_of_a_left_one_but_for_the_letters() -> None:
    left, right = (build(5, lesions="calcifications", laterality=side) for side in "LR")
    assert np.array_equal(right.mask[:, ::-1], left.mask)
    assert np.array_equal(right.pixels[:, ::-1][left.mask], left.pixels[left.mask])
    for name in ("Calcification", "Cluster"):
        assert np.array_equal(lesion_mask(right, name)[:, ::-1], lesion_mask(left, name))
    assert left.mask[:, 0].any()
    assert not left.mask[:, -1].any()


def test_the_breast_is_found_again_with_and_without_lead_letters() -> None:
    letters = []
    for seed in range(8):
        phantom = build(seed, view=("CC", "MLO")[seed % 2], laterality="LR"[seed // 2 % 2])
        found = find_bright_region(phantom.pixels)
        assert 2 * (found & phantom.mask).sum() / (found.sum() + phantom.mask.sum()) > 0.97
        letters.append(bool((phantom.pixels[~ndimage.binary_dilation(phantom.mask, iterations=5)] > 3000).any()))
    assert 0 < sum(letters) < len(letters)


def test_a_simple_filter_finds_most_calcifications_but_not_all() -> None:
    size, scores, truth = 64, [], []
    for seed in range(40):
        phantom = build(seed, lesions="none" if seed % 2 else "calcifications", view=("CC", "MLO")[seed // 2 % 2])
        response = -ndimage.gaussian_laplace(phantom.pixels.astype(np.float32), 1.0)
        response /= np.sqrt(ndimage.gaussian_filter(response**2, 16.0)) + 1
        origins = tissue_origins(ndimage.binary_erosion(phantom.mask, iterations=8), GridConfig(size, size))
        patches = extract_patches(response, origins, size_px=size).reshape(len(origins), -1)
        score = np.sort(patches, axis=1)[:, -8:].mean(axis=1)
        positive = np.zeros(len(origins), bool)
        for lesion in phantom.lesions[:-1]:
            positive |= judge_patches(*rasterise_lesion(lesion, phantom.pixels.shape), origins, size_px=size)[0]
        kept = positive if phantom.lesions else ~positive
        scores.append(score[kept])
        truth.append(positive[kept])
    assert 0.82 < roc_auc_score(np.concatenate(truth), np.concatenate(scores)) < 0.99


def test_other_pixels_are_another_object(tmp_path: Path) -> None:
    uids = set()
    for seed in (0, 1):
        write_phantom(build(seed), tmp_path / "a.dcm", image_id="a", patient_id="P1")
        uids.add(pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID)
    assert len(uids) == 2


@pytest.mark.parametrize("laterality", ["L", "R"])
@pytest.mark.parametrize("view", ["CC", "MLO"])
def test_written_dicom_passes_the_validator_and_reads_back_equal(tmp_path: Path, laterality: str, view: str) -> None:
    phantom = build(1, view=view, laterality=laterality)
    path = tmp_path / "a.dcm"
    write_phantom(phantom, path, image_id="a", patient_id="P001")
    report = subprocess.run(
        [Path(sys.executable).with_name("dciodvfy"), "-new", path], capture_output=True, text=True, check=False
    )
    assert "MammographyImageForPresentation" in report.stderr
    assert [line for line in report.stderr.splitlines() if line.startswith("Error")] == []
    dataset = pydicom.dcmread(path)
    assert np.array_equal(dataset.pixel_array, phantom.pixels)
    assert (dataset.ImageLaterality, dataset.ViewPosition) == (laterality, view)
    assert (dataset.BitsStored, dataset.PhotometricInterpretation) == (12, "MONOCHROME2")
    assert list(dataset.ImagerPixelSpacing) == [0.2, 0.2]


def test_a_data_set_is_the_same_to_the_byte_and_another_seed_another(tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> list[bytes]:
        write_phantom_dataset(tmp_path / name, patients_normal=1, patients_abnormal=1, config=SMALL, seed=seed)
        return [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.dcm"))]

    first, again, other = contents("a", 5), contents("b", 5), contents("c", 6)
    assert first == again
    assert all(one != another for one, another in zip(first, other, strict=True))


def test_the_manifest_tells_what_was_written(tmp_path: Path) -> None:
    manifest = write_phantom_dataset(
        tmp_path, patients_normal=2, patients_abnormal=3, config=SMALL, seed=1, images_per_patient=4
    )
    assert {row.path for row in manifest.rows} == set(tmp_path.resolve().rglob("*.dcm"))
    assert len({row.image_id for row in manifest.rows}) == len(manifest.rows) == 20
    names: dict[str, set[str]] = {}
    studies: dict[str, set[str]] = {}
    for row in manifest.rows:
        dataset = pydicom.dcmread(row.path, stop_before_pixels=True)
        assert (dataset.PatientID, dataset.ImageLaterality, dataset.ViewPosition) == (
            row.patient_id,
            row.laterality,
            row.view,
        )
        assert (row.label, row.assessment) == (
            ("positive", "5") if manifest.lesions_of(row.image_id) else ("negative", "1")
        )
        names.setdefault(row.patient_id, set()).update(item.name for item in manifest.lesions_of(row.image_id))
        studies.setdefault(row.patient_id, set()).add(dataset.StudyInstanceUID)
    assert names == {
        "P001": set(),
        "P002": set(),
        "P003": {"Calcification", "Cluster"},
        "P004": {"Calcification", "Cluster"},
        "P005": {"Mass"},
    }
    assert all(len(found) == 1 for found in studies.values())
    assert len(set.union(*studies.values())) == 5


@pytest.mark.parametrize("kind", ["calcifications", "mass"])
@pytest.mark.parametrize(
    "config",
    [
        PhantomConfig(rows=128, cols=128),
        PhantomConfig(rows=131, cols=200, spacing_mm=0.3),
        PhantomConfig(rows=400, cols=300, spacing_mm=0.07),
        PhantomConfig(rows=300, cols=900, spacing_mm=0.5),
    ],
)
def test_odd_sizes_hold_a_breast_and_its_lesions(config: PhantomConfig, kind: str) -> None:
    for seed in range(8):
        phantom = build(seed, config, lesions=kind, view=("CC", "MLO")[seed % 2])
        mask = lesion_mask(phantom, "Mass" if kind == "mass" else "Calcification")
        assert phantom.pixels.shape == (config.rows, config.cols)
        assert phantom.mask[mask].mean() > 0.9
        assert mask.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows and cols must lie between"),
        ({"cols": 20000}, "rows and cols must lie between"),
        ({"spacing_mm": 0.0}, "spacing_mm must lie between"),
        ({"spacing_mm": float("nan")}, "spacing_mm must lie between"),
        ({"spacing_mm": 0.01}, "a side must measure"),
        ({"texture_exponent": 9.0}, "texture_exponent must lie between"),
        ({"texture_contrast": -1.0}, "texture_contrast must lie between"),
        ({"noise_std": float("nan")}, "noise_std must lie between"),
        ({"calcification_contrast": 5000.0}, "calcification_contrast must lie between"),
        ({"mass_contrast": -2.0}, "mass_contrast must lie between"),
    ],
)
def test_an_impossible_configuration_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PhantomConfig(), **change)  # type: ignore[arg-type]


def test_misspelt_choices_and_bad_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cysts' is not one of none, calcifications, mass"):
        build(lesions="cysts")
    with pytest.raises(ValueError, match="'LAT' is not one of CC, MLO"):
        build(view="LAT")
    with pytest.raises(ValueError, match="'B' is not one of L, R"):
        build(laterality="B")
    with pytest.raises(ValueError, match="at least one patient"):
        write_phantom_dataset(tmp_path, patients_normal=0, patients_abnormal=0, config=SMALL, seed=0)
    with pytest.raises(ValueError, match="images_per_patient"):
        write_phantom_dataset(
            tmp_path, patients_normal=1, patients_abnormal=0, config=SMALL, seed=0, images_per_patient=5
        )
