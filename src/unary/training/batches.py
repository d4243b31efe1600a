"""In which order an epoch of training sees its patches: all shuffled, or window by window from a store.

A batch of patches from all over a store would touch images all over the disk. So the images are shuffled first and cut
into windows of `WINDOW_BYTES`; within a window the patches are shuffled. A window is some 40 batches of the paper's,
from about 30 images; the next two are read while one is used, into the buffer of used ones. The order depends on the
generator alone, so that a resumed run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from unary.patches.patch_set import PatchSet
from unary.patches.store import Buffer, Images, is_stored, outgrows_memory, read_images

WINDOW_BYTES = 1 << 28
_WINDOWS = 3  # in memory at a time


def draw_batches(
    patches: PatchSet,
    rng: np.random.Generator,
    *,
    batch_size: int,
    window_bytes: int = WINDOW_BYTES,
    read: bool = True,
) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of all patches once, batch by batch, the last as short as it comes.

    Patches in memory, and those of a store that fits in one window, come in the same order for the same generator. Of
    a larger store no more than three windows, or what a batch spans, lie in memory at a time, in `PatchSet.loaded`.
    Without ``read`` the order is the same and nothing is read: for who has the pixels elsewhere. An `ImageError` says
    that a store cannot be read.
    """
    order = rng.permutation(len(patches))
    number_of = _draw_windows(patches, rng, window_bytes)
    windows = [np.flatnonzero(number_of == number) for number in range(int(number_of.max(initial=0)) + 1)]
    if len(windows) > 1:
        order = order[np.argsort(number_of[patches.index[order, 0]], kind="stable")]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if not read or not any(is_stored(patches.images[image]) for window in windows for image in window):
        yield from batches
        return
    with _reading(patches, windows) as need:
        for which in batches:
            need(*number_of[patches.index[which[[0, -1]], 0]].tolist())
            yield which


@contextmanager
def _reading(patches: PatchSet, windows: Sequence[NDArray[np.integer]]) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that brings some windows into memory, in rising order, and forgets those before them.

    A store of no more windows than memory holds anyway stays there for the next epoch.
    """
    direct = outgrows_memory(patches.images[image] for window in windows for image in window)
    stored = [
        [image for image in window.tolist() if is_stored(patches.images[image]) and image not in patches.loaded]
        for window in windows
    ]
    stays = len(windows) <= _WINDOWS
    buffers: list[Buffer] = []
    spare: list[Buffer] = []
    loading: list[Future[Images]] = []
    forgotten = known = 0

    def load(number: int, buffer: Buffer) -> Images:
        return read_images([patches.images[image] for image in stored[number]], buffer, direct=direct)

    def need(first: int, last: int) -> None:
        nonlocal forgotten, known
        while forgotten < first and not stays:
            for image in stored[forgotten]:
                patches.loaded.pop(image, None)
            spare.append(buffers[forgotten])
            forgotten += 1
        while len(loading) < min(max(first + _WINDOWS, last + 1), len(windows)):
            buffers.append(spare.pop() if spare else Buffer())
            loading.append(reader.submit(load, len(loading), buffers[-1]))
        while known <= last:
            patches.loaded.update(zip(stored[known], loading[known].result(), strict=True))
            known += 1

    reader = ThreadPoolExecutor(1, "unary-store")
    try:
        yield need
    finally:
        reader.shutdown(cancel_futures=True)
        if not stays:
            patches.loaded.clear()


def _draw_windows(patches: PatchSet, rng: np.random.Generator, window_bytes: int) -> NDArray[np.int64]:
    """Return the number of each image's window, shape (images,); -1 for images that have no patch."""
    used = np.unique(patches.index[:, 0])
    number_of = np.full(len(patches.images), -1)
    sizes = np.asarray([patches.images[image].nbytes if is_stored(patches.images[image]) else 0 for image in used])
    if sizes.sum() <= window_bytes:
        number_of[used] = 0
        return number_of
    shuffled = rng.permutation(len(used))
    filled = np.cumsum(sizes[shuffled])
    _, number_of[used[shuffled]] = np.unique((filled - 1) // window_bytes, return_inverse=True)
    return number_of
