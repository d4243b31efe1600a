"""Ray as the engine of archives: the same bytes as plain processes, whatever happens to its actors."""

import os
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from unary.clinic.archive import ArchiveConfig, detect_archive
from unary.clinic.engines import EngineConfig
from unary.datasets.manifest import write_manifest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'unary[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

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


def test_ray_gives_the_same_bytes_though_an_actor_is_killed(phantoms, model_folder, tmp_path):
    manifest, killed = tmp_path / "M.csv", []
    write_manifest(phantoms.select(phantoms.rows[-12:]), manifest)
    run(manifest, tmp_path / "plain", model_folder, EngineConfig(workers=0))

    def kill():
        end = time.monotonic() + 120
        while not list((tmp_path / "ray").glob("shards/*/record.json")) and time.monotonic() < end:
            time.sleep(0.02)
        for victim in find_actors()[:1]:
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = run(manifest, tmp_path / "ray", model_folder, EngineConfig("ray", 2))
    thread.join()
    assert killed
    assert (summary.lost, summary.examined) == (0, 12)
    assert read_bytes(tmp_path / "ray") == read_bytes(tmp_path / "plain")
    assert run(manifest, tmp_path / "ray", model_folder, EngineConfig("ray", 1)).made == 0
    assert find_actors() == []
