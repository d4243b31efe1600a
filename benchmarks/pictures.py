"""The picture of README.md: four views of a phantom with findings, the default's map, and the map of the paper's score.

    python benchmarks/pictures.py [--out docs/images] [--normals 12] [--seed 5]

Fits the default detector and the network of Wei et al. 2018 on phantoms without lesions, draws one more patient with a
cluster of calcifications in one breast and a mass in the other, and writes ``findings.png`` with its caption inside
(PNG, "Description"); a test holds README.md to these words. Some five minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo

import unary
from unary.datasets.phantom import Phantom, PhantomConfig, build_phantom
from unary.datasets.phantom_tissue import draw_traits
from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.fusion import Fusion, FusionConfig
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.models.bundle import Model
from unary.outputs.leads import join_words
from unary.records import Detection, Image, Lesion, count_words
from unary.training.engine import StepsConfig

matplotlib.use("Agg")

FOLDER = Path(__file__).parents[1] / "docs" / "images"
VIEWS = (("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO"))  # as they are hung
PLANTED = {"R": "mass", "L": "calcifications"}
STEPS, EPOCHS = 600, 30


@dataclass(frozen=True, eq=False)
class Shown:
    """One view: what was drawn, what was found in it, and both maps on its pixels."""

    phantom: Phantom
    detection: Detection
    default_map: NDArray[np.float32]
    paper_map: NDArray[np.float32]


def main() -> None:
    """Draw the picture, and print its caption."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--normals", type=int, default=12, help="patients to learn from, two views each")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    rng, config = np.random.default_rng(options.seed), PhantomConfig()
    default, paper = fit_both(draw_normals(options.normals, config, rng))
    traits = draw_traits(rng)
    phantoms = [
        build_phantom(config, rng=rng, lesions=PLANTED[side], view=view, laterality=side, traits=traits)
        for side, view in VIEWS
    ]
    views = [examine(phantom, default, paper) for phantom in phantoms]
    caption = write_caption(views)
    write_picture(options.out / "findings.png", draw_views(views), caption)
    print(caption)


def draw_normals(patients: int, config: PhantomConfig, rng: np.random.Generator) -> unary.Manifest:
    """Return two views of each of so many patients without a lesion."""
    images, names = [], []
    for number in range(patients):
        traits, side = draw_traits(rng), ("L", "R")[number % 2]
        for view in ("CC", "MLO"):
            phantom = build_phantom(config, rng=rng, view=view, laterality=side, traits=traits)
            images.append(Image.from_array(phantom.pixels, spacing_mm=phantom.spacing_mm, value_range=(0, 4095)))
            names.append(f"P{number:03d}")
    return unary.build_manifest(images, patients=names, labels=["negative"] * len(images))


def fit_both(normals: unary.Manifest) -> tuple[Model, Model]:
    """Return the default, with fewer steps, and the paper's network, with fewer epochs, of the same images."""
    blind_spot = BlindSpotConfig(training=StepsConfig(STEPS, batch_size=8, learning_rate=8e-3))
    default = unary.fit(normals, detector=Fusion(FusionConfig(blind_spot=blind_spot)))
    training = TrainingConfig(epochs=EPOCHS, batch_size=50)
    paper = unary.fit(normals, unary.FitConfig(stride_px=64), detector=Wei2018(Wei2018Config(training=training)))
    return default, paper


def examine(phantom: Phantom, default: Model, paper: Model) -> Shown:
    """Return what both models say of one view."""
    image = Image.from_array(phantom.pixels, spacing_mm=phantom.spacing_mm, value_range=(0, 4095))
    maps = [unary.score(model, image).stored_map for model in (default, paper)]
    return Shown(phantom, unary.detect(default, image, operating_point=1), *maps)


def write_caption(views: Sequence[Shown]) -> str:
    """Return what the picture shows, by what it was made of: which findings lie on a lesion, and which on nothing."""
    hits = [[find_planted(finding.peak, view.phantom) for finding in view.detection.findings] for view in views]
    on = {kind: sum(row.count(kind) for row in hits) for kind in ("cluster", "mass")}
    counted = count_words(sum(map(len, hits)), "finding")
    said = [
        f"{number or 'none'} on the planted {'cluster of calcifications' if kind == 'cluster' else kind}"
        for kind, number in on.items()
    ]
    said.append(f"{sum(row.count(None) for row in hits) or 'none'} on nothing")
    return (
        f"{counted} in four views of a synthetic patient: {join_words(said)}. Below, how far each place departs from "
        f"normal by the default detector, and by the score of Wei et al. 2018 after {EPOCHS} of 500 epochs. No patient "
        "was imaged."
    )


