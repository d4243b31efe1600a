"""Blind-spot prediction: how surprising is a small neighbourhood, given everything around it?

A network predicts the mean and the spread of the intensity at a pixel from its surroundings, and never sees the pixel
or its nearest neighbours. Where tissue is regular the stated spread is small and a faint speck is a surprise; on an
edge or in busy tissue the spread is large and the same contrast is none. Reason to exist: alone it is no better than a
Laplacian of Gaussian, but it errs elsewhere, and without it the fusion finds far fewer calcifications at rare false
alarms (``docs/results/bench.md``, `fusion_unlearned`). Masked prediction with a stated variance is older (blind-spot
denoising, Krull et al. 2019; Laine et al. 2019); the shape of the network is our own.

How it is blind: two 3 x 3 convolutions give features that reach 2 pixels; one wide convolution gathers them but for its
centre, ``hole_px`` to each side; point-wise layers follow. No pixel nearer than ``hole_px`` - 1 counts.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.crops import draw_batch, draw_crop, find_sources, require_crops
from unary.detectors.devices import find_device, place_network
from unary.detectors.filters import MEAN_WINDOW_PX, subtract_local_mean
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import describe_network, require_fitted, restore_network
from unary.detectors.tissue import Strip, Tissue, examine_answer, find_typical, sample_scale
from unary.errors import require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.engine import StepsConfig, train_steps
from unary.training.threads import has_matrix_units, run_in_threads

GAIN = 20.0  # brings the fine structure of prepared images, 1 to 10 % of full scale, near 1
LOG_SPREAD = (-6.0, 6.0)
_FREEDOM = 4.0  # of Student's t: tissue has heavier tails than a Gaussian, which would stretch the spread for them
OUTSIDE = -9.0
_CROP_PX = 64
_TILE_PX = 192  # small enough to skip most of the background, and to stay in cache
_BAND_PX = 256
_MEAN_HALO_PX = 2 * (MEAN_WINDOW_PX // 2)


@dataclass(frozen=True)
class BlindSpotConfig:
    """The network, how a patch is scored, and training.

    Attributes
    ----------
    features
        Maps of the two local convolutions.
    hidden
        Maps of the wide convolution and after it.
    window_px
        Odd side of the wide convolution.
    hole_px
        Features nearer than this to the centre are not used; at least 3, for the prediction to be blind at all.
    strongest
        How many of the largest pixels of a patch are averaged.
    training
        Optimisation.
    """

    features: int = 16
    hidden: int = 32
    window_px: int = 13
    hole_px: int = 4
    strongest: int = 2
    training: StepsConfig = field(default=StepsConfig(steps=1000, batch_size=8, learning_rate=8e-3))

    def __post_init__(self) -> None:
        require_positive(self, "features", "hidden", "strongest")
        if self.window_px % 2 == 0 or not 3 <= self.hole_px < self.window_px // 2:
            raise ValueError(
                f"need an odd window_px and 3 <= hole_px < window_px // 2, got {self.window_px} and {self.hole_px}"
            )


class BlindSpotNetwork(nn.Module):
    """Predicts mean and log spread of a smoothed pixel from its surroundings.

    All layers but the last compute with numbers rounded to bfloat16, in training as in scoring (`_multiply`), unless
    ``rounds`` is False.
    """

    rounds = True

    def __init__(self, config: BlindSpotConfig) -> None:
        super().__init__()
        self.config = config
        self.reach_px = config.window_px // 2 + 3  # how far it sees
        self.local = nn.ModuleList([nn.Conv2d(1, config.features, 3), nn.Conv2d(config.features, config.features, 3)])
        self.wide = nn.Conv2d(config.features, config.hidden, config.window_px)  # the weights of its hole are not used
        self.point = nn.ModuleList([nn.Conv2d(config.hidden, config.hidden, 1), nn.Conv2d(config.hidden, 2, 1)])

    def without_rounding(self) -> BlindSpotNetwork:
        """Return the same network, of the same weights, that computes in float32: to compare arithmetics with."""
        network = copy.copy(self)
        network.rounds = False
        return network

    def forward(self, structure: Tensor) -> tuple[Tensor, Tensor]:
        """Map fine structure, (n, 1, rows, cols), to mean and log spread of its smoothed value, each of that shape."""
        if not torch.is_grad_enabled():
            return self.predict_inside(structure, (slice(None), slice(None)))
        # The same sums at once, with a hole in the weights, have the faster gradient.
        centre, hole = self.config.window_px // 2, self.config.hole_px
        around = torch.ones(self.config.window_px, self.config.window_px, device=structure.device)
        around[centre - hole : centre + hole + 1, centre - hole : centre + hole + 1] = 0
        features = self._find_features(structure)
        return self._predict(self._multiply(features, self.wide.weight * around, self.wide.bias, padding=centre))

    def predict_inside(self, structure: Tensor, window: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        """Do the same for a window of rows and columns alone, with what lies around it in view."""
        centre = self.config.window_px // 2
        (top, bottom, _), (left, right, _) = (
            part.indices(length) for part, length in zip(window, structure.shape[2:], strict=True)
        )
        padded = F.pad(self._find_features(structure), (centre, centre, centre, centre))
        return self._predict(self._gather_around(padded[:, :, top : bottom + 2 * centre, left : right + 2 * centre]))

    def _find_features(self, structure: Tensor) -> Tensor:
        features = structure
        for layer in self.local:
            features = self._convolve(features, layer, padding=1).relu_()
        return features

    def _predict(self, gathered: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._convolve(gathered.relu_(), self.point[0]).relu_()
        last = self.point[1]
        assert isinstance(last, nn.Conv2d)
        predicted = F.linear(hidden.permute(0, 2, 3, 1).float(), last.weight.flatten(1), last.bias)
        mean, log_spread = torch.split(predicted.permute(0, 3, 1, 2), 1, dim=1)
        return mean, log_spread.clamp(*LOG_SPREAD)

    def _gather_around(self, padded: Tensor) -> Tensor:
        """The wide convolution as two: of the bands above and below the hole, and of those to its left and right.

        Either lays its two bands over each other as twice as many features. That spares the multiplications with the
        hole, and fills the processor's vectors.
        """
        low = self.config.window_px // 2 - self.config.hole_px
        high = self.config.window_px - low
        weight = self.wide.weight
        answer = self._multiply(_lay_over(padded, high, 2), _lay_over(weight, high, 2), self.wide.bias)
        beside = (slice(None), slice(None), slice(low, -low))
        return answer.add_(self._multiply(_lay_over(padded[beside], high, 3), _lay_over(weight[beside], high, 3), None))

    def _convolve(self, values: Tensor, layer: nn.Module, *, padding: int = 0) -> Tensor:
        assert isinstance(layer, nn.Conv2d)
        return self._multiply(values, layer.weight, layer.bias, padding=padding)

    def _multiply(self, values: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int = 0) -> Tensor:
        multiply = _multiply if self.rounds else F.conv2d
        return multiply(values, weight, bias, padding=padding)


def _lay_over(values: Tensor, shift: int, axis: int) -> Tensor:
    """Double the features by those that lie ``shift`` further along an axis."""
    length = values.shape[axis] - shift
    return torch.cat([values.narrow(axis, 0, length), values.narrow(axis, shift, length)], 1)


def _multiply(values: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int = 0) -> Tensor:
    """Convolve numbers rounded to bfloat16, sum in float32, and return the sums rounded to bfloat16.

    That is what the matrix units of some processors do, several times as fast as float32. Others multiply the same
    rounded numbers in float32, so that a model means the same everywhere; sums in another order now and then round to
    the neighbouring number.
    """
    values, weight, bias = values.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()
    if values.device.type != "cpu" or not has_matrix_units():  # TF32, which GPUs may multiply by, holds such numbers
        values, weight, bias = values.float(), weight.float(), None if bias is None else bias.float()
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(values, weight, bias, padding=padding).bfloat16()


def build_blind_spot(config: BlindSpotConfig, *, seed: int) -> BlindSpotNetwork:
    """Return an untrained network; equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = BlindSpotNetwork(config)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def fine_structure(intensity: Tensor) -> Tensor:
    """Return intensity minus its local mean, scaled; (n, 1, rows, cols) both."""
    return subtract_local_mean(intensity) * GAIN


