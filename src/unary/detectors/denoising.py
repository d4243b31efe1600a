"""A denoising U-Net: what it takes away from an image does not belong to normal tissue.

Kascenas et al. 2022 ("Denoising autoencoders for unsupervised anomaly detection in brain MRI") found that a U-Net
trained to remove *coarse* noise from normal images, noise of about the lesions' size, beats reconstruction through a
bottleneck by far. Here the noise has the scale of calcifications: Gaussian blobs of either sign, and noise enlarged
from a grid of a few pixels.

The network states what was added, in units of the local noise; the denoised image is the input less that. Only bright
additions count, since a calcification is never darker than the tissue around it. Normals alone: the blobs have no
shape, sign or grouping of a lesion, but their size is a choice, made from what is looked for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from unary.detectors.crops import (
    Plane,
    Source,
    describe_with_noise,
    draw_batch,
    draw_crop,
    draw_exposure,
    find_sources,
    require_crops,
)
from unary.detectors.devices import place_network
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import describe_network, require_fitted, restore_network
from unary.detectors.tissue import examine_answer
from unary.detectors.unet import UNet, build_inputs, build_unet, check_widths, map_tissue
from unary.errors import require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.engine import StepsConfig, mixed_precision, train_steps

_CROP_PX = 96


@dataclass(frozen=True)
class CorruptionConfig:
    """What is added to normal tissue; contrasts are in units of the local noise, all ranges log-uniform.

    Attributes
    ----------
    blob_sigma_px, blob_contrast
        Ranges of the width and the peak, of either sign, of the Gaussian blobs.
    most_blobs
        A crop gets between 1 and this many.
    coarse_step_px, coarse_contrast
        Ranges of the grid on which the coarse noise is drawn before it is enlarged, and of its standard deviation.
    blob_share, coarse_share
        How many of the crops get blobs, and, drawn independently, coarse noise. The rest stays clean: the network must
        also learn to leave alone.
    """

    blob_sigma_px: tuple[float, float] = (0.5, 4.0)
    blob_contrast: tuple[float, float] = (1.0, 12.0)
    most_blobs: int = 20
    coarse_step_px: tuple[int, int] = (2, 8)
    coarse_contrast: tuple[float, float] = (0.3, 3.0)
    blob_share: float = 0.7
    coarse_share: float = 0.4

    def __post_init__(self) -> None:
        for name in ("blob_sigma_px", "blob_contrast", "coarse_step_px", "coarse_contrast"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be positive and ascending, got {low} to {high}")
        require_positive(self, "most_blobs")
        if not (0 <= self.blob_share <= 1 and 0 <= self.coarse_share <= 1) or self.blob_share + self.coarse_share == 0:
            raise ValueError(
                f"blob_share and coarse_share must lie in [0, 1] and not both be 0, got {self.blob_share} and "
                f"{self.coarse_share}"
            )


@dataclass(frozen=True)
class DenoisingConfig:
    """The network, how a patch is scored, what is added to normal tissue, and training.

    Attributes
    ----------
    widths
        Feature maps of the U-Net at each resolution, finest first.
    strongest
        How many of the largest pixels of a patch are averaged.
    corruption
        What the network learns to remove.
    training
        Optimisation.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    strongest: int = 8
    corruption: CorruptionConfig = CorruptionConfig()
    training: StepsConfig = field(default=StepsConfig(steps=1500, batch_size=16))

    def __post_init__(self) -> None:
        check_widths(self.widths)
        require_positive(self, "strongest")


