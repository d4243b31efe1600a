"""One training in several processes: each takes its share of every batch, and all make the same step.

Started by torch's own launcher, on one machine or several::

    torchrun --nproc-per-node 2 -m unary.cli fit train.csv --detector wei2018 --out model/

The batch size is that of all processes together, and the patches come in the same order, so that the result is one
process's but for rounding. Every process reads all images; the first alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as processes
from numpy.typing import NDArray
from torch import Tensor

Learner = Callable[[NDArray[np.int64]], float]
"""Returns the mean loss of the chosen patches and leaves its gradient in the network's parameters."""


@contextmanager
def joining_processes() -> Iterator[None]:
    """Join the other processes of `torchrun` for as long as the block lasts; alone, do nothing."""
    if not processes.is_available() or not processes.is_torchelastic_launched():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    processes.init_process_group("gloo")
    try:
        yield
    finally:
        processes.destroy_process_group()


def is_joined() -> bool:
    """Tell whether this process belongs to a group, whoever set it up."""
    return bool(processes.is_available() and processes.is_initialized())


def is_first() -> bool:
    """Tell whether this process writes files: the first of its group, or one alone."""
    return not is_joined() or processes.get_rank() == 0


def share_batches(learn: Learner, parameters: Sequence[Tensor]) -> Learner:
    """Return what computes a batch's loss and gradient together with the other processes.

    Gradients are added up over the processes, in float64, each weighted by its share of the batch.
    """
    if not is_joined():
        return learn
    rank, count = processes.get_rank(), processes.get_world_size()

    def learn_together(which: NDArray[np.int64]) -> float:
        own = np.array_split(which, count)[rank]
        loss = learn(own) if len(own) else 0.0
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        parts = [
            *(gradient.reshape(-1).double() for gradient in gradients),
            torch.tensor([loss], dtype=torch.float64, device=gradients[0].device),
        ]
        total = torch.cat(parts) * (len(own) / len(which))
        processes.all_reduce(total)
        pieces = total[:-1].split_with_sizes([gradient.numel() for gradient in gradients])
        for parameter, gradient, piece in zip(parameters, gradients, pieces, strict=True):
            parameter.grad = gradient.copy_(piece.view(gradient.shape))
        return float(total[-1])

    return learn_together
