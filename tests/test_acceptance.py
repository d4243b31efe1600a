import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGExtended12Bit, SecondaryCaptureImageStorage
from slices import MR, write_pet, write_slice

import unary
from unary.clinic.acceptance import Check, Checks, check_file, check_files, describe_checks, format_checks
from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import REASONS, ImageError, UnaryError
from unary.images.isolation import IsolatedReader
from unary.images.isolation_process import ReadingLimits
from unary.images.reading import read_image
from unary.models.bundle import read_model, write_model
from unary.models.domain import compare_domain, describe_image, join_domains
from unary.models.fitting import FitConfig, fit
from unary.models.gate import ACCEPTABLE, Gate, build_gate
from unary.patches.preparation import PreparationConfig
from unary.profiles import GENERAL, MAMMOGRAPHY
from unary.records import Domain

CANARY = "Canary^Secret"
PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("acceptance") / "original.dcm"
    phantom = build_phantom(PhantomConfig(rows=256, cols=192, spacing_mm=0.15), rng=np.random.default_rng(5))
    write_phantom(phantom, path, image_id="i", patient_id="p")
    return path


@pytest.fixture(scope="module")
def domain(original):
    return describe_image(read_image(original))


@pytest.fixture(scope="module")
def reader():
    with IsolatedReader(ReadingLimits(timeout_s=30)) as reader:
        yield reader


def change(original, path, **elements):
    dataset = pydicom.dcmread(original)
    dataset.PatientName = CANARY
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def code(value, **more):
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", "a code"
    for name, content in more.items():
        setattr(item, name, content)
    return item


def modified(value):
    return [code("399162004", ViewModifierCodeSequence=[code(value)])]


REFUSED = {
    "implant": ({"BreastImplantPresent": "YES"}, "IMPLANT"),
    "implant displaced": ({"ViewCodeSequence": modified("399209000")}, "IMPLANT"),
    "implant displaced, old code": ({"ViewCodeSequence": modified("R-102D5")}, "IMPLANT"),
    "magnification": ({"ViewCodeSequence": modified("399163009")}, "MAGNIFICATION"),
    "spot compression": ({"ViewCodeSequence": modified("R-102D7")}, "MAGNIFICATION"),
    "magnified": ({"EstimatedRadiographicMagnificationFactor": "1.5"}, "MAGNIFICATION"),
    "partial": ({"PartialView": "YES"}, "PARTIAL_VIEW"),
    "test object": ({"QualityControlImage": "YES"}, "QC_IMAGE"),
    "calibration": ({"CalibrationImage": "YES"}, "QC_IMAGE"),
    "specimen": ({"ViewCodeSequence": [code("127457009")]}, "SPECIMEN"),
    "specimen by body part": ({"BodyPartExamined": "BREAST SPECIMEN"}, "SPECIMEN"),
    "computed tomography": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"}, "NOT_MG"),
    "secondary capture": ({"SOPClassUID": SecondaryCaptureImageStorage}, "SECONDARY_CAPTURE"),
    "tomosynthesis": ({"SOPClassUID": TOMOSYNTHESIS, "NumberOfFrames": 40}, "MULTIFRAME"),
    "raw": ({"SOPClassUID": PROCESSING}, "FOR_PROCESSING_MODEL_MISMATCH"),
    "colour": ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "COLOUR"),
    "cut": ({"Rows": 300}, "CORRUPT_PIXELS"),
    "huge": ({"Rows": 65535, "Columns": 65535}, "TOO_LARGE"),
    "report": ({"Modality": "SR"}, "NOT_AN_IMAGE"),
    "blank": ({"PixelData": bytes(256 * 192 * 2)}, "BLANK"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_reason_is_named(original, domain, reader, name, tmp_path, caplog, capfd):
    elements, reason = REFUSED[name]
    path = change(original, tmp_path / "changed.dcm", **elements)
    check = check_file(path, reader, Gate(domain=domain))
    assert (check.accepted, check.reason) == (False, reason)
    assert check.detail
    assert check.reason in REASONS
    said = format_checks(Checks((check,), {})) + repr(check) + caplog.text + "".join(capfd.readouterr())
    assert "Canary" not in said


@pytest.fixture(scope="module")
def model_folder(normals, tmp_path_factory):
    """Return the folder of a model that needs the pixel spacing."""
    folder = tmp_path_factory.mktemp("model") / "laplacian"
    model = fit(normals, FitConfig(held_out=0.0, working_spacing_mm=0.2), detector="laplacian", progress=False)
    write_model(model, folder)
    return folder


UNUSABLE = {
    **REFUSED,
    "no tissue": ({"PixelData": np.tile(np.uint16([900, 901]), 256 * 96).tobytes()}, "BLANK"),
    "no spacing": ({"ImagerPixelSpacing": None}, "NO_SPACING"),
    "micrometres": ({"ImagerPixelSpacing": [150.0, 150.0]}, "IMPLAUSIBLE_SPACING"),
}


def test_check_and_detect_agree_on_every_file_and_so_does_python(original, reader, model_folder, tmp_path):
    model = read_model(model_folder)
    expected = {"sound": None}
    shutil.copy(original, tmp_path / "sound.dcm")
    for name, (elements, reason) in UNUSABLE.items():
        change(original, tmp_path / f"{name}.dcm", **elements)
        expected[name] = reason
    for name, content, reason in (("text", b"no image", "NOT_READABLE"), ("empty", b"", "NOT_READABLE")):
        (tmp_path / f"{name}.dcm").write_bytes(content)
        expected[name] = reason
    PIL.Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(50, 80)).save(tmp_path / "raster.png")
    expected["raster"] = "NO_SPACING"
    checked = {check.path.stem: check for check in check_files([tmp_path], build_gate(model), progress=False).files}
    assert {name: check.reason for name, check in checked.items()} == expected
    config = DetectConfig(dicom=())
    summary = detect_files(model, [tmp_path], tmp_path / "out", config, model_folder=model_folder, progress=False)
    detected = {Path(failure.file).stem: failure for failure in summary.failed}
    assert summary.done == ("sound",)
    for name, failure in detected.items():
        assert (failure.reason, failure.detail) == (checked[name].reason, checked[name].detail)
        with pytest.raises(ImageError) as caught:
            unary.detect(model, Path(failure.file))
        assert caught.value.reason in (failure.reason, "CORRUPT_PIXELS"), "unlimited here, a huge image is a cut one"


