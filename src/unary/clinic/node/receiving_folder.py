"""Images from a folder: each file is taken once it has stopped growing, and is then moved or deleted."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import threading
import time
from pathlib import Path

from unary.clinic.node.config import MIB, Watch
from unary.clinic.node.incoming import OUT_OF_RESOURCES, RefusedError, Sender, split_file
from unary.clinic.node.store import Store

logger = logging.getLogger(__name__)

TAKEN, REFUSED = "taken", "refused"
_SCAN_S = 1.0


class FolderWatcher:
    """Looks at a folder again and again; links, pipes and hidden names are left alone."""

    def __init__(self, config: Watch, store: Store, wake: threading.Event) -> None:
        self.config, self.store, self._wake = config, store, wake
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}
        self._stuck: dict[Path, tuple[int, int]] = {}  # dealt with, and not to be got out of the folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-folder", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it still looks."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End, after the file under way."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(min(_SCAN_S, self.config.settle_s)):
            try:
                self.look()
            except OSError as error:
                logger.error("the watched folder cannot be read: %s", error.strerror)

    def look(self) -> int:
        """Look once; return how many files were taken."""
        taken, now, there = 0, time.monotonic(), {}
        for path in sorted(self._list()):
            try:
                status = path.lstat()
            except OSError:
                continue
            mark = (status.st_size, status.st_mtime_ns)
            before = self._seen.get(path)
            there[path] = before if before is not None and before[0] == mark else (mark, now)
            settled = now - there[path][1] >= self.config.settle_s and self._stuck.get(path) != mark
            if settled and not self._ended.is_set():
                taken += self._try_taking(path, mark)
        self._seen = there
        self._stuck = {path: mark for path, mark in self._stuck.items() if path in there}
        return taken

    def _list(self) -> list[Path]:
        found = []
        for place, folders, names in os.walk(self.config.folder):
            folders[:] = [each for each in folders if not each.startswith(".")]
            if Path(place) == self.config.folder:
                folders[:] = [each for each in folders if each not in (TAKEN, REFUSED)]
            paths = [Path(place, name) for name in names if not name.startswith(".")]
            found += [path for path in paths if _is_file(path)]
        return found

    def _try_taking(self, path: Path, mark: tuple[int, int]) -> bool:
        """Take a file, whatever goes wrong with it; one that stays where it is waits until it changes."""
        try:
            taken = self._take(path)
        except OSError as error:
            logger.error("a file cannot be moved out of the watched folder: %s", error.strerror)
            taken = False
        except Exception as error:  # of a library, on what nobody has foreseen: its text may quote a patient
            logger.error("a file of the watched folder was not taken: %s", type(error).__name__)
            return False
        if taken is None:  # for later
            return False
        if _is_file(path):
            self._stuck[path] = mark
        return taken

    def _take(self, path: Path) -> bool | None:
        """Whether a file was taken; None where it waits for room."""
        try:
            self._read(path)
        except RefusedError as error:
            if error.status == OUT_OF_RESOURCES and error.reason != "TOO_LARGE":
                return None
            logger.warning("not_taken", extra={"about": {"way": "folder", "reason": error.reason}})
            moved = self._move(path, REFUSED)
            moved.with_name(f"{moved.name}.txt").write_text(f"{error.reason}: {error}\n", encoding="utf-8")
            return False
        except OSError as error:
            logger.error("a file of the watched folder cannot be read: %s", error.strerror)
            return None
        self._wake.set()
        if self.config.after == "delete":
            path.unlink(missing_ok=True)
        else:
            self._move(path, TAKEN)
        return True

    def _read(self, path: Path) -> None:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            if os.fstat(file.fileno()).st_size > self.store.limits.object_mib * MIB:
                raise RefusedError(OUT_OF_RESOURCES, "TOO_LARGE", "larger than is allowed")
            content = file.read()
        with memoryview(content) as view:
            syntax, data = split_file(view)
            with data:
                self.store.take(data, syntax, Sender("folder"))

    def _move(self, path: Path, where: str) -> Path:
        folder = self.config.folder / where
        folder.mkdir(exist_ok=True)
        number, target = 1, folder / path.name
        while os.path.lexists(target):
            number += 1
            target = folder / f"{path.stem}-{number}{path.suffix}"
        return Path(shutil.move(path, target))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:  # gone meanwhile
        return False
