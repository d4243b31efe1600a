"""Small images with class labels in an official split: what `mnist` and `cifar10` read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A data set of small images, divided into training and test by its publishers.

    Attributes
    ----------
    train_images, test_images
        Shape (n, rows, cols) for grey or (n, rows, cols, 3) for colour in the order red, green, blue; uint8.
    train_labels, test_labels
        Shape (n,), uint8: indices into ``classes``.
    classes
        The name of each label.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    classes: tuple[str, ...]

    def sha256(self) -> str:
        """Return a digest of all pixels and labels: the same however the files were named or compressed."""
        digest = hashlib.sha256()
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(part.shape).encode())
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()
