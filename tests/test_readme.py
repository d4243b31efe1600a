"""The README's pictures and their captions: both from one run of the demonstration."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("pictures")


def test_captions_are_those_that_the_pictures_were_made_with() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"!\[([^\]]+)\]\((docs/images/[^)]+)\)\s+\*([^*]+)\*", text)
    pages = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    elsewhere = {f"docs/{path}" for path in re.findall(r"!\[[^\]]+\]\((images/[^)]+)\)", pages)}
    there = {f"docs/images/{path.name}" for path in (ROOT / "docs/images").iterdir()}
    assert {path for _, path, _ in found} == there - elsewhere
    assert elsewhere <= there
    for alt, path, caption in found:
        with PIL.Image.open(ROOT / path) as picture:
            words = picture.info["Description"]
        assert words in " ".join(caption.split())
        assert alt.split(":")[0].rstrip(".") in words  # which says no other number of findings


@pytest.mark.parametrize(
    ("count", "targets", "words"),
    [
        (0, {}, "0 findings on a synthetic mammogram, outlined and as a heat map."),
        (
            1,
            {1: "0:mass"},
            "1 finding on a synthetic mammogram, outlined and as a heat map: finding 1 lies on a planted mass.",
        ),
        (1, {}, "1 finding on a synthetic mammogram, outlined and as a heat map: finding 1 on none."),
        (
            3,
            {1: "2:calcification 0:mass", 9: "1:mass"},
            "3 findings on a synthetic mammogram, outlined and as a heat map: finding 1 lies on a planted "
            "cluster of calcifications and findings 2 and 3 on none.",
        ),
    ],
)
def test_captions_count_what_was_found(
    count: int, targets: dict[int, str], words: str, pictures: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "detections" / "P1"
    folder.mkdir(parents=True)
    (tmp_path / "evaluation").mkdir()
    document = {"findings": [{"rank": rank} for rank in range(1, count + 1)]}
    (folder / "result.json").write_text(json.dumps(document))
    lesions = ["P1,0,mass,0", "P1,1,mass,0", "P1,2,calcification,1", "P2,0,mass,0"]
    (tmp_path / "evaluation" / "lesions.csv").write_text("\n".join(["image_id,target,group,cluster", *lesions]))
    rows = [f"P1,{rank},{targets.get(rank, '')}" for rank in range(1, 12)] + ["P2,1,0:mass", "P2,2,0:mass"]
    (tmp_path / "evaluation" / "findings.csv").write_text("\n".join(["image_id,rank,targets", *rows]))
    assert pictures.caption_detection(tmp_path, folder) == words


def test_the_caption_is_in_the_picture(pictures: Any, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / "a.png")
    pictures.write_picture(tmp_path / "out.png", [tmp_path / "a.png", tmp_path / "a.png"], "Two of a kind.")
    with PIL.Image.open(tmp_path / "out.png") as picture:
        assert picture.info["Description"] == "Two of a kind."
        assert picture.size == (40 + 24 + 40, 30)
