"""Memory as C sources want it."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray


def aligned_zeros(size: int) -> NDArray[np.uint8]:
    """Return bytes that begin at a multiple of 64, as vector registers want it."""
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


def align(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Copy an array to where vector registers want it, float32."""
    copied = aligned_zeros(values.size * 4).view(np.float32).reshape(values.shape)
    copied[...] = values
    return copied


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    """Return the address of an array's first value; the array must outlive it."""
    return ctypes.c_void_p(array.ctypes.data)
