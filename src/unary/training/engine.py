"""The one training loop of everything that learns: checkpoints, exact resume, divergence, progress.

What is learned, and from which draws, is the detector's own; so is what a round is, a step or an epoch. Each round
draws from a generator that depends on the seed and the round's number alone, so that a run that was interrupted and
resumed ends with the same weights, bit for bit on a CPU, whatever the number of threads.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unary.errors import TrainingError, require_positive
from unary.patches.patch_set import PatchSet
from unary.progress import Bar, show_progress
from unary.training.checkpoints import load_checkpoint, save_checkpoint
from unary.training.context import FitContext
from unary.training.devices import check_device, require_device
from unary.training.distributed import is_first, is_joined
from unary.training.threads import has_matrix_units, map_in_threads, using_threads

logger = logging.getLogger(__name__)

_WARM_UP = 100  # steps
_SHARES = 2  # parts of a batch, computed side by side; fixed, so that sums do not depend on the number of threads


@dataclass(frozen=True)
class Rounds:
    """What is trained, a word for messages and file names; how many rounds; what a round is.

    A checkpoint is written after every ``keep_every`` rounds, and after the last.
    """

    name: str
    count: int
    unit: Literal["step", "epoch"]
    keep_every: int = 1


Advance = Callable[[np.random.Generator, int], float]
"""Do one round, given its generator and its number from 0: draw, compute, step; return the loss."""


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    advance: Advance,
    rounds: Rounds,
    context: FitContext,
    *,
    settings: Any,
    data: PatchSet | None,
    measure: Callable[[], float] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Run the rounds; the network and the optimiser are changed in place, on any device.

    ``settings`` are what JSON can hold and the weights depend on, the number of rounds apart. Returns the loss of each
    round, and what was measured after it.

    Raises
    ------
    TrainingError
        If the loss is no longer finite, or a checkpoint cannot be read or has had more rounds already.
    """
    # Without a checkpoint nobody asks for the digest, which takes a pass over all images.
    digest = "" if data is None or context.checkpoint is None else data.digest()
    fingerprint = json.dumps([rounds.name, settings, context.seed, digest], sort_keys=True)
    path = context.find_checkpoint(rounds.name, fingerprint)
    losses: list[float] = []
    measured: list[float] = []
    if path is not None and path.exists():
        losses, measured = load_checkpoint(path, network, optimizer, fingerprint)
        if len(losses) > rounds.count:
            raise TrainingError(
                f"{path}: this network has been trained for {len(losses)} {rounds.unit}s, more than the {rounds.count} "
                "asked for; ask for as many, or delete the file to start afresh"
            )
        logger.info("%s: resuming after %s %d", rounds.name, rounds.unit, len(losses))
    _track(context, rounds, losses, measured)
    network.train()
    counter: Bar[None] = show_progress(
        total=rounds.count,
        initial=len(losses),
        title=f"{context.title} {rounds.name}",
        unit=rounds.unit,
        shown=context.progress and is_first(),
    )
    with counter as bar:
        for number in range(len(losses), rounds.count):
            loss = advance(np.random.default_rng([context.seed, number]), number)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"{rounds.name}: the loss is {loss} in {rounds.unit} {number + 1}: training has diverged; try a "
                    "smaller learning rate"
                )
            losses.append(loss)
            if measure is not None:
                measured.append(measure())
            _track(context, rounds, losses[-1:], measured[-1:], before=number)
            done = number + 1
            if path is not None and is_first() and (done % rounds.keep_every == 0 or done == rounds.count):
                save_checkpoint(path, network, optimizer, fingerprint, (losses, measured))
            bar.update()
            bar.set_postfix(loss=f"{loss:.3e}", refresh=False)
    network.eval()
    return tuple(losses), tuple(measured)


def _track(
    context: FitContext, rounds: Rounds, losses: Sequence[float], measured: Sequence[float], *, before: int = 0
) -> None:
    """Tell whoever follows the run what came of the rounds after the first ``before``; without anyone, nothing."""
    if context.tracker is not None:
        for title, values in (("loss", losses), ("measured", measured)):
            for step, value in enumerate(values, before + 1):
                context.tracker.log_numbers({f"{title}/{rounds.name}": value}, step=step)


