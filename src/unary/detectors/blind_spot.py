"""Blind-spot prediction: how surprising is a small neighbourhood, given everything around it?

A network predicts the mean and the spread of the intensity at a pixel from its surroundings, and never sees the pixel
or its nearest neighbours. Where tissue is regular the stated spread is small and a faint speck is a surprise; on an
edge or in busy tissue the spread is large and the same contrast is none. So the local noise that
`unary.detectors.laplacian` estimates by a fixed window is learned here, from normal tissue alone, together with what
lines and edges look like when they pass a point. Reason to exist: alone it is no better than a Laplacian of Gaussian,
but it errs elsewhere, and without it the fusion finds far fewer calcifications at rare false alarms
(``docs/results.md``, `fusion_unlearned`). The idea of masked prediction with a stated variance is older (blind-spot
denoising, Krull et al. 2019; Laine et al. 2019); the shape of the network is our own.

How it is blind: two 3 x 3 convolutions give features that reach 2 pixels; one wide convolution gathers them with its
centre, ``hole_px`` to each side, set to zero; point-wise layers follow. The prediction then depends on no pixel
nearer than ``hole_px`` - 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.threads import map_in_threads
from unary.detectors.tissue import Strip, Strips, find_typical, sample_scale

MEAN_WINDOW_PX = 15
_GAIN = 20.0  # brings the fine structure of prepared images, 1 to 10 % of full scale, near 1
_LOG_SPREAD = (-6.0, 6.0)
_FREEDOM = 4.0  # of Student's t: tissue has heavier tails than a Gaussian, which would stretch the spread for them
_BINOMIAL = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))
_OUTSIDE = -9.0
_TILE_PX = 192  # small enough to skip most of the background, and to stay in cache


@dataclass(frozen=True)
class BlindSpotConfig:
    """Sizes of the network.

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
    """

    features: int = 16
    hidden: int = 32
    window_px: int = 13
    hole_px: int = 4

    def __post_init__(self) -> None:
        if self.features < 1 or self.hidden < 1:
            raise ValueError(f"features and hidden must be positive: {self}")
        if self.window_px % 2 == 0 or not 3 <= self.hole_px < self.window_px // 2:
            raise ValueError(f"need an odd window_px and 3 <= hole_px < window_px // 2: {self}")


class BlindSpotNetwork(nn.Module):
    """Predicts mean and log spread of a smoothed pixel from its surroundings."""

    hole: Tensor

    def __init__(self, config: BlindSpotConfig) -> None:
        super().__init__()
        self.config = config
        self.local = nn.Sequential(
            nn.Conv2d(1, config.features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.features, config.features, 3, padding=1),
            nn.ReLU(),
        )
        centre, hole = config.window_px // 2, config.hole_px
        self.wide = nn.Conv2d(config.features, config.hidden, config.window_px, padding=centre)
        around = torch.ones(config.window_px, config.window_px)
        around[centre - hole : centre + hole + 1, centre - hole : centre + hole + 1] = 0
        self.register_buffer("hole", around, persistent=False)
        self.point = nn.Sequential(
            nn.ReLU(), nn.Conv2d(config.hidden, config.hidden, 1), nn.ReLU(), nn.Conv2d(config.hidden, 2, 1)
        )

    def forward(self, structure: Tensor) -> tuple[Tensor, Tensor]:
        """Map fine structure, (n, 1, rows, cols), to mean and log spread of its smoothed value, each of that shape."""
        if torch.is_inference_mode_enabled():
            return self.predict_inside(structure, (slice(None), slice(None)))
        features = self.local(structure)
        centre = self.config.window_px // 2
        return self._predict(F.conv2d(features, self.wide.weight * self.hole, self.wide.bias, padding=centre))

    def predict_inside(self, structure: Tensor, window: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        """Do the same for a window of rows and columns alone, with what lies around it in view."""
        return self._predict(self._gather_around(self.local(structure), window))

    def _predict(self, gathered: Tensor) -> tuple[Tensor, Tensor]:
        predicted = self.point(gathered).float()
        return predicted[:, :1], predicted[:, 1:].clamp(*_LOG_SPREAD)

    def _gather_around(self, features: Tensor, window: tuple[slice, slice]) -> Tensor:
        """The wide convolution as four, of the bands above, below, left and right of the hole: half the work."""
        centre, hole = self.config.window_px // 2, self.config.hole_px
        low, high, end = centre - hole, centre + hole + 1, self.config.window_px
        (top, bottom, _), (left, right, _) = (
            part.indices(length) for part, length in zip(window, features.shape[2:], strict=True)
        )
        rows, cols = bottom - top, right - left
        padded = F.pad(features, (centre, centre, centre, centre))
        padded = padded[:, :, top : bottom + 2 * centre, left : right + 2 * centre]
        gathered = None
        for r0, r1, c0, c1 in ((0, low, 0, end), (high, end, 0, end), (low, high, 0, low), (low, high, high, end)):
            weight = self.wide.weight[:, :, r0:r1, c0:c1].contiguous(memory_format=torch.channels_last)
            seen = padded[:, :, r0 : rows + r1 - 1, c0 : cols + c1 - 1]
            if gathered is None:
                gathered = F.conv2d(seen, weight, self.wide.bias)
            else:
                gathered += F.conv2d(seen, weight)
        assert gathered is not None
        return gathered


def build_blind_spot(config: BlindSpotConfig, *, seed: int) -> BlindSpotNetwork:
    """Return an untrained network; equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = BlindSpotNetwork(config)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def subtract_local_mean(intensity: Tensor) -> Tensor:
    """Return intensity minus its mean near by, borders repeated; (n, 1, rows, cols) both."""
    border = MEAN_WINDOW_PX - 1
    padded = F.pad(intensity, (border, border, border, border), mode="replicate")
    for window in ((MEAN_WINDOW_PX, 1), (1, MEAN_WINDOW_PX)) * 2:  # by rows and by columns: 15 additions twice, not 225
        padded = F.avg_pool2d(padded, window, 1)
    return intensity - padded


