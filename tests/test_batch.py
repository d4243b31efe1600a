"""Batches: every file ends as a result or as a named failure, whatever happens on the way."""

import csv
import errno
import json
import os
import shutil
import signal
import threading
import time
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest

from unary.clinic.batch import run_batch
from unary.clinic.file_work import Job
from unary.clinic.inputs import list_inputs
from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import DetectorError, ImageError, UnaryError
from unary.files import locking
from unary.images.headers import read_attributes
from unary.images.isolation import IsolatedReader
from unary.images.isolation_process import ReadingLimits
from unary.images.reading import read_image
from unary.models.gate import Gate
from unary.profiles import GENERAL, MAMMOGRAPHY
from unary.training.threads import count_threads, using_threads

MOMENT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return one small phantom's file."""
    path = tmp_path_factory.mktemp("small") / "one.dcm"
    phantom = build_phantom(PhantomConfig(rows=160, cols=128), rng=np.random.default_rng(3))
    write_phantom(phantom, path, image_id="one", patient_id="p", seed=3)
    return path


def examine(image, _source=None):
    """Return what writes the mean of an image."""
    mean = float(image.pixels.mean())

    def write(folder):
        (folder / "mean.txt").write_text(str(mean))
        return {"mean": mean}, {"mean": mean}

    return write


def run(paths, out, examination=examine, made_from=None, gate=None, probe=lambda: None):
    job = Job("try", examination, made_from or {}, gate or Gate(GENERAL), probe)
    return run_batch(paths, out, job, moment=MOMENT, progress=False)


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
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
    summary = run([source], tmp_path / "out", examine)
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

    def dying(image, _source):
        def write(folder):
            calls.append(folder)
            (folder / "half.txt").write_text("half")
            if len(calls) == 4:
                raise KilledError
            return examine(image)(folder)

        return write

    with pytest.raises(KilledError):
        run([source], tmp_path / "out", dying, {"a": 1})
    finished = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert finished == ["0", "1", "2"]
    left = [tmp_path / "out" / ".unary.partial" / "3", tmp_path / "out" / ".123.summary.csv"]  # as a kill leaves them
    left[0].mkdir(parents=True)
    left[1].write_text("half")
    mine = tmp_path / "out" / ".3.99999.partial"  # as unary leaves nothing
    mine.mkdir()
    stamp = (tmp_path / "out" / "1" / "result.json").stat().st_mtime_ns
    again = run([source], tmp_path / "out", examine, {"a": 1})
    assert (again.kept, again.done) == (("0", "1", "2"), ("3", "4", "5"))
    assert not [path for path in left if path.exists()]
    assert mine.exists()
    assert (tmp_path / "out" / "1" / "result.json").stat().st_mtime_ns == stamp
    fresh = run([source], tmp_path / "fresh", examine, {"a": 1})
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

        def working(_image, _source, order=order, together=together):
            order.append("work")

            def write(_folder):
                while together and order.count("work") < min(order.count("written") + 2, 3):
                    time.sleep(0.001)  # only the next image's work ends this
                order.append("written")
                return {}, {}

            return write

        paths = [tmp_path / f"{number}.dcm" for number in range(3)]
        run(paths, tmp_path / f"out{most}", working)
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

        def working(image, _source, meeting=meeting, used=used):
            meeting.wait(timeout=20)  # passes only three at a time
            used.append(count_threads())
            return lambda folder: ({"told": image.path.name}, {})

        out = tmp_path / f"out{most}-{count}"
        with using_threads(3):
            summary = run(paths[:count], out, working)
            assert count_threads() == 3
        assert used == [1 if together else 3] * count
        assert [row["told"] for row in summary.rows] == [path.name for path in paths[:count]]


