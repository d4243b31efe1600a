"""Tables of the results pages, from the JSON that the commands have written: `python docs/_site/results_tables.py`.

``docs/results/data/NAME.json`` holds a command's last line (``result``) with the command itself and its commit. In a
page a table stands between ``<!-- from NAME.json: TABLE -->`` and ``<!-- end -->``; this script writes what belongs
there, and a test holds the pages to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unary.evaluation.intervals import Estimate
from unary.outputs.words import with_interval

DOCS = Path(__file__).parents[1]
DATA = DOCS / "results" / "data"
_PLACE = re.compile(r"(<!-- from (\w+)\.json: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def read_record(name: str) -> dict[str, Any]:
    """Return command, commit, data, note and result of one record."""
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return found


def build_source(record: Mapping[str, Any]) -> list[str]:
    """Return the lines that every table stands beside: command, commit, data."""
    note = f"; {record['note']}" if record["note"] else ""
    return ["", "```", record["command"], "```", "", f"Commit `{record['commit']}`; {record['data']}{note}.", ""]


SHOWN = {
    "fusion": "default",
    "wei2018": "paper's network",
    "laplacian": "blob filter, no learning",
    "mean_brightness": "mean brightness alone",
}


def build_bench(result: Mapping[str, Any]) -> list[str]:
    """Return the default beside the paper's network and two yardsticks, by group of lesions and kind of figure."""
    rows = [
        [f"{group}: {figure}", *(_show(result[name][group][figure]) for name in SHOWN), "[bench](results/bench.md)"]
        for figure in ("AUROC", "sensitivity at 95 % specificity")
        for group in result["fusion"]
        if figure == "AUROC" or "BI-RADS" in group
    ]
    return _table(["patches", *SHOWN.values(), "page"], rows)


def build_nested(result: Mapping[str, Any]) -> list[str]:
    """Return the nested cross-validation, one row a figure, one column a variant."""
    figures = result["figures"]
    rows = [[name, *(_show(each[name]) for each in figures.values())] for name in next(iter(figures.values()))]
    return _table(["", *figures], rows)


def build_chosen(result: Mapping[str, Any]) -> list[str]:
    """Return how often each variant was the nested choice."""
    counts = sorted(result["chosen"].items(), key=lambda pair: -pair[1])
    return _table(
        ["variant", "cells in which it was the nested choice"], [[name, str(count)] for name, count in counts]
    )


def build_alarms(result: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what operating points promised and what was counted."""
    rows = [
        [f"{each['rate']:g}", f"{each['measured']:.2f}", f"{each['bound']:.2f}", f"{each['alarms']:.2f}"]
        for each in result
    ]
    head = ["false findings per normal image, asked for", "measured", "images with any, at most", "measured"]
    return _table(head, rows)


def build_page(result: Mapping[str, Any]) -> list[str]:
    """Return how fast the review page is."""
    rows = [
        [name.removesuffix(", s"), f"{value:.2f} s" if name.endswith(", s") else f"{value:.0f} frames/s"]
        for name, value in result["review_page"].items()
    ]
    return _table(["", "measured"], rows)


def build_load(result: Mapping[str, Any]) -> list[str]:
    """Return how a node bears a thousand images at once."""
    rows = [
        ["images, senders at once", f"{result['images']:,}, {result['senders']}"],
        ["all confirmed after", f"{result['sending_s']:.1f} s"],
        [
            "answer to C-STORE, seen from its sender: median, 99th percentile, longest",
            f"{result['median_s']:.3f}, {result['p99_s']:.2f}, {result['longest_s']:.2f} s",
        ],
        ["all examined and delivered after", f"{result['all_s']:.0f} s"],
        ["memory at the start, at most", f"{result['memory_before_mib']}, {result['memory_most_mib']} MiB"],
        ["images lost or examined twice", str(len(result["faults"]) + result["examined_again"])],
    ]
    return _table(["", "measured"], rows)


def build_kills(result: Mapping[str, Any]) -> list[str]:
    """Return what is left after a node has been killed again and again."""
    rows = [
        ["kills, images", f"{result['kills']}, {result['images']}"],
        ["objects sent over the wire", str(result["sent_over_the_wire"])],
        ["objects that the receiving PACS holds", str(result["held_by_pacs"])],
        ["lines of the audit log", str(result["audit_lines"])],
        ["faults", str(len(result["faults"]))],
    ]
    return _table(["", "counted"], rows)


TABLES: dict[str, Callable[[Any], list[str]]] = {
    "default": build_bench,
    "figures": build_nested,
    "chosen": build_chosen,
    "alarms": build_alarms,
    "page": build_page,
    "load": build_load,
    "kills": build_kills,
}


def fill_page(text: str) -> str:
    """Return a page with its tables written anew."""

    def fill(found: re.Match[str]) -> str:
        head, record, table, _, end = found.groups()
        known = read_record(record)
        return "\n".join([head.rstrip("\n"), *build_source(known), *TABLES[table](known["result"]), "", end])

    return _PLACE.sub(fill, text)


def find_pages() -> list[Path]:
    """Return the pages of results."""
    return [DOCS / "results.md", *sorted((DOCS / "results").glob("*.md"))]


def _show(figure: Mapping[str, Any]) -> str:
    low, high = figure["value_ci95"]
    return with_interval(Estimate(figure["value"], low, high))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


if __name__ == "__main__":
    for page in find_pages():
        before = page.read_text(encoding="utf-8")
        page.write_text(fill_page(before), encoding="utf-8")
        if page.read_text(encoding="utf-8") != before:
            print(f"{page}: written anew")
