"""Whole pictures by their nearest normal neighbours, place by place: chest films, slices of MR, any grey picture.

A picture is cropped to what it shows, brought to 64 x 64 pixels and divided by its own spread, so that size, margin and
contrast do not count. At each of 5 x 5 overlapping places, half as wide and high as the picture, it is compared with
every normal picture in two ways at once. A small copy of the place, normalised by itself, holds the anatomy; logarithms
of the local energies of Gaussian derivatives, by scale and direction, hold the texture. The distance to the nearest
normal picture, mirrored ones included, is the abnormality of the place. A distance has two sides: a lung that is
smoother than normal departs from it as much as a rougher one, where errors of reconstruction fall.

Nothing is trained. The memory of normal pictures is all that is kept, 6 kB each, and it resembles them: a model is to
be guarded as the pictures are. Nearest neighbours of local features are those of SPADE (Cohen and Hoshen 2020) and
PatchCore (Roth et al. 2022), with filters in the place of a pretrained network.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage, sparse

from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import describe_config, read_config, require_fitted
from unary.detectors.tissue import pool_patches
from unary.errors import TrainingError, require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import FULL_SCALE
from unary.progress import show_progress
from unary.training.context import FitContext

_FRAME_PX = 64
_CELL_PX = 8  # over which energies are averaged
_SMALL_PX = 16  # of the small copy
_CELLS = _FRAME_PX // _CELL_PX
_PLACES = 5  # per axis
_SIGMAS_PX = (1.0, 2.0, 4.0)
_PER_SIGMA = 6
_CHANNELS = 1 + _PER_SIGMA * len(_SIGMAS_PX)
_FLOOR = 1e-4  # of energy, below its logarithm
_OWN_FLOOR = 0.1  # of a place's own spread, in spreads of the picture
_SHARED = 0.1  # of the spread over all places, added to that of each
_SAME = 1e-8  # squared distance below which two pictures are one
_CONTENT = 0.1  # of the 99th percentile: what is darker is background
_CONTENT_SHARE = 0.02  # of a row or column that shows something
_CONTENT_PX = 512  # a longer side of more is thinned to less before its content is looked for
_ORDERS = ((0, 1), (1, 0), (0, 2), (2, 0))


@dataclass(frozen=True)
class NearestNeighbourConfig:
    """Parameters of the comparison.

    Attributes
    ----------
    mirror
        Whether the mirror image of a normal picture is normal too.
    most_pictures
        How many normal pictures are kept, drawn by the seed where there are more.
    smoothing
        Standard deviation, in steps between places, of the Gaussian by which the map joins them.
    """

    mirror: bool = True
    most_pictures: int = 4000
    smoothing: float = 1.5

    def __post_init__(self) -> None:
        require_positive(self, "most_pictures", "smoothing")
        if not 0.1 <= self.smoothing <= 100:
            raise ValueError(f"smoothing must lie in [0.1, 100] places, got {self.smoothing}")


@dataclass(frozen=True, eq=False)
class Memory:
    """What is kept of n normal pictures, float32.

    ``energies``, shape (n, 19, 8, 8), are logarithms, of which ``mean`` and ``spread``, (19, 8, 8) each, are those of
    the pictures and their mirror images; ``copies``, (n, 16, 16), are the small pictures.
    """

    energies: NDArray[np.float32]
    copies: NDArray[np.float32]
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    def __post_init__(self) -> None:
        count, cells = len(self.energies), (_CHANNELS, _CELLS, _CELLS)
        expected = {
            "energies": (count, *cells),
            "copies": (count, _SMALL_PX, _SMALL_PX),
            "mean": cells,
            "spread": cells,
        }
        for name, shape in expected.items():
            values = getattr(self, name)
            if values.shape != shape or values.dtype != np.float32 or not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite float32 of shape {shape}, is {values.dtype} {values.shape}")
        if count < 2 or not (self.spread > 0).all():
            raise ValueError("at least two pictures, and positive spreads, are needed")

    @cached_property
    def standard(self) -> NDArray[np.float32]:
        """The energies, each place's and channel's in units of its spread."""
        return (self.energies - self.mean) / self.spread

    @cached_property
    def blocks(self) -> NDArray[np.float32]:
        """Each copy's places, normalised by themselves, shape (n, 5, 5, 64)."""
        return _cut_blocks(self.copies)

    def compare(self, energies: NDArray[np.float32], copy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the squared distances of a picture from every kept one at every place, shape (n, 5, 5)."""
        texture = np.square(self.standard - (energies - self.mean) / self.spread).mean(axis=1)
        windows = sliding_window_view(texture, (_CELLS // 2, _CELLS // 2), axis=(1, 2)).mean(axis=(-2, -1))
        distances: NDArray[np.float32] = windows + np.square(self.blocks - _cut_blocks(copy[None])).mean(axis=-1)
        return distances


@dataclass(frozen=True, eq=False)
class NearestNeighbour:
    """Distance of each place of a picture from the nearest normal picture there.

    The map is a weighted mean of the 25 distances, NaN outside of what the picture shows; a patch scores by its highest
    value. It says how far the picture departs, and hardly where: each place is a quarter of it. A picture that the
    memory holds is not its own neighbour. ``memory`` is None before fitting.
    """

    grid: ClassVar[Grid] = "working"
    working_size_px: ClassVar[int] = 128
    knowledge: ClassVar[Knowledge] = "normals only"
    config: NearestNeighbourConfig = NearestNeighbourConfig()
    memory: Memory | None = None

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse patches of fewer than two pictures; see `unary.detectors.protocol.Detector`."""
        if len(np.unique(normals.index[:, 0])) < 2:
            raise TrainingError(
                "nearest_neighbour compares whole pictures and needs at least two normal ones, there is one: give more"
            )

    def fit(self, normals: PatchSet, context: FitContext) -> NearestNeighbour:
        """Remember the pictures that have a patch; see `unary.detectors.protocol.Detector.fit`."""
        self.check_patches(normals)
        numbers = np.unique(normals.index[:, 0])
        if len(numbers) > self.config.most_pictures:
            rng = np.random.default_rng(context.seed)
            numbers = rng.choice(numbers, self.config.most_pictures, replace=False)
            normals = normals.subset(np.isin(normals.index[:, 0], numbers))
        title = context.name_bar("nearest_neighbour")
        views = show_progress(
            normals.views(), title=title or "", unit="picture", total=len(numbers), shown=title is not None
        )
        described = [describe_picture(_to_frame(_crop(pixels)[0])) for pixels, *_ in views]
        energies, copies = (np.stack(part) for part in zip(*described, strict=True))
        both = np.concatenate([energies, _mirror_energies(energies)])
        spread = both.std(axis=0) + np.float32(_SHARED) * both.std(axis=(0, 2, 3))[:, None, None]
        if not (spread > 0).all():
            raise TrainingError("nearest_neighbour: the normal pictures are all alike; are they blank?")
        return dataclasses.replace(self, memory=Memory(energies, copies, both.mean(axis=0), spread))

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`."""
        memory = require_fitted(self.memory, "nearest_neighbour")
        if 0 in view.shape:
            return Examination(np.zeros(len(origins)), np.zeros(view.shape, np.float32) if with_map else None)
        content, box = _crop(view.pixels)
        places = self._measure_places(memory, *describe_picture(_to_frame(content)))
        down, across = (
            _spread_places(length, own, self.config.smoothing) for length, own in zip(view.shape, box, strict=True)
        )
        rows = np.einsum("rp,pq->rq", down, places).astype(np.float32)
        answer = np.einsum("rp,cp->rc", rows, across.astype(np.float32))
        scores = pool_patches(answer, origins, size_px=size_px, strongest=1)
        if not with_map:
            return Examination(scores, None)
        shown = np.zeros(view.shape, bool)
        shown[box] = view.mask[box]
        return Examination(scores, np.where(shown, answer, np.float32(np.nan)))

    def _measure_places(
        self, memory: Memory, energies: NDArray[np.float32], copy: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Distances from the nearest normal picture, shape (5, 5)."""
        found = memory.compare(energies, copy)
        others = found.mean(axis=(1, 2)) > _SAME
        if self.config.mirror:
            mirrored = memory.compare(_mirror_energies(energies), np.ascontiguousarray(copy[:, ::-1]))
            found = np.minimum(found, mirrored[:, :, ::-1])
        if others.any():
            found = found[others]
        nearest: NDArray[np.float64] = np.sqrt(found.min(axis=0).astype(np.float64))
        return nearest

    def get_state(self) -> DetectorState:
        """Return configuration and memory."""
        memory = require_fitted(self.memory, "nearest_neighbour")
        tensors = {field.name: getattr(memory, field.name) for field in dataclasses.fields(memory)}
        return DetectorState({"config": describe_config(self.config)}, tensors)

    @classmethod
    def from_state(cls, state: DetectorState) -> NearestNeighbour:
        config = read_config(NearestNeighbourConfig, state.settings["config"])
        return cls(config, Memory(**{field.name: state.tensors[field.name] for field in dataclasses.fields(Memory)}))


def find_content(pixels: NDArray[np.uint16]) -> tuple[slice, slice]:
    """Return the box, rows and columns, of what a picture shows; all of it where nothing stands out from a background.

    Background is outside of the tissue, or darker than a tenth of the 99th percentile after smoothing that removes
    dust. What is written beside a picture counts as shown.
    """
    tissue = pixels > 0
    whole = tuple(_find_range(np.any(tissue, axis=1 - axis, keepdims=True).ravel()) for axis in (0, 1))
    inside = pixels[whole]
    step = -(-max(inside.shape) // _CONTENT_PX)
    thinned = inside[::step, ::step].astype(np.float32)
    smooth = ndimage.gaussian_filter(thinned, max(thinned.shape) / 100, mode="constant")
    bright = smooth > _CONTENT * np.percentile(smooth, 99)
    box = []
    for axis, around in enumerate(whole):
        found = _find_range(bright.mean(axis=1 - axis) > _CONTENT_SHARE)
        stop = min(found.stop * step, around.stop - around.start)
        box.append(slice(around.start + found.start * step, around.start + stop))
    return box[0], box[1]


def _find_range(shown: NDArray[np.bool_]) -> slice:
    """From the first that is set to the last; all where none is."""
    places = np.flatnonzero(shown)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, len(shown))


def describe_picture(frame: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the log energies, shape (19, 8, 8), and the small copy, (16, 16), of a picture of 64 x 64, both float32.

    The channels are the mean and, by scale, the energies of the first derivative in four directions and of the
    Laplacian where it is positive and where it is negative.
    """
    channels = [_average(frame, _CELL_PX)]
    for sigma in _SIGMAS_PX:
        dx, dy, dxx, dyy = (
            ndimage.gaussian_filter(frame, sigma, order=order, mode="nearest") * np.float32(sigma ** sum(order))
            for order in _ORDERS
        )
        laplacian = dxx + dyy
        answers = (dx, dy, (dx + dy) / np.float32(2**0.5), (dx - dy) / np.float32(2**0.5))
        energies = (*answers, np.maximum(laplacian, 0), np.minimum(laplacian, 0))
        channels += [np.log(_average(np.square(answer), _CELL_PX) + np.float32(_FLOOR)) for answer in energies]
    return np.stack(channels), _average(frame, _FRAME_PX // _SMALL_PX)


def _crop(pixels: NDArray[np.uint16]) -> tuple[NDArray[np.float32], tuple[slice, slice]]:
    """What a picture shows, in [0, 1], and where."""
    box = find_content(pixels)
    return pixels[box].astype(np.float32) / np.float32(FULL_SCALE), box


def _to_frame(content: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring to 64 x 64 by a triangle as wide as a new pixel or an old one, whichever is wider; standardise."""
    down, across = (_weigh_triangles(length) for length in content.shape)
    frame = np.asarray(across @ np.ascontiguousarray((down @ content).T), np.float32).T
    return np.ascontiguousarray((frame - frame.mean()) / (frame.std() + np.float32(1e-3)))


@functools.lru_cache(maxsize=16)  # most pictures of a set are of one size
def _weigh_triangles(length: int) -> sparse.csr_array[np.float32, tuple[int, int]]:
    """Weights of the old samples of an axis, columns, in each of 64 new ones, rows."""
    step = length / _FRAME_PX
    centres = (np.arange(_FRAME_PX) + 0.5) * step - 0.5
    distance = np.abs(centres[:, None] - np.arange(length)) / max(step, 1.0)
    weights = np.maximum(1 - distance, 0)
    nearest = distance == distance.min(axis=1, keepdims=True)  # beyond the outermost sample it stands for itself
    weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, nearest)
    return sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def _average(values: NDArray[np.float32], block_px: int) -> NDArray[np.float32]:
    """Means of square blocks."""
    rows, cols = (length // block_px for length in values.shape)
    means: NDArray[np.float32] = values.reshape(rows, block_px, cols, block_px).mean(axis=(1, 3))
    return means


def _mirror_energies(energies: NDArray[np.float32]) -> NDArray[np.float32]:
    """The energies of the mirror image: the two diagonals change places."""
    order = np.arange(_CHANNELS)
    for first in range(1, _CHANNELS, _PER_SIGMA):
        order[[first + 2, first + 3]] = order[[first + 3, first + 2]]
    return np.ascontiguousarray(np.take(energies, order, axis=-3)[..., ::-1])


def _cut_blocks(copies: NDArray[np.float32]) -> NDArray[np.float32]:
    """Places of small copies, each less its mean and in units of its spread, shape (n, 5, 5, 64)."""
    side, step = _SMALL_PX // 2, _SMALL_PX // _CELLS
    cut = sliding_window_view(copies, (side, side), axis=(1, 2))[:, ::step, ::step]
    blocks = cut.reshape(len(copies), _PLACES, _PLACES, side * side)
    blocks = blocks - blocks.mean(axis=-1, keepdims=True)
    normalised: NDArray[np.float32] = blocks / (blocks.std(axis=-1, keepdims=True) + np.float32(_OWN_FLOOR))
    return normalised


def _spread_places(length: int, box: slice, smoothing: float) -> NDArray[np.float64]:
    """Weights of the five places of an axis, columns, at each of its pixels, rows; each row adds up to 1."""
    centres = (np.arange(_PLACES) + _CELLS / 4) / _CELLS  # in sides of the box
    position = (np.arange(length) + 0.5 - box.start) / (box.stop - box.start)
    distance = (np.clip(position, centres[0], centres[-1])[:, None] - centres) * _CELLS / smoothing
    weights = np.exp(-0.5 * np.square(distance))
    spread: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return spread