def find_planted(place: tuple[int, int], phantom: Phantom, *, around_px: int = 15) -> str | None:
    """Return which lesion holds a place, give or take some pixels: a cluster, a mass, or None."""
    for lesion in phantom.lesions:
        if lesion.kind in ("box", "contour"):
            (r0, c0), (r1, c1) = corners(lesion)
            if r0 - around_px <= place[0] < r1 + around_px and c0 - around_px <= place[1] < c1 + around_px:
                return "mass" if lesion.name == "Mass" else "cluster"
    return None


def corners(lesion: Lesion) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the smallest box around a lesion's points."""
    rows, cols = zip(*lesion.points, strict=True)
    return (min(rows), min(cols)), (max(rows), max(cols))


def draw_views(views: Sequence[Shown]) -> Figure:
    """Draw three rows of four views: findings, the default's map, the paper's map, each map on one scale."""
    figure = Figure(figsize=(9.6, 8.6), layout="constrained", facecolor="white")
    axes = figure.subplots(3, len(views))
    tops = [max(np.nanpercentile(maps, 99.98) for maps in row) for row in zip(*map(list_maps, views), strict=True)]
    for column, view in enumerate(views):
        phantom, (default, paper) = view.phantom, list_maps(view)
        axes[0, column].imshow(phantom.pixels, cmap="gray", vmin=0, vmax=float(np.percentile(phantom.pixels, 99.9)))
        for row, (values, top) in enumerate(zip((default, paper), tops, strict=True), 1):
            axes[row, column].imshow(np.where(phantom.mask, np.nan_to_num(values), 0), cmap="inferno", vmin=0, vmax=top)
        axes[0, column].set_title(f"{phantom.laterality} {phantom.view}", fontsize=10)
        mark(axes[:, column], view)
    for row, name in enumerate(("findings", "the default's map", "Wei et al. 2018")):
        axes[row, 0].set_ylabel(name, fontsize=10)
    for each in axes.flat:
        each.set_xticks([])
        each.set_yticks([])
    for row in axes:  # what no view shows tissue in is left out
        shown = np.logical_or.reduce([view.phantom.mask.any(axis=1) for view in views]).nonzero()[0]
        for each in row:
            each.set_ylim(shown[-1] + 20, max(0, shown[0] - 20))
    return figure


def list_maps(view: Shown) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both maps."""
    return view.default_map, view.paper_map


def mark(axes: Any, view: Shown) -> None:
    """Outline findings in the image, and what was planted in all three pictures of a view."""
    for finding in view.detection.findings:
        rows, cols = zip(*finding.outline, finding.outline[0], strict=True)
        axes[0].plot(cols, rows, color="#ff9d2e", linewidth=2)
        axes[0].annotate(
            str(finding.rank),
            (max(cols), min(rows)),
            xytext=(3, 3),
            textcoords="offset points",
            color="#ff9d2e",
            size=11,
            weight="bold",
        )
    for lesion in view.phantom.lesions:
        if lesion.kind in ("box", "contour"):
            (r0, c0), (r1, c1) = corners(lesion)
            r0, c0, r1, c1 = r0 - 20, c0 - 20, r1 + 20, c1 + 20
            for each in axes:
                each.plot(
                    [c0, c1, c1, c0, c0], [r0, r0, r1, r1, r0], color="#4fc3f7", linewidth=0.9, linestyle=(0, (4, 3))
                )


def write_picture(path: Path, figure: Figure, caption: str) -> None:
    """Write a figure as PNG of 256 colours, with its caption inside."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    info = PngInfo()
    info.add_text("Description", caption)
    picture = Picture.open(held).convert("RGB").quantize(256, dither=Picture.Dither.NONE)
    picture.save(path, optimize=True, pnginfo=info)


if __name__ == "__main__":
    main()
