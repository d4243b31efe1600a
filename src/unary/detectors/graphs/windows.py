"""The graphs of the detectors that see a patch at a time: `unary.detectors.windows` and what examines patches there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.detectors.filters import gaussian_kernel
from unary.detectors.graphs.builder import Graph, Value
from unary.detectors.graphs.view import Examined, Inputs
from unary.detectors.laplacian import Laplacian, LaplacianConfig
from unary.detectors.residual import WHITE_FLOOR, Dssim, Residual
from unary.detectors.states import export_network, require_fitted
from unary.detectors.variational import LOG_VARIANCE, Variational
from unary.detectors.wei2018.autoencoder import Autoencoder
from unary.detectors.wei2018.detector import Wei2018
from unary.patches.preparation import FULL_SCALE
from unary.patches.stitching import taper_ramp

_BATCH = 8
_FLOOR = 1e-4  # as in `unary.detectors.laplacian`
_DSSIM = (0.01**2, 0.03**2)  # of Wang et al. 2004, for a range of 1


@dataclass(frozen=True, eq=False)
class PatchAnswer:
    """What is said of patches: scores, (n,), float64, and maps, (n, size, size), float32."""

    scores: Value
    maps: Value


ExaminePatches = Callable[[Graph, Value], PatchAnswer]
"""Examine patches of intensity, (n, size, size), float32."""


def examine_windows(g: Graph, view: Inputs, examine: ExaminePatches) -> Examined:
    """Write what `unary.detectors.windows.examine_windows` does."""
    size = np.asarray([view.size_px])
    intensity = g.cast(view.pixels, np.float32) / np.float32(FULL_SCALE)
    last = g.op("ReduceMax", view.origins, np.asarray([0]), keepdims=0) + np.asarray([view.size_px] * 2)
    whole = g.op("Max", g.op("Max", last, np.asarray([view.size_px] * 2)), g.op("Shape", intensity))
    padded = g.op(
        "Pad", intensity, g.op("Concat", np.asarray([0, 0]), whole - g.op("Shape", intensity), axis=0), np.float32(0)
    )
    scores = _score_patches(g, view, padded, examine)
    high, wide = (g.op("Max", length, size) for length in (view.rows, view.cols))
    blended = _blend(g, view, padded, (high, wide), examine)
    blended = g.cut(g.cut(blended, 0, 0, view.rows), 1, 0, view.cols)
    return Examined(scores, blended, 1, view.mask)


def _score_patches(g: Graph, view: Inputs, padded: Value, examine: ExaminePatches) -> Value:
    """Scores of all patches but the last, (n,), a few at a time."""
    count, batch = g.length(view.origins, 0), np.asarray([_BATCH])
    times = (count + batch - np.asarray([1])) // batch

    def write(number: Value) -> list[Value]:
        places = g.op("Min", number * np.int64(_BATCH) + np.arange(_BATCH), count - np.asarray([1]))
        corners = g.op("Gather", view.origins, places, axis=0)
        cut = [_cut_patch(g, padded, g.op("Gather", corners, np.int64(k), axis=0), view.size_px) for k in range(_BATCH)]
        return [examine(g, g.op("Concat", *cut, axis=0)).scores]

    (found,) = g.loop(times, write, [np.float64])
    return g.cut(g.reshape(found, -1), 0, 0, count - np.asarray([1]))


def _cut_patch(g: Graph, padded: Value, corner: Value, size_px: int) -> Value:
    patch = g.op("Slice", padded, corner, corner + np.asarray([size_px] * 2), np.asarray([0, 1]))
    return g.op("Unsqueeze", patch, np.asarray([0]))


def _blend(g: Graph, view: Inputs, padded: Value, shape: tuple[Value, Value], examine: ExaminePatches) -> Value:
    """The weighted mean of overlapping windows with tissue, row of windows by row, of a shape."""
    size, stride = view.size_px, max(view.size_px // 2, 1)
    tops, lefts = (_lay_grid(g, length, size, stride) for length in shape)
    within = np.arange(size)
    tissue = g.cast(view.mask, np.float32)
    missing = [length - own for length, own in zip(shape, (view.rows, view.cols), strict=True)]
    tissue = g.pad(tissue, [0, 0], missing, np.float32(0))
    ramp = taper_ramp(size)

    def write(number: Value) -> list[Value]:
        top = g.reshape(g.op("Gather", tops, number), 1)
        strip, seen = (g.cut(plane, 0, top, top + np.asarray([size])) for plane in (padded, tissue))
        everywhere = _cut_columns(g, g.op("ReduceMax", seen, np.asarray([0]), keepdims=1), lefts, within)
        has_tissue = g.op("ReduceMax", everywhere, np.asarray([1, 2]), keepdims=0) > np.float32(0)
        own, numbers = (g.op("Compress", each, has_tissue, axis=0) for each in (lefts, g.count_up(g.length(lefts, 0))))
        maps = examine(g, _cut_columns(g, strip, own, within)).maps * np.outer(ramp, ramp)
        weights = g.op("Expand", ramp[None], g.join(g.length(own, 0), size))
        sums = _add_runs(g, g.op("Transpose", maps, perm=[0, 2, 1]), own, numbers, (shape[1], size))
        return [g.op("Transpose", sums, perm=[1, 0]), _add_runs(g, weights, own, numbers, (shape[1],))]

    strips, lines = g.loop(g.length(tops, 0), write, [np.float32, np.float32])
    numbers = g.count_up(g.length(tops, 0))
    weights = g.op("Unsqueeze", lines, np.asarray([1])) * ramp[None, :, None]
    sums, total = (_add_runs(g, stack, tops, numbers, shape) for stack in (strips, weights))
    return sums / total


def _add_runs(g: Graph, runs: Value, firsts: Value, numbers: Value, shape: Sequence[int | Value]) -> Value:
    """Add runs, (k, size, ...), to zeros of a shape, each from its first place on along the first axis.

    Of every three runs one at a time: they do not overlap with those of their own kind, by their numbers in the grid.
    onnxruntime adds from several threads at once, and loses what two of them add to one place.
    """
    result = g.op("ConstantOfShape", g.join(*shape))
    kind = g.op("Mod", numbers, np.asarray(3))
    for third in range(3):
        chosen = g.op("Equal", kind, np.asarray(third))
        own, start = (g.op("Compress", each, chosen, axis=0) for each in (runs, firsts))
        places = g.op("Unsqueeze", start, np.asarray([1])) + g.count_up(g.length(runs, 1))
        added = g.reshape(own, -1, *shape[1:])
        result = g.op("ScatterND", result, g.reshape(places, -1, 1), added, reduction="add")
    return result


def _lay_grid(g: Graph, length: Value, size: int, stride: int) -> Value:
    """The first places of windows along an axis, as `unary.patches.grid.grid_origins`."""
    end = length - np.asarray([size])
    count = (end + np.asarray([stride - 1])) // np.asarray([stride]) + np.asarray([1])
    return g.op("Min", g.count_up(count) * np.int64(stride), end)


def _cut_columns(g: Graph, strip: Value, lefts: Value, within: NDArray[np.int64]) -> Value:
    """Windows of a strip, (k, rows, size)."""
    places = g.op("Unsqueeze", lefts, np.asarray([1])) + within
    return g.op("Transpose", g.op("Gather", strip, places, axis=1), perm=[1, 0, 2])


# Patches.


def examine_laplacian(detector: Laplacian) -> ExaminePatches:
    """Return what writes `unary.detectors.laplacian.Laplacian.examine_values`."""
    config = detector.config
    means, deviations = (require_fitted(each, "laplacian") for each in (detector.means, detector.deviations))

    def examine(g: Graph, values: Value) -> PatchAnswer:
        side = require_fitted(detector.size_px, "laplacian")
        scores: Value | None = None
        maps: Value | None = None
        for sigma, mean, deviation in zip(config.sigmas_px, means, deviations, strict=True):
            response = _respond(g, values, sigma, config, side)
            score = (_pool(g, response, config.strongest, side) - np.float64(mean)) / np.float64(deviation)
            shown = (response - np.float32(mean)) / np.float32(deviation)
            scores, maps = (
                new if old is None else g.op("Max", old, new) for old, new in ((scores, score), (maps, shown))
            )
        assert scores is not None
        assert maps is not None
        return PatchAnswer(scores, maps)

    return examine


def _respond(g: Graph, values: Value, sigma: float, config: LaplacianConfig, side: int) -> Value:
    smooth, bent = _build_matrix(side, sigma, 0), _build_matrix(side, sigma, 2)
    across = _filter(g, values, bent, smooth)
    along = _filter(g, values, smooth, bent)
    response = (across + along) * np.float32(-(sigma * sigma))
    return response / (_local_rms(g, response, config.neighbourhood_px, side) + np.float32(_FLOOR))


def _build_matrix(side: int, sigma: float, order: Literal[0, 2]) -> NDArray[np.float32]:
    """A Gaussian filter, or its second derivative, as a matrix with mirrored borders."""
    kernel = gaussian_kernel(sigma, order)
    if order == 2:
        kernel = kernel - kernel.mean()
    matrix: NDArray[np.float32] = ndimage.correlate1d(np.eye(side), kernel, axis=0).astype(np.float32)
    return matrix


def _filter(g: Graph, values: Value, down: NDArray[np.float32], across: NDArray[np.float32]) -> Value:
    return g.op("MatMul", g.op("MatMul", down, values), np.ascontiguousarray(across.T))


def _local_rms(g: Graph, values: Value, sigma_px: float, side: int) -> Value:
    window = _build_matrix(side, sigma_px, 0)
    return g.op("Sqrt", _filter(g, values * values, window, window))


def _pool(g: Graph, maps: Value, strongest: int, side: int) -> Value:
    """The mean of the strongest pixels of each map, (n,), float64."""
    flat = g.reshape(maps, -1, side * side)
    most = g.ops("TopK", flat, np.asarray([min(strongest, side * side)]), sorted=0, outputs=2)[0]
    return g.mean(g.cast(most, np.float64), 1)


def examine_autoencoder(detector: Wei2018) -> ExaminePatches:
    """Return what writes `unary.detectors.wei2018.detector.Wei2018.examine_patches`."""
    network = require_fitted(detector.network, "wei2018")

    def examine(g: Graph, patches: Value) -> PatchAnswer:
        error = patches - _reconstruct(g, patches, network)
        return PatchAnswer(_measure_rmse(g, error), g.op("Abs", error))

    return examine


def _measure_rmse(g: Graph, error: Value) -> Value:
    exact = g.cast(error, np.float64)
    return g.op("Sqrt", g.mean(exact * exact, 1, 2))


def _reconstruct(g: Graph, patches: Value, network: Autoencoder) -> Value:
    """Reconstructions in intensity units, (n, size, size)."""
    weights = export_network(network)
    hidden = _halve(g, patches, network, weights)
    if network.squeeze is not None:
        hidden = _dense(g, hidden, weights, "squeeze")
    return _decode(g, hidden, network, weights)


def _halve(
    g: Graph, patches: Value, network: Autoencoder, weights: dict[str, NDArray[np.float32]], prefix: str = ""
) -> Value:
    config = network.config
    hidden = (patches - np.float32(config.input_mean)) / np.float32(config.input_scale)
    hidden = g.op("Unsqueeze", hidden, np.asarray([1]))
    for number in range(len(network.encoder)):
        weight, bias = (weights[f"{prefix}encoder.{number}.{kind}"] for kind in ("weight", "bias"))
        hidden = g.op("Relu", g.op("Conv", hidden, weight, bias, strides=[2, 2], pads=[1] * 4))
    return hidden


def _dense(g: Graph, hidden: Value, weights: dict[str, NDArray[np.float32]], name: str) -> Value:
    return g.op("Gemm", g.op("Flatten", hidden), weights[f"{name}.weight"], weights[f"{name}.bias"], transB=1)


def _decode(
    g: Graph, hidden: Value, network: Autoencoder, weights: dict[str, NDArray[np.float32]], prefix: str = ""
) -> Value:
    if network.expand is not None:
        hidden = g.op("Relu", _dense(g, hidden, weights, f"{prefix}expand"))
        hidden = g.reshape(hidden, -1, *network.smallest)
    last = len(network.decoder) - 1
    for number, layer in enumerate(network.decoder):
        weight, bias = (weights[f"{prefix}decoder.{number}.{kind}"] for kind in ("weight", "bias"))
        more = [int(each) for each in layer.output_padding]  # type: ignore[union-attr]
        hidden = g.op("ConvTranspose", hidden, weight, bias, strides=[2, 2], pads=[1] * 4, output_padding=more)
        hidden = hidden if number == last else g.op("Relu", hidden)
    restored = hidden * np.float32(network.config.input_scale) + np.float32(network.config.input_mean)
    return g.op("Squeeze", restored, np.asarray([1]))


def examine_variational(detector: Variational) -> ExaminePatches:
    """Return what writes `unary.detectors.variational.Variational.examine_patches`."""
    network = require_fitted(detector.network, "variational")
    weights, config = export_network(network), network.body.config

    def examine(g: Graph, patches: Value) -> PatchAnswer:
        flat = _halve(g, patches, network.body, weights, "body.")
        mean = _dense(g, flat, weights, "body.squeeze")
        error = patches - _decode(g, mean, network.body, weights, "body.")
        maps = g.op("Abs", error)
        if not detector.config.score_kl:
            return PatchAnswer(_measure_rmse(g, error), maps)
        spread = g.op("Clip", _dense(g, flat, weights, "spread"), *(np.float32(end) for end in LOG_VARIANCE))
        terms = mean * mean + g.op("Exp", spread) - np.float32(1) - spread
        divergence = g.op("ReduceSum", terms, np.asarray([1]), keepdims=0) * np.float32(0.5)
        scaled = error / np.float32(config.input_scale)
        pixels = config.size_px**2
        bound = g.mean(scaled * scaled, 1, 2) * np.float32(0.5)
        bound = bound + divergence * np.float32(detector.config.kl_weight / pixels)
        return PatchAnswer(g.cast(bound, np.float64), maps)

    return examine


def examine_residual(detector: Residual) -> ExaminePatches:
    """Return what writes `unary.detectors.residual.Residual.examine_patches`."""
    reconstruction, bank = (
        require_fitted(detector.reconstruction, "residual"),
        require_fitted(detector.bank, "residual"),
    )
    network, answer = require_fitted(reconstruction.network, "residual"), examine_laplacian(bank)

    def examine(g: Graph, patches: Value) -> PatchAnswer:
        error = patches - _reconstruct(g, patches, network)
        usual = _local_rms(g, error, detector.config.bank.neighbourhood_px, network.config.size_px)
        return answer(g, error / (usual + np.float32(WHITE_FLOOR)))

    return examine


def examine_dssim(detector: Dssim) -> ExaminePatches:
    """Return what writes `unary.detectors.residual.Dssim.examine_patches`."""
    reconstruction = require_fitted(detector.reconstruction, "residual_dssim")
    network = require_fitted(reconstruction.network, "residual_dssim")
    side, window = network.config.size_px, detector.config.window_px
    pixels = window**2
    strongest = max(round(detector.config.strongest_share * side**2), 1)

    def examine(g: Graph, patches: Value) -> PatchAnswer:
        expected = _reconstruct(g, patches, network)
        one, other, squares, others, product = (
            _average(g, values, window, side)
            for values in (patches, expected, patches * patches, expected * expected, patches * expected)
        )
        # The order of operations, and of rounding to float32, is that of scikit-image: variances are small differences.
        sample = np.float32(pixels / (pixels - 1))
        spread, other_spread = (squares - one * one) * sample, (others - other * other) * sample
        shared = (product - one * other) * sample
        first, second = (np.float32(each) for each in _DSSIM)
        similar = ((one * other) * np.float32(2) + first) * (shared * np.float32(2) + second)
        norm = (one * one + other * other + first) * (spread + other_spread + second)
        maps = (np.float32(1) - similar / norm) / np.float32(2)
        return PatchAnswer(_pool(g, maps, strongest, side), maps)

    return examine


def _average(g: Graph, values: Value, window: int, side: int) -> Value:
    """Means of square windows, borders mirrored, rounded to float32 after either axis as scipy does."""
    reach = window // 2
    mirrored = np.pad(np.arange(side), reach, mode="symmetric")
    for axis in (1, 2):
        grown = g.cast(g.op("Gather", values, mirrored, axis=axis), np.float64)
        parts: Sequence[Value] = [g.cut(grown, axis, first, first + side) for first in range(window)]
        values = g.cast(g.op("Sum", *parts) / np.float64(window), np.float32)
    return values
