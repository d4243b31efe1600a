"""What `unary.detectors.laplacian` says of patches, in C (``native/laplacian.c``), some ten times as fast as in numpy.

The scores are the same but for rounding: the filters have the same taps, and the strongest pixels are those of the
whole window, not of an approximation. Patches about which the C source says that it cannot tell are left to numpy.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unary.detectors.filters import bend_kernel, gaussian_kernel, mirror_kernel, mirror_places
from unary.detectors.native.arrays import align, aligned_zeros, pointer
from unary.detectors.native.compiler import load_library
from unary.errors import CompilerError

logger = logging.getLogger(__name__)

_STEP_PX = 32  # a side is a multiple of two vectors of any processor
_MOST_SCALES, _MOST_STRONGEST, _MOST_NODES = 16, 64, 64
_NEAR = 0.01  # of the window's largest weight: nearer pixels than that decide how good the bounds are
_WIDEST = 1.2  # ratio of the bounds; at more, too many pixels would be looked at twice
_LEAST = 1e-30  # of what a node sees; less would only slow the processor down
_SHORTEST = 4  # taps that the filter along columns takes at a time


class _Bank(ctypes.Structure):
    """``struct bank``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("side", "scales", "reach", "window_reach", "count_nodes", "strongest")),
        *((name, ctypes.c_float) for name in ("floor", "low", "high", "excess", "least")),
        *((name, ctypes.c_void_p) for name in ("radii", "mirror", "bend", "smooth")),
        *((name, ctypes.c_void_p) for name in ("window", "nodes", "nodes_across")),
    )


