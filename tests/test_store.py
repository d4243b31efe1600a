import numpy as np
import pytest
import tifffile

from unary.errors import ImageError
from unary.store import is_stored, load_pages, open_images, release_pages, writing_images


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


def test_pixels_stay_the_same_through_loading_and_release(tmp_path):
    images = make_images()
    stored = write_all(tmp_path / "s.tif", images)
    for _ in range(2):
        load_pages(stored)
        release_pages([*stored, *images])
        assert all((ours == image).all() for ours, image in zip(stored, images, strict=True))


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