@pytest.mark.parametrize("most", [160 * 128, 1])
def test_no_more_images_are_held_than_there_is_room_for(most, small, tmp_path, monkeypatch, threads):
    monkeypatch.setattr("unary.clinic.batch._TOGETHER_PX", most)
    for number in range(6):
        shutil.copy(small, tmp_path / f"{number}.dcm")
    held, most_held = weakref.WeakSet(), []

    class Result:
        pass

    def examine_much(_image, _source):
        result = Result()
        most_held.append(len(held))
        held.add(result)

        def write(_folder, result=result):
            raise ImageError("x.dcm: it cannot be reported", reason=type(result).__name__)

        return write

    paths = [tmp_path / f"{number}.dcm" for number in range(6)]
    summary = run(paths, tmp_path / "out", examine_much)
    assert len(summary.failed) == 6
    assert max(most_held) <= (threads if most > 1 else 0)


def test_what_is_wrong_in_writing_one_image_is_its_failure_and_a_full_disk_ends_the_batch(small, tmp_path):
    for number in range(4):
        shutil.copy(small, tmp_path / f"{number}.dcm")
    paths = [tmp_path / f"{number}.dcm" for number in range(4)]

    def failing(error):
        worked = []

        def examine_three(image, _source):
            worked.append(image)
            number = len(worked)

            def write(folder):
                if number == 2:
                    raise error
                return examine(image)(folder)

            return write

        return worked, examine_three

    _, refusing = failing(ImageError("1.dcm: no report can be made of it", reason="NO_REPORT"))
    summary = run(paths, tmp_path / "out", refusing)
    assert summary.done == ("0", "2", "3")
    assert [failure.reason for failure in summary.failed] == ["NO_REPORT"]
    assert [row["image"] for row in read_rows(tmp_path / "out" / "summary.csv")] == ["0", "2", "3"]
    worked, full = failing(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UnaryError, match=r"no more results can be written \(No space left on device\); 1 are there"):
        run(paths, tmp_path / "full", full)
    assert len(worked) == 3, "the fourth image is not begun"
    assert sorted(path.name for path in (tmp_path / "full").iterdir() if path.is_dir()) == ["0"]
    assert [row["image"] for row in read_rows(tmp_path / "full" / "summary.csv")] == ["0"]
    assert json.loads((tmp_path / "full" / "run.json").read_text())["state"] == "failed"


def test_a_result_is_known_by_what_it_was_made_from(small, tmp_path):
    path = tmp_path / "image.dcm"
    shutil.copy(small, path)
    out = tmp_path / "out"
    run([path], out, made_from={"model_sha256": "a"})
    assert run([path], out, made_from={"model_sha256": "a"}).kept == ("image",)
    summary = run([path], out, made_from={"model_sha256": "b"})
    assert (summary.done, summary.replaced) == (("image",), 1), "another model's"
    (out / "image" / "mean.txt").unlink()
    assert run([path], out, made_from={"model_sha256": "b"}).done == ("image",), "a part was missing"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1  # same name, same size
    path.write_bytes(bytes(changed))
    assert run([path], out, made_from={"model_sha256": "b"}).done == ("image-2",), "beside it: another image's"
    summary = run([path], out, made_from={"model_sha256": "c"})
    assert (summary.done, summary.held) == (("image-2",), 2)
    assert [remark for remark in summary.remarks if "another model" in remark and "image" in remark]
    assert [row["model"] for row in read_rows(out / "summary.csv")] == ["b", "c"]


def test_what_the_examination_refuses_is_a_failure_and_leaves_no_folder(small, tmp_path):
    def refuse(image, _source=None):
        raise ImageError(f"{image.path}: no tissue", reason="BLANK")

    def refuse_half_way(image, _source):
        def write(folder):
            (folder / "half.txt").write_text("half")
            refuse(image)

        return write

    for examination in (refuse, refuse_half_way):
        summary = run([small], tmp_path / "out", examination)
        (failure,) = summary.failed
        assert (failure.reason, failure.detail) == ("BLANK", "no tissue")
        left = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert left == [".unary.files", ".unary.lock", "failures.csv", "run.json"]


