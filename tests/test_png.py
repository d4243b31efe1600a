import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from rasters import build_png, pack_bits, pack_chunk

from unary.errors import ImageError
from unary.images.reading import read_image, read_mask, read_shape

ROWS, COLS = 23, 37
RAMP = (np.arange(ROWS * COLS).reshape(ROWS, COLS) * 40503) % 65536
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def make(bits):
    return RAMP >> (16 - bits)


def build(pixels, depth, kind, **options):
    """A PNG of pixels, shape (rows, cols) or (rows, cols, channels)."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    parts = [(0, 0, 1, 1)]
    if options.get("interlaced"):
        parts = PASSES
    lines = []
    for row, col, down, right in parts:
        part = pixels[row::down, col::right]
        lines += [bytes(line) for line in pack_bits(part.reshape(len(part), -1), depth)] if part.size else []
    return build_png(pixels.shape[:2], depth, kind, lines, **options)


def read(content, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    image = read_image(path)
    assert read_shape(path) == image.shape
    return image


def refuse(content, tmp_path):
    """The reason and the sentence of a refusal, the file's name in it."""
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png: ") as caught:
        read_image(tmp_path / "a.png")
    return caught.value.reason, str(caught.value).split("a.png: ")[1]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_of_every_depth_comes_back_as_stored(bits, interlaced, tmp_path):
    image = read(build(make(bits), bits, 0, interlaced=interlaced), tmp_path)
    assert image.pixels.dtype == (np.uint16 if bits == 16 else np.uint8)
    assert (image.pixels == make(bits)).all()
    assert image.value_range == (0, 2**bits - 1)
    assert image.notes == ()


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("kind", "channels"), [(4, 2), (2, 3), (6, 4)])
def test_equal_channels_and_full_opacity_are_grey_of_all_their_bits(bits, kind, channels, interlaced, tmp_path):
    pixels = np.stack([make(bits)] * channels, axis=-1)
    if kind != 2:
        pixels[..., -1] = 2**bits - 1
    image = read(build(pixels, bits, kind, interlaced=interlaced), tmp_path)
    assert image.pixels.dtype == (np.uint16 if bits == 16 else np.uint8)
    assert (image.pixels == make(bits)).all()
    pixels[5, 6, -1] ^= 1
    reason, told = refuse(build(pixels, bits, kind), tmp_path)
    assert reason == "COLOUR"
    assert ("partly transparent" in told) == (kind != 2)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_of_greys_gives_its_values(bits, tmp_path):
    count = 2**bits
    greys = (np.arange(count) * 91 + 5) % 256
    palette = (b"PLTE", bytes(np.repeat(greys, 3).astype(np.uint8)))
    for interlaced in (False, True):
        image = read(build(make(bits), bits, 3, before=[palette], interlaced=interlaced), tmp_path)
        assert (image.pixels == greys[make(bits)]).all()
        assert image.value_range == (0, 255)
    opaque = (b"tRNS", b"\xff" * count)
    assert (read(build(make(bits), bits, 3, before=[palette, opaque]), tmp_path).pixels == greys[make(bits)]).all()
    assert "partly transparent" in refuse(build(make(bits), bits, 3, before=[palette, (b"tRNS", b"\x7f")]), tmp_path)[1]
    painted = (b"PLTE", bytes(range(3 * count))) if count < 86 else (b"PLTE", bytes(768 - 1) + b"\1")
    assert refuse(build(make(bits), bits, 3, before=[painted]), tmp_path)[0] == "COLOUR"
    for wrong in (palette[1] + b"\0" * 3, palette[1] + b"\0"):  # as of a header whose depth is damaged
        told = refuse(build(make(bits), bits, 3, before=[(b"PLTE", wrong)]), tmp_path)[1]
        assert f"no palette for {bits} bits" in told
    short = (b"PLTE", palette[1][:-3])
    assert f"of a palette of {count - 1}" in refuse(build(make(bits), bits, 3, before=[short]), tmp_path)[1]
    assert refuse(build(make(bits), bits, 3), tmp_path)[0] == "CORRUPT_PIXELS"


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3)])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_value_that_stands_for_transparency_is_refused_where_it_occurs(bits, kind, channels, tmp_path):
    pixels = np.stack([make(bits) | 1] * channels, axis=-1)
    for value, clear in ((int(pixels[4, 4, 0]), True), (2, False)):
        content = build(pixels, bits, kind, before=[(b"tRNS", struct.pack(">H", value) * channels)])
        if clear:
            assert "partly transparent" in refuse(content, tmp_path)[1]
        else:
            assert (read(content, tmp_path).pixels == pixels[..., 0]).all()


def test_what_is_said_of_display_changes_nothing(tmp_path):
    said = [
        (b"gAMA", struct.pack(">I", 100_000)),
        (b"sBIT", b"\x0a"),
        (b"bKGD", b"\0\0"),
        (b"cHRM", bytes(32)),
        (b"sRGB", b"\0"),
        (b"pHYs", struct.pack(">IIB", 1, 2, 1)),
        (b"tEXt", b"Title\0x"),
        (b"iCCP", b"x\0\0" + zlib.compress(b"no profile")),
        (b"acTL", struct.pack(">II", 1, 0)),
        (b"vpAg", b"of somebody's own"),
    ]
    for before in [said, *([chunk] for chunk in said)]:
        assert (read(build(make(16), 16, 0, before=before, after=said[6:7], cuts=7), tmp_path).pixels == RAMP).all()


