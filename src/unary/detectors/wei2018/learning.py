"""Training the paper's network on normal patches, by equation 2: in C, on a GPU, or by torch."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unary.detectors.wei2018.accelerator import DeviceLearner, Precision, rounding
from unary.detectors.wei2018.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder, to_tensor
from unary.detectors.wei2018.native import NativeLearner, why_unsupported
from unary.detectors.windows import examine_in_batches, spread_evenly
from unary.errors import CompilerError, TrainingError, require_positive
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import FULL_SCALE
from unary.training.batches import draw_batches
from unary.training.context import FitContext
from unary.training.devices import check_device, require_device
from unary.training.distributed import Learner, share_batches
from unary.training.engine import Rounds, compute_gradient, train
from unary.training.threads import count_threads, using_threads

logger = logging.getLogger(__name__)

_NAME = "wei2018"
_MEASURED_PATCHES = 2000
_PROBE_PATCHES = 200


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation of the paper's network; the defaults are those of Wei et al. 2018, section 5.

    Attributes
    ----------
    epochs
        Passes over all patches.
    batch_size
        Patches of a step.
    learning_rate, beta1, beta2
        Of Adam.
    compiled
        Whether loss and gradient may be computed by C code, which the machine's C compiler makes at first use. It is
        the same arithmetic, several times faster, and agrees with torch's to rounding. Where it is not possible, torch
        computes them.
    device
        Where to train, in torch's notation: cpu, cuda, cuda:1.
    precision
        How convolutions round on a GPU: float32, or faster tf32 or bfloat16.
    """

    epochs: int = 500
    batch_size: int = 200
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    compiled: bool = True
    device: str = "cpu"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "batch_size", "learning_rate")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        check_device(self.device)
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, not {self.precision!r}")
        if self.precision != "float32" and self.device == "cpu":
            raise ValueError(f"precision must be float32 on the device cpu, got {self.precision}: others are for GPUs")


@dataclass(frozen=True)
class History:
    """What happened in training.

    By epoch, ``losses``, the mean squared error per pixel (equation 2 divided by the number of pixels), averaged over
    the batches as they were seen; and ``dead_units``, the share of the hidden feature maps that are zero on every probe
    patch. Beside them the mean squared errors of predicting the mean of all patches, and each patch's own mean.
    """

    losses: tuple[float, ...]
    dead_units: tuple[float, ...]
    mean_patch_error: float
    patch_mean_error: float

    def __post_init__(self) -> None:
        if not self.losses or len(self.losses) != len(self.dead_units):
            raise ValueError("losses and dead_units must be as many, one at least")
        require_positive(self, "mean_patch_error", "patch_mean_error")
        if not all(0 <= loss < math.inf for loss in self.losses) or not all(0 <= dead <= 1 for dead in self.dead_units):
            raise ValueError("losses must be finite and not negative, and dead_units lie in [0, 1]")

    @property
    def unexplained(self) -> float:
        """The last loss as a share of the patch-mean error: 1 or more means that no structure was learned."""
        return self.losses[-1] / self.patch_mean_error


def require_patch_size(size_px: int, widths: tuple[int, ...]) -> None:
    """Refuse by a `TrainingError` patches that are too small to be halved so often."""
    if size_px < (least := 2 ** (len(widths) - 1)):
        raise TrainingError(
            f"a network of {len(widths)} widths needs patches of {least} px or more, these have {size_px} px; "
            "give it fewer widths, or a larger --size-px"
        )


def shape_network(
    patches: PatchSet, widths: tuple[int, ...], bottleneck: int | None
) -> tuple[AutoencoderConfig, float]:
    """Return the sizes of a network for patches, and the mean variance within a patch, of up to 2,000.

    Raises
    ------
    TrainingError
        If the patches are too small to be halved so often, too few, or of one single intensity.
    """
    require_patch_size(patches.size_px, widths)
    if len(patches) < 2:
        raise TrainingError(f"training needs at least two normal patches, there are {len(patches)}")

    def measure(some: NDArray[np.uint16]) -> NDArray[np.float64]:
        values = some.reshape(len(some), -1) / np.float64(FULL_SCALE)
        return np.stack([values.mean(axis=1), (values**2).mean(axis=1)], axis=1)

    mean, square = examine_in_batches(measure, patches.gather, spread_evenly(len(patches), _MEASURED_PATCHES)).T.copy()
    scale = math.sqrt(max(float(square.mean() - mean.mean() ** 2), 0.0))
    if scale < 0.5 / FULL_SCALE:
        raise TrainingError("all normal patches have one single intensity; are the images blank?")
    config = AutoencoderConfig(
        patches.size_px, widths=widths, bottleneck=bottleneck, input_mean=float(mean.mean()), input_scale=scale
    )
    return config, float((square - mean**2).mean())