def test_names_of_folders_stay_inside_and_distinct(small, tmp_path):
    source = tmp_path / "in"
    given = ("..a.dcm", "a\nb.dcm", "x" * 200 + ".dcm", "\u00e9" * 100 + ".dcm", "sub/..a.dcm", "a b.dcm", "a_b.dcm")
    more = ("summary.csv.dcm", "1.2.840.1", "1.2.840.2")
    for number, name in enumerate((*given, *more)):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(small.read_bytes()[:-1] + bytes([number]))
    shutil.copy(small, tmp_path / "a_b.dcm")
    hidden = [source / "..a.dcm", source / "sub" / "..a.dcm"]  # left out of folders, taken when named
    inputs = [source, tmp_path / "a_b.dcm", *hidden]
    assert len(list_inputs([*inputs, *inputs]).names) == 11
    names = run(inputs, tmp_path / "out").done
    assert len(names) == len(set(names)) == 11
    assert {"1.2.840.1", "1.2.840.2", "summary.csv-2", "a_b-2"} < set(names)
    for name in names:
        assert name == name.strip(". ")
        assert "/" not in name
        assert name.isprintable()
        assert len(name.encode()) <= 125
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert run(inputs, tmp_path / "out").kept == names
    assert run(inputs[::-1], tmp_path / "out").held == 11, "in another order they keep their names"


def read_record(out):
    return json.loads((out / "run.json").read_text())


def test_two_contents_of_one_name_have_a_result_each_now_or_later(small, tmp_path):
    for number, day in enumerate(("monday", "tuesday")):
        (tmp_path / day).mkdir()
        (tmp_path / day / "IM1.dcm").write_bytes(small.read_bytes()[:-1] + bytes([number]))
    paths = [tmp_path / day / "IM1.dcm" for day in ("monday", "tuesday")]
    assert run(paths, tmp_path / "one").done == ("IM1", "IM1-2")
    for path, name in zip(paths, ("IM1", "IM1-2"), strict=True):
        assert run([path], tmp_path / "two").done == (name,)
    assert run(paths[::-1], tmp_path / "two").kept == ("IM1-2", "IM1")
    rows = [read_rows(tmp_path / out / "summary.csv") for out in ("one", "two")]
    assert [[row["file"] for row in table] for table in rows] == [[str(path) for path in paths]] * 2


def test_one_content_under_two_names_and_one_uid_for_two_contents_are_noticed(small, tmp_path):
    for name, last in (("a.dcm", 0), ("b.dcm", 0), ("c.dcm", 1)):
        (tmp_path / name).write_bytes(small.read_bytes()[:-1] + bytes([last]))
    summary = run([tmp_path / name for name in ("a.dcm", "b.dcm", "c.dcm")], tmp_path / "out")
    assert summary.done == ("a", "b", "c")
    same, uid = summary.remarks
    assert same == "the same file content, under several names: a, b"
    assert uid == "one SOP Instance UID for different images, of which a PACS keeps one: a, c"
    notes = {row["image"]: row["notes"] for row in read_rows(tmp_path / "out" / "summary.csv")}
    assert notes == {"a": f"{same}; {uid}", "b": same, "c": uid}
    assert read_record(tmp_path / "out")["remarks"] == [same, uid]
    later = tmp_path / "later"
    run([tmp_path / "a.dcm"], later)
    assert run([tmp_path / "c.dcm"], later).remarks == (uid,), "of an earlier run's result too"