@pytest.mark.parametrize("reason", [reason for reason in ACCEPTABLE if reason in {one for _, one in REFUSED.values()}])
def test_a_reason_that_is_accepted_by_name_lets_pass_and_is_noted_everywhere(
    original, reader, model_folder, tmp_path, reason
):
    model = read_model(model_folder)
    elements = next(elements for elements, each in REFUSED.values() if each == reason)
    path = change(original, tmp_path / "a.dcm", **elements)
    if reason == "NOT_MG":  # of a CT slice, what its values mean must be stated
        path = change(path, path, RescaleSlope="1", RescaleIntercept="0")
    gate = build_gate(model, accept=(reason,))
    check = check_file(path, reader, gate)
    assert check.accepted, check
    assert check.notes[0].startswith(f"accepted despite {reason}: ")
    assert check.notes[0] in unary.detect(model, path, accept=(reason,)).notes
    config = DetectConfig(dicom=(), accept=(reason,))
    detect_files(model, [path], tmp_path / "out", config, model_folder=model_folder, progress=False)
    result = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    assert result["accepted_despite"] == [reason]
    assert check.notes[0] in result["notes"]


def test_what_cannot_be_read_cannot_be_accepted():
    for reason in ("MULTIFRAME", "CORRUPT_PIXELS", "anything"):
        with pytest.raises(UnaryError, match=f"'{reason}' cannot be accepted; these can: NOT_MG"):
            Gate(accept=(reason,))