def train_autoencoder(
    patches: PatchSet,
    training: TrainingConfig,
    context: FitContext,
    *,
    widths: tuple[int, ...] = AutoencoderConfig.widths,
    bottleneck: int | None = None,
) -> tuple[Autoencoder, History]:
    """Train the network of equation 3 on normal patches; it ends on the CPU.

    In a group of processes (`unary.training.distributed`) all of them call this alike and get the same network. Of a
    store that memory does not hold, three windows at a time are read (`unary.training.batches`). Whoever trains the
    same network on the same patches shares the checkpoint.

    Raises
    ------
    TrainingError
        If patches are too few, too small or constant, the loss is no longer finite, the device cannot be used, or the
        checkpoint cannot be read.
    """
    require_device(training.device)
    config, within = shape_network(patches, widths, bottleneck)
    network = build_autoencoder(config, seed=context.seed).to(training.device)
    betas = (training.beta1, training.beta2)
    optimizer = torch.optim.Adam(network.parameters(), training.learning_rate, betas, fused=True)
    learner = _choose_learner(network, patches, training)
    learn = share_batches(learner, list(network.parameters()))
    probe = to_tensor(patches.gather(spread_evenly(len(patches), _PROBE_PATCHES))).to(training.device)

    def run_epoch(rng: np.random.Generator, _: int) -> float:
        total = 0.0
        read = not isinstance(learner, DeviceLearner)  # which has all patches on its device
        for which in draw_batches(patches, rng, batch_size=training.batch_size, read=read):
            total += learn(which) * len(which)
            with using_threads(1):  # a step takes 0.2 ms on one, up to 100 ms on two that share two cores with others
                optimizer.step()
        return total / len(patches)

    losses, dead = train(
        network,
        optimizer,
        run_epoch,
        Rounds(_NAME, training.epochs, "epoch"),
        context,
        settings=[dataclasses.asdict(config), _describe_optimisation(training)],
        data=patches,
        measure=lambda: dead_unit_share(network, probe),
    )
    history = History(losses, dead, config.input_scale**2, within)
    if history.unexplained > 0.9:
        logger.warning(
            "the reconstruction explains little more than each patch's mean (%.2f of that error is left after %d "
            "epochs): train longer or look at the images",
            history.unexplained,
            training.epochs,
        )
    return network.cpu().eval(), history


def _describe_optimisation(training: TrainingConfig) -> dict[str, object]:
    """What the weights depend on, rounding apart, the number of epochs left out."""
    without = {"epochs", "compiled", "device"} | ({"precision"} if training.precision == "float32" else set())
    return {name: value for name, value in vars(training).items() if name not in without}


def _choose_learner(network: Autoencoder, patches: PatchSet, training: TrainingConfig) -> Learner:
    """Return what computes a batch's mean squared error and leaves its gradient in the network's parameters."""
    if torch.device(training.device).type != "cpu":
        return _learn_on_device(network, patches, training)
    if training.compiled and (reason := why_unsupported(network.config)) is not None:
        logger.info("torch trains this network, since %s", reason)
    elif training.compiled:
        try:
            return NativeLearner(network, patches, threads=count_threads())
        except CompilerError as error:
            logger.warning("torch trains this network, several times slower than compiled code would: %s", error)
    return _learn_by_torch(network, patches, training)


def _learn_by_torch(network: Autoencoder, patches: PatchSet, training: TrainingConfig) -> Learner:
    """Batches are gathered here and sent to the device one by one; on any number of threads the result is the same."""
    parameters = list(network.parameters())

    def compute_loss(batch: Tensor) -> Tensor:
        loss: Tensor = (network(batch) - batch).square().mean()
        return loss

    def learn(which: NDArray[np.int64]) -> float:
        batch = to_tensor(patches.gather(which))
        with rounding(training.device, "float32"):
            return compute_gradient(parameters, compute_loss, [batch], device=training.device)

    return learn


def _learn_on_device(network: Autoencoder, patches: PatchSet, training: TrainingConfig) -> Learner:
    try:
        return DeviceLearner(network, patches, device=training.device, precision=training.precision)
    except torch.OutOfMemoryError:
        logger.warning(
            "the images (%.1f GB) do not fit on %s: batches are sent there one by one, in float32, which is slower",
            patches.nbytes / 1e9,
            training.device,
        )
        return _learn_by_torch(network, patches, training)


def dead_unit_share(network: Autoencoder, probe: Tensor) -> float:
    """Return the share of hidden feature maps that are zero on every pixel of every probe patch."""
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, given, answer: found.append(answer.amax(dim=(0, 2, 3))))
        for layer in (*network.encoder, *network.decoder[:-1])
    ]
    with using_threads(1), torch.inference_mode():
        network(probe)
    for hook in hooks:
        hook.remove()
    largest = torch.cat(found)
    return int((largest <= 0).sum()) / len(largest)
