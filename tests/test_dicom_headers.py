"""Headers with something wrong: the image as it is, with a note, or a refusal that names the element and its value."""

import re
import struct
import sys

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.tag import Tag
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from unary.errors import ImageError
from unary.images import dicom, headers
from unary.images.dicom import read_header
from unary.images.headers import read_attributes
from unary.images.preamble import looks_like_dicom
from unary.images.reading import is_image_file, read_image
from unary.profiles import MAMMOGRAPHY

PIXELS = np.random.default_rng(0).integers(0, 4096, (12, 10)).astype(np.uint16)
PRESENTATION, PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
MORE = (
    "HighBit", "BitsAllocated", "PlanarConfiguration", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "VOILUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign", "PresentationLUTShape", "BreastImplantPresent", "PartialView", "BodyPartExamined",
)  # fmt: skip
LONG = ("OB", "OW", "OF", "OD", "OV", "SQ", "UN", "UT")


def encode(keyword, value, explicit=True, order="<"):
    """One element; a value is a number, text, bytes, or (value representation, bytes) for one as it should not be."""
    tag, kind = Tag(keyword), dictionary_VR(keyword).split(" or ")[0]
    if isinstance(value, tuple):
        kind, value = value
    elif isinstance(value, int) and kind == "US":
        value = struct.pack(order + "H", value)
    elif not isinstance(value, bytes):
        value = str(value).encode()
    content = value + (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
    length = 0xFFFFFFFF if kind == "OB" and value[:4] == b"\xfe\xff\x00\xe0" else len(content)
    head = struct.pack(order + "HH", tag.group, tag.elem)
    if not explicit:
        head += struct.pack(order + "I", length)
    elif kind in LONG:
        head += kind.encode() + b"\0\0" + struct.pack(order + "I", length)
    else:
        head += kind.encode() + struct.pack(order + "H", length)
    end = struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0) if length == 0xFFFFFFFF else b""
    return head + content + end


def build(pixels=PIXELS, syntax=ExplicitVRLittleEndian, *, meta=True, preamble=True, **elements):
    """The bytes of a minimal mammogram; None leaves an element out."""
    stated = {
        "SOPClassUID": PRESENTATION,
        "SOPInstanceUID": "1.2.3",
        "Modality": "MG",
        "PatientName": "Canary^Secret",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": min(12, 8 * pixels.dtype.itemsize),
        "HighBit": min(12, 8 * pixels.dtype.itemsize) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": ("OW", pixels.tobytes()),
    } | elements
    explicit, order = syntax != ImplicitVRLittleEndian, ">" if syntax == ExplicitVRBigEndian else "<"
    kept = sorted((Tag(keyword), keyword) for keyword, value in stated.items() if value is not None)
    content = b"".join(encode(keyword, stated[keyword], explicit, order) for _, keyword in kept)
    head = encode("TransferSyntaxUID", syntax) if meta is True else meta or b""
    if head:
        head = encode("FileMetaInformationGroupLength", ("UL", struct.pack("<I", len(head)))) + head
    return (bytes(128) + b"DICM" if preamble else b"") + head + content


def put(path, content):
    path.write_bytes(content)
    return path


def number(value):
    return "US", int(value).to_bytes(2, "little", signed=value < 0)


