"""What every reader of files refuses, and in which words."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.errors import ImageError, Reason

_LARGEST_PIXELS = 400_000_000
# What readers and codecs raise on files that are damaged in one way or another; RecursionError is a RuntimeError.
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
    MemoryError, AssertionError, struct.error, zlib.error,
)  # fmt: skip


def build_refusal(name: Path | str, cause: str, reason: Reason) -> ImageError:
    """Return the error that says why an image is refused."""
    return ImageError(f"{name}: {cause}", reason=reason)


@contextmanager
def silencing(*loggers: str) -> Iterator[None]:
    """Keep libraries silent: their warnings and logs quote patients' names, or every oddity of a damaged file."""
    logs = [logging.getLogger(name) for name in loggers]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def check_size(rows: int, cols: int, path: Path) -> None:
    """Refuse before anything is decoded: a damaged header can ask for terabytes of memory."""
    if not 0 < rows * cols <= _LARGEST_PIXELS:
        cause = f"it declares {rows} x {cols} pixels; between 1 and {_LARGEST_PIXELS:,} can be read"
        raise build_refusal(path, cause, "TOO_LARGE" if rows * cols > 0 else "CORRUPT_PIXELS")


def convert_floats(pixels: NDArray[Any], path: Path) -> tuple[NDArray[Any], tuple[float, float]]:
    """Return floats in 32 bits, and their lowest and highest value; refuse those that are not finite there."""
    with np.errstate(over="ignore"):
        rounded = pixels.astype(np.float32)
    limits = (float(rounded.min()), float(rounded.max()))
    if not np.isfinite(limits).all():
        cause = "not finite (NaN or infinity)"
        cause = "beyond what 32-bit floats hold (3.4e38)" if np.isfinite(pixels).all() else cause
        raise build_refusal(path, f"it holds values that are {cause}", "CORRUPT_PIXELS")
    return rounded, limits
