import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile

from unary.errors import ImageError
from unary.images.raster import is_lossy
from unary.images.reading import read_image, read_mask, read_shape

RAMP = (np.arange(12 * 20, dtype=np.uint16).reshape(12, 20) * 17) % 4096


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_survive(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    pixels = RAMP * 16 + 255
    if suffix == "tif":
        tifffile.imwrite(path, pixels)
    else:
        PIL.Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.pixels.dtype == np.uint16
    assert (image.pixels == pixels).all()
    assert image.value_range == (0, 65535)
    assert image.spacing_mm is None


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_eight_bits_stay_eight_bits(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    pixels = (RAMP % 256).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.pixels.dtype == np.uint8
    assert (image.pixels == pixels).all()


def test_grey_stored_as_colour_is_grey_and_colour_is_refused(tmp_path):
    grey = (RAMP % 256).astype(np.uint8)
    PIL.Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png").pixels == grey).all()
    PIL.Image.fromarray(np.stack([grey, grey, 255 - grey], axis=-1)).save(tmp_path / "colour.png")
    with pytest.raises(ImageError, match=r"colour\.png: it is in colour"):
        read_image(tmp_path / "colour.png")


def test_float_tiff_must_be_finite(tmp_path):
    values = RAMP.astype(np.float32) / 7
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert (read_image(tmp_path / "a.tif").pixels == values).all()
    values[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values)
    with pytest.raises(ImageError, match="not finite"):
        read_image(tmp_path / "nan.tif")


def test_damaged_and_foreign_files_are_named(tmp_path):
    PIL.Image.fromarray(RAMP).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "report.pdf").write_text("x")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([RAMP, RAMP]), photometric="minisblack")
    PIL.Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / "blank.png")
    for name, cause in [
        ("cut.png", "truncated"),
        ("text.tif", "not readable"),
        ("empty.png", "empty"),
        ("report.pdf", "neither DICOM"),
        ("pages.tif", "2 pages"),
        ("blank.png", "every pixel has the value 7"),
        ("gone.png", "cannot be opened"),
    ]:
        with pytest.raises(ImageError, match=cause) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


def test_truncated_tiff_is_refused_quietly(tmp_path, caplog):
    for compression in ("zlib", None):
        tifffile.imwrite(tmp_path / "a.tif", RAMP * 16, compression=compression)
        content = bytearray((tmp_path / "a.tif").read_bytes())
        (tmp_path / "cut.tif").write_bytes(content[:-40])
        with pytest.raises(ImageError, match=r"cut\.tif: not readable"):
            read_image(tmp_path / "cut.tif")
    assert not caplog.records


def test_mask_is_what_is_not_zero(tmp_path):
    PIL.Image.fromarray(((RAMP > 2000) * 255).astype(np.uint8)).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == (RAMP > 2000)).all()


def test_a_mask_with_lost_edges_is_refused(tmp_path):
    PIL.Image.fromarray(((RAMP > 2000) * 255).astype(np.uint8)).save(tmp_path / "m.png", "JPEG")
    with pytest.raises(ImageError, match=r"m\.png: a JPEG has lost the edges") as caught:
        read_mask(tmp_path / "m.png")
    assert caught.value.reason == "UNSUPPORTED_SYNTAX"


def test_every_pgm_value_of_every_depth_comes_back(tmp_path):
    for maximum in (1, 2, 100, 254, 255, 256, 1000, 4095, 16383, 65534, 65535):
        values = np.arange(maximum + 1).astype("u1" if maximum < 256 else ">u2")
        (tmp_path / "a.pgm").write_bytes(b"P5 %d 1 %d\n" % (maximum + 1, maximum) + values.tobytes())
        assert (read_image(tmp_path / "a.pgm").pixels == values).all(), maximum


def test_a_hundred_megapixels(tmp_path):
    pixels = np.zeros((10_000, 10_000), np.uint16)
    pixels[5000:, ::2] = 40_000
    PIL.Image.fromarray(pixels).save(tmp_path / "large.png", compress_level=1)
    assert (read_image(tmp_path / "large.png").pixels == pixels).all()


@pytest.mark.parametrize("suffix", ["tif", "png", "pgm"])
def test_a_header_that_asks_for_terabytes_is_refused_before_decoding(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 1000000 1000000 255\n" + bytes(100))
    elif suffix == "png":
        PIL.Image.fromarray(RAMP).save(path)
        header = b"IHDR" + (10**6).to_bytes(4, "big") * 2 + path.read_bytes()[24:29]
        content = path.read_bytes()
        path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:])
    else:
        tifffile.imwrite(path, np.zeros((4, 4), np.uint8))
        with tifffile.TiffFile(path, mode="r+") as file:
            for name in ("ImageWidth", "ImageLength"):
                file.pages[0].tags[name].overwrite(10**6, dtype="I")
    for read in (read_image, read_shape):
        with pytest.raises(ImageError, match=r"declares 1000000 x 1000000|too large") as caught:
            read(path)
        assert path.name in str(caught.value)


SMOOTH = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) * 2


def test_a_damaged_photograph_is_refused(tmp_path):
    PIL.Image.fromarray(RAMP.astype(np.uint8).repeat(20, 0).repeat(20, 1)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    for at in (2, 100, len(content) // 2, len(content) - 40):
        (tmp_path / "cut.jpg").write_bytes(content[:at])
        with pytest.raises(ImageError, match=r"cut\.jpg: not readable"):
            read_image(tmp_path / "cut.jpg")


def test_a_photograph_is_told_by_its_content(tmp_path):
    PIL.Image.fromarray(SMOOTH).save(tmp_path / "a.png")
    assert not is_lossy(tmp_path / "a.png")
    PIL.Image.fromarray(SMOOTH).save(tmp_path / "b.png", "JPEG")
    assert is_lossy(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("suffix", "package"), [("png", "imagecodecs"), ("tif", "tifffile"), ("tif", "imagecodecs"), ("jpg", "PIL")]
)
def test_a_library_that_is_not_installed_is_a_reason_to_refuse(suffix, package, tmp_path, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(SMOOTH).save(path, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImageError, match=rf"a\.{suffix}: .*not installed here.*{package}") as caught:
        read_image(path)
    assert caught.value.reason == "UNSUPPORTED_SYNTAX"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "ICO"])
def test_other_formats_under_a_known_name_are_not_tried(kind, tmp_path):
    PIL.Image.fromarray(SMOOTH).save(tmp_path / "a.png", kind)
    with pytest.raises(ImageError, match="another format") as caught:
        read_image(tmp_path / "a.png")
    assert caught.value.reason == "NOT_READABLE"


@pytest.mark.parametrize("name", ["brain.nii", "brain.nii.gz", "volume.npy", "scan.MHA", "scan.nrrd"])
def test_volumes_are_refused_with_the_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x93NUMPY or another start")
    with pytest.raises(ImageError, match=r"a volume, which is not read: .* one by one, `unary\.Image\.from_array"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_colour_and_pages_are_refused_with_the_way_out(tmp_path, suffix):
    colours = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    path = tmp_path / f"c.{suffix}"
    PIL.Image.fromarray(colours).save(path)
    with pytest.raises(ImageError, match=r"in colour.* save the channel that matters"):
        read_image(path)
    if suffix != "jpg":
        first, second = (PIL.Image.fromarray(colours[..., band]) for band in (0, 1))
        first.save(path, save_all=True, append_images=[second])
        with pytest.raises(ImageError, match="one is needed: save each as a file of its own"):
            read_image(path)
