"""Phantoms: determinism, statistics, lesions where the list says, and DICOM that a validator accepts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from unary.sources.phantom import Phantom, PhantomConfig, build_phantom, write_phantom, write_phantom_dataset

SMALL = PhantomConfig(rows=384, cols=320)


def build(seed: int = 0, **options: object) -> Phantom:
    return build_phantom(SMALL, rng=np.random.default_rng(seed), **options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_breast_and_another_seed_another() -> None:
    assert np.array_equal(build(3).pixels, build(3).pixels)
    assert not np.array_equal(build(3).pixels, build(4).pixels)


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


def test_a_data_set_is_the_same_to_the_byte(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        write_phantom_dataset(folder, patients_normal=1, patients_abnormal=1, config=SMALL, seed=5)
    first, second = ([path.read_bytes() for path in sorted(folder.rglob("*.dcm"))] for folder in folders)
    assert len(first) == 4
    assert first == second