def test_an_orientation_and_bytes_after_the_end_are_noted(tmp_path):
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    image = read(build(make(16), 16, 0, after=[(b"eXIf", exif)]) + b"appended", tmp_path)
    assert (image.pixels == RAMP).all()
    assert [("8 bytes after" in note, "Orientation is 6" in note) for note in image.notes] == [
        (True, False),
        (False, True),
    ]
    assert read(build(make(16), 16, 0, after=[(b"eXIf", b"damaged")]), tmp_path).notes == ()


def test_several_pictures_are_refused(tmp_path):
    content = build(make(8), 8, 0)
    animated = build(make(8), 8, 0, before=[(b"acTL", struct.pack(">II", 2, 0))])
    framed = build(make(8), 8, 0, after=[(b"fdAT", b"\0\0\0\1" + zlib.compress(b"x"))])
    for several in (content + content, animated, framed):
        assert refuse(several, tmp_path)[0] == "MULTIFRAME"


def test_every_changed_byte_is_found(tmp_path):
    content = build(make(8)[:4, :6], 8, 0, before=[(b"tEXt", b"a\0b")])
    for at in range(len(content)):
        broken = bytearray(content)
        broken[at] ^= 32
        reason, _ = refuse(bytes(broken), tmp_path)
        assert reason in ("NOT_READABLE", "CORRUPT_PIXELS", "TOO_LARGE"), at


def test_every_shortened_file_is_refused(tmp_path):
    content = build(make(8), 8, 0, cuts=3)
    for length in (*range(1, 60), *range(60, len(content), 11), len(content) - 1):
        assert refuse(content[:length], tmp_path)[0] in ("NOT_READABLE", "CORRUPT_PIXELS"), length


@pytest.mark.parametrize("lines", [[b"12345678"] * 3, [b"12345678"] * 5, [b"1234567"] * 4])
def test_pixels_are_as_many_as_declared_though_every_checksum_holds(lines, tmp_path):
    for interlaced in (False, True):
        assert "not as many" in refuse(build_png((4, 8), 8, 0, lines, interlaced=interlaced), tmp_path)[1]


def test_contradictions_under_right_checksums_are_refused(tmp_path):
    start, end = b"\x89PNG\r\n\x1a\n", pack_chunk(b"IEND", b"")
    pixels = pack_chunk(b"IDAT", zlib.compress(b"\0abcd" * 4))
    for fields, reason in [
        ((4, 4, 8, 5, 0, 0, 0), "CORRUPT_PIXELS"),
        ((4, 4, 16, 3, 0, 0, 0), "CORRUPT_PIXELS"),
        ((4, 4, 3, 0, 0, 0, 0), "CORRUPT_PIXELS"),
        ((4, 4, 8, 0, 1, 0, 0), "CORRUPT_PIXELS"),
        ((4, 4, 8, 0, 0, 1, 0), "CORRUPT_PIXELS"),
        ((4, 4, 8, 0, 0, 0, 2), "CORRUPT_PIXELS"),
        ((0, 4, 8, 0, 0, 0, 0), "CORRUPT_PIXELS"),
        ((2**31, 2**31, 8, 0, 0, 0, 0), "TOO_LARGE"),
    ]:
        head = pack_chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))
        assert refuse(start + head + pixels + end, tmp_path)[0] == reason
    head = pack_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    note = pack_chunk(b"tEXt", b"a\0b")
    for parts in (
        [head, end],
        [head, pixels, note, pixels, end],
        [head, head, pixels, end],
        [head, pack_chunk(b"NEED", b""), pixels, end],
        [note, head, pixels, end],
        [head, pack_chunk(b"IDAT", zlib.compress(b"\x09abcd" * 4)), end],
        [head, pack_chunk(b"IDAT", b"no stream"), end],
    ):
        assert refuse(start + b"".join(parts), tmp_path)[0] in ("NOT_READABLE", "CORRUPT_PIXELS")


@pytest.mark.parametrize("name", ["a.tif", "a.pgm", "a.jpeg", "A.PNG"])
def test_a_png_is_told_by_its_content(name, tmp_path):
    (tmp_path / name).write_bytes(build(make(16), 16, 0))
    assert (read_image(tmp_path / name).pixels == RAMP).all()
    assert read_shape(tmp_path / name) == (ROWS, COLS)


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"compress_level": 0}, {"compress_level": 9}])
def test_every_filter_that_another_library_chooses_is_undone(options, tmp_path):
    smooth = np.add.outer(np.arange(90) * 9, np.arange(70) * 5).astype(np.uint16)
    PIL.Image.fromarray(smooth).save(tmp_path / "a.png", **options)
    assert (read_image(tmp_path / "a.png").pixels == smooth).all()


def test_masks_of_every_depth_agree(tmp_path):
    marked = RAMP % 7 == 0
    for bits in (1, 2, 4, 8, 16):
        for value in (1, 2**bits - 1):
            (tmp_path / "m.png").write_bytes(build(marked * value, bits, 0))
            assert (read_mask(tmp_path / "m.png") == marked).all()
