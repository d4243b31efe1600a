"""One self-contained HTML page that says what was found, what it means, and where it comes from.

Style, figures and data are inside the file; it asks for nothing from any network, and a content security policy in its
head forbids it to. Every number in a table carries its full value in ``data-value``.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unary.evaluation.metrics import FEW_PATIENTS, NORMAL_LOOKING
from unary.files import replacing
from unary.outputs.figures import FIGURE_DPI
from unary.outputs.leads import IMAGES, PATCHES, is_few
from unary.outputs.words import GROUP_TITLES, IMAGE_GROUP, MEANINGS, SPLIT_TITLES
from unary.records import NOTICE, count_words

Cell = str | int | float | None


@dataclass(frozen=True)
class Picture:
    """One figure: PNG bytes, a caption, and words for those who cannot see it."""

    png: bytes = field(repr=False)
    caption: str
    alt: str


@dataclass(frozen=True)
class Table:
    """A plain table; numbers stand right, unknown (None) is a dash; floats show three decimals, or digits if small."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class MetricsTable:
    """The detectors beside each other, by group, with the splits side by side.

    ``detectors`` is ``{NAME: {SPLIT: {GROUP: {...}}}}`` of ``metrics.json``, or without the level SPLIT; ``titles`` are
    those of groups, in the order of the table, as of `unary.outputs.words.name_groups`.
    """

    caption: str
    detectors: Mapping[str, Any]
    titles: Mapping[str, str] = field(default_factory=lambda: GROUP_TITLES)


