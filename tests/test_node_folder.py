"""The watched folder: one bad file, or a folder that cannot be emptied, holds up nothing and is not told for ever."""

import sqlite3
import threading

import pytest
from nodes import write_study
from test_node_store import close, open_store

from unary.clinic.node.config import Watch
from unary.clinic.node.receiving_folder import FolderWatcher


@pytest.fixture
def watched(tmp_path):
    """Return a watcher of two images, its store and its folder."""
    inbox = tmp_path / "inbox"
    write_study(inbox, "KANARIE", rows=144, cols=128)
    for name in ("LCC", "LMLO"):
        (inbox / f"{name}.dcm").unlink()
    store = open_store(tmp_path / "state")
    yield FolderWatcher(Watch(inbox, settle_s=1e-9), store, threading.Event()), store, inbox
    close(store)


def count_lines(store):
    return (store.folder / "audit.jsonl").read_text().count("\n")


@pytest.mark.parametrize("after", ["move", "delete"])
def test_a_file_that_cannot_be_got_out_of_the_folder_is_taken_once(watched, monkeypatch, after):
    watcher, store, inbox = watched
    watcher.config = Watch(inbox, settle_s=1e-9, after=after)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "_keep", lambda *_: store.audit.write("received"))
    monkeypatch.setattr("shutil.move", refuse)
    monkeypatch.setattr("unary.clinic.node.receiving_folder.Path.unlink", refuse)
    for _ in range(4):
        watcher.look()
    assert count_lines(store) == 2
    (inbox / "RCC.dcm").touch()
    for _ in range(4):
        watcher.look()
    assert count_lines(store) == 3
    monkeypatch.undo()


def test_a_file_on_which_a_library_fails_holds_up_no_other(watched, monkeypatch, caplog):
    watcher, store, inbox = watched
    keep = store._keep

    def fail(arrival, data, sender):
        if not (inbox / "taken").exists():
            monkeypatch.setattr(store, "_keep", keep)
            raise sqlite3.DatabaseError("KANARIE")
        keep(arrival, data, sender)

    monkeypatch.setattr(store, "_keep", fail)
    watcher.look()
    watcher.look()
    watcher.look()
    assert sorted(path.name for path in (inbox / "taken").iterdir()) == ["RCC.dcm", "RMLO.dcm"]
    assert "KANARIE" not in caplog.text
