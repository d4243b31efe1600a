"""The stores that runs are followed in: MLflow and TensorBoard, each imported when one is opened.

A store is used by one thread. It may block, within the time limits of its network, and raise whatever its package does.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

EXPERIMENT = "unary"
_ENVIRONMENT = {  # MLflow knows no other way to be told; what is set already stays
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
_MOST_SETTINGS, _MOST_CHARACTERS = 100, 500  # of one request, and of one value


@dataclass(frozen=True)
class Number:
    """A number of a name, after a step, at a time in ms since 1970."""

    name: str
    value: float
    step: int
    moment_ms: int

    @classmethod
    def now(cls, name: str, value: float, step: int) -> Number:
        """Return a number of this moment."""
        return cls(name, value, step, time.time_ns() // 1_000_000)


class Store(Protocol):
    """One run in a store."""

    run: str
    """What finds the run again."""

    def write_numbers(self, numbers: Sequence[Number]) -> None:
        """Write numbers, in their order."""

    def write_settings(self, settings: Mapping[str, str]) -> None:
        """Write settings; those that are there stay."""

    def write_tags(self, tags: Mapping[str, str]) -> None:
        """Write tags; later ones take the place of earlier ones."""

    def write_file(self, path: Path) -> None:
        """Write a file beside the run."""

    def end(self, *, failed: bool) -> None:
        """Say that the run is over."""


class MlflowStore:
    """A run of the experiment ``unary`` of an MLflow server or database.

    Its client alone is used: nothing is set for other code of the process, and nothing is logged by itself.
    """

    def __init__(self, uri: str, name: str, run: str | None) -> None:
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self.run = self._continue(run) or self._begin(uri, name)

    def _continue(self, run: str | None) -> str | None:
        """The run, going on; None where there is none, or no more."""
        from mlflow.exceptions import MlflowException

        if run is None:
            return None
        try:
            if self._client.get_run(run).info.lifecycle_stage != "active":
                return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        self._client.update_run(run, status="RUNNING")
        return run

    def _begin(self, uri: str, name: str) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            database = uri.removeprefix("sqlite:///")
            files = None if database == uri else Path(database).absolute().with_name("mlruns").as_uri()
            experiment = self._client.create_experiment(EXPERIMENT, artifact_location=files)
        else:
            experiment = found.experiment_id
        return str(self._client.create_run(experiment, run_name=name).info.run_id)

    def write_numbers(self, numbers: Sequence[Number]) -> None:
        """As `Store.write_numbers`."""
        from mlflow.entities import Metric

        metrics = [Metric(_clean(each.name), each.value, each.moment_ms, each.step) for each in numbers]
        self._client.log_batch(self.run, metrics=metrics)

    def write_settings(self, settings: Mapping[str, str]) -> None:
        """As `Store.write_settings`."""
        from mlflow.entities import Param

        there = self._client.get_run(self.run).data.params
        named = {_clean(name): text[:_MOST_CHARACTERS] for name, text in settings.items()}
        for part in _divide(Param(name, text) for name, text in named.items() if name not in there):
            self._client.log_batch(self.run, params=part)

    def write_tags(self, tags: Mapping[str, str]) -> None:
        """As `Store.write_tags`."""
        from mlflow.entities import RunTag

        self._client.log_batch(self.run, tags=[RunTag(_clean(name), text) for name, text in tags.items()])

    def write_file(self, path: Path) -> None:
        """As `Store.write_file`."""
        self._client.log_artifact(self.run, str(path))

    def end(self, *, failed: bool) -> None:
        """As `Store.end`."""
        self._client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class TensorBoardStore:
    """A run as a folder of event files; settings and tags are shown as text, files lie in its folder ``files``."""

    def __init__(self, folder: Path, name: str, run: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run if run is not None and (folder / run).is_dir() else _make_folder(folder, name)
        self._folder = folder / self.run
        self._writer: Any = SummaryWriter(str(self._folder))
        self._texts: dict[str, dict[str, str]] = {"settings": {}, "tags": {}}

    def write_numbers(self, numbers: Sequence[Number]) -> None:
        """As `Store.write_numbers`."""
        for each in numbers:
            self._writer.add_scalar(_clean(each.name), each.value, each.step, walltime=each.moment_ms / 1000)
        self._writer.flush()

    def write_settings(self, settings: Mapping[str, str]) -> None:
        """As `Store.write_settings`."""
        self._write_text("settings", settings)

    def write_tags(self, tags: Mapping[str, str]) -> None:
        """As `Store.write_tags`."""
        self._write_text("tags", tags)

    def _write_text(self, title: str, texts: Mapping[str, str]) -> None:
        known = self._texts[title]
        known.update(texts)
        lines = ["| | |", "|---|---|", *(f"| {name} | {text.replace('|', '/')} |" for name, text in known.items())]
        self._writer.add_text(title, "\n".join(lines), global_step=len(known))  # the last step is what is shown
        self._writer.flush()

    def write_file(self, path: Path) -> None:
        """As `Store.write_file`."""
        files = self._folder / "files"
        files.mkdir(exist_ok=True)
        shutil.copyfile(path, files / path.name)

    def end(self, *, failed: bool) -> None:
        """As `Store.end`; TensorBoard knows no failed runs."""
        self._writer.close()


def _make_folder(folder: Path, name: str) -> str:
    """Make the folder of a new run, and return its name."""
    stamp = f"{_clean(name).replace('/', '_')}-{datetime.now():%Y%m%dT%H%M%S}"
    for number in itertools.count(1):
        run = stamp if number == 1 else f"{stamp}-{number}"
        try:
            (folder / run).mkdir(parents=True)
        except FileExistsError:
            continue
        return run
    raise AssertionError("there is always a next number")


def _clean(name: str) -> str:
    """A name of letters that every store takes."""
    return re.sub(r"[^\w./ -]", "_", name)


def _divide(items: Iterable[Any]) -> list[list[Any]]:
    rest = list(items)
    return [rest[start : start + _MOST_SETTINGS] for start in range(0, len(rest), _MOST_SETTINGS)]
