import numpy as np
import pytest

from unary.errors import ImageError
from unary.images.isolation import IsolatedReader
from unary.images.reading import read_image, read_shape

PIXELS = (np.arange(12 * 20).reshape(12, 20) * 17) % 4096
BODY = PIXELS.astype(">u2").tobytes()
PLAIN = " ".join(str(value) for value in PIXELS.flat).encode()


def read(content, tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(content)
    image = read_image(path)
    assert read_shape(path) == image.shape
    return image


def refuse(content, tmp_path):
    """The reason and the sentence of a refusal, the file's name in it."""
    (tmp_path / "a.pgm").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.pgm: ") as caught:
        read_image(tmp_path / "a.pgm")
    return caught.value.reason, str(caught.value).split("a.pgm: ")[1]


@pytest.mark.parametrize(
    "head",
    [
        b"P5 20 12 4095\n",
        b"P5\n20 12\n4095\n",
        b"P5\r20 12\r4095\r",
        b"P5\r\n20 12\r\n4095\r\n",
        b"P5\t20\v12\f4095 ",
        b"P5 000020 0012 04095\n",
        b"P5\n# made here\n20 12\n4095\n",
        b"P5\r# scanner\r20 12\r4095\r",
        b"P5\r\n# scanner\r\n20 12\r\n4095\r\n",
        b"P5# at once\n20 12\n4095\n",
        b"P5\n20# width\n12# height\n4095\n",
        b"P5\n20 12\n4095# highest\n",
        b"P5\n#\n#\n\n  # twice # in one line P5 1 1 9\n20 12\n4095\n",
        b"P5\n# 20 12 255\n20 12\n4095\n",
        b"P5\n" + b"# calibration line of the digitiser\n" * 2000 + b"20 12\n4095\n",
        b"P5\n# \xff\xfe bytes that are no text\n20 12\n4095\n",
    ],
)
def test_every_header_that_the_format_allows_is_read(head, tmp_path):
    for content in (head + BODY, head.replace(b"P5", b"P2", 1) + PLAIN):
        image = read(content, tmp_path)
        assert (image.pixels == PIXELS).all()
        assert image.value_range == (0, 4095)
        assert image.pixels.dtype == np.uint16


@pytest.mark.parametrize(
    "body", [b"\n" + PLAIN, PLAIN + b"\n\n", PLAIN.replace(b" ", b"\r\n"), PLAIN.replace(b" ", b" # x\r", 9)]
)
def test_plain_numbers_are_divided_by_any_blanks_and_comments(body, tmp_path):
    assert (read(b"P2\n20 12\n4095\n" + body, tmp_path).pixels == PIXELS).all()


@pytest.mark.parametrize(
    ("content", "reason", "told"),
    [
        (b"P5\n20 12\n2000\n" + BODY, "CORRUPT_PIXELS", "it holds the value 4063, and its header declares 2000"),
        (b"P2\n20 12\n2000\n" + PLAIN, "CORRUPT_PIXELS", "it holds the value 4063, and its header declares 2000"),
        (b"P5\n20 12\n100\n" + bytes(239) + b"\x65", "CORRUPT_PIXELS", "it holds the value 101"),
        (b"P2\n2 1\n100\n7 99999999999999999999999", "CORRUPT_PIXELS", "declares 100"),
        ((b"P5\n20 12\n4095\n" + BODY) * 2, "MULTIFRAME", "several pictures"),
        ((b"P2\n20 12\n4095\n" + PLAIN + b"\n") * 2, "MULTIFRAME", "several pictures"),
        (b"P5\n20 12\n4095\n" + BODY[:-1], "CORRUPT_PIXELS", "declares 480 bytes of pixels, and 479 are there"),
        (b"P5\n20 12\n4095\n" + BODY + b"\n", "CORRUPT_PIXELS", "declares 480 bytes of pixels, and 481 are there"),
        (b"P5\n20 12\n4095\n# late\n" + BODY, "CORRUPT_PIXELS", "487 are there"),
        (b"P5\n20 12\n4095\r\n" + BODY + b"\n", "CORRUPT_PIXELS", "482 are there"),
        (b"P5\n20 12\n255\n" + BODY, "CORRUPT_PIXELS", "declares 240 bytes of pixels"),
        (b"P5\n20 12\n255\n", "CORRUPT_PIXELS", "0 are there"),
        (b"P2\n20 12\n4095\n" + PLAIN[:-5], "CORRUPT_PIXELS", "declares 240 pixels, and 239 are there"),
        (b"P2\n20 12\n4095\n" + PLAIN + b" 1", "CORRUPT_PIXELS", "241 are there"),
        (b"P2\n20 12\n4095\n", "CORRUPT_PIXELS", "0 are there"),
        (b"P2\n20 12\n4095\n" + PLAIN.replace(b"17", b"-17"), "CORRUPT_PIXELS", "something else than numbers"),
        (b"P2\n20 12\n4095\n" + PLAIN.replace(b"17", b"1.7"), "CORRUPT_PIXELS", "something else than numbers"),
        (b"P2\n20 12\n4095\n" + PLAIN.replace(b"17", b"1e3"), "CORRUPT_PIXELS", "something else than numbers"),
        (b"P5\n20 12\n0\n" + BODY, "CORRUPT_PIXELS", "declares 0 as the highest value (maxval)"),
        (b"P5\n20 12\n65536\n" + BODY, "CORRUPT_PIXELS", "declares 65536 as the highest value (maxval)"),
        (b"P5\n20 0\n255\n", "CORRUPT_PIXELS", "0 x 20"),
        (b"P5\n1000000 1000000\n255\n", "TOO_LARGE", "1000000 x 1000000"),
        (b"P5\n20 12\n", "NOT_READABLE", "maxval"),
        (b"P5\n20 -12\n255\n" + BODY, "NOT_READABLE", "maxval"),
        (b"P5\n20 12 99999999999\n" + BODY, "NOT_READABLE", "maxval"),
        (b"P5\n# 20 12 255" + BODY[:40], "NOT_READABLE", "maxval"),
        (b"P520 12 255\n" + BODY, "NOT_READABLE", "maxval"),
        (b"P1\n2 2\n0 1 1 0\n", "UNSUPPORTED_SYNTAX", "PBM"),
        (b"P4\n8 2\n\x0f\xf0", "UNSUPPORTED_SYNTAX", "PBM"),
        (b"P3\n1 1\n255\n1 2 3\n", "COLOUR", "PPM"),
        (b"P6\n1 1\n255\n123", "COLOUR", "PPM"),
        (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nENDHDR\n1", "UNSUPPORTED_SYNTAX", "PAM"),
        (b"Pf\n1 1\n-1.0\n1234", "UNSUPPORTED_SYNTAX", "PFM"),
        (b"P9\n20 12\n255\n" + BODY, "NOT_READABLE", "another format"),
    ],
)
def test_what_contradicts_itself_or_is_another_format_is_refused_by_name(content, reason, told, tmp_path):
    found, sentence = refuse(content, tmp_path)
    assert found == reason
    assert told in sentence


def test_values_come_through_the_isolated_reader(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5\n20# width\n12\r4095\n" + BODY)
    with IsolatedReader() as reader:
        assert (reader.read(tmp_path / "a.pgm").pixels == PIXELS).all()
