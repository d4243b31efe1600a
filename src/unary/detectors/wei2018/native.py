"""The autoencoder's loss and gradient, and its errors, in C (``native/autoencoder.c``), behind one call per batch.

The arithmetic is that of `unary.detectors.wei2018.autoencoder` in float32, in another order of summation. Weights,
gradients and the optimiser's state stay torch's.
"""

from __future__ import annotations

import copy
import ctypes
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unary.detectors.native.arrays import aligned_zeros, pointer
from unary.detectors.native.compiler import load_library
from unary.detectors.wei2018.autoencoder import Autoencoder, AutoencoderConfig
from unary.errors import CompilerError
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet, find_constant
from unary.patches.stitching import taper_ramp

logger = logging.getLogger(__name__)

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


class _Network:
    """A network as the C source wants it: where its parameters lie, and a second copy of them in its own order."""

    def __init__(self, network: Autoencoder) -> None:
        config = network.config
        if (reason := why_unsupported(config)) is not None:
            raise ValueError(f"the C source cannot compute this network: {reason}")
        self.library = load_library("autoencoder.c")
        self.library.unary_packed_size.restype = ctypes.c_long
        self.library.unary_workplace_size.restype = ctypes.c_long
        widths = (ctypes.c_int * len(config.widths))(*config.widths)
        self._shape = (len(config.widths), config.size_px, widths)
        self.intensity = (ctypes.c_float(config.input_mean), ctypes.c_float(config.input_scale))
        self.parameters = [p for layer in (*network.encoder, *network.decoder) for p in _weight_and_bias(layer)]
        self._pointers = (ctypes.c_void_p * len(self.parameters))(*(p.data_ptr() for p in self.parameters))
        self._packed = aligned_zeros(4 * int(self.library.unary_packed_size(*self._shape)))
        self.arguments = (*self._shape, self._pointers, pointer(self._packed))

    def pack(self) -> None:
        """Copy the parameters as they are now."""
        self.library.unary_pack(*self.arguments)

    def build_workplace(self) -> NDArray[np.uint8]:
        """Return the memory that a thread works in."""
        return aligned_zeros(int(self.library.unary_workplace_size(*self._shape)))


