"""The graphs of the dense detectors that learn: `unary.detectors.blind_spot`, `denoising` and `segmentation`."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from unary.detectors import blind_spot as blind
from unary.detectors import unet as nets
from unary.detectors.blind_spot import BlindSpot, BlindSpotNetwork
from unary.detectors.denoising import Denoising
from unary.detectors.filters import MEAN_WINDOW_PX
from unary.detectors.graphs.builder import Graph, Value
from unary.detectors.graphs.filters import correlate, smooth_gaussian, smooth_windows, subtract_local_mean
from unary.detectors.graphs.view import Examined, Inputs, examine_cells, find_typical, over_tiles
from unary.detectors.segmentation import Segmentation
from unary.detectors.states import export_network, require_fitted
from unary.detectors.tissue import NOISE_FLOOR, NOISE_HALO_PX, NOISE_SIGMA_PX, NOISE_WINDOW_PX, STRIP_STEP

Weights = dict[str, NDArray[np.float32]]
_TILE_PX, _UNET_TILE_PX = 192, 512
_BFLOAT16, _FLOAT = 16, 1  # of onnx.TensorProto


def examine_blind_spot(g: Graph, view: Inputs, detector: BlindSpot) -> Examined:
    """Write what the detector does."""
    network = require_fitted(detector.network, "blind_spot")
    structure = subtract_local_mean(g, view.intensity) * np.float32(blind.GAIN)
    binomial = np.asarray([0.25, 0.5, 0.25])
    target = correlate(g, correlate(g, structure, binomial, axis=0, border="edge"), binomial, axis=1, border="edge")
    weights, tile, reach = export_network(network), np.asarray([_TILE_PX]), np.asarray([network.reach_px])

    def write(row: Value, col: Value) -> list[Value]:
        corner = [g.op("Max", first - reach, np.asarray([0])) for first in (row, col)]
        part = g.cut(structure, 0, corner[0], row + tile + reach)
        part = g.planes(g.cut(part, 1, corner[1], col + tile + reach))
        window = [
            (first - start, g.op("Min", tile, length - first))
            for first, start, length in zip((row, col), corner, (view.rows, view.cols), strict=True)
        ]
        return _predict(g, part, window, network, weights)

    mean, log_spread = over_tiles(g, view, _TILE_PX, write, 2)
    spread = g.op("Exp", log_spread)
    error = (target - mean) / g.op("Sqrt", spread)
    surprise = error / g.op("Sqrt", find_typical(g, spread, view))
    surprise = g.where(view.tissue, surprise, np.float32(blind.OUTSIDE))
    return examine_cells(g, view, surprise, 1, detector.config.strongest)


def _predict(
    g: Graph, part: Value, window: list[tuple[Value, Value]], network: BlindSpotNetwork, weights: Weights
) -> list[Value]:
    """Mean and log spread in a window of a part of the structure, each (rows, cols)."""
    multiply = functools.partial(_multiply, g, rounds=network.rounds)
    features = _round(g, part) if network.rounds else part
    for layer in ("local.0", "local.1"):
        features = g.op("Relu", multiply(features, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1))
    centre = network.config.window_px // 2
    padded = g.op("Pad", features, np.asarray([0, 0, centre, centre] * 2), np.float32(0))
    for axis, (start, length) in enumerate(window):
        padded = g.cut(padded, 2 + axis, start, start + length + np.asarray([2 * centre]))
    low = centre - network.config.hole_px
    high = network.config.window_px - low
    wide = weights["wide.weight"]
    above = multiply(_lay_over(g, padded, high, 2), _lay_over_weights(wide, high, 2), weights["wide.bias"])
    middle, wide = g.cut(padded, 2, low, -low), wide[:, :, low:-low]
    beside = multiply(_lay_over(g, middle, high, 3), _lay_over_weights(wide, high, 3), None)
    hidden = g.op("Relu", _round(g, above + beside) if network.rounds else above + beside)
    hidden = g.op("Relu", multiply(hidden, weights["point.0.weight"], weights["point.0.bias"]))
    found = g.op("Conv", hidden, weights["point.1.weight"], weights["point.1.bias"])
    mean, log_spread = (
        g.op("Squeeze", each, np.asarray([0, 1])) for each in g.ops("Split", found, axis=1, num_outputs=2, outputs=2)
    )
    return [mean, g.op("Clip", log_spread, *(np.float32(end) for end in blind.LOG_SPREAD))]


def _lay_over(g: Graph, values: Value, shift: int, axis: int) -> Value:
    one, other = g.cut(values, axis, 0, -shift), g.cut(values, axis, shift, np.iinfo(np.int64).max)
    return g.op("Concat", one, other, axis=1)


def _lay_over_weights(weight: NDArray[np.float32], shift: int, axis: int) -> NDArray[np.float32]:
    length = weight.shape[axis] - shift
    parts = [np.take(weight, np.arange(first, first + length), axis) for first in (0, shift)]
    return np.concatenate(parts, 1)


def _multiply(
    g: Graph,
    values: Value,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    *,
    rounds: bool,
    padding: int = 0,
) -> Value:
    """Convolve; where it is asked for, numbers that are rounded to bfloat16, and round the sums."""
    if not rounds:
        return g.op("Conv", values, weight, bias, pads=[padding] * 4)
    given = (None if each is None else _round_array(each) for each in (weight, bias))
    return _round(g, g.op("Conv", values, *given, pads=[padding] * 4))


def _round(g: Graph, values: Value) -> Value:
    return g.op("Cast", g.op("Cast", values, to=_BFLOAT16), to=_FLOAT)


def _round_array(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to bfloat16, to the nearest, of two the even one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).reshape(values.shape)


def examine_unet(g: Graph, view: Inputs, detector: Denoising | Segmentation) -> Examined:
    """Write what the detector does: `unary.detectors.unet.map_tissue`, tile by tile."""
    network = require_fitted(detector.network, "the U-Net")
    weights, levels = export_network(network), len(detector.config.widths)
    halo = -(-(NOISE_HALO_PX + 2 * (MEAN_WINDOW_PX // 2) + network.reach_px) // STRIP_STEP) * STRIP_STEP
    tile, margin = np.asarray([_UNET_TILE_PX]), np.asarray([halo])

    def write(row: Value, col: Value) -> list[Value]:
        corner = [g.op("Max", first - margin, np.asarray([0])) for first in (row, col)]
        planes = [
            g.cut(g.cut(plane, 0, corner[0], row + tile + margin), 1, corner[1], col + tile + margin)
            for plane in (view.intensity, g.cast(view.tissue, np.float32))
        ]
        rows, cols = g.length(planes[0], 0), g.length(planes[0], 1)
        multiple = np.asarray([network.multiple_px])
        missing = [g.op("Mod", multiple - g.op("Mod", length, multiple), multiple) for length in (rows, cols)]
        noise = _measure_noise(g, planes[0], planes[1])
        more = g.join(0, 0, *missing)
        grown = [g.op("Pad", plane, more, mode="edge") for plane in (planes[0], noise, planes[1])]
        found = g.plane(_apply_unet(g, _build_inputs(g, *grown), weights, levels))
        for axis, first in enumerate((row, col)):
            start = first - corner[axis]
            last = g.op("Min", start + tile, (rows, cols)[axis])
            found = g.cut(found, axis, start, last)
        return [found]

    (answer,) = over_tiles(g, view, _UNET_TILE_PX, write, 1)
    answer = g.where(view.tissue, answer, np.float32(nets.OUTSIDE))
    return examine_cells(g, view, answer, 1, detector.config.strongest)


def _measure_noise(g: Graph, intensity: Value, inside: Value) -> Value:
    fine = (intensity - smooth_gaussian(g, intensity, NOISE_SIGMA_PX)) * inside
    share = smooth_windows(g, inside, NOISE_WINDOW_PX) + np.float32(1e-3)
    return g.op("Sqrt", smooth_windows(g, fine * fine, NOISE_WINDOW_PX) / share) + np.float32(NOISE_FLOOR)


def _build_inputs(g: Graph, intensity: Value, noise: Value, inside: Value) -> Value:
    contrast = g.op("Asinh", subtract_local_mean(g, intensity) / noise * np.float32(0.25))
    planes = ((intensity - np.float32(0.4)) / np.float32(0.2), contrast, inside)
    return g.op("Concat", *(g.planes(plane) for plane in planes), axis=1)


def _apply_unet(g: Graph, image: Value, weights: Weights, levels: int) -> Value:
    def convolve(values: Value, name: str) -> Value:
        return g.op("Relu", g.op("Conv", values, weights[f"{name}.weight"], weights[f"{name}.bias"], pads=[1] * 4))

    found: list[Value] = []
    for level in range(levels):
        given = image if level == 0 else g.op("MaxPool", found[-1], kernel_shape=[2, 2], strides=[2, 2])
        found.append(convolve(convolve(given, f"down.{level}.0.0"), f"down.{level}.1.0"))
    hidden = found.pop()
    for level in range(levels - 1):
        larger = g.op(
            "Resize",
            hidden,
            None,
            np.asarray([1, 1, 2, 2], np.float32),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        hidden = convolve(g.op("Concat", larger, found.pop(), axis=1), f"up.{level}.0")
    return g.op("Conv", hidden, weights["head.weight"], weights["head.bias"])
