"""The pictures of README.md, from a folder of `unary demo`: each with a caption made of the data that it shows.

    python benchmarks/pictures.py DEMO

writes ``docs/images/*.png``, each with its caption inside (PNG, "Description"), and prints them; a test holds the
README to these words.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo

from unary.outputs.leads import join_words
from unary.records import count_words

FOLDER = Path(__file__).parents[1] / "docs" / "images"
_GAP_PX, _HEIGHT_PX = 24, 760
_PATCHES = "Patches and error maps"  # as the report calls the figure


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="what `unary demo` wrote")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    for name, (parts, caption) in {
        "demo": build_patches(options.demo),
        "detection": build_detection(options.demo),
    }.items():
        path = options.out / f"{name}.png"
        write_picture(path, parts, caption)
        print(f"{path}: {caption}")


def build_detection(demo: Path) -> tuple[list[Path], str]:
    """Findings and heat map of the first image, not of one that was chosen, and what they are by the evaluation."""
    first = min(path.parent for path in (demo / "detections").glob("*/heat_map.png"))
    return [first / "findings.png", first / "heat_map.png"], caption_detection(demo, first)


def caption_detection(demo: Path, folder: Path) -> str:
    """Return how many findings there are, which lie on a planted lesion, and which on none."""
    hits, ranks = list_hits(demo, folder), [finding["rank"] for finding in read_findings(folder)]
    said = [f"finding {rank} lies on a planted {kind}" for rank, kind in hits.items() if rank in ranks]
    false = [str(rank) for rank in ranks if rank not in hits]
    if false:
        said.append(f"{'finding' if len(false) == 1 else 'findings'} {join_words(false)} on none")
    counted = count_words(len(ranks), "finding")
    words = f"{counted} on a synthetic mammogram, outlined and as a heat map"
    return f"{words}: {join_words(said)}." if said else f"{words}."


def read_findings(folder: Path) -> list[dict[str, float]]:
    """Return the findings of one image, as ``result.json`` has them."""
    found: list[dict[str, float]] = json.loads((folder / "result.json").read_text(encoding="utf-8"))["findings"]
    return found


def list_hits(demo: Path, folder: Path) -> dict[int, str]:
    """Return the kind of lesion by the rank of the finding on it, as the evaluation of the same image says."""
    ranks = {finding["rank"] for finding in read_findings(folder)}
    kinds = {
        row["target"]: f"cluster of {row['group']}s" if row["cluster"] == "1" else row["group"]
        for row in read_rows(demo, "lesions", folder)
    }
    found = read_rows(demo, "findings", folder)
    return {
        int(row["rank"]): kinds[row["targets"].split(":")[0]]
        for row in found
        if row["targets"] and int(row["rank"]) in ranks
    }


def read_rows(demo: Path, table: str, folder: Path) -> list[dict[str, str]]:
    """Return the rows of an image in a table of the evaluation."""
    with (demo / "evaluation" / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["image_id"] == folder.name]


def build_patches(demo: Path) -> tuple[list[Path], str]:
    """The paper's figure 1 redrawn: patches, reconstructions and errors."""
    meta = json.loads((demo / "metrics.json").read_text(encoding="utf-8"))["meta"]
    epochs = meta["config"]["training"]["epochs"]
    titles = re.findall(r'alt="([^"]*)', (demo / "report.html").read_text(encoding="utf-8"))
    number = max(place for place, title in enumerate(titles, 1) if title == _PATCHES)  # of tissue, the second reading
    return [demo / "figures" / f"figure-{number}.png"], (
        f"Patches of synthetic mammograms, their reconstructions by the paper's network after {epochs} of 500 epochs, "
        "and what it fails to reconstruct."
    )


def write_picture(path: Path, parts: Sequence[Path], caption: str) -> None:
    """Put pictures beside each other, and write the caption into the file."""
    opened = [Picture.open(part).convert("RGB") for part in parts]
    height = min(_HEIGHT_PX, *(one.height for one in opened)) if len(opened) > 1 else min(_HEIGHT_PX, opened[0].height)
    sized = [one.resize((round(one.width * height / one.height), height), Picture.Resampling.LANCZOS) for one in opened]
    width = sum(one.width for one in sized) + _GAP_PX * (len(sized) - 1)
    whole = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for one in sized:
        whole[:, left : left + one.width] = np.asarray(one)
        left += one.width + _GAP_PX
    info = PngInfo()
    info.add_text("Description", caption)
    Picture.fromarray(whole).save(path, optimize=True, pnginfo=info)


if __name__ == "__main__":
    main()
