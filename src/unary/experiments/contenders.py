"""The rows of the bench: every detector of the list, its variants, and the controls that know nothing of lesions.

Most detectors take part as they come. Settings that differ, and variants that are worth a row of their own, are written
in `list_contenders`, once.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from unary.detectors import DETECTORS, check_detector, find_detector_class, name_of
from unary.detectors.protocol import Detector, DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.windows import PatchExamination, examine_windows
from unary.errors import DetectorError
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext


@dataclass(frozen=True, eq=False)
class Contender:
    """One row of the bench: a word, usable as a file name, and a detector, not fitted, with the row's configuration.

    The summary is one line for the table, by default the first of the detector's docstring; a control is there to be
    beaten.
    """

    name: str
    detector: Detector
    summary: str = ""
    is_control: bool = False

    def __post_init__(self) -> None:
        check_detector(self.detector)
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise DetectorError(f"the name of a row of the bench must be one word for a file name, not {self.name!r}")

    @property
    def kind(self) -> str:
        """What it knows."""
        return "control" if self.is_control else self.detector.knowledge

    def describe(self) -> str:
        """Return the summary."""
        words = self.summary or (type(self.detector).__doc__ or "").strip().partition("\n")[0]
        return words.rstrip(".")


@dataclass(frozen=True)
class ControlConfig:
    """Which figure of a patch is its score: the mean, or the standard deviation, of intensity."""

    statistic: Literal["mean_brightness", "standard_deviation"] = "mean_brightness"


@dataclass(frozen=True, eq=False)
class Control:
    """One figure of a patch's intensity, and nothing else."""

    config: ControlConfig = ControlConfig()

    grid: ClassVar[Grid] = "stored"
    knowledge: ClassVar[Knowledge] = "no learning"

    def fit(self, normals: PatchSet, context: FitContext) -> Self:
        """Return itself: it does not learn."""
        return self

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """See `unary.detectors.protocol.Detector.examine`."""
        return examine_windows(self._examine_patches, view, origins, size_px=size_px, with_map=with_map)

    def _examine_patches(self, patches: NDArray[np.uint16]) -> PatchExamination:
        values = patches.reshape(len(patches), -1) / np.float64(FULL_SCALE)
        scores = values.mean(axis=1) if self.config.statistic == "mean_brightness" else values.std(axis=1)
        return PatchExamination(scores, np.broadcast_to(scores[:, None, None].astype(np.float32), patches.shape))

    def get_state(self) -> DetectorState:
        """See `unary.detectors.protocol.Detector.get_state`."""
        return DetectorState({"statistic": self.config.statistic})

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """See `unary.detectors.protocol.Detector.from_state`."""
        return cls(ControlConfig(state.settings["statistic"]))


def list_contenders() -> tuple[Contender, ...]:
    """Return all rows of the bench: controls, the detectors of the list, and variants.

    The paper's network is trained for 50 epochs here, not 500, and once for all that share it.
    """
    from unary.detectors.fusion import Fusion, FusionConfig
    from unary.detectors.residual import Dssim, DssimConfig, Residual, ResidualConfig
    from unary.detectors.variational import Variational, VariationalConfig
    from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
    from unary.detectors.wei2018.learning import TrainingConfig

    paper, narrow = Wei2018Config(training=TrainingConfig(epochs=50)), TrainingConfig(epochs=30, batch_size=100)
    # About 24,000 patches, 30 times: as often as the narrowed networks beside it see them.
    steps = dataclasses.replace(VariationalConfig().training, steps=7200)
    chosen: dict[str, Detector] = {
        "wei2018": Wei2018(paper),
        "residual": Residual(ResidualConfig(paper)),
        "residual_dssim": Dssim(DssimConfig(paper)),
        "variational": Variational(VariationalConfig(training=steps)),
    }
    deviation = Control(ControlConfig("standard_deviation"))
    parts = FusionConfig().parts
    specks = Fusion(FusionConfig(tuple(part for part in parts if part[0] not in ("mass", "prominence"))))
    unlearned = Fusion(FusionConfig(tuple(part for part in parts if part[0] != "blind_spot")))
    return (
        Contender("mean_brightness", Control(), "mean intensity of the patch", is_control=True),
        Contender("standard_deviation", deviation, "standard deviation of the patch's intensity", is_control=True),
        *(Contender(name, chosen[name] if name in chosen else find_detector_class(name)()) for name in DETECTORS),
        Contender("fusion_specks", specks, "ablation of the fusion: without mass and prominence"),
        Contender("fusion_unlearned", unlearned, "ablation of the fusion: without blind_spot"),
        *(
            Contender(
                f"bottleneck_{count}",
                Wei2018(Wei2018Config(bottleneck=count, training=narrow)),
                f"wei2018 narrowed to {count} numbers; {narrow.epochs} epochs, batches of {narrow.batch_size}",
            )
            for count in (4, 32, 128)
        ),
    )


def find_contenders(chosen: Sequence[str | Detector | Contender]) -> tuple[Contender, ...]:
    """Return the rows that are meant.

    Chosen are names in `list_contenders`, detectors as ``module:Class``, detectors that need not be fitted, or rows.

    Raises
    ------
    DetectorError
        If there is none of a name, what is given is no detector, or two rows have one name.
    """
    listed = {row.name: row for row in list_contenders()}
    if not chosen:
        raise DetectorError("no detector is named; the bench needs one at least")
    rows = [_find_contender(one, listed) for one in chosen]
    name, times = Counter(row.name for row in rows).most_common(1)[0]
    if times > 1:
        raise DetectorError(f"two rows of the bench are called {name!r}; name them with Contender(name, detector)")
    return tuple(rows)


def _find_contender(one: str | Detector | Contender, listed: dict[str, Contender]) -> Contender:
    if isinstance(one, Contender):
        return one
    if not isinstance(one, str):
        check_detector(one)
        return Contender(name_of(one).rpartition(":")[2], one)
    if one in listed:
        return listed[one]
    if ":" not in one:
        names = ", ".join(listed)
        raise DetectorError(f"no detector is called {one!r}; there are {names}, and your own as module:Class")
    return Contender(one.rpartition(":")[2], find_detector_class(one)())
