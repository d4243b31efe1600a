import hashlib
import io
import logging
import warnings

import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import ImageError
from unary.images.dicom import read_header
from unary.images.reading import read_image

CANARY = "Canary^Secret"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("dicom") / "original.dcm"
    phantom = build_phantom(PhantomConfig(rows=384, cols=320), rng=np.random.default_rng(5), view="MLO", laterality="R")
    write_phantom(phantom, path, image_id="i", patient_id="p")
    return path, phantom


def change(original, tmp_path, **elements):
    dataset = pydicom.dcmread(original[0])
    for name, value in elements.items():
        if name.startswith("PixelPadding"):
            dataset.add_new(name, "US", value)
        else:
            setattr(dataset, name, value)
    path = tmp_path / "changed.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_pixels_and_attributes(original):
    image = read_image(original[0])
    assert (image.pixels == original[1].pixels).all()
    assert image.value_range == (0, 4095)
    assert image.spacing_mm == (original[1].spacing_mm,) * 2
    assert (image.view, image.laterality, image.intent) == ("MLO", "R", "FOR PRESENTATION")
    assert image.padding is None
    assert "p" not in repr(image).split("(")[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_lossless_compression_is_exact(original, syntax, tmp_path):
    dataset = pydicom.dcmread(original[0])
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(tmp_path / "c.dcm", enforce_file_format=True)
    assert (read_image(tmp_path / "c.dcm").pixels == original[1].pixels).all()


@pytest.mark.parametrize(("syntax", "little"), [(ImplicitVRLittleEndian, True), (ExplicitVRBigEndian, False)])
def test_other_encodings(original, syntax, little, tmp_path):
    dataset = pydicom.dcmread(original[0])
    if not little:
        dataset.PixelData = original[1].pixels.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset = pydicom.Dataset({element.tag: element for element in dataset})  # forgets how it was read
    dataset.file_meta = pydicom.dcmread(original[0]).file_meta
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(tmp_path / "e.dcm", dataset, enforce_file_format=True)
    assert (read_image(tmp_path / "e.dcm").pixels == original[1].pixels).all()


def test_monochrome1_is_inverted_and_padding_found_before(original, tmp_path):
    stored = 4095 - original[1].pixels
    stored[:10] = 4000
    path = change(
        original,
        tmp_path,
        PhotometricInterpretation="MONOCHROME1",
        PixelData=stored.tobytes(),
        PixelPaddingValue=4000,
    )
    image = read_image(path)
    assert (image.pixels[10:] == original[1].pixels[10:]).all()
    assert image.padding[:10].all()
    assert (image.padding == (stored == 4000)).all()


def test_padding_range_and_rescale(original, tmp_path):
    path = change(
        original, tmp_path, PixelPaddingValue=0, PixelPaddingRangeLimit=50, RescaleSlope=2, RescaleIntercept=-7
    )
    image = read_image(path)
    assert (image.padding == (original[1].pixels <= 50)).all()
    assert np.array_equal(image.pixels, original[1].pixels * 2.0 - 7)
    assert image.value_range == (-7, 4095 * 2 - 7)


def test_spacing_is_what_the_file_states(original, tmp_path):
    assert read_image(
        change(original, tmp_path, ImagerPixelSpacing=[0.1, 0.2], EstimatedRadiographicMagnificationFactor=2)
    ).spacing_mm == (0.05, 0.1)
    assert read_image(change(original, tmp_path, PixelSpacing=[0.3, 0.4])).spacing_mm == (0.3, 0.4)
    assert read_image(change(original, tmp_path, ImagerPixelSpacing=None)).spacing_mm is None


def test_view_code_wins_over_view_position(original, tmp_path):
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "R-10242", "SRT", "cranio-caudal"
    assert read_image(change(original, tmp_path, ViewCodeSequence=[item], ViewPosition="MLO")).view == "CC"
    assert read_image(change(original, tmp_path, ViewCodeSequence=None, ViewPosition="ML")).view == "ML"


@pytest.mark.parametrize(
    ("elements", "cause"),
    [
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "PhotometricInterpretation is RGB"),
        ({"Modality": "SR"}, "Modality SR"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000"),
        ({"Rows": 500}, "truncated, damaged"),
        ({"Columns": 10}, "holds|damaged"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(original, elements, cause, tmp_path):
    with pytest.raises(ImageError, match=cause) as caught:
        read_image(change(original, tmp_path, **elements))
    assert "changed.dcm" in str(caught.value)


def test_deflated_truncated_and_headless_files(original, tmp_path):
    dataset = pydicom.dcmread(original[0])
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    content = original[0].read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: len(content) // 2])
    (tmp_path / "stub.dcm").write_bytes(content[:140])
    (tmp_path / "text.dcm").write_text("not DICOM at all")
    for name, cause in [
        ("deflated.dcm", "deflate"),
        ("cut.dcm", "truncated"),
        ("stub.dcm", "damaged|without pixels"),
        ("text.dcm", "not a DICOM file"),
    ]:
        with pytest.raises(ImageError, match=cause) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


def test_a_report_has_no_pixels(original, tmp_path):
    dataset = pydicom.dcmread(original[0])
    del dataset.PixelData
    dataset.save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    with pytest.raises(ImageError, match="without pixels"):
        read_image(tmp_path / "sr.dcm")


def test_no_patient_data_in_messages_warnings_or_repr(original, tmp_path, caplog, capfd):
    dataset = pydicom.dcmread(original[0])
    dataset.PatientName = CANARY
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.add_new("PatientBirthDate", "DA", "1960-99-99x")
        dataset.save_as(tmp_path / "named.dcm", enforce_file_format=True)
    caplog.clear()  # of what writing said
    content = (tmp_path / "named.dcm").read_bytes()
    assert CANARY.encode() in content
    image = read_image(tmp_path / "named.dcm")
    (tmp_path / "cut.dcm").write_bytes(content[:-5000])
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "cut.dcm")
    printed = "".join(capfd.readouterr()) + caplog.text + repr(image) + str(caught.value)
    assert "Canary" not in printed
    assert "1960" not in printed


@pytest.mark.parametrize("name", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_what_another_encoder_wrote_is_exact(original, name, tmp_path):
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(original[0]))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "g.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "g.dcm").file_meta.TransferSyntaxUID.is_compressed
    assert (read_image(tmp_path / "g.dcm").pixels == original[1].pixels).all()


def test_a_run_past_the_end_of_the_image_does_not_end_the_program(original, tmp_path):
    header = np.array([2, 64, 70, *[0] * 13], "<u4").tobytes()
    frame = header + b"\x02abc\x00d" + b"\x81a\x81a"  # two rows of two pixels; the second segment unpacks to 256 bytes
    path = change(original, tmp_path, Rows=2, Columns=2, PixelData=encapsulate([frame]), BitsStored=16, HighBit=15)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(ImageError, match="damaged") as caught:  # a false number of rows would look the same
        read_image(path)
    assert caught.value.reason == "CORRUPT_PIXELS"


def test_signed_big_endian_and_monochrome1_keep_their_type(original, tmp_path):
    stored = original[1].pixels.astype(np.int16) - 2048
    path = change(
        original, tmp_path, PixelRepresentation=1, PixelData=stored.tobytes(), PhotometricInterpretation="MONOCHROME1"
    )
    image = read_image(path)
    assert image.pixels.dtype == np.int16
    assert image.value_range == (-2048, 2047)
    assert (image.pixels == -1 - stored.astype(int)).all()


def test_unused_high_bits_do_not_leak_into_the_pixels(original, tmp_path):
    path = change(
        original,
        tmp_path,
        PixelData=(original[1].pixels | 0x8000).tobytes(),
        PhotometricInterpretation="MONOCHROME1",
    )
    assert (read_image(path).pixels == 4095 - original[1].pixels).all()


def test_modality_table_and_hostile_rescale(original, tmp_path):
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [4096, 0, 16], "US"
    item.add_new("LUTData", "OW", (np.arange(4096, dtype=np.uint16)[::-1] * 16).tobytes())
    image = read_image(change(original, tmp_path, ModalityLUTSequence=[item]))
    assert (image.pixels == (4095 - original[1].pixels) * 16).all()
    assert image.value_range == (0, 65535)
    with pytest.raises(ImageError, match="not finite"):
        read_image(change(original, tmp_path, RescaleSlope="1e308", RescaleIntercept="1"))


def test_float_pixels_must_be_finite(original, tmp_path):
    values = original[1].pixels.astype(np.float32) / 7
    values[0, 0] = np.inf
    dataset = pydicom.dcmread(original[0])
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()
    dataset.save_as(tmp_path / "f.dcm", enforce_file_format=True)
    with pytest.raises(ImageError, match="not finite"):
        read_image(tmp_path / "f.dcm")
    values[0, 0] = 1
    dataset.FloatPixelData = values.tobytes()
    dataset.save_as(tmp_path / "f.dcm", enforce_file_format=True)
    assert (read_image(tmp_path / "f.dcm").pixels == values).all()


def test_a_repeated_detector_spacing_is_still_magnified(original, tmp_path):
    both = {"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 2}
    assert read_image(change(original, tmp_path, **both)).spacing_mm == (0.05, 0.05)
    calibrated = both | {"PixelSpacingCalibrationType": "GEOMETRY"}
    assert read_image(change(original, tmp_path, **calibrated)).spacing_mm == (0.1, 0.1)
    film = {"ImagerPixelSpacing": None, "NominalScannedPixelSpacing": [0.05, 0.05]}
    assert read_image(change(original, tmp_path, **film)).spacing_mm == (0.05, 0.05)


def test_header_tells_size_side_and_a_key_instead_of_the_identifier(original, tmp_path):
    path = change(original, tmp_path, PatientID=CANARY)
    header = read_header(path)
    assert header.shape == original[1].pixels.shape
    assert (header.view, header.laterality) == ("MLO", "R")
    assert header.patient_key == hashlib.sha256(CANARY.encode()).hexdigest()[:12]
    assert header.patient_key not in repr(header)
    assert read_header(change(original, tmp_path, PatientID="")).patient_key is None


@pytest.mark.parametrize("declared", ["ISO_IR 6", "ISO_IR 100", "ISO_IR 192", "ISO_IR 13", "GB18030", "ISO_IR 999"])
def test_identifiers_in_bytes_that_contradict_their_character_set_are_not_one_patient(original, tmp_path, declared):
    keys = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = change(original, tmp_path, PatientID="@@@@@@@@", SpecificCharacterSet=declared)
        stored = path.read_bytes()
        for identifier in (b"M\xfcller-1", b"M\xf6ller-1", b"M\xff\xfeler-1", b"M\xfe\xffler-1"):
            path.write_bytes(stored.replace(b"@" * 8, identifier))
            keys.add(read_header(path).patient_key)
    assert len(keys) == 4


def test_nesting_without_end_is_refused(original, tmp_path):
    dataset = pydicom.dcmread(original[0])
    inner = b""
    for _ in range(3000):
        item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner + b"\xfe\xff\x0d\xe0\x00\x00\x00\x00"
        inner = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    head = original[0].read_bytes()
    start = head.index(b"\x08\x00\x16\x00UI")
    (tmp_path / "deep.dcm").write_bytes(head[:start] + inner)
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    with pytest.raises(ImageError, match=r"deep\.dcm"):
        read_image(tmp_path / "deep.dcm")


def test_pydicoms_own_log_stays_silent_and_is_left_as_it_was(original, tmp_path, caplog):
    level = logging.getLogger("pydicom").level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(original[0])
        dataset.add_new("StudyDate", "DA", "1960-99-99x")
        dataset.save_as(tmp_path / "d.dcm", enforce_file_format=True)
    caplog.clear()
    read_image(tmp_path / "d.dcm")
    assert not caplog.records
    assert logging.getLogger("pydicom").level == level


def test_eight_bit_jpeg_is_what_pillow_makes_of_it(original, tmp_path):
    pixels = (original[1].pixels // 16).astype(np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    path = change(
        original, tmp_path, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=encapsulate([stream.getvalue()])
    )
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.save_as(path, enforce_file_format=True)
    image = read_image(path)
    decoded = np.asarray(PIL.Image.open(stream)).astype(int)
    assert abs(image.pixels - decoded).max() <= 1  # decoders may round differently
    assert image.value_range == (0, 255)


def test_slices_of_ct_come_in_hounsfield_units_exactly():
    path = get_testdata_file("CT_small.dcm")
    stored = pydicom.dcmread(path).pixel_array
    image = read_image(path)
    assert image.pixels.dtype == np.int32
    assert (image.pixels == stored.astype(int) - 1024).all()
    assert (image.pixels.min(), image.pixels.max()) == (-896, 1167)
    assert image.value_range == (-32768 - 1024, 32767 - 1024)
    assert image.spacing_mm == (0.661468, 0.661468)
    assert image.intent is None


def test_slices_of_mr_come_as_they_are_stored():
    path = get_testdata_file("MR_small.dcm")
    image = read_image(path)
    assert image.pixels.dtype == np.int16
    assert (image.pixels == pydicom.dcmread(path).pixel_array).all()
    assert image.spacing_mm == (0.3125, 0.3125)


@pytest.mark.parametrize(
    ("bits", "signed", "intercept", "dtype"),
    [
        (12, False, -1024, np.int16),
        (12, True, -1024, np.int16),
        (12, False, 30000, np.int32),  # the sum of both ends of its range is needed to invert it
        (16, False, -1024, np.int32),
        (16, True, 32768, np.int32),
        (16, False, 2**31 - 1, np.float32),
        (12, False, -1024.5, np.float32),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_whole_shift_keeps_whole_numbers(original, bits, signed, intercept, dtype, photometric, tmp_path):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = np.linspace(low, high, 384 * 320).astype(np.int16 if signed else np.uint16).reshape(384, 320)
    path = change(
        original,
        tmp_path,
        PixelRepresentation=int(signed),
        BitsStored=bits,
        HighBit=bits - 1,
        PixelData=stored.tobytes(),
        RescaleSlope="1",
        RescaleIntercept=str(intercept),
        PhotometricInterpretation=photometric,
    )
    image = read_image(path)
    assert image.pixels.dtype == dtype
    assert image.value_range == (low + intercept, high + intercept)
    expected = stored + float(intercept)
    expected = sum(image.value_range) - expected if photometric == "MONOCHROME1" else expected
    assert np.allclose(image.pixels, expected, rtol=0 if dtype is not np.float32 else 1e-6, atol=0)


def test_slices_of_pet_have_a_slope_each(original, tmp_path):
    pet = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Modality": "PT", "Units": "BQML", "RescaleIntercept": "0"}
    for slope in (0.37219, 11.90625):
        image = read_image(change(original, tmp_path, **pet, RescaleSlope=str(slope)))
        assert image.pixels.dtype == np.float32
        assert np.allclose(image.pixels, original[1].pixels * slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "RescaleIntercept": None}, "NO_RESCALE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "RescaleSlope": None}, "NO_RESCALE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "MULTIFRAME"),
        ({"SharedFunctionalGroupsSequence": [pydicom.Dataset()]}, "MULTIFRAME"),
        ({"RescaleSlope": "0"}, "CORRUPT_PIXELS"),
        ({"RescaleSlope": "1e300"}, "CORRUPT_PIXELS"),
    ],
)
def test_what_cannot_be_read_right_is_refused(original, elements, reason, tmp_path):
    with pytest.raises(ImageError) as caught:
        read_image(change(original, tmp_path, **elements))
    assert caught.value.reason == reason


def test_negative_padding_written_as_an_unsigned_number_is_found(original, tmp_path):
    stored = original[1].pixels.astype(np.int16)
    stored[:10] = -2000
    path = change(
        original,
        tmp_path,
        PixelRepresentation=1,
        BitsStored=16,
        HighBit=15,
        PixelData=stored.tobytes(),
        PixelPaddingValue=65536 - 2000,
    )
    image = read_image(path)
    assert (image.padding == (stored == -2000)).all()


@pytest.mark.parametrize(
    ("sop_class", "stated", "intent"),
    [
        ("1.2.840.10008.5.1.4.1.1.1.1", None, "FOR PRESENTATION"),
        ("1.2.840.10008.5.1.4.1.1.1.1.1", None, "FOR PROCESSING"),
        ("1.2.840.10008.5.1.4.1.1.1.3", None, "FOR PRESENTATION"),
        ("1.2.840.10008.5.1.4.1.1.1.3.1", "FOR PRESENTATION", "FOR PROCESSING"),
        ("1.2.840.10008.5.1.4.1.1.1", "FOR PROCESSING", "FOR PROCESSING"),
        ("1.2.840.10008.5.1.4.1.1.1", None, None),
        ("1.2.840.10008.5.1.4.1.1.1", CANARY, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_the_kind_of_object_says_its_presentation_intent(original, sop_class, stated, intent, tmp_path):
    path = change(original, tmp_path, SOPClassUID=sop_class, PresentationIntentType=stated)
    assert read_image(path).intent == intent


@pytest.mark.parametrize(("code", "view"), [("R-10206", "AP"), ("272479007", "PA"), ("399173006", "LL"), ("0", "XX")])
def test_views_of_the_chest(original, code, view, tmp_path):
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "a view"
    assert read_image(change(original, tmp_path, ViewCodeSequence=[item], ViewPosition="XX")).view == view
