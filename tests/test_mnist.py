"""The reader of MNIST's IDX files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from unary.datasets.mnist import read_mnist
from unary.errors import ManifestError


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    """Spell the format out byte by byte: a second opinion on the reader."""
    header = b"\x00\x00\x08" + bytes([values.ndim]) + b"".join(struct.pack(">I", size) for size in values.shape)
    content = header + bytes(values.ravel().tolist())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, *, train: int = 20, test: int = 10, ending: str = "") -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    parts: dict[str, NDArray[np.uint8]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("t10k", test)):
        parts[f"{name}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        parts[f"{name}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, values in parts.items():
        write_idx(folder / f"{name}{ending}", values)
    return parts


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_pixels_and_labels_come_back_as_written(tmp_path: Path, ending: str) -> None:
    parts = write_mnist(tmp_path, ending=ending)
    found = read_mnist(tmp_path)
    np.testing.assert_array_equal(found.train_images, parts["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(found.train_labels, parts["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(found.test_images, parts["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(found.test_labels, parts["t10k-labels-idx1-ubyte"])
    assert found.train_images.dtype == np.uint8
    assert found.classes == tuple("0123456789")


def test_rows_come_before_columns(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    image = np.zeros((10, 28, 28), np.uint8)
    image[0, 3, 20] = 200
    write_idx(tmp_path / "t10k-images-idx3-ubyte", image)
    assert read_mnist(tmp_path).test_images[0, 3, 20] == 200


def test_digest_ignores_compression_and_sees_one_pixel(tmp_path: Path) -> None:
    parts = write_mnist(tmp_path / "plain")
    write_mnist(tmp_path / "packed", ending=".gz")
    plain = read_mnist(tmp_path / "plain").sha256()
    assert read_mnist(tmp_path / "packed").sha256() == plain
    changed = parts["train-images-idx3-ubyte"].copy()
    changed[0, 0, 0] ^= 1
    write_idx(tmp_path / "plain" / "train-images-idx3-ubyte", changed)
    assert read_mnist(tmp_path / "plain").sha256() != plain


def test_missing_file_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ManifestError, match=r"t10k-labels-idx1-ubyte.*no such file"):
        read_mnist(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 10, 16, 1000])
def test_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ManifestError, match="train-images-idx3-ubyte"):
        read_mnist(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 300])
def test_truncated_gzip_is_named(tmp_path: Path, kept: int) -> None:
    write_mnist(tmp_path, ending=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ManifestError, match=r"train-images-idx3-ubyte\.gz"):
        read_mnist(tmp_path)


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(ManifestError, match=r"t10k-labels.*promises 10 = 10 bytes, 11 follow"):
        read_mnist(tmp_path)


def test_labels_in_the_place_of_images_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes((tmp_path / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(ManifestError, match=r"train-images.*magic number 00000803.*00000801"):
        read_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("train-labels-idx1-ubyte", np.zeros(19, np.uint8), "19 labels for 20 images"),
        ("train-labels-idx1-ubyte", np.full(20, 10, np.uint8), "labels must lie in 0 to 9, found 10"),
        ("train-images-idx3-ubyte", np.zeros((20, 28, 27), np.uint8), "must be 28 x 28, these are 28 x 27"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, name: str, values: NDArray[np.uint8], reason: str) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / name, values)
    with pytest.raises(ManifestError, match=f"{name}.*{reason}"):
        read_mnist(tmp_path)