ACCEPTED = {
    "plain": {},
    "contact magnification": {"EstimatedRadiographicMagnificationFactor": "1.08"},
    "nothing stated": {"BreastImplantPresent": None, "PartialView": "", "ViewCodeSequence": None},
    "rolled": {"ViewCodeSequence": modified("399197002")},
    "no implant": {"BreastImplantPresent": "NO", "QualityControlImage": "NO"},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_ordinary_mammograms_are_accepted(original, domain, reader, name, tmp_path):
    check = check_file(change(original, tmp_path / "changed.dcm", **ACCEPTED[name]), reader, Gate(domain=domain))
    assert check.accepted, check
    assert check.reason is None
    assert check.notes == ()


STORAGE = "1.2.840.10008.5.1.4.1.1."
RESCALED = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
# Elements, then what mammography and general say of them; None for accepted.
HEADERS = {
    "mammogram": ({}, None, None),
    "raw mammogram": ({"SOPClassUID": PROCESSING}, None, None),
    "chest film": ({"SOPClassUID": STORAGE + "1.1", "Modality": "DX"}, "NOT_MG", None),
    "raw chest film": ({"SOPClassUID": STORAGE + "1.1.1", "Modality": "DX"}, "NOT_MG", None),
    "computed radiograph": ({"SOPClassUID": STORAGE + "1", "Modality": "CR"}, "NOT_MG", None),
    "CT": ({"SOPClassUID": STORAGE + "2", "Modality": "CT", **RESCALED}, "NOT_MG", None),
    "CT without rescale": ({"SOPClassUID": STORAGE + "2", "RescaleSlope": None}, "NOT_MG", "NO_RESCALE"),
    "MR": ({"SOPClassUID": STORAGE + "4", "Modality": "MR"}, "NOT_MG", None),
    "PET": ({"SOPClassUID": STORAGE + "128", "Modality": "PT", **RESCALED}, "NOT_MG", None),
    "enhanced CT": ({"SOPClassUID": STORAGE + "2.1", "Modality": "CT"}, "MULTIFRAME", "MULTIFRAME"),
    "tomosynthesis of one frame": ({"SOPClassUID": TOMOSYNTHESIS}, "MULTIFRAME", "MULTIFRAME"),
    "cine": ({"NumberOfFrames": 9}, "MULTIFRAME", "MULTIFRAME"),
    "capture": ({"SOPClassUID": SecondaryCaptureImageStorage}, "SECONDARY_CAPTURE", "SECONDARY_CAPTURE"),
    "odd capture": ({"SOPClassUID": STORAGE + "7.2", "Modality": "US"}, "NOT_MG", "SECONDARY_CAPTURE"),
    "test object": ({"QualityControlImage": "YES"}, "QC_IMAGE", "QC_IMAGE"),
    "implant": ({"BreastImplantPresent": "YES"}, "IMPLANT", None),
    "magnified": ({"EstimatedRadiographicMagnificationFactor": "1.2"}, "MAGNIFICATION", None),
    "specimen": ({"BodyPartExamined": "A SPECIMEN"}, "SPECIMEN", None),
    "partial": ({"PartialView": "YES"}, "PARTIAL_VIEW", None),
    "colour": ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "COLOUR", "COLOUR"),
    "report": ({"Modality": "SR"}, "NOT_AN_IMAGE", "NOT_AN_IMAGE"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_each_profile_takes_its_own_kinds_of_image(original, reader, name, tmp_path):
    elements, mammography, general = HEADERS[name]
    path = change(original, tmp_path / "changed.dcm", **elements)
    for profile, reason in ((MAMMOGRAPHY, mammography), (GENERAL, general)):
        check = check_file(path, reader, Gate(profile))
        assert (check.accepted, check.reason) == (reason is None, reason), profile.name
        assert reason is None or check.detail
        if profile is GENERAL:
            assert "mammo" not in format_checks(Checks((check,), {})).lower()


def test_a_flag_that_only_one_profile_has_is_noted_by_it_alone(original, reader, tmp_path):
    path = change(original, tmp_path / "c.dcm", ContrastBolusAgent="Iodine")
    assert check_file(path, reader).notes == ("from a contrast-enhanced examination",)
    assert check_file(path, reader, Gate(GENERAL)).notes == ()
    assert check_file(path, reader, Gate(GENERAL, strict=True)).accepted


def test_captures_of_any_imaging_modality_are_taken_by_general_when_asked_for(original, reader, tmp_path):
    gate = Gate(GENERAL, accept=("SECONDARY_CAPTURE",))
    for modality, accepted in (("CT", True), ("DX", True), ("MG", True), ("US", False)):
        path = change(original, tmp_path / "sc.dcm", SOPClassUID=SecondaryCaptureImageStorage, Modality=modality)
        assert check_file(path, reader, Gate(GENERAL)).reason == "SECONDARY_CAPTURE"
        assert check_file(path, reader, gate).accepted
        assert ("a scanned film" in check_file(path, reader, gate).notes[0]) == accepted


@pytest.mark.parametrize(
    ("elements", "notes"),
    [
        ({"Units": "GML"}, ()),
        ({"Units": "GML", "SUVType": "LBM"}, ()),
        (
            {"Units": "BQML"},
            (
                "values in BQML, which are comparable within one examination alone: they depend on dose, time and "
                "weight, and no SUV is computed",
            ),
        ),
        ({"Units": None}, ("not stated: units",)),
        ({"Units": "CNTS"}, ("values in CNTS, which are comparable within one examination alone",)),
        (
            {"Units": "CNTS", "DecayCorrection": "NONE"},
            ("values in CNTS without decay correction, which are comparable within one examination alone",),
        ),
        ({"Units": "Canary^Secret"}, ("not stated: units",)),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_units_of_pet_are_told_where_they_compare_within_one_examination_alone(
    original, reader, elements, notes, tmp_path
):
    pet = {"SOPClassUID": STORAGE + "128", "Modality": "PT", "PixelSpacing": [4.0, 4.0], "ImagerPixelSpacing": None}
    pet |= RESCALED
    path = change(original, tmp_path / "pet.dcm", **pet, **elements)
    assert check_file(path, reader, Gate(GENERAL)).notes == notes


def test_slices_of_another_maker_are_accepted_by_general_alone(reader):
    for name in ("CT_small.dcm", "MR_small.dcm"):
        path = Path(get_testdata_file(name))
        assert check_file(path, reader, Gate(GENERAL)) == Check(path, True)
        assert check_file(path, reader).reason == "NOT_MG"


def test_a_photograph_of_a_film_is_accepted_and_said_to_be_lossy(reader, tmp_path):
    pixels = (np.arange(4000).reshape(50, 80) % 250).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "film.jpg")
    PIL.Image.fromarray(np.stack([pixels, pixels, 255 - pixels], axis=-1)).save(tmp_path / "colour.jpeg")
    checks = check_files([tmp_path], Gate(GENERAL), progress=False)
    assert [(check.path.name, check.reason) for check in checks.files] == [
        ("colour.jpeg", "COLOUR"),
        ("film.jpg", None),
    ]
    assert checks.files[1].notes[1:] == ("has been compressed with loss",)


def test_secondary_captures_are_taken_when_asked_for(original, reader, tmp_path):
    gate = Gate(accept=("SECONDARY_CAPTURE",))
    path = change(original, tmp_path / "sc.dcm", SOPClassUID=SecondaryCaptureImageStorage, PresentationIntentType=None)
    assert check_file(path, reader).reason == "SECONDARY_CAPTURE"
    check = check_file(path, reader, gate)
    assert check.accepted
    passed, missing = check.notes
    assert passed.startswith("accepted despite SECONDARY_CAPTURE: a secondary capture of modality MG")
    assert missing == "not stated: presentation intent"
    other = change(original, tmp_path / "ot.dcm", SOPClassUID=SecondaryCaptureImageStorage, Modality="OT")
    assert check_file(other, reader, gate).reason == "NOT_MG"


def test_unsupported_compression_is_told_without_decoding(original, reader, tmp_path):
    dataset = pydicom.dcmread(original)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    dataset.save_as(tmp_path / "lossy.dcm", enforce_file_format=True)
    for headers_only in (True, False):
        check = check_file(tmp_path / "lossy.dcm", reader, headers_only=headers_only)
        assert check.reason == "UNSUPPORTED_SYNTAX"


def test_headers_alone_do_not_show_damage_inside_the_pixels(original, reader, tmp_path):
    path = change(original, tmp_path / "cut.dcm", Rows=300)
    assert check_file(path, reader, headers_only=True).accepted
    assert check_file(path, reader).reason == "CORRUPT_PIXELS"


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"ImagerPixelSpacing": ["0", "0"]}, "ImagerPixelSpacing is 0\\0; two positive numbers are needed"),
        ({"ImagerPixelSpacing": ["-1", "0.1"]}, "ImagerPixelSpacing is -1\\0.1; two positive numbers are needed"),
        (
            {"EstimatedRadiographicMagnificationFactor": "0"},
            "EstimatedRadiographicMagnificationFactor is 0; a positive",
        ),
    ],
)
def test_a_spacing_that_cannot_be_used_is_named_with_its_value(original, reader, tmp_path, elements, said):
    path = change(original, tmp_path / "n.dcm", **elements)
    needed = Gate(preparation=PreparationConfig(working_spacing_mm=0.2))
    check = check_file(path, reader, needed)
    assert check.reason == "NO_SPACING"
    assert check.detail.startswith(said)
    assert "not stated" not in "".join((check.detail, *check_file(path, reader).notes))


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"SOPClassUID": "1.2.3.4.5"}, "its SOPClassUID is 1.2.3.4.5, its modality MG"),
        ({"SOPClassUID": None}, "its SOPClassUID is not stated, its modality MG"),
        ({"SOPClassUID": TOMOSYNTHESIS}, f"1 frame, SOPClassUID {TOMOSYNTHESIS}: tomosynthesis"),
    ],
)
def test_another_kind_of_object_is_named(original, reader, tmp_path, elements, said):
    check = check_file(change(original, tmp_path / "n.dcm", **elements), reader)
    assert said in check.detail


