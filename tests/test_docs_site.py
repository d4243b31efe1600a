"""The site is built whole: every page in it, no warning, nothing from outside, and it fits a telephone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build pages without running their cells, warnings as errors."""
    options = ["-q", "-W", "--keep-going", "-n", "-D", "nb_execution_mode=off", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *options, str(docs), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=dict(os.environ))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site."""
    pytest.importorskip("myst_nb", reason="the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there_and_asks_nothing_of_the_web(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert pages <= built
    for page in site.rglob("*.html"):
        asked = re.findall(r'<(?:script|img|link|iframe)[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"', page.read_text())
        assert asked == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_holds_commands_names_and_fields(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "--operating-point" in commands
    assert 'id="unary-fit-detector-fusion"' in commands
    names = (site / "reference" / "interface.html").read_text(encoding="utf-8")
    assert 'id="unary.fit"' in names
    assert 'id="unary.detectors.protocol.Detector.examine"' in names
    assert "diameter_mm" in (site / "reference" / "formats.html").read_text(encoding="utf-8")


def test_a_page_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb", reason="the extra docs is not installed")
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copytree(ROOT / "docs" / "_site", docs / "_site")
    shutil.copytree(ROOT / "docs" / "_static", docs / "_static")
    shutil.copy(ROOT / "docs" / "conf.py", docs / "conf.py")
    (docs / "index.md").write_text("# Title\n\n[gone](gone.md)\n")
    done = build(docs, tmp_path / "out")
    assert done.returncode != 0
    assert "gone.md" in done.stderr


@pytest.mark.parametrize("width", [1400, 400])
def test_pages_fit(width: int, site: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index", "results", "reference/commands", "tutorials/first_findings", "results/nested"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    page.close()
    assert all(url.startswith(("file:", "data:")) for url in asked)