NOTED = {
    "small photometric": ({"PhotometricInterpretation": ("CS", b"monochrome2")}, "PhotometricInterpretation"),
    "spaced photometric": ({"PhotometricInterpretation": ("CS", b" MONOCHROME 2")}, "PhotometricInterpretation"),
    "no samples": ({"SamplesPerPixel": None}, "SamplesPerPixel is missing"),
    "empty samples": ({"SamplesPerPixel": ("US", b"")}, "SamplesPerPixel is empty"),
    "no bits": ({"BitsStored": None}, "BitsStored is missing; was taken as 12, from HighBit"),
    "small modality": ({"Modality": ("CS", b"mg")}, "Modality is written in small letters"),
    "small side": ({"ImageLaterality": ("CS", b"r")}, "ImageLaterality is written in small letters"),
    "comma": ({"ImagerPixelSpacing": ("DS", b"0,07\\0,07")}, r"ImagerPixelSpacing is 0,07\\0,07: the decimal comma"),
    "no number": ({"PixelSpacing": ("DS", b"a\\b")}, r"PixelSpacing is a text of 1 letters\\a text .* two positive"),
    "one spacing": ({"PixelSpacing": ("DS", b"0.07")}, r"PixelSpacing is 0\.07; two positive"),
    "three spacings": ({"PixelSpacing": ("DS", b"1\\1\\1")}, r"PixelSpacing is 1\\1\\1; two positive"),
    "negative spacing": ({"PixelSpacing": ("DS", b"-1\\1")}, r"PixelSpacing is -1\\1; two positive"),
    "zero spacing": ({"ImagerPixelSpacing": ("DS", b"0\\0")}, r"ImagerPixelSpacing is 0\\0; two positive"),
    "infinite spacing": ({"PixelSpacing": ("DS", b"1e999\\1")}, r"PixelSpacing is 1e999\\1; two positive"),
    "no magnification": (
        {"ImagerPixelSpacing": "1\\1", "EstimatedRadiographicMagnificationFactor": ("DS", b"0")},
        "EstimatedRadiographicMagnificationFactor is 0; a positive number is needed: the spacing is unknown",
    ),
    "two units": (
        {"ImagerPixelSpacing": "0.07\\0.07", "PixelSpacing": "70\\70"},
        r"PixelSpacing is 70\\70, which was used, and ImagerPixelSpacing is 0\.07\\0\.07",
    ),
    "slope alone": ({"RescaleSlope": "1"}, "RescaleIntercept is missing; was taken as 0"),
    "wrong shape": ({"PresentationLUTShape": "INVERSE"}, "PresentationLUTShape INVERSE contradicts"),
    "limit alone": ({"PixelPaddingRangeLimit": number(5)}, "PixelPaddingRangeLimit stands without PixelPaddingValue"),
    "two paddings": (
        {"PixelPaddingValue": ("US", bytes(4))},
        r"PixelPaddingValue is 0\\0; one number.*padding is unkn",
    ),
}
REFUSED = {
    "no photometric": ({"PhotometricInterpretation": None}, "PhotometricInterpretation is missing", "BAD_HEADER"),
    "empty photometric": ({"PhotometricInterpretation": ""}, "PhotometricInterpretation is empty", "BAD_HEADER"),
    "old photometric": ({"PhotometricInterpretation": "MONOCHROME"}, "PhotometricInterpretation is MONO", "BAD_HEADER"),
    "colour": ({"PhotometricInterpretation": "RGB"}, "PhotometricInterpretation is RGB", "COLOUR"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "is PALETTE COLOR", "COLOUR"),
    "three samples": ({"SamplesPerPixel": 3}, "SamplesPerPixel is 3", "COLOUR"),
    "no bits at all": ({"BitsStored": None, "HighBit": None}, "BitsStored is missing", "BAD_HEADER"),
    "too many bits": ({"BitsStored": 17}, "BitsStored is 17; 1 to 16", "CORRUPT_PIXELS"),
    "no bit": ({"BitsStored": 0}, "BitsStored is 0", "CORRUPT_PIXELS"),
    "high bit": ({"HighBit": 15}, "HighBit is 15; with BitsStored 12 it has to be 11", "CORRUPT_PIXELS"),
    "packed": ({"BitsAllocated": 12}, "BitsAllocated is 12; .* 1, 8, 16, 32", "CORRUPT_PIXELS"),
    "no allocation": ({"BitsAllocated": None}, "BitsAllocated is missing", "BAD_HEADER"),
    "no sign": ({"PixelRepresentation": None}, "PixelRepresentation is missing", "BAD_HEADER"),
    "odd sign": ({"PixelRepresentation": 2}, "PixelRepresentation is 2; a whole number from 0 to 1", "BAD_HEADER"),
    "no rows": ({"Rows": None}, "Rows is missing", "BAD_HEADER"),
    "zero rows": ({"Rows": 0}, "Rows is 0", "BAD_HEADER"),
    "negative rows": ({"Rows": ("SS", b"\xf4\xff")}, "Rows is -12", "BAD_HEADER"),
    "two columns": ({"Columns": ("US", bytes([10, 0, 10, 0]))}, r"Columns is 10\\10", "BAD_HEADER"),
    "rows as text": ({"Rows": ("IS", b"twelve")}, "Rows is a text of 6 letters", "BAD_HEADER"),
    "rows as bytes": ({"Rows": ("OB", b"\x0c\0")}, "Rows is stored as OB in place of US", "BAD_HEADER"),
    "frames": ({"NumberOfFrames": ("IS", b"one")}, "NumberOfFrames is a text of 3 letters", "BAD_HEADER"),
    "half a frame": ({"NumberOfFrames": ("IS", b"0.5")}, r"NumberOfFrames is 0\.5", "BAD_HEADER"),
    "no frame": ({"NumberOfFrames": ("IS", b"0")}, "NumberOfFrames is 0", "BAD_HEADER"),
    "two slopes": (
        {"RescaleSlope": "1\\2", "RescaleIntercept": "0\\0"},
        r"RescaleSlope is 1\\2; one number",
        "BAD_HEADER",
    ),
    "slope": ({"RescaleSlope": ("DS", b"steep"), "RescaleIntercept": 0}, "RescaleSlope is a text of 5", "BAD_HEADER"),
    "not a number": ({"RescaleIntercept": ("DS", b"nan"), "RescaleSlope": 1}, "RescaleIntercept is a", "BAD_HEADER"),
    "flat": ({"RescaleSlope": ("DS", b"0"), "RescaleIntercept": 1}, "RescaleSlope is 0 and", "CORRUPT_PIXELS"),
    "ct": ({"SOPClassUID": CT, "RescaleSlope": 1}, "without RescaleIntercept", "NO_RESCALE"),
    "report": ({"Modality": "SR"}, "Modality SR", "NOT_AN_IMAGE"),
    "modality": ({"Modality": ("CS", b"Canary^Secret")}, "Modality a text of 13 letters", "NOT_AN_IMAGE"),
    "name in place of a number": ({"Rows": ("LO", b"Canary^Secret")}, "Rows is a text of 13 letters", "BAD_HEADER"),
    "no pixels": ({"PixelData": None}, "no PixelData", "CORRUPT_PIXELS"),
}


