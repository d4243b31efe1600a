"""Bars on a terminal, lines in a log."""

import io
import re

import numpy as np
import pytest

from unary import progress
from unary.progress import show_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_a_minute_with_what_is_left(clock, capsys):
    seen = []
    for number in show_progress(range(10), title="reading", unit="image"):
        seen.append(number)
        clock[0] += 30
    assert seen == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert re.match(r"reading: +20%.* 2/10 \[01:00<04:00", lines[0])
    assert re.match(r"reading: +100%.* 10/10 \[05:00<00:00", lines[-1])


def test_what_was_done_before_does_not_flatter_the_time_that_is_left(clock, capsys):
    with show_progress(total=100, initial=50, title="training", unit="epoch") as bar:
        bar.set_postfix(loss="1e-3", refresh=False)
        clock[0] += 60
        bar.update(10)
    line = capsys.readouterr().err
    assert "60/100" in line
    assert "[01:00<04:00" in line
    assert "loss=1e-3" in line


def test_arrays_are_gone_over_too(capsys):
    assert list(show_progress(np.arange(3), title="positions", unit="patch")) == [0, 1, 2]


def test_short_or_hidden_work_leaves_no_line(clock, capsys):
    assert list(show_progress("ab", title="quick", unit="letter")) == ["a", "b"]
    for _ in show_progress(range(3), title="hidden", unit="image", shown=False):
        clock[0] += 600
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_DELAY_S", 0)
    assert list(show_progress(range(3), title="reading", unit="image")) == [0, 1, 2]
    assert "\r" in terminal.getvalue()
    assert "reading" in terminal.getvalue()
