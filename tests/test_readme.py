"""README: short before its first command, and its picture's caption made of what the picture shows."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from unary.datasets.phantom import PhantomConfig, build_phantom

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("pictures")


def test_the_caption_is_that_which_the_picture_was_made_with() -> None:
    (path, caption), *more = re.findall(r"!\[[^\]]+\]\((docs/images/[^)]+)\)\s+\*([^*]+)\*", README)
    assert not more
    with PIL.Image.open(ROOT / path) as picture:
        assert picture.info["Description"] == " ".join(caption.split())
    assert (ROOT / path).stat().st_size < 500_000


def test_every_picture_is_shown_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        name for page in pages for name in re.findall(r"\]\([^)]*images/([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    assert shown == {path.name for path in (ROOT / "docs/images").iterdir()}


def test_the_first_command_comes_soon_and_says_where_the_program_is() -> None:
    before, _, after = README.partition("```")
    assert len(before.splitlines()) < 50
    assert ".venv/bin/unary" in after
    assert ". .venv/bin/activate" in after


def test_a_caption_counts_what_was_found(pictures: Any) -> None:
    phantom = build_phantom(PhantomConfig(rows=384, cols=320), rng=np.random.default_rng(1), lesions="calcifications")
    (r0, c0), (r1, c1) = next(lesion.points for lesion in phantom.lesions if lesion.kind == "box")
    inside, outside = ((r0 + r1) // 2, (c0 + c1) // 2), (r0 - 90, c0)
    assert pictures.find_planted(inside, phantom) == "cluster"
    assert pictures.find_planted(outside, phantom) is None

    def show(*peaks: Any) -> Any:
        return SimpleNamespace(
            phantom=phantom, detection=SimpleNamespace(findings=[SimpleNamespace(peak=p) for p in peaks])
        )

    words = pictures.write_caption([show(inside, outside, outside), show(inside)])
    assert words.startswith(
        "4 findings in four views of a synthetic patient: 2 on the planted cluster of calcifications, "
    )
    assert "none on the planted mass and 2 on nothing." in words


def test_the_caption_is_in_the_picture(pictures: Any, tmp_path: Path) -> None:
    pictures.write_picture(tmp_path / "out.png", Figure(figsize=(2, 1)), "Two of a kind.")
    with PIL.Image.open(tmp_path / "out.png") as picture:
        assert picture.info["Description"] == "Two of a kind."
        assert picture.size == (220, 110)
