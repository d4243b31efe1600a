"""The audit log: every change is noticed, and a kill in the middle of a line is survived."""

import json

import pytest

from unary.cli.main import main
from unary.clinic.node.audit import AuditLog, check_audit
from unary.errors import UnaryError


@pytest.fixture
def path(tmp_path):
    """Return a log of five lines."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for number in range(5):
        log.write("received", object=f"{number}", bytes=number)
    log.close()
    return path


def test_lines_follow_each_other_over_several_starts(path, capsys):
    first = check_audit(path)
    log = AuditLog(path)
    log.write("sent")
    assert log.head.number == 6
    log.close()
    assert check_audit(path) == log.head != first
    assert main(["audit-check", str(path)]) == 0
    assert f"6 lines, each follows the one before; the last has the hash {log.head.sha256}" in capsys.readouterr().out
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["number", "time", "previous", "sha256"])
def test_nothing_overwrites_what_makes_the_chain(path, name):
    log = AuditLog(path)
    with pytest.raises(ValueError, match=name):
        log.write("commitment_answered", **{name: 1})
    log.close()
    assert check_audit(path).number == 5


def edit(lines):
    lines[2] = lines[2].replace('"bytes": 2', '"bytes": 3')


def edit_with_hash(lines):
    from unary.clinic.node.audit import _hash_line

    line = json.loads(lines[2]) | {"bytes": 3}
    lines[2] = json.dumps(line | {"sha256": _hash_line(line)}) + "\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit, "line 3: was changed"),
        (edit_with_hash, "line 4: does not follow"),
        (lambda lines: lines.pop(1), "line 2: does not follow"),
        (lambda lines: lines.insert(1, lines[0]), "line 2: does not follow"),
        (lambda lines: lines.reverse(), "line 1: does not follow"),
        (lambda lines: lines.insert(0, "{}\n"), "line 1: no line of an audit log"),
        (lambda lines: lines.append(lines[4][:40]), "line 6: no line of an audit log"),
    ],
)
def test_every_change_is_noticed(path, change, words):
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))
    with pytest.raises(UnaryError, match=words):
        check_audit(path)
    assert main(["audit-check", str(path)]) == 2


@pytest.mark.parametrize("kept", [1, 100, -1])
def test_a_line_that_a_kill_has_torn_is_cut_off_and_told(path, kept):
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole + last[:kept])
    log = AuditLog(path)
    log.close()
    assert check_audit(path).number == 6
    told = json.loads(path.read_text().splitlines()[-1])
    assert (told["event"], told["bytes"]) == ("torn_line", len(last[:kept]))


def test_a_log_that_was_changed_is_not_gone_on_with(path):
    path.write_text(path.read_text().replace('"bytes": 2', '"bytes": 7'))
    with pytest.raises(UnaryError, match="line 3: was changed"):
        AuditLog(path)


def test_a_line_that_a_full_disk_has_cut_is_taken_back(path, monkeypatch):
    log = AuditLog(path)
    whole, real = path.read_bytes(), log._file

    class Full:
        def __getattr__(self, name):
            return getattr(real, name)

        def write(self, content):
            return real.write(content[:50])

    log._file = Full()
    with pytest.raises(OSError, match="No space left"):
        log.write("sent")
    assert path.read_bytes() == whole
    log._file = real
    log.write("sent")
    log.close()
    assert check_audit(path).number == 6
