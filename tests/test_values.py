import numpy as np
import pydicom
import pytest
from slices import MR, write_pet, write_slice

from unary.images.headers import read_attributes
from unary.images.isolation import IsolatedReader
from unary.images.reading import read_image
from unary.profiles import GENERAL

RAMP = np.arange(-1024, 3072, dtype=np.int16).reshape(64, 64)


def test_signed_and_unsigned_ct_come_to_the_same_hounsfield_units(tmp_path):
    unsigned = read_image(write_slice(tmp_path / "u.dcm", (RAMP + 1024).astype(np.uint16)))
    signed = read_image(write_slice(tmp_path / "s.dcm", RAMP, RescaleIntercept="0"))
    shifted = read_image(write_slice(tmp_path / "i.dcm", RAMP + np.int16(1024)))
    for image in (unsigned, signed, shifted):
        assert np.array_equal(image.pixels, RAMP)
        assert image.pixels.dtype.kind == "i", "never through floats"
        assert (image.modality, image.units, image.spacing_mm) == ("CT", "HU", (0.7, 0.7))


@pytest.mark.parametrize(("value", "limit"), [(-2000, None), (-2000, -1900)])
def test_what_lies_outside_the_field_of_view_of_ct_is_padding_as_stored(tmp_path, value, limit):
    stored = np.full((64, 64), 24, np.int16)
    stored[:, 32:] = RAMP[:, 32:]
    stored[:9] = value if limit is None else -1950
    image = read_image(write_slice(tmp_path / "c.dcm", stored, PixelPaddingValue=value, PixelPaddingRangeLimit=None))
    if limit is not None:
        dataset = pydicom.dcmread(tmp_path / "c.dcm")
        dataset.add_new("PixelPaddingRangeLimit", "SS", limit)
        dataset.save_as(tmp_path / "c.dcm")
        image = read_image(tmp_path / "c.dcm")
    assert image.padding is not None
    assert image.padding[:9].all()
    assert not image.padding[9:].any()
    assert image.pixels[20, 0] == 24 - 1024


def test_slices_of_one_pet_series_compare_after_their_own_slopes(tmp_path):
    activity = np.linspace(0, 30_000, 64 * 64).reshape(64, 64)
    images = [read_image(write_pet(tmp_path / "p.dcm", activity, slope=slope)) for slope in (0.923, 1.77)]
    for image, slope in zip(images, (0.923, 1.77), strict=True):
        assert image.pixels.dtype == np.float32
        assert np.abs(image.pixels - activity).max() <= slope / 2 + 0.01
        assert (image.modality, image.units) == ("PT", "BQML")
        assert image.notes == ()


@pytest.mark.parametrize(
    ("elements", "units"),
    [
        ({}, "BQML"),
        ({"Units": None}, None),
        ({"Units": "PROPCPS"}, "PROPCPS"),
        ({"Units": "CNTS", "DecayCorrection": "NONE"}, "CNTS without decay correction"),
        ({"DecayCorrection": "ADMIN"}, "BQML decay-corrected to the injection"),
        ({"CorrectedImage": ["DECY", "RAN"]}, "BQML without attenuation correction"),
        ({"CorrectedImage": "NORM", "DecayCorrection": None}, "BQML without attenuation and decay correction"),
        ({"CorrectedImage": None, "DecayCorrection": None}, "BQML"),
        ({"Units": "GML"}, "GML"),
        ({"Units": "GML", "SUVType": "BW"}, "GML"),
        ({"Units": "GML", "SUVType": "LBM"}, "GML by LBM"),
        ({"Units": "CM2ML", "SUVType": "BSA"}, "CM2ML"),
        ({"SOPClassUID": MR, "Modality": "MR"}, None),
    ],
)
def test_units_say_what_values_are_and_what_they_have_not_been_corrected_for(tmp_path, elements, units):
    path = write_pet(tmp_path / "p.dcm", np.arange(4096).reshape(64, 64), slope=0.5, **elements)
    assert read_image(path).units == units
    assert read_attributes(path, GENERAL.headers).units == units, "the header alone says the same"
    with IsolatedReader() as reader:
        assert (reader.read(path).units, reader.read(path).modality) == (units, elements.get("Modality", "PT"))


def test_corrections_that_contradict_each_other_are_noted(tmp_path):
    activity = np.arange(4096).reshape(64, 64)
    image = read_image(write_pet(tmp_path / "p.dcm", activity, slope=0.5, CorrectedImage="ATTN"))
    assert image.notes == ("DecayCorrection is START, but CorrectedImage does not list DECY: taken as corrected",)
    assert image.units == "BQML"
    image = read_image(write_pet(tmp_path / "p.dcm", activity, slope=0.5, DecayCorrection="NONE"))
    assert image.notes == ("DecayCorrection is NONE, but CorrectedImage lists DECY: taken as not corrected",)
    assert image.units == "BQML without decay correction"


def test_factors_that_stand_beside_the_rescale_are_noted_and_not_applied(tmp_path):
    path = write_slice(tmp_path / "m.dcm", RAMP, SOPClassUID=MR, Modality="MR", RescaleIntercept="0")
    plain = read_image(path)
    assert plain.notes == ()
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0E, "FL", 0.0123)
    dataset.RealWorldValueMappingSequence = [pydicom.Dataset()]
    dataset.save_as(path)
    image = read_image(path)
    assert np.array_equal(image.pixels, plain.pixels)
    assert [note.partition(" is stated")[0] for note in image.notes] == [
        "RealWorldValueMappingSequence",
        "Philips' scale slope of MR (2005,100E)",
    ]
