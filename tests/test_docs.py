"""The documentation: links lead somewhere, figures have a source, options are described, messages are real."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.evaluation.evaluate import evaluate
from unary.models.bundle import read_model
from unary.outputs.evaluation_report import write_evaluation

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])


def load(name: str) -> Any:
    """Return one of the modules that the site is built with."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "_site")


def find_links(text: str) -> list[str]:
    """Return where the links and pictures of a page lead, but for the web; code does not count."""
    prose = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", text)
    return [
        link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link and not link.startswith("mailto:")
    ]


def find_anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"(?s)```.*?```", "", text)
    titles = [re.sub(r"[`*]", "", title) for title in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def find_dead(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere."""
    dead = []
    for link in find_links(page.read_text(encoding="utf-8")):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        there = target.exists() and target.is_relative_to(ROOT)
        if not there or (anchor and anchor not in find_anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert find_dead(page) == []


def test_a_dead_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A title: `code`, and more\n```\n# no title\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#a-title-code-and-more) [b](other.md#no-title) [c](gone.md) [d](https://x.y) `[e](f.md)`"
    )
    assert find_dead(page) == ["other.md#no-title", "gone.md"]


# --- figures ----------------------------------------------------------------------------------------------------------

_COMMAND = re.compile(
    r"(python3? benchmarks/|unary (reproduce|bench|fit|evaluate|detect)|make (demo|bench)|\.ci/run|kills\.py)"
)
_COMMIT = re.compile(r"`[0-9a-f]{7}`")
_FIGURE = re.compile(r"(?<![\w.])\d*\.\d{2,}")


def find_unsourced(text: str) -> list[str]:
    """Return the sections of a results page with figures that neither have, nor follow, a command and a commit.

    The head of a page, up to its first section, may name them for all.
    """
    parts = re.split(r"(?m)^#{2,} ", text)
    head, missing = parts[0], []
    for part in parts:
        if _FIGURE.search(part) and not all(rule.search(head) or rule.search(part) for rule in (_COMMAND, _COMMIT)):
            missing.append(part.partition("\n")[0])
    return missing


@pytest.mark.parametrize("page", sorted((DOCS / "results").glob("*.md")), ids=lambda page: page.stem)
def test_every_figure_has_a_command_and_a_commit(page: Path) -> None:
    assert find_unsourced(page.read_text(encoding="utf-8")) == []


def test_a_figure_without_command_or_commit_is_found() -> None:
    page = "# A\n{}\n## B\nAUROC 0.91\n## C\n`make bench` at `abcdef0`: 0.52\n## D\nno figure\n"
    assert find_unsourced(page.format("")) == ["B"]
    assert find_unsourced(page.format("`unary bench --data X`")) == ["B"]
    assert find_unsourced(page.format("`unary bench --data X`, commit `abcdef0`")) == []


def test_every_row_of_the_results_leads_to_its_page() -> None:
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and _FIGURE.search(line)]
    assert len(rows) >= 10
    assert [row for row in rows if not re.search(r"\]\((results/)?\w+\.md", row)] == []


def test_tables_are_those_that_the_records_give() -> None:
    tables = load("results_tables")
    for page in tables.find_pages():
        text = page.read_text(encoding="utf-8")
        assert tables.fill_page(text) == text, f"{page}: run python docs/_site/results_tables.py"
    used = {name for page in tables.find_pages() for name in re.findall(r"<!-- from (\w+)\.json", page.read_text())}
    assert used == {path.stem for path in tables.DATA.glob("*.json")}
    for name in used:
        record = tables.read_record(name)
        assert _COMMAND.search(record["command"])
        assert _COMMIT.fullmatch(f"`{record['commit']}`")


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_option_is_described() -> None:
    commands = load("command_reference")
    missing = [
        f"{' '.join(part.words)} {commands.name(option)}"
        for part in commands.find_parts()
        for option in commands.find_options(part.parser)
        if not option.help
    ]
    missing += [
        f"{name} {commands.name(option)}"
        for name, _, options in commands.find_detector_options()
        for option in options
        if not option.help
    ]
    assert missing == []
    assert all(part.help for part in commands.find_parts() if len(part.words) == 1)


def test_commands_of_the_pages_exist() -> None:
    commands = load("command_reference")
    known: dict[str, set[str]] = {}
    for part in commands.find_parts():
        options = {flag for option in commands.find_options(part.parser) for flag in option.option_strings}
        known.setdefault(part.words[0], {"--help"}).update(options)
    for _, _, options in commands.find_detector_options():
        known["fit"].update(flag for option in options for flag in option.option_strings)
    odd = []
    for page in PAGES:
        if page.name in ("CHANGELOG.md", "log.md"):
            continue
        for block in re.findall(r"(?ms)^```\n(.*?)^```", page.read_text(encoding="utf-8")):
            for line in re.findall(r"(?m)^unary (.*)$", block.replace("\\\n", " ")):
                command, *rest = line.partition("#")[0].split()
                unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - known.get(command, set())
                if command not in known or unknown:
                    odd.append(f"{page.name}: {line}")
    assert odd == []


# --- messages and formats ---------------------------------------------------------------------------------------------


def test_messages_are_those_of_the_source() -> None:
    messages = load("messages")
    text = messages.PAGE.read_text(encoding="utf-8")
    assert len(messages.find_quotes(text)) >= 20
    assert messages.find_unknown(text) == []
    assert messages.find_unknown("### `no such words are in any message`\n") == ["no such words are in any message"]


def find_keys(heading: str) -> set[str]:
    """Return the names in the first table below a heading of the page on file formats."""
    text = (DOCS / "reference" / "formats.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2]
    table = section[section.index("|---") :].partition("\n\n")[0]
    return {name for row in table.splitlines()[1:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_file_formats_are_described_whole(model_folder: Path, phantoms: Any, tmp_path: Path) -> None:
    model = read_model(model_folder)
    assert find_keys("A model") == set(json.loads((model_folder / "model.json").read_text()))
    shown = [row.path for row in phantoms.rows if row.label == "positive"][:1]
    detect_files(model, shown, tmp_path / "found", DetectConfig(), model_folder=model_folder, progress=False)
    result = json.loads(next((tmp_path / "found").glob("*/result.json")).read_text())
    assert find_keys("`result.json`") == set(result)
    kept = [[row for row in phantoms.rows if row.label == label][:2] for label in ("negative", "positive")]
    others = phantoms.select(tuple(kept[0] + kept[1]))
    evaluation = evaluate(model, others, allow_seen=True, progress=False)
    write_evaluation(evaluation, model, tmp_path / "evaluation", progress=False)
    columns = pyarrow.parquet.read_schema(tmp_path / "evaluation" / "scores.parquet").names
    named = find_keys("`scores.parquet`")
    assert {re.sub(r"^(group|score)_.*", r"\1_NAME", column) for column in columns} == named
    assert set(json.loads((tmp_path / "evaluation" / "metrics.json").read_text())) == {"detectors", "meta", "detection"}


def test_the_changelog_keeps_to_its_form():
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in versions[1:])
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
