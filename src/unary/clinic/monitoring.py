"""Reading folders of results to watch scanners by: whole results of one model, each once, in the order of months."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unary.clinic.result_folder import RECORD, read_record_failures, read_whole_result
from unary.clinic.shard_results import list_monitored, read_results
from unary.clinic.shards import SHARDS
from unary.datasets.annotation import name_some
from unary.datasets.folder import RESULT_FILE
from unary.errors import UnaryError
from unary.evaluation.monitoring import Monitoring, Observation, watch
from unary.evaluation.monitoring_limits import MonitorLimits
from unary.images.acquisition import hash_identifier
from unary.images.isolation import show_path
from unary.records import count_words

_OLDEST = "2000-01"  # before it no digital mammogram was made
_MONTH = re.compile(r"\d{4}-\d{2}")


@dataclass
class _Reading:
    """What was found in the folders, and what is odd about it, by reason."""

    results: list[dict[str, Any]] = field(default_factory=list)
    odd: dict[str, list[str]] = field(default_factory=dict)
    without_result: Counter[str] = field(default_factory=Counter)

    def note(self, reason: str, name: str) -> None:
        self.odd.setdefault(reason, []).append(name)


def monitor_results(
    roots: Sequence[Path], limits: MonitorLimits | None = None, *, constancy: bool = False
) -> Monitoring:
    """Watch scanners by results of `unary detect`.

    Parameters
    ----------
    roots
        Folders of results, or folders with such folders anywhere below.
    limits
        What the physicist has set; by default nothing but the tests.
    constancy
        Whether the images are of one object, sent again and again.

    Raises
    ------
    UnaryError
        If a root is no folder, or no whole result is found.
    """
    limits = limits or MonitorLimits()
    reading = _Reading()
    for root in roots:
        if not root.is_dir():
            raise UnaryError(f"{show_path(root)}: no such folder")
        _read_root(root, reading)
    results = _choose_model(reading)
    if not results:
        odd = "; ".join(f"{reason}: {name_some(names)}" for reason, names in reading.odd.items())
        raise UnaryError(
            f"no result of `unary detect` in {', '.join(map(show_path, roots))}{f' ({odd})' if odd else ''}"
        )
    observations = [_observe(result, reading) for result in results]
    notices = [f"{reason}: {_list_names(names)}" for reason, names in reading.odd.items()]
    newest = results[-1]
    return watch(
        observations,
        newest["model"],
        newest["operating_point"],
        limits,
        constancy=constancy,
        notices=notices,
        without_result=dict(reading.without_result),
    )


def _list_names(names: Sequence[str]) -> str:
    return f"{count_words(len(names), 'result')}, {name_some(sorted(names))}"


def _read_root(root: Path, reading: _Reading) -> None:
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folder = Path(place)
        if RECORD in files and SHARDS in folders:
            folders.clear()
            _read_archive(folder, reading)
            continue
        if RECORD in files:
            reading.without_result.update(read_record_failures(folder))
        if RESULT_FILE not in files:
            continue
        folders.clear()
        found = read_whole_result(folder)
        name = show_path(folder.relative_to(root)) if folder != root else show_path(Path(folder.name))
        if found is None:
            reading.note("left out: result.json is damaged, edited, or not unary's", name)
        elif found["made_from"].get("command") != "detect":
            reading.note("left out: made by another command than `unary detect`", name)
        else:
            reading.results.append(found | {"_name": name})


def _read_archive(folder: Path, reading: _Reading) -> None:
    """The results of an archive, from its tables."""
    results = read_results(folder)
    reading.results.extend(list_monitored(results))
    reading.without_result.update(results.run["without_result"])


def _choose_model(reading: _Reading) -> list[dict[str, Any]]:
    """The results of the model and operating point of the newest one, each image once, in their order."""
    found = sorted(reading.results, key=lambda each: (str(each.get("moment")), each["_name"]))
    if not found:
        return []
    keys = ("model_sha256", "operating_point")
    newest = tuple(found[-1]["made_from"].get(key) for key in keys)
    kept: dict[str, dict[str, Any]] = {}
    for each in found:
        if tuple(each["made_from"].get(key) for key in keys) != newest:
            reading.note("left out: of another model or operating point than the newest result's", each["_name"])
        elif each["made_from"]["sha256"] in kept:
            reading.note("left out: the same file content once more", each["_name"])
        else:
            kept[each["made_from"]["sha256"]] = each
    return list(kept.values())


def _observe(result: Mapping[str, Any], reading: _Reading) -> Observation:
    name = result["_name"]
    facts = result.get("acquisition")
    if facts is None:
        reading.note("without a DICOM header, or of an earlier version: scanner and acquisition are unknown", name)
        facts = {}
    spacing = result.get("stored_spacing_mm")
    known = {key: str(value) for key, value in facts.items() if value is not None}
    if spacing is not None:
        known["spacing_mm"] = " x ".join(f"{length:.4g}" for length in spacing)
    return Observation(
        _name_scanner(facts),
        str(result.get("study") or result.get("instance") or result["made_from"]["sha256"]),
        _find_month(result, facts, reading),
        (str(result.get("moment")), name),
        len(result["findings"]) > 0,
        dict(_list_values(result, facts)),
        known,
    )


def _name_scanner(facts: Mapping[str, Any]) -> str:
    if facts.get("station"):
        return str(facts["station"])
    parts = [facts.get("manufacturer"), facts.get("model_name")]
    return hash_identifier([part or "" for part in parts]) if any(parts) else "unknown"


def _find_month(result: Mapping[str, Any], facts: Mapping[str, Any], reading: _Reading) -> str:
    """The month of the acquisition; where it cannot be right, that of the examination, with a note."""
    examined = str(result.get("moment"))[:7]
    month = facts.get("month")
    if not (isinstance(month, str) and _MONTH.fullmatch(month)):
        reason = "no date of acquisition: the month in which it was examined stands in"
    elif month > examined:
        reason = "acquired after it was examined, say the clocks: the month of the examination stands in"
    elif month < _OLDEST:
        reason = f"acquired before {_OLDEST[:4]}, says the header: the month of the examination stands in"
    else:
        return month
    reading.note(reason, result["_name"])
    return examined


def _list_values(result: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if result["image_score"] is not None:
        yield "image_score", float(result["image_score"])
    tissue = result.get("tissue")
    if tissue is not None:
        yield "level", float(tissue["level"])
        if tissue["level"] > 0:
            yield "contrast", float(tissue["bright"] - tissue["dark"]) / float(tissue["level"])
            yield "noise", float(tissue["noise"]) / float(tissue["level"])
    for key in ("exposure_mas", "kvp", "thickness_mm"):
        if facts.get(key) is not None:
            yield key, float(facts[key])
