import dataclasses
import itertools
import logging
import re
import stat

import pytest

from unary.errors import UnaryError
from unary.models import patients
from unary.models.patients import (
    PatientKey,
    SeenPatients,
    count_seen,
    find_key_file,
    make_key,
    note_patients,
    read_key,
)

KEY = PatientKey(bytes(range(32)))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return where the site's key is to be: nothing is there yet."""
    path = tmp_path / "site" / "patients.key"
    monkeypatch.setenv("UNARY_PATIENT_KEY", str(path))
    return path


def test_a_key_is_made_once_and_for_its_owner_alone(place):
    assert read_key() is None
    key = make_key()
    assert key == make_key() == read_key()
    assert re.fullmatch("[0-9a-f]{64}\n", place.read_text())
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert [path.name for path in place.parent.iterdir()] == [place.name], "nothing else is left"
    assert place.read_text().strip() not in repr(key)


def test_the_first_of_two_processes_makes_the_key(place, monkeypatch):
    real = patients.write_durably

    def write(path, content, *, mode):
        real(path, content, mode=mode)
        if not place.exists():  # another process comes in between
            real(place, b"ab" * 32, mode=mode)

    monkeypatch.setattr(patients, "write_durably", write)
    assert make_key().secret == bytes.fromhex("ab" * 32)


def test_the_key_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("UNARY_PATIENT_KEY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert find_key_file() == tmp_path / "data" / "unary" / "patients.key"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert find_key_file() == tmp_path / "home" / ".local" / "share" / "unary" / "patients.key"


@pytest.mark.parametrize("content", [b"", b"secret", b"ab" * 31, b"\xff" * 64, b"AB" * 32])
def test_what_is_no_key_is_refused_by_name(place, content):
    place.parent.mkdir()
    place.write_bytes(content)
    for use in (read_key, make_key):
        with pytest.raises(UnaryError, match=r"patients\.key: .*key"):
            use()
    assert place.read_bytes() == content, "and stays"


def test_a_key_that_others_may_read_is_told(place, caplog):
    make_key()
    place.chmod(0o644)
    read_key()
    assert "others may read" in caplog.text


def test_where_no_key_can_be_kept_a_warning_says_so(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNARY_PATIENT_KEY", str(tmp_path / "file" / "patients.key"))
    with caplog.at_level(logging.WARNING):
        assert make_key() is None
    assert "will not be able to tell whom it has seen" in caplog.text
    monkeypatch.delenv("UNARY_PATIENT_KEY")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    def no_home():
        raise RuntimeError("no home")

    monkeypatch.setattr(patients.Path, "home", no_home)
    assert find_key_file() is None
    assert read_key() is None
    assert make_key() is None


def test_hashes_tell_whom_a_model_has_seen_to_whoever_has_the_key(place, caplog):
    seen = note_patients(["P1", "P2", "P1"], make_key())
    assert (seen.count, len(seen.hashes)) == (2, 2)
    assert count_seen(seen, ["P2", "P3"]) == 1
    assert count_seen(seen, ["P3"]) == 0
    assert not caplog.text
    place.unlink()
    assert count_seen(seen, ["P2"]) is None
    assert "cannot be told here: the key for patients of the site that fitted it" in caplog.text
    make_key()
    assert count_seen(seen, ["P2"]) is None, "another site's key tells nothing"
    assert count_seen(note_patients(["P1"], None), ["P1"]) is None
    assert "fitted without a key" in caplog.text


def test_patients_cannot_be_found_by_trying_all_of_them():
    seen = note_patients([f"{number:05}" for number in range(40)], KEY)
    guesses = [f"{number:05}" for number in range(2000)]
    for secret in (b"", bytes(32), KEY.name.encode(), bytes.fromhex(KEY.name)):
        assert not set(PatientKey(secret).hash_patients(guesses)) & set(seen.hashes)
    assert KEY.secret.hex() not in str(dataclasses.asdict(seen))
    assert len(set(itertools.chain(seen.hashes, note_patients(guesses[:40], PatientKey(bytes(32))).hashes))) == 80


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"count": 3},
        {"key": None},
        {"key": "0"},
        {"key": KEY.name.upper() + "G"},
        {"hashes": ()},
        {"hashes": KEY.hash_patients("ab")[::-1]},
        {"hashes": KEY.hash_patients("a") * 2},
        {"hashes": ("P1", "P2")},
    ],
)
def test_what_contradicts_itself_is_refused(change):
    good = {"count": 2, "key": KEY.name, "hashes": KEY.hash_patients("ab")}
    SeenPatients(**good)
    with pytest.raises(ValueError, match=r"count|key|hashes"):
        SeenPatients(**{**good, **change})