def test_remarks_of_one_kind_are_one_line_on_the_console(small, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(7):
            (tmp_path / folder / f"{number}.dcm").write_bytes(small.read_bytes()[:-1] + bytes([number]))
    summary = run([tmp_path], tmp_path / "out")
    same, _ = summary.remarks
    assert same.startswith("the same file content, under several names: a__0, b__0; a__1, b__1; ")
    assert same.endswith("a__4, b__4 and 2 others")
    assert len(read_record(tmp_path / "out")["remarks"]) == 8, "the record tells of each"


@pytest.mark.parametrize("change", [{"summary": {"image": "one"}}, {"files": ["result.json"]}, {"path": "another"}])
def test_a_result_that_was_edited_is_made_anew(small, tmp_path, change):
    copy = shutil.copy(small, tmp_path / "one.dcm")
    run([copy], tmp_path / "out")
    path = tmp_path / "out" / "one" / "result.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | change))
    summary = run([copy], tmp_path / "out")
    assert len(summary.done) == 1
    assert summary.kept == ()
    assert run([copy], tmp_path / "out").kept == summary.done


@pytest.mark.parametrize("failures", [[{"x": 1}], "abc", [1], 3, None])
def test_a_record_that_is_damaged_is_refused_by_name(small, tmp_path, failures):
    run([small], tmp_path / "out")
    path = tmp_path / "out" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"failures": failures}))
    with pytest.raises(UnaryError, match=r"run\.json: it is there, and this version of unary has not written it"):
        run([small], tmp_path / "out")


def test_what_unary_has_not_written_is_neither_replaced_nor_deleted(small, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "mine.txt").write_text("mine")
    (tmp_path / "one" / "result.json").write_text('{"mine": 1}')
    shutil.copy(small, tmp_path / "one.dcm")
    shutil.copy(small, tmp_path / "two.dcm")
    (tmp_path / "two").write_text("a file of this name")
    summary = run([tmp_path], tmp_path)  # --out . beside the images
    assert summary.done == ("one-2", "two-2")
    assert summary.remarks[-1].endswith("or its result.json is damaged: one, two"), "a result that is lost is told"
    assert (tmp_path / "one" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "two").read_text() == "a file of this name"
    (tmp_path / "one-2" / "my remarks.txt").write_text("mine")
    summary = run([tmp_path], tmp_path, made_from={"model_sha256": "another"})
    assert summary.done == ("one-3", "two-2"), "only what holds nothing else is replaced"
    assert (tmp_path / "one-2" / "my remarks.txt").read_text() == "mine"
    for table in ("summary.csv", "failures.csv", "run.json"):
        out = tmp_path / f"out {table}"
        out.mkdir()
        (out / table).write_text("image,mine\n")
        with pytest.raises(UnaryError, match=f"{table}: it is there, and this version of unary has not written it"):
            run([small], out)
        assert (out / table).read_text() == "image,mine\n"


def test_results_inside_the_input_are_never_taken_for_images(small, tmp_path):
    def draw(image, source):
        def write(folder):
            shutil.copy(small, folder / "capture.dcm")
            return {}, {}

        return write

    shutil.copy(small, tmp_path / "a.dcm")
    for out in (tmp_path, tmp_path / "results"):
        assert run([tmp_path], out, draw).done == ("a",)
        again = run([tmp_path], out, draw)
        assert (again.kept, again.done, again.failed) == (("a",), (), ())
        assert "unary's own results" in again.left_out


def test_a_folder_of_another_command_and_one_in_use_are_refused(small, tmp_path):
    run([small], tmp_path / "out")
    job = Job("other", examine, {}, Gate(GENERAL))
    with pytest.raises(UnaryError, match="it holds results of `unary try`; choose another folder for `unary other`"):
        run_batch([small], tmp_path / "out", job, progress=False)
    with locking(tmp_path / "out"), pytest.raises(UnaryError, match=f"in use by another process .pid {os.getpid()} on"):
        run([small], tmp_path / "out")


