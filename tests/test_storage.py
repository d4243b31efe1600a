"""Images and results in object stores, and stores that do not answer."""

import time

import pytest

from unary.clinic.archive import ArchiveConfig, detect_archive
from unary.clinic.engines import EngineConfig
from unary.clinic.shard_results import read_results
from unary.clinic.storage import Patience, Store, _try_often
from unary.errors import UnaryError

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'unary[ray]'")

QUICK = Patience(timeout_s=5, attempts=2, pause_s=0.01)


def run(manifest, out, model_folder):
    config = ArchiveConfig(engine=EngineConfig(workers=0), shard_size=2, patience=QUICK)
    return detect_archive(manifest, out, config, model_folder=model_folder, progress=False)


def test_images_and_results_in_a_store(phantoms, model_folder, tmp_path):
    files, lines = fsspec.filesystem("memory"), ["path"]
    for row in phantoms.rows[:3]:
        files.pipe_file(f"/in/{row.path.name}", row.path.read_bytes())
        lines.append(f"memory://in/{row.path.name}")
    (tmp_path / "M.csv").write_text("\n".join([*lines, "memory://in/gone.dcm"]) + "\n")
    (tmp_path / "L.csv").write_text("\n".join(["path", *(str(row.path) for row in phantoms.rows[:3])]) + "\n")
    assert run(tmp_path / "M.csv", "memory://out", model_folder).failures == {"NOT_READABLE": 1}
    assert run(tmp_path / "M.csv", "memory://out", model_folder).made == 0
    run(tmp_path / "L.csv", tmp_path / "out", model_folder)
    stored, local = read_results("memory://out"), read_results(tmp_path / "out")
    assert stored.read("candidates").equals(local.read("candidates"))
    assert stored.read("images").to_pylist()[-1]["detail"] == "cannot be fetched (no such file)"
    with Store("memory://out").holding(), pytest.raises(UnaryError, match="in use by another run"):
        run(tmp_path / "M.csv", "memory://out", model_folder)


def test_a_dead_store_ends_the_run_once(model_folder, tmp_path):
    pytest.importorskip("aiohttp", reason="fsspec's http needs aiohttp")
    urls = [f"http://user:word@127.0.0.1:9/{number}.dcm?token=x" for number in range(9)]
    (tmp_path / "M.csv").write_text("\n".join(["path", *urls]) + "\n")
    with pytest.raises(UnaryError, match=r"^http://127\.0\.0\.1:9/4\.dcm: .*5 images in a row"):
        run(tmp_path / "M.csv", tmp_path / "out", model_folder)


def test_a_store_that_hangs_is_given_up():
    patience = Patience(timeout_s=0.05, attempts=2, pause_s=0.01)
    with pytest.raises(UnaryError, match=r"memory://a: cannot be read: no answer within 0\.05 s, at the last of 2"):
        _try_often(lambda: time.sleep(2), "memory://a", "read", patience)
