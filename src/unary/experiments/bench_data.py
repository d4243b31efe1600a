"""What the bench judges detectors on: patches at two resolutions, lesion groups, folds over patients."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unary.datasets.splits import require_disjoint
from unary.errors import ManifestError, SplitError
from unary.evaluation.metrics import NORMAL_LOOKING
from unary.patches.collection import Collection, collect_patches, resample_collection
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.records import Manifest

logger = logging.getLogger(__name__)

COARSE_SPACING_MM = 0.14
COARSEST_FINE_SPACING_MM = 0.105  # above it a coarse grid would save less than half of the pixels
_ALIKE = 1.05  # largest ratio between the pixel spacings of images that one size of patch serves
SIZE_LIMITS_MM = {"calcification": (0.5, 1.0), "mass": (15.0, 30.0)}


@dataclass(frozen=True, eq=False)
class BenchData:
    """The same patches, in the same order, at two resolutions.

    Attributes
    ----------
    fine
        On the stored grid, as in the paper.
    coarse
        At 0.14 mm per pixel; the same object as ``fine`` where the stored spacing is unknown, differs between images,
        or is above 0.105 mm. What is known of a patch is the same in both.
    """

    fine: Collection
    coarse: Collection

    def __len__(self) -> int:
        return len(self.fine)

    @property
    def data_hash(self) -> str:
        """SHA-256 over pixels and places of both."""
        return hashlib.sha256((self.fine.data_hash + self.coarse.data_hash).encode()).hexdigest()

    @cached_property
    def has_birads(self) -> bool:
        """Whether any image states its BI-RADS category."""
        return any(row.birads is not None for row in self.fine.rows)

    @cached_property
    def _in_normal_image(self) -> NDArray[np.bool_]:
        if self.has_birads:
            normal: NDArray[np.bool_] = self.fine.column("birads") == "1"
            return normal
        free = np.bincount(self.fine.image, weights=self.fine.touches, minlength=len(self.fine.rows)) == 0
        spared: NDArray[np.bool_] = (self.fine.column("label") == "negative") & free[self.fine.image]
        return spared

    @cached_property
    def normal(self) -> NDArray[np.bool_]:
        """Shape (n,), bool: touches no lesion, in an image of BI-RADS 1.

        Where no image states a BI-RADS category: in an image labelled negative without any lesion.
        """
        normal: NDArray[np.bool_] = self._in_normal_image & ~self.fine.touches
        return normal

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """Shape (n,), bool: contains a lesion, benign or malignant, in an image that is not one of the normals."""
        positive: NDArray[np.bool_] = self.fine.lesional & ~self._in_normal_image
        return positive

    @cached_property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Membership by group, shape (n,) each, bool; subsets of the positives, and the control ``normal_looking``.

        Calcifications are divided by the BI-RADS category of their image where there is one; both kinds of lesion
        also by size, points counting as the smallest, where the pixel spacing is known.
        """
        contains = {name: self.fine.contains[name] & self.positive for name in SIZE_LIMITS_MM}
        if self.has_birads:
            birads = self.fine.column("birads")
            category = birads.astype("U1")  # 4a, 4b and 4c are all 4
            groups = {
                "calcification_birads5": contains["calcification"] & (category == "5"),
                "calcification_birads2_4": contains["calcification"] & np.isin(category, ["2", "3", "4"]),
            }
        else:
            groups = {"calcification": contains["calcification"]}
        groups["mass"] = contains["mass"]
        groups[NORMAL_LOOKING] = self.fine.normal_looking & ~self._in_normal_image
        for kind, (low, high) in SIZE_LIMITS_MM.items():
            sizes = self.fine.sizes_mm[kind]  # NaN compares as False
            below, between, above = name_size_groups(kind)
            groups[below] = contains[kind] & (sizes < low)
            groups[between] = contains[kind] & (sizes >= low) & (sizes <= high)
            groups[above] = contains[kind] & (sizes > high)
        return groups


def name_size_groups(kind: str) -> tuple[str, str, str]:
    """Return the names of the size groups of a kind of lesion, smallest first.

    >>> name_size_groups("mass")
    ('mass_below_15mm', 'mass_15_to_30mm', 'mass_above_30mm')
    """
    low, high = SIZE_LIMITS_MM[kind]
    return f"{kind}_below_{low:g}mm", f"{kind}_{low:g}_to_{high:g}mm", f"{kind}_above_{high:g}mm"


