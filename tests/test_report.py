"""The report: self-contained, escaped, and true to the metrics."""

from __future__ import annotations

import base64
import dataclasses
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unary.evaluation.metrics import ScoreTable, summarise
from unary.outputs.figures import figure_png, plot_losses
from unary.outputs.report import (
    MetricsTable,
    Picture,
    Report,
    Section,
    Table,
    build_report,
    build_results_section,
    describe_units,
    write_report,
)
from unary.outputs.words import name_groups
from unary.profiles import GENERAL
from unary.records import NOTICE

HOSTILE = "<script>alert('x')</script>\" onload=\"steal()\" <img src='http://evil.example/a.png'> {{ 7 * 7 }}"


class Page(HTMLParser):
    """What the page holds: tags with attributes, text, and whether tags close as they should."""

    VOID = frozenset({"meta", "img", "br", "line", "circle"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self) -> list[float]:
        return [float(attrs["data-value"] or "") for _, attrs in self.tags if "data-value" in attrs]


def build_detectors() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(30), 8)
    positive = (number >= 20) & (np.tile(np.arange(8), 30) < 3)
    tables = {
        split: ScoreTable(
            {"wei2018": rng.normal(size=240) + positive, "flat": np.zeros(240)},
            positive,
            {"mass": positive, "odd_kind": positive, "normal_looking": (number >= 20) & ~positive},
            np.array([f"p{n}" for n in number]),
            np.array([f"i{n}" for n in number]),
            np.arange(240),
            np.arange(240),
            0,
            split,
        )
        for split in ("patch", "patient")
    }
    summaries = {split: summarise([table], rng=rng, resamples=40) for split, table in tables.items()}
    return {name: {split: summaries[split][name] for split in summaries} for name in ("wei2018", "flat")}


def collect_floats(value: Any) -> list[float]:
    """Every number of the metrics that the table shows."""
    if isinstance(value, dict):
        return [
            number
            for name, entry in value.items()
            if not name.startswith("n_") and name not in ("note", "auroc_per_seed") and entry is not None
            for number in collect_floats(entry)
        ]
    return [float(entry) for entry in (value if isinstance(value, list) else [value])]


def build_sample(**changes: Any) -> Report:
    parts = {
        "title": "Sample",
        "lead": "The answer.",
        "sections": (build_results_section("Results", build_detectors()),),
        "provenance": {"command": "unary demo", "seeds": [0, 1], "versions": {"numpy": "2.4.6", "torch": None}},
    }
    return Report(**{**parts, **changes})


def test_numbers_of_the_table_equal_the_metrics() -> None:
    detectors = build_detectors()
    found = Page(build_report(build_sample(sections=(Section("R", tables=(MetricsTable("c", detectors),)),)))).values()
    assert sorted(found) == sorted(collect_floats(detectors))
    assert len(found) == 2 * 2 * 4 * 7 - 2 * 4 * 2  # "flat" has no interval


def test_rows_belong_to_their_detector_group_and_split() -> None:
    detectors = build_detectors()
    html = build_report(build_sample())
    body = html.split('scope="rowgroup"')
    order = ["all", "mass", "odd_kind", "normal_looking"]
    titles = ["All lesions", "Masses", "Odd kind", "Control: normal-looking"]
    assert len(body) == 1 + len(order)
    for part, group, title in zip(body[1:], order, titles, strict=True):
        assert title in part
        counts = detectors["wei2018"]["patch"][group]
        assert f"{counts['n_positive']} patches of {counts['n_positive_patients']} patients against " in part
        assert f" against {counts['n_negative']} of {counts['n_negative_patients']}" in part
        by_split = part.split('<tr class="split">')[1:]
        for split, rows in zip(("patch", "patient"), by_split, strict=True):
            for row, name in zip(rows.split('scope="row">')[1:], ("wei2018", "flat"), strict=True):
                assert row.startswith(name)
                assert f'data-value="{detectors[name][split][group]["auroc"]}"' in row
                assert f"{detectors[name][split][group]['auroc']:.3f}" in row


def test_titles_are_those_of_the_profile() -> None:
    flat = {name: splits["patient"] for name, splits in build_detectors().items()}
    for name, groups in flat.items():
        flat[name] = {"image": groups["all"], **groups}
    section = build_results_section("R", flat, titles=name_groups(GENERAL.reading))
    page = Page(build_report(build_sample(sections=(section,))))
    for words in (
        "All lesions",
        "Whole images, by label",
        "Mass",
        "Control: normal-looking",
        "30 images of ",
        "30 patches of ",
    ):
        assert words in page.text
    assert page.text.index("Odd kind") < page.text.index("Control: normal-looking")
    assert "Masses" not in page.text


def test_images_alone_are_never_called_patches() -> None:
    """Nothing on the page of an evaluation without lesions speaks of patches or lesions."""
    groups = {name: {"image": splits["patient"]["all"]} for name, splits in build_detectors().items()}
    section = build_results_section("R", groups, titles=name_groups(GENERAL.reading), figures="of one run")
    page = build_sample(sections=(dataclasses.replace(section, terms=()),), provenance={})
    said = Page(build_report(page).split("</style>")[1].join(("<html><head>", ""))).text
    for words in (
        "images labelled positive",
        "same images, of one run",
        "30 images of 10 patients against 160 of 20",
    ):
        assert words in said
    for words in ("patch", "lesion", "seeds"):
        assert words not in said


@pytest.mark.parametrize(
    ("groups", "units"),
    [
        (["all"], "patches"),
        (["all", "mass", "normal_looking"], "patches"),
        (["image"], "images"),
        (["all", "image"], "patches and images"),
    ],
)
def test_what_is_compared_is_named(groups: list[str], units: str) -> None:
    assert describe_units(groups) == units


