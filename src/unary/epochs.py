"""In which order an epoch of training sees its patches: all shuffled, or window by window from a store.

A batch of patches from all over a store would touch images all over the disk. So the images are shuffled first and cut
into windows of `WINDOW_BYTES`; within a window the patches are shuffled. A window is some 40 batches of the paper's,
from about 30 mammograms; the next one is read while one is used, and used ones are given back. The order
depends on the generator alone, so that a resumed run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from unary.patches import PatchSet
from unary.store import is_stored, load_pages, release_pages

WINDOW_BYTES = 1 << 28


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
    a larger store no more than two windows and what a batch spans lie in memory at a time. Without ``read`` the order
    is the same and nothing is read: for who has the pixels elsewhere.
    """
    order = rng.permutation(len(patches))
    number_of = _draw_windows(patches, rng, window_bytes)
    windows = [np.flatnonzero(number_of == number) for number in range(int(number_of.max(initial=0)) + 1)]
    if len(windows) > 1:
        order = order[np.argsort(number_of[patches.index[order, 0]], kind="stable")]
    starts = range(0, len(order), batch_size)
    if len(windows) == 1 or not read:
        load_pages(image for image in patches.images if read and is_stored(image))
        yield from (order[start : start + batch_size] for start in starts)
        return

    def load(number: int) -> None:
        load_pages(patches.images[image] for image in windows[number])

    with ThreadPoolExecutor(1, "unary-store") as reader:
        try:
            loading = [reader.submit(load, 0)]
            released = 0
            for start in starts:
                which = order[start : start + batch_size]
                first, last = number_of[patches.index[which[[0, -1]], 0]]
                while released < first:
                    release_pages(patches.images[image] for image in windows[released])
                    released += 1
                while len(loading) < min(last + 2, len(windows)):
                    loading[-1].result()
                    loading.append(reader.submit(load, len(loading)))
                loading[last].result()
                yield which
        finally:
            for other in loading:
                other.cancel()
            reader.shutdown()
            release_pages(patches.images)


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