@pytest.mark.parametrize("case", NOTED)
def test_what_can_be_put_right_or_passed_is_noted(case, tmp_path):
    elements, words = NOTED[case]
    path = put(tmp_path / "i.dcm", build(**elements))
    image = read_image(path)
    assert np.array_equal(image.pixels, PIXELS)
    [note] = image.notes
    assert re.search(words, note)
    assert read_attributes(path, MAMMOGRAPHY.headers).spacing_mm == image.spacing_mm


def ask(read):
    """The reason of a refusal, or None."""
    try:
        read()
    except ImageError as error:
        return error.reason
    return None


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_element_and_its_value(case, tmp_path):
    elements, words, reason = REFUSED[case]
    path = put(tmp_path / "i.dcm", build(**elements))
    with pytest.raises(ImageError, match=words) as caught:
        read_image(path)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(str(path))
    assert "Canary" not in str(caught.value)
    asked = {ask(lambda: read_header(path)), ask(lambda: read_attributes(path, MAMMOGRAPHY.headers))}
    assert asked <= {None, reason}  # the header alone is asked for less


BARE = {
    "no preamble, no meta": {"meta": False, "preamble": False},
    "no preamble": {"preamble": False},
    "no meta": {"meta": False},
    "no syntax": {"meta": encode("MediaStorageSOPInstanceUID", "1.2.3")},
    "implicit, no meta": {"meta": False, "preamble": False, "syntax": ImplicitVRLittleEndian},
    "implicit, no syntax": {"meta": False, "syntax": ImplicitVRLittleEndian},
    "no preamble, big": {"meta": False, "preamble": False, "syntax": ExplicitVRBigEndian},
}


@pytest.mark.parametrize("case", BARE)
def test_what_plainly_is_dicom_is_read_without_its_beginning(case, tmp_path):
    big = BARE[case].get("syntax") == ExplicitVRBigEndian
    content = build(**BARE[case], PixelData=("OW", PIXELS.astype(">u2" if big else "<u2").tobytes()))
    path = put(tmp_path / "IM0001", content)
    assert looks_like_dicom(path)
    assert is_image_file(path)
    image = read_image(path)
    assert np.array_equal(image.pixels, PIXELS)
    assert ("preamble" in " ".join(image.notes)) == ("no preamble" in case or case == "implicit, no meta")
    assert ("TransferSyntaxUID" in " ".join(image.notes)) == (case != "no preamble")
    assert read_attributes(path, MAMMOGRAPHY.headers).missing_decoder is None


def test_a_file_without_a_syntax_whose_pixels_are_compressed_is_refused_by_it(tmp_path):
    stream = encapsulate([b"anything"])
    path = put(tmp_path / "i.dcm", build(meta=False, PixelData=("OB", stream)))
    with pytest.raises(ImageError, match="TransferSyntaxUID is missing; its pixels are compressed") as caught:
        read_image(path)
    assert caught.value.reason == "UNSUPPORTED_SYNTAX"


@pytest.mark.parametrize("content", [b"not DICOM at all" * 20, b"\x08\x00\x05\x00", bytes(200), b"DICM" + bytes(200)])
def test_what_is_no_dicom_says_what_is_missing(content, tmp_path):
    with pytest.raises(ImageError, match=r"DICM|damaged|without pixels") as caught:
        read_image(put(tmp_path / "i.dcm", content))
    assert caught.value.reason in ("NOT_READABLE", "NOT_AN_IMAGE")


