"""The tutorials run as they stand, and print what the site shows."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "docs" / "_site"
PAGES = sorted(path.stem for path in (FOLDER.parent / "tutorials").glob("*.md"))


@pytest.fixture
def tutorials(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("myst_nb", reason="the extra docs is not installed")
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("tutorials")


def test_all_pages_are_run(tutorials: Any) -> None:
    assert [path.stem for path in tutorials.find_tutorials()] == PAGES
    assert sorted(path.stem for path in tutorials.OUTPUTS.iterdir()) == PAGES


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages that run notebooks
@pytest.mark.parametrize("page", PAGES)
def test_a_tutorial_prints_what_it_did(page: str, tutorials: Any) -> None:
    printed = tutorials.run_tutorial(tutorials.TUTORIALS / f"{page}.md")
    before = (tutorials.OUTPUTS / f"{page}.txt").read_text(encoding="utf-8")
    changed = tutorials.find_change(before, printed)
    assert changed is None, f"{changed}; if that is meant: python docs/_site/tutorials.py {page}"


def test_a_change_is_found(tutorials: Any) -> None:
    before = "score 20.0, p = 0.25\nfindings: 2"
    assert tutorials.find_change(before, before.replace("20.0", "20.1")) is None
    assert "findings: 3" in tutorials.find_change(before, before.replace("findings: 2", "findings: 3"))
    assert "0.31" in tutorials.find_change(before, before.replace("0.25", "0.31"))
    assert "lines" in tutorials.find_change(before, f"{before}\nmore")


def test_a_cell_that_fails_fails(tutorials: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n```{code-cell} ipython3\n1 / 0\n```\n"
    )
    with pytest.raises(Exception, match="ZeroDivisionError"):
        tutorials.run_tutorial(page)
