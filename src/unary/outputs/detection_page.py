"""The page of a folder of `unary detect`: every image with its findings, a table of all, and what went wrong.

It is made from what lies in the folder, results of former runs and versions included, and read twice, so that memory
holds a line of each image and the images of one page. Pictures are the files beside it, read by the browser when they
come into sight.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from unary.datasets.folder import RESULT_FILE, read_result
from unary.files import read_cell
from unary.outputs.card_pages import CARDS_PER_PAGE, list_pages, name_page, write_card_pages
from unary.outputs.cards import (
    Card,
    describe_findings_of,
    link_views,
    make_anchor,
    mark_findings,
    name_file,
    say_findings,
)
from unary.outputs.report import Cell, Link, Report, Section, Table, write_report
from unary.records import Finding, count_words

logger = logging.getLogger(__name__)

_MOST_TOLD = 500  # files without a result, on the page; failures.csv has all
_SOME, _NONE, _ODD = "with findings", "no finding", "unlike the training images"


@dataclass(frozen=True)
class _Entry:
    """What the table says of an image."""

    folder: str
    file: str
    findings: int
    score: float | None
    p_value: float | None
    odd: bool
    notes: tuple[str, ...]


def write_detection_page(path: Path) -> None:
    """Write the page into a folder of results, and those with all images beside it (`unary.outputs.card_pages`).

    A page that cannot be written is named in a warning: the results are there without it. Where no file has a result,
    there is none, unless an earlier one is to be made true.
    """
    out = path.parent
    entries, about = _list_entries(out)
    if not entries and not path.exists():
        return
    entries.sort(key=lambda entry: (entry.score is None, -(entry.score or 0.0), entry.folder))
    groups = (entries[start : start + CARDS_PER_PAGE] for start in range(0, len(entries), CARDS_PER_PAGE))
    cards = (tuple(filter(None, (_build_card(out, entry.folder) for entry in group))) for group in groups)
    provenance = {**_list_provenance(about), "summary and failures": _hash_tables(out)}
    try:
        write_card_pages(out, cards, len(entries), home=path.name, provenance=provenance)
        write_report(_build_page(out, entries, about, provenance), path)
    except OSError as error:
        logger.warning("%s: the page of results could not be written (%s)", path, error.strerror or error)


def is_current(path: Path) -> bool:
    """Return whether a page is there that was made from the tables that lie beside it."""
    try:
        return _hash_tables(path.parent) in path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _hash_tables(out: Path) -> str:
    """The hash of the tables that name each result and each file without one."""
    there = (out / name for name in ("summary.csv", "failures.csv"))
    return hashlib.sha256(b"\0".join(path.read_bytes() if path.is_file() else b"" for path in there)).hexdigest()


def _list_entries(out: Path) -> tuple[list[_Entry], dict[str, Any]]:
    """A line for each image with a result, and what the last of them says of its model and operating point."""
    entries, about, last = [], {}, ""
    for folder, found in _read_results(out):
        try:
            findings = found["findings"]
            notes = tuple(map(str, found.get("notes") or ()))
            known = (len(findings), found["image_score"], found["image_p_value"], bool(found.get("out_of_domain")))
            entries.append(_Entry(folder, str(found["file"]), *known, notes))
        except (KeyError, TypeError):
            continue
        if str(found.get("moment")) >= last:
            last = str(found.get("moment"))
            about = {name: found.get(name) for name in ("model", "operating_point", "guarantee", "moment")}
    return entries, about


def _read_results(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with os.scandir(out) as there:
        names = sorted(entry.name for entry in there if not entry.name.startswith(".") and entry.is_dir())
    for name in names:
        found = read_result(out / name)
        if found is not None and found.get("made_from", {}).get("command") == "detect":
            yield name, found


def _build_card(out: Path, folder: str) -> Card | None:
    """The card of a result; None where it is not what `unary detect` writes."""
    found = read_result(out / folder)
    try:
        if found is None:
            return None
        findings = msgspec.convert(found["findings"], list[Finding])
        count = describe_findings_of(len(findings), found["image_score"])
        facts = [count] + ([] if found["image_p_value"] is None else [f"p = {found['image_p_value']:.2g}"])
        odd = [f"unlike the images that the model has learned from: {line}" for line in found["out_of_domain"]]
        known: dict[str, Any] = {
            "anchor": make_anchor(folder),
            "heading": folder if folder.endswith(f"__{Path(found['file']).stem}") else str(found["file"]),
            "facts": tuple(facts),
            "notes": (*odd, *map(str, found["notes"])),
            "link": ("the files of this image", name_file(folder, "")),
        }
        views = found.get("views")
        if views is None:  # of a former version: its picture has the marks in it
            known["shape"] = known["reach"] = tuple(map(int, found["stored_shape"]))
            return Card(whole=name_file(folder, "findings.png"), glow=None, drawn=True, **known)
        linked = link_views(views, (folder,), say_findings(findings))
        return Card(marks=tuple(mark_findings(findings, linked["scale"])), **known, **linked)
    except (KeyError, TypeError, ValueError, msgspec.ValidationError):
        logger.warning("%s: not shown, for it is not what unary detect writes", out / folder / RESULT_FILE)
        return None


def _build_page(
    out: Path, entries: Sequence[_Entry], about: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Report:
    failures = _read_failures(out)
    rows: list[tuple[Cell, ...]] = [
        (
            Link(entry.folder, f"{name_page(place)}#{make_anchor(entry.folder)}"),
            entry.findings,
            entry.score,
            entry.p_value,
            "; ".join([_SOME if entry.findings else _NONE, *([_ODD] if entry.odd else [])]),
            "; ".join(entry.notes),
        )
        for place, entry in enumerate(entries)
    ]
    header = ("image", "findings", "image score", "p-value", "result", "notes")
    table = Table("Every image, the most abnormal first.", header, tuple(rows), filters=(_SOME, _NONE, _ODD))
    shown = [card for entry in entries[:4] if entry.findings and (card := _build_card(out, entry.folder)) is not None]
    sections = [
        *([Section("The most abnormal images", cards=tuple(shown))] if shown else []),
        Section("All images", paragraphs=(_explain(about),), tables=(table,)),
        *([_tell_failures(failures)] if failures else []),
    ]
    there = [name for name in ("summary.csv", "failures.csv", "run.json") if (out / name).is_file()]
    return Report(
        title="Findings",
        lead=_describe_lead(entries, len(failures), about),
        sections=tuple(sections),
        provenance=provenance,
        links=(*list_pages(len(entries)), *(Link(name, name) for name in there)),
    )


def _describe_lead(entries: Sequence[_Entry], failed: int, about: Mapping[str, Any]) -> str:
    """What was found, and what a normal image would have given, in two sentences."""
    having, total = sum(entry.findings > 0 for entry in entries), sum(entry.findings for entry in entries)
    marked = f"{having:,} of {count_words(len(entries), 'image')} {'has' if having == 1 else 'have'} findings"
    without = f"; {count_words(failed, 'file')} could not be examined" if failed else ""
    if not entries:
        return f"No file has a result{without}."
    point = about.get("operating_point")
    if not point:
        expected = "The model is not calibrated, so that nothing says how many findings normal images have."
    else:
        word = "at most " if point["guaranteed"] else "about "
        expected = (
            f"The threshold was set on {count_words(point['patients'], 'normal patient')}, so that {word}"
            f"{_count_rate(point['rate'])} in a normal image {'is' if point['rate'] == 1 else 'are'} to be expected."
        )
    return f"{marked}, {total:,} in all{without}. {expected}"


def _count_rate(rate: float) -> str:
    """Return a rate of findings in words.

    >>> _count_rate(1.0), _count_rate(0.5)
    ('1 finding', '0.5 findings')
    """
    return f"{rate:g} finding{'' if rate == 1 else 's'}"


def _explain(about: Mapping[str, Any]) -> str:
    return (
        "The image score is that of the most abnormal place, whether it is reported or not; its p-value is how often "
        f"a normal image scores as high. {about.get('guarantee') or ''} A finding departs from normal tissue; it need "
        "not be a lesion."
    )


def _tell_failures(failures: Sequence[Sequence[str]]) -> Section:
    more = len(failures) - _MOST_TOLD
    said = (f"The first {_MOST_TOLD} of {len(failures):,}; failures.csv has all.",) if more > 0 else ()
    rows = tuple(tuple(row) for row in failures[:_MOST_TOLD])
    return Section("Files without a result", said, (Table("Why.", ("file", "reason", "detail"), rows),))


def _read_failures(out: Path) -> list[list[str]]:
    try:
        with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
            return [[read_cell(cell) for cell in row] for row in itertools.islice(csv.reader(file), 1, None)]
    except (OSError, ValueError, csv.Error):
        return []


def _list_provenance(about: Mapping[str, Any]) -> dict[str, Any]:
    point = about.get("operating_point") or {}
    return {
        "results of": about.get("moment"),
        "model": about.get("model") or {},
        "operating point": json.dumps(point.get("name")),
        "threshold": point.get("threshold"),
    }
