"""The pixels that the page shows: all 16 bits of them, at full size and at halves of it, in bounded memory."""

from __future__ import annotations

import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unary.clinic.review.results import ReviewedImage, list_places
from unary.errors import ImageError, Reason
from unary.files import hash_file
from unary.images.isolation import IsolatedReader
from unary.images.isolation_process import ReadingLimits
from unary.patches.bright_region import find_bright_region
from unary.profiles import DEFAULT
from unary.records import Image

TILE_PX = 512
_WORDS = 2**16
_SMALLEST_PX = 256  # the long side of the last level is at most twice this
_PERCENTILES = (2, 99.9)  # of the tissue, which the first window spans
_BELOW = 0.2  # of that span, by which the window begins lower: what is thin, at the skin, is dark and not black
_CLEARER = 1.3  # times as much tissue at one border as at the other tells the chest wall
_READERS = 2
MAP_FILE = "map.tiff"
_MAP_PX = 1024  # the long side of a heat map as it is sent

State = Literal["missing", "changed", "refused"]


class SourceError(Exception):
    """An image's pixels cannot be shown; the state says which way, the message why, in words for the reader."""

    def __init__(self, state: State, message: str, reason: Reason | None = None) -> None:
        super().__init__(message)
        self.state: State = state
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Pyramid:
    """One image for display.

    Attributes
    ----------
    levels
        uint16, (rows, cols); level k has the means of blocks of 2**k x 2**k stored pixels.
    offset, step
        A stored value is ``offset + step * word``. Where the values of the file fit into 16 bits, ``step`` is 1 and
        nothing is lost.
    window
        The words that are shown black and white at first.
    chest_wall
        At which border of the stored image tissue begins; None where neither has clearly more.
    path
        The file that was read.
    patient
        `unary.images.attributes.Attributes.patient`.
    """

    levels: tuple[NDArray[np.uint16], ...]
    offset: float
    step: float
    window: tuple[int, int]
    chest_wall: Literal["left", "right"] | None
    spacing_mm: tuple[float, float] | None
    laterality: str | None
    view: str | None
    path: Path | None = field(default=None, repr=False)
    patient: str | None = field(default=None, repr=False)

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return sum(level.nbytes for level in self.levels)

    def cut_tile(self, level: int, row: int, col: int) -> NDArray[np.uint16] | None:
        """Return one tile of a level, by its number down and across; None where there is none."""
        if not 0 <= level < len(self.levels) or min(row, col) < 0:
            return None
        pixels = self.levels[level]
        tile = pixels[row * TILE_PX : (row + 1) * TILE_PX, col * TILE_PX : (col + 1) * TILE_PX]
        return np.ascontiguousarray(tile) if tile.size else None


def build_pyramid(image: Image, patient: str | None = None) -> Pyramid:
    """Return what is shown of an image."""
    words, offset, step = _fit_words(image)
    levels = [words]
    while max(levels[-1].shape) > 2 * _SMALLEST_PX:
        levels.append(_halve(levels[-1]))
    region = find_bright_region(levels[1] if len(levels) > 1 else words)
    shown = (levels[1] if len(levels) > 1 else words)[region]
    low, high = np.percentile(shown if shown.size else words, _PERCENTILES)
    low = max(float(words.min()), low - _BELOW * (high - low))
    window = int(low), max(int(high), int(low) + 1)
    known: dict[str, Any] = {name: getattr(image, name) for name in ("spacing_mm", "laterality", "view", "path")}
    return Pyramid(tuple(levels), offset, step, window, _find_chest_wall(region), patient=patient, **known)


def _fit_words(image: Image) -> tuple[NDArray[np.uint16], float, float]:
    """The pixels in 16 bits, exactly where that is possible; padding is as dark as the darkest measurement."""
    pixels = image.pixels
    measured = pixels if image.padding is None or image.padding.all() else pixels[~image.padding]
    low, high = measured.min(), measured.max()
    if pixels.dtype.kind in "iu" and int(high) - int(low) < _WORDS:
        fits = int(low) >= 0 and int(high) < _WORDS
        offset, step = 0.0 if fits else float(low), 1.0
        words = np.clip(pixels.astype(np.int64) - int(offset), 0, _WORDS - 1).astype(np.uint16)
        if pixels.dtype == np.uint16:
            words = np.array(pixels)
    else:
        offset, step = float(low), (float(high) - float(low)) / (_WORDS - 1) or 1.0
        words = np.clip(np.rint((pixels.astype(np.float64) - offset) / step), 0, _WORDS - 1).astype(np.uint16)
    if image.padding is not None:
        words[image.padding] = round((float(low) - offset) / step)
    return words, offset, step


