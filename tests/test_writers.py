import errno
import functools
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from unary.clinic.result_folder import Source, read_whole_result
from unary.clinic.writers import Writers
from unary.clinic.writing_process import Request, pack_request
from unary.errors import ImageError


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
