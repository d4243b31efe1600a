"""The pictures of an image-level experiment in two conditions: as the files are, and all at one bandwidth."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unary.datasets.splits import require_disjoint
from unary.errors import ManifestError
from unary.experiments.image_level_pictures import (
    TOGETHER,
    Pictures,
    find_common_bandwidth,
    find_copies,
    hash_contents,
    hold_together,
    join_controls,
    read_pictures,
)
from unary.experiments.image_level_sets import ImageSet
from unary.patches.collection import read_row
from unary.records import ManifestRow

AS_FILES, ONE_BANDWIDTH, WITHOUT_COPIES = "as_files", "one_bandwidth", "_without_copies"
SPLITS = tuple(stage + part for stage in (AS_FILES, ONE_BANDWIDTH) for part in ("", WITHOUT_COPIES))


@dataclass(frozen=True, eq=False)
class Stage:
    """All pictures in one condition, in memory; whoever is resampled together is one patient.

    Attributes
    ----------
    controls
        By name, of the test pictures, shape (n,).
    copies
        Which test pictures are training pictures, and which are there a second time, both of shape (n,), bool.
    bandwidths
        Of the training pictures, the normal and the abnormal test pictures, in cycles per picture side.
    """

    name: str
    train: tuple[ManifestRow, ...]
    test: tuple[ManifestRow, ...]
    controls: Mapping[str, NDArray[np.float64]]
    copies: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    bandwidths: Mapping[str, NDArray[np.float64]]

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """Which test pictures are labelled positive."""
        return np.asarray([row.label == "positive" for row in self.test], bool)

    @property
    def distinct(self) -> NDArray[np.bool_]:
        """Which test pictures are no copies."""
        return ~(self.copies[0] | self.copies[1])

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
    contents = hash_contents(everything)
    units = hold_together(everything, contents)
    together = [dataclasses.replace(row, patient_id=str(unit)) for row, unit in zip(everything, units, strict=True)]
    plain = read_pictures(together, side_px=side_px, progress=progress)
    cutoff = find_common_bandwidth(plain.bandwidths)
    even = read_pictures(together, side_px=side_px, cutoff=cutoff, progress=progress)
    usable = {row.image_id for row in plain.rows} & {row.image_id for row in even.rows}
    learned = usable & {row.image_id for row in data.train}
    known = dict(zip([row.image_id for row in everything], contents, strict=True))
    stages = {}
    for name, pictures in ((AS_FILES, plain), (ONE_BANDWIDTH, even)):
        kept = np.asarray([row.image_id in usable for row in pictures.rows], bool)
        training = np.asarray([row.image_id in learned for row in pictures.rows], bool)
        stages[name] = _build_stage(name, pictures, np.flatnonzero(training), np.flatnonzero(kept & ~training), known)
    return stages, tuple(dict.fromkeys([*plain.skipped, *even.skipped])), cutoff


def _build_stage(
    name: str,
    pictures: Pictures,
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    contents: Mapping[str, str],
) -> Stage:
    rows = pictures.rows
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

    def find_contents(places: NDArray[np.intp]) -> Sequence[str]:
        return [contents[rows[place].image_id] for place in places]

    return Stage(
        name,
        tuple(rows[place] for place in train),
        tuple(rows[place] for place in test),
        controls,
        find_copies(find_contents(test), find_contents(train)),
        {
            side: pictures.bandwidths[which]
            for side, which in (("train", train), ("negative", test[~positive]), ("positive", test[positive]))
        },
    )
