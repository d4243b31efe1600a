import io
import struct

import numpy as np
import PIL.Image
import pytest
from pydicom.encaps import encapsulate

from unary.images.codestream import find_broken_fragment, find_fault, find_run_fault, find_stray

SHAPE = (24, 40)


@pytest.fixture(scope="module")
def streams():
    pixels = (np.arange(24 * 40).reshape(SHAPE) % 251).astype(np.uint8)
    found = {}
    for family, options in (("JPEG", {"format": "JPEG"}), ("JPEG 2000", {"format": "JPEG2000", "no_jp2": True})):
        stream = io.BytesIO()
        PIL.Image.fromarray(pixels).save(stream, **options)
        found[family] = stream.getvalue()
    return found


@pytest.mark.parametrize("family", ["JPEG", "JPEG 2000"])
def test_a_whole_stream_has_no_fault(streams, family):
    for padding in (b"", b"\0", b"\0\0\0", b"\xff"):
        assert find_fault(streams[family] + padding, family, shape=SHAPE, bits=8) is None


@pytest.mark.parametrize("family", ["JPEG", "JPEG 2000"])
def test_every_cut_is_found(streams, family):
    stream = streams[family]
    for end in range(len(stream) - 1):
        assert find_fault(stream[:end], family, shape=SHAPE, bits=8) is not None


@pytest.mark.parametrize("family", ["JPEG", "JPEG 2000"])
def test_another_size_depth_or_family_is_found(streams, family):
    stream = streams[family]
    assert "24 x 40" in find_fault(stream, family, shape=(40, 24), bits=8)
    assert "8 bits" in find_fault(stream, family, shape=SHAPE, bits=1)
    others = {"JPEG", "JPEG 2000", "JPEG-LS", "lossless JPEG"} - {family}
    assert all(find_fault(stream, other, shape=SHAPE, bits=8) for other in others)


def test_a_missing_piece_of_a_jpeg2000_stream_is_found(streams):
    stream = streams["JPEG 2000"]
    middle = stream.index(b"\xff\x93") + 10
    assert find_fault(stream[:middle] + stream[middle + 5 :], "JPEG 2000", shape=SHAPE, bits=8)


def test_fragments_must_fill_the_value():
    value = encapsulate([b"\1\2\3\4" * 9], has_bot=False)
    assert find_broken_fragment(value) is None
    for end in range(len(value)):
        assert find_broken_fragment(value[:end]) is not None
    assert find_broken_fragment(value[:8] + b"\0\0" + value[8:]) is not None


@pytest.mark.parametrize("little", [True, False])
def test_what_follows_the_pixels_must_be_elements(tmp_path, little):
    order, path = "<" if little else ">", tmp_path / "f"

    def build(tag, value, kind=b"OB\0\0"):
        return struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + kind + struct.pack(order + "I", len(value)) + value

    private = build(0x7FE11010, b"ab") + build(0xFFFCFFFC, bytes(100))
    delimiter = struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0)
    known = {"explicit": True, "little": little}
    for rest, plain, encapsulated in (
        (b"", True, True),
        (private, True, True),
        (bytes(64), False, True),
        (b"\r\n", False, False),
        (b"\1" * 50, False, False),
        (private + b"x", False, False),
        (build(0x00100010, b"ab"), False, False),
    ):
        path.write_bytes(b"pixels" + rest)
        assert (find_stray(path, 6, encapsulated=False, **known) is None) == plain
        path.write_bytes(b"pixels" + delimiter + rest)
        assert (find_stray(path, 6, encapsulated=True, **known) is None) == encapsulated
    path.write_bytes(b"pixels")
    assert "do not end" in find_stray(path, 6, encapsulated=True, **known)


def test_runs_must_make_as_many_bytes_as_declared():
    def build(*planes):
        offsets = np.cumsum([64, *map(len, planes)])[:-1].tolist()
        return struct.pack("<16I", len(planes), *offsets, *[0] * (15 - len(planes))) + b"".join(planes)

    literal, repeated = b"\x03abcd", b"\xfdx"  # four bytes each
    for good in (literal, repeated, literal + b"\0", b"\x80" + repeated, b"\x01ab\xffc"):
        assert find_run_fault(build(good, good), pixels=4, planes=2) is None
        assert find_run_fault(build(good), pixels=4, planes=1) is None
    for bad in (literal[:-1], repeated + b"\1\1", b"\x04abcd", b"\xfcx", b"", b"\xfd"):
        assert find_run_fault(build(bad, literal), pixels=4, planes=2) is not None
        assert find_run_fault(build(literal, bad), pixels=4, planes=2) is not None
    stream = build(literal, literal)
    assert find_run_fault(stream, pixels=4, planes=1) is not None
    assert find_run_fault(stream, pixels=3, planes=2) is not None
    assert find_run_fault(stream[:60], pixels=4, planes=2) is not None
