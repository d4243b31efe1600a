"""The pieces that graphs are written of, against numpy and scipy."""

import numpy as np
import pytest
from scipy import ndimage

from unary.detectors.filters import gaussian_kernel
from unary.detectors.graphs.builder import Graph, Value
from unary.detectors.graphs.filters import correlate, enlarge_cells, erode, find_median, smooth_windows, sum_cells
from unary.detectors.graphs.fusion import _interpolate, _interpolate_few
from unary.detectors.tissue import smooth
from unary.patches.preparation import erode_mask

pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")


def run(write, *arrays, kind=np.float32, rank=2):
    """What a graph makes of arrays."""
    g = Graph()
    found = write(g, *(Value(g, f"given{number}") for number in range(len(arrays))))
    inputs = {f"given{number}": (array.dtype.type, [None] * array.ndim) for number, array in enumerate(arrays)}
    model = g.build_model(inputs, {"found": (found, kind, [None] * rank)})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {f"given{number}": array for number, array in enumerate(arrays)})[0]


@pytest.mark.parametrize("shape", [(150, 70), (64, 3), (1, 5)])
@pytest.mark.parametrize(("border", "mode"), [("reflect", "reflect"), ("edge", "nearest"), ("zero", "constant")])
def test_correlation_is_that_of_scipy_however_small_the_image(shape, border, mode):
    values, kernel = np.random.default_rng(0).random(shape, np.float32), gaussian_kernel(2.0, 2)
    for axis in (0, 1):
        found = run(lambda g, given, axis=axis: correlate(g, given, kernel, axis=axis, border=border), values)
        assert np.allclose(found, ndimage.correlate1d(values, kernel, axis, mode=mode), atol=1e-6)


def test_windows_cells_and_erosion_are_those_of_the_detectors():
    rng = np.random.default_rng(1)
    values, mask = rng.random((75, 41), np.float32), rng.random((75, 41)) > 0.02
    assert np.allclose(run(lambda g, given: smooth_windows(g, given, 15), values), smooth(values, 15), atol=1e-6)
    assert np.array_equal(run(lambda g, given: erode(g, given, 4), mask, kind=np.bool_), erode_mask(mask, 4))
    cells = run(lambda g, given: sum_cells(g, given, 8), values)
    assert cells.shape == (10, 6)
    assert cells.sum() == pytest.approx(values.sum(), rel=1e-5)
    rows, cols = np.asarray([75]), np.asarray([41])
    again = run(lambda g, given: enlarge_cells(g, given, g.constant(rows), g.constant(cols), 8), cells)
    assert np.array_equal(again, cells.repeat(8, 0).repeat(8, 1)[:75, :41])


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [4.0, 1.0, 2.0, 9.0], [5.0, 5.0, 5.0, 1.0], [7.0], []])
def test_the_median_is_that_of_numpy_and_of_nothing_0(values):
    given = np.asarray(values, np.float32)
    assert run(find_median, given, rank=0) == (np.median(given) if len(given) else 0)


def test_interpolation_is_that_of_numpy_wherever_knots_lie():
    rng = np.random.default_rng(2)
    knots = np.sort(np.concatenate([rng.normal(0, 1e-4, 300), [-50.0, 20.0, 20.00001, 30.0], rng.normal(5, 1, 90)]))
    heights = np.sort(rng.random(len(knots))) * 6
    values = np.concatenate([rng.normal(0, 3e-4, 900), rng.uniform(-60, 40, 900), knots]).astype(np.float32)[None]
    expected = np.interp(values, knots.astype(np.float32).astype(np.float64), heights)
    assert np.allclose(run(lambda g, given: _interpolate(g, given, knots, heights), values), expected, atol=2e-5)
    exact = values[0].astype(np.float64)
    found = run(lambda g, given: _interpolate_few(g, given, knots, heights), exact, kind=np.float64, rank=1)
    assert np.allclose(found, np.interp(exact, knots, heights), rtol=1e-12)
    alone = run(lambda g, given: _interpolate(g, given, knots[:1], heights[:1]), values)
    assert np.allclose(alone, heights[0])