def test_the_highest_of_few_patients_is_not_bold() -> None:
    detectors = build_detectors()
    html = build_report(build_sample())
    assert html.count(" best") == 2 * 3  # both splits, three groups of lesions; none of the control
    for splits in detectors.values():
        for found in splits["patch"].values():
            found["n_positive_patients"] = 3
    section = build_results_section("Results", detectors)
    assert build_report(build_sample(sections=(section,))).count(" best") == 3


def test_metrics_without_splits_have_one_column_group() -> None:
    flat = {name: splits["patient"] for name, splits in build_detectors().items()}
    page = Page(build_report(build_sample(sections=(build_results_section("R", flat),))))
    assert sorted(page.values()) == sorted(collect_floats(flat))
    assert "Split by" not in page.text


def test_missing_combinations_and_intervals_are_said() -> None:
    detectors = build_detectors()
    del detectors["flat"]["patient"]["mass"]
    detectors["wei2018"]["patch"]["all"] |= {"auroc_ci95": None, "note": "no interval: too few patients"}
    page = Page(build_report(build_sample(sections=(build_results_section("R", detectors),))))
    assert "not evaluated" in page.text
    assert page.text.count("no interval: too few patients") == 1
    assert "all scores are equal: this detector tells nothing apart" in page.text


def test_nothing_is_fetched_from_anywhere() -> None:
    png = figure_png(plot_losses({0: [2.0, 1.0]}))
    pictured = Section("P", pictures=(Picture(png, "c", "a"),))
    page = Page(build_report(build_sample(sections=(build_results_section("R", build_detectors()), pictured))))
    loading = ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href", "style")
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name in loading:
            target = attrs.get(name)
            assert target is None or target.startswith(("#", "data:image/png;base64,")), (tag, name)
        assert not any(name.startswith("on") for name in attrs)
    assert "url(" not in page.text
    assert "@import" not in page.text
    policies = [attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_anchors_lead_somewhere() -> None:
    page = Page(build_report(build_sample(notices=("n",))))
    targets = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert targets == {f"#{name}" for name in ids}
    assert len(ids) == len(set(ids))


def test_hostile_words_are_only_words() -> None:
    png = figure_png(plot_losses({0: [1.0]}))
    groups = build_detectors()["wei2018"]["patch"]
    groups["all"]["note"] = HOSTILE
    section = Section(
        HOSTILE,
        paragraphs=(HOSTILE,),
        tables=(Table(HOSTILE, (HOSTILE,), ((HOSTILE,),)), MetricsTable(HOSTILE, {HOSTILE: {HOSTILE: groups["all"]}})),
        pictures=(Picture(png, HOSTILE, HOSTILE),),
        terms=((HOSTILE, HOSTILE),),
    )
    page = Page(
        build_report(Report(HOSTILE, HOSTILE, (section,), {HOSTILE: HOSTILE}, banners=(HOSTILE,), notices=(HOSTILE,)))
    )
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "onload"})
    assert sum(tag == "img" for tag, _ in page.tags) == 1
    assert not any(name == "onload" for _, attrs in page.tags for name in attrs)
    assert page.text.count(HOSTILE) >= 14
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == [HOSTILE]


def test_each_picture_is_there_once_with_its_words_and_number() -> None:
    pngs = [figure_png(plot_losses({seed: [2.0, 1.0 + seed]})) for seed in range(3)]
    pictures = [Picture(png, f"caption {k}", f"words {k}") for k, png in enumerate(pngs)]
    sections = (Section("A", pictures=tuple(pictures[:2])), Section("B", pictures=tuple(pictures[2:])))
    page = Page(build_report(build_sample(sections=sections)))
    shown = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [base64.b64decode((attrs["src"] or "").split(",")[1]) for attrs in shown] == pngs
    assert [attrs["alt"] for attrs in shown] == ["words 0", "words 1", "words 2"]
    assert {attrs["width"] for attrs in shown} == {"614"}  # 6.4 inches of 96 CSS pixels
    for k in range(3):
        assert f"Figure {k + 1}. caption {k}" in " ".join(page.text.split())


def test_the_answer_comes_first_and_nothing_given_is_lost() -> None:
    page = Page(build_report(build_sample(banners=("Synthetic data.",), notices=("One image was skipped.",))))
    text = " ".join(page.text.split())
    order = [text.index(words) for words in (NOTICE, "Synthetic data.", "The answer.", "AUROC is how often")]
    assert order == sorted(order)
    for words in ("One image was skipped.", "unary demo", "0, 1", "versions.numpy", "2.4.6", "none"):
        assert words in text
    for words in ("A learned detector that does not beat", "same advantage is hidden"):
        assert (words in text) == (words == "same advantage is hidden")  # explained only where it is shown


def test_plain_tables_show_numbers_right_and_in_full() -> None:
    table = Table("c", ("Name", "Count", "Loss"), (("a", 32412, 0.00123456), ("b", None, 0.5)))
    html = build_report(build_sample(sections=(Section("S", tables=(table,)),)))
    page = Page(html)
    assert page.values() == [32412, 0.00123456, 0.5]
    for words in ("32,412", "0.00123", "0.500", "\u2013"):
        assert f">{words}</td>" in html
    classes = [attrs.get("class") for tag, attrs in page.tags if tag == "th"]
    assert classes == [None, "number", "number"]


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(build_sample(), path)
    before = path.read_text(encoding="utf-8")
    broken = {"bad": {"all": {"auroc": "?"}}}
    with pytest.raises((TypeError, KeyError)):
        write_report(build_sample(sections=(Section("S", tables=(MetricsTable("c", broken),)),)), path)
    assert path.read_text(encoding="utf-8") == before
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