def test_tables_and_record_tell_of_the_whole_folder_after_every_end(small, tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.dcm").write_bytes(small.read_bytes()[:-1] + bytes([number]))
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"")
    paths, out = [tmp_path / f"{number}.dcm" for number in range(4)], tmp_path / "out"
    run([*paths[:1], bad, tmp_path / "gone.dcm"], out)
    assert [row["file"] for row in read_rows(out / "failures.csv")] == [str(bad), str(tmp_path / "gone.dcm")]

    def interrupt(image, source):
        if image.path.name == "2.dcm":
            raise KeyboardInterrupt
        return examine(image)

    with pytest.raises(KeyboardInterrupt), using_threads(1):
        run(paths, out, interrupt)
    assert [row["image"] for row in read_rows(out / "summary.csv")] == ["0", "1"]
    assert len(read_rows(out / "failures.csv")) == 2, "what failed before is still without a result"
    record = read_record(out)
    assert (record["state"], record["results"], len(record["failures"])) == ("interrupted", 2, 2)
    shutil.copy(paths[3], bad)  # put right
    summary = run([bad], out)
    assert (summary.done, summary.held) == (("bad",), 3)
    assert [row["file"] for row in read_rows(out / "failures.csv")] == [str(tmp_path / "gone.dcm")]
    record = read_record(out)
    assert record["state"] == "finished"
    assert [run["state"] for run in record["earlier_runs"]] == ["finished", "interrupted"]
    assert datetime.fromisoformat(record["ended"]).tzinfo is not None
    (out / "summary.csv").unlink()  # as after a kill, before it was written
    (out / "run.json").write_text((out / "run.json").read_text().replace('"finished"', '"running"', 1))
    run([paths[0]], out)
    assert [row["image"] for row in read_rows(out / "summary.csv")] == ["0", "1", "bad"]
    assert read_record(out)["earlier_runs"][-1]["state"] == "killed"


class HereReader:
    """Reads in this process, since a helper takes longer to start than all the rest takes."""

    def __init__(self, limits=None):
        self.limits = limits or ReadingLimits()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    close = __exit__
    read = staticmethod(read_image)
    read_attributes = staticmethod(read_attributes)


def test_kills_at_random_moments_lose_nothing_and_end_with_the_same_bytes(small, tmp_path, monkeypatch):
    monkeypatch.setattr("unary.clinic.batch.IsolatedReader", HereReader)
    for number in range(15):
        (tmp_path / f"{number:02d}.dcm").write_bytes(small.read_bytes()[:-1] + bytes([number]))
    (tmp_path / "bad.dcm").write_bytes(b"")
    paths = [*sorted(tmp_path.glob("*.dcm")), tmp_path / "gone.dcm"]

    def read_all(out):
        return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    with using_threads(1):
        run(paths, tmp_path / "unbroken")
        expected = read_all(tmp_path / "unbroken")
        rng, before, most_s = np.random.default_rng(0), {}, 0.1
        for _ in range(15):
            child = os.fork()
            if child == 0:
                try:
                    run(paths, tmp_path / "killed")
                finally:
                    os._exit(0)
            time.sleep(rng.uniform(0.0, most_s))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            now = {name: content for name, content in read_all(tmp_path / "killed").items() if len(name.parts) == 2}
            shown = {name: content for name, content in now.items() if not str(name).startswith(".")}
            assert before.keys() <= shown.keys()
            assert all(expected[name] == content for name, content in shown.items())
            most_s *= 1.3 if len(shown) == len(before) else 0.8  # so that kills fall into the work
            before = shown
        assert before, "some were done before the end"
        run(paths, tmp_path / "killed")
    found = read_all(tmp_path / "killed")
    record = json.loads(found[Path("run.json")])
    states = [each["state"] for each in record["earlier_runs"]]
    assert "killed" in states
    assert set(states) <= {"killed", "finished"}
    assert found.keys() == expected.keys()
    timed = {Path("run.json"), Path(".unary.lock"), Path(".unary.files")}
    assert {name for name in found if found[name] != expected[name]} <= timed