def collect_bench_data(
    manifest: Manifest, preparation: PreparationConfig, grid: GridConfig, *, progress: bool = True
) -> BenchData:
    """Read every image of a manifest and collect its patches at both resolutions.

    Parameters
    ----------
    manifest
        Images and lesions.
    preparation, grid
        Of the fine patches: without a working spacing.
    progress
        Show progress bars.

    Raises
    ------
    ManifestError
        If no image could be used, there are no normal patches, or none that contains a lesion.
    """
    if preparation.working_spacing_mm is not None:
        raise ValueError("the fine patches of a bench lie on the stored grid; working_spacing_mm must be None")
    fine = collect_patches(manifest, preparation, grid, progress=progress)
    alone = BenchData(fine, fine)
    if not alone.normal.any():
        raise ManifestError(
            "no normal patch: the bench needs images of BI-RADS 1, or, where no category is stated, images labelled "
            "negative without lesions"
        )
    if not alone.positive.any():
        raise ManifestError("no patch contains a lesion; are the lesions listed (for INbreast: AllXML)?")
    spacing = _common_spacing(fine)
    if spacing is None or spacing > COARSEST_FINE_SPACING_MM:
        return alone
    config = PreparationConfig(**{**vars(preparation), "working_spacing_mm": COARSE_SPACING_MM})
    size_px = round(grid.size_px * spacing / COARSE_SPACING_MM)
    return BenchData(fine, resample_collection(fine, config, size_px=size_px, progress=progress))


def _common_spacing(collection: Collection) -> float | None:
    """The pixel spacing in mm that all images share to a few per cent, or None."""
    spacings = collection.spacings_mm
    if np.isnan(spacings).any() or spacings.max() > _ALIKE * spacings.min():
        if not np.isnan(spacings).all():
            logger.warning(
                "pixel spacings differ between images, or some are unknown: every detector sees the fine grid"
            )
        return None
    return float(spacings.mean())


@dataclass(frozen=True, eq=False)
class Fold:
    """One division of the patches.

    Attributes
    ----------
    seed, number
        Which division, and which of its folds.
    train
        Positions of the normal patches to learn from.
    test
        Positions of the patches to score: normals of held-out patients; positives and controls of every patient of
        whom nothing was learned.
    """

    seed: int
    number: int
    train: NDArray[np.intp]
    test: NDArray[np.intp]


def draw_folds(data: BenchData, *, count: int, seed: int) -> tuple[Fold, ...]:
    """Divide the patients with normal patches into folds of about as many patches.

    Parameters
    ----------
    data
        Of `collect_bench_data`.
    count
        How many folds, at least 2.
    seed
        Another seed draws another division.

    Raises
    ------
    SplitError
        If there are fewer patients with normal patches than folds.
    """
    patients = data.fine.column("patient_id")
    names, sizes = np.unique(patients[data.normal], return_counts=True)
    if count < 2:
        raise SplitError(f"a cross-validation needs at least 2 folds, got {count}")
    if len(names) < count:
        raise SplitError(
            f"{count} folds need normal images of at least {count} patients, there are {len(names)}; ask for fewer "
            "folds, or are patient identifiers missing?"
        )
    rng = np.random.default_rng([seed, count])
    loads, fold_of = np.zeros(count), {}
    for which in rng.permutation(len(names)):  # not largest first, by which every seed would divide them alike
        lightest = int(np.argmin(loads))
        fold_of[str(names[which])] = lightest
        loads[lightest] += sizes[which]
    own = np.asarray([fold_of.get(name, -1) for name in patients.tolist()])
    abnormal = data.positive | data.groups[NORMAL_LOOKING]
    folds = []
    for number in range(count):
        train = np.flatnonzero(data.normal & (own != number))
        unseen = ~np.isin(patients, np.unique(patients[train]))
        test = np.flatnonzero((data.normal | abnormal) & unseen)
        require_disjoint(patients[train], patients[test], sides=("training", "test"))
        folds.append(Fold(seed, number, train, test))
    return tuple(folds)
