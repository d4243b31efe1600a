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

from unary.detectors.laplacian import Laplacian, LaplacianConfig, local_rms, pool_strongest
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import join_states, pick_state, read_config, require_fitted
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import require_patch_size
from unary.detectors.windows import PatchExamination, examine_windows, to_intensity
from unary.errors import TrainingError
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext

WHITE_FLOOR = (
    1e-3  # of intensity, added to the local RMS: below it an error is rounding, however quiet the surroundings
)


@dataclass(frozen=True)
class ResidualConfig:
    """The network and the filters that its error is seen through.

    Attributes
    ----------
    network
        The network and its training.
    bank
        The filter bank; bright blobs answer positively. Its ``neighbourhood_px`` is also the window of the whitening.
    """

    network: Wei2018Config = field(default_factory=Wei2018Config)
    bank: LaplacianConfig = field(default_factory=LaplacianConfig)


@dataclass(frozen=True, eq=False)
class Residual:
    """The network of wei2018; its signed error, whitened and seen through matched filters, strongest pixels.

    Before `fit` there is no ``reconstruction``, the trained network, and no ``bank``, the filters standardised on the
    whitened errors of normal patches.
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
        return trained.calibrate(normals, title=context.name_bar("residual"))

    def calibrate(self, normals: PatchSet, *, title: str | None = None) -> Self:
        """Measure how normal patches answer through the network as it is; with a title, show a bar."""
        bank = Laplacian(self.config.bank).fit_values(normals, self.whiten_error, name="residual", title=title)
        return dataclasses.replace(self, bank=bank)

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse by a `TrainingError` what could not be learned from."""
        require_patch_size(normals.size_px, self.config.network.widths)

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
        whitened: NDArray[np.float32] = error / (
            local_rms(error, self.config.bank.neighbourhood_px) + np.float32(WHITE_FLOOR)
        )
        return whitened

    def on_device(self, device: str) -> Self:
        """Return the same with its network there; see `unary.detectors.devices`."""
        fitted = self.reconstruction
        return dataclasses.replace(self, reconstruction=None if fitted is None else fitted.on_device(device))

    def get_state(self) -> DetectorState:
        """Return configuration, network and filter bank."""
        network, bank = require_fitted(self.reconstruction, "residual"), require_fitted(self.bank, "residual")
        return join_states(self.config, {"network": network.get_state(), "bank": bank.get_state()})

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        config = read_config(ResidualConfig, state.settings["config"])
        network = Wei2018.from_state(pick_state(state, "network"))
        bank = Laplacian.from_state(pick_state(state, "bank"))
        if (network.config, bank.config) != (config.network, config.bank):
            raise ValueError(f"network and filter bank must be those of the configuration {config}")
        return cls(config, network, bank)


@dataclass(frozen=True)
class DssimConfig:
    """The network, and how its reconstruction is compared with the patch.

    Attributes
    ----------
    network
        The network and its training.
    window_px
        Odd side of the square window.
    strongest_share
        The share, in (0, 1], of a patch's pixels whose mean is its score: the most dissimilar ones; 1 takes all.
    """

    network: Wei2018Config = field(default_factory=Wei2018Config)
    window_px: int = 7
    strongest_share: float = 0.01

    def __post_init__(self) -> None:
        if self.window_px < 3 or self.window_px % 2 == 0:
            raise ValueError(f"window_px must be odd and at least 3, got {self.window_px}")
        if not 0 < self.strongest_share <= 1:
            raise ValueError(f"strongest_share must lie in (0, 1], got {self.strongest_share}")


@dataclass(frozen=True, eq=False)
class Dssim:
    """The network of wei2018; structural dissimilarity of patch and reconstruction, strongest pixels.

    Before `fit` there is no ``reconstruction``, the trained network.
    """

    grid: ClassVar[Grid] = "stored"
    knowledge: ClassVar[Knowledge] = "normals only"

    config: DssimConfig = field(default_factory=DssimConfig)
    reconstruction: Wei2018 | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Self:
        """Train the network; a `TrainingError` says that it cannot be, or that the window does not fit into a patch."""
        if normals.size_px < self.config.window_px:
            raise TrainingError(
                f"a window of {self.config.window_px} px does not fit into patches of {normals.size_px} px"
            )
        return dataclasses.replace(self, reconstruction=Wei2018(self.config.network).fit(normals, context))

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse by a `TrainingError` what could not be learned from."""
        require_patch_size(normals.size_px, self.config.network.widths)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score by the mean of the most dissimilar pixels; the map is (1 - SSIM) / 2, in [0, 1]."""
        require_fitted(self.reconstruction, "residual_dssim").require_size(size_px, "residual_dssim")
        return examine_windows(self.examine_patches, view, origins, size_px=size_px, with_map=with_map)

    def examine_patches(self, patches: NDArray[np.uint16]) -> PatchExamination:
        """Examine patches of shape (n, size, size), uint16, 65535 being intensity 1."""
        from skimage.metrics import structural_similarity

        restored = require_fitted(self.reconstruction, "residual_dssim").reconstruct(patches)
        maps = np.empty(patches.shape, np.float32)  # of the dissimilarity; the range of the data is 1
        for result, intensity, expected in zip(maps, to_intensity(patches), restored, strict=True):
            _, similarity = structural_similarity(
                intensity, expected, win_size=self.config.window_px, data_range=1.0, full=True
            )
            result[...] = (1 - similarity) / 2
        count = patches.shape[1] * patches.shape[2]
        return PatchExamination(pool_strongest(maps, max(round(self.config.strongest_share * count), 1)), maps)

    def on_device(self, device: str) -> Self:
        """Return the same with its network there; see `unary.detectors.devices`."""
        fitted = self.reconstruction
        return dataclasses.replace(self, reconstruction=None if fitted is None else fitted.on_device(device))

    def get_state(self) -> DetectorState:
        """Return configuration and network."""
        return join_states(self.config, {"network": require_fitted(self.reconstruction, "residual_dssim").get_state()})

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        config = read_config(DssimConfig, state.settings["config"])
        network = Wei2018.from_state(pick_state(state, "network"))
        if network.config != config.network:
            raise ValueError(f"the network must be that of the configuration {config}")
        return cls(config, network)
