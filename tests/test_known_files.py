import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from unary.clinic import batch
from unary.clinic.batch import run_batch
from unary.clinic.file_work import Job
from unary.clinic.known_files import KnownFiles, Look, look_at
from unary.files import KNOWN_FILES
from unary.images.isolation import IsolatedReader
from unary.models.gate import Gate
from unary.profiles import GENERAL, MAMMOGRAPHY

NOW = 1_800_000_000_000_000_000


def examine(image, _source):
    return lambda folder: ({"mean": float(image.pixels.mean())}, {})


def write_picture(path, value, *, age_s=100):
    pixels = np.full((40, 40), 1000, ">u2")
    pixels[0, 0] = value
    path.write_bytes(b"P5 40 40 65535\n" + pixels.tobytes())
    moment = time.time_ns() - age_s * 10**9
    os.utime(path, ns=(moment, moment))


class Readings:
    """How often files are hashed, and a process that reads is started."""

    def __init__(self, monkeypatch):
        self.hashed, self.asked = [], []
        hash_image_file, ask = batch.hash_image_file, IsolatedReader._ask

        def note_hash(path, limits):
            self.hashed.append(path.name)
            return hash_image_file(path, limits)

        def note_ask(reader, path, headers):
            self.asked.append(path.name)
            return ask(reader, path, headers)

        monkeypatch.setattr(batch, "hash_image_file", note_hash)
        monkeypatch.setattr(IsolatedReader, "_ask", note_ask)

    def take(self):
        found = (sorted(self.hashed), sorted(set(self.asked)))
        self.hashed.clear()
        self.asked.clear()
        return found


@pytest.fixture
def readings(monkeypatch):
    # The time of the last change of anything cannot be set, and a test does not wait for it to pass.
    monkeypatch.setattr("unary.clinic.known_files._COARSE_NS", -(10**12))
    return Readings(monkeypatch)


def run(folder, out, *, verify=False, gate=None, made_from=None):
    gate = gate or Gate(GENERAL, spacing_mm=0.1)
    return run_batch([folder], out, Job("try", examine, made_from or {}, gate, verify=verify), progress=False)


def test_a_rerun_reads_nothing_of_what_is_unchanged(tmp_path, readings):
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        write_picture(tmp_path / "in" / f"{name}.pgm", ord(name))
    everything = ["a.pgm", "b.pgm", "c.pgm"]
    assert len(run(tmp_path / "in", tmp_path / "out").done) == 3
    assert readings.take() == (everything, everything)
    again = run(tmp_path / "in", tmp_path / "out")
    assert (again.done, again.kept) == ((), ("a", "b", "c"))
    assert readings.take() == ([], [])
    assert run(tmp_path / "in", tmp_path / "out", verify=True).kept == ("a", "b", "c")
    assert readings.take() == (everything, everything)

    write_picture(tmp_path / "in" / "b.pgm", 7)  # another content
    os.utime(tmp_path / "in" / "c.pgm")  # the same content, touched
    os.remove(tmp_path / "out" / "a" / "result.json")  # no result any more
    changed = run(tmp_path / "in", tmp_path / "out")
    assert (changed.done, changed.kept) == (("a-2", "b-2"), ("c",)), "a folder without its result is not unary's"
    assert readings.take() == (everything, everything)
    assert run(tmp_path / "in", tmp_path / "out").kept == ("a-2", "b-2", "c")
    assert readings.take() == ([], [])

    others = {"made_from": {"model_sha256": "2"}}
    assert len(run(tmp_path / "in", tmp_path / "out", **others).done) == 3, "another model examines all of them"
    assert readings.take() == (everything, everything)
    gate = Gate(GENERAL, spacing_mm=0.2)
    assert len(run(tmp_path / "in", tmp_path / "out", gate=gate, **others).done) == 3, "as does another gate"
    assert readings.take() == (everything, everything)


