"""The reader of CIFAR-10's binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unary.datasets.cifar10 import TEST_FILE, TRAIN_FILES, read_cifar10
from unary.errors import ManifestError


def write_cifar10(folder: Path, *, records: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(6)
    for name in (*TRAIN_FILES, TEST_FILE):
        pixels = rng.integers(0, 256, (records, 3072), dtype=np.uint8)
        labels = (np.arange(records) % 10).astype(np.uint8)
        (folder / name).write_bytes(np.column_stack([labels, pixels]).tobytes())


def test_channels_rows_and_columns_land_where_the_format_puts_them(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    record = bytearray(3073)
    record[0] = 7
    record[1 + 0 * 1024 + 2 * 32 + 5] = 10  # red, row 2, column 5
    record[1 + 1 * 1024 + 3 * 32 + 6] = 20  # green
    record[1 + 2 * 1024 + 31 * 32 + 0] = 30  # blue, bottom left
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(bytes(record) + path.read_bytes()[3073:])
    found = read_cifar10(tmp_path)
    image = found.train_images[10]
    assert found.train_labels[10] == 7
    assert found.classes[7] == "horse"
    assert (image[2, 5, 0], image[3, 6, 1], image[31, 0, 2]) == (10, 20, 30)
    assert int(image.sum()) == 60


def test_batches_keep_their_order_and_the_test_batch_stays_apart(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    found = read_cifar10(tmp_path)
    assert found.train_images.shape == (50, 32, 32, 3)
    for number, name in enumerate(TRAIN_FILES):
        first = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)[1:3073]
        np.testing.assert_array_equal(found.train_images[10 * number].transpose(2, 0, 1).ravel(), first)
    first = np.frombuffer((tmp_path / TEST_FILE).read_bytes(), np.uint8)[1:3073]
    np.testing.assert_array_equal(found.test_images[0].transpose(2, 0, 1).ravel(), first)
    np.testing.assert_array_equal(found.test_labels, np.arange(10))


def test_folder_of_the_published_archive_is_found(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    assert read_cifar10(tmp_path).sha256() == read_cifar10(tmp_path / "cifar-10-batches-bin").sha256()


def test_missing_file_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(ManifestError, match=r"data_batch_4\.bin: no such file"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("kept", [0, 100, 3073 * 9 + 1, 3073 * 9])
def test_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ManifestError, match=r"data_batch_3\.bin.*incomplete"):
        read_cifar10(tmp_path)


def test_foreign_labels_are_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / TEST_FILE
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(ManifestError, match=r"test_batch\.bin: labels must lie in 0 to 9, found 10"):
        read_cifar10(tmp_path)
