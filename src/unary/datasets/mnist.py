"""MNIST, handwritten digits: four files in the IDX format of its publishers (LeCun, Cortes and Burges).

An IDX file is a magic number (two zero bytes, a type code, the number of dimensions), each dimension as a big-endian
32-bit integer, and the values, the last dimension varying fastest. Files may be compressed with gzip or not.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.datasets.labelled import LabelledImages
from unary.errors import ManifestError

CLASSES = tuple("0123456789")
SIDE_PX = 28
_UNSIGNED_BYTE = 0x08


def read_mnist(folder: Path) -> LabelledImages:
    """Read the four IDX files of MNIST: images of shape (n, 28, 28), a larger value being more ink.

    The layout serves any data set of at most ten classes in the same format and size, Fashion-MNIST for example; its
    classes are then called by their digits.

    Parameters
    ----------
    folder
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, each as it is or with ``.gz``. Where both are there, the plain one is read.

    Raises
    ------
    ManifestError
        If a file is missing, foreign or truncated, or if images and labels differ in number.
    """
    return LabelledImages(*_read_split(folder, "train"), *_read_split(folder, "t10k"), CLASSES)


def _read_split(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images_path, labels_path = _find(folder, f"{name}-images-idx3-ubyte"), _find(folder, f"{name}-labels-idx1-ubyte")
    images, labels = _read_idx(images_path, dimensions=3), _read_idx(labels_path, dimensions=1)
    if images.shape[1:] != (SIDE_PX, SIDE_PX):
        raise ManifestError(
            f"{images_path}: images must be {SIDE_PX} x {SIDE_PX}, these are {images.shape[1]} x {images.shape[2]}"
        )
    if len(images) != len(labels):
        raise ManifestError(
            f"{labels_path}: {len(labels)} labels for {len(images)} images; are the files of one download?"
        )
    if len(labels) and int(labels.max()) >= len(CLASSES):
        raise ManifestError(f"{labels_path}: labels must lie in 0 to {len(CLASSES) - 1}, found {int(labels.max())}")
    return images, labels


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ManifestError(f"{folder / name}: no such file, with .gz or without; --data must name the folder of MNIST")


def _read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the values of an IDX file of unsigned bytes, in the shape that its header gives."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); is the download incomplete?") from error
    start = 4 + 4 * dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if content[:4] != magic:
        raise ManifestError(
            f"{path}: must start with the IDX magic number {magic.hex()} ({dimensions} dimensions of bytes), "
            f"starts with {content[:4].hex() or 'nothing'}; is it another file, or compressed without the ending .gz?"
        )
    if len(content) < start:
        raise ManifestError(f"{path}: ends within its header; is the download incomplete?")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    if len(content) - start != math.prod(shape):
        raise ManifestError(
            f"{path}: the header promises {' x '.join(map(str, shape))} = {math.prod(shape)} bytes, "
            f"{len(content) - start} follow; is the download incomplete?"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
