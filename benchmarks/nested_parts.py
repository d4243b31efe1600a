"""Parts that `nested.py` tries beside those of the package: one hypothesis each, fitted like any other detector."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, spatial

from unary.detectors.blind_spot import BlindSpot, BlindSpotConfig, build_blind_spot, surprise_loss
from unary.detectors.clusters import find_specks
from unary.detectors.coarse import STEP, Coarse, enlarge_cells, smooth_inside, sum_cells
from unary.detectors.dense_laplacian import DenseLaplacian, DenseLaplacianConfig
from unary.detectors.prominence import Prominence, ProminenceConfig
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.scoring import measure_normals
from unary.detectors.states import describe_config, describe_network, read_config, require_fitted, restore_network
from unary.detectors.tissue import examine_answer
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.engine import StepsConfig, train_steps

Plane = NDArray[np.float32]
_CELL = 4  # of the sums over specks, as in `unary.detectors.clusters`
_REGION = BlindSpotConfig(
    features=8, hidden=16, window_px=17, training=StepsConfig(steps=1000, batch_size=8, learning_rate=4e-3)
)
_NOWHERE: Origins = np.zeros((0, 2), np.int32)


@dataclass(frozen=True, eq=False)
class WithMuscle(Prominence):
    """Prominence as it was in 0.2.0, the pectoral muscle among the tissue."""

    config: ProminenceConfig = field(default=ProminenceConfig(muscle=False))


@dataclass(frozen=True, eq=False)
class SecondBlindSpot(BlindSpot):
    """The blind spot learned once more, from other weights and other crops: do two err differently?"""

    def fit(self, normals: PatchSet, context: FitContext) -> SecondBlindSpot:
        return super().fit(normals, dataclasses.replace(context, seed=context.seed + 1000))  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class RegionBlindSpot:
    """A region predicted from what surrounds it: the blind spot on cells of 1.1 mm, blind for 4.5 mm to each side."""

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals only"
    config: BlindSpotConfig = field(default=_REGION)
    network: Any = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> RegionBlindSpot:
        planes = [_standardise(View(pixels, mask).coarse) for pixels, mask, *_ in normals.views()]
        network, side = build_blind_spot(self.config, seed=context.seed), 64
        planes = [
            tuple(np.pad(part, [(0, max(side - length, 0)) for length in part.shape]) for part in pair)
            for pair in planes
        ]

        def draw(rng: np.random.Generator, count: int) -> Sequence[torch.Tensor]:
            crops = []
            for _ in range(count):
                values, inside = planes[int(rng.integers(len(planes)))]
                rows, cols = np.nonzero(inside)
                which = int(rng.integers(len(rows)))
                row, col = (
                    int(np.clip(place - rng.integers(side), 0, length - side))
                    for place, length in zip((rows[which], cols[which]), values.shape, strict=True)
                )
                window, turns = (slice(row, row + side), slice(col, col + side)), int(rng.integers(8))
                crop = np.rot90(np.stack([values[window], inside[window]]), turns % 4, (1, 2))
                crops.append(crop[:, :, ::-1] if turns > 3 else crop)
            stack = torch.from_numpy(np.stack(crops).astype(np.float32))
            return [stack[:, :1], stack[:, 1:]]

        def compute_loss(values: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
            mean, log_spread = network(values.contiguous(memory_format=torch.channels_last))
            here = inside > 0
            return surprise_loss(values[here], mean[here], log_spread[here])

        settings = {**dataclasses.asdict(self.config), "training": None}
        steps = self.config.training
        train_steps(network, draw, compute_loss, steps, context, name="region", settings=settings, data=normals)
        return dataclasses.replace(self, network=network)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        network = require_fitted(self.network, "region")
        values, inside = _standardise(view.coarse)
        with torch.inference_mode():
            stack = torch.from_numpy(values[None, None].astype(np.float32))
            mean, log_spread = network(stack.contiguous(memory_format=torch.channels_last))
        spread = np.exp(log_spread[0, 0].numpy())
        typical = float(np.median(spread[inside])) if inside.any() else 1.0
        surprise = (values - mean[0, 0].numpy()) / np.sqrt(spread * typical)
        return _answer(view, np.where(inside, surprise, 0), origins, size_px=size_px, with_map=with_map)

    def get_state(self) -> DetectorState:
        return describe_network(self.config, self.network, "region")

    @classmethod
    def from_state(cls, state: DetectorState) -> RegionBlindSpot:
        return cls(*restore_network(state, BlindSpotConfig, lambda config: build_blind_spot(config, seed=0)))


def _standardise(coarse: Coarse) -> tuple[Plane, NDArray[np.bool_]]:
    """Brightness without the muscle, lightly smoothed, in spreads of the image; 0 outside."""
    if coarse.muscle.any():
        coarse = coarse.leave_out(ndimage.binary_dilation(coarse.muscle, iterations=2))
    mean = smooth_inside(coarse, 1.5)[0]
    own = mean[coarse.inside]
    if own.size == 0 or not own.std() > 0:
        return np.zeros_like(mean), coarse.inside
    return np.where(coarse.inside, (mean - own.mean()) / own.std(), 0).astype(np.float32), coarse.inside


def _answer(view: View, cells: NDArray[Any], origins: Origins, *, size_px: int, with_map: bool) -> Examination:
    answer = enlarge_cells(cells.astype(np.float32), view.shape)
    return examine_answer(view, answer, origins, size_px=size_px, strongest=400, with_map=with_map)


@dataclass(frozen=True)
class MemoryConfig:
    """How many normal places are remembered, and which neighbour's distance counts."""

    size: int = 20_000
    neighbour: int = 10


