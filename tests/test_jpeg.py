import io

import numpy as np
import PIL.Image
import pytest

from unary.errors import ImageError
from unary.images.reading import read_image, read_shape

SMOOTH = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) * 2


def build(pixels=SMOOTH, mode=None, **options):
    file = io.BytesIO()
    picture = PIL.Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, "JPEG", **{"quality": 95, **options})
    return file.getvalue()


def refuse(content, tmp_path):
    """The reason and the sentence of a refusal, the file's name in it."""
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jpg: ") as caught:
        read_image(tmp_path / "a.jpg")
    return caught.value.reason, str(caught.value).split("a.jpg: ")[1]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_of_every_process_is_read(mode, options, tmp_path):
    (tmp_path / "a.jpg").write_bytes(build(mode=mode, **options) + b"appended by a telephone")
    image = read_image(tmp_path / "a.jpg")
    assert (image.pixels == np.asarray(PIL.Image.open(tmp_path / "a.jpg").convert("L"))).all()
    assert abs(image.pixels.astype(int) - SMOOTH).max() < 6
    assert read_shape(tmp_path / "a.jpg") == image.shape == (48, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_noted_and_never_applied(orientation, tmp_path):
    exif = PIL.Image.Exif()
    exif[274] = orientation
    (tmp_path / "a.jpg").write_bytes(build(exif=exif))
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == read_shape(tmp_path / "a.jpg") == (48, 64)
    assert [f"Orientation is {orientation}" in note for note in image.notes] == [True] * (orientation != 1)


@pytest.mark.parametrize(("marker", "bits"), [(0xC1, 12), (0xC3, 16), (0xC0, 12), (0xC9, 8), (0xCB, 8)])
def test_other_processes_and_depths_are_refused_by_name(marker, bits, tmp_path):
    content = bytearray(build())
    place = content.index(b"\xff\xc0")
    content[place + 1], content[place + 4] = marker, bits
    reason, told = refuse(bytes(content), tmp_path)
    assert reason == "UNSUPPORTED_SYNTAX"
    assert f"{bits} bits by process SOF{marker - 0xC0}" in told


def test_colour_is_refused_however_it_is_stored(tmp_path):
    colours = np.stack([SMOOTH, 255 - SMOOTH, SMOOTH // 2], axis=-1)
    for options in ({}, {"subsampling": 0}, {"keep_rgb": True}, {"mode": "CMYK"}):
        assert refuse(build(colours, **options), tmp_path)[0] == "COLOUR"


def test_several_pictures_are_refused(tmp_path):
    file = io.BytesIO()
    PIL.Image.fromarray(SMOOTH).save(file, "MPO", save_all=True, append_images=[PIL.Image.fromarray(SMOOTH)])
    for content in (build() * 2, file.getvalue()):
        assert refuse(content, tmp_path)[0] == "MULTIFRAME"


def test_every_shortened_file_is_refused(tmp_path):
    content = build()
    for length in range(3, len(content), 5):
        assert refuse(content[:length], tmp_path)[0] == "CORRUPT_PIXELS"


def test_a_thumbnail_in_the_header_is_no_second_picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(build(exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0\0\0\0\0" + build()[:4000]))
    assert read_image(tmp_path / "a.jpg").shape == (48, 64)
