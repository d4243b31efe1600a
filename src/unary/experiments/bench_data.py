"""What the bench compares detectors on: patches at two resolutions, lesion groups, folds over patients."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unary.datasets.splits import require_disjoint
from unary.detectors.protocol import Grid
from unary.errors import ManifestError, SplitError
from unary.evaluation.metrics import ALL, NORMAL_LOOKING, ScoreTable
from unary.experiments.common import build_table
from unary.patches.collection import Collection, collect_patches, resample_collection
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import LesionGroup, Profile, Reading, is_among
from unary.records import Manifest

logger = logging.getLogger(__name__)

IMAGE = "image"
_LEAST_GAIN = 0.75  # of the working spacing; above it a coarse grid would save less than half of the pixels
_ALIKE = 1.05  # largest ratio between the pixel spacings of images that one size of patch serves


@dataclass(frozen=True, eq=False)
class BenchData:
    """The same patches, in the same order, at two resolutions, of which the same is known.

    ``fine`` are on the stored grid, as in the paper, ``coarse`` at the profile's working spacing; they are the same
    object where the profile has none, or the stored spacing is unknown, differs between images, or is above three
    quarters of it. ``layouts`` tell how the images of either grid are prepared, and where their patches lie. Where no
    lesion is listed, images are ranked rather than patches (``by_image``).
    """

    fine: Collection
    coarse: Collection
    profile: Profile
    layouts: dict[Grid, tuple[PreparationConfig, GridConfig]]
    by_image: bool = False

    def __len__(self) -> int:
        return len(self.fine)

    @property
    def reading(self) -> Reading:
        """Of the profile."""
        return self.profile.reading

    @property
    def data_hash(self) -> str:
        """SHA-256 over pixels and places of both."""
        return hashlib.sha256((self.fine.data_hash + self.coarse.data_hash).encode()).hexdigest()

    def list_images(self, fold: Fold) -> NDArray[np.int64]:
        """Return the images of a fold's test patches, positions in the rows of `fine`, shape (images,)."""
        return np.unique(self.fine.image[fold.test])

    def build_table(self, scores: dict[str, NDArray[np.float64]], fold: Fold, *, seed: int) -> ScoreTable:
        """Return the table of a fold's patches, or of its images, each standing at (0, 0)."""
        kept = fold.test
        if self.by_image:
            kept = kept[np.unique(self.fine.image[kept], return_index=True)[1]]
        table = build_table(
            self.fine, scores, kept, positive=self.positive, groups=self.groups, seed=seed, split="patient"
        )
        return dataclasses.replace(table, row=0 * table.row, col=0 * table.col) if self.by_image else table

    def find_collection(self, grid: Grid) -> Collection:
        """Return the patches that a detector of a grid sees."""
        return self.coarse if grid == "working" else self.fine

    @cached_property
    def has_assessments(self) -> bool:
        """Whether images state a category by which normal ones are known."""
        return bool(self.reading.normal) and any(row.assessment is not None for row in self.fine.rows)

    def _select_categories(self, categories: tuple[str, ...]) -> NDArray[np.bool_]:
        """Which patches are of an image of any of the categories."""
        belongs = np.asarray([is_among(row.assessment, categories) for row in self.fine.rows], bool)
        return belongs[self.fine.image]

    @cached_property
    def _in_normal_image(self) -> NDArray[np.bool_]:
        negative: NDArray[np.bool_] = self.fine.column("label") == "negative"
        if self.has_assessments and not self.by_image:
            return self._select_categories(self.reading.normal)
        return negative & ~np.isin(self.fine.image, self.fine.image[self.fine.touches])

    @cached_property
    def normal(self) -> NDArray[np.bool_]:
        """Shape (n,), bool: touches no lesion, in an image of a normal category.

        Where no image states a category: in an image labelled negative without any lesion.
        """
        return self._in_normal_image & ~self.fine.touches

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """Shape (n,), bool: contains a lesion, benign or malignant, in an image that is not one of the normals.

        Where images are ranked: lies in an image labelled positive.
        """
        labelled: NDArray[np.bool_] = self.fine.column("label") == "positive"
        return labelled if self.by_image else self.fine.lesional & ~self._in_normal_image

    @cached_property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Membership by group, shape (n,) each, bool; subsets of the positives, and the control ``normal_looking``.

        Groups are divided by the category of their image where there is one, and by size, points counting as the
        smallest, where the pixel spacing is known.
        """
        if self.by_image:
            return {IMAGE: self.positive}
        groups = {}
        by_size: dict[str, NDArray[np.bool_]] = {}
        for kind in list_compared(self.reading):
            contains, sizes = self.fine.contains[kind.name] & self.positive, self.fine.sizes_mm[kind.name]
            divided = [part for part in self.reading.subgroups if part[2] == kind.name and self.has_assessments]
            for name, _, _, categories in divided:
                groups[name] = contains & self._select_categories(categories)
            if not divided:
                groups[kind.name] = contains
            if kind.size_limits_mm is not None:
                low, high = kind.size_limits_mm  # an unknown size, NaN, compares as False
                parts = (sizes < low, (sizes >= low) & (sizes <= high), sizes > high)
                by_size |= {name: contains & part for name, part in zip(name_size_groups(kind), parts, strict=True)}
        return {**groups, NORMAL_LOOKING: self.fine.normal_looking & ~self._in_normal_image, **by_size}

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of the groups by size that the profile divides lesions into."""
        return tuple(name for kind in list_compared(self.reading) for name in name_size_groups(kind))

    @property
    def main_groups(self) -> tuple[str, ...]:
        """The names of the groups that are told apart, sizes and controls aside, and the one that holds all of them."""
        if self.by_image:
            return (IMAGE,)
        return (*itertools.takewhile(lambda name: name != NORMAL_LOOKING, self.groups), ALL)