@pytest.mark.parametrize(
    ("syntax", "content", "words"),
    [
        (ExplicitVRLittleEndian, ("OB", encapsulate([b"anything"])), "TransferSyntaxUID says plain pixels"),
        (JPEG2000Lossless, ("OW", PIXELS.tobytes()), "TransferSyntaxUID says compressed pixels"),
    ],
)
def test_a_syntax_that_the_pixels_contradict_is_named(syntax, content, words, tmp_path):
    with pytest.raises(ImageError, match=words):
        read_image(put(tmp_path / "i.dcm", build(syntax=syntax, PixelData=content)))


@pytest.mark.parametrize("trailing", [None, ("OB", b"ab")])
@pytest.mark.parametrize(
    ("real", "said"),
    [(ImplicitVRLittleEndian, ExplicitVRLittleEndian), (ExplicitVRLittleEndian, ImplicitVRLittleEndian)],
)
def test_value_representations_that_the_syntax_contradicts_are_noted(real, said, trailing, tmp_path):
    content = build(syntax=real, meta=encode("TransferSyntaxUID", said), DataSetTrailingPadding=trailing)
    image = read_image(put(tmp_path / "i.dcm", content))
    assert np.array_equal(image.pixels, PIXELS)
    assert "TransferSyntaxUID" in image.notes[0]


def test_a_missing_decoder_names_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.available_plugins", ())
    jpeg_ls = "pyjpegls" if sys.version_info < (3, 14) else "python-gdcm"
    packages = {JPEGLSLossless: jpeg_ls, JPEGLosslessSV1: "python-gdcm", JPEG2000Lossless: "python-gdcm"}
    for syntax, package in packages.items():
        path = put(tmp_path / "i.dcm", build(syntax=syntax, PixelData=("OB", encapsulate([b"anything"]))))
        with pytest.raises(ImageError, match=f"pip install {package}") as caught:
            read_image(path)
        assert caught.value.reason == "UNSUPPORTED_SYNTAX"
        assert f"pip install {package}" in read_attributes(path, MAMMOGRAPHY.headers).missing_decoder


