"""A small run of ``benchmarks/node_load.py``: a node is killed at random moments, and nothing is lost or doubled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_kills_lose_nothing_and_double_nothing():
    script = Path(__file__).parents[1] / "benchmarks" / "node_load.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, "kills", "--kills", "2", "--images", "6"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["faults"] == []
    assert (done.returncode, told["right"]) == (0, True)
    assert told["held_by_pacs"] == 12
