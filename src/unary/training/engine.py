"""One plain training loop for the autoencoder.

What it hides nowhere: the loss stands beside two baselines, the error of predicting the mean of all patches and the
error of predicting each patch's own mean, and the share of dead units is counted every epoch. A network that has
learned nothing looks fine on a loss curve without them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.threads import has_matrix_units, using_threads
from unary.detectors.wei2018.accelerator import DeviceLearner, Precision, rounding
from unary.detectors.wei2018.autoencoder import Autoencoder, AutoencoderConfig, Initialisation, build_autoencoder
from unary.detectors.wei2018.native import NativeLearner, why_unsupported
from unary.errors import CompilerError, TrainingError
from unary.patches.grid import PatchSet
from unary.patches.preparation import FULL_SCALE
from unary.training.batches import draw_batches
from unary.training.checkpoints import load_checkpoint, save_checkpoint
from unary.training.distributed import Learner, is_first, share_batches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation; the defaults are those of Wei et al. 2018, section 5.

    ``compiled`` allows loss and gradient to be computed by C code, which the machine's C compiler makes at first use
    (`unary.detectors.wei2018.native`). It is the same arithmetic, several times faster, and agrees with torch's to rounding.
    Where it is not possible, or False, torch computes them. ``device`` is where to train, in torch's notation; on a GPU
    ``precision`` says how convolutions round (`unary.detectors.wei2018.accelerator`).
    """

    epochs: int = 500
    batch_size: int = 200
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    seed: int = 0
    compiled: bool = True
    device: str = "cpu"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ValueError(f"epochs, batch_size and learning_rate must be positive: {self}")
        if self.precision != "float32" and self.device == "cpu":
            raise ValueError("another precision than float32 is for GPUs")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, not {self.precision!r}")


@dataclass(frozen=True)
class History:
    """What happened in training.

    Attributes
    ----------
    losses
        Mean squared error per pixel (equation 2 divided by the number of pixels), one per epoch, averaged over the
        epoch's batches as they were seen.
    dead_units
        Share of the hidden feature maps that are zero on every probe patch, one per epoch.
    mean_patch_error
        Mean squared error of predicting the one mean intensity of all patches.
    patch_mean_error
        Mean squared error of predicting each patch's own mean.
    """

    losses: tuple[float, ...]
    dead_units: tuple[float, ...]
    mean_patch_error: float
    patch_mean_error: float

    @property
    def unexplained(self) -> float:
        """The last loss as a share of the patch-mean error: 1 or more means that no structure was learned."""
        return self.losses[-1] / self.patch_mean_error


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and how it came about."""

    network: Autoencoder
    history: History


def train_autoencoder(
    patches: PatchSet,
    training: TrainingConfig,
    *,
    widths: tuple[int, ...] = AutoencoderConfig.widths,
    bottleneck: int | None = None,
    initialisation: Initialisation = "pyramid",
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train the network of equation 3 on normal patches by equation 2.

    In a group of processes (`unary.training.distributed`) all of them call this alike and get the same network.

    Parameters
    ----------
    patches
        Normal patches alone; the caller answers for that. Of a store that memory does not hold, three windows at a time
        are read (`unary.training.batches`).
    training
        Optimisation. Each epoch's order depends on the seed and the epoch's number only, so that a run that was
        interrupted and resumed ends with the same weights, bit for bit on a CPU with the same number of threads if
        both parts are compiled or neither is.
    widths, bottleneck
        Feature maps after each halving, and a dense layer's width below them, if any; see
        `unary.detectors.wei2018.autoencoder.AutoencoderConfig`.
    initialisation
        See `unary.detectors.wei2018.autoencoder.build_autoencoder`.
    checkpoint
        A file that is written after every epoch, and from which training goes on if it exists.
    on_epoch
        Called after each epoch with the number of epochs done and the epoch's loss.

    Raises
    ------
    TrainingError
        If there are too few patches, the patches are constant, the loss is no longer finite, or the checkpoint belongs
        to another run.
    """
    if len(patches) < 2:
        raise TrainingError(f"training needs at least two normal patches, there are {len(patches)}")
    mean, scale, patch_mean_error = _intensity_statistics(patches)
    if scale < 0.5 / FULL_SCALE:
        raise TrainingError("all normal patches have one single intensity; are the images blank?")
    config = AutoencoderConfig(
        size_px=patches.size_px,
        widths=widths,
        bottleneck=bottleneck,
        input_mean=mean,
        input_scale=scale,
        initialisation=initialisation,
    )
    network = _move(build_autoencoder(config, seed=training.seed), training.device)
    optimizer = torch.optim.Adam(
        network.parameters(), training.learning_rate, (training.beta1, training.beta2), fused=True
    )
    without = {"compiled", "device"} | ({"precision"} if training.precision == "float32" else set())
    optimisation = {name: value for name, value in dataclasses.asdict(training).items() if name not in without}
    fingerprint = json.dumps(
        [dataclasses.asdict(config), {**optimisation, "epochs": None}, len(patches)], sort_keys=True
    )
    losses: list[float] = []
    dead: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses, dead = load_checkpoint(checkpoint, network, optimizer, fingerprint)
        logger.info("resuming after epoch %d", len(losses))
    probe = _batch(
        patches, np.linspace(0, len(patches) - 1, min(len(patches), 200)).round().astype(int), training.device
    )
    learn = _choose_learner(network, patches, training)
    resident = isinstance(learn, DeviceLearner)  # then the device has all patches
    learn = share_batches(learn, list(network.parameters()))
    for epoch in range(len(losses), training.epochs):
        rng = np.random.default_rng([training.seed, epoch])
        batches = draw_batches(patches, rng, batch_size=training.batch_size, read=not resident)
        loss = _run_epoch(learn, optimizer, batches)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {epoch + 1}: training has diverged; try a smaller learning rate"
            )
        losses.append(loss)
        dead.append(dead_unit_share(network, probe))
        if checkpoint is not None and is_first():
            save_checkpoint(checkpoint, network, optimizer, fingerprint, (losses, dead))
        if on_epoch is not None:
            on_epoch(epoch + 1, loss)
    history = History(tuple(losses[: training.epochs]), tuple(dead[: training.epochs]), scale**2, patch_mean_error)
    if history.unexplained > 0.9:
        logger.warning(
            "the reconstruction explains little more than each patch's mean (%.2f of that error is left after %d "
            "epochs): train longer or look at the images",
            history.unexplained,
            training.epochs,
        )
    return Trained(network.cpu().eval(), history)