PADDINGS = {  # sign of the pixels, padded word, padding value, range limit
    "as it should be": (False, 4095, ("US", 4095), None, False),
    "signed": (True, -2000, ("SS", -2000), None, False),
    "unsigned of signed pixels": (True, -2000, ("US", 63536), None, True),
    "signed of unsigned pixels": (False, 63536, ("SS", -2000), None, True),
    "beyond the bits stored": (False, 61440, ("US", 61440), None, False),
    "range": (False, 40, ("US", 30), ("US", 50), False),
    "range, other way round": (False, 40, ("US", 50), ("US", 30), False),
    "unsigned range of signed pixels": (True, -1500, ("US", 63536), ("US", 65000), True),
    "range across zero, unsigned": (True, -1500, ("US", 63536), ("US", 0), True),
    "range from below what is possible": (False, 0, ("SS", -2000), ("SS", 0), True),
    "range of every value": (False, 0, ("US", 0), ("US", 63536), True),
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("case", PADDINGS)
def test_padding_is_found_whatever_sign_it_is_written_with(case, syntax, photometric, tmp_path):
    signed, word, value, limit, noted = PADDINGS[case]
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    words = np.clip(PIXELS, 100, 2000).astype(np.int16 if signed else np.uint16)
    words[:3] = word

    def as_bytes(stated):
        return (
            None if stated is None else (stated[0], struct.pack(order + ("H" if stated[0] == "US" else "h"), stated[1]))
        )

    content = build(
        words,
        syntax,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=as_bytes(value),
        PixelPaddingRangeLimit=as_bytes(limit),
        PixelData=("OW", words.astype(words.dtype.newbyteorder(order)).tobytes()),
        RescaleSlope=2,
        RescaleIntercept=-7,
    )
    image = read_image(put(tmp_path / "i.dcm", content))
    expected = 2.0 * words - 7
    if photometric == "MONOCHROME1":
        expected = sum(image.value_range) - expected
    assert image.padding[:3].all()
    assert not image.padding[3:].any()
    assert np.array_equal(image.pixels[3:], expected[3:])
    if syntax != ImplicitVRLittleEndian:  # where no value representation is written, none is wrong
        assert ["PixelPaddingValue is" in note for note in image.notes] == [True] * noted


@pytest.mark.parametrize(("kind", "padding"), [("Float", np.nan), ("Float", -9.5), ("DoubleFloat", 1e30)])
def test_padding_of_floats(kind, padding, tmp_path):
    dtype, code = (np.float32, "f") if kind == "Float" else (np.float64, "d")
    values = PIXELS.astype(dtype) / 7
    values[:3] = padding
    content = build(
        values,
        BitsStored=None,
        HighBit=None,
        PixelRepresentation=None,
        PixelData=None,
        PixelPaddingValue=0,
        **{
            f"{kind}PixelData": values.tobytes(),
            f"{kind}PixelPaddingValue": ("FL" if code == "f" else "FD", struct.pack("<" + code, padding)),
        },
    )
    image = read_image(put(tmp_path / "i.dcm", content))
    assert image.padding[:3].all()
    assert not image.padding[3:].any()
    assert np.array_equal(image.pixels[3:], values[3:].astype(np.float32))
    assert np.isfinite(image.pixels).all()
    assert "PixelPaddingValue goes with whole numbers" in image.notes[0]


POLARITIES = [  # intent, photometric, relationship, sign, inverted, words of the note
    ("FOR PROCESSING", "MONOCHROME2", "LIN", 1, True, "air is bright"),
    ("FOR PROCESSING", "MONOCHROME2", "LOG", 1, True, "air is bright"),
    ("FOR PROCESSING", "MONOCHROME2", None, 1, True, "air is bright"),
    ("FOR PROCESSING", "MONOCHROME1", "LIN", 1, True, None),
    ("FOR PROCESSING", "MONOCHROME2", "LOG", -1, False, None),
    ("FOR PROCESSING", "MONOCHROME1", "LOG", -1, True, "contradict"),
    ("FOR PROCESSING", "MONOCHROME2", "LIN", None, False, "PixelIntensityRelationshipSign is missing"),
    ("FOR PROCESSING", "MONOCHROME1", "LIN", None, True, "PixelIntensityRelationshipSign is missing"),
    ("FOR PROCESSING", "MONOCHROME2", "LIN", 0, False, "PixelIntensityRelationshipSign is 0"),
    ("FOR PRESENTATION", "MONOCHROME2", "LOG", 1, False, None),
    ("FOR PRESENTATION", "MONOCHROME1", "LOG", -1, True, None),
    ("FOR PRESENTATION", "MONOCHROME2", None, None, False, None),
    (None, "MONOCHROME2", "LIN", 1, False, "does not say FOR PROCESSING"),
    (None, "MONOCHROME1", "LIN", 1, True, None),
]


@pytest.mark.parametrize(("intent", "photometric", "relation", "sign", "inverted", "words"), POLARITIES)
def test_raw_images_are_turned_by_their_sign(intent, photometric, relation, sign, inverted, words, tmp_path):
    content = build(
        SOPClassUID={"FOR PROCESSING": PROCESSING, None: "1.2.840.10008.5.1.4.1.1.7"}.get(intent, PRESENTATION),
        PhotometricInterpretation=photometric,
        PixelIntensityRelationship=relation,
        PixelIntensityRelationshipSign=None if sign is None else ("SS", struct.pack("<h", sign)),
    )
    image = read_image(put(tmp_path / "i.dcm", content))
    assert image.intent == intent
    assert np.array_equal(image.pixels, 4095 - PIXELS if inverted else PIXELS)
    assert [words in note for note in image.notes] == [True] * (words is not None)


@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_an_image_is_inverted_once_whatever_its_presentation_says(photometric, shape, tmp_path):
    content = build(PhotometricInterpretation=photometric, PresentationLUTShape=shape, WindowCenter=9, WindowWidth=1)
    image = read_image(put(tmp_path / "i.dcm", content))
    assert np.array_equal(image.pixels, PIXELS if photometric == "MONOCHROME2" else 4095 - PIXELS)
    contradicts = (photometric == "MONOCHROME1") == (shape == "IDENTITY")
    assert ["PresentationLUTShape" in note for note in image.notes] == [True] * contradicts


def item(*elements):
    content = b"".join(elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def table(entries, *, first=0, bits=16, count=None, kind="US"):
    described = struct.pack("<HhH", (len(entries) if count is None else count) % 65536, first, bits)
    data = np.asarray(entries, "<u2" if bits > 8 or kind == "OW" else "u1").tobytes()
    return item(encode("LUTDescriptor", ("US", described)), encode("LUTData", (kind, data)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("first", [0, 500])
@pytest.mark.parametrize("kind", ["US", "OW"])
def test_a_modality_table_is_applied_beyond_its_ends_too(kind, first, photometric, tmp_path):
    entries = 65535 - 16 * np.arange(2000)
    sequence = table(entries, first=first, kind=kind)
    content = build(ModalityLUTSequence=("SQ", sequence), PhotometricInterpretation=photometric, RescaleSlope=3)
    image = read_image(put(tmp_path / "i.dcm", content))
    expected = entries[np.clip(PIXELS.astype(int) - first, 0, 1999)]
    assert np.array_equal(image.pixels, expected if photometric == "MONOCHROME2" else 65535 - expected)
    assert image.value_range == (0, 65535)
    assert ["ModalityLUTSequence and RescaleSlope" in note for note in image.notes] == [True]


def test_a_modality_table_of_a_signed_image_and_of_all_65536_values(tmp_path):
    words = PIXELS.astype(np.int16) - 2048
    sequence = table(np.arange(4096), first=-2048, bits=12)
    assert np.array_equal(
        read_image(put(tmp_path / "i.dcm", build(words, ModalityLUTSequence=("SQ", sequence)))).pixels, PIXELS
    )
    sequence = table(np.arange(65536), kind="OW")
    assert np.array_equal(
        read_image(put(tmp_path / "i.dcm", build(ModalityLUTSequence=("SQ", sequence)))).pixels, PIXELS
    )


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        (item(), "LUTDescriptor is missing"),
        (item(encode("LUTDescriptor", ("US", struct.pack("<HHH", 9, 0, 16)))), "LUTData has 0 values"),
        (item(encode("LUTDescriptor", ("US", struct.pack("<HH", 9, 0)))), "LUTDescriptor is 9"),
        (table(np.arange(9), count=10), "LUTData has 9 values, LUTDescriptor says 10"),
        (table(np.arange(9), bits=40), "LUTDescriptor is"),
    ],
)
def test_a_damaged_modality_table_is_refused_by_name(sequence, words, tmp_path):
    with pytest.raises(ImageError, match=words) as caught:
        read_image(put(tmp_path / "i.dcm", build(ModalityLUTSequence=("SQ", sequence))))
    assert caught.value.reason == "BAD_HEADER"


@pytest.mark.parametrize("sequence", [b"", item(), table([], count=0)])
def test_a_table_for_display_does_not_matter_even_if_it_is_empty(sequence, tmp_path):
    path = put(tmp_path / "i.dcm", build(VOILUTSequence=("SQ", sequence)))
    assert np.array_equal(read_image(path).pixels, PIXELS)


def test_a_damaged_item_costs_what_it_says_alone(tmp_path):
    view = item(encode("CodeValue", "399162004"), encode("ViewModifierCodeSequence", ("ZZ", b"1234")))
    display = item(encode("LUTData", ("ZZ", b"1234")), encode("LUTDescriptor", ("US", b"1")))
    path = put(tmp_path / "i.dcm", build(ViewCodeSequence=("SQ", view), VOILUTSequence=("SQ", display)))
    image = read_image(path)
    assert np.array_equal(image.pixels, PIXELS)
    assert image.view == "CC"
    assert read_attributes(path, MAMMOGRAPHY.headers).flags == ()
    path = put(tmp_path / "i.dcm", build(ViewCodeSequence=("LO", b"Canary^Secret")))
    assert read_image(path).notes == ("ViewCodeSequence is damaged, and what it says is unknown",)


@pytest.mark.parametrize("kind", ["Sq", "\x53\x11"])
def test_an_element_of_a_kind_that_does_not_exist_costs_what_it_says_alone(kind, tmp_path):
    for keyword in ("ViewModifierCodeSequence", "ViewCodeSequence", "PartialView", "SpecimenDescriptionSequence"):
        path = put(tmp_path / "i.dcm", build(**{keyword: (kind, b"")}))
        assert np.array_equal(read_image(path).pixels, PIXELS)
        assert read_attributes(path, MAMMOGRAPHY.headers).shape == PIXELS.shape
    with pytest.raises(ImageError, match="BitsAllocated"):
        read_image(put(tmp_path / "i.dcm", build(BitsAllocated=(kind, b""))))


@pytest.mark.parametrize("kind", ["US", "OW"])
def test_a_table_for_display_that_inverts_is_noted(kind, tmp_path):
    for entries, words in ((np.arange(9), []), (np.arange(9)[::-1], ["VOILUTSequence shows low values bright"])):
        image = read_image(put(tmp_path / "i.dcm", build(VOILUTSequence=("SQ", table(entries, kind=kind)))))
        assert np.array_equal(image.pixels, PIXELS)
        assert [note[:38] for note in image.notes] == words


ODD = [
    ("OB", b"Canary"),
    ("LO", b"Canary^Secret"),
    ("US", b"\1\0\2\0\3\0"),
    ("SQ", b""),
    ("SQ", b"Canary^Secret!!!"),
    ("FD", b"\1\2"),
]


@pytest.mark.parametrize("odd", ODD)
def test_no_value_representation_makes_a_crash_or_quotes_a_name(odd, tmp_path):
    raw = {"SOPClassUID": PROCESSING, "PixelIntensityRelationshipSign": ("SS", b"\xff\xff")}
    for keyword in dict.fromkeys([*headers._ELEMENTS, *dicom._HEADER_ELEMENTS, *MORE]):
        path = put(tmp_path / "i.dcm", build(**(raw | {keyword: odd})))
        for read in (read_image, read_header, lambda path: read_attributes(path, MAMMOGRAPHY.headers)):
            said = listen(read, path)
            assert "Canary" not in said
            assert not said or keyword in said or keyword == "SOPClassUID"


def listen(read, path):
    """What is said of a file, in a refusal or a note."""
    try:
        return " ".join(getattr(read(path), "notes", ()))
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("u1", 8), ("i1", 8), ("u1", 5), ("u2", 10), ("i2", 10), ("u2", 16), ("i2", 16), ("u4", 32), ("i4", 20)],
)
def test_the_same_picture_in_every_plain_encoding(dtype, bits, syntax, tmp_path):
    low = -(2 ** (bits - 1)) if dtype[0] == "i" else 0
    rng = np.random.default_rng(1)
    words = rng.integers(low, low + 2**bits, (7, 5)).astype(dtype)
    words[0, :2] = low, low + 2**bits - 1
    overlay = words.astype(np.int64) & (2**bits - 1)
    spare = 8 * words.dtype.itemsize - bits
    overlay |= rng.integers(0, 2**spare, words.shape) << bits
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    stated = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(dtype[0] == "i")}
    for stored in (words, overlay.astype(f"u{dtype[1]}")):
        content = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
        path = put(
            tmp_path / "i.dcm", build(stored, syntax, **stated, PixelData=("OB" if dtype[1] == "1" else "OW", content))
        )
        image = read_image(path)
        assert np.array_equal(image.pixels, words)
        assert image.value_range == (low, low + 2**bits - 1)
        assert image.notes == ()


