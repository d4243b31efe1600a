"""Ray as the engine of archives: the same bytes as plain processes, whatever happens to its actors."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from unary.clinic.archive import ArchiveConfig, detect_archive
from unary.clinic.engines import EngineConfig
from unary.datasets.manifest import write_manifest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'unary[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def find_actors():
    """Return the numbers of Ray's processes that work on shards."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if b"ray::MapWorker" in title and os.environ["UNARY_PATIENT_KEY"].encode() in environment:
                found.append(int(entry.name))
    return found


def run(manifest, out, model_folder, engine):
    config = ArchiveConfig(engine=engine, shard_size=2)
    return detect_archive(manifest, out, config, model_folder=model_folder, moment=MOMENT, progress=False)


def read_bytes(out):
    files = sorted(path for path in (out / "shards").rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def manifest(phantoms, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "M.csv"
    write_manifest(phantoms.select(phantoms.rows[-12:]), path)
    return path


@pytest.fixture(scope="module")
def plain(manifest, model_folder):
    """Return the folder that this process makes."""
    run(manifest, manifest.parent / "plain", model_folder, EngineConfig(workers=0))
    return manifest.parent / "plain"


def wait_for_a_shard(out, process=None):
    end = time.monotonic() + 120
    while not list(out.glob("shards/*/record.json")) and time.monotonic() < end:
        assert process is None or process.poll() is None
        time.sleep(0.02)


def require_no_actors():
    """Ray's processes end with the run that started them, some seconds later on a busy computer."""
    end = time.monotonic() + 60
    while find_actors() and time.monotonic() < end:
        time.sleep(0.1)
    assert find_actors() == []


def test_a_run_that_is_killed_with_its_ray_is_gone_on_with(manifest, plain, model_folder, tmp_path):
    out = tmp_path / "ray"
    words = ["detect", model_folder, manifest, "--out", out, "--engine", "ray", "--workers", "1", "--shard-size", "2"]
    command = [sys.executable, "-m", "unary.cli", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_a_shard(out, process)
        process.kill()
    require_no_actors()
    assert json.loads((out / "run.json").read_text())["state"] == "running"
    done = {path: path.stat().st_mtime_ns for path in out.glob("shards/*/record.json")}
    summary = run(manifest, out, model_folder, EngineConfig(workers=0))
    assert 0 < summary.kept < 12
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    tables = [{k: v for k, v in read_bytes(each).items() if k.endswith(".parquet")} for each in (out, plain)]
    assert tables[0] == tables[1]
    assert not list(out.rglob("*.partial"))


def test_ray_gives_the_same_bytes_though_an_actor_is_killed(manifest, plain, model_folder, tmp_path):
    killed = []

    def kill():
        wait_for_a_shard(tmp_path / "ray")
        for victim in find_actors()[:1]:
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = run(manifest, tmp_path / "ray", model_folder, EngineConfig("ray", 2))
    thread.join()
    assert killed
    assert (summary.lost, summary.examined) == (0, 12)
    assert read_bytes(tmp_path / "ray") == read_bytes(plain)
    assert run(manifest, tmp_path / "ray", model_folder, EngineConfig("ray", 1)).made == 0
    require_no_actors()
