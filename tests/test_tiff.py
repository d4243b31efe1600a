import numpy as np
import PIL.Image
import pytest
import tifffile
from rasters import PACKERS, build_tiff

from unary.errors import ImageError
from unary.images.isolation import IsolatedReader
from unary.images.reading import read_image, read_mask, read_shape

ROWS, COLS = 23, 37
RAMP = np.arange(ROWS * COLS, dtype=np.uint32).reshape(ROWS, COLS) * np.uint32(2654435761)
PREDICTED = (5, 8, 32946, 34925, 50000)
LAYOUTS = [{}, {"segment": (5, COLS)}, {"segment": (1, COLS)}, {"segment": (16, 16), "tiled": True}]
HIGH = {"u1": 255, "u2": 65535, "u4": 2**32 - 1}


def make(kind):
    """Pixels of a type, with its lowest and highest value among them; a name of bits alone means unsigned ones."""
    if kind.isdigit():
        return (RAMP >> (32 - int(kind))).astype(np.uint8 if int(kind) <= 8 else np.uint16)
    if kind[0] == "f":
        return ((RAMP.astype(np.int64) - 2**31) / 2**17).astype(kind)
    return (RAMP >> (32 - 8 * int(kind[1]))).astype(kind.replace("i", "u")).view(kind)