def test_one_bit_a_pixel(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (7, 5)).astype(np.uint8)
    packed = np.packbits(bits, bitorder="little").tobytes()
    content = build(bits, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=("OB", packed))
    assert np.array_equal(read_image(put(tmp_path / "i.dcm", content)).pixels, bits)


CODECS = {
    "RLELossless": RLELossless,
    "JPEGLosslessProcess14_1": JPEGLosslessSV1,
    "JPEGLSLossless": JPEGLSLossless,
    "JPEG2000Lossless": JPEG2000Lossless,
}


def compress(pixels, codec, bits, folder):
    """The stream that GDCM, an encoder foreign to this package, makes of an image."""
    gdcm = pytest.importorskip("gdcm")
    stated = {"BitsStored": bits, "HighBit": bits - 1}
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(put(folder / "plain.dcm", build(pixels, **stated))))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, codec)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(folder / "compressed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    _, *fragments = generate_fragments(dcmread(folder / "compressed.dcm").PixelData)
    return b"".join(fragments)


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """Streams of the same picture by codec, bits and sign, with the picture; every possible value's bits are used."""
    folder, found = tmp_path_factory.mktemp("streams"), {}
    for bits in (8, 12, 16):
        for signed in (False, True):
            kind = ("i" if signed else "u") + ("1" if bits == 8 else "2")
            low = -(2 ** (bits - 1)) if signed else 0
            pixels = np.random.default_rng(2).integers(low, low + 2**bits, (24, 32)).astype(kind)
            for codec in CODECS:
                found[codec, bits, signed] = compress(pixels, codec, bits, folder), pixels
    return found


def wrap(stream, pixels, codec, bits, **elements):
    value = elements.pop("value", None) or encapsulate([stream])
    stated = {"BitsStored": bits, "HighBit": bits - 1} | elements
    return build(pixels, CODECS[codec], **stated, PixelData=("OB", value))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("stream_signed", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_the_same_picture_in_every_compression_or_a_refusal(codec, bits, stream_signed, signed, streams, tmp_path):
    stream, pixels = streams[codec, bits, stream_signed]
    words = pixels.view(f"u{pixels.dtype.itemsize}") & (2**bits - 1)
    expected = words.astype(int) - (2**bits if signed else 0) * (words >= 2 ** (bits - 1))
    path = put(tmp_path / "i.dcm", wrap(stream, pixels, codec, bits, PixelRepresentation=int(signed)))
    if stream_signed and not signed and (codec == "JPEG2000Lossless" or bits == 12):
        with pytest.raises(ImageError, match="PixelRepresentation is 0, unsigned"):
            read_image(path)
    else:
        assert np.array_equal(read_image(path).pixels, expected)


@pytest.mark.parametrize("codec", ["JPEGLosslessProcess14_1", "JPEG2000Lossless"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_stream_of_fewer_bits_than_declared(codec, signed, tmp_path):
    if codec == "JPEG2000Lossless":
        stream = imagecodecs.jpeg2k_encode(PIXELS, level=0, codecformat="j2k", reversible=True, bitspersample=12)
    else:
        stream = imagecodecs.ljpeg_encode(PIXELS, bitspersample=12)
    path = put(tmp_path / "i.dcm", wrap(bytes(stream), PIXELS, codec, 16, PixelRepresentation=int(signed)))
    if signed:
        with pytest.raises(ImageError, match="PixelRepresentation is 1, signed, and BitsStored is 16"):
            read_image(path)
    else:
        assert np.array_equal(read_image(path).pixels, PIXELS)


def cut(stream, *, table=b"", pieces=3):
    """The stream in several fragments behind an offset table of these bytes."""
    size = -(-len(stream) // pieces // 2) * 2
    parts = [stream[start : start + size] for start in range(0, len(stream), size)]
    parts[-1] += b"\0" * (len(parts[-1]) % 2)
    return b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(part)) + part for part in (table, *parts))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("table", [b"", bytes(4), struct.pack("<I", 40), struct.pack("<II", 0, 70), b"\xff" * 8])
def test_fragments_and_tables_of_offsets_do_not_matter(codec, table, streams, tmp_path):
    stream, pixels = streams[codec, 12, False]
    extended = {"ExtendedOffsetTable": ("OV", bytes(8)), "ExtendedOffsetTableLengths": ("OV", bytes(8))}
    for more in ({}, extended):
        value = cut(stream, table=table)
        assert np.array_equal(
            read_image(put(tmp_path / "i.dcm", wrap(stream, pixels, codec, 12, value=value, **more))).pixels, pixels
        )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("table", [b"", struct.pack("<II", 0, 0)])
def test_a_second_picture_is_not_dropped(codec, table, streams, tmp_path):
    stream, pixels = streams[codec, 12, False]
    value = cut(stream, pieces=1, table=table) + cut(stream, pieces=1)[8:]
    with pytest.raises(ImageError, match=r"compressed stream|run-length") as caught:
        read_image(put(tmp_path / "i.dcm", wrap(stream, pixels, codec, 12, value=value)))
    assert caught.value.reason == "CORRUPT_PIXELS"


def test_negative_values_under_an_unsigned_header_are_not_taken_for_positive_ones(tmp_path):
    words = PIXELS.astype(np.int16) - 2048
    with pytest.raises(ImageError, match=r"PixelRepresentation is 0, unsigned, but .* negative") as caught:
        read_image(put(tmp_path / "i.dcm", build(words, BitsStored=12, PixelRepresentation=0)))
    assert caught.value.reason == "CORRUPT_PIXELS"


@pytest.mark.parametrize("encode_odd", ["plain", "RLELossless"])
def test_an_odd_number_of_bytes(encode_odd, tmp_path):
    pixels = np.arange(35, dtype=np.uint8).reshape(7, 5)
    for padding in (b"", b"\0" if encode_odd == "plain" else bytes(2)):
        if encode_odd == "plain":
            content = build(pixels, PixelData=None) + encode("PixelData", ("OB", b""))[:8]
            content += struct.pack("<I", 35 + len(padding)) + pixels.tobytes() + padding
        else:
            run = struct.pack("<16I", 1, 64, *[0] * 14) + bytes([34]) + pixels.tobytes() + padding
            value = struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(run)) + run
            content = wrap(b"", pixels, "RLELossless", 8, value=value)
        assert np.array_equal(read_image(put(tmp_path / "i.dcm", content)).pixels, pixels)


def test_padding_beyond_the_bits_stored_survives_compression(tmp_path):
    words = np.clip(PIXELS, 100, 3000)
    words[:3] = 61440
    stated = {"PixelPaddingValue": 61440}
    plain = read_image(put(tmp_path / "p.dcm", build(words, **stated)))
    stream = compress(words, "RLELossless", 16, tmp_path)
    packed = read_image(put(tmp_path / "c.dcm", wrap(stream, words, "RLELossless", 12, **stated)))
    for image in (plain, packed):
        assert np.array_equal(image.padding, words == 61440)
        assert image.pixels.max() <= 4095
    assert np.array_equal(plain.pixels, packed.pixels)