@dataclass(frozen=True, eq=False)
class Memory:
    """Features of normal places remembered: how much denser normal places lie around the neighbours than around this.

    Features of a cell of 1.1 mm: standardised brightness smoothed at 1, 2, 4 and 8 cells, the two differences of
    neighbouring scales in units of the local spread, the local spreads, and the depth under the edge of the tissue.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals only"
    config: MemoryConfig = MemoryConfig()
    bank: Plane | None = field(default=None, repr=False)
    density: Plane | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Memory:
        rng, found = np.random.default_rng(context.seed), []
        views = list(normals.views())
        for pixels, mask, *_ in views:
            features, inside = _describe_cells(View(pixels, mask).coarse)
            own = features[inside]
            found.append(own[rng.permutation(len(own))[: self.config.size // len(views)]])
        bank = np.concatenate(found).astype(np.float32)
        distances = spatial.cKDTree(bank).query(bank, self.config.neighbour + 1)[0][:, -1]
        return dataclasses.replace(self, bank=bank, density=distances.astype(np.float32))

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        bank, density = require_fitted(self.bank, "memory"), require_fitted(self.density, "memory")
        features, inside = _describe_cells(view.coarse)
        answer = np.zeros(inside.shape, np.float32)
        if inside.any():
            distances, neighbours = spatial.cKDTree(bank).query(features[inside], self.config.neighbour)
            answer[inside] = np.log((distances[:, -1] + 1e-3) / (density[neighbours].mean(axis=1) + 1e-3))
        return _answer(view, answer, origins, size_px=size_px, with_map=with_map)

    def get_state(self) -> DetectorState:
        bank, density = require_fitted(self.bank, "memory"), require_fitted(self.density, "memory")
        return DetectorState({"config": describe_config(self.config)}, {"bank": bank, "density": density})

    @classmethod
    def from_state(cls, state: DetectorState) -> Memory:
        config = read_config(MemoryConfig, state.settings["config"])
        return cls(config, np.asarray(state.tensors["bank"]), np.asarray(state.tensors["density"]))


def _describe_cells(coarse: Coarse) -> tuple[Plane, NDArray[np.bool_]]:
    values, inside = _standardise(coarse)
    kept = Coarse(values, inside)
    scales = [smooth_inside(kept, sigma)[0] for sigma in (1.0, 2.0, 4.0, 8.0)]
    squares = Coarse(np.square(values - scales[-1]) * inside, inside)
    spread = np.sqrt(np.maximum(smooth_inside(squares, 8.0)[0], 0)) + 0.05
    differences = [(scales[k] - scales[k + 1]) / spread for k in range(3)]
    depth = np.log1p(ndimage.distance_transform_edt(inside)) / 2
    return np.stack([scales[2], scales[3], *differences, spread, depth], axis=-1).astype(np.float32), inside


@dataclass(frozen=True)
class SpeckConfig:
    """Which levels count, as one maximum in so many pixels of normal tissue, and how far around a place."""

    one_in_px: tuple[int, ...] = (3_000, 10_000, 30_000, 100_000)
    reach_px: float = 21.0
    bins: int = 1


@dataclass(frozen=True, eq=False)
class HigherCriticism:
    """Specks above several levels, each count standardised against what normal tissue has; the largest speaks."""

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals only"
    config: SpeckConfig = SpeckConfig()
    laplacian: DenseLaplacian | None = field(default=None, repr=False)
    levels: NDArray[np.float64] | None = None  # (levels, bins)
    edges: NDArray[np.float64] | None = None  # of the local brightness

    def fit(self, normals: PatchSet, context: FitContext) -> HigherCriticism:
        laplacian = DenseLaplacian(DenseLaplacianConfig()).fit(normals, context)

        def measure(view: View, origins: Origins) -> list[NDArray[np.float64]]:
            response = laplacian.examine(view, _NOWHERE, size_px=normals.size_px).require_map()
            places, values = find_specks(response, -math.inf)
            bright = _local_brightness(view)
            cells = bright[tuple((places // _CELL).T)]
            everywhere = bright[_cells_inside(view) > 0.5]
            return [values.astype(np.float64), cells.astype(np.float64), everywhere.astype(np.float64)]

        values, own, everywhere = measure_normals(measure, normals, title=context.name_bar("criticism"))
        edges = np.quantile(everywhere, np.linspace(0, 1, self.config.bins + 1)[1:-1])
        of_speck, of_cell = np.digitize(own, edges), np.digitize(everywhere, edges)
        levels = np.zeros((len(self.config.one_in_px), self.config.bins))
        for part in range(self.config.bins):
            ordered = np.sort(values[of_speck == part])[::-1]
            area = float((of_cell == part).sum()) * _CELL**2
            for number, rare in enumerate(self.config.one_in_px):
                levels[number, part] = ordered[min(max(int(area / rare), 5), len(ordered) - 1)]
        return dataclasses.replace(self, laplacian=laplacian, levels=levels, edges=edges)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        laplacian, levels = require_fitted(self.laplacian, "criticism"), require_fitted(self.levels, "criticism")
        response = laplacian.examine(view, _NOWHERE, size_px=size_px).require_map()
        places, values = find_specks(response, float(levels.min()))
        inside, sigma = _cells_inside(view), self.config.reach_px / _CELL
        share = ndimage.gaussian_filter(inside, sigma, mode="constant")
        which = np.digitize(_local_brightness(view)[tuple((places // _CELL).T)], require_fitted(self.edges, "edges"))
        area, answers = 4 * math.pi * self.config.reach_px**2, []
        for rare, level in zip(self.config.one_in_px, levels, strict=True):
            counts = np.zeros(inside.shape)
            np.add.at(counts, tuple((places[values > level[which]] // _CELL).T), 1)
            around = ndimage.gaussian_filter(counts, sigma, mode="constant") * (4 * math.pi * sigma**2)
            expected = area / rare
            answers.append((around / (share + 0.1) - expected) / math.sqrt(expected + 0.5))
        best = np.where(inside > 0, np.max(answers, axis=0), 0).astype(np.float32)
        scores = np.asarray(
            [
                best[row // _CELL : -(-(row + size_px) // _CELL), col // _CELL : -(-(col + size_px) // _CELL)].max()
                for row, col in origins.tolist()
            ],
            np.float64,
        ).reshape(len(origins))
        answer = enlarge_cells(best, view.shape, _CELL).copy()
        np.copyto(answer, np.float32(np.nan), where=~view.tissue.mask)
        return Examination(scores, answer if with_map else None)

    def get_state(self) -> DetectorState:
        laplacian = require_fitted(self.laplacian, "criticism")
        tensors = {"levels": require_fitted(self.levels, "levels"), "edges": require_fitted(self.edges, "edges")}
        settings = {"config": describe_config(self.config), "laplacian": laplacian.get_state().settings}
        return DetectorState(settings, tensors)

    @classmethod
    def from_state(cls, state: DetectorState) -> HigherCriticism:
        laplacian = DenseLaplacian.from_state(DetectorState(state.settings["laplacian"]))
        levels, edges = (np.asarray(state.tensors[name]) for name in ("levels", "edges"))
        return cls(read_config(SpeckConfig, state.settings["config"]), laplacian, levels, edges)


@dataclass(frozen=True, eq=False)
class HigherCriticismByDensity(HigherCriticism):
    """The same, what is rare being asked of tissue as bright as that around the speck."""

    config: SpeckConfig = SpeckConfig(bins=4)


def _cells_inside(view: View) -> NDArray[np.float32]:
    return (sum_cells(view.tissue.mask.astype(np.float32), _CELL) / _CELL**2).astype(np.float32)


def _local_brightness(view: View) -> NDArray[np.float32]:
    """The mean intensity over some 2 mm, of cells of 4 x 4 pixels."""
    inside = _cells_inside(view)
    bright = sum_cells(view.tissue.read_intensity(0, view.shape[0]) * view.tissue.mask, _CELL) / _CELL**2
    sigma = 4.0
    around: NDArray[np.float32] = ndimage.gaussian_filter(bright, sigma) / (
        ndimage.gaussian_filter(inside, sigma) + 1e-3
    )
    return around


assert STEP % _CELL == 0