def test_spacing_is_asked_for_only_when_the_model_needs_it(original, reader, tmp_path):
    path = change(original, tmp_path / "n.dcm", ImagerPixelSpacing=None)
    check = check_file(path, reader)
    assert check.accepted
    assert check.notes == ("not stated: pixel spacing",)
    needed = Gate(preparation=PreparationConfig(working_spacing_mm=0.2))
    assert check_file(path, reader, needed).reason == "NO_SPACING"
    assert "--spacing-mm" in check_file(path, reader, needed).detail
    assert check_file(path, reader, replace(needed, spacing_mm=0.15)).accepted


def test_presentation_intent_must_match_either_way(original, domain, reader, tmp_path):
    raw = change(original, tmp_path / "raw.dcm", SOPClassUID=PROCESSING)
    assert check_file(raw, reader).accepted
    assert check_file(raw, reader, Gate(domain=replace(domain, intents=("FOR PROCESSING",)))).accepted
    for both in (("FOR PRESENTATION", "FOR PROCESSING"), ()):
        assert check_file(raw, reader, Gate(domain=replace(domain, intents=both))).accepted
    check = check_file(original, reader, Gate(domain=replace(domain, intents=("FOR PROCESSING",))))
    assert check.reason == "FOR_PRESENTATION_MODEL_MISMATCH"
    assert "the model has seen FOR PROCESSING alone" in check.detail


