"""Batches: every file ends as a result or as a named failure, whatever happens on the way."""

import csv
import errno
import json
import os
import shutil
import threading
import time
import weakref

import numpy as np
import pytest

from unary.clinic.batch import list_inputs, run_batch
from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import ImageError
from unary.training.threads import count_threads, using_threads


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return one small phantom's file."""
    path = tmp_path_factory.mktemp("small") / "one.dcm"
    phantom = build_phantom(PhantomConfig(rows=160, cols=128), rng=np.random.default_rng(3))
    write_phantom(phantom, path, image_id="one", patient_id="p", seed=3)
    return path


def examine(image):
    """Return what writes the mean of an image."""
    mean = float(image.pixels.mean())

    def write(folder):
        (folder / "result.json").write_text(json.dumps({"mean": mean}))
        return {"mean": mean}

    return write


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_thousand_files_with_fifty_broken_ones(small, tmp_path):
    whole = small.read_bytes()
    source = tmp_path / "in"
    source.mkdir()
    for number in range(1000):
        content = whole
        if number % 20 == 7:
            kinds = (whole[:-1000], whole[:400], b"", b"no image at all", whole[:132] + os.urandom(200))
            content = kinds[number % 5]
        (source / f"{number:04d}.dcm").write_bytes(content)
    summary = run_batch([source], tmp_path / "out", examine, identity={}, progress=False)
    broken = {number for number in range(1000) if number % 20 == 7}
    assert len(summary.done) == 950
    assert {int(name) for name in summary.done} == set(range(1000)) - broken
    failures = read_rows(tmp_path / "out" / "failures.csv")
    assert {int(row["file"].rsplit("/", 1)[-1][:4]) for row in failures} == broken
    assert all(row["reason"] and row["detail"] for row in failures)
    assert len(read_rows(tmp_path / "out" / "summary.csv")) == 950
    assert len({row["mean"] for row in read_rows(tmp_path / "out" / "summary.csv")}) == 1


