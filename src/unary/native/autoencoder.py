"""The autoencoder's loss and gradient in C (``autoencoder.c``), behind one call per batch.

The arithmetic is that of `unary.detectors.autoencoder` in float32, in another order of summation. Weights, gradients
and the optimiser's state stay torch's.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.autoencoder import Autoencoder, AutoencoderConfig
from unary.native.compiler import load_library
from unary.patches import PatchSet

_MOST_LEVELS = 12
_MOST_GROUPS = 64  # of patches in one call; each needs memory for a gradient of its own


def why_unsupported(config: AutoencoderConfig) -> str | None:
    """Return what of a configuration the C source cannot do, or None."""
    if config.channels != 1:
        return "it has several channels"
    if config.bottleneck is not None:
        return "it has a dense bottleneck"
    if len(config.widths) > _MOST_LEVELS or config.size_px % 2 ** len(config.widths):
        return f"its side of {config.size_px} px cannot be halved {len(config.widths)} times"
    return None


class NativeLearner:
    """Computes the mean squared error of batches, and leaves its gradient in the network's parameters.

    The result does not depend on the number of threads. It does depend, in the last digits, on the processor and the
    compiler.

    Parameters
    ----------
    network
        On the CPU, float32, its configuration supported (`why_unsupported`). From now on its parameters' ``grad``
        belongs to this object, and parameters must be changed in place alone.
    patches
        What batches are drawn from.
    threads
        How many to use.

    Raises
    ------
    CompilerError
        If the C source cannot be compiled here.
    ValueError
        If the configuration is not supported, or patches reach past their image.
    """

    def __init__(self, network: Autoencoder, patches: PatchSet, *, threads: int) -> None:
        config = network.config
        if (reason := why_unsupported(config)) is not None:
            raise ValueError(f"the C source cannot compute this network: {reason}")
        self._library = load_library()
        self._library.unary_packed_size.restype = ctypes.c_long
        self._library.unary_workplace_size.restype = ctypes.c_long
        widths = (ctypes.c_int * len(config.widths))(*config.widths)
        self._shape = (len(config.widths), config.size_px, widths)
        self._intensity = (ctypes.c_float(config.input_mean), ctypes.c_float(config.input_scale))
        self._pixels = config.size_px**2
        self._lanes = int(self._library.unary_lanes())
        self._images = tuple(_with_whole_rows(image) for image in patches.images)
        self._addresses, self._strides = _locate(self._images, patches)
        self._parameters = [p for layer in (*network.encoder, *network.decoder) for p in _weight_and_bias(layer)]
        self._pointers = (ctypes.c_void_p * len(self._parameters))(*(p.data_ptr() for p in self._parameters))
        self._gradient = np.zeros(sum(p.numel() for p in self._parameters), np.float32)
        _share_gradient(self._parameters, self._gradient)
        self._group_gradients = np.zeros((_MOST_GROUPS, len(self._gradient)), np.float32)
        self._group_squares = np.zeros(_MOST_GROUPS)
        self._packed = _aligned_zeros(4 * int(self._library.unary_packed_size(*self._shape)))
        size = int(self._library.unary_workplace_size(*self._shape))
        self._workplaces = [_aligned_zeros(size) for _ in range(max(threads, 1))]
        self._helpers = ThreadPoolExecutor(max(threads - 1, 1), "unary-native")

    def __call__(self, which: NDArray[np.int64]) -> float:
        """Return the mean squared error per pixel of the chosen patches; the gradient replaces the last one."""
        if len(which) == 0 or which.min() < 0 or which.max() >= len(self._addresses):
            raise IndexError(f"patch numbers must lie in [0, {len(self._addresses)}), and there must be some")
        self._library.unary_pack(*self._shape, self._pointers, _pointer(self._packed))
        self._gradient.fill(0)
        weight, squares = 1.0 / (len(which) * self._pixels), 0.0
        step = _MOST_GROUPS * self._lanes
        for start in range(0, len(which), step):
            squares += self._add_gradient(np.ascontiguousarray(which[start : start + step], np.int64), weight)
        return squares * weight

    def _add_gradient(self, which: NDArray[np.int64], weight: float) -> float:
        """Add what some patches contribute; return the sum of their squared errors."""
        groups = -(-len(which) // self._lanes)
        counter = ctypes.c_int(0)

        def work(workplace: NDArray[np.uint8]) -> None:
            self._library.unary_learn(
                *(*self._shape, self._pointers, _pointer(self._packed)),
                *(_pointer(self._addresses), _pointer(self._strides), _pointer(which), len(which)),
                *(*self._intensity, ctypes.c_float(weight), ctypes.byref(counter), _pointer(workplace)),
                *(_pointer(self._group_gradients), _pointer(self._group_squares)),
            )

        others = [self._helpers.submit(work, workplace) for workplace in self._workplaces[1:groups]]
        work(self._workplaces[0])
        for other in others:
            other.result()
        self._gradient += self._group_gradients[:groups].sum(axis=0)
        return float(self._group_squares[:groups].sum())


def _locate(images: tuple[NDArray[np.uint16], ...], patches: PatchSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the address of every patch's first pixel, and the pixels from one of its rows to the next."""
    number, row, col = patches.index.astype(np.int64).T
    rows, cols = np.asarray([image.shape for image in images], np.int64)[number].T
    stride = np.asarray([image.strides[0] // image.itemsize for image in images], np.int64)[number]
    if min(row.min(), col.min()) < 0 or (row + patches.size_px > rows).any() or (col + patches.size_px > cols).any():
        raise ValueError("patches reach past their image; pad it first (see unary.patches.pad_to_patch)")
    first = np.asarray([image.ctypes.data for image in images], np.int64)[number]
    return first + np.dtype(np.uint16).itemsize * (row * stride + col), stride


def _with_whole_rows(image: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return an image whose rows lie in memory pixel by pixel; a copy only where they do not."""
    fits = image.dtype == np.uint16 and image.strides[1] == image.itemsize and image.strides[0] % image.itemsize == 0
    return image if fits else np.ascontiguousarray(image, np.uint16)


def _weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)  # the order that the C source reads and writes
    assert weight.dtype == bias.dtype == torch.float32
    assert weight.device.type == "cpu"
    return weight, bias


def _share_gradient(parameters: list[Tensor], gradient: NDArray[np.float32]) -> None:
    """Let every parameter's ``grad`` be its stretch of one array."""
    parts = torch.from_numpy(gradient).split_with_sizes([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        if parameter.dim() == 4:
            small, big = parameter.shape[:2]
            part = part.view(small, 3, 3, big).permute(0, 3, 1, 2)
        parameter.grad = part


def _aligned_zeros(size: int) -> NDArray[np.uint8]:
    """Return bytes that begin at a multiple of 64, as vector registers want it."""
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