@pytest.mark.parametrize(
    ("elements", "reason", "words"),
    [
        ({"ImageType": ["DERIVED", "PRIMARY", "", "GENERATED_2D"]}, "SYNTHETIC_2D", "tomosynthesis"),
        ({"SeriesDescription": "L CC C-View"}, "SYNTHETIC_2D", "tomosynthesis"),
        ({"ContrastBolusAgent": "Iodine"}, "CONTRAST_ENHANCED", "contrast"),
        ({"ImageType": ["DERIVED", "PRIMARY", "", "RECOMBINED"]}, "CONTRAST_ENHANCED", "contrast"),
        ({"Manufacturer": "Another\nmaker"}, "OUT_OF_DOMAIN", "manufacturer Anothermaker, the model has seen unary"),
        ({"ManufacturerModelName": "Mammo 3000"}, "OUT_OF_DOMAIN", "equipment model Mammo 3000"),
        ({"ImagerPixelSpacing": [0.07, 0.07]}, "OUT_OF_DOMAIN", "pixel spacing 0.07 mm, the model has seen 0.15"),
        ({"BitsStored": 14, "HighBit": 13}, "OUT_OF_DOMAIN", "14 bits per pixel, the model has seen 12 alone"),
        ({"RescaleSlope": 3}, "OUT_OF_DOMAIN", "bright pixels"),
    ],
)
def test_the_unusual_is_noted_and_refused_only_when_strict(original, domain, reader, elements, reason, words, tmp_path):
    path = change(original, tmp_path / "changed.dcm", **elements)
    check = check_file(path, reader, Gate(domain=domain))
    assert check.accepted
    assert len(check.notes) == 1
    assert words in check.notes[0]
    assert check.notes[0].isprintable()
    strict = check_file(path, reader, Gate(domain=domain, strict=True))
    assert (strict.accepted, strict.reason) == (False, reason)
    assert strict.detail == check.notes[0]