def read(content, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    image = read_image(path)
    assert read_shape(path) == image.shape
    return image


def refuse(content, tmp_path):
    """The reason and the sentence of a refusal, the file's name in it."""
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.tif: ") as caught:
        read_image(tmp_path / "a.tif")
    return caught.value.reason, str(caught.value).split("a.tif: ")[1]


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_picture_has_one_result_whatever_its_encoding(kind, layout, tmp_path):
    pixels = make(kind)
    predictor = 3 if kind[0] == "f" else 2
    for order, big in (("<", False), (">", True)):
        for compression, predicted in [(c, 1) for c in PACKERS] + [(c, predictor) for c in PREDICTED]:
            encoding = {"order": order, "big": big, "compression": compression, "predictor": predicted}
            image = read(build_tiff(pixels, **encoding, **layout), tmp_path)
            assert image.pixels.dtype == (np.float32 if kind[0] == "f" else pixels.dtype), encoding
            assert (image.pixels == pixels).all(), encoding
            low, high = (0, HIGH[kind]) if kind[0] == "u" else (pixels.min(), pixels.max())
            assert kind[0] == "i" or image.value_range == (low, high)


@pytest.mark.parametrize("bits", range(1, 17))
def test_values_of_every_depth_come_back_as_stored(bits, tmp_path):
    pixels = make(str(bits))
    for compression in PACKERS:
        for layout in LAYOUTS:
            for order, fill in (("<", 1), (">", 2)):
                content = build_tiff(pixels, bits=bits, compression=compression, order=order, fill=fill, **layout)
                image = read(content, tmp_path)
                assert (image.pixels == pixels).all(), (compression, layout, order)
                assert image.value_range == (0, 2**bits - 1)


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("samples", [2, 3, 4])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_equal_channels_and_full_opacity_are_grey_in_every_encoding(kind, samples, planar, tmp_path):
    grey = make(kind)
    pixels = np.stack([grey] * samples, axis=-1)
    if samples in (2, 4):
        pixels[..., -1] = HIGH.get(kind, 1)
    for compression in PACKERS:
        for layout in LAYOUTS:
            predictor = 1 if compression not in PREDICTED else 3 if kind == "f4" else 2
            encoding = {"compression": compression, "predictor": predictor, "planar": planar, **layout}
            image = read(build_tiff(pixels, **encoding), tmp_path)
            assert (image.pixels == grey).all(), encoding
    pixels[3, 4, -1] -= 1
    reason, told = refuse(build_tiff(pixels, planar=planar), tmp_path)
    assert reason == "COLOUR"
    assert ("partly transparent" in told) == (samples != 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_noted_and_never_applied(orientation, tmp_path):
    pixels = make("u2")
    for compression in (1, 5, 8):
        content = build_tiff(pixels, compression=compression, tags={274: ("H", [orientation])})
        image = read(content, tmp_path)
        assert (image.pixels == pixels).all()
        assert [f"Orientation is {orientation}" in note for note in image.notes] == [True] * (orientation != 1)


@pytest.mark.parametrize("kind", ["1", "4", "8", "12", "16", "u4"])
def test_white_is_zero_is_inverted_within_the_bits(kind, tmp_path):
    pixels, highest = make(kind), 2 ** (32 if kind == "u4" else int(kind)) - 1
    for compression in PACKERS:
        bits = None if kind == "u4" else int(kind)
        content = build_tiff(pixels, bits=bits, photometric=0, compression=compression)
        assert (read(content, tmp_path).pixels == highest - pixels.astype(np.int64)).all()


def test_a_palette_of_greys_gives_its_eight_bits(tmp_path):
    grey = np.array([9, 200, 7, 255, 0, 1, 2, 3], np.uint16)
    indices = (RAMP % 8).astype(np.uint8)
    for factor in (257, 256):
        for bits in (4, 8):
            table = np.zeros(2**bits, np.uint16)
            table[:8] = grey * factor
            for compression in PACKERS:
                tags = {320: ("H", [*table] * 3)}
                content = build_tiff(indices, bits=bits, photometric=3, tags=tags, compression=compression)
                assert (read(content, tmp_path).pixels == grey[indices]).all()
    deep = {320: ("H", [*range(700, 956)] * 3)}
    assert "more than 8 bits" in refuse(build_tiff(indices, photometric=3, tags=deep), tmp_path)[1]
    painted = {320: ("H", [*range(0, 65536, 257)] * 2 + [0] * 256)}
    assert refuse(build_tiff(indices, photometric=3, tags=painted), tmp_path)[0] == "COLOUR"
    short = {320: ("H", [0, 257, 514] * 3)}
    assert refuse(build_tiff(indices, photometric=3, tags=short), tmp_path)[0] == "CORRUPT_PIXELS"


def name_tag(tag, value, kind="H"):
    return {"tags": {tag: (kind, [value])}}


@pytest.mark.parametrize(
    ("kind", "options", "reason", "named"),
    [
        ("i2", {"photometric": 0}, "UNSUPPORTED_SYNTAX", "PhotometricInterpretation is 0 with SampleFormat 2"),
        ("f4", {"photometric": 0}, "UNSUPPORTED_SYNTAX", "PhotometricInterpretation is 0 with SampleFormat 3"),
        ("u1", {"leave_out": (262,)}, "UNSUPPORTED_SYNTAX", "PhotometricInterpretation is not stated"),
        ("u1", {"photometric": 4}, "UNSUPPORTED_SYNTAX", "PhotometricInterpretation is 4"),
        ("u2", {"photometric": 32844}, "UNSUPPORTED_SYNTAX", "PhotometricInterpretation is 32844"),
        ("u1", {"photometric": 5}, "COLOUR", "CMYK"),
        ("u1", {"photometric": 6}, "COLOUR", "YCbCr"),
        ("u1", {"photometric": 8}, "COLOUR", "CIELab"),
        ("u2", {"photometric": 32803}, "COLOUR", "CFA"),
        ("u8", {}, "UNSUPPORTED_SYNTAX", "BitsPerSample is 64 with SampleFormat 1"),
        ("i8", {}, "UNSUPPORTED_SYNTAX", "BitsPerSample is 64 with SampleFormat 2"),
        ("u2", name_tag(339, 4), "UNSUPPORTED_SYNTAX", "SampleFormat 4"),
        ("u4", name_tag(339, 6), "UNSUPPORTED_SYNTAX", "SampleFormat 6"),
        ("u4", {"bits": 24}, "UNSUPPORTED_SYNTAX", "BitsPerSample is 24"),
        ("u2", name_tag(284, 3), "UNSUPPORTED_SYNTAX", "PlanarConfiguration is 3"),
        ("u2", name_tag(266, 3), "UNSUPPORTED_SYNTAX", "FillOrder is 3"),
        ("u2", {"predictor": 2}, "UNSUPPORTED_SYNTAX", "Predictor is 2 with Compression 1"),
        ("u2", {"predictor": 2, "compression": 32773}, "UNSUPPORTED_SYNTAX", "Predictor is 2 with Compression 32773"),
        ("u2", {"compression": 8, **name_tag(317, 34892)}, "UNSUPPORTED_SYNTAX", "Predictor is 34892"),
        ("f4", {"compression": 8, **name_tag(317, 2)}, "UNSUPPORTED_SYNTAX", "Predictor is 2"),
        ("u2", {"compression": 8, **name_tag(317, 3)}, "UNSUPPORTED_SYNTAX", "Predictor is 3"),
        ("12", {"bits": 12, "compression": 8, **name_tag(317, 2)}, "UNSUPPORTED_SYNTAX", "12 bits"),
        *[
            ("u1", name_tag(259, number), "UNSUPPORTED_SYNTAX", f"Compression is {number}")
            for number in (2, 3, 4, 6, 7, 9, 32809, 32946 + 1, 34712, 34887, 34925 + 1, 50001, 50002, 65535)
        ],
        ("u1", name_tag(254, 1), "MULTIFRAME", "NewSubfileType"),
        ("u1", name_tag(32997, 7), "MULTIFRAME", "7 pages"),
        ("u1", name_tag(277, 2), "CORRUPT_PIXELS", "the tags declare"),
        ("u1", name_tag(277, 5), "COLOUR", "SamplesPerPixel is 5"),
        ("u1", name_tag(257, ROWS - 1), "CORRUPT_PIXELS", "the tags declare"),
        ("u1", name_tag(257, ROWS + 1), "CORRUPT_PIXELS", "1 strips or tiles with 1 lengths, 2 are needed"),
        ("u1", name_tag(256, COLS + 1), "CORRUPT_PIXELS", "the tags declare"),
        ("u1", name_tag(256, 0), "CORRUPT_PIXELS", "pixels"),
        ("u1", name_tag(278, 0), "CORRUPT_PIXELS", "pixels"),
        ("u1", {"leave_out": (273,)}, "CORRUPT_PIXELS", "0 strips or tiles"),
        ("u1", {"leave_out": (279,)}, "CORRUPT_PIXELS", "0 lengths"),
        ("u1", name_tag(273, 0, "I"), "CORRUPT_PIXELS", "overlap at byte 0"),
        ("u1", {"segment": (5, COLS), "tags": {273: ("I", [8] * 4)}}, "CORRUPT_PIXELS", "4 strips"),
        ("u1", {"segment": (12, COLS), "tags": {273: ("I", [8, 9])}}, "CORRUPT_PIXELS", "overlap at byte 9"),
        ("u1", {"segment": (12, COLS), "tags": {273: ("I", [8, 8])}}, "CORRUPT_PIXELS", "overlap at byte 8"),
        ("u1", name_tag(273, 4, "I"), "CORRUPT_PIXELS", "overlap at byte 4"),
    ],
)
def test_what_is_not_known_to_come_out_right_is_refused_by_its_tag(kind, options, reason, named, tmp_path):
    pixels = make(kind) if kind not in ("u8", "i8") else RAMP.astype(kind)
    told = refuse(build_tiff(pixels, **options), tmp_path)
    assert told[0] == reason
    assert named in told[1]


def test_channels_of_different_depth_or_format_are_refused(tmp_path):
    pixels = np.stack([make("u2")] * 3, axis=-1)
    assert "BitsPerSample is (16, 8, 16)" in refuse(build_tiff(pixels, tags={258: ("H", [16, 8, 16])}), tmp_path)[1]
    assert refuse(build_tiff(pixels, tags={339: ("H", [1, 2, 1])}), tmp_path)[0] == "CORRUPT_PIXELS"


def test_a_sample_format_that_is_not_stated_is_unsigned(tmp_path):
    image = read(build_tiff(make("u2"), leave_out=(339, 266, 277, 284)), tmp_path)
    assert (image.pixels == make("u2")).all()


@pytest.mark.parametrize("compression", PACKERS)
@pytest.mark.parametrize("layout", [LAYOUTS[1], LAYOUTS[3]])
def test_a_segment_that_is_missing_short_long_or_damaged_is_never_filled_up(compression, layout, tmp_path):
    pixels, pack = make("u2"), PACKERS[compression]
    for damage in (
        lambda parts: [*parts[:1], b"", *parts[2:]],
        lambda parts: [parts[0], parts[1][: len(parts[1]) // 2], *parts[2:]],
        lambda parts: [parts[0], pack(bytes(70)), *parts[2:]],
        lambda parts: [parts[0], pack(bytes(1024 + 370)), *parts[2:]],
        lambda parts: parts[:-1],
        lambda parts: [*parts, parts[0]],
    ):
        content = build_tiff(pixels, compression=compression, damage=damage, **layout)
        assert refuse(content, tmp_path)[0] == "CORRUPT_PIXELS"


@pytest.mark.parametrize("compression", [8, 34925])
def test_a_flipped_bit_is_found_where_the_compression_has_a_checksum(compression, tmp_path):
    def flip(parts):
        broken = bytearray(parts[0])
        broken[len(broken) // 2] ^= 1
        return [bytes(broken)]

    content = build_tiff(make("u2"), compression=compression, damage=flip)
    reason, told = refuse(content, tmp_path)
    assert reason == "CORRUPT_PIXELS"
    assert "not readable as TIFF" in told


def test_a_file_that_ends_early_is_refused_at_every_length(tmp_path):
    content = build_tiff(make("u1"), compression=8, segment=(5, COLS))
    whole = read(content, tmp_path).pixels
    for length in range(8, len(content), 7):
        assert refuse(content[:length], tmp_path)[0] in ("NOT_READABLE", "CORRUPT_PIXELS", "UNSUPPORTED_SYNTAX")
    assert (read(content, tmp_path).pixels == whole).all()


def test_a_tag_that_cannot_be_parsed_does_not_fall_back_to_its_default(tmp_path):
    content = bytearray(build_tiff(make("i2"), compression=8))
    entry = content.index((339).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    content[entry + 2] = 99  # no type of values
    assert refuse(bytes(content), tmp_path) == (
        "CORRUPT_PIXELS", "not readable as TIFF (tag 339 is damaged); truncated or damaged?",
    )  # fmt: skip


def test_a_tag_that_says_two_things_is_refused(tmp_path):
    content = bytearray(build_tiff(make("u2"), tags={258: ("H", [16])}))
    entry = content.index((277).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    content[entry : entry + 2] = (258).to_bytes(2, "little")  # in place of the samples per pixel
    assert refuse(bytes(content), tmp_path) == (
        "CORRUPT_PIXELS", "not readable as TIFF (tag 258 is there twice); truncated or damaged?",
    )  # fmt: skip


@pytest.mark.parametrize(
    "options", [{"imagej": True}, {"metadata": {"axes": "ZYX"}}, {"ome": True}, {"truncate": True}]
)
def test_stacks_are_refused_by_their_number_of_pages(options, tmp_path):
    stack = np.stack([make("u2")] * 3)
    metadata = {"photometric": "minisblack", **options}
    if options.get("truncate"):
        metadata |= {"shaped": True}
    tifffile.imwrite(tmp_path / "a.tif", stack, **metadata)
    with pytest.raises(ImageError, match="it holds 3 pages") as caught:
        read_image(tmp_path / "a.tif")
    assert caught.value.reason == "MULTIFRAME"


@pytest.mark.parametrize("place", ["itself", "outside"])
def test_a_further_page_that_is_not_there_is_a_sign_of_damage(place, tmp_path):
    content = build_tiff(make("u1"), compression=5)
    first = int.from_bytes(content[4:8], "little")
    at = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    following = first if place == "itself" else len(content) + 50
    reason, told = refuse(content[:at] + following.to_bytes(4, "little") + content[at + 4 :], tmp_path)
    assert reason == "CORRUPT_PIXELS"
    assert "a further page" in told


def test_smaller_copies_beside_the_picture_do_no_harm_and_other_pictures_do(tmp_path):
    pixels = make("u2")
    for copy, smaller in (({"subfiletype": 1}, True), ({}, False)):
        with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as file:
            file.write(pixels, subifds=1, photometric="minisblack")
            file.write(pixels[::2, ::2], photometric="minisblack", **copy)
        if smaller:
            assert (read_image(tmp_path / "a.tif").pixels == pixels).all()
        else:
            with pytest.raises(ImageError, match="SubIFDs"):
                read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4"])
def test_values_come_through_the_isolated_reader(kind, tmp_path, isolated):
    (tmp_path / "a.tif").write_bytes(build_tiff(make(kind), compression=5, tags={274: ("H", [6])}))
    found, own = isolated.read(tmp_path / "a.tif"), read_image(tmp_path / "a.tif")
    assert found.pixels.dtype == own.pixels.dtype
    assert (found.pixels == own.pixels).all()
    assert (found.value_range, found.notes) == (own.value_range, own.notes)


@pytest.fixture(scope="module")
def isolated():
    with IsolatedReader() as reader:
        yield reader


def test_floats_of_64_bits_are_rounded_with_a_note_or_refused(tmp_path):
    image = read(build_tiff(RAMP.astype(np.float64) / 3), tmp_path)
    assert (image.pixels == (RAMP.astype(np.float64) / 3).astype(np.float32)).all()
    assert "rounded" in image.notes[0]
    assert read(build_tiff(make("u2").astype(np.float64)), tmp_path).notes == ()
    reason, told = refuse(build_tiff(RAMP * 1e200), tmp_path)
    assert reason == "CORRUPT_PIXELS"
    assert "32-bit floats" in told


def test_a_mask_of_single_bits_is_what_is_shown_white(tmp_path):
    marked = RAMP % 7 == 0
    for photometric in (0, 1):
        stored = (marked if photometric else ~marked).astype(np.uint8)
        for compression in PACKERS:
            (tmp_path / "m.tif").write_bytes(
                build_tiff(stored, bits=1, photometric=photometric, compression=compression)
            )
            assert (read_mask(tmp_path / "m.tif") == marked).all()


@pytest.mark.parametrize("name", ["a.png", "a.pgm", "a.jpg", "a.TIF"])
def test_a_tiff_is_told_by_its_content(name, tmp_path):
    pixels = make("u2")
    (tmp_path / name).write_bytes(build_tiff(pixels, compression=5, tags={274: ("H", [6])}))
    assert (read_image(tmp_path / name).pixels == pixels).all()
    assert read_shape(tmp_path / name) == (ROWS, COLS)


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "lzma", "zstd", None])
def test_what_other_libraries_write_is_read(compression, predictor, tmp_path):
    if predictor and compression in (None, "packbits"):
        pytest.skip("no predictor for it")
    for kind in ("u1", "u2", "i2", "f4"):
        for tile in (None, (16, 32)):
            tifffile.imwrite(
                tmp_path / "a.tif", make(kind), compression=compression, predictor=predictor, tile=tile, rowsperstrip=4
            )
            assert (read_image(tmp_path / "a.tif").pixels == make(kind)).all()
    picture = PIL.Image.fromarray(make("u2"))
    names = {"lzw": "tiff_lzw", "zlib": "tiff_adobe_deflate", "lzma": "lzma", "zstd": "zstd"}
    picture.save(tmp_path / "b.tif", compression=names.get(compression, compression))
    assert (read_image(tmp_path / "b.tif").pixels == make("u2")).all()
