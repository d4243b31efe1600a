import errno
import os

import numpy as np
import pytest
import tifffile

from unary.errors import ImageError, UnaryError
from unary.patches import store
from unary.patches.store import (
    Buffer,
    is_stored,
    open_images,
    outgrows_memory,
    read_images,
    release_pages,
    writing_images,
)


def make_images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 65536, shape, np.uint16) for shape in ((300, 17), (1, 1), (64, 128), (2000, 501))]


def write_all(path, images):
    with writing_images(path) as write:
        for image in images:
            write(image)
    return open_images(path)


def test_what_is_written_is_read_by_us_and_by_any_reader_of_tiff(tmp_path):
    images = make_images()
    stored = write_all(tmp_path / "deep" / "s.tif", images)
    with tifffile.TiffFile(tmp_path / "deep" / "s.tif") as file:
        pages = [page.asarray() for page in file.pages]
    assert len(stored) == len(pages) == len(images)
    for image, ours, theirs in zip(images, stored, pages, strict=True):
        assert is_stored(ours)
        assert not is_stored(image)
        assert not ours.flags.writeable
        assert (ours == image).all()
        assert (theirs == image).all()


@pytest.mark.parametrize("direct", [False, True])
def test_pixels_stay_the_same_through_reading_and_release(tmp_path, direct):
    images = make_images()
    stored = write_all(tmp_path / "s.tif", images)
    buffer = Buffer()
    for chosen in ([3, 0, 1, 2], [2, 2], [], [1], [0, 3]):
        read = read_images([stored[number] for number in chosen], buffer, direct=direct)
        release_pages([*stored, *images, *read])
        for number, copy in zip(chosen, read, strict=True):
            assert not is_stored(copy)
            assert (copy == images[number]).all()
            assert (stored[number] == images[number]).all()


def test_pages_that_begin_anywhere_are_read(tmp_path):
    images = make_images()
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for image in images:
            writer.write(image, photometric="minisblack", metadata=None)
    stored = open_images(tmp_path / "s.tif")
    for direct in (False, True):
        copies = read_images(stored, Buffer(), direct=direct)
        assert all((copy == image).all() for copy, image in zip(copies, images, strict=True))


def test_a_buffer_is_used_again(tmp_path):
    stored = write_all(tmp_path / "s.tif", make_images())
    buffer = Buffer()
    first = read_images(stored, buffer)[0].ctypes.data
    assert read_images(stored[:1], buffer)[0].ctypes.data == first


def test_a_file_system_that_cannot_read_past_the_cache_is_read_through_it(tmp_path, monkeypatch):
    images, refused = make_images(), []
    stored = write_all(tmp_path / "s.tif", images)

    def refuse(name, flags):
        if flags & store._DIRECT:
            refused.append(name)
            raise OSError(errno.EINVAL, "no such thing")
        return opened(name, flags)

    opened = os.open
    monkeypatch.setattr(store, "_DIRECT", 1 << 27)
    monkeypatch.setattr(store.os, "open", refuse)
    copies = read_images(stored, Buffer(), direct=True)
    assert refused
    assert all((copy == image).all() for copy, image in zip(copies, images, strict=True))


@pytest.mark.parametrize("direct", [False, True])
def test_a_store_that_was_cut_or_removed_is_named(tmp_path, direct):
    path = tmp_path / "s.tif"
    stored = write_all(path, make_images())
    os.truncate(path, path.stat().st_size // 2)
    assert (read_images(stored[:1], Buffer(), direct=direct)[0] == make_images()[0]).all()
    with pytest.raises(ImageError, match=r"s\.tif: .* cannot be read any more: it ends after .* was the file changed"):
        read_images(stored, Buffer(), direct=direct)
    path.unlink()
    with pytest.raises(ImageError, match=r"s\.tif: .* cannot be read any more"):
        read_images(stored, Buffer(), direct=direct)


def test_what_memory_holds_twice_stays_in_the_systems_cache(tmp_path, monkeypatch):
    stored = write_all(tmp_path / "s.tif", make_images())
    size = sum(image.nbytes for image in stored)
    for memory, expected in ((2 * size, False), (2 * size - 2, True)):
        monkeypatch.setattr(
            store.os, "sysconf", lambda name, memory=memory: 2 if name == "SC_PAGE_SIZE" else memory // 2
        )
        assert outgrows_memory(stored) is expected

    def fail(name):
        raise ValueError(name)

    monkeypatch.setattr(store.os, "sysconf", fail)
    assert outgrows_memory(stored) is False


def test_an_image_without_pixels_keeps_its_number(tmp_path):
    image = np.full((5, 6), 7, np.uint16)
    stored = write_all(tmp_path / "s.tif", [np.zeros((0, 0), np.uint16), image])
    assert stored[0].shape == (1, 1)
    assert (stored[1] == image).all()


def test_an_interrupted_store_leaves_nothing(tmp_path):
    def interrupt():
        with writing_images(tmp_path / "s.tif") as write:
            write(np.ones((4, 4), np.uint16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert not list(tmp_path.iterdir())


def test_other_tiffs_are_refused_by_name(tmp_path):
    path = tmp_path / "other.tif"
    for page, options in ((np.ones((4, 4), np.uint8), {}), (np.ones((64, 64), np.uint16), {"compression": "zlib"})):
        tifffile.imwrite(path, page, **options)
        with pytest.raises(ImageError, match=r"other\.tif: a store holds uncompressed"):
            open_images(path)


def test_a_full_disk_is_told_with_what_helps_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile.TiffWriter, "write", fail)
    told = r"prepared\.tif: .* \(No space left on device\); make room, .* --store"
    with pytest.raises(UnaryError, match=told), writing_images(tmp_path / "prepared.tif") as write:
        write(np.ones((5, 5), np.uint16))
    assert not list(tmp_path.iterdir())