def test_further_reasons_stand_in_the_notes(original, reader, tmp_path):
    path = change(
        original, tmp_path / "c.dcm", BreastImplantPresent="YES", PartialView="YES", LossyImageCompression="01"
    )
    check = check_file(path, reader)
    assert check.reason == "IMPLANT"
    assert check.notes == ("also PARTIAL_VIEW: it shows only a part of the breast", "has been compressed with loss")


def test_a_raster_is_accepted_and_says_what_it_cannot_say(domain, reader, tmp_path):
    pixels = (np.arange(4000).reshape(50, 80) % 2700).astype(np.uint16)
    PIL.Image.fromarray(pixels).save(tmp_path / "r.png")
    check = check_file(tmp_path / "r.png", reader, Gate(domain=domain))
    assert check.accepted
    assert check.notes[0].startswith("a raster: presentation intent, equipment, pixel spacing")
    assert check.notes[1] == "16 bits per pixel, the model has seen 12 alone"
    needed = Gate(preparation=PreparationConfig(working_spacing_mm=0.2))
    assert check_file(tmp_path / "r.png", reader, needed).reason == "NO_SPACING"


def test_one_bad_file_never_stops_the_others(original, tmp_path):
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "none").mkdir()
    content = original.read_bytes()
    (tmp_path / "in" / "a.dcm").write_bytes(content)
    (tmp_path / "in" / "b.dcm").write_bytes(content[:9000])
    (tmp_path / "in" / "c\nd.dcm").write_bytes(b"")
    (tmp_path / "in" / "below" / "e").write_bytes(content)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    inputs = [
        tmp_path / "in",
        tmp_path / "none",
        tmp_path / "missing.dcm",
        Path("nul\0"),
        tmp_path / "in" / "notes.txt",
    ]
    checks = check_files(inputs, progress=False)
    assert [(c.path.name, c.reason) for c in checks.files] == [
        ("a.dcm", None),
        ("b.dcm", "CORRUPT_PIXELS"),
        ("e", None),
        ("c\nd.dcm", "NOT_READABLE"),
        ("none", "NOT_READABLE"),
        ("missing.dcm", "NOT_READABLE"),
        ("nul\0", "NOT_READABLE"),
        ("notes.txt", "NOT_READABLE"),
    ]
    text = format_checks(checks)
    assert len(text.splitlines()) == 10
    assert text.splitlines()[-2] == f"left out: 1 of another kind ({tmp_path / 'in' / 'notes.txt'})"
    assert text.splitlines()[0] == f"accepted {tmp_path / 'in' / 'a.dcm'}"
    assert text.splitlines()[1].startswith(f"refused  CORRUPT_PIXELS: {tmp_path / 'in' / 'b.dcm'}: ")
    assert text.splitlines()[-1] == "8 files: 2 accepted, 1 CORRUPT_PIXELS, 5 NOT_READABLE"
    written = json.loads(json.dumps(describe_checks(checks)))
    assert written["accepted"] == 2
    assert written["refused"] == {"CORRUPT_PIXELS": 1, "NOT_READABLE": 5}
    assert [Path(row["path"]) for row in written["files"]] == [check.path for check in checks.files]
    assert written["files"][1]["detail"] == checks.files[1].detail
    assert written["left_out"] == {"of another kind": [str(tmp_path / "in" / "notes.txt")]}


def test_the_same_file_given_twice_is_checked_once(original):
    again = original.parent / ".." / original.parent.name / original.name
    assert len(check_files([original, original.parent, again], progress=False).files) == 1


def test_a_refusal_that_can_be_passed_says_how():
    implant = Check(Path("a.dcm"), False, "IMPLANT", "an implant")
    blank = Check(Path("b.dcm"), False, "BLANK", "no pixel")
    assert "--accept IMPLANT" in format_checks(Checks((implant, blank), {})).splitlines()[-2]
    assert "--accept" not in format_checks(Checks((blank,), {}))


def test_no_input_is_no_error():
    nothing = check_files([], progress=False)
    assert nothing == Checks((), {})
    assert format_checks(nothing) == "0 files: 0 accepted"