def smooth_target(structure: Tensor) -> Tensor:
    """Return what is predicted: the structure under a 3 x 3 binomial window, (n, 1, rows, cols)."""
    padded = F.pad(structure, (1, 1, 1, 1), mode="replicate")
    by_row = (padded[:, :, :-2] + padded[:, :, 2:]) * 0.25 + padded[:, :, 1:-1] * 0.5
    return (by_row[..., :-2] + by_row[..., 2:]) * 0.25 + by_row[..., 1:-1] * 0.5


def surprise_loss(target: Tensor, mean: Tensor, log_spread: Tensor) -> Tensor:
    """Negative log-likelihood of Student's t distribution, up to a constant; a scalar."""
    error = (target - mean) * torch.exp(-log_spread)
    return (log_spread + (_FREEDOM + 1) / 2 * torch.log1p(error.square() / _FREEDOM)).mean()


@dataclass(frozen=True, eq=False)
class BlindSpot:
    """Surprise of a pixel given its surroundings, by a network that never sees it.

    The map holds how much brighter a pixel is than expected, in units of the geometric mean of the spread stated there
    and of the image's median spread: a network that has seen few images claims too much where tissue is quiet. The
    score is the mean of a patch's strongest pixels. There is no network before fitting.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals only"
    config: BlindSpotConfig = BlindSpotConfig()
    network: BlindSpotNetwork | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> BlindSpot:
        """Learn to predict normal tissue from its surroundings; see `unary.detectors.protocol.Detector.fit`."""
        # The crops are of the fine structure, taken once per image rather than once per crop.
        title = context.name_bar("reading tissue")
        config, sources = self.config, find_sources(normals, _describe_structure, size_px=_CROP_PX, title=title)
        network = build_blind_spot(config, seed=context.seed)

        def draw(rng: np.random.Generator, count: int) -> Sequence[Tensor]:
            return draw_batch(lambda: (draw_crop(sources, rng, size_px=_CROP_PX), int(rng.integers(8))), count)

        def compute_loss(structure: Tensor) -> Tensor:
            mean, log_spread = network(structure.contiguous(memory_format=torch.channels_last))
            return surprise_loss(smooth_target(structure), mean, log_spread)

        settings = {**dataclasses.asdict(config), "training": None}
        train_steps(
            network, draw, compute_loss, config.training, context, name="blind_spot", settings=settings, data=normals
        )
        return dataclasses.replace(self, network=network)

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse by a `TrainingError` what could not be learned from."""
        require_crops(normals, _CROP_PX)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`."""
        answer = measure_surprise(require_fitted(self.network, "blind_spot"), view.tissue)
        strongest = self.config.strongest
        return examine_answer(view, answer, origins, size_px=size_px, strongest=strongest, with_map=with_map)

    def on_device(self, device: str) -> BlindSpot:
        """Return the same with its network there; see `unary.detectors.devices`."""
        return dataclasses.replace(self, network=place_network(self.network, device))

    def get_state(self) -> DetectorState:
        """Return configuration and weights."""
        return describe_network(self.config, self.network, "blind_spot")

    @classmethod
    def from_state(cls, state: DetectorState) -> BlindSpot:
        return cls(*restore_network(state, BlindSpotConfig, lambda config: build_blind_spot(config, seed=0)))


def _describe_structure(tissue: Tissue) -> tuple[NDArray[np.float32]]:
    intensity = torch.from_numpy(tissue.read_intensity(0, tissue.shape[0]))
    return (fine_structure(intensity[None, None])[0, 0].numpy(),)


def measure_surprise(network: BlindSpotNetwork, tissue: Tissue) -> NDArray[np.float32]:
    """Return the standardised surprise at each pixel, shape (rows, cols), float32; -9 outside the tissue."""
    surprise = np.zeros(tissue.shape, np.float32)
    samples = []
    for strip in tissue.strips(network.reach_px + _MEAN_HALO_PX):
        surprise[strip.rows], spread = _examine_strip(network, strip)
        samples.append(sample_scale(strip, spread, tissue.shape))
    typical = find_typical(samples)
    if typical is not None:  # the median is known only now; the network has run once all the same
        surprise /= np.float32(np.sqrt(typical))
    np.copyto(surprise, np.float32(OUTSIDE), where=~tissue.mask)
    return surprise


def _examine_strip(network: BlindSpotNetwork, strip: Strip) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Error by the root of the stated spread, and that spread, on a strip's own rows, tile by tile."""
    mask = strip.mask[strip.own]
    error: NDArray[np.float32] = np.zeros(mask.shape, np.float32)
    spread: NDArray[np.float32] = np.ones(mask.shape, np.float32)
    corners = itertools.product(*(range(0, length, _TILE_PX) for length in mask.shape))
    windows = [(slice(row, row + _TILE_PX), slice(col, col + _TILE_PX)) for row, col in corners]
    windows = [window for window in windows if mask[window].any()]
    if not windows:
        return error, spread
    structure = _find_structure(strip.intensity)
    reach, device = network.reach_px, find_device(network)

    def examine(window: tuple[slice, slice]) -> None:
        """Do a tile, from it and a margin that holds all that its pixels depend on."""
        row, col = strip.own.start + window[0].start, window[1].start
        first_row, first_col = max(row - reach, 0), max(col - reach, 0)
        last_row = min(row + _TILE_PX, strip.own.stop)
        tile = (slice(row - first_row, last_row - first_row), slice(col - first_col, col - first_col + _TILE_PX))
        with torch.inference_mode():
            part = structure[:, :, first_row : last_row + reach, first_col : col + _TILE_PX + reach].to(device)
            mean, log_spread = network.predict_inside(part.contiguous(memory_format=torch.channels_last), tile)
            error[window] = (smooth_target(part)[:, :, tile[0], tile[1]] - mean)[0, 0].cpu().numpy()
            spread[window] = torch.exp(log_spread)[0, 0].cpu().numpy()

    run_in_threads(examine, windows)
    error /= np.sqrt(spread)
    return error, spread


def _find_structure(intensity: NDArray[np.float32]) -> Tensor:
    """The fine structure of a strip, (1, 1, rows, cols), by bands of a height that no number of threads changes."""
    structure = torch.empty(1, 1, *intensity.shape)

    def find(start: int) -> None:
        first = max(start - _MEAN_HALO_PX, 0)
        part = torch.from_numpy(intensity[first : start + _BAND_PX + _MEAN_HALO_PX])[None, None]
        structure[:, :, start : start + _BAND_PX] = fine_structure(part)[:, :, start - first :][:, :, :_BAND_PX]

    run_in_threads(find, range(0, len(intensity), _BAND_PX))
    return structure