def test_a_change_that_leaves_no_trace_is_what_verifying_finds(tmp_path, readings):
    path = tmp_path / "a.pgm"
    write_picture(path, 1)
    run(path, tmp_path / "out")
    size, before = path.stat().st_size, path.stat()
    write_picture(path, 2)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert path.stat().st_size == size
    known = tmp_path / "out" / KNOWN_FILES
    kept = json.loads(known.read_text())
    kept["look"] = {**kept["look"], "ctime_ns": path.stat().st_ctime_ns}  # as if a disk's image had been put back
    untraced = json.dumps(kept) + "\n"
    known.write_text(untraced)
    assert run(path, tmp_path / "out").kept == ("a",)
    assert run(path, tmp_path / "out", verify=True).done == ("a-2",)
    assert run(path, tmp_path / "out").kept == ("a-2",)


def test_a_file_changed_just_before_it_was_hashed_is_hashed_again(tmp_path, monkeypatch):
    readings = Readings(monkeypatch)
    write_picture(tmp_path / "a.pgm", 1)  # its ctime is now
    for _ in range(2):
        run(tmp_path / "a.pgm", tmp_path / "out")
        assert readings.take() == (["a.pgm"], ["a.pgm"])
    monkeypatch.setattr("unary.clinic.known_files.time.time_ns", lambda: time.monotonic_ns() + 2 * NOW)
    run(tmp_path / "a.pgm", tmp_path / "out")
    assert readings.take() == (["a.pgm"], ["a.pgm"])
    run(tmp_path / "a.pgm", tmp_path / "out")
    assert readings.take() == ([], []), "a time long before it was hashed last"


def test_looks_are_the_same_only_when_nothing_tells_them_apart():
    look = Look(10, NOW - 5 * 10**9, NOW - 4 * 10**9, 7, NOW)
    assert look.is_same(Look(10, look.mtime_ns, look.ctime_ns, 7, NOW + 10**12))
    for change in ({"size": 11}, {"mtime_ns": look.mtime_ns + 1}, {"ctime_ns": look.ctime_ns + 1}, {"inode": 8}):
        assert not look.is_same(Look(**{**vars(look), **change}))
    for coarse in ({"mtime_ns": NOW - 10**9}, {"ctime_ns": NOW - 10**9}, {"mtime_ns": NOW + 10**9}):
        assert not Look(**{**vars(look), **coarse}).is_same(Look(**{**vars(look), **coarse, "at_ns": NOW + 10**12}))
    assert look_at(Path("no such file")) is None
    assert look_at(Path("a\0b")) is None


def test_what_is_remembered_survives_torn_lines_and_stays_small(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(b"x")
    look = Look(**{**vars(look_at(path)), "at_ns": time.time_ns() + 10**10})
    with KnownFiles(tmp_path, Gate(GENERAL)) as known:
        for number in range(9):
            known.remember(path, look, {"sha256": str(number)})
        assert known.recall(path, look) == {"sha256": "8"}
    with (tmp_path / KNOWN_FILES).open("a") as file:
        file.write('{"path": "/half')
    with KnownFiles(tmp_path, Gate(GENERAL)) as known:
        assert known.recall(path, look) == {"sha256": "8"}
        known.remember(tmp_path / "b.dcm", look, {"sha256": "b"})
    assert len([line for line in (tmp_path / KNOWN_FILES).read_text().splitlines() if line]) == 2
    with (tmp_path / KNOWN_FILES).open("a") as file:
        file.write('{"path": "/half')
    with KnownFiles(tmp_path, Gate(GENERAL)) as known:
        known.remember(tmp_path / "c.dcm", look, {"sha256": "c"})
    with KnownFiles(tmp_path, Gate(GENERAL)) as known:
        assert known.recall(tmp_path / "b.dcm", look) == {"sha256": "b"}
        assert known.recall(tmp_path / "c.dcm", look) == {"sha256": "c"}
    with KnownFiles(tmp_path, Gate(MAMMOGRAPHY)) as known:
        assert known.recall(path, look) is None
    (tmp_path / KNOWN_FILES).write_bytes(
        b'\xff\n[]\n{"path": 1}\n{"path": "/a", "look": {}, "gate": "", "about": {}}\n'
    )
    with KnownFiles(tmp_path, Gate(GENERAL)) as known:
        assert known.recall(path, look) is None
