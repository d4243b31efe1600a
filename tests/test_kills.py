"""A small run of ``benchmarks/kills.py`` on models: processes are killed at random moments, and nothing is lost."""

import importlib
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", ["kill_calibrate", "kill_fit_unlearned"])
def test_kills_lose_nothing_and_change_nothing(part, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    monkeypatch.setenv("UNARY_PATIENT_KEY", str(tmp_path / "patients.key"))
    told = getattr(importlib.import_module("kills_of_models"), part)(tmp_path, 2, np.random.default_rng(1))
    assert told["right"]
    assert told["kills"] >= 2