@dataclass(frozen=True)
class Section:
    """One part of a report: what is said, then tables, pictures, and terms explained."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table | MetricsTable, ...] = ()
    pictures: tuple[Picture, ...] = ()
    terms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Attributes
    ----------
    lead
        The answer in plain words, first of all.
    provenance
        What would repeat the run: command, commit, seeds, data hash, versions, configuration, nested as they are.
    banners
        What must not be overlooked, such as synthetic data. `unary.records.NOTICE` is always there, and not given here.
    notices
        Warnings met on the way, such as images that were skipped.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]
    provenance: Mapping[str, Any]
    banners: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def fill_template(name: str, values: Mapping[str, Any]) -> str:
    """Return what one of the templates makes of values, and of the notice; every text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("unary.outputs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filled: str = environment.get_template(name).render(values, notice=NOTICE)
    return filled


def build_report(report: Report) -> str:
    """Return the page as HTML; every text is escaped."""
    tables, figures = itertools.count(1), itertools.count(1)
    sections = [
        {
            "anchor": f"section-{number}",
            "section": section,
            "tables": [(next(tables), _lay_out_table(table)) for table in section.tables],
            "pictures": [{"position": next(figures), "picture": p, **_encode_png(p.png)} for p in section.pictures],
        }
        for number, section in enumerate(report.sections, 1)
    ]
    values = {"report": report, "sections": sections, "provenance": _flatten(report.provenance)}
    return fill_template("report.html", values)


def write_report(report: Report, path: Path) -> None:
    """Write the page; the old file stays until the new one is whole."""
    text = build_report(report)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def build_results_section(
    heading: str,
    detectors: Mapping[str, Any],
    *,
    titles: Mapping[str, str] = GROUP_TITLES,
    figures: str = "",
) -> Section:
    """Return the section with the table of all detectors, as `MetricsTable`, and words for every control in it.

    ``figures`` says what they are of, such as `unary.outputs.leads.describe_means`.
    """
    by_split = {name: _by_split(groups) for name, groups in detectors.items()}
    present = dict.fromkeys(
        [*by_split, *(s for splits in by_split.values() for s in splits)]
        + [group for splits in by_split.values() for groups in splits.values() for group in groups]
    )
    groups = {group for splits in by_split.values() for groups in splits.values() for group in groups}
    names = {**titles, **SPLIT_TITLES}
    caption = f"Detectors and controls on the same {describe_units(groups)}{figures and f', {figures}'}."
    return Section(
        heading,
        paragraphs=(_explain_figures(groups),),
        tables=(MetricsTable(caption, detectors, titles),),
        terms=tuple((names.get(name, name), MEANINGS[name]) for name in present if name in MEANINGS),
    )


def describe_units(groups: Collection[str]) -> str:
    """Return what was compared in these groups: patches, images, or both."""
    units = ["patches"] * (set(groups) != {IMAGE_GROUP}) + ["images"] * (IMAGE_GROUP in groups)
    return " and ".join(units)


def _explain_figures(groups: Collection[str]) -> str:
    images = IMAGES if IMAGE_GROUP in groups else None
    patches = PATCHES if set(groups) != {IMAGE_GROUP} else None
    sides = patches or IMAGES
    ranked = f"one of the {sides.positive} outscores one of the {sides.negative}"
    both = ", and of whole images one labelled positive outscores one labelled negative" if images and patches else ""
    return (
        f"AUROC is how often {ranked}{both}: 0.5 is chance, 1 is perfect. The range beside it is a 95 % interval over "
        "patients; the bar draws it, with a tick at chance and its right end at 1. The highest is bold where there are "
        f"at least {FEW_PATIENTS} patients on either side. Average precision depends on the share of positives and "
        f"compares only within one group. Sensitivity is the share of {sides.positive} found when 90, 95 or 99 % of "
        f"{sides.negative} pass."
    )


def _by_split(groups: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put one unnamed split above the groups where there is none."""
    bare = any("auroc" in found for found in groups.values())
    return {"": groups} if bare else groups


def _encode_png(png: bytes) -> dict[str, Any]:
    """The data URI's content, and the width in CSS pixels (96 an inch) at which a figure has the size it was drawn."""
    pixels = int.from_bytes(png[16:20], "big")  # PNG, section 11.2.1: the width stands first in IHDR
    return {"data": base64.b64encode(png).decode("ascii"), "width": round(pixels * 96 / FIGURE_DPI)}


def _lay_out_table(table: Table | MetricsTable) -> dict[str, Any]:
    if isinstance(table, Table):
        numeric = [all(isinstance(row[k], int | float | None) for row in table.rows) for k in range(len(table.header))]
        rows = [[_lay_out_cell(cell) for cell in row] for row in table.rows]
        return {"kind": "plain", "caption": table.caption, "header": table.header, "numeric": numeric, "rows": rows}
    by_split = {name: _by_split(groups) for name, groups in table.detectors.items()}
    splits = list(dict.fromkeys(split for splits in by_split.values() for split in splits))
    groups = list(dict.fromkeys(g for found in by_split.values() for by_group in found.values() for g in by_group))
    order = list(table.titles)
    groups.sort(key=lambda name: order.index(name) if name in order else len(order) - 1.5)
    notes: dict[str, int] = {}
    bodies = [_lay_out_group(group, by_split, table.titles, splits=splits, notes=notes) for group in groups]
    return {
        "kind": "metrics",
        "caption": table.caption,
        "splits": [SPLIT_TITLES.get(split, split) for split in splits],
        "levels": ["90", "95", "99"],
        "bodies": bodies,
        "columns": 1 + 6 * len(splits),
        "low": _lowest(by_split),
        "notes": list(notes),
    }


def _lay_out_group(
    group: str, by_split: Mapping[str, Any], titles: Mapping[str, str], *, splits: list[str], notes: dict[str, int]
) -> dict[str, Any]:
    """Rows of one group; ``notes`` collects footnotes and their numbers."""
    counts: dict[str, list[str]] = {}
    for split in splits:
        known = [found[split][group] for found in by_split.values() if group in found.get(split, {})]
        if known:
            unit = "images" if group == IMAGE_GROUP else "patches"
            patients = count_words(known[0]["n_positive_patients"], "patient")
            sides = "{n_positive:,} {} of {} against {n_negative:,} of {n_negative_patients:,}"
            text = sides.format(unit, patients, **known[0])
            counts.setdefault(text, []).append(SPLIT_TITLES.get(split, split))
    told = [text if len(counts) == 1 else f"{' and '.join(names)}: {text}" for text, names in counts.items()]

    def lay_out(numbers: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if numbers is None:
            return None
        mark = notes.setdefault(numbers["note"], len(notes) + 1) if "note" in numbers else None
        return {"found": numbers, "mark": mark}

    lines = [[lay_out(found.get(split, {}).get(group)) for split in splits] for found in by_split.values()]
    rows = [{"name": name, "cells": cells} for name, cells in zip(by_split, lines, strict=True)]
    best = [_find_best(group, [cell["found"] for cell in column if cell]) for column in zip(*lines, strict=True)]
    title = titles.get(group, group.replace("_", " ").capitalize())
    return {"name": title, "counts": told, "rows": rows, "best": best}


def _find_best(group: str, column: Sequence[Mapping[str, Any]]) -> float | None:
    """The area to print bold: none where no detector should win, or nobody can know."""
    told = group != NORMAL_LOOKING and not any(map(is_few, column))
    return max((found["auroc"] for found in column), default=None) if told else None


def _lowest(by_split: Mapping[str, Any]) -> float:
    """Where the bars begin: the tenth below the lowest interval, and at most 0.4, so that chance is always seen."""
    found = [each for splits in by_split.values() for groups in splits.values() for each in groups.values()]
    lows = [float(min([each["auroc"], *(each["auroc_ci95"] or [])])) for each in found]
    return min([0.4, *(math.floor(10 * low) / 10 for low in lows)])


def _lay_out_cell(cell: Cell) -> dict[str, Any]:
    if cell is None:
        return {"text": "\u2013", "value": None}
    if isinstance(cell, bool | str):
        return {"text": str(cell), "value": None}
    if isinstance(cell, int):
        return {"text": f"{cell:,}", "value": repr(cell)}
    return {"text": f"{cell:.3f}" if cell == 0 or abs(cell) >= 0.01 else f"{cell:.3g}", "value": repr(float(cell))}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flatten(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            pairs.append((f"{prefix}{name}", "none" if value is None else text))
    return pairs
