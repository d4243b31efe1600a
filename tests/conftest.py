"""Phantoms shared by the tests: six normal and three abnormal patients, written once as DICOM."""

from __future__ import annotations

import functools
import os
import shutil
import signal

# Before torch is imported: its threads spin while they wait, and beside other work tests would take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.detectors.simulation import build_library
from unary.models.bundle import write_model
from unary.models.fitting import FitConfig, fit

# A script that starts the tests in its background, or by nohup, has them ignore signals that some send themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def patient_key(tmp_path_factory):
    """Keep the site's key for patients out of the home of whoever runs the tests."""
    os.environ["UNARY_PATIENT_KEY"] = str(tmp_path_factory.mktemp("site") / "patients.key")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Return the manifest of eighteen small phantoms."""
    folder = tmp_path_factory.mktemp("phantoms")
    config = PhantomConfig(rows=384, cols=320)
    return write_phantom_dataset(folder, patients_normal=6, patients_abnormal=3, config=config, seed=11)


@pytest.fixture(scope="session")
def normals(phantoms):
    """Return the negatives among them."""
    return phantoms.select(tuple(row for row in phantoms.rows if row.label == "negative"))


@pytest.fixture(scope="session")
def model_folder(normals, tmp_path_factory):
    """Return the folder, not to be written to, of a calibrated model that learns nothing and is fitted in a second."""
    folder = tmp_path_factory.mktemp("model") / "laplacian"
    write_model(fit(normals, FitConfig(held_out=0.5), detector="laplacian", progress=False), folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    """Return Chromium, which asks nobody for anything by itself; without it, the tests that use it are skipped."""
    sync = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
    place = shutil.which("chromium")
    if place is None:
        pytest.skip("chromium is not installed")
    arguments = (
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    )
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=place, args=list(arguments))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def few_templates():
    """Draw few calcifications for `segmentation`: thousands take longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unary.detectors.segmentation.build_library", functools.partial(build_library, count=200))
        yield
