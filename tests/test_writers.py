import errno
import functools
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from unary.clinic.batch import run_batch
from unary.clinic.batch_detection import detect_files
from unary.clinic.file_work import Job
from unary.clinic.result_folder import Source, read_whole_result
from unary.clinic.writers import Writers
from unary.clinic.writing_process import Request, pack_request
from unary.errors import ImageError
from unary.models.bundle import read_model
from unary.models.gate import Gate
from unary.profiles import GENERAL


def write_sum(pixels, folder):
    (folder / "sum.txt").write_text(str(pixels.sum()))
    return {"process": os.getpid(), "session": os.getsid(0)}, {"notes": []}


def die(marker, how, folder):
    """Die at the first try, or at every one when there is no marker."""
    if marker is None or not marker.exists():
        (folder / "half").write_text("half")
        if marker is not None:
            marker.touch()
        os.kill(os.getpid(), how)
        time.sleep(60)
    return {}, {}


def fail(error, folder):
    raise error


@pytest.fixture(scope="module")
def writers():
    with Writers() as found:
        yield found


def write(writers, folder, what):
    writers.write(folder, "one", what, Source(Path("images/one.dcm"), {"sha256": "00"}), {"view": "CC"})
    return read_whole_result(folder)


def test_results_are_written_elsewhere_as_here(writers, tmp_path):
    pixels = np.arange(200_000, dtype=np.uint16).reshape(400, 500)
    pixels.flags.writeable = False
    first = write(writers, tmp_path / "a", functools.partial(write_sum, pixels))
    again = write(writers, tmp_path / "b", functools.partial(write_sum, pixels[::2, ::-3]))
    assert (tmp_path / "a" / "sum.txt").read_text() == str(pixels.sum())
    assert (tmp_path / "b" / "sum.txt").read_text() == str(pixels[::2, ::-3].sum())
    assert (first["view"], first["path"], first["files"]) == ("CC", "images/one.dcm", ["result.json", "sum.txt"])
    assert first["summary"]["process"] == again["summary"]["process"] != os.getpid()
    assert first["summary"]["session"] != os.getsid(0), "Ctrl-C at the terminal would end it"


def test_a_process_that_dies_is_told_and_its_image_tried_once_more(writers, tmp_path, caplog):
    whole = write(writers, tmp_path / "out", functools.partial(die, tmp_path / "marker", signal.SIGKILL))
    assert whole["files"] == ["result.json"], "what the first try has left is gone"
    assert caplog.messages == [
        "images/one.dcm: the process that writes its results died (SIGKILL); it is tried once more"
    ]
    for how, reason in ((signal.SIGKILL, "MEMORY_LIMIT"), (signal.SIGSEGV, "CRASH")):
        with pytest.raises(
            ImageError, match=rf"one.dcm: the process that writes its results died twice .{how.name}.;"
        ) as e:
            write(writers, tmp_path / "out", functools.partial(die, None, how))
        assert e.value.reason == reason
    assert write(writers, tmp_path / "next", functools.partial(write_sum, np.ones((2, 2)))) is not None


def test_what_goes_wrong_there_is_told_as_here(writers, tmp_path):
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as full:
        write(writers, tmp_path / "a", functools.partial(fail, OSError(errno.ENOSPC, "full", "Canary^Tweety")))
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(ImageError, match=r"one.dcm: an unexpected KeyError .*test_writers.py, line") as unknown:
        write(writers, tmp_path / "a", functools.partial(fail, KeyError("Canary^Tweety")))
    assert unknown.value.reason == "UNEXPECTED"
    assert "Canary" not in str(unknown.value)


def test_a_process_that_cannot_start_is_that_images_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("unary.clinic.writers._BOOT", "raise SystemExit(7)")
    with Writers() as none, pytest.raises(ImageError, match=r"died twice .not started: exit status 7.") as error:
        write(none, tmp_path, functools.partial(write_sum, np.ones((2, 2))))
    assert error.value.reason == "CRASH"


def test_a_process_ends_with_whoever_started_it(tmp_path):
    with Writers() as some:
        process = write(some, tmp_path / "a", functools.partial(write_sum, np.ones((2, 2))))["summary"]["process"]
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_arrays_are_not_copied_into_the_request():
    pixels = np.zeros((1000, 1000), np.uint16)
    sizes = [memoryview(part).nbytes for part in pack_request(Request("name", functools.partial(np.sum, pixels)))]
    assert sizes[-1] == pixels.nbytes
    assert sum(sizes[:-1]) < 1000


def examine_or_die(image, _source):
    value = int(image.pixels[0, 0])
    if value == 2:
        return functools.partial(die, None, signal.SIGKILL)
    return functools.partial(write_sum, image.pixels)


def test_the_others_of_a_folder_go_on_when_a_process_dies(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    for value in range(5):
        pixels = np.full((8, 8), 9, ">u2")
        pixels[0, 0] = value
        (tmp_path / "in" / f"{value}.pgm").write_bytes(b"P5 8 8 65535\n" + pixels.tobytes())
    job = Job("try", examine_or_die, {}, Gate(GENERAL, spacing_mm=0.1), writes_apart=True)
    summary = run_batch([tmp_path / "in"], tmp_path / "out", job, progress=False)
    assert summary.done == ("0", "1", "3", "4")
    assert [(Path(failure.file).name, failure.reason) for failure in summary.failed] == [("2.pgm", "MEMORY_LIMIT")]
    assert all(row["process"] != os.getpid() for row in summary.rows)
    assert sum("it is tried once more" in message for message in caplog.messages) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["0", "1", "3", "4"]


def test_a_folder_has_the_bytes_that_its_images_have_one_by_one(model_folder, phantoms, tmp_path, monkeypatch):
    paths = [row.path for row in phantoms.rows[:4]]
    model, written = read_model(model_folder), []
    real = Writers.write

    def note(writers, folder, *others):
        written.append(folder.name)
        real(writers, folder, *others)

    monkeypatch.setattr(Writers, "write", note)
    for out, several in (("together", paths), ("alone", paths[:1]), ("alone", paths[1:2])):
        detect_files(
            model,
            several,
            tmp_path / out,
            model_folder=model_folder,
            moment=datetime(2026, 5, 4, tzinfo=UTC),
            progress=False,
        )
    assert sorted(written) == sorted(path.stem for path in paths), "a single image is written in this process"
    for path in paths[:2]:
        own, other = tmp_path / "alone" / path.stem, tmp_path / "together" / path.stem
        names = sorted(each.name for each in own.iterdir())
        assert "report.dcm" in names
        assert names == sorted(each.name for each in other.iterdir())
        assert all((own / name).read_bytes() == (other / name).read_bytes() for name in names)