@dataclass(frozen=True)
class StepsConfig:
    """Optimisation of the dense detectors, which draw crops rather than pass over a list of patches.

    Adam with decoupled weight decay; the learning rate rises over 100 steps and falls to nothing along a cosine.
    """

    steps: int = 2500
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.learning_rate > 0 or self.weight_decay < 0:
            raise ValueError(f"steps, batch_size and learning_rate must be positive: {self}")


def optimise(
    network: nn.Module,
    compute_loss: Callable[[np.random.Generator], Tensor],
    config: StepsConfig,
    *,
    name: str,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[float, ...]:
    """Minimise a loss that draws its own batches; the network is changed in place.

    Parameters
    ----------
    network
        Its parameters are optimised.
    compute_loss
        Called once a step with a generator that depends on the seed and the step's number only, so that an interrupted
        run that is resumed ends with the same weights.
    config
        Optimisation.
    name
        What is trained, for messages and to recognise a checkpoint.
    checkpoint
        A file that is written every 250 steps, and from which training goes on if it exists.
    on_step
        Called after each step with the number of steps done and the loss.

    Returns
    -------
    tuple
        The mean loss of every 50 steps.

    Raises
    ------
    TrainingError
        If the loss is no longer finite, or the checkpoint belongs to another run.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    fingerprint = json.dumps([name, dataclasses.asdict(config)], sort_keys=True)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses, _ = load_checkpoint(checkpoint, network, optimizer, fingerprint)
    network.train()
    for step in range(len(losses), config.steps):
        rate = config.learning_rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = compute_loss(np.random.default_rng([config.seed, step]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"{name}: the loss is {losses[-1]} in step {step + 1}: training has diverged")
        if checkpoint is not None and (step + 1) % 250 == 0:
            save_checkpoint(checkpoint, network, optimizer, fingerprint, (losses, []))
        if on_step is not None:
            on_step(step + 1, losses[-1])
    network.eval()
    return tuple(float(np.mean(losses[start : start + 50])) for start in range(0, len(losses), 50))


def mixed_precision() -> torch.autocast:
    """Return a context in which convolutions run in bfloat16, where the processor has matrix units for it.

    Elsewhere bfloat16 is emulated and slower than float32, and the context does nothing.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=has_matrix_units())


