import dataclasses
import os

import numpy as np
import pytest
import torch
from scipy import ndimage

import unary.training.batches
from unary.detectors.wei2018.learning import TrainingConfig, train_autoencoder
from unary.errors import ImageError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set, join_patch_sets
from unary.patches.preparation import FULL_SCALE
from unary.patches.store import open_images, writing_images
from unary.training.batches import draw_batches
from unary.training.context import FitContext

IMAGE_BYTES = 2 * 64 * 48


@pytest.fixture
def patches():
    sets, rng = [], np.random.default_rng(0)
    for _ in range(20):
        smooth = ndimage.gaussian_filter(rng.normal(size=(64, 48)), 3)
        pixels = np.clip((0.4 + smooth) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)
        sets.append(build_patch_set(pixels, grid_origins(pixels.shape, GridConfig(16, 16)), size_px=16))
    whole = join_patch_sets(sets)
    return whole.subset(np.flatnonzero(whole.index[:, 0] != 3))  # one image is not used


@pytest.fixture
def stored(patches, tmp_path):
    with writing_images(tmp_path / "s.tif") as write:
        for image in patches.images:
            write(image)
    return dataclasses.replace(patches, images=open_images(tmp_path / "s.tif"))


def train(patches, config, checkpoint=None):
    return train_autoencoder(patches, config, FitContext(checkpoint=checkpoint, progress=False), widths=(2, 4))


def draw(patches, seed=0, **options):
    return list(draw_batches(patches, np.random.default_rng(seed), batch_size=10, **options))


def test_a_store_in_one_window_and_memory_come_in_the_same_order(patches, stored):
    expected = np.random.default_rng(0).permutation(len(patches))
    assert (np.concatenate(draw(patches)) == expected).all()
    assert (np.concatenate(draw(patches, window_bytes=1)) == expected).all()
    assert (np.concatenate(draw(stored)) == expected).all()
    assert (stored.gather(expected) == patches.gather(expected)).all()


@pytest.mark.parametrize("images_per_window", [0.5, 1, 4.5, 18])
def test_windows_hold_few_images_at_a_time_and_every_patch_once(stored, images_per_window):
    batches = draw(stored, window_bytes=int(images_per_window * IMAGE_BYTES))
    assert [len(which) for which in batches] == [*[10] * 22, 8]
    order = np.concatenate(batches)
    assert (np.sort(order) == np.arange(len(stored))).all()
    images = stored.index[order, 0]
    first = np.asarray([np.flatnonzero(images == number)[0] for number in np.unique(images)])
    last = np.asarray([np.flatnonzero(images == number)[-1] for number in np.unique(images)])
    open_at_once = [((first <= now) & (last >= now)).sum() for now in range(len(order))]
    assert max(open_at_once) <= max(images_per_window + 1, 1)
    assert (np.diff(np.unique(images)[np.argsort(first)]) < 0).any()  # images are shuffled too


def test_the_generator_decides_the_order(stored):
    one, same, other = (np.concatenate(draw(stored, seed, window_bytes=3 * IMAGE_BYTES)) for seed in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()


def test_an_epoch_may_be_left_half_way(stored):
    batches = draw_batches(stored, np.random.default_rng(0), batch_size=10, window_bytes=IMAGE_BYTES)
    next(batches)
    assert stored.loaded
    batches.close()
    assert not stored.loaded


@pytest.mark.parametrize("images_per_window", [0.5, 1, 4.5, 100])
def test_what_a_batch_needs_lies_in_memory_and_little_else(patches, stored, images_per_window):
    number = 0
    for which in draw_batches(
        stored, np.random.default_rng(0), batch_size=10, window_bytes=int(images_per_window * IMAGE_BYTES)
    ):
        needed = set(stored.index[which, 0].tolist())
        assert needed <= stored.loaded.keys()
        assert len(stored.loaded) <= max(3 * (images_per_window + 1), 19 if images_per_window == 100 else len(needed))
        assert (stored.gather(which) == patches.gather(which)).all()
        number += 1
    assert number == 23
    assert len(stored.loaded) == (19 if images_per_window == 100 else 0)


@pytest.mark.parametrize("images_per_window", [7, 100])
def test_a_store_that_memory_holds_anyway_is_read_once(stored, images_per_window, tmp_path):
    expected = stored.gather(slice(None))
    for seed in (0, 1):
        assert len(np.concatenate(draw(stored, seed, window_bytes=images_per_window * IMAGE_BYTES))) == len(stored)
        os.truncate(tmp_path / "s.tif", 0)
    assert sorted(stored.loaded) == np.unique(stored.index[:, 0]).tolist()
    assert (stored.gather(slice(None)) == expected).all()


def test_images_in_memory_are_not_copied(patches):
    for _ in draw_batches(patches, np.random.default_rng(0), batch_size=10, window_bytes=1):
        assert not patches.loaded


def test_a_store_that_shrinks_meanwhile_ends_training_with_its_name(stored, tmp_path):
    batches = draw_batches(stored, np.random.default_rng(0), batch_size=10, window_bytes=IMAGE_BYTES)
    next(batches)
    os.truncate(tmp_path / "s.tif", 5 * IMAGE_BYTES)
    with pytest.raises(ImageError, match=r"s\.tif"):
        list(batches)
    assert not stored.loaded


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("direct", [True, False])
def test_training_from_a_store_gives_the_same_weights(patches, stored, compiled, direct, monkeypatch):
    monkeypatch.setattr(unary.training.batches, "outgrows_memory", lambda images: direct)
    config = TrainingConfig(epochs=2, batch_size=20, compiled=compiled)
    one, other = (train(source, config) for source in (patches, stored))
    assert one[1] == other[1]
    for mine, theirs in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_training_in_windows_resumes_exactly(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(draw_batches, "__kwdefaults__", {"window_bytes": 4 * IMAGE_BYTES})
    config = TrainingConfig(epochs=4, batch_size=20)
    _, whole = train(stored, config)
    half = dataclasses.replace(config, epochs=2)
    train(stored, half, tmp_path / "state")
    _, resumed = train(stored, config, tmp_path / "state")
    assert whole == resumed
    assert whole.losses[-1] < whole.losses[0]
