"""Pictures that are there more than once, byte for byte or nearly."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from unary.experiments.image_level_copies import (
    NEAR,
    find_copies,
    hash_contents,
    hold_together,
    link_near_copies,
)
from unary.records import Image, ManifestRow

NO_PAIRS = np.zeros((0, 2), np.int64)


def draw_blobs(seed):
    """A picture of its own, smooth, 64 x 64."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(64, 64)), 4)
    return 20 + 200 * (values - values.min()) / np.ptp(values)


def build_row(name, pixels, patient=None):
    return ManifestRow(None, name, patient or name, "negative", image=Image.from_array(pixels.astype(np.uint8)))


def correlate(first, second):
    small = [values.reshape(32, 2, 32, 2).mean(axis=(1, 3)).ravel() for values in (first, second)]
    return np.corrcoef(*small)[0, 1]


def test_near_copies_are_those_that_correlate():
    pictures = [draw_blobs(seed) for seed in range(5)]
    rng = np.random.default_rng(9)
    darker = 0.5 * pictures[1] + rng.normal(0, 2, (64, 64))  # encoded anew
    mixed = 0.7 * pictures[2] + 0.3 * pictures[3]
    pictures += [darker.clip(0), mixed]
    rows = [build_row(str(number), picture) for number, picture in enumerate(pictures)]
    pairs = {tuple(pair) for pair in link_near_copies(rows).tolist()}
    expected = {(i, j) for i in range(7) for j in range(i + 1, 7) if correlate(pictures[i], pictures[j]) > NEAR}
    assert pairs == expected == {(1, 5)}


def test_another_margin_or_a_mirror_hides_no_near_copy():
    shown = [draw_blobs(seed) + 30 for seed in range(3)]  # bright, so that the margin is told from it
    framed = [np.pad(picture, ((9, 9), (9, 9))) for picture in shown]
    shifted = np.pad(shown[0], ((3, 15), (2, 16)))
    mirrored = np.pad(shown[1][:, ::-1], ((12, 6), (9, 9)))
    upside_down = np.pad(shown[2][::-1], ((9, 9), (9, 9)))
    rows = [build_row(str(number), one) for number, one in enumerate([*framed, shifted, mirrored, upside_down])]
    assert link_near_copies(rows).tolist() == [[0, 3], [1, 4]]


def test_all_blocks_of_many_pictures_are_compared():
    rows = [build_row(str(number), draw_blobs(number)) for number in range(20)]
    rows += [dataclasses.replace(rows[number], image_id=f"again {number}") for number in range(20)] * 30
    pairs = link_near_copies(rows)
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 20 * 31 * 30 // 2
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert ((pairs[:, 1] - pairs[:, 0]) % 20 == 0).all()


def test_patients_copies_and_near_copies_are_held_together(tmp_path):
    rows = []
    for number, (patient, content) in enumerate(
        [("a", b"1"), ("b", b"2"), ("c", b"1"), ("c", b"3"), ("d", b"4"), ("e", b"5")]
    ):
        (tmp_path / str(number)).write_bytes(content)
        rows.append(ManifestRow(tmp_path / str(number), str(number), patient, "negative"))
    contents = hash_contents(rows)
    assert contents[0] == contents[2] != contents[1]
    assert hold_together(rows, contents, NO_PAIRS).tolist() == ["a", "b", "a", "a", "d", "e"]
    assert hold_together(rows, contents, np.array([[3, 4]])).tolist() == ["a", "b", "a", "a", "a", "e"]


@pytest.mark.parametrize("turned", [False, True])
def test_copies_of_training_and_of_test_pictures_are_told_apart(turned):
    contents = ["a", "x", "a", "b", "b", "c", "d", "a", "e"]  # two to learn from, seven to test
    train, test = np.arange(2), np.arange(2, 9)
    pairs = np.array([[0, 2], [0, 7], [1, 5], [3, 4], [6, 8]])
    pairs = np.unique(np.sort(pairs[:, ::-1] if turned else pairs, axis=1), axis=0)
    copies = find_copies(contents, pairs, train=train, test=test)
    assert copies.learned.tolist() == [True, False, False, False, False, True, False]
    assert copies.again.tolist() == [False, False, True, False, False, True, False]
    assert copies.near_learned.tolist() == [True, False, False, True, False, True, False]
    assert copies.near_again.tolist() == [False, False, True, False, False, False, True]
    assert copies.exact.tolist() == [True, False, True, False, False, True, False]
    assert copies.near.tolist() == [True, False, True, True, False, True, True]
    assert not find_copies(["a", "b", "c"], NO_PAIRS, train=np.array([0]), test=np.array([1, 2])).near.any()