class CompiledFilters:
    """Patches of one size seen through one filter bank. May be called from several threads.

    A `CompilerError` says that the C source cannot be compiled here.
    """

    def __init__(self, bank: _Bank, order: NDArray[np.int64], kept: Sequence[NDArray[np.generic]]) -> None:
        self._library = load_library("laplacian.c")
        self._library.unary_pool_memory.restype = ctypes.c_long
        self._bank, self._order, self._kept = bank, order, kept  # what the bank's addresses point to must live on
        self._own = threading.local()

    def pool(self, patches: NDArray[np.uint16] | NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean of the strongest pixels per scale, (n, scales), NaN where that is left to numpy.

        From patches, shape (n, side, side): uint16, 65535 being 1, or float32.
        """
        pooled = np.empty((len(patches), self._bank.scales))
        given = self._check(patches)
        self._library.unary_pool(ctypes.byref(self._bank), *self._pass_on(given), pointer(pooled))
        return pooled[:, self._order]

    def draw_maps(
        self,
        patches: NDArray[np.uint16] | NDArray[np.float32],
        means: Sequence[float],
        deviations: Sequence[float],
    ) -> NDArray[np.float32]:
        """Return the largest answer over scales at each pixel, (n, side, side), float32.

        An answer is less the mean of its scale, in units of its deviation; those are in the order of the scales.
        """
        given, back = self._check(patches), np.argsort(self._order)
        maps = np.empty(given.shape, np.float32)
        shifts = np.asarray(means, np.float32)[back]
        factors = np.asarray(1 / np.asarray(deviations), np.float32)[back]
        self._library.unary_map(
            *(ctypes.byref(self._bank), *self._pass_on(given), pointer(shifts), pointer(factors), pointer(maps))
        )
        return maps

    def _check(self, patches: NDArray[np.uint16] | NDArray[np.float32]) -> NDArray[np.uint16] | NDArray[np.float32]:
        side = self._bank.side
        if patches.shape[1:] != (side, side) or patches.dtype not in (np.uint16, np.float32):
            raise ValueError(f"need (n, {side}, {side}), uint16 or float32, got {patches.shape} {patches.dtype}")
        return patches if patches.flags.c_contiguous else patches.copy()

    def _pass_on(self, given: NDArray[np.uint16] | NDArray[np.float32]) -> tuple[object, ...]:
        """Patches, of one kind or the other, their number, and this thread's workplace."""
        kinds = (pointer(given), None) if given.dtype == np.uint16 else (None, pointer(given))
        return (*kinds, len(given), pointer(self._find_workplace()))

    def _find_workplace(self) -> NDArray[np.uint8]:
        """This thread's own."""
        if not hasattr(self._own, "workplace"):
            self._own.workplace = aligned_zeros(int(self._library.unary_pool_memory(ctypes.byref(self._bank))))
        workplace: NDArray[np.uint8] = self._own.workplace
        return workplace


@functools.lru_cache(maxsize=16)
def compile_filters(
    side: int, sigmas_px: tuple[float, ...], neighbourhood_px: float, strongest: int, *, floor: float
) -> CompiledFilters | None:
    """Return the filters of patches of a side, or None where the filter bank or the machine does not allow it.

    ``floor`` is added to the local root mean square; the rest is as in `unary.detectors.laplacian.LaplacianConfig`.
    """
    if side % _STEP_PX or len(sigmas_px) > _MOST_SCALES or strongest > _MOST_STRONGEST:
        return None
    kernel = gaussian_kernel(neighbourhood_px)
    window = mirror_kernel(kernel, side)
    if (bounds := _bound_window(window, neighbourhood_px)) is None:
        return None
    nodes, low, high, excess = bounds
    order = np.argsort(sigmas_px, kind="stable")
    kernels = [_halve(sigmas_px[number]) for number in order]
    radii = np.asarray([len(kernel) - 1 for kernel, _ in kernels], np.int32)
    reach = int(radii.max())
    mirror = mirror_places(side, reach).astype(np.int32)
    kept = [radii, mirror, align(window), align(nodes), align(nodes.T)]
    addresses = []
    for kind in (0, 1):
        taps = [align(pair[kind]) for pair in kernels]
        kept += [*taps, np.asarray([one.ctypes.data for one in taps], np.uintp)]
        addresses.append(pointer(kept[-1]))
    bank = _Bank(
        *(side, len(kernels), reach, len(kernel) // 2, nodes.shape[1], strongest),
        *(floor, low, high, excess, nodes.sum(axis=1).min()),
        *(pointer(radii), pointer(mirror), *addresses, *map(pointer, kept[2:5])),
    )
    try:
        return CompiledFilters(bank, np.argsort(order), kept)
    except CompilerError as error:
        logger.warning("numpy filters patches, many times slower than compiled code would: %s", error)
        return None


def _halve(sigma: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Taps from the middle outwards, zeros behind them: of minus the variance times the second derivative, and of the
    Gaussian.
    """
    halves = []
    for kernel in (-sigma * sigma * bend_kernel(sigma), gaussian_kernel(sigma)):
        half = kernel[len(kernel) // 2 :]
        halves.append(np.pad(half, (0, -(len(half) - 1) % _SHORTEST)).astype(np.float32))
    return halves[0], halves[1]


def _bound_window(
    window: NDArray[np.float64], sigma_px: float
) -> tuple[NDArray[np.float32], float, float, float] | None:
    """Return nodes N, (side, nodes), and ``low``, ``high``, ``excess``: low N N' - excess <= window <= high N N'.

    A Gaussian is the sum of products of two that are narrower by the root of two, over the nodes of a lattice; how
    nearly, is measured here. None says that no lattice is good enough.
    """
    side = len(window)
    for count in (8, 16, 32, 64):
        step, width = side / count, sigma_px / np.sqrt(2)
        if count > min(side // 2, _MOST_NODES):
            return None
        places = (np.arange(count) + 0.5) * step - 0.5
        turns = 2 * side * np.arange(-2 - int(8 * sigma_px / side), 3 + int(8 * sigma_px / side))
        seen = np.zeros((side, count))
        for turn in turns:
            for place in (places + turn, turn - 1 - places):
                seen += np.exp(-0.5 * np.square((np.arange(side)[:, None] - place) / width))
        near = window > _NEAR * window.max()
        seen *= np.sqrt((window[near] / (seen @ seen.T)[near]).mean())
        nodes = np.where(seen > _LEAST, seen, 0).astype(np.float32)
        product = nodes.astype(np.float64) @ nodes.T.astype(np.float64)
        if not (product[window > 0] > 0).all():
            continue
        low = float((window[near] / product[near]).min())
        high = float((window[window > 0] / product[window > 0]).max())
        if high <= _WIDEST * low:
            return nodes, low, high, float(np.maximum(low * product - window, 0).max())
    return None
