"""The pictures of an image-level experiment in two conditions: as the files are, and all at one bandwidth."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unary.datasets.splits import require_disjoint
from unary.errors import ManifestError
from unary.experiments.image_level_copies import Copies, find_copies, hash_contents, hold_together, link_near_copies
from unary.experiments.image_level_pictures import (
    TOGETHER,
    Pictures,
    find_common_bandwidth,
    join_controls,
    read_pictures,
)
from unary.experiments.image_level_sets import ImageSet
from unary.patches.collection import read_row
from unary.records import ManifestRow

AS_FILES, ONE_BANDWIDTH = "as_files", "one_bandwidth"
WITHOUT_COPIES, WITHOUT_NEAR = "_without_copies", "_without_near_copies"
PARTS = ("", WITHOUT_COPIES, WITHOUT_NEAR)
SPLITS = tuple(stage + part for stage in (AS_FILES, ONE_BANDWIDTH) for part in PARTS)


@dataclass(frozen=True, eq=False)
class Stage:
    """All pictures in one condition, in memory; whoever is resampled together is one patient.

    Attributes
    ----------
    controls
        By name, of the test pictures, shape (n,).
    copies
        Which of the test pictures are copies.
    bandwidths
        Of the training pictures, the normal and the abnormal test pictures, in cycles per picture side.
    """

    name: str
    train: tuple[ManifestRow, ...]
    test: tuple[ManifestRow, ...]
    controls: Mapping[str, NDArray[np.float64]]
    copies: Copies
    bandwidths: Mapping[str, NDArray[np.float64]]

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """Which test pictures are labelled positive."""
        return np.asarray([row.label == "positive" for row in self.test], bool)

    def select(self, part: str) -> NDArray[np.bool_]:
        """Return which test pictures belong to one of `PARTS`, shape (n,), bool."""
        left_out = {WITHOUT_COPIES: self.copies.exact, WITHOUT_NEAR: self.copies.near}.get(part)
        return np.ones(len(self.test), bool) if left_out is None else ~left_out

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 of names, sides and pixels."""
        digest = hashlib.sha256()
        for side in (self.train, self.test):
            digest.update(f"{len(side)};".encode())
            for row in side:
                digest.update(f"{row.image_id};".encode() + np.ascontiguousarray(read_row(row).pixels).tobytes())
        return digest.hexdigest()


def read_stages(
    data: ImageSet, *, side_px: int, progress: bool = True
) -> tuple[dict[str, Stage], tuple[str, ...], float]:
    """Return both conditions by name, what was skipped, and the common bandwidth, in cycles per picture side.

    Raises
    ------
    ManifestError, ImageError
        If a side is empty, or no picture can be read.
    SplitError
        If a patient is on both sides.
    """
    if data.has_patients:
        sides = [np.asarray([row.patient_id for row in rows]) for rows in (data.train, data.test)]
        require_disjoint(sides[0], sides[1], sides=("training", "test"))
    everything = (*data.train, *data.test)
    plain = read_pictures(everything, side_px=side_px, progress=progress)
    cutoff = find_common_bandwidth(plain.bandwidths)
    usable = {row.image_id for row in plain.rows}
    even = read_pictures(
        [row for row in everything if row.image_id in usable], side_px=side_px, cutoff=cutoff, progress=progress
    )
    usable &= {row.image_id for row in even.rows}
    plain, even = plain.select(usable), even.select(usable)
    contents, pairs = hash_contents(plain.rows), link_near_copies(plain.rows)
    units = hold_together(plain.rows, contents, pairs)
    learned = {row.image_id for row in data.train}
    training = np.asarray([row.image_id in learned for row in plain.rows], bool)
    sides_at = (np.flatnonzero(training), np.flatnonzero(~training))
    copies = find_copies(contents, pairs, train=sides_at[0], test=sides_at[1])
    stages = {
        name: _build_stage(name, pictures, units, sides_at, copies)
        for name, pictures in ((AS_FILES, plain), (ONE_BANDWIDTH, even))
    }
    return stages, (*plain.skipped, *even.skipped), cutoff


def _build_stage(
    name: str,
    pictures: Pictures,
    units: NDArray[np.str_],
    sides: tuple[NDArray[np.intp], NDArray[np.intp]],
    copies: Copies,
) -> Stage:
    train, test = sides
    rows = [dataclasses.replace(row, patient_id=str(unit)) for row, unit in zip(pictures.rows, units, strict=True)]
    positive = np.asarray([rows[place].label == "positive" for place in test], bool)
    if not len(train) or not positive.any() or positive.all():
        raise ManifestError(
            f"{len(train)} normal pictures to learn from, {int((~positive).sum())} normal and {int(positive.sum())} "
            "abnormal ones to test could be used; each side needs one at least"
        )
    training = np.zeros(len(rows), bool)
    training[train] = True
    controls = {one: values[test] for one, values in pictures.controls.items()}
    controls[TOGETHER] = join_controls(pictures.controls, training)[test]
    return Stage(
        name,
        tuple(rows[place] for place in train),
        tuple(rows[place] for place in test),
        controls,
        copies,
        {
            side: pictures.bandwidths[which]
            for side, which in (("train", train), ("negative", test[~positive]), ("positive", test[positive]))
        },
    )
