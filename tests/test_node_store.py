"""Taking objects in: what is confirmed is there, what is not is refused with a status, and nothing is doubled."""

import errno
import json
import os
import sqlite3
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from nodes import rename, write_study
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless

from unary.clinic.node.audit import AuditLog
from unary.clinic.node.config import Limits
from unary.clinic.node.incoming import RefusedError, Sender, examine_arrival, split_file
from unary.clinic.node.state import NodeState
from unary.clinic.node.store import Store
from unary.images.attributes import hash_uid

SENDER = Sender("dimse", "TESTER", "127.0.0.1")
SYNTAX = "1.2.840.10008.1.2.1"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return the paths of four views."""
    return write_study(tmp_path_factory.mktemp("study"), "KANARIE", rows=144, cols=128)


def open_store(folder, **limits):
    folder.mkdir(exist_ok=True)
    state, audit = NodeState(folder / "node.sqlite"), AuditLog(folder / "audit.jsonl")
    return Store(folder, Limits(**{"free_gib": 0.0, **limits}), state, audit)


@pytest.fixture
def store(tmp_path):
    """Return a store in an empty folder."""
    found = open_store(tmp_path / "state")
    yield found
    close(found)


def close(store):
    store.close()
    store.state.close()
    store.audit.close()


def encode(source):
    """Return the data set of a file or a Dataset, and its transfer syntax."""
    if isinstance(source, pydicom.Dataset):
        buffer = BytesIO()
        source.save_as(buffer, enforce_file_format=True)
        content = buffer.getvalue()
    else:
        content = source.read_bytes()
    syntax, data = split_file(memoryview(content))
    return data, syntax


def take(store, source, **options):
    data, syntax = encode(source)
    return store.take(data, syntax, SENDER, **options)


def read_audit(store):
    return [json.loads(line) for line in (store.folder / "audit.jsonl").read_text().splitlines()]


def test_what_was_taken_is_on_the_disk_and_in_the_books(store, study):
    name = take(store, study[0])
    found = store.state.find_object(name)
    kept, sent = pydicom.dcmread(store.image_path(found)), pydicom.dcmread(study[0])
    assert kept.to_json_dict() == sent.to_json_dict()
    assert name == hash_uid(sent.SOPInstanceUID)
    assert (found.state, found.title, found.bytes) == ("received", "TESTER", store.image_path(found).stat().st_size)
    assert [line["event"] for line in read_audit(store)] == ["received"]
    assert not list((store.folder / "incoming").iterdir())


def test_everything_is_flushed_before_it_is_confirmed(store, study, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def note_replace(*paths):
        done.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    take(store, study[0])
    rename_at = done.index("rename")
    assert "file" in done[:rename_at]
    assert done[rename_at + 1] == "folder"
    assert store.state.query("PRAGMA synchronous")[0][0] == 2
    assert store.state.query("PRAGMA journal_mode")[0][0] == "wal"


def test_the_same_again_is_confirmed_and_nothing_more_is_done(store, study):
    first = take(store, study[0])
    store.state.change([first], "sent")
    assert take(store, study[0]) == first
    assert store.state.find_object(first).state == "sent"
    assert [line["event"] for line in read_audit(store)] == ["received", "received_again"]


@pytest.mark.parametrize("change", ["header", "syntax", "compression"])
def test_the_same_pixels_with_another_header_or_syntax_are_the_same_image(store, study, change):
    name = take(store, study[0])
    dataset = pydicom.dcmread(study[0])
    if change == "header":
        dataset.PatientName = "Changed^By^Archive"
    elif change == "syntax":
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset = pydicom.dcmread(save(dataset, implicit_vr=True))
    else:
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    assert take(store, dataset) == name
    assert read_audit(store)[-1]["differs"] == "header or transfer syntax"


def save(dataset, **options):
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=False, little_endian=True, **options)
    buffer.seek(0)
    return buffer


def test_another_image_under_the_same_identifier_is_refused_and_the_first_stays(store, study):
    name = take(store, study[0])
    before = store.image_path(store.state.find_object(name)).read_bytes()
    dataset = pydicom.dcmread(study[0])
    dataset.PixelData = (dataset.pixel_array + np.uint16(1)).tobytes()
    with pytest.raises(RefusedError) as caught:
        take(store, dataset)
    assert (caught.value.status, caught.value.reason) == (0x0111, "DUPLICATE_UID")
    assert store.image_path(store.state.find_object(name)).read_bytes() == before
    assert read_audit(store)[-1]["reason"] == "DUPLICATE_UID"


def test_the_same_identifier_in_another_study_is_refused(store, study):
    take(store, study[0])
    dataset = pydicom.dcmread(study[0])
    dataset.StudyInstanceUID = "1.2.3.4"
    with pytest.raises(RefusedError, match="in another study"):
        take(store, dataset)


def test_an_image_that_failed_is_taken_again(store, study):
    name = take(store, study[0])
    store.state.change([name], "failed", reason="CRASH")
    take(store, study[0])
    assert store.state.find_object(name).state == "received"


def test_results_of_unary_are_passed_over_lest_they_go_round_in_circles(store, study):
    dataset = rename(pydicom.dcmread(study[0]), Manufacturer="unary", ManufacturerModelName="unary fusion")
    name = take(store, dataset)
    assert store.state.find_object(name) is None
    assert read_audit(store)[-1]["event"] == "passed_over"


def test_a_full_queue_a_full_folder_and_a_large_object_are_refused_for_now(tmp_path, study):
    for limits, reason in (
        ({"queue": 1}, "QUEUE_FULL"),
        ({"state_gib": 5e-5}, "STATE_FULL"),
        ({"object_mib": 0.001}, "TOO_LARGE"),
        ({"free_gib": 1e9}, "DISK"),
    ):
        store = open_store(tmp_path / reason, **limits)
        if reason in ("QUEUE_FULL", "STATE_FULL"):
            take(store, study[0])
        with pytest.raises(RefusedError) as caught:
            take(store, study[1])
        assert (caught.value.status, caught.value.reason) == (0xA700, reason)
        assert read_audit(store)[-1]["status"] == 0xA700
        close(store)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_disk_that_is_full_is_told_and_leaves_nothing_behind(store, study, monkeypatch, at):
    real = getattr(os, at)

    def fail(first, *rest):
        if at == "replace" or not os.path.isdir(f"/proc/self/fd/{first}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(first, *rest)

    monkeypatch.setattr(os, at, fail)
    with pytest.raises(RefusedError) as caught:
        take(store, study[0])
    assert (caught.value.status, caught.value.reason) == (0xA700, "DISK")
    monkeypatch.undo()
    assert store.state.find_object(hash_uid(pydicom.dcmread(study[0]).SOPInstanceUID)) is None
    assert not list((store.folder / "incoming").iterdir())
    take(store, study[0])
    assert sum(store.state.count_objects().values()) == 1


def test_what_a_killed_node_had_not_confirmed_is_cleared_away(tmp_path, study):
    store = open_store(tmp_path / "state")
    name = take(store, study[0])
    path = store.image_path(store.state.find_object(name))
    (store.folder / "incoming" / "half").write_bytes(b"x")
    (path.parent / "0123456789abcdef.dcm").write_bytes(b"renamed, not committed")
    close(store)
    store = open_store(tmp_path / "state")
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert not list((store.folder / "incoming").iterdir())
    assert store.state.find_object(name).state == "received"
    close(store)


def test_what_a_killed_node_was_deleting_is_deleted(tmp_path, study):
    store = open_store(tmp_path / "state")
    kept = take(store, study[0])
    gone = take(store, rename(pydicom.dcmread(study[1]), StudyInstanceUID="1.2.3"))
    folders = [store.image_path(store.state.find_object(name)).parents[1] for name in (kept, gone)]
    for folder in folders:
        (folder / "results").mkdir()
        (folder / "results" / "result.json").write_text("{}")
    store.state.forget_files(folders[1].name)
    close(store)
    store = open_store(tmp_path / "state")
    assert (folders[0] / "results" / "result.json").exists()
    assert not folders[1].exists()
    close(store)


def test_books_for_which_there_is_no_room_are_told_as_a_full_disk(tmp_path, study):
    store = open_store(tmp_path / "state")
    (pages,) = store.state.query("PRAGMA page_count")[0]
    store.state.query(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RefusedError) as caught:
        [take(store, rename(pydicom.dcmread(study[0]), StudyInstanceUID=f"1.2.{n}")) for n in range(2000)]
    assert (caught.value.status, caught.value.reason) == (0xA700, "DISK")
    assert str(caught.value) == "the disk is full"
    known = sum(store.state.count_objects().values())
    store.state.query("PRAGMA max_page_count = 100000")
    take(store, study[1])
    close(store)
    store = open_store(tmp_path / "state")
    assert sum(store.state.count_objects().values()) == known + 1
    close(store)


def test_what_cannot_be_committed_is_taken_back_and_holds_up_nothing(tmp_path):
    state = NodeState(tmp_path / "node.sqlite")
    state.query("CREATE TABLE one (n INTEGER PRIMARY KEY)")
    state.query("CREATE TABLE two (n INTEGER REFERENCES one DEFERRABLE INITIALLY DEFERRED)")
    state.query("PRAGMA foreign_keys = ON")
    with pytest.raises(sqlite3.IntegrityError), state.transaction() as db:
        db.execute("INSERT INTO two VALUES (1)")
    state.write_fact("later", "kept")
    state._connection.close()  # as a kill would
    state = NodeState(tmp_path / "node.sqlite")
    assert state.read_fact("later") == "kept"
    assert not state.query("SELECT * FROM two")
    state.close()


def test_what_is_refused_holds_up_nothing_and_what_is_sent_is_known_as_sent(store, study):
    name = take(store, study[0])
    place = Path("studies/a/results/b")
    for kind in ("first", "second"):
        store.state.add_delivery(store.state.find_object(name).study, name, place / f"{kind}.dcm", kind, "pacs")
    first, second = (each.delivery for each in store.state.list_due("pacs", 9))
    store.state.change_delivery(first, "waiting", refused=True)
    assert [each.delivery for each in store.state.list_due("pacs", 1)] == [second]
    store.state.change([name], "done")
    for each in (first, second):
        store.state.change_delivery(each, "sent")
    assert store.state.settle_sent() == [name]


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.3"])
def test_deflate_is_never_opened_and_unknown_syntaxes_are_named(store, study, syntax):
    data, _ = encode(study[0])
    with pytest.raises(RefusedError) as caught:
        store.take(data, syntax, SENDER)
    assert (caught.value.status, caught.value.reason) == (0xC122, "UNSUPPORTED_SYNTAX")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2"])
def test_an_object_that_lies_about_its_syntax_is_refused(store, study, syntax):
    data, _ = encode(study[0])
    with pytest.raises(RefusedError) as caught:
        store.take(data, syntax, SENDER)
    assert (caught.value.status, caught.value.reason) == (0xC000, "BAD_HEADER")


def test_an_object_that_is_not_what_was_announced_is_refused(store, study):
    with pytest.raises(RefusedError) as caught:
        take(store, study[0], announced=("", "1.2.3"))
    assert (caught.value.status, caught.value.reason) == (0xA900, "BAD_HEADER")


def test_rubbish_is_refused_and_says_nothing_of_itself(store):
    rng = np.random.default_rng(3)
    contents = [b"", b"KANARIE" * 100, bytes(2000), rng.bytes(5000)]
    nested = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 4000
    for content in [*contents, nested]:
        with pytest.raises(RefusedError) as caught:
            examine_arrival(memoryview(content), SYNTAX)
        assert "KANARIE" not in str(caught.value)
        with pytest.raises(RefusedError):
            split_file(memoryview(content))


def test_finished_studies_are_deleted_by_age_and_by_size_and_stay_known(tmp_path, study):
    store = open_store(tmp_path / "state", keep_days=1.0)
    name = take(store, study[0])
    folder = store.image_path(store.state.find_object(name)).parents[1]
    store.state._ran_before_s += 2 * 86400
    assert store.tidy() == []  # it still waits
    store.state.change([name], "sent")
    assert store.tidy() == [folder.name]
    assert not folder.exists()
    assert take(store, study[0]) == name  # known still: no second work
    assert not folder.exists()
    close(store)
    store = open_store(tmp_path / "other", state_gib=7.5e-5)
    first, second = take(store, study[0]), take(store, rename(pydicom.dcmread(study[1]), StudyInstanceUID="1.2.3"))
    store.state.change([first, second], "sent")
    assert store.tidy() == [hash_uid(pydicom.dcmread(study[0]).StudyInstanceUID)]  # the older one
    assert store.bytes == store.measure() == store.image_path(store.state.find_object(second)).stat().st_size
    close(store)


def test_a_clock_that_jumps_ages_nothing(store, study, monkeypatch):
    name = take(store, study[0])
    store.state.change([name], "sent")
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert store.tidy() == []
    assert store.state.age_s() < 60