def list_compared(reading: Reading) -> tuple[LesionGroup, ...]:
    """Return the groups of lesions that are common enough to be compared by size; all of them where none is."""
    return tuple(group for group in reading.groups if group.size_limits_mm is not None) or reading.groups


def name_size_groups(group: LesionGroup) -> tuple[str, ...]:
    """Return the names of a group's parts by size, smallest first; empty if it is not divided.

    >>> name_size_groups(LesionGroup("mass", "masses", ("mass",), size_limits_mm=(15, 30)))
    ('mass_below_15mm', 'mass_15_to_30mm', 'mass_above_30mm')
    """
    if group.size_limits_mm is None:
        return ()
    low, high = group.size_limits_mm
    return f"{group.name}_below_{low:g}mm", f"{group.name}_{low:g}_to_{high:g}mm", f"{group.name}_above_{high:g}mm"


def collect_bench_data(
    manifest: Manifest, preparation: PreparationConfig, grid: GridConfig, profile: Profile, *, progress: bool = True
) -> BenchData:
    """Read every image of a manifest and collect its patches at both resolutions.

    ``preparation``, without a working spacing, and ``grid`` are those of the fine patches.

    Raises
    ------
    ManifestError
        If no image could be used, there are no normal patches, or none that contains a lesion.
    """
    if (preparation.working_spacing_mm, preparation.working_size_px) != (None, None):
        raise ValueError("the fine patches of a bench lie on the stored grid; without a working spacing or size")
    fine = collect_patches(manifest, preparation, grid, profile.reading, progress=progress)
    layouts: dict[Grid, tuple[PreparationConfig, GridConfig]]
    layouts = {"stored": (preparation, grid), "working": (preparation, grid)}
    alone = BenchData(fine, fine, profile, layouts, by_image=not manifest.lesions)
    if not alone.normal.any():
        normal = f"a normal category ({', '.join(profile.reading.normal)})" if profile.reading.normal else "no lesion"
        raise ManifestError(
            f"no normal patch: the bench needs images of {normal}, or, where no category is stated, images labelled "
            "negative without lesions"
        )
    if not alone.positive.any():
        told = "no patch contains a lesion, or, where no lesion is listed, no image is labelled positive"
        raise ManifestError(f"{told}; are the lesions listed?")
    spacing, coarse_mm = _common_spacing(fine), profile.lengths.working_spacing_mm
    if spacing is None or coarse_mm is None or spacing > _LEAST_GAIN * coarse_mm:
        return alone
    config = dataclasses.replace(preparation, working_spacing_mm=coarse_mm)
    size_px, stride_px = (round(length * spacing / coarse_mm) for length in (grid.size_px, grid.stride_px))
    return dataclasses.replace(
        alone,
        coarse=resample_collection(fine, config, size_px=size_px, progress=progress),
        layouts={**layouts, "working": (config, GridConfig(size_px, max(stride_px, 1), grid.min_tissue))},
    )


def _common_spacing(collection: Collection) -> float | None:
    """The pixel spacing in mm that all images share to a few per cent, or None."""
    spacings = collection.spacings_mm
    if spacings.max() <= _ALIKE * spacings.min():  # never so where one is unknown, NaN
        return float(spacings.mean())
    if not np.isnan(spacings).all():
        told = "pixel spacings differ between images, or some are unknown: every detector sees the fine grid"
        logger.warning("%s", told)
    return None


@dataclass(frozen=True, eq=False)
class Fold:
    """One fold of the division that a seed draws.

    ``train`` are the positions of the normal patches to learn from, ``test`` those of the patches to score: normals of
    held-out patients; positives and controls of every patient of whom nothing was learned.
    """

    seed: int
    number: int
    train: NDArray[np.intp]
    test: NDArray[np.intp]


def draw_folds(data: BenchData, *, count: int, seed: int) -> tuple[Fold, ...]:
    """Divide the patients with normal patches into folds of about as many patches; see `assign_folds`."""
    patients = data.fine.column("patient_id")
    fold_of = assign_folds(patients[data.normal], count=count, seed=seed)
    own = np.asarray([fold_of.get(name, -1) for name in patients.tolist()])
    abnormal = data.positive | data.groups.get(NORMAL_LOOKING, False)
    folds = []
    for number in range(count):
        train = np.flatnonzero(data.normal & (own != number))
        unseen = ~np.isin(patients, np.unique(patients[train]))
        test = np.flatnonzero((data.normal | abnormal) & unseen)
        require_disjoint(patients[train], patients[test], sides=("training", "test"))
        folds.append(Fold(seed, number, train, test))
    return tuple(folds)


def assign_folds(patients: NDArray[np.str_], *, count: int, seed: int) -> dict[str, int]:
    """Return the number of each patient's fold, of ``count``; folds get about as many entries.

    ``patients`` names the patient of each normal patch, or image; another seed draws another division.

    Raises
    ------
    SplitError
        If ``count`` is below 2, or above the number of patients.
    """
    names, sizes = np.unique(patients, return_counts=True)
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
    return fold_of