@dataclass(frozen=True, eq=False)
class Denoising:
    """U-Net that removes coarse noise from normal tissue; what it removes from an image is abnormal.

    The map holds what was removed in units of the local noise, bright being positive; the score is the mean of a
    patch's strongest pixels. There is no network before fitting.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "normals only"
    config: DenoisingConfig = DenoisingConfig()
    network: UNet | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Denoising:
        """Learn to restore normal tissue; see `unary.detectors.protocol.Detector.fit`.

        The loss is the squared difference between the restored and the clean crop, in units of the local noise, inside
        the mask: its minimum is the expected corruption given the crop, which stays proportionate for faint blobs.
        """
        title = context.name_bar("reading tissue")
        config, sources = self.config, find_sources(normals, describe_with_noise, size_px=_CROP_PX, title=title)
        network = build_unet(config.widths, seed=context.seed)
        _start_lively(network)

        def draw(rng: np.random.Generator, count: int) -> Sequence[Tensor]:
            return draw_batch(lambda: _draw_corrupted(sources, config.corruption, rng), count)

        def compute_loss(clean: Tensor, noise: Tensor, mask: Tensor, added: Tensor) -> Tensor:
            with mixed_precision():
                estimated = network(build_inputs(clean + noise * added, noise, mask))
            loss: Tensor = ((estimated.float() - added).square() * mask).mean()
            return loss

        settings = {**dataclasses.asdict(config), "training": None}
        train_steps(
            network, draw, compute_loss, config.training, context, name="denoising", settings=settings, data=normals
        )
        return dataclasses.replace(self, network=network)

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse by a `TrainingError` what could not be learned from."""
        require_crops(normals, _CROP_PX)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`."""
        answer = map_tissue(require_fitted(self.network, "denoising"), view.tissue)
        strongest = self.config.strongest
        return examine_answer(view, answer, origins, size_px=size_px, strongest=strongest, with_map=with_map)

    def on_device(self, device: str) -> Denoising:
        """Return the same with its network there; see `unary.detectors.devices`."""
        return dataclasses.replace(self, network=place_network(self.network, device))

    def get_state(self) -> DetectorState:
        """Return configuration and weights."""
        return describe_network(self.config, self.network, "denoising")

    @classmethod
    def from_state(cls, state: DetectorState) -> Denoising:
        return cls(*restore_network(state, DenoisingConfig, lambda config: build_unet(config.widths, seed=0)))


def _start_lively(network: UNet) -> None:
    """Widen torch's default weights to He's spread, which a ReLU leaves unchanged from layer to layer.

    With the default the answer hardly depends on the input at first, and "nothing was added" holds the network for
    hundreds of steps.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                module.bias.zero_()
                if module is not network.head:
                    module.weight.mul_(math.sqrt(6.0))  # uniform of variance 1 / (3 fan) becomes 2 / fan


def draw_corruption(config: CorruptionConfig, rng: np.random.Generator, *, size_px: int) -> NDArray[np.float32]:
    """Return what is added to a crop, shape (size_px, size_px), float32, in units of the local noise.

    Zero in expectation; all zero for a crop that stays clean.
    """
    added = np.zeros((size_px, size_px), np.float32)
    if rng.random() < config.blob_share:
        for _ in range(int(rng.integers(1, config.most_blobs + 1))):
            peak = rng.choice([-1.0, 1.0]) * _draw_log_uniform(config.blob_contrast, rng)
            _add_blob(added, peak, _draw_log_uniform(config.blob_sigma_px, rng), rng.uniform(-0.5, size_px - 0.5, 2))
    if rng.random() < config.coarse_share:
        step = int(rng.integers(config.coarse_step_px[0], config.coarse_step_px[1] + 1))
        side = size_px // step + 3
        enlarged = ndimage.zoom(rng.standard_normal((side, side)), step, order=1)
        row, col = rng.integers(0, step, 2).tolist()
        added += np.float32(_draw_log_uniform(config.coarse_contrast, rng)) * enlarged[
            row : row + size_px, col : col + size_px
        ].astype(np.float32)
    return added


def _draw_log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def _add_blob(added: Plane, peak: float, sigma: float, centre: NDArray[np.float64]) -> None:
    """Add a Gaussian in place, as far as it lies inside."""
    reach = math.ceil(4 * sigma)
    low = np.clip(np.rint(centre).astype(int) - reach, 0, added.shape)
    high = np.clip(np.rint(centre).astype(int) + reach + 1, 0, added.shape)
    down, along = (np.exp(-0.5 * ((np.arange(low[axis], high[axis]) - centre[axis]) / sigma) ** 2) for axis in range(2))
    added[low[0] : high[0], low[1] : high[1]] += (peak * np.outer(down, along)).astype(np.float32)


def _draw_corrupted(
    sources: Sequence[Source], corruption: CorruptionConfig, rng: np.random.Generator
) -> tuple[Sequence[NDArray[Any]], int]:
    """Return a crop's clean intensity, noise, mask and what is to be added; and its symmetry."""
    intensity, noise, mask = draw_crop(sources, rng, size_px=_CROP_PX)
    gain, offset = draw_exposure(rng)
    symmetry = int(rng.integers(8))
    # Outside the tissue nothing is added: there is none in an image either.
    added = draw_corruption(corruption, rng, size_px=_CROP_PX) * mask
    return (intensity * gain + offset, noise * gain, mask, added), symmetry
