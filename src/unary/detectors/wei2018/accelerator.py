"""Training on a GPU: the images lie there, batches are gathered there, and one captured graph computes a batch.

At the paper's batch of 200 a kernel of this network takes microseconds; sending patches and starting kernels one by one
would take most of the time. What does not fit is made smaller, with a line that says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unary.detectors.wei2018.autoencoder import Autoencoder
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import FULL_SCALE
from unary.patches.store import release_pages

logger = logging.getLogger(__name__)

Precision = Literal["float32", "tf32", "bfloat16"]


@contextmanager
def rounding(device: str, precision: Precision) -> Iterator[None]:
    """Let convolutions on a device round as asked for; without it they may use TF32 unasked."""
    with (
        torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=precision != "float32"),  # or they are done without cuDNN
    ):
        yield


class DevicePatches:
    """Patches gathered from whole images in a device's memory, two bytes a pixel."""

    def __init__(self, patches: PatchSet, device: str) -> None:
        sizes = [image.size for image in patches.images]
        self._pixels = torch.empty(sum(sizes), dtype=torch.int16, device=device)  # few operations know uint16
        for part, image in zip(torch.split(self._pixels, sizes), patches.images, strict=True):
            part.copy_(torch.from_numpy(np.array(image, order="C").view(np.int16).reshape(-1)))
            release_pages([image])
        number, row, col = patches.index.astype(np.int64).T
        stride = np.asarray([image.shape[1] for image in patches.images], np.int64)[number]
        start = np.concatenate([[0], np.cumsum(sizes)])[number] + row * stride + col
        self._start, self._stride = (torch.from_numpy(values).to(device) for values in (start, stride))
        self._side = torch.arange(patches.size_px, device=device)

    def gather(self, which: Tensor) -> Tensor:
        """Return the chosen patches, numbers of shape (n,), int64, as (n, 1, size, size) float32 intensities."""
        rows = self._start[which, None] + self._stride[which, None] * self._side
        pixels = self._pixels[rows[:, :, None] + self._side]
        return (pixels.int() & FULL_SCALE).float().div_(FULL_SCALE)[:, None]


class DeviceLearner:
    """Computes the mean squared error of batches on a device, and leaves its gradient in the network's parameters.

    The network lies on the device; from now on its parameters' ``grad`` belongs to this object. Convolutions of
    ``precision`` ``"tf32"`` and ``"bfloat16"`` are faster on GPUs and round to 10 and 7 bits. Where the images do not
    fit on the device, that raises `torch.OutOfMemoryError`.
    """

    def __init__(self, network: Autoencoder, patches: PatchSet, *, device: str, precision: Precision) -> None:
        self._network, self._precision = network, precision
        self._kind = torch.device(device).type
        self._patches = DevicePatches(patches, device)
        self._device = device
        self._parameters = list(network.parameters())
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._most: int | None = None  # patches at a time, once memory has been short
        self._graph: torch.cuda.CUDAGraph | None = None
        self._may_capture = self._kind == "cuda"
        self._which = self._loss = torch.zeros(0)

    def __call__(self, which: NDArray[np.int64]) -> float:
        """Return the mean squared error per pixel of the chosen patches; the gradient replaces the last one."""
        chosen = torch.from_numpy(np.ascontiguousarray(which, np.int64)).to(self._device)
        while True:
            try:  # a graph is recorded on the current device, whichever the tensors are on
                with torch.cuda.device(self._device) if self._kind == "cuda" else nullcontext():
                    return self._learn(chosen)
            except torch.OutOfMemoryError:
                self._make_smaller(len(chosen))

    def _learn(self, which: Tensor) -> float:
        if self._may_capture and self._most is None:
            self._capture(which)
        if self._graph is not None and len(which) == len(self._which):
            self._which.copy_(which)
            self._graph.replay()
            return float(self._loss)
        self._forget_gradient()
        parts = torch.split(which, self._most or len(which))
        return float(torch.stack([self._add_gradient(part, len(part) / len(which)) for part in parts]).sum())

    def _forget_gradient(self) -> None:
        for gradient in self._gradients:
            gradient.zero_()

    def _add_gradient(self, which: Tensor, weight: float) -> Tensor:
        """Add what some patches contribute to the gradient; return their part of the loss."""
        batch = self._patches.gather(which)
        with rounding(self._device, self._precision):
            loss: Tensor = (self._network(batch) - batch).square().mean() * weight
            added = torch.autograd.grad(loss, self._parameters)
        for gradient, more in zip(self._gradients, added, strict=True):
            gradient += more
        return loss.detach()

    def _capture(self, which: Tensor) -> None:
        """Record what a batch of this length takes, once; later batches of that length replay it."""
        self._may_capture = False
        try:
            self._which = which.clone()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # kernels are chosen and memory is found before, not while, recording
                for _ in range(3):
                    self._learn(self._which)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._forget_gradient()
                self._loss = self._add_gradient(self._which, 1.0)
            self._graph = graph
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("the GPU's work could not be recorded, which makes training slower: %s", error)

    def _make_smaller(self, count: int) -> None:
        """Give up the graph and its memory, then halve what is computed at a time; the gradient stays the batch's."""
        if self._graph is not None:
            self._graph, self._loss = None, torch.zeros(0)
            torch.cuda.empty_cache()
            logger.warning("the device is short of memory: its work is no longer recorded, which is slower")
            return
        most = min(self._most or count, count)
        if most == 1:
            raise torch.OutOfMemoryError("the device has no memory for a single patch")
        self._most = most // 2
        if self._kind == "cuda":
            torch.cuda.empty_cache()
        logger.warning("the device is short of memory: batches are computed in pieces of %d patches", self._most)
