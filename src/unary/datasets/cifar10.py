"""CIFAR-10, small colour photographs: the six files of the binary version (Krizhevsky 2009).

A file is a row of records without a header: one byte of label, then 32 x 32 bytes each of red, green and blue, row by
row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.datasets.labelled import LabelledImages
from unary.errors import ManifestError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE_PX = 32
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
_RECORD = 1 + 3 * SIDE_PX * SIDE_PX


def read_cifar10(folder: Path) -> LabelledImages:
    """Read the six files of the binary version: images of shape (n, 32, 32, 3), red, green, blue.

    Parameters
    ----------
    folder
        Holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, itself or in
        ``cifar-10-batches-bin``, as the published archive unpacks.

    Raises
    ------
    ManifestError
        If a file is missing, foreign or truncated, or if the files differ in length (all six hold equally many
        records, 10,000 as published).
    """
    unpacked = folder / "cifar-10-batches-bin"
    if unpacked.is_dir() and not (folder / TEST_FILE).exists():
        folder = unpacked
    records = {name: _read_records(folder / name) for name in (*TRAIN_FILES, TEST_FILE)}
    longest = max(len(part) for part in records.values())
    for name, part in records.items():
        if len(part) != longest:
            raise ManifestError(
                f"{folder / name}: holds {len(part)} records where other files hold {longest}; "
                "is the download incomplete?"
            )
    train = np.concatenate([records[name] for name in TRAIN_FILES])
    return LabelledImages(*_split_records(train), *_split_records(records[TEST_FILE]), CLASSES)


def _read_records(path: Path) -> NDArray[np.uint8]:
    """Return the records of one file, shape (n, 3073)."""
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such file; --data must name the folder of CIFAR-10's binary version (not the Python one)"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error})") from error
    if not content or len(content) % _RECORD:
        raise ManifestError(
            f"{path}: must hold whole records of {_RECORD} bytes, holds {len(content)} bytes; is the download "
            "incomplete, or is it CIFAR-100 or the Python version?"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    highest = int(records[:, 0].max())
    if highest >= len(CLASSES):
        raise ManifestError(
            f"{path}: labels must lie in 0 to {len(CLASSES) - 1}, found {highest}; is it another data set?"
        )
    return records


def _split_records(records: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images, shape (n, 32, 32, 3), and labels, shape (n,)."""
    planes = records[:, 1:].reshape(-1, 3, SIDE_PX, SIDE_PX)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].copy()
