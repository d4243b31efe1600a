"""Pictures that are there more than once, byte for byte or nearly: on both sides of a split, and within the test set.

A test picture that has been learned from says nothing, and a slice next to one that has been learned from says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unary.detectors.nearest_neighbour import find_content
from unary.experiments.image_level_pictures import bring_to_size
from unary.files import hash_file
from unary.patches.collection import read_row
from unary.records import ManifestRow

NEAR = 0.98
"""The correlation above which two pictures show nearly the same."""
NEAR_PX = 32
_BLOCK = 512


def hash_contents(rows: Sequence[ManifestRow]) -> tuple[str, ...]:
    """Return the SHA-256 of each picture's file: equal for copies, whatever they are called."""
    return tuple(hash_file(row.path) if row.path is not None else f"in memory: {row.image_id}" for row in rows)


def link_near_copies(rows: Sequence[ManifestRow]) -> NDArray[np.int64]:
    """Return the pairs of pictures in memory that show nearly the same, positions of shape (pairs, 2), ascending.

    They correlate above `NEAR` when shrunk to 32 x 32 pixels, as they are, or cropped to what they show, or then
    mirrored: the same slice encoded anew, with another margin or contrast, or the next one. Copies are among them.
    """
    pictures = [np.asarray(read_row(row).pixels, np.float32) for row in rows]
    whole = np.stack([bring_to_size(picture, NEAR_PX) for picture in pictures])
    cropped = np.stack([bring_to_size(_crop(picture), NEAR_PX) for picture in pictures])
    pairs = [np.zeros((0, 2), np.int64)]
    for first, second in ((whole, whole), (cropped, cropped), (cropped, cropped[:, :, ::-1])):
        left, right = _standardise(first), _standardise(second)
        for start in range(0, len(left), _BLOCK):
            found = np.argwhere(left[start : start + _BLOCK] @ right[start:].T > NEAR) + start
            pairs.append(found[found[:, 0] < found[:, 1]])
    return np.unique(np.concatenate(pairs), axis=0)


def _crop(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    return picture[find_content((256 * picture).astype(np.uint16))]


def _standardise(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pictures, (n, rows, cols), as vectors whose products are correlations."""
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9), np.float32)


def hold_together(rows: Sequence[ManifestRow], contents: Sequence[str], pairs: NDArray[np.int64]) -> NDArray[np.str_]:
    """Return the unit that each picture is resampled with, shape (n,): all of a patient, and all copies, are one.

    Copies are of the same contents, or among the ``pairs`` of near copies. A unit is called after the first of its
    patients.
    """
    count = len(rows)
    patients = np.unique([row.patient_id for row in rows], return_inverse=True)[1]
    copies = np.unique(np.asarray(contents), return_inverse=True)[1] + int(patients.max()) + 1
    own = np.arange(count)
    ends = np.concatenate([np.stack([own, count + patients]), np.stack([own, count + copies]), pairs.T], axis=1)
    part = _join(ends, count + int(copies.max()) + 1)[:count]
    first = np.unique(part, return_index=True)[1]
    return np.asarray([rows[place].patient_id for place in first])[np.unique(part, return_inverse=True)[1]]


def _join(ends: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """The part that each of ``count`` things belongs to, joined by links, shape (2, links)."""
    links = coo_array((np.ones(ends.shape[1], bool), (ends[0], ends[1])), shape=(count, count))
    parts: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return parts


@dataclass(frozen=True, eq=False)
class Copies:
    """Which test pictures are copies, shape (n,) each, bool.

    ``learned`` are training pictures, ``again`` are there a second time, by the bytes of their files; ``near_learned``
    and ``near_again`` the same of near copies, which copies are too. Of what is there several times the first is not
    marked.
    """

    learned: NDArray[np.bool_]
    again: NDArray[np.bool_]
    near_learned: NDArray[np.bool_]
    near_again: NDArray[np.bool_]

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Whatever is a copy."""
        return self.learned | self.again

    @property
    def near(self) -> NDArray[np.bool_]:
        """Whatever is a copy or a near copy."""
        return self.exact | self.near_learned | self.near_again


def find_copies(
    contents: Sequence[str], pairs: NDArray[np.int64], *, train: NDArray[np.intp], test: NDArray[np.intp]
) -> Copies:
    """Return which test pictures are copies.

    Contents and pairs are of all pictures, ``train`` and ``test`` positions among them.
    """
    held = np.asarray(contents)
    place = np.full(len(held), -1)
    place[test] = np.arange(len(test))
    learned = np.isin(np.arange(len(held)), train)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    near = np.isin(test, both[learned[both[:, 0]], 1])
    inside = place[pairs[(place[pairs] >= 0).all(axis=1)]]
    return Copies(
        np.isin(held[test], held[train]),
        _is_repeated(held[test]),
        near,
        _is_repeated(_join(inside.T, len(test))),
    )


def _is_repeated(values: NDArray[Any]) -> NDArray[np.bool_]:
    """All but the first of equal values."""
    again = np.ones(len(values), bool)
    again[np.unique(values, return_index=True)[1]] = False
    return again
