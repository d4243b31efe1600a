"""What a detector is: one class that learns from normal images, examines one image, and can be kept.

There is no base class: whatever has these attributes and methods is a detector. `unary.detectors.windows` makes one of
what sees a patch at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext

if TYPE_CHECKING:
    from unary.detectors.coarse import Coarse
    from unary.detectors.tissue import Tissue

Grid = Literal["stored", "working"]
Knowledge = Literal["no learning", "normals only", "normals + lesion prior"]


@dataclass(frozen=True, eq=False)
class View:
    """One prepared image, or the part of it that holds the tissue and the patches asked for.

    ``pixels``, shape (rows, cols), uint16, 65535 being intensity 1, are 0 outside the ``mask`` of tissue, bool.
    """

    pixels: NDArray[np.uint16]
    mask: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    @cached_property
    def tissue(self) -> Tissue:
        """Intensity with the outside filled in, computed once for all parts of a fusion."""
        from unary.detectors.tissue import scan_tissue

        return scan_tissue(self.pixels, self.mask)

    @cached_property
    def coarse(self) -> Coarse:
        """The tissue in cells of a millimetre or so, computed once for all parts that look at regions."""
        from unary.detectors.coarse import shrink_tissue

        return shrink_tissue(self.tissue)


@dataclass(frozen=True, eq=False)
class Examination:
    """What a detector says of one view; higher is more abnormal, nothing is clamped or rescaled.

    ``scores``, shape (n,), float64, are those of the patches asked for. The ``anomaly_map``, shape (rows, cols) of the
    view, float32, is in the detector's own unit, NaN where nothing was scored; None where no map was asked for.
    ``silent`` names the parts of a detector that could not judge this view.
    """

    scores: NDArray[np.float64]
    anomaly_map: NDArray[np.float32] | None
    silent: tuple[str, ...] = ()

    def require_map(self) -> NDArray[np.float32]:
        """Return the map where one was asked for."""
        assert self.anomaly_map is not None
        return self.anomaly_map


@dataclass(frozen=True, eq=False)
class DetectorState:
    """A fitted detector as plain values: settings that JSON can hold, and arrays by name."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@runtime_checkable
class Detector(Protocol):
    """A one-class detector.

    Attributes
    ----------
    grid
        Which grid it sees: ``"stored"``, the image's own pixels, or ``"working"``, the profile's working spacing.
    knowledge
        What it has been told: nothing that is learned, normal images alone, or also what a lesion may look like.
    config
        A frozen dataclass of settings, each with a default. ``type(config)`` is where the command line finds options.

    A detector may also have ``check_patches(normals)``, which refuses in a moment, by a `TrainingError`, what `fit`
    would refuse after a while; one of parts ``build_parts()``, which returns them; and one of the working grid
    ``working_size_px``, the longer side to which images are brought whose profile has no working spacing or size. One
    that can say nothing of small images has ``least_side_px``, the shorter side of the smallest view that it can judge.
    One of networks has ``on_device(device)`` (`unary.detectors.devices`).
    """

    grid: ClassVar[Grid]
    knowledge: ClassVar[Knowledge]

    @property
    def config(self) -> Any:
        """The settings it was built with: ``type(detector)(config)`` is the same detector, not fitted."""
        ...

    def fit(self, normals: PatchSet, context: FitContext) -> Self:
        """Return the detector fitted on normal patches; this one stays as it is.

        In an image with a benign lesion (`PatchSet.images`) the patches near it are left out.

        Raises
        ------
        TrainingError
            If there are too few patches, they show nothing, or training diverges.
        """
        ...

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score patches of one view, and map it.

        Parameters
        ----------
        origins
            Shape (n, 2), int32: (row, col) of the patches' first pixels; there may be none. A patch may reach past the
            lower and right border.
        size_px
            Side of a patch.
        with_map
            Whether a map is wanted too; without, much work may be spared. Scores are the same either way.

        Raises
        ------
        DetectorError
            If the detector is not fitted, or was fitted for patches of another size.
        """
        ...

    def get_state(self) -> DetectorState:
        """Return what `from_state` needs; a `DetectorError` says that the detector is not fitted."""
        ...

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """Return the detector of a state, examining bit for bit as the one it was taken from.

        A `KeyError`, `TypeError` or `ValueError` says that the state is not one of this detector.
        """
        ...