class LibraryError(Exception):
    """What a library might raise; its text holds a patient's name."""


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (LibraryError("Canary^Tweety"), "UNEXPECTED", "an unexpected LibraryError (tests/test_batch.py, line"),
        (MemoryError(), "MEMORY_LIMIT", "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 191 GiB"), "MEMORY_LIMIT", "not enough memory"),
        (DetectorError("the detector answers with scores that are not finite"), "UNEXPECTED", "not finite"),
        (RecursionError(), "UNEXPECTED", "RecursionError"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "UNEXPECTED", "OSError"),
    ],
)
@pytest.mark.parametrize("stage", ["examining", "writing"])
def test_whatever_is_raised_on_one_image_is_its_failure_and_the_others_go_on(
    small, tmp_path, error, reason, words, stage, caplog
):
    for number in range(3):
        (tmp_path / f"{number}.dcm").write_bytes(small.read_bytes()[:-1] + bytes([number]))

    def fail_once(image, source):
        if image.path.name != "1.dcm":
            return examine(image)

        def write(_folder):
            raise error

        return write if stage == "writing" else write(None)

    summary = run([tmp_path / f"{number}.dcm" for number in range(3)], tmp_path / "out", fail_once)
    assert summary.done == ("0", "2")
    (failure,) = summary.failed
    assert (failure.file, failure.reason) == (str(tmp_path / "1.dcm"), reason)
    assert words in failure.detail
    assert "Canary" not in caplog.text + repr(summary) + (tmp_path / "out" / "failures.csv").read_text()


def test_a_model_that_examines_nothing_ends_the_batch_once(small, tmp_path):
    calls = []

    def fail(image=None, source=None):
        calls.append(image)
        raise DetectorError("the weights are of another shape")

    paths = [tmp_path / f"{number}.dcm" for number in range(9)]
    for path in paths:
        shutil.copy(small, path)
    words = "examines nothing, not even a test picture: the weights are of another shape"
    with using_threads(1), pytest.raises(UnaryError, match=words):
        run(paths, tmp_path / "out", fail, probe=fail)
    assert len(calls) == 2


def test_the_gate_is_passed_before_pixels_are_read_and_results_name_what_was_let_pass(small, tmp_path, monkeypatch):
    dataset = pydicom.dcmread(small)
    dataset.BreastImplantPresent = "YES"
    dataset.save_as(tmp_path / "implant.dcm")
    gate = Gate(MAMMOGRAPHY)
    with monkeypatch.context() as patch:
        patch.setattr(IsolatedReader, "read", lambda *asked: pytest.fail("pixels were read"))
        summary = run([tmp_path / "implant.dcm"], tmp_path / "out", gate=gate)
    assert [failure.reason for failure in summary.failed] == ["IMPLANT"]
    summary = run([tmp_path / "implant.dcm"], tmp_path / "out", gate=replace(gate, accept=("IMPLANT",)))
    assert summary.done == ("implant",)
    result = json.loads((tmp_path / "out" / "implant" / "result.json").read_text())
    assert result["accepted_despite"] == ["IMPLANT"]
    assert not (tmp_path / "out" / "failures.csv").exists()
    assert run([small], tmp_path / "out", gate=gate).done == ("one",)
    assert run([small], tmp_path / "out", gate=replace(gate, accept=("IMPLANT",))).kept == ("one",)


def test_inputs_that_are_not_there_are_failures_unless_there_is_nothing_else(small, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    summary = run([small, tmp_path / "gone", tmp_path / "empty"], tmp_path / "out")
    assert [failure.reason for failure in summary.failed] == ["NOT_READABLE", "NOT_READABLE"]
    assert "1 of another kind" in summary.failed[1].detail
    for path, words in ((tmp_path / "gone", "no such file"), (tmp_path / "empty", "no image .* of another kind")):
        with pytest.raises(ImageError, match=words):
            run([path], tmp_path / "none")
    assert not (tmp_path / "none").exists()