def test_a_kill_loses_nothing_and_a_rerun_ends_with_the_same_bytes(small, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(6):
        shutil.copy(small, source / f"{number}.dcm")

    class KilledError(BaseException):
        pass

    calls = []

    def dying(image):
        def write(folder):
            calls.append(folder)
            (folder / "half.txt").write_text("half")
            if len(calls) == 4:
                raise KilledError
            return examine(image)(folder)

        return write

    with pytest.raises(KilledError):
        run_batch([source], tmp_path / "out", dying, identity={"a": 1}, progress=False)
    finished = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert finished == ["0", "1", "2"]
    left = tmp_path / "out" / ".3.99999.partial"  # as a real kill would leave it
    left.mkdir()
    stamp = (tmp_path / "out" / "1" / "result.json").stat().st_mtime_ns
    again = run_batch([source], tmp_path / "out", examine, identity={"a": 1}, progress=False)
    assert (again.kept, again.done) == (("0", "1", "2"), ("3", "4", "5"))
    assert not left.exists()
    assert (tmp_path / "out" / "1" / "result.json").stat().st_mtime_ns == stamp
    fresh = run_batch([source], tmp_path / "fresh", examine, identity={"a": 1}, progress=False)
    assert fresh.kept == ()
    for name in "345":
        files = (tmp_path / where / name / "result.json" for where in ("out", "fresh"))
        first, second = (file.read_bytes() for file in files)
        assert first == second
    assert (tmp_path / "out" / "summary.csv").read_bytes() == (tmp_path / "fresh" / "summary.csv").read_bytes()


@pytest.fixture(params=[1, 3])
def threads(request):
    with using_threads(request.param):
        yield request.param


def test_results_are_written_beside_the_work_on_the_next_image(small, tmp_path, monkeypatch, threads):
    for number in range(3):
        shutil.copy(small, tmp_path / f"{number}.dcm")
    for most, together in ((10**9, True), (1, False)):
        monkeypatch.setattr("unary.clinic.batch._TOGETHER_PX", most)
        order = []

        def working(image, order=order, together=together):
            order.append("work")

            def write(_folder):
                while together and order.count("work") < min(order.count("written") + 2, 3):
                    time.sleep(0.001)  # only the next image's work ends this
                order.append("written")
                return {}

            return write

        paths = [tmp_path / f"{number}.dcm" for number in range(3)]
        run_batch(paths, tmp_path / f"out{most}", working, identity={}, progress=False)
        assert order.count("written") == 3
        assert (order == ["work", "written"] * 3) != together


def test_images_are_worked_on_side_by_side_a_thread_each_but_large_or_single_ones(small, tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.dcm" for number in range(6)]
    for path in paths:
        shutil.copy(small, path)
    for most, count in ((10**9, 6), (1, 6), (10**9, 1)):
        monkeypatch.setattr("unary.clinic.batch._TOGETHER_PX", most)
        together = most > 1 and count > 1
        meeting = threading.Barrier(3 if together else 1)
        used = []

        def working(image, meeting=meeting, used=used):
            meeting.wait(timeout=20)  # passes only three at a time
            used.append(count_threads())
            return lambda folder: {"file": image.path.name}

        out = tmp_path / f"out{most}-{count}"
        with using_threads(3):
            summary = run_batch(paths[:count], out, working, identity={}, progress=False)
            assert count_threads() == 3
        assert used == [1 if together else 3] * count
        assert [row["file"] for row in summary.rows] == [path.name for path in paths[:count]]


@pytest.mark.parametrize("most", [160 * 128, 1])
def test_no_more_images_are_held_than_there_is_room_for(most, small, tmp_path, monkeypatch, threads):
    monkeypatch.setattr("unary.clinic.batch._TOGETHER_PX", most)
    for number in range(6):
        shutil.copy(small, tmp_path / f"{number}.dcm")
    held, most_held = weakref.WeakSet(), []

    class Result:
        pass

    def examine_much(_image):
        result = Result()
        most_held.append(len(held))
        held.add(result)

        def write(_folder, result=result):
            raise ImageError("x.dcm: it cannot be reported", reason=type(result).__name__)

        return write

    paths = [tmp_path / f"{number}.dcm" for number in range(6)]
    summary = run_batch(paths, tmp_path / "out", examine_much, identity={}, progress=False)
    assert len(summary.failed) == 6
    assert max(most_held) <= (threads if most > 1 else 0)


def test_what_is_wrong_in_writing_one_image_is_its_failure_and_a_full_disk_ends_the_batch(small, tmp_path):
    for number in range(4):
        shutil.copy(small, tmp_path / f"{number}.dcm")
    paths = [tmp_path / f"{number}.dcm" for number in range(4)]

    def failing(error):
        worked = []

        def examine_three(image):
            worked.append(image)
            number = len(worked)

            def write(folder):
                if number == 2:
                    raise error
                return examine(image)(folder)

            return write

        return worked, examine_three

    _, refusing = failing(ImageError("1.dcm: no report can be made of it", reason="NO_REPORT"))
    summary = run_batch(paths, tmp_path / "out", refusing, identity={}, progress=False)
    assert summary.done == ("0", "2", "3")
    assert [failure.reason for failure in summary.failed] == ["NO_REPORT"]
    assert [row["image"] for row in read_rows(tmp_path / "out" / "summary.csv")] == ["0", "2", "3"]
    worked, full = failing(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        run_batch(paths, tmp_path / "full", full, identity={}, progress=False)
    assert len(worked) == 3, "the fourth image is not begun"
    assert sorted(path.name for path in (tmp_path / "full").iterdir() if path.is_dir()) == ["0"]


def test_another_model_or_another_file_is_done_again(small, tmp_path):
    path = tmp_path / "image.dcm"
    shutil.copy(small, path)
    out = tmp_path / "out"
    run_batch([path], out, examine, identity={"model": "a"}, progress=False)
    assert run_batch([path], out, examine, identity={"model": "a"}, progress=False).kept == ("image",)
    assert run_batch([path], out, examine, identity={"model": "b"}, progress=False).done == ("image",)
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1  # same name, same size
    path.write_bytes(bytes(changed))
    assert run_batch([path], out, examine, identity={"model": "b"}, progress=False).done == ("image",)


def test_what_the_examination_refuses_is_a_failure_and_leaves_no_folder(small, tmp_path):
    def refuse(image):
        raise ImageError(f"{image.path}: no tissue", reason="BLANK")

    def refuse_half_way(image):
        def write(folder):
            (folder / "half.txt").write_text("half")
            refuse(image)

        return write

    for examination in (refuse, refuse_half_way):
        summary = run_batch([small], tmp_path / "out", examination, identity={}, progress=False)
        (failure,) = summary.failed
        assert (failure.reason, failure.detail) == ("BLANK", "no tissue")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["failures.csv"]


def test_names_of_folders_stay_inside_and_distinct(small, tmp_path):
    source = tmp_path / "in"
    for name in ("..a.dcm", "a\nb.dcm", "x" * 200 + ".dcm", "sub/..a.dcm", "a b.dcm", "a_b.dcm"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(small, source / name)
    shutil.copy(small, tmp_path / "a_b.dcm")
    hidden = [source / "..a.dcm", source / "sub" / "..a.dcm"]  # left out of folders, taken when named
    names = list_inputs([source, tmp_path / "a_b.dcm", *hidden])
    assert len(names) == 7
    for name in names:
        assert name == name.strip(". ")
        assert "/" not in name
        assert name.isprintable()
        assert len(name) <= 125
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
