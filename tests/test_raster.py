import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile

from unary.errors import ImageError
from unary.images.raster import is_lossy
from unary.images.reading import is_image_file, read_image, read_mask, read_shape

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


@pytest.mark.parametrize(("maximum", "kind"), [(4095, ">u2"), (1023, ">u2"), (100, "u1")])
def test_pgm_keeps_stored_values_below_full_scale(maximum, kind, tmp_path):
    pixels = (RAMP % (maximum + 1)).astype(kind)
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n# made here\n20 12\n%d\n" % maximum + pixels.tobytes())
    image = read_image(path)
    assert (image.pixels == pixels).all()
    assert image.value_range == (0, maximum)


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


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_white_is_zero_is_turned_round_by_either_decoder(compression, kind, tmp_path):
    pixels = (RAMP % 256).astype(kind)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression, tiffinfo={262: 0})
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert int(file.pages[0].photometric) == 0
    stored = np.asarray(PIL.Image.open(tmp_path / "a.tif"))
    shown = stored if kind == "u1" else 65535 - stored  # Pillow inverts 8 bits when it reads
    assert (read_image(tmp_path / "a.tif").pixels == shown).all()


def test_truncated_tiff_is_refused_quietly(tmp_path, caplog):
    for compression in ("zlib", None):
        tifffile.imwrite(tmp_path / "a.tif", RAMP * 16, compression=compression)
        content = bytearray((tmp_path / "a.tif").read_bytes())
        (tmp_path / "cut.tif").write_bytes(content[:-40])
        with pytest.raises(ImageError, match=r"cut\.tif: not readable"):
            read_image(tmp_path / "cut.tif")
    assert not caplog.records


def test_white_is_zero_tiff_is_turned_round(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAMP, photometric="miniswhite")
    assert (read_image(tmp_path / "a.tif").pixels == 65535 - RAMP).all()


def test_mask_is_what_is_not_zero(tmp_path):
    PIL.Image.fromarray(((RAMP > 2000) * 255).astype(np.uint8)).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == (RAMP > 2000)).all()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_common_tiff_compressions_need_no_extra_package(compression, dtype, tmp_path):
    pixels = (RAMP % 256).astype(dtype) * dtype(257 if dtype is np.uint16 else 1)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
    image = read_image(tmp_path / "a.tif")
    assert image.pixels.dtype == dtype
    assert (image.pixels == pixels).all()


def test_every_pgm_value_of_every_depth_comes_back(tmp_path):
    for maximum in (1, 2, 100, 254, 255, 256, 1000, 4095, 16383, 65534, 65535):
        values = np.arange(maximum + 1).astype("u1" if maximum < 256 else ">u2")
        (tmp_path / "a.pgm").write_bytes(b"P5 %d 1 %d\n" % (maximum + 1, maximum) + values.tobytes())
        assert (read_image(tmp_path / "a.pgm").pixels == values).all(), maximum


def test_plain_pgm(tmp_path):
    (tmp_path / "a.pgm").write_text("P2\n3 2\n999\n0 1 2\n997 998 999\n")
    image = read_image(tmp_path / "a.pgm")
    assert image.pixels.tolist() == [[0, 1, 2], [997, 998, 999]]
    assert image.value_range == (0, 999)


def test_twelve_bits_packed_in_tiff(tmp_path):
    """A TIFF of two 12-bit pixels in three bytes, written by hand."""
    rows, cols = 4, 6
    values = np.arange(rows * cols) * 170
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, ((pairs[:, 0] & 15) << 4) | (pairs[:, 1] >> 8), pairs[:, 1] & 255], axis=1)
    data = packed.astype(np.uint8).tobytes()
    tags = [(256, cols), (257, rows), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, rows), (279, len(data))]
    directory = len(tags).to_bytes(2, "little") + b"".join(
        tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00" + value.to_bytes(4, "little") for tag, value in tags
    )
    start = 8 + len(data) + len(data) % 2
    padding = b"\0" * (start - 8 - len(data))
    (tmp_path / "a.tif").write_bytes(b"II*\0" + start.to_bytes(4, "little") + data + padding + directory + b"\0" * 4)
    image = read_image(tmp_path / "a.tif")
    assert image.pixels.tolist() == values.reshape(rows, cols).tolist()
    assert image.value_range == (0, 4095)


def test_transparency_palette_and_single_bits(tmp_path):
    grey = (RAMP % 256).astype(np.uint8)
    opaque = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)
    PIL.Image.fromarray(opaque).save(tmp_path / "opaque.png")
    assert (read_image(tmp_path / "opaque.png").pixels == grey).all()
    opaque[3, 3, 3] = 7
    PIL.Image.fromarray(opaque).save(tmp_path / "clear.png")
    with pytest.raises(ImageError, match="partly transparent"):
        read_image(tmp_path / "clear.png")
    indexed = PIL.Image.fromarray(grey).convert("P")
    indexed.save(tmp_path / "indexed.png")
    assert (read_image(tmp_path / "indexed.png").pixels == grey).all()
    indexed.putpalette([255, 0, 0, 0, 255, 0] * 128)
    indexed.save(tmp_path / "painted.png")
    with pytest.raises(ImageError, match="in colour"):
        read_image(tmp_path / "painted.png")
    PIL.Image.fromarray(grey > 99).save(tmp_path / "bits.png")
    assert (read_mask(tmp_path / "bits.png") == (grey > 99)).all()


def test_colour_of_16_bits_with_equal_channels_keeps_them(tmp_path):
    pixels = RAMP * 16
    tifffile.imwrite(tmp_path / "a.tif", np.stack([pixels] * 3, axis=-1), photometric="rgb")
    image = read_image(tmp_path / "a.tif")
    assert image.pixels.dtype == np.uint16
    assert (image.pixels == pixels).all()


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


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_photograph_is_read_in_eight_bits(suffix, channels, tmp_path):
    path = tmp_path / f"film.{suffix}"
    PIL.Image.fromarray(SMOOTH if channels == 1 else np.stack([SMOOTH] * 3, axis=-1)).save(path, "JPEG", quality=95)
    image = read_image(path)
    assert image.pixels.dtype == np.uint8
    assert image.value_range == (0, 255)
    assert (image.pixels == np.asarray(PIL.Image.open(path).convert("L"))).all()
    assert abs(image.pixels.astype(int) - SMOOTH).max() < 6
    assert read_shape(path) == (48, 64)
    assert is_image_file(path)
    assert is_lossy(path)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_photograph_in_colour_is_refused_by_name(mode, tmp_path):
    colours = np.stack([SMOOTH, 255 - SMOOTH, SMOOTH // 2], axis=-1)
    PIL.Image.fromarray(colours).convert(mode).save(tmp_path / "colour.jpg")
    with pytest.raises(ImageError, match=r"colour\.jpg: it is in colour") as caught:
        read_image(tmp_path / "colour.jpg")
    assert caught.value.reason == "COLOUR"


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


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "ICO"])
def test_other_formats_under_a_known_name_are_not_tried(kind, tmp_path):
    PIL.Image.fromarray(SMOOTH).save(tmp_path / "a.png", kind)
    with pytest.raises(ImageError, match="another format") as caught:
        read_image(tmp_path / "a.png")
    assert caught.value.reason == "NOT_READABLE"
