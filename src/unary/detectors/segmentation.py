"""Segmentation of simulated calcifications: normal tissue plus a prior of what a lesion looks like.

The network learns on normal images into which calcifications were drawn (`unary.detectors.simulation`), and is listed
apart from the strict one-class detectors because it has been told the target. It answers with the log-odds that a pixel
belongs to a calcification. Two losses: per pixel, and per patch, on the very statistic that scores a patch (the mean of
its strongest pixels); the second one is what makes it good where false alarms must be rare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unary.detectors.blind_spot import subtract_local_mean
from unary.detectors.tissue import NOISE_HALO_PX, Strips, Tissue, measure_noise
from unary.detectors.unet import UNet

INPUTS = 3
STRONGEST = 8
_OUTSIDE = -20.0
_HALO_PX = NOISE_HALO_PX + 58  # what the network sees, up to a multiple of 32 altogether


def build_inputs(intensity: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Return the network's channels, (n, 3, rows, cols), from three tensors of shape (n, 1, rows, cols).

    Intensity roughly standardised; fine structure in units of the local noise, compressed so that a large calcification
    does not drown a small one; the mask.
    """
    contrast = torch.asinh(subtract_local_mean(intensity) / noise / 4)
    return torch.cat([(intensity - 0.4) / 0.2, contrast, mask], dim=1)


def pad_planes(tissue: Tissue, multiple_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return intensity, noise and mask, (1, 1, rows, cols) float32, repeated below and right up to a multiple."""
    rows, cols = tissue.mask.shape
    padding = (0, -cols % multiple_px, 0, -rows % multiple_px)
    intensity, noise, mask = (
        F.pad(torch.from_numpy(np.asarray(plane, np.float32))[None, None], padding, mode="replicate")
        for plane in (tissue.intensity, tissue.noise, tissue.mask)
    )
    return intensity, noise, mask


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A trained network as a detector of calcifications."""

    network: UNet

    def map_tissue(self, tissue: Strips) -> NDArray[np.float32]:
        """Return the log-odds of calcification, shape (rows, cols)."""
        answer = np.empty(tissue.mask.shape, np.float32)
        for strip in tissue.strips(_HALO_PX):
            rows, cols = strip.mask.shape
            part = Tissue(strip.intensity, strip.mask, measure_noise(strip.intensity, strip.mask))
            with torch.inference_mode():
                inputs = build_inputs(*pad_planes(part, self.network.config.multiple_px))
                log_odds = self.network(inputs.contiguous(memory_format=torch.channels_last))[0, 0, :rows, :cols]
            answer[strip.rows] = np.where(strip.mask, log_odds.numpy(), np.float32(_OUTSIDE))[strip.own]
        return answer