class NativeLearner:
    """Computes the mean squared error of batches, and leaves its gradient in the network's parameters.

    The result does not depend on the number of threads. It does depend, in the last digits, on the processor and the
    compiler. The network is on the CPU, in float32; from now on its parameters' ``grad`` belongs to this object, and
    parameters must be changed in place alone.

    Raises
    ------
    CompilerError
        If the C source cannot be compiled here.
    ValueError
        If the configuration is not supported (`why_unsupported`), or patches reach past their image.
    """

    def __init__(self, network: Autoencoder, patches: PatchSet, *, threads: int) -> None:
        self._network = _Network(network)
        self._pixels = network.config.size_px**2
        self._lanes = int(self._network.library.unary_lanes())
        self._patches = patches
        self._images = tuple(_with_whole_rows(image) for image in patches.images)
        self._addresses, self._strides = _locate(self._images, patches)
        self._values = find_constant(patches)
        parameters = self._network.parameters
        self._gradient = np.zeros(sum(p.numel() for p in parameters), np.float32)
        _share_gradient(parameters, self._gradient)
        self._group_gradients = np.zeros((_MOST_GROUPS, len(self._gradient)), np.float32)
        self._group_squares = np.zeros(_MOST_GROUPS)
        self._workplaces = [self._network.build_workplace() for _ in range(max(threads, 1))]
        self._helpers = ThreadPoolExecutor(max(threads - 1, 1), "unary-native")

    def __call__(self, which: NDArray[np.int64]) -> float:
        """Return the mean squared error per pixel of the chosen patches; the gradient replaces the last one.

        Many patches of one and the same value, such as air, are computed as one: each would give the same gradient.
        """
        if len(which) == 0 or which.min() < 0 or which.max() >= len(self._addresses):
            raise IndexError(f"patch numbers must lie in [0, {len(self._addresses)}), and there must be some")
        self._network.pack()
        self._gradient.fill(0)
        weight, squares = 1.0 / (len(which) * self._pixels), 0.0
        which, shares = self._join_constant(which)
        for start in range(0, len(shares), _MOST_GROUPS):
            groups = slice(start, start + _MOST_GROUPS)
            chosen = which[start * self._lanes : groups.stop * self._lanes]
            squares += self._add_gradient(chosen, weight, shares[groups])
        return squares * weight

    def _join_constant(self, which: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Patches to compute, and for each group of as many as a vector holds how often it counts.

        Where more patches have one constant value than a group holds, a group of one of them stands for all.
        """
        values = self._values[which]
        found, counts = np.unique(values[values >= 0], return_counts=True)
        common = counts > self._lanes
        firsts = [which[values == value][0] for value in found[common]]
        others = which[~np.isin(values, found[common])]
        shares = np.ones(common.sum() + -(-len(others) // self._lanes), np.float32)
        shares[: len(firsts)] = counts[common] / self._lanes
        return np.concatenate([np.repeat(np.asarray(firsts, np.int64), self._lanes), others]), shares

    def _find(self, which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the chosen patches lie now: some stored images may be in memory."""
        addresses = self._addresses[which]
        if self._patches.loaded:
            images, of_patch = np.unique(self._patches.index[which, 0], return_inverse=True)
            usual = [(self._images[number], number) for number in images.tolist()]
            moved = [self._patches.loaded.get(n, image).ctypes.data - image.ctypes.data for image, n in usual]
            addresses += np.asarray(moved, np.int64)[of_patch]
        return addresses

    def _add_gradient(self, which: NDArray[np.int64], weight: float, shares: NDArray[np.float32]) -> float:
        """Add what some patches contribute, each group as often as it counts; return the sum of squared errors."""
        groups = len(shares)
        addresses, strides = self._find(which), self._strides[which]
        counter = ctypes.c_int(0)

        def work(workplace: NDArray[np.uint8]) -> None:
            self._network.library.unary_learn(
                *self._network.arguments,
                *(pointer(addresses), pointer(strides), len(which)),
                *(*self._network.intensity, ctypes.c_float(weight), ctypes.byref(counter), pointer(workplace)),
                *(pointer(self._group_gradients), pointer(self._group_squares)),
            )

        others = [self._helpers.submit(work, workplace) for workplace in self._workplaces[1:groups]]
        work(self._workplaces[0])
        for other in others:
            other.result()
        if (shares != 1).any():
            self._group_gradients[:groups] *= shares[:, None]
            self._group_squares[:groups] *= shares
        self._gradient += self._group_gradients[:groups].sum(axis=0)
        return float(self._group_squares[:groups].sum())


class CompiledErrors:
    """The errors of a network's reconstructions, computed in C, of the weights that it had when this was built.

    A patch's result does not depend on the patches beside it. May be called from several threads, copied and pickled.
    Raises as `NativeLearner`.
    """

    def __init__(self, network: Autoencoder) -> None:
        self._copy = copy.deepcopy(network).float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._side = network.config.size_px
        self._compiled = _Network(self._copy)
        self._compiled.pack()
        self._own = threading.local()

    def __reduce__(self) -> tuple[type[CompiledErrors], tuple[Autoencoder]]:
        return CompiledErrors, (self._copy,)

    def examine(self, patches: NDArray[np.uint16]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the signed error of each pixel, input minus reconstruction, in intensity units, and its RMSE by patch.

        From patches, shape (n, size, size), uint16, of the network's size: float32 of that shape, and float64, (n,).
        """
        side = self._side
        if patches.shape[1:] != (side, side) or patches.dtype != np.uint16:
            raise ValueError(f"need (n, {side}, {side}) uint16, got {patches.shape} {patches.dtype}")
        given = np.ascontiguousarray(patches)
        errors, squares = np.empty(given.shape, np.float32), np.zeros(len(given))
        self._compiled.library.unary_examine(
            *(*self._compiled.arguments, pointer(given), len(given), *self._compiled.intensity),
            *(pointer(self._find_workplace()), pointer(errors), pointer(squares)),
        )
        return errors, np.sqrt(squares / side**2)

    def add_maps(self, pixels: NDArray[np.uint16], origins: Origins, sums: NDArray[np.float32]) -> None:
        """Add absolute errors to sums of the image's shape; see `unary.detectors.windows.AddMaps`."""
        side = self._side
        given, places = _with_whole_rows(pixels), np.ascontiguousarray(origins, np.int32)
        if sums.shape != given.shape or sums.dtype != np.float32 or sums.strides[1] != sums.itemsize:
            raise ValueError(f"need sums of shape {given.shape}, float32, got {sums.shape} {sums.dtype}")
        if len(places) and (places.min() < 0 or (places.max(axis=0) + side > given.shape).any()):
            raise ValueError(f"patches of {side} px reach past an image of shape {given.shape}; pad it first")
        ramp = taper_ramp(side)
        self._compiled.library.unary_blend(
            *(*self._compiled.arguments, pointer(given), ctypes.c_int64(given.strides[0] // given.itemsize)),
            *(pointer(places), len(places), *self._compiled.intensity, pointer(ramp)),
            *(pointer(self._find_workplace()), pointer(sums), ctypes.c_int64(sums.strides[0] // sums.itemsize)),
        )

    def _find_workplace(self) -> NDArray[np.uint8]:
        """This thread's own."""
        if not hasattr(self._own, "workplace"):
            self._own.workplace = self._compiled.build_workplace()
        workplace: NDArray[np.uint8] = self._own.workplace
        return workplace


def compile_errors(network: Autoencoder) -> CompiledErrors | None:
    """Return a network's errors in C, or None where the network or the machine does not allow it."""
    if why_unsupported(network.config) is not None or any(p.device.type != "cpu" for p in network.parameters()):
        return None
    try:
        return CompiledErrors(network)
    except CompilerError as error:
        logger.warning("torch applies this network, several times slower than compiled code would: %s", error)
        return None


def _locate(images: tuple[NDArray[np.uint16], ...], patches: PatchSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the address of every patch's first pixel, and the pixels from one of its rows to the next."""
    number, row, col = patches.index.astype(np.int64).T
    rows, cols = np.asarray([image.shape for image in images], np.int64)[number].T
    stride = np.asarray([image.strides[0] // image.itemsize for image in images], np.int64)[number]
    if min(row.min(), col.min()) < 0 or (row + patches.size_px > rows).any() or (col + patches.size_px > cols).any():
        raise ValueError("patches reach past their image; pad it first (see unary.patches.grid.pad_to_patch)")
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