def fine_structure(intensity: Tensor) -> Tensor:
    """Return intensity minus its local mean, scaled; (n, 1, rows, cols) both."""
    return subtract_local_mean(intensity) * _GAIN


def smooth_target(structure: Tensor) -> Tensor:
    """Return what is predicted: the structure under a 3 x 3 binomial window, (n, 1, rows, cols)."""
    window = torch.tensor(_BINOMIAL)[None, None] / 16
    return F.conv2d(F.pad(structure, (1, 1, 1, 1), mode="replicate"), window)


def surprise_loss(target: Tensor, mean: Tensor, log_spread: Tensor) -> Tensor:
    """Negative log-likelihood of Student's t distribution, up to a constant; a scalar."""
    error = (target - mean) * torch.exp(-log_spread)
    return (log_spread + (_FREEDOM + 1) / 2 * torch.log1p(error.square() / _FREEDOM)).mean()


@dataclass(frozen=True, eq=False)
class BlindSpot:
    """A trained network as a detector of bright specks."""

    network: BlindSpotNetwork

    def map_tissue(self, tissue: Strips) -> NDArray[np.float32]:
        """Return the standardised surprise, shape (rows, cols): how much brighter a pixel is than expected.

        In units of the geometric mean of the spread stated at the pixel and of the image's median spread: a network
        that has seen few images claims too much where tissue is quiet.
        """
        shape = (int(tissue.mask.shape[0]), int(tissue.mask.shape[1]))
        surprise = np.zeros(shape, np.float32)
        samples = []
        for strip in tissue.strips(self._halo_px + 2 * (MEAN_WINDOW_PX // 2)):
            surprise[strip.rows], spread = self._examine_strip(strip)
            samples.append(sample_scale(strip, spread, shape))
        typical = find_typical(samples)
        if typical is not None:  # the median is known only now; the network has run once all the same
            surprise /= np.float32(np.sqrt(typical))
        surprise[~tissue.mask] = _OUTSIDE
        return surprise

    @property
    def _halo_px(self) -> int:
        """How far the network sees."""
        return self.network.config.window_px // 2 + 3

    def _examine_strip(self, strip: Strip) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Error by the root of the stated spread, and that spread, on a strip's own rows, tile by tile."""
        mask = strip.mask[strip.own]
        error: NDArray[np.float32] = np.zeros(mask.shape, np.float32)
        spread: NDArray[np.float32] = np.ones(mask.shape, np.float32)
        with torch.inference_mode():
            structure = fine_structure(torch.from_numpy(strip.intensity)[None, None])
        corners = itertools.product(*(range(0, length, _TILE_PX) for length in mask.shape))
        windows = [(slice(row, row + _TILE_PX), slice(col, col + _TILE_PX)) for row, col in corners]
        windows = [window for window in windows if mask[window].any()]
        tiles = map_in_threads(lambda window: self._examine_tile(structure, strip.own, window), windows)
        for window, (tile_error, tile_spread) in zip(windows, tiles, strict=True):
            error[window], spread[window] = tile_error, tile_spread
        error /= np.sqrt(spread)
        return error, spread

    def _examine_tile(
        self, structure: Tensor, own: slice, window: tuple[slice, slice]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Error and stated spread in a tile, from it and a margin that holds all that its pixels depend on."""
        row, col = window[0].start, window[1].start
        first_row, first_col = max(own.start + row - self._halo_px, 0), max(col - self._halo_px, 0)
        last_row = min(own.start + row + _TILE_PX, own.stop)
        top, left = own.start + row - first_row, col - first_col
        tile = (slice(top, last_row - first_row), slice(left, left + _TILE_PX))
        with torch.inference_mode():
            part = structure[:, :, first_row : last_row + self._halo_px, first_col : col + _TILE_PX + self._halo_px]
            mean, log_spread = self.network.predict_inside(part.contiguous(memory_format=torch.channels_last), tile)
            error = smooth_target(part)[..., tile[0], tile[1]] - mean
            return error[0, 0].numpy(), torch.exp(log_spread)[0, 0].numpy()
