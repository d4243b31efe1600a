"""Dividing patches into training and held-out sides, by patch (as the paper does) or by patient (honest).

Neighbouring patches of one image, and images of one patient, are alike. A split by patch puts such twins on both
sides and flatters the result; a split by patient does not. Both are offered so that the difference can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unary.errors import SplitError
from unary.records import Manifest, ManifestRow, count_words


def split_by_patch(count: int, held_out: float, rng: np.random.Generator | int) -> NDArray[np.bool_]:
    """Return which of ``count`` patches are held out, shape (count,), at random; at least one on each side.

    ``held_out`` is their share, in (0, 1); ``rng`` is a generator, which this call advances, or a seed.

    Raises
    ------
    SplitError
        If there are fewer than two patches.
    """
    if count < 2:
        raise SplitError(f"at least two normal patches are needed to hold some out; there are {count}")
    chosen = np.zeros(count, bool)
    number = min(max(round(held_out * count), 1), count - 1)
    chosen[np.random.default_rng(rng).choice(count, number, replace=False)] = True
    return chosen


def split_by_patient(patients: NDArray[np.str_], held_out: float, rng: np.random.Generator | int) -> NDArray[np.bool_]:
    """Return which patches are held out, shape (n,), whole patients at random; ``patients`` (n,) are those of patches.

    ``held_out`` is the share of the *patients*, in (0, 1), rounded up so that a small data set still holds one out;
    ``rng`` is as in `split_by_patch`.

    Raises
    ------
    SplitError
        If there are fewer than two patients.
    """
    names = np.unique(patients)
    if len(names) < 2:
        raise SplitError(
            "a split by patient needs at least two patients who have nothing but normal images, or nobody is left to "
            f"hold out; there {'is' if len(names) == 1 else 'are'} {len(names)}"
        )
    number = min(math.ceil(held_out * len(names)), len(names) - 1)
    chosen = np.random.default_rng(rng).choice(names, number, replace=False)
    return np.isin(patients, chosen)


def require_disjoint(left: NDArray[np.str_], right: NDArray[np.str_], *, sides: tuple[str, str]) -> None:
    """Refuse a patient on two sides of a split, which a message calls by the names in ``sides``.

    Raises
    ------
    SplitError
        With the number of shared patients; their names are not printed.
    """
    shared = np.intersect1d(left, right)
    if len(shared):
        raise SplitError(
            f"{len(shared)} patient(s) are in both the {sides[0]} and the {sides[1]} set; scores of a patient that the "
            "model has seen flatter it, so split by patient"
        )


def split_manifest(manifest: Manifest, held_out: float, rng: np.random.Generator | int) -> tuple[Manifest, Manifest]:
    """Divide a manifest into normals to fit and everything to evaluate, whole patients on one side.

    Fitted is on patients who have nothing but negative images. A share ``held_out``, in (0, 1), of them goes to the
    evaluation side, with every image of the other patients; ``rng`` is as in `split_by_patch`.

    Raises
    ------
    SplitError
        If fewer than two patients have nothing but negative images, or the share is out of range.
    """
    if not 0 < held_out < 1:
        raise SplitError(f"the held-out share must lie between 0 and 1, got {held_out}")
    other = {row.patient_id for row in manifest.rows if row.label != "negative"}
    normal = np.asarray([row.patient_id for row in manifest.rows if row.patient_id not in other], dtype=np.str_)
    held = split_by_patient(normal, held_out, rng)
    fitted = set(normal[~held].tolist())
    return (
        manifest.select(tuple(row for row in manifest.rows if row.patient_id in fitted)),
        manifest.select(tuple(row for row in manifest.rows if row.patient_id not in fitted)),
    )


def describe_split(train: Manifest, test: Manifest) -> tuple[str, ...]:
    """Return what a person should know of the two sides that `split_manifest` gives."""
    other = {row.patient_id for row in test.rows if row.label != "negative"}
    normal = [row for row in test.rows if row.label == "negative"]
    with_others = [row for row in normal if row.patient_id in other]
    held = [row for row in normal if row.patient_id not in other]
    unknown = sum(row.label is None for row in test.rows)
    positive = sum(row.label == "positive" for row in test.rows)
    lines = [
        f"to fit: {count_rows(train.rows)} with nothing but negative images",
        f"to test: {count_rows(held)} of the same kind; {count_words(positive, 'positive image')}; "
        f"{count_words(len(with_others), 'negative image')} of patients who also have others",
    ]
    if unknown:
        lines.append(f"{count_words(unknown, 'image')} without a label on the test side; no figure counts them")
    if not positive:
        lines.append("no positive image on the test side: `unary evaluate` needs both labels")
    return tuple(lines)


def count_rows(rows: Sequence[ManifestRow]) -> str:
    """Return of how many images and patients rows are, in words."""
    patients = count_words(len({row.patient_id for row in rows}), "patient")
    return f"{count_words(len(rows), 'image')} of {patients}"
