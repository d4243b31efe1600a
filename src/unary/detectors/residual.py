"""Other ways to score the paper's reconstruction than by the RMSE of a patch.

A patch-wide RMSE drowns a speck in thousands of quiet pixels, takes dark for bright, and is large wherever tissue is
busy. `Residual` keeps the sign of the error (a calcification is brighter than what was expected there), divides it by
the error that is usual around the pixel, looks for blobs of several sizes and takes the strongest. `Dssim` compares
local structure instead of intensity: structural dissimilarity (Wang et al. 2004), which Hou et al. 2022 call the key
advance of their detector of calcifications. The network is the same in all of them, and trained once for all that
share a checkpoint, so that what they differ by is the score alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from unary.detectors.laplacian import Laplacian, LaplacianConfig, local_rms
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import describe_config, read_config, require_fitted
from unary.detectors.wei2018.autoencoder import AutoencoderConfig
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.detectors.windows import PatchExamination, examine_windows, to_intensity
from unary.errors import TrainingError
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext

_FLOOR = 1e-3  # of intensity, added to the local RMS: below it an error is rounding, however quiet the surroundings


@dataclass(frozen=True)
class ResidualConfig:
    """The network and the filters that its error is seen through.

    Attributes
    ----------
    widths
        Feature maps after each halving of the patch.
    bottleneck
        Numbers of a dense layer that narrows the code further; the paper has none.
    training
        Optimisation of the network.
    bank
        The filter bank; bright blobs answer positively. Its ``neighbourhood_px`` is also the window of the whitening.
    """

    widths: tuple[int, ...] = AutoencoderConfig.widths
    bottleneck: int | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    bank: LaplacianConfig = field(default_factory=LaplacianConfig)

    def __post_init__(self) -> None:
        Wei2018Config(self.widths, self.bottleneck, self.training)  # which checks what is the network's

    @property
    def network(self) -> Wei2018Config:
        """The settings of the network alone."""
        return Wei2018Config(self.widths, self.bottleneck, self.training)


@dataclass(frozen=True, eq=False)
class Residual:
    """The network of wei2018; its signed error, whitened and seen through matched filters, strongest pixels.

    Attributes
    ----------
    config
        The network and the filters.
    reconstruction
        The trained network; None before `fit`.
    bank
        The filter bank, standardised on the whitened errors of normal patches.
    """

    grid: ClassVar[Grid] = "stored"
    knowledge: ClassVar[Knowledge] = "normals only"

    config: ResidualConfig = field(default_factory=ResidualConfig)
    reconstruction: Wei2018 | None = field(default=None, repr=False)
    bank: Laplacian | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Self:
        """Train the network, and measure how at most 4,000 evenly spaced normal patches answer.

        Raises
        ------
        TrainingError
            If there are fewer than two patches, all are reconstructed alike, or training diverges.
        """
        trained = dataclasses.replace(self, reconstruction=Wei2018(self.config.network).fit(normals, context))
        return trained.calibrate(normals)

    def calibrate(self, normals: PatchSet) -> Self:
        """Measure how normal patches answer through the network as it is."""
        bank = Laplacian(self.config.bank).fit_values(normals, self.whiten_error, name="residual")
        return dataclasses.replace(self, bank=bank)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score by the largest standardised pooled response over scales; see `unary.detectors.laplacian`."""
        require_fitted(self.reconstruction, "residual").require_size(size_px, "residual")
        return examine_windows(self.examine_patches, view, origins, size_px=size_px, with_map=with_map)

    def examine_patches(self, patches: NDArray[np.uint16]) -> PatchExamination:
        """Examine patches of shape (n, size, size), uint16, 65535 being intensity 1."""
        return require_fitted(self.bank, "residual").examine_values(self.whiten_error(patches))

    def whiten_error(self, patches: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Return input minus reconstruction in units of its local root mean square, shape (n, size, size), float32."""
        error = require_fitted(self.reconstruction, "residual").error_maps(patches)
        usual = local_rms(error, self.config.bank.neighbourhood_px)
        whitened: NDArray[np.float32] = error / (usual + np.float32(_FLOOR))
        return whitened

    def get_state(self) -> DetectorState:
        """Return configuration, network and filter bank."""
        network = require_fitted(self.reconstruction, "residual").get_state()
        bank = require_fitted(self.bank, "residual").get_state()
        settings = {"config": describe_config(self.config), "network": network.settings, "bank": bank.settings}
        tensors = {f"network.{name}": tensor for name, tensor in network.tensors.items()}
        return DetectorState(settings, tensors | {f"bank.{name}": tensor for name, tensor in bank.tensors.items()})

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """Return the detector of a state."""
        config = read_config(ResidualConfig, state.settings["config"])
        reconstruction, bank = Wei2018.from_state(_pick(state, "network")), Laplacian.from_state(_pick(state, "bank"))
        if (reconstruction.config, bank.config) != (config.network, config.bank):
            raise ValueError(f"network and filter bank must be those of the configuration {config}")
        return cls(config, reconstruction, bank)


def _pick(state: DetectorState, part: str) -> DetectorState:
    """The state of one part."""
    prefix = f"{part}."
    tensors = {name.removeprefix(prefix): values for name, values in state.tensors.items() if name.startswith(prefix)}
    return DetectorState(state.settings[part], tensors)


@dataclass(frozen=True)
class DssimConfig:
    """The network, and how its reconstruction is compared with the patch.

    Attributes
    ----------
    widths
        Feature maps after each halving of the patch.
    bottleneck
        Numbers of a dense layer that narrows the code further; the paper has none.
    training
        Optimisation of the network.
    window_px
        Odd side of the square window.
    strongest_share
        The share, in (0, 1], of a patch's pixels whose mean is its score: the most dissimilar ones; 1 takes all.
    """

    widths: tuple[int, ...] = AutoencoderConfig.widths
    bottleneck: int | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    window_px: int = 7
    strongest_share: float = 0.01

    def __post_init__(self) -> None:
        Wei2018Config(self.widths, self.bottleneck, self.training)  # which checks what is the network's
        if self.window_px < 3 or self.window_px % 2 == 0:
            raise ValueError(f"window_px must be odd and at least 3, got {self.window_px}")
        if not 0 < self.strongest_share <= 1:
            raise ValueError(f"strongest_share must lie in (0, 1], got {self.strongest_share}")

    @property
    def network(self) -> Wei2018Config:
        """The settings of the network alone."""
        return Wei2018Config(self.widths, self.bottleneck, self.training)


@dataclass(frozen=True, eq=False)
class Dssim:
    """The network of wei2018; structural dissimilarity of patch and reconstruction, strongest pixels.

    Attributes
    ----------
    config
        The network and the comparison.
    reconstruction
        The trained network; None before `fit`.
    """

    grid: ClassVar[Grid] = "stored"
    knowledge: ClassVar[Knowledge] = "normals only"

    config: DssimConfig = field(default_factory=DssimConfig)
    reconstruction: Wei2018 | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Self:
        """Train the network.

        Raises
        ------
        TrainingError
            As `unary.detectors.wei2018.detector.Wei2018.fit`; if the window does not fit into a patch.
        """
        if normals.size_px < self.config.window_px:
            raise TrainingError(
                f"a window of {self.config.window_px} px does not fit into patches of {normals.size_px} px"
            )
        return dataclasses.replace(self, reconstruction=Wei2018(self.config.network).fit(normals, context))

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score by the mean of the most dissimilar pixels; the map is (1 - SSIM) / 2, in [0, 1]."""
        require_fitted(self.reconstruction, "residual_dssim").require_size(size_px, "residual_dssim")
        return examine_windows(self.examine_patches, view, origins, size_px=size_px, with_map=with_map)

    def examine_patches(self, patches: NDArray[np.uint16]) -> PatchExamination:
        """Examine patches of shape (n, size, size), uint16, 65535 being intensity 1."""
        maps = self.map_dissimilarity(patches)
        flat = maps.reshape(len(maps), -1)
        first = flat.shape[1] - max(round(self.config.strongest_share * flat.shape[1]), 1)
        return PatchExamination(np.partition(flat, first, axis=1)[:, first:].mean(axis=1, dtype=np.float64), maps)

    def map_dissimilarity(self, patches: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Return (1 - SSIM) / 2 at each pixel, shape (n, size, size), float32; the range of the data is 1."""
        from skimage.metrics import structural_similarity

        restored = require_fitted(self.reconstruction, "residual_dssim").reconstruct(patches)
        maps = np.empty(patches.shape, np.float32)
        for result, intensity, expected in zip(maps, to_intensity(patches), restored, strict=True):
            _, similarity = structural_similarity(
                intensity, expected, win_size=self.config.window_px, data_range=1.0, full=True
            )
            result[...] = (1 - similarity) / 2
        return maps

    def get_state(self) -> DetectorState:
        """Return configuration and network."""
        network = require_fitted(self.reconstruction, "residual_dssim").get_state()
        settings = {"config": describe_config(self.config), "network": network.settings}
        return DetectorState(settings, {f"network.{name}": tensor for name, tensor in network.tensors.items()})

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """Return the detector of a state."""
        config = read_config(DssimConfig, state.settings["config"])
        reconstruction = Wei2018.from_state(_pick(state, "network"))
        if reconstruction.config != config.network:
            raise ValueError(f"the network must be that of the configuration {config}")
        return cls(config, reconstruction)
