"""Banded products against scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors.filters import correlate, gaussian_laplace, smooth_gaussian

SCIPY = {"reflect": "reflect", "edge": "nearest"}


@pytest.mark.parametrize("shape", [(300, 90), (64, 64), (65, 3), (1, 5), (7, 130)])
@pytest.mark.parametrize("sigma", [0.7, 2.0, 8.0])
def test_gaussians_and_laplacians_are_scipys(shape, sigma):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    tensor = torch.from_numpy(values)
    assert np.abs(smooth_gaussian(tensor, sigma).numpy() - ndimage.gaussian_filter(values, sigma)).max() < 1e-6
    expected = ndimage.gaussian_laplace(values, sigma)
    assert np.abs(gaussian_laplace(tensor, sigma).numpy() - expected).max() < 1e-6
    assert np.array_equal(tensor.numpy(), values)


@pytest.mark.parametrize("mode", ["reflect", "edge"])
@pytest.mark.parametrize("axis", [0, 1])
def test_an_uneven_kernel_correlates_and_does_not_convolve(axis, mode):
    values = np.random.default_rng(1).random((140, 150)).astype(np.float32)
    kernel = np.array([3.0, 0, 0, -1, 0.5])
    expected = ndimage.correlate1d(values.astype(np.float64), kernel, axis=axis, mode=SCIPY[mode])
    assert np.allclose(correlate(torch.from_numpy(values), kernel, axis=axis, mode=mode), expected, atol=1e-6)


def test_strided_input_is_read_as_it_is():
    values = np.random.default_rng(2).random((100, 80)).astype(np.float32)
    turned = torch.from_numpy(values).T
    assert torch.equal(smooth_gaussian(turned, 2.0), smooth_gaussian(turned.contiguous(), 2.0))
