"""How often is an inverted or framed film noted, and how often one as it should be?

    python benchmarks/inverted.py FOLDER [FOLDER ...]

Reads every image of each folder; prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unary.images.reading import is_image_file, read_image
from unary.patches.bright_region import describe_tissue


def vary(pixels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The picture as it is, inverted, and inside frames 2 % wide."""
    low, high = pixels.min(), pixels.max()
    width = max(8, round(0.02 * max(pixels.shape)))
    inverted = high - (pixels - low)
    return {
        "as it is": pixels,
        "inverted": inverted,
        "in a white frame": np.pad(pixels, width, constant_values=high),
        "inverted, in a black frame": np.pad(inverted, width, constant_values=low),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    counts = {}
    for folder in parser.parse_args().folders:
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and is_image_file(path)]
        noted: Counter[str] = Counter()
        for path in tqdm(paths, desc=folder.name):
            image = read_image(path)
            for name, pixels in vary(image.pixels).items():
                noted[name] += bool(describe_tissue(pixels, image.padding if pixels.shape == image.shape else None))
        counts[str(folder)] = {"images": len(paths), **noted}
        for name, count in counts[str(folder)].items():
            print(f"{folder.name:20} {name:30} {count}")
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