def _halve(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The rounded means of blocks of 2 x 2; a last odd row or column counts twice."""
    odd = [(0, size % 2) for size in pixels.shape]
    even = np.pad(pixels, odd, mode="edge") if any(more for _, more in odd) else pixels
    total = even[0::2, 0::2].astype(np.uint32)
    total += even[0::2, 1::2]
    total += even[1::2, 0::2]
    total += even[1::2, 1::2]
    total += 2
    total >>= 2
    return total.astype(np.uint16)


def _find_chest_wall(region: NDArray[np.bool_]) -> Literal["left", "right"] | None:
    width = max(1, region.shape[1] // 50)
    left, right = float(region[:, :width].mean()), float(region[:, -width:].mean())
    if max(left, right) < 0.05:
        return None
    return "left" if left > _CLEARER * right else "right" if right > _CLEARER * left else None


class PyramidCache:
    """Pyramids by image, the last used of them in memory up to so many bytes; safe to share between threads.

    Files are read in processes of their own, and shown only while they are what was examined, byte by byte.
    """

    def __init__(self, roots: Sequence[Path], *, limit_mib: int = 512, limits: ReadingLimits | None = None) -> None:
        self._roots, self._limit = tuple(roots), limit_mib * 2**20
        self._kept: OrderedDict[tuple[str, str], Pyramid] = OrderedDict()
        self._busy: dict[tuple[str, str], threading.Lock] = {}
        self._lock = threading.Lock()
        self._readers = [IsolatedReader(limits) for _ in range(_READERS)]
        self._free: queue.SimpleQueue[IsolatedReader] = queue.SimpleQueue()
        for reader in self._readers:
            self._free.put(reader)

    def close(self) -> None:
        """End the processes that read."""
        for reader in self._readers:
            reader.close()

    @property
    def size_bytes(self) -> int:
        """What is in memory."""
        with self._lock:
            return sum(pyramid.size_bytes for pyramid in self._kept.values())

    def get(self, image: ReviewedImage) -> Pyramid:
        """Return what is shown of an image; a `SourceError` where its file is gone, another, or cannot be read."""
        name = image.key, image.sha256
        with self._lock:
            found = self._find(name)
            busy = self._busy.setdefault(name, threading.Lock())
        if found is not None:
            return found
        with busy:
            with self._lock:
                found = self._find(name)
            if found is None:
                found = self._read(image)
                with self._lock:
                    self._keep(name, found)
        with self._lock:
            self._busy.pop(name, None)
        return found

    def _find(self, name: tuple[str, str]) -> Pyramid | None:
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def _keep(self, name: tuple[str, str], pyramid: Pyramid) -> None:
        self._kept[name] = pyramid
        size = sum(one.size_bytes for one in self._kept.values())
        while size > self._limit and len(self._kept) > 1:
            size -= self._kept.popitem(last=False)[1].size_bytes

    def find_file(self, image: ReviewedImage) -> Path:
        """Return the file that was examined; a `SourceError` where it is gone or has another content."""
        state: State = "missing"
        for path in list_places(image, self._roots):
            try:
                if not path.is_file():
                    continue
                if hash_file(path) == image.sha256:
                    return path
            except (OSError, ValueError):
                continue
            state = "changed"
        told = (
            "the image's file has changed since it was examined"
            if state == "changed"
            else "the image's file is no longer where it was when it was examined"
        )
        raise SourceError(state, told)

    def _read(self, image: ReviewedImage) -> Pyramid:
        path = self.find_file(image)
        with self._reading() as reader:
            try:
                patient = reader.read_attributes(path, DEFAULT.headers).patient
                return build_pyramid(reader.read(path), patient)
            except ImageError as error:  # its text names the file, which the page knows
                told = str(error).rpartition(f"{os.fspath(path)}: ")[2]
                raise SourceError("refused", f"the image's file cannot be read: {told}", error.reason) from error

    @contextmanager
    def _reading(self) -> Iterator[IsolatedReader]:
        reader = self._free.get()
        try:
            yield reader
        finally:
            self._free.put(reader)


@dataclass(frozen=True, eq=False)
class HeatMap:
    """An anomaly map as the page shows it.

    Attributes
    ----------
    shades
        uint8, (rows, cols), over the whole image: 0 at ``low`` and below and where nothing was scored, 255 at ``high``.
    """

    shades: NDArray[np.uint8]
    low: float
    high: float


def read_heat_map(folder: Path, *, threshold: float | None) -> HeatMap | None:
    """Return the anomaly map of a result, reduced by maxima; None where ``unary detect`` was not asked for ``--maps``.

    The scale begins halfway between the map's 90th percentile and the threshold, so that what is nearly a finding
    glows faintly, and ends at the highest value, or at the threshold where that is higher.
    """
    import tifffile

    path = folder / MAP_FILE
    try:
        found = np.asarray(tifffile.imread(path), np.float32)
    except (OSError, ValueError, tifffile.TiffFileError):
        return None
    if found.ndim != 2 or not np.isfinite(found).any():
        return None
    factor = -(-max(found.shape) // _MAP_PX)
    high_rows, high_cols = (-size % factor for size in found.shape)
    padded = np.pad(found, ((0, high_rows), (0, high_cols)), constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor)
    reduced = np.fmax.reduce(np.fmax.reduce(blocks, axis=3), axis=1)
    values = found[np.isfinite(found)]
    bulk, high = float(np.percentile(values, 90)), float(values.max())
    high = max(high, threshold) if threshold is not None else high
    low = (bulk + threshold) / 2 if threshold is not None and threshold > bulk else bulk
    span = max(high - low, 1e-12)
    shades = np.clip(np.nan_to_num((reduced - low) / span, nan=0.0), 0, 1) * 255
    return HeatMap(np.rint(shades).astype(np.uint8), low, high)