def _choose_learner(network: Autoencoder, patches: PatchSet, training: TrainingConfig) -> Learner:
    """Return what computes a batch's mean squared error and leaves its gradient in the network's parameters."""

    def learn(which: NDArray[np.int64]) -> float:
        batch = _batch(patches, which, training.device)
        network.zero_grad()
        with rounding(training.device, "float32"):
            loss = (network(batch) - batch).square().mean()
            loss.backward()
        return float(loss.item())

    network.train()
    if torch.device(training.device).type != "cpu":
        return _learn_on_device(network, patches, training, learn)
    if not training.compiled:
        return learn
    if (reason := why_unsupported(network.config)) is not None:
        logger.info("torch trains this network, since %s", reason)
        return learn
    try:
        return NativeLearner(network, patches, threads=torch.get_num_threads())
    except CompilerError as error:
        logger.warning("torch trains this network, several times slower than compiled code would: %s", error)
        return learn


def _move(network: Autoencoder, device: str) -> Autoencoder:
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:  # the second is torch's, when it was built without CUDA
        raise TrainingError(f"torch cannot use the device {device!r} here: {error}") from error


def _learn_on_device(network: Autoencoder, patches: PatchSet, training: TrainingConfig, otherwise: Learner) -> Learner:
    try:
        return DeviceLearner(network, patches, device=training.device, precision=training.precision)
    except torch.OutOfMemoryError:
        logger.warning(
            "the images (%.1f GB) do not fit on %s: batches are sent there one by one, in float32, which is slower",
            patches.nbytes / 1e9,
            training.device,
        )
        return otherwise


def _run_epoch(learn: Learner, optimizer: torch.optim.Optimizer, batches: Iterable[NDArray[np.int64]]) -> float:
    """One pass over all patches; return the mean squared error per pixel."""
    total, count = 0.0, 0
    for which in batches:
        total += learn(which) * len(which)
        count += len(which)
        with using_threads(1):  # a step takes 0.2 ms on one, up to 100 ms on two that share two cores with others
            optimizer.step()
    return total / count


def _batch(patches: PatchSet, which: NDArray[np.int64], device: str) -> Tensor:
    """Gather patches as (n, 1, size, size) float32 intensities."""
    gathered = torch.from_numpy(patches.gather(which)).to(device)
    return gathered.float().div_(FULL_SCALE)[:, None]


def _intensity_statistics(patches: PatchSet) -> tuple[float, float, float]:
    """Mean and standard deviation of the intensity, and the mean variance within a patch, of up to 2,000 patches."""
    chosen = np.unique(np.linspace(0, len(patches) - 1, 2000).round().astype(int))
    means, squares = [], []
    for start in range(0, len(chosen), 200):
        values = patches.gather(chosen[start : start + 200]).reshape(-1, patches.size_px**2) / np.float64(FULL_SCALE)
        means.append(values.mean(axis=1))
        squares.append((values**2).mean(axis=1))
    mean, square = np.concatenate(means), np.concatenate(squares)
    within = float((square - mean**2).mean())
    return float(mean.mean()), math.sqrt(max(float(square.mean() - mean.mean() ** 2), 0.0)), within


def dead_unit_share(network: Autoencoder, probe: Tensor) -> float:
    """Return the share of hidden feature maps that are zero on every pixel of every probe patch."""
    dead = total = 0
    hidden = (probe - network.config.input_mean) / network.config.input_scale
    with using_threads(1), torch.inference_mode():
        for number, layer in enumerate((*network.encoder, *network.decoder[:-1])):
            if number == len(network.encoder) and network.squeeze is not None and network.expand is not None:
                hidden = torch.relu(network.expand(network.squeeze(hidden.flatten(1)))).view_as(hidden)
            hidden = torch.relu(layer(hidden))
            alive = hidden.amax(dim=(0, 2, 3)) > 0
            dead += int((~alive).sum())
            total += len(alive)
    return dead / total
