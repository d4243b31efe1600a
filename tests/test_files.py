import csv
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from unary.errors import MissingPackageError, UnaryError, require
from unary.files import locking, read_ahead, read_cell, replacing, write_csv


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with replacing(path) as partial:
        assert partial.suffix == ".txt"
        partial.write_text("first")
    assert path.read_text() == "first"

    def interrupt_writing():
        with replacing(path) as partial:
            partial.write_text("half of the sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt_writing()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_package_names_the_extra():
    assert require("json", extra="dicom").dumps([1]) == "[1]"
    with pytest.raises(MissingPackageError, match=r"unary\[dicom\]") as caught:
        require("no_such_package_here", extra="dicom")
    assert isinstance(caught.value, UnaryError)


def test_a_table_keeps_every_digit_and_none_is_an_empty_cell(tmp_path):
    path, numbers = tmp_path / "deep" / "t.csv", [0.1 + 0.2, 1e-17, np.float64(1 / 3), np.float32(0.1)]
    write_csv(path, ("name", "value"), ((f'say "{n}", n', value) for n, value in enumerate([*numbers, None])))
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "value"]
    assert rows[0][0] == 'say "0", n'
    assert [float(row[1]) for row in rows[:3]] == numbers[:3]
    assert np.float32(rows[3][1]) == numbers[3]
    assert rows[4][1] == ""


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-2+3+cmd|x",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        " =1",
        "\uff1d1+1",
        "'=1",
        "''=1",
        "=HYPERLINK(1)\n",
    ],
)
def test_what_a_spreadsheet_would_run_is_guarded_and_comes_back(tmp_path, text):
    path = tmp_path / "t.csv"
    write_csv(path, ["name"], [[text], [Path(text)]])
    with path.open(newline="", encoding="utf-8") as file:
        _, (cell,), (other,) = csv.reader(file)
    assert cell == other == f"'{text}"
    assert read_cell(cell) == text


@pytest.mark.parametrize("text", ["", "-1.5 3;4 -2", "+1e-3", "'quoted'", "a=b", "7", "mdb001", "O'Neil", "-"])
def test_what_a_spreadsheet_would_not_run_is_left_as_it_is(tmp_path, text):
    path = tmp_path / "t.csv"
    write_csv(path, ["name", "value"], [[text, -1.5]])
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1] == [text, "-1.5"]
    assert read_cell(text) == text


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_reading_ahead_keeps_the_order_and_its_distance(count):
    begun, taken = [], 0

    def read(item):
        begun.append(item)
        assert item <= taken + 3
        return item * item

    found = read_ahead(read, range(count), ahead=2)
    for number, value in enumerate(found):
        assert value == number * number
        taken = number
    assert begun == list(range(count))


def test_reading_ahead_raises_where_the_result_would_have_been_and_stops_when_closed():
    release, begun = threading.Event(), []

    def read(item):
        begun.append(item)
        if item == 1:
            raise OSError("gone")
        release.wait(10)
        return item

    release.set()
    found = read_ahead(read, range(5), ahead=1)
    assert next(found) == 0
    with pytest.raises(OSError, match="gone"):
        next(found)
    begun.clear()
    release.clear()
    found = read_ahead(lambda item: read(item) if item else item, range(9), ahead=3)
    assert next(found) == 0
    release.set()
    found.close()
    assert len(begun) <= 4


def test_a_folder_is_held_by_one_process_which_is_named_and_whose_end_frees_it(tmp_path):
    folder = tmp_path / "out"
    imports = "import sys, time; from pathlib import Path; from unary.files import locking"
    code = f"{imports}\nwith locking(Path({str(folder)!r})):\n print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UnaryError, match=rf"in use by another process \(pid {holder.pid} on .*another folder"),
        locking(folder),
    ):
        pass
    holder.kill()
    holder.communicate()
    with locking(folder), pytest.raises(UnaryError, match=f"pid {os.getpid()}"), locking(folder):
        pass


def test_a_folder_that_cannot_be_written_is_said_to_be_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnaryError, match="file: nothing can be written there"), locking(tmp_path / "file"):
        pass