@dataclass(frozen=True)
class StepsConfig:
    """Optimisation by steps, each on a batch that is drawn anew.

    Adam with decoupled weight decay; the learning rate rises over 100 steps and falls to nothing along a cosine.

    Attributes
    ----------
    steps
        Number of steps.
    batch_size
        Crops, or patches, of a step.
    learning_rate
        At its highest.
    weight_decay
        Decoupled from the gradient.
    device
        Where to train, in torch's notation: cpu, cuda, cuda:1.
    """

    steps: int = 2500
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "learning_rate")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}")
        check_device(self.device)


Draw = Callable[[np.random.Generator, int], Sequence[Tensor]]
"""Draw a batch of so many samples: tensors of the same length, on the CPU."""

Loss = Callable[..., Tensor]
"""The mean loss of the samples of such tensors, a scalar."""


def train_steps(
    network: nn.Module,
    draw: Draw,
    compute_loss: Loss,
    config: StepsConfig,
    context: FitContext,
    *,
    name: str,
    settings: Any,
    data: PatchSet | None,
) -> tuple[float, ...]:
    """Minimise a loss over batches that are drawn at each step; the network ends on the CPU, ready to examine.

    Returns the mean loss of every 50 steps. Raises as `train`, and where the device cannot be used, or in one of
    several processes, which share no such training.
    """
    if is_joined():
        raise TrainingError(f"{name} is trained in one process; start it without torchrun")
    require_device(config.device)
    network.to(config.device)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)

    def advance(rng: np.random.Generator, step: int) -> float:
        rate = config.learning_rate * min(1.0, (step + 1) / _WARM_UP)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
        loss = compute_gradient(parameters, compute_loss, draw(rng, config.batch_size), device=config.device)
        with using_threads(1):
            optimizer.step()
        return loss

    losses, _ = train(
        network,
        optimizer,
        advance,
        Rounds(name, config.steps, "step", keep_every=250),
        context,
        settings=[settings, {**vars(config), "device": None}],
        data=data,
    )
    network.cpu()
    return tuple(float(np.mean(losses[start : start + 50])) for start in range(0, len(losses), 50))


def compute_gradient(
    parameters: Sequence[nn.Parameter], compute_loss: Loss, batch: Sequence[Tensor], *, device: str
) -> float:
    """Leave the gradient of a batch's mean loss in the parameters, and return the loss.

    The batch is divided into fixed shares, whose gradients are added up in their order, so that the result does not
    depend on the number of threads that compute them. On another device than the processor there is one share.
    ``compute_loss`` is called from several threads at a time, each with a share of every tensor of the batch, on the
    device, where the parameters are.
    """
    count = len(batch[0])
    shares_at_most = _SHARES if torch.device(device).type == "cpu" else 1
    cuts = np.linspace(0, count, min(shares_at_most, count) + 1).round().astype(int)
    shares = [[part[low:high] for part in batch] for low, high in itertools.pairwise(cuts)]

    def differentiate(share: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        with torch.enable_grad():
            loss = compute_loss(*(part.to(device) for part in share)) * (len(share[0]) / count)
            return float(loss.detach()), torch.autograd.grad(loss, list(parameters))

    found = list(map_in_threads(differentiate, shares))
    for parameter, *gradients in zip(parameters, *(gradients for _, gradients in found), strict=True):
        total = torch.zeros_like(parameter)  # a fused optimiser walks both side by side, so their layouts must agree
        for gradient in gradients:
            total += gradient
        parameter.grad = total
    return sum(loss for loss, _ in found)


def mixed_precision() -> torch.autocast:
    """Return a context in which convolutions run in bfloat16, where the processor has matrix units for it.

    Elsewhere bfloat16 is emulated and slower than float32, and the context does nothing.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=has_matrix_units())