def test_an_image_never_differs_from_a_domain_that_it_is_part_of(original, tmp_path):
    paths = [
        original,
        change(original, tmp_path / "a.dcm", Manufacturer="B", ImagerPixelSpacing=[0.05, 0.06]),
        change(original, tmp_path / "b.dcm", RescaleSlope=9, SOPClassUID=PROCESSING),
    ]
    images = [read_image(path) for path in paths]
    whole = join_domains(describe_image(image) for image in images)
    for image in images:
        assert list(compare_domain(image, whole)) == []
        assert list(compare_domain(image, Domain())) == []
        assert list(compare_domain(image, describe_image(image))) == []
    assert whole == join_domains([describe_image(image) for image in images[::-1]])
    assert join_domains([whole, whole]) == whole
    assert whole.manufacturers == ("B", "unary")
    assert whole.spacing_mm == (0.05, 0.15)
    assert next(compare_domain(images[2], describe_image(images[1]))) == (
        "presentation intent FOR PROCESSING, the model has seen FOR PRESENTATION alone"
    )


def test_spacing_has_a_tolerance_of_a_tenth(original):
    image = read_image(original)
    domain = Domain(spacing_mm=(0.05, 0.07))
    for value, differs in ((0.045, False), (0.0449, True), (0.077, False), (0.0771, True), (0.06, False)):
        assert bool(list(compare_domain(replace(image, spacing_mm=(0.06, value)), domain))) == differs


def test_brightness_leaves_padding_out(original):
    image = read_image(original)
    padding = np.zeros(image.shape, bool)
    padding[:100] = True
    pixels = image.pixels.copy()
    pixels[:100] = 4095
    padded = describe_image(replace(image, pixels=pixels, padding=padding))
    alone = describe_image(replace(image, pixels=image.pixels[100:]))
    assert padded.brightness == alone.brightness
    everything = replace(image, padding=np.ones(image.shape, bool))
    assert describe_image(everything).brightness is None


def test_every_reason_is_explained():
    text = (Path(__file__).parents[1] / "docs" / "input.md").read_text(encoding="utf-8")
    assert [reason for reason in REASONS if f"`{reason}`" not in text] == []


def test_a_model_of_hounsfield_units_takes_no_other_values(tmp_path, reader):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    ct = write_slice(tmp_path / "ct.dcm", ramp)
    known = describe_image(read_image(ct))
    assert (known.modalities, known.units) == (("CT",), ("HU",))
    gate = Gate(GENERAL, domain=replace(known, bits=()))
    assert check_file(ct, reader, gate).accepted
    mr = {"SOPClassUID": MR, "Modality": "MR"}
    for path, said in (
        (write_pet(tmp_path / "pet.dcm", ramp, slope=1.0), "values in BQML, the model has learned from HU alone"),
        (write_slice(tmp_path / "mr.dcm", ramp, **mr), r"values in no unit (MR), the model has learned from HU alone"),
        (write_slice(tmp_path / "us.dcm", ramp, RescaleType="US"), "values in US, the model has learned from HU alone"),
    ):
        check = check_file(path, reader, gate)
        assert (check.reason, check.detail) == ("UNITS_MODEL_MISMATCH", said)
        passed = check_file(path, reader, replace(gate, accept=("UNITS_MODEL_MISMATCH",)))
        assert f"accepted despite UNITS_MODEL_MISMATCH: {said}" in passed.notes
    PIL.Image.fromarray(ramp).save(tmp_path / "r.png")
    assert check_file(tmp_path / "r.png", reader, gate).accepted, "of a raster nothing is known"
    attenuated = describe_image(read_image(write_pet(tmp_path / "pet.dcm", ramp, slope=1.0)))
    nac = write_pet(tmp_path / "nac.dcm", ramp, slope=1.0, CorrectedImage=["DECY", "RAN"])
    assert check_file(nac, reader, Gate(GENERAL, domain=attenuated)).reason == "UNITS_MODEL_MISMATCH"


def test_a_localizer_is_no_slice(tmp_path, reader):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = write_slice(tmp_path / "l.dcm", ramp, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"])
    assert check_file(path, reader, Gate(GENERAL)).reason == "LOCALIZER"
    assert check_file(path, reader, Gate(GENERAL, accept=("LOCALIZER",))).accepted
