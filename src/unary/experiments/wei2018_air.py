"""What the negatives of the paper's experiment are made of: air, skin line or tissue; and how many each grid gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.intervals import Estimate, Run, estimate_over_seeds
from unary.evaluation.metrics import ALL, ScoreTable
from unary.patches.bright_region import find_bright_region
from unary.patches.collection import Collection
from unary.patches.grid import GridConfig, count_pixels, tissue_origins
from unary.patches.patch_set import PatchSet
from unary.records import Manifest

AIR, SKIN, FULL = "air", "skin line", "tissue"
PARTS = (AIR, SKIN, FULL)
ANY_TISSUE = "any tissue"
"""The skin line and tissue together: all that is not air."""


@dataclass(frozen=True)
class GridCount:
    """How many patches, or lesions, one way of counting gives in so many images."""

    name: str
    count: int
    images: int


def measure_tissue(patches: PatchSet, *, masked: bool) -> NDArray[np.float64]:
    """Return the share of each patch that is tissue, shape (n,), in [0, 1].

    Tissue is what the images' masks say, where they were ``masked``, else what `find_bright_region` finds in them.
    """
    share, size = np.empty(len(patches)), patches.size_px
    for pixels, mask, origins, which in patches.views():
        tissue = mask if masked else find_bright_region(pixels, ~mask)
        share[which] = count_pixels(tissue, origins, size_px=size) / size**2
    return share


def name_parts(tissue: NDArray[np.float64]) -> NDArray[np.str_]:
    """Return the part of the image that a patch shows, one of `PARTS`, by its share of tissue, shape (n,).

    >>> name_parts(np.array([0.0, 0.3, 1.0])).tolist()
    ['air', 'skin line', 'tissue']
    """
    return np.select([tissue == 0, tissue < 1], [AIR, SKIN], FULL)


def compare_parts(
    tables: Sequence[ScoreTable], tissue: Sequence[NDArray[np.float64]], *, resamples: int
) -> dict[str, dict[str, Estimate]]:
    """Return the AUROC of all lesions against a part of the negatives, ``{NAME: {PART: estimate}}``.

    The parts are `PARTS` and `ANY_TISSUE`; absent is one without a negative in some table. The AUROC against any
    mixture of parts is the same mixture of these, since it is a mean over pairs of a positive and a negative.
    """
    found: dict[str, dict[str, Estimate]] = {}
    for part in (*PARTS, ANY_TISSUE):
        chosen = []
        for table, share in zip(tables, tissue, strict=True):
            positive, negative = table.roles(ALL)
            named = name_parts(share)
            chosen.append((positive, negative & ((named != AIR) if part == ANY_TISSUE else (named == part))))
        if not all(negative.any() for _, negative in chosen):
            continue
        for name in tables[0].scores:
            runs = []
            for table, (positive, negative) in zip(tables, chosen, strict=True):
                kept = positive | negative
                runs.append(Run(table.scores[name][kept], positive[kept], table.patient[kept]))
            rng = np.random.default_rng(0)
            found.setdefault(name, {})[part] = estimate_over_seeds(runs, rng=rng, resamples=resamples)
    return found


def count_grids(negatives: PatchSet, *, stride_px: int) -> tuple[GridCount, ...]:
    """Count the patches of normal images in several grids, of whole images, tissue and nothing but tissue.

    ``negatives`` are patches of whole images. Grids without overlap are laid at ``stride_px``, overlapping ones at half
    of a patch.
    """
    size = negatives.size_px
    half = max(size // 2, 1)
    ways = {
        f"whole image, every {stride_px} px": GridConfig(size, stride_px, 0.0),
        f"half tissue or more, every {stride_px} px": GridConfig(size, stride_px, 0.5),
        f"nothing but tissue, every {stride_px} px": GridConfig(size, stride_px, 1.0),
        f"nothing but tissue, every {half} px": GridConfig(size, half, 1.0),
        f"half tissue or more, every {half} px": GridConfig(size, half, 0.5),
        f"whole image, every {half} px": GridConfig(size, half, 0.0),
    }
    counts, images = dict.fromkeys(ways, 0), 0
    for pixels, mask, *_ in negatives.views():
        tissue, images = find_bright_region(pixels, ~mask), images + 1
        for name, grid in ways.items():
            counts[name] += len(tissue_origins(mask if grid.min_tissue == 0 else tissue, grid))
    return tuple(GridCount(name, count, images) for name, count in counts.items())


def count_positives(manifest: Manifest, collections: Mapping[str, Collection]) -> tuple[GridCount, ...]:
    """Count what may be called a positive in BI-RADS 5 images: patches of each reading, and lesions listed."""
    found = []
    images = {row.image_id for row in manifest.rows if row.assessment == "5"}
    for name, collection in collections.items():
        positive = (collection.column("assessment") == "5") & collection.lesional
        title = f"patches of a grid that contain a lesion, {name.replace('_', ' ')}"
        found.append(GridCount(title, int(positive.sum()), len(images)))
    listed = [lesion for lesion in manifest.lesions if lesion.image_id in images]
    return (*found, GridCount("regions of interest listed, one patch each", len(listed), len(images)))
