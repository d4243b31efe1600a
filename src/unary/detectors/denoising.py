"""A denoising U-Net: what it takes away from an image does not belong to normal tissue.

Kascenas et al. 2022 ("Denoising autoencoders for unsupervised anomaly detection in brain MRI") found that a U-Net
trained to remove *coarse* noise from normal images, noise of about the lesions' size, beats reconstruction through a
bottleneck by far: skip connections keep everything that is normal, and the noise is the only thing to learn to remove.
Here the noise has the scale of calcifications, Gaussian blobs of either sign and noise enlarged from a grid of a few
pixels (`unary.detectors.fit_denoising`).

The network states what was added, in units of the local noise; the denoised image is the input less that. Only bright
additions count, since a calcification is never darker than the tissue around it. Normals alone: the blobs have no
shape, sign or grouping of a lesion, but their size is a choice, made from what is looked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unary.detectors.fusion import pool_patches
from unary.detectors.protocol import ImageExamination
from unary.detectors.segmentation import build_inputs, pad_planes
from unary.detectors.tissue import Tissue, read_tissue
from unary.detectors.unet import UNet
from unary.patches.grid import Origins

STRONGEST = 8
_OUTSIDE = -20.0


@dataclass(frozen=True, eq=False)
class Denoising:
    """A trained network as a detector."""

    network: UNet

    def denoise(self, tissue: Tissue) -> NDArray[np.float32]:
        """Return the intensity as the network believes it to have been, shape (rows, cols), float32."""
        return tissue.intensity - self._estimate_addition(tissue) * tissue.noise

    def map_tissue(self, tissue: Tissue) -> NDArray[np.float32]:
        """Return input minus denoised input in units of the local noise, shape (rows, cols); bright is positive."""
        result: NDArray[np.float32] = np.where(tissue.mask, self._estimate_addition(tissue), np.float32(_OUTSIDE))
        return result

    def examine_image(self, pixels: NDArray[np.uint16], origins: Origins, *, size_px: int) -> ImageExamination:
        """Score patches of a prepared image by the mean of the strongest pixels of the map."""
        tissue = read_tissue(pixels)
        answer = self.map_tissue(tissue)
        scores = pool_patches(answer, origins, size_px=size_px, strongest=STRONGEST)
        return ImageExamination(scores, np.where(tissue.mask, answer, np.float32(np.nan)))

    def _estimate_addition(self, tissue: Tissue) -> NDArray[np.float32]:
        rows, cols = tissue.mask.shape
        planes = pad_planes(tissue, self.network.config.multiple_px)
        with torch.inference_mode():
            added: NDArray[np.float32] = estimate_addition(self.network, *planes)[0, 0, :rows, :cols].numpy()
        return added


def estimate_addition(network: UNet, intensity: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Return what does not belong, in units of the local noise, from and to (n, 1, rows, cols).

    The network reads the channels of `unary.detectors.segmentation.build_inputs`.
    """
    added: Tensor = network(build_inputs(intensity, noise, mask).contiguous(memory_format=torch.channels_last))
    return added
