"""The paper's one-class classifier: an autoencoder of normal patches, scored by its reconstruction error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unary.detectors.devices import find_device, place_network
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import (
    describe_config,
    export_network,
    read_config,
    rebuild_network,
    require_fitted,
    require_size,
)
from unary.detectors.wei2018.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder, to_tensor
from unary.detectors.wei2018.learning import History, TrainingConfig, require_patch_size, train_autoencoder
from unary.detectors.wei2018.native import CompiledErrors, compile_errors
from unary.detectors.windows import PatchExamination, examine_windows
from unary.errors import require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Wei2018Config:
    """The network and how it is trained; the defaults are the paper's.

    Attributes
    ----------
    widths
        Feature maps after each halving of the patch (equation 3).
    bottleneck
        Numbers of a dense layer that narrows the code further; the paper has none.
    training
        Optimisation.
    """

    widths: tuple[int, ...] = AutoencoderConfig.widths
    bottleneck: int | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        require_positive(self, "widths", "bottleneck")


def restore_sized(state: DetectorState, build: Callable[..., N], widths: tuple[int, ...], bottleneck: int | None) -> N:
    """Return the network of a state, which must have these sizes; ``build`` takes a config and a seed."""
    sizes = read_config(AutoencoderConfig, state.settings["network"])
    if (sizes.widths, sizes.bottleneck) != (widths, bottleneck):
        raise ValueError(f"the network's sizes must be those of the configuration: {sizes}, {widths}, {bottleneck}")
    return rebuild_network(lambda: build(sizes, seed=0), state.tensors)


@dataclass(frozen=True, eq=False)
class Wei2018:
    """The autoencoder of Wei et al. 2018, root mean square error of a patch's reconstruction.

    Before `fit` there is no ``network``, which is not to be changed any more, and no ``history`` of how
    training went.
    """

    grid: ClassVar[Grid] = "stored"
    knowledge: ClassVar[Knowledge] = "normals only"

    config: Wei2018Config = Wei2018Config()
    network: Autoencoder | None = field(default=None, repr=False)
    history: History | None = field(default=None, repr=False)

    def fit(self, normals: PatchSet, context: FitContext) -> Self:
        """Train the network; see `unary.detectors.wei2018.learning.train_autoencoder`."""
        config = self.config
        network, history = train_autoencoder(
            normals, config.training, context, widths=config.widths, bottleneck=config.bottleneck
        )
        return dataclasses.replace(self, network=network, history=history)

    def check_patches(self, normals: PatchSet) -> None:
        """Refuse by a `TrainingError` what could not be learned from."""
        require_patch_size(normals.size_px, self.config.widths)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score by RMSE (Wei et al. 2018, section 5); the map is the absolute error, in intensity units."""
        self.require_size(size_px, "wei2018")
        add_maps = None if self._compiled is None else self._compiled.add_maps
        return examine_windows(
            self.examine_patches, view, origins, size_px=size_px, with_map=with_map, add_maps=add_maps
        )

    def examine_patches(self, patches: NDArray[np.uint16]) -> PatchExamination:
        """Examine patches of shape (n, size, size), uint16, 65535 being intensity 1."""
        if self._compiled is not None:
            error, scores = self._compiled.examine(patches)
        else:
            error = self.error_maps(patches)
            scores = np.sqrt(np.square(error, dtype=np.float64).mean(axis=(1, 2)))
        return PatchExamination(scores, np.abs(error, out=error))

    def reconstruct(self, patches: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Return reconstructions in intensity units, shape (n, size, size), float32."""
        network = require_fitted(self.network, "wei2018")
        with torch.inference_mode():
            given = to_tensor(patches).to(find_device(network))
            restored: NDArray[np.float32] = network(given).cpu().numpy()[:, 0]
        return restored

    def error_maps(self, patches: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Return the signed error, input minus reconstruction, in intensity units; positive where too bright."""
        if self._compiled is not None:
            return self._compiled.examine(patches)[0]
        network = require_fitted(self.network, "wei2018")
        with torch.inference_mode():
            given = to_tensor(patches).to(find_device(network))
            error: NDArray[np.float32] = given.sub_(network(given)).cpu().numpy()[:, 0]
        return error

    def require_size(self, size_px: int, name: str) -> None:
        """Refuse patches of another size than the network's, for the detector of that name."""
        require_size(size_px, require_fitted(self.network, name).config.size_px, name)

    @cached_property
    def _compiled(self) -> CompiledErrors | None:
        """The network's errors in C, of its weights as they are at first use."""
        return compile_errors(require_fitted(self.network, "wei2018"))

    def on_device(self, device: str) -> Self:
        """Return the same with its network there; see `unary.detectors.devices`."""
        return dataclasses.replace(self, network=place_network(self.network, device))

    def get_state(self) -> DetectorState:
        """Return configuration, history and what the input is standardised by, and the network's weights."""
        network = require_fitted(self.network, "wei2018")
        settings = {
            "config": describe_config(self.config),
            "network": describe_config(network.config),
            "history": describe_config(self.history),
        }
        return DetectorState(settings, export_network(network))

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        config = read_config(Wei2018Config, state.settings["config"])
        network = restore_sized(state, build_autoencoder, config.widths, config.bottleneck)
        return cls(config, network, read_config(History, state.settings["history"]))
