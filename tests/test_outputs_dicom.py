import errno
import logging
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut
from pydicom.sequence import Sequence

from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import DicomResultError, ImageError, MissingPackageError
from unary.images.checks import silencing
from unary.images.dicom import read_dicom
from unary.outputs.dicom import DEFAULT_KINDS, KINDS
from unary.outputs.dicom.capture import BANNER, draw_capture, explain_numbers, render_gray
from unary.outputs.dicom.header import Case, build_result, name_view
from unary.outputs.dicom.report import (
    ANOMALY_SCORE,
    DOMAIN,
    FINDING_COUNT,
    FINDING_KINDS,
    IMAGE_P_VALUE,
    IMAGE_SCORE,
    KIND,
    OUT_OF_DOMAIN,
    P_VALUE,
    SUMMARY,
    THRESHOLD,
    WITH_FINDINGS,
    WITHOUT_FINDINGS,
    build_report,
)
from unary.outputs.dicom.run import Run
from unary.outputs.dicom.segmentation import MOST_SEGMENTS, scale_map
from unary.outputs.dicom.source import extract_source, read_source
from unary.outputs.dicom.writing import write_dicom_results
from unary.profiles import GENERAL, MAMMOGRAPHY
from unary.records import NOTICE, Detection, Finding, ModelIdentity, OperatingPoint

VALIDATOR = Path(sys.executable).with_name("dciodvfy")
ZONE = timezone(timedelta(hours=1))
MOMENT = datetime(2026, 2, 3, 4, 5, 6, 789, ZONE)
IDENTITY = ModelIdentity("fusion", "0.1.0", "0123456789abcdef" * 4, "fedcba9876543210" * 4)
RUN = Run(IDENTITY, MAMMOGRAPHY.codes, MOMENT)
POINT = OperatingPoint("1", "finding", 1.0, 4.3210987654321, 0.9, True, 0.6, 41)
NAMES = {"SC": "Secondary Capture", "MG": "Digital Mammography"}
CANARY = "Canary^Zoë"


def make_detection(shape, *, count=3, spacing=True, point=POINT, out_of_domain=()):
    """Return a detection of rectangles in rows and columns of their own; the third is a vascular pattern."""
    rng = np.random.default_rng(count)
    labels = np.zeros(shape, np.uint8)
    findings = []
    side = int(np.ceil(np.sqrt(max(count, 1))))
    height, width = shape[0] // side, shape[1] // side
    for rank in range(1, count + 1):
        r0, c0 = (rank - 1) // side * height + 2, (rank - 1) % side * width + 3
        r1, c1 = r0 + max(height // 2, 3), c0 + max(width // 3, 3)
        labels[r0:r1, c0:c1] = rank
        labels[r0, c0] = 0  # no rectangle: the box cannot be told from the corners alone
        outline = ((r0 - 0.5, c0 + 0.5), (r0 - 0.5, c1 - 0.5), (r1 - 0.5, c1 - 0.5), (r1 - 0.5, c0 - 0.5))
        score = 20 / rank + float(rng.random())
        size = (float(rng.random()) * 30, float(rng.random()) * 9) if spacing else (None, None)
        p_value = None if point is None else float(rng.random())
        kind = "vascular pattern" if rank == 3 else "unusual region"
        findings.append(Finding(rank, score, p_value, (r0, c0, r1, c1), outline, (r0 + 1, c0 + 1), 1, *size, kind))
    score = findings[0].score if findings else 3.1234567
    p_value = None if point is None else 0.123456789
    return Detection(tuple(findings), labels, score, p_value, point, out_of_domain)


def strip_to_inbreast(dataset):
    """Leave what an INbreast file holds, in its layout."""
    kept = Dataset()
    kept.file_meta = dataset.file_meta
    for keyword in (
        "SOPClassUID", "SOPInstanceUID", "Modality", "PresentationIntentType", "ImagerPixelSpacing", "ViewPosition",
        "StudyInstanceUID", "SeriesInstanceUID", "ImageLaterality", "SamplesPerPixel", "PhotometricInterpretation",
        "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
    ):  # fmt: skip
        kept[keyword] = dataset[keyword]
    kept.PatientName = kept.PatientID = "removed"
    return kept


def turn_into_cbis(dataset):
    """A Secondary Capture without spacing or view, the view in the wrong attribute."""
    kept = strip_to_inbreast(dataset)
    for keyword in ("ImagerPixelSpacing", "ViewPosition", "ImageLaterality", "PresentationIntentType"):
        del kept[keyword]
    kept.SOPClassUID = kept.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    kept.SpecificCharacterSet, kept.ConversionType, kept.StudyID = "ISO_IR 100", "WSD", "DDSM"
    kept.PatientID, kept.PatientName = "Mass-Test_P_00001_LEFT_CC", "Mass-Test"
    kept.PatientOrientation = "CC"
    return kept


def turn_monochrome1(dataset):
    values = 4095 - dataset.pixel_array
    dataset.PixelData = values.astype("<u2").tobytes()
    dataset.PhotometricInterpretation, dataset.PresentationLUTShape = "MONOCHROME1", "INVERSE"
    dataset.WindowCenter = 4095 - 1700
    return dataset


def make_awkward(dataset):
    """What the field does to headers."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientSex = CANARY, "W"
    dataset.OtherPatientIDs, dataset.IssuerOfPatientID = ["A1", "B2"], "Klinik Süd"
    dataset.StudyDescription, dataset.AccessionNumber = "Mammographie beidseits, Größe", "ACC-77"
    dataset.WindowCenter, dataset.WindowWidth = [1700, 1500], [2800, 900]
    dataset.add_new("PatientWeight", "DS", "70")
    dataset["PatientWeight"].value = 70
    dataset.PatientAge = "061Y"
    dataset.ProcedureCodeSequence = Sequence([Dataset()])
    code = dataset.ProcedureCodeSequence[0]
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "MG1", "99KLINIK", "Mammographie"
    return dataset


VARIANTS = {
    "L CC": ("L", "CC", None),
    "R CC": ("R", "CC", None),
    "L MLO": ("L", "MLO", None),
    "R MLO": ("R", "MLO", None),
    "MONOCHROME1": ("L", "CC", turn_monochrome1),
    "INbreast": ("R", "CC", strip_to_inbreast),
    "CBIS-DDSM": ("L", "CC", turn_into_cbis),
    "awkward": ("L", "MLO", make_awkward),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Return the path of one small image per variant."""
    folder = tmp_path_factory.mktemp("sources")
    paths = {}
    for number, (name, (side, view, change)) in enumerate(VARIANTS.items()):
        path = folder / f"{number}.dcm"
        rng = np.random.default_rng(5)
        phantom = build_phantom(PhantomConfig(rows=192, cols=160), rng=rng, view=view, laterality=side)
        write_phantom(phantom, path, image_id=name, patient_id="P1")
        if change is not None:
            change(pydicom.dcmread(path)).save_as(path, enforce_file_format=True)
        paths[name] = path
    return paths


def make_map(shape):
    values = np.random.default_rng(3).normal(2, 1, shape).astype(np.float32)
    values[:, : shape[1] // 3] = np.nan
    return values


def write(source, detection, folder, *, kinds=KINDS, run=RUN, **changes):
    settings = {"anomaly_map": make_map(detection.labels.shape), **changes}
    return write_dicom_results(source, detection, run, folder, kinds=kinds, **settings)


@pytest.fixture(scope="session")
def written(sources, tmp_path_factory):
    """Return, per variant, the source's path, the detection and the folder of its results."""
    results = {}
    for name, path in sources.items():
        detection = make_detection((192, 160), spacing=name != "CBIS-DDSM")
        folder = tmp_path_factory.mktemp("results")
        assert [p.stem for p in write(path, detection, folder)] == list(KINDS)
        results[name] = (path, detection, folder)
    return results


def find_errors(path):
    """Return what the validator calls an error."""
    done = subprocess.run([VALIDATOR, "-new", path], capture_output=True, text=True, errors="replace", check=False)
    assert any(name in done.stderr for name in ("SR", "Segmentation", "SCImage", "PresentationState"))
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


def find_number(group, name):
    found = [m.value for m in group.get_measurements() if m.name == name]
    assert len(found) <= 1
    return found[0] if found else None


def read_groups(path):
    """Return a report's group of the image and the groups of its findings."""
    content = hd.sr.srread(path).content
    (image,) = content.get_image_measurement_groups()
    return image, content.get_planar_roi_measurement_groups()


@pytest.mark.parametrize("variant", VARIANTS)
def test_objects_are_valid(written, variant):
    _, _, folder = written[variant]
    for kind in KINDS:
        assert find_errors(folder / f"{kind}.dcm") == [], kind


@pytest.mark.parametrize("variant", VARIANTS)
def test_objects_belong_to_the_patient_and_study_of_their_source_and_to_series_of_their_own(written, variant):
    path, _, folder = written[variant]
    source = pydicom.dcmread(path)
    results = [pydicom.dcmread(folder / f"{kind}.dcm") for kind in KINDS]
    for result in results:
        for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyTime",
                        "AccessionNumber", "StudyID", "StudyDescription", "OtherPatientIDs", "IssuerOfPatientID",
                        "PatientAge", "PatientWeight", "ProcedureCodeSequence", "SpecificCharacterSet"):  # fmt: skip
            assert (result.get(keyword) or "") == (source.get(keyword) or ""), keyword
        assert result.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert NOTICE in str(result)
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID"):
        assert len({str(item[keyword].value) for item in (source, *results)}) == 1 + len(KINDS)
    assert {str(result.PatientSex or "") for result in results} <= {"F", ""}


def turn_into_chest_film(dataset):
    """A digital radiograph of a chest, two directions of the patient stated."""
    kept = strip_to_inbreast(dataset)
    for keyword in ("ImageLaterality", "ViewPosition"):
        del kept[keyword]
    kept.SOPClassUID = kept.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    kept.Modality, kept.BodyPartExamined, kept.PatientOrientation = "DX", "CHEST", ["L", "F"]
    return kept


def turn_into_ct(dataset):
    """A slice of computed tomography, in Hounsfield units after rescaling, placed in space."""
    kept = turn_into_chest_film(dataset)
    kept.SOPClassUID = kept.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    kept.Modality, kept.FrameOfReferenceUID = "CT", "1.2.3.4"
    kept.ImagePositionPatient, kept.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    kept.PixelSpacing, kept.SliceThickness = [0.7, 0.7], 1
    kept.RescaleSlope, kept.RescaleIntercept, kept.RescaleType = 1, -1024, "HU"
    del kept.PatientOrientation
    return kept


@pytest.mark.parametrize("change", [turn_into_chest_film, turn_into_ct])
def test_results_of_another_profile_say_nothing_of_breasts(sources, tmp_path, change):
    path = tmp_path / "other.dcm"
    change(pydicom.dcmread(sources["L CC"])).save_as(path, enforce_file_format=True)
    paths = write(path, make_detection((192, 160)), tmp_path / "out", run=Run(IDENTITY, GENERAL.codes, MOMENT))
    assert [p.stem for p in paths] == list(KINDS)
    for result in paths:
        assert find_errors(result) == [], result.stem
        stored = result.read_bytes().lower()
        assert not [word for word in (b"mammo", b"breast", b"76752008", b"71651007") if word in stored]
    image, groups = read_groups(tmp_path / "out" / "report.dcm")
    assert find_number(image, FINDING_COUNT) == 3
    assert all(group.finding_sites == [] for group in groups)
    report = hd.sr.srread(tmp_path / "out" / "report.dcm")
    assert "363679005" in str(report)  # imaging
    for segment in hd.seg.segread(tmp_path / "out" / "segmentation.dcm").SegmentSequence:
        assert "AnatomicRegionSequence" not in segment


STORAGE = "1.2.840.10008.5.1.4.1.1."
PLACE = {
    "FrameOfReferenceUID": "1.2.3.4", "ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.7, 0.7], "SliceThickness": 1,
}  # fmt: skip
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}
CLASSES = {  # SOP class, modality, what else its header holds
    "private": ("1.2.3.4.5", "MG", {}),
    "private, placed": ("1.2.3.4.5", "MG", PLACE),
    "retired": (STORAGE + "6", "US", {}),
    "CT": (STORAGE + "2", "CT", HU | PLACE),
    "CT without place": (STORAGE + "2", "CT", HU),
    "CT without frame": (STORAGE + "2", "CT", HU | PLACE | {"FrameOfReferenceUID": None}),
    "MR without orientation": (STORAGE + "4", "MR", {**PLACE, "ImageOrientationPatient": [1, 0]}),
    "CT without thickness": (STORAGE + "2", "CT", HU | PLACE | {"SliceThickness": None}),
    "PET": (STORAGE + "128", "PT", HU | PLACE),
    "XA": (STORAGE + "12.1", "XA", {"NumberOfFrames": 1}),
    "NM": (STORAGE + "20", "NM", {"NumberOfFrames": 1}),
    "multi-frame capture": (STORAGE + "7.3", "OT", {"NumberOfFrames": 1}),
    "FOR PROCESSING": (STORAGE + "1.2.1", "MG", {}),
    "no modality": (STORAGE + "1.2", None, {}),
}  # fmt: skip


def change_source(sources, tmp_path, change):
    """Write a changed copy of a source; return its path."""
    dataset, path = pydicom.dcmread(sources["L CC"]), tmp_path / "changed.dcm"
    (change(dataset) or dataset).save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("name", CLASSES)
def test_an_image_of_any_class_has_valid_objects_that_refer_to_it(sources, tmp_path, name):
    kind, modality, others = CLASSES[name]

    def change(dataset):
        kept = turn_into_chest_film(dataset)
        kept.SOPClassUID = kept.file_meta.MediaStorageSOPClassUID = kind
        kept.Modality = modality
        for keyword, value in others.items():
            setattr(kept, keyword, value)
        return kept

    path = change_source(sources, tmp_path, change)
    detection = make_detection((192, 160), count=1)
    for written in write(path, detection, tmp_path / "out", run=Run(IDENTITY, GENERAL.codes, MOMENT)):
        assert find_errors(written) == [], written.stem
        result = pydicom.dcmread(written)
        uid = pydicom.dcmread(path).SOPInstanceUID
        classes = {
            str(item.ReferencedSOPClassUID)
            for item in iterate_items(result)
            if item.get("ReferencedSOPInstanceUID") == uid
        }
        assert classes == {kind}
    segmentation = hd.seg.segread(tmp_path / "out" / "segmentation.dcm")
    labels = segmentation.get_pixels_by_source_instance([uid], combine_segments=True)
    assert np.array_equal(labels[0], detection.labels)


def test_a_reference_without_its_class_is_left_out(sources, tmp_path):
    def change(dataset):
        broken, whole = pydicom.Dataset(), pydicom.Dataset()
        broken.ReferencedSOPInstanceUID = whole.ReferencedSOPInstanceUID = "1.2.3"
        whole.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
        dataset.ReferencedStudySequence = [broken, whole]
        dataset.ReferencedPatientSequence = [broken]

    path = change_source(sources, tmp_path, change)
    detection = make_detection(pydicom.dcmread(path).pixel_array.shape, count=1)
    for written in write(path, detection, tmp_path / "out"):
        assert find_errors(written) == [], written.stem
        result = pydicom.dcmread(written)
        assert [item.ReferencedSOPClassUID for item in result.ReferencedStudySequence] == ["1.2.840.10008.3.1.2.3.1"]
        assert "ReferencedPatientSequence" not in result


def iterate_items(dataset):
    """All datasets inside a dataset, itself first."""
    yield dataset
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            yield from iterate_items(item)


def test_a_mammogram_s_report_names_procedure_and_site(written):
    _, groups = read_groups(written["L CC"][2] / "report.dcm")
    assert [site.value.value for group in groups for site in group.finding_sites] == ["76752008"] * 3
    assert {site.ContentSequence[0].value.meaning for group in groups for site in group.finding_sites} == {"Left"}
    assert "Mammography" in str(hd.sr.srread(written["L CC"][2] / "report.dcm"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_names_model_operating_point_and_source(written, kind):
    path, _, folder = written["L CC"]
    stored = (folder / f"{kind}.dcm").read_bytes()
    source = pydicom.dcmread(path)
    for text in (NOTICE, IDENTITY.sha256, IDENTITY.data_hash, "fusion", "0.1.0", "operating point: 1; threshold"):
        assert text.encode() in stored, text
    assert source.SOPInstanceUID.encode() in stored
    assert b"NOT FOR DIAGNOSIS" in stored
    assert pydicom.dcmread(folder / f"{kind}.dcm").ManufacturerModelName == "unary fusion"


@pytest.mark.parametrize("variant", ["L CC", "MONOCHROME1", "CBIS-DDSM"])
def test_the_report_reads_back_equal(written, variant):
    path, detection, folder = written[variant]
    image, groups = read_groups(folder / "report.dcm")
    assert find_number(image, IMAGE_SCORE) == detection.image_score
    assert find_number(image, IMAGE_P_VALUE) == detection.image_p_value
    assert find_number(image, THRESHOLD) == POINT.threshold
    assert find_number(image, FINDING_COUNT) == 3
    evaluations = {e.name: e.value for e in image.get_qualitative_evaluations()}
    assert evaluations[SUMMARY] == WITH_FINDINGS
    assert len(groups) == len(detection.findings)
    for group, finding in zip(groups, detection.findings, strict=True):
        assert group.tracking_identifier == f"Finding {finding.rank}"
        assert find_number(group, ANOMALY_SCORE) == finding.score
        assert find_number(group, P_VALUE) == finding.p_value
        (kind,) = [each.value for each in group.get_qualitative_evaluations() if each.name == KIND]
        assert kind == FINDING_KINDS[finding.kind]
        assert kind.meaning == finding.kind.capitalize()
        points = group.roi.value  # (column, row), 0 at the outer edge of the first pixel
        assert np.array_equal(points[0], points[-1])
        assert np.array_equal(points[:-1, ::-1] - 0.5, np.float32(finding.outline))
        sizes = {m.name.meaning: (m.value, m.unit.value) for m in group.get_measurements() if m.unit.value != "1"}
        if variant == "CBIS-DDSM":
            assert sizes == {}  # spacing unknown
        else:
            assert sizes == {"Area": (finding.area_mm2, "mm2"), "Diameter": (finding.diameter_mm, "mm")}
    report, source = hd.sr.srread(folder / "report.dcm"), pydicom.dcmread(path)
    assert [uid for _, _, uid, _ in report.get_evidence()] == [source.SOPInstanceUID]
    flags = (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag)
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert report.content[0].ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.ContentDate, report.ContentTime) == ("20260203", "040506.000789")


@pytest.mark.parametrize("variant", ["L CC", "MONOCHROME1", "INbreast", "CBIS-DDSM"])
def test_the_segmentation_reads_back_equal(written, variant):
    path, detection, folder = written[variant]
    segmentation = hd.seg.segread(folder / "segmentation.dcm")
    uid = pydicom.dcmread(path).SOPInstanceUID
    labels = segmentation.get_pixels_by_source_instance([uid], combine_segments=True)
    assert np.array_equal(labels[0], detection.labels)
    report = {g.tracking_identifier: g.tracking_uid for g in read_groups(folder / "report.dcm")[1]}
    assert dict(segmentation.get_tracking_ids()) == report
    for number, finding in enumerate(detection.findings, 1):
        text = segmentation.get_segment_description(number).SegmentDescription
        assert text.startswith(f"{finding.kind.capitalize()}. Anomaly score {finding.score:.6g}, p-value ")
        assert f", p-value {finding.p_value:.4g}" in text


def test_the_heat_map_reads_back_within_half_a_step(written):
    path, detection, folder = written["L CC"]
    anomaly_map = make_map(detection.labels.shape)
    segmentation = hd.seg.segread(folder / "heat_map.dcm")
    stored = segmentation.get_pixels_by_source_instance([pydicom.dcmread(path).SOPInstanceUID])[0, ..., 0]
    low, high = np.nanmin(anomaly_map), max(np.nanmax(anomaly_map), POINT.threshold)
    inside = np.isfinite(anomaly_map)
    assert np.all(stored[~inside] == 0)
    score = low + stored * (high - low)
    assert np.abs(score - anomaly_map)[inside].max() <= 0.501 / 255 * (high - low)
    text = segmentation.get_segment_description(1).SegmentDescription
    assert f"score = {low:.7g}" in text
    assert "no probability" in text


def test_a_map_that_is_constant_or_empty_is_stored_as_nothing():
    for values in (np.full((4, 5), 2, np.float32), np.full((4, 5), np.nan, np.float32)):
        assert not scale_map(values, None)[0].any()
    assert not scale_map(np.full((4, 5), 2, np.float32), 1.0)[0].any()


@pytest.mark.parametrize(("variant", "shape"), [("L CC", "IDENTITY"), ("MONOCHROME1", "INVERSE")])
def test_the_presentation_state_draws_the_boxes_with_the_source_s_window(written, variant, shape):
    path, detection, folder = written[variant]
    state, source = pydicom.dcmread(folder / "presentation.dcm"), pydicom.dcmread(path)
    assert state.PresentationLUTShape == shape
    window = state.SoftcopyVOILUTSequence[0]
    assert (window.WindowCenter, window.WindowWidth) == (source.WindowCenter, source.WindowWidth)
    assert (state.RescaleSlope, state.RescaleIntercept) == (1, 0)
    reference = state.ReferencedSeriesSequence[0]
    assert reference.ReferencedImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    (annotation,) = state.GraphicAnnotationSequence
    for graphic, finding in zip(annotation.GraphicObjectSequence, detection.findings, strict=True):
        corners = np.reshape(graphic.GraphicData, (-1, 2))
        (c0, r0), (c1, r1) = corners.min(axis=0), corners.max(axis=0)
        assert (r0, c0, r1, c1) == finding.box
        assert len(corners) == 5
    texts = [item.UnformattedTextValue for item in annotation.TextObjectSequence]
    kinds = ["", "", " vascular pattern"]
    labels = [f"{f.rank}: {f.score:.3g}{kind}" for f, kind in zip(detection.findings, kinds, strict=True)]
    assert texts == [NOTICE, *labels]


def test_a_presentation_state_of_a_source_without_window_has_one_that_shows_the_breast(written):
    path, _, folder = written["INbreast"]
    window = pydicom.dcmread(folder / "presentation.dcm").SoftcopyVOILUTSequence[0]
    pixels = read_dicom(path).pixels
    low, high = window.WindowCenter - window.WindowWidth / 2, window.WindowCenter + window.WindowWidth / 2
    assert np.mean((pixels > low) & (pixels < high)) > 0.3
    assert low > pixels.min()


def is_colour(picture):
    return picture.max(axis=2) != picture.min(axis=2)


@pytest.mark.parametrize("variant", ["L CC", "CBIS-DDSM"])
def test_the_capture_shows_image_outlines_and_banner(written, variant):
    path, detection, folder = written[variant]
    capture = pydicom.dcmread(folder / "capture.dcm")
    assert (capture.Modality, capture.PhotometricInterpretation) == ("OT", "RGB")
    assert "PixelSpacing" not in capture
    picture, image = capture.pixel_array, read_dicom(path)
    gray = np.rint(255 * render_gray(image, pydicom.dcmread(path))).astype(np.uint8)
    above = next(top for top in range(80) if np.median(picture[top + 100, :160] == gray[100][:, None]) == 1)
    part = picture[above : above + 192, :160]
    assert np.mean(part == gray[..., None]) > 0.6
    assert is_colour(picture[:above]).sum() > 300  # the banner
    assert is_colour(picture[above + 192 :]).sum() > 300  # the model's line
    for finding in detection.findings:
        (row, col), bottom = finding.outline[1], finding.outline[2][0]
        middle = round((row + bottom) / 2)
        line = part[middle : middle + 1, round(col) - 3 : round(col) + 4]
        assert is_colour(line).any()
        colour = (179, 157, 219) if finding.kind == "vascular pattern" else (230, 159, 0)
        assert (line == colour).all(axis=2).any()


def test_the_capture_has_half_the_resolution_of_a_large_image():
    gray = np.tile(np.linspace(0, 1, 1201, dtype=np.float32), (901, 1))
    picture = draw_capture(gray, make_detection((901, 1201), count=0), IDENTITY)
    assert picture.shape[1] == 601
    assert 451 < picture.shape[0] < 451 + 250
    above = np.flatnonzero((picture[:, -1] == 255).all(axis=1))[0]
    expected = np.rint(255 * (gray[0, 600] + gray[0, 601]) / 2)
    assert np.array_equal(picture[above + 200, 300], np.full(3, expected))


def test_the_capture_of_a_tiny_image_has_room_for_the_banner():
    plain = np.zeros((40, 30), np.float32)
    picture = draw_capture(plain, make_detection((40, 30), count=0), IDENTITY)
    assert picture.shape[1] >= 512
    assert len(BANNER) == 28
    columns = np.flatnonzero(is_colour(picture).any(axis=0))
    assert columns[0] > 0
    assert columns[-1] < picture.shape[1] - 1


def test_the_capture_says_that_an_image_is_out_of_domain():
    gray = np.zeros((1500, 1200), np.float32)
    known = draw_capture(gray, make_detection((1500, 1200), count=0), IDENTITY)
    lines = ("spacing 0.05 mm; the model has learned from 0.07 mm",)
    foreign = draw_capture(gray, make_detection((1500, 1200), count=0, out_of_domain=lines), IDENTITY)
    assert len(foreign) > len(known)


def test_a_finding_too_small_to_be_seen_has_a_ring_around_it():
    gray = np.full((1500, 1200), 0.3, np.float32)
    detection = make_detection((1500, 1200), count=1)
    speck = replace(
        detection.findings[0], box=(700, 600, 703, 603), outline=((699.5, 600.5), (699.5, 602.5), (702.5, 602.5))
    )
    small, large = (
        is_colour(draw_capture(gray, replace(detection, findings=(each,)), IDENTITY))
        for each in (speck, detection.findings[0])
    )
    middle = (slice(300, 550), slice(301 - 14, 301 + 15))  # of the picture, whose image begins below 100
    assert small[middle].any(axis=1).sum() > 15
    assert not large[middle].any()


def test_labels_do_not_hide_each_other():
    gray = np.full((1500, 1200), 0.3, np.float32)
    detection = make_detection((1500, 1200), count=2)
    one = detection.findings[0]
    apart = draw_capture(gray, detection, IDENTITY)
    close = draw_capture(gray, replace(detection, findings=(one, replace(one, rank=2))), IDENTITY)
    assert is_colour(close).sum() > 0.9 * is_colour(apart).sum() - 4 * (one.box[2] + one.box[3])


def test_the_numbers_of_a_capture_are_explained_below_it():
    detection = make_detection((192, 160))
    findings, image, point = explain_numbers(detection)
    for finding in detection.findings:
        assert f"{finding.rank}: {finding.score:.3g}" in findings
        assert f"(p={finding.p_value:.2g})" in findings
    assert image.startswith(f"Highest score of the image: {detection.image_score:.3g} (p=0.12).")
    assert "no probability" in image
    assert point.startswith("Operating point 1, score above 4.32. At most 1 false finding per normal image")
    assert "guaranteed" in point
    bare = explain_numbers(make_detection((192, 160), count=0, point=None, out_of_domain=("spacing 0.05 mm",)))
    assert bare == [
        "Highest score of the image: 3.12.",
        "Not calibrated: the strongest places are shown whatever they score; nothing is guaranteed.",
        "out of domain: spacing 0.05 mm",
    ]
    assert "and 24 more" in explain_numbers(make_detection((192, 160), count=32))[0]


def test_polarity_does_not_change_the_picture(written):
    shown = [render_gray(read_dicom(written[v][0]), pydicom.dcmread(written[v][0])) for v in ("L CC", "MONOCHROME1")]
    assert np.abs(shown[0] - shown[1]).max() < 0.001


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(sources, function):
    source = pydicom.dcmread(sources["L CC"])
    source.VOILUTFunction = function
    expected = apply_voi_lut(source.pixel_array, source) / 4095
    assert np.abs(render_gray(read_dicom(sources["L CC"]), source) - expected).max() < 0.001


def test_a_table_of_values_is_used_where_there_is_one(sources, tmp_path):
    source = pydicom.dcmread(sources["L CC"])
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table["LUTDescriptor"].VR = "US"
    table.add_new("LUTData", "OW", (np.linspace(0, 1, 4096) ** 2 * 65535).astype("<u2").tobytes())
    source.VOILUTSequence = Sequence([table])
    path = tmp_path / "table.dcm"
    source.save_as(path, enforce_file_format=True)
    shown = render_gray(read_dicom(path), pydicom.dcmread(path))
    assert np.abs(shown - (source.pixel_array / 4095.0) ** 2).max() < 0.001
    write(path, make_detection((192, 160)), tmp_path / "out")
    state = pydicom.dcmread(tmp_path / "out" / "presentation.dcm")
    assert state.SoftcopyVOILUTSequence[0].VOILUTSequence[0].LUTDescriptor == [4096, 0, 16]
    for kind in KINDS:
        assert find_errors(tmp_path / "out" / f"{kind}.dcm") == []


def test_the_same_arguments_give_the_same_bytes(written, tmp_path):
    path, detection, folder = written["R MLO"]
    write(path, detection, tmp_path)
    for kind in KINDS:
        assert (tmp_path / f"{kind}.dcm").read_bytes() == (folder / f"{kind}.dcm").read_bytes(), kind


def read_uids(folder, keyword="SOPInstanceUID"):
    return {str(pydicom.dcmread(path)[keyword].value) for path in sorted(folder.glob("*.dcm"))}


def flip_a_pixel(dataset):
    dataset.PixelData = bytes([dataset.PixelData[0] ^ 1]) + dataset.PixelData[1:]


def change_detection(**changes):
    return lambda detection: replace(detection, **changes)


def change_finding(**changes):
    return lambda d: replace(d, findings=(replace(d.findings[0], **changes), *d.findings[1:]))


OTHERS = {  # what differs, of: source, detection, run
    "another image with the same identifier": (flip_a_pixel, None, None),
    "another window": (lambda d: setattr(d, "WindowCenter", 1501), None, None),
    "another spacing, so another size": (None, change_finding(area_mm2=1.25), None),
    "another outline": (None, change_finding(outline=((1.5, 2.5), (1.5, 9.5), (7.5, 9.5))), None),
    "another calibration": (None, change_detection(operating_point=replace(POINT, measured_rate=0.1)), None),
    "another operating point": (None, change_detection(operating_point=replace(POINT, threshold=5.0)), None),
    "not calibrated": (None, change_detection(operating_point=None), None),
    "out of domain": (None, change_detection(out_of_domain=("spacing 0.05 mm",)), None),
    "a note": (None, change_detection(notes=("the spacing was given by hand",)), None),
    "another model": (None, None, replace(RUN, identity=replace(IDENTITY, sha256="0" * 64))),
    "another version": (None, None, replace(RUN, identity=replace(IDENTITY, version="0.1.1"))),
    "another profile": (None, None, replace(RUN, codes=GENERAL.codes)),
    "another moment": (None, None, replace(RUN, moment=MOMENT + timedelta(microseconds=1))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_one_identifier_never_stands_for_two_contents(sources, tmp_path, name):
    of_source, of_detection, run = OTHERS[name]
    detection = make_detection((192, 160))
    write(sources["L CC"], detection, tmp_path / "one")
    path = change_source(sources, tmp_path, of_source or (lambda _: None)) if of_source else sources["L CC"]
    assert pydicom.dcmread(path).SOPInstanceUID == pydicom.dcmread(sources["L CC"]).SOPInstanceUID
    write(path, of_detection(detection) if of_detection else detection, tmp_path / "other", run=run or RUN)
    one, other = read_uids(tmp_path / "one"), read_uids(tmp_path / "other")
    assert len(one) == len(other) == len(KINDS)
    assert not one & other
    assert all(pydicom.uid.UID(uid).is_valid for uid in one | other)
    shared = read_uids(tmp_path / "one", "SeriesInstanceUID") & read_uids(tmp_path / "other", "SeriesInstanceUID")
    same_run = run is None and not name.startswith(("another calibration", "another operating point", "not calibrated"))
    assert len(shared) == (len(KINDS) if same_run or name == "another profile" else 0)


def test_results_of_a_run_are_one_series_of_each_kind_sorted_by_view_and_named_by_it(written):
    views = {"R CC": 1, "L CC": 2, "R MLO": 3, "L MLO": 4}
    for kind in KINDS:
        objects = {view: pydicom.dcmread(written[view][2] / f"{kind}.dcm") for view in views}
        assert {view: dataset.InstanceNumber for view, dataset in objects.items()} == views
        for keyword in ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"):
            assert len({str(dataset.get(keyword)) for dataset in objects.values()}) == 1, keyword
        assert not any(dataset.get("Laterality") for dataset in objects.values())
    captures = {view: pydicom.dcmread(written[view][2] / "capture.dcm") for view in views}
    assert captures["R CC"].SeriesDescription == "unary findings - RESEARCH, NOT FOR DIAGNOSIS"
    for view, capture in captures.items():
        assert capture.ImageComments.startswith(f"{view.replace(' ', '')}: 3 findings. {NOTICE}")
        assert capture.ImageLaterality == view[0]
    for kind in ("segmentation", "presentation"):
        described = pydicom.dcmread(written["L MLO"][2] / f"{kind}.dcm").ContentDescription
        assert described == f"LMLO: 3 findings. {NOTICE}"


@pytest.mark.parametrize(("stated", "name"), [("399368009", "LMLO"), ("R-10242", "LCC"), (None, "L")])
def test_a_view_that_is_stated_by_its_code_alone_is_known(sources, tmp_path, stated, name):
    def change(dataset):
        del dataset.ViewPosition
        if stated is None:
            del dataset.ViewCodeSequence
        else:
            dataset.ViewCodeSequence[0].CodeValue = stated

    source = read_source(change_source(sources, tmp_path, change))
    assert name_view(source) == name


def test_slices_are_sorted_by_their_own_number(sources, tmp_path):
    def change(dataset):
        kept = turn_into_ct(dataset)
        kept.InstanceNumber = 17
        return kept

    path = change_source(sources, tmp_path, change)
    (report,) = write(path, make_detection((192, 160)), tmp_path / "out", kinds=("report",))
    assert pydicom.dcmread(report).InstanceNumber == 17


def test_what_a_package_writes_otherwise_has_another_identifier(sources, tmp_path, monkeypatch):
    for folder, banner in (("one", BANNER), ("other", "RESEARCH ONLY")):
        monkeypatch.setattr("unary.outputs.dicom.capture.BANNER", banner)
        write(sources["L CC"], make_detection((192, 160)), tmp_path / folder)
    one, other = (
        {path.stem: pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / folder).glob("*.dcm")}
        for folder in ("one", "other")
    )
    assert {kind for kind in KINDS if one[kind] != other[kind]} == {"capture"}


def test_a_model_is_one_observer_and_a_finding_has_one_identifier_in_all_results(written):
    observers = {
        str(item.UID)
        for name in ("L CC", "R MLO")
        for item in iterate_items(pydicom.dcmread(written[name][2] / "report.dcm"))
        if "UID" in item and item.ConceptNameCodeSequence[0].CodeValue == "121012"
    }
    assert len(observers) == 1
    tracked = [
        {str(item.TrackingUID) for item in iterate_items(pydicom.dcmread(written["L CC"][2] / f"{kind}.dcm"))
         if "TrackingUID" in item}
        for kind in ("segmentation", "presentation")
    ]  # fmt: skip
    assert tracked[0] == tracked[1]
    assert len(tracked[0]) == 3


@pytest.mark.parametrize(
    ("stated", "moment", "expected"),
    [
        (None, MOMENT, ("20260203", "040506.000789", "+0100")),
        (None, MOMENT.astimezone(UTC), ("20260203", "030506.000789", "+0000")),
        ("-0330", MOMENT, ("20260202", "233506.000789", "-0330")),
        ("+1400", MOMENT, ("20260203", "170506.000789", "+1400")),
        ("CET", MOMENT, ("20260203", "040506.000789", "+0100")),
        ("+9900", MOMENT, ("20260203", "040506.000789", "+0100")),
    ],
)
def test_dates_and_times_are_those_of_the_run_in_one_stated_time_zone(sources, tmp_path, stated, moment, expected):
    """Whatever time is in an object is the source's own or that of its making, and one offset is true of all."""

    def change(dataset):
        dataset.StudyDate, dataset.StudyTime, dataset.PatientBirthDate = "20191231", "235959", "19600101"
        dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20200101"
        dataset.AcquisitionDateTime, dataset.AcquisitionTime = "20200101000000", "000000"
        if stated is not None:
            dataset.TimezoneOffsetFromUTC = stated

    with silencing():
        path = change_source(sources, tmp_path, change)
        paths = write(path, make_detection((192, 160)), tmp_path / "out", run=replace(RUN, moment=moment))
    date, time, offset = expected
    for result in map(pydicom.dcmread, paths):
        assert (result.StudyDate, result.StudyTime, result.PatientBirthDate) == ("20191231", "235959", "19600101")
        assert (result.InstanceCreationDate, result.InstanceCreationTime) == (date, time)
        assert result.TimezoneOffsetFromUTC == offset
        own = [
            str(element.value)
            for item in iterate_items(result)
            for element in item
            if element.VR in ("DA", "TM", "DT")
            and element.keyword not in ("StudyDate", "StudyTime", "PatientBirthDate")
        ]
        assert set(own) - {""} == {date, time, date + time + offset}


def test_a_moment_without_a_time_zone_is_this_machine_s(sources, tmp_path):
    moment = MOMENT.replace(tzinfo=None)
    (path,) = write(
        sources["L CC"], make_detection((192, 160)), tmp_path, kinds=["report"], run=replace(RUN, moment=moment)
    )
    result = pydicom.dcmread(path)
    assert result.TimezoneOffsetFromUTC == moment.astimezone().strftime("%z")
    assert (result.ContentDate, result.ContentTime) == ("20260203", "040506.000789")


CHARACTER_SETS = {  # declared, and the bytes of a name; PS3.5 annexes H to J
    "none, ASCII": (None, b"Muller^Zoe"),
    "none, Latin-1 bytes": (None, b"M\xfcller^Zo\xeb"),
    "none, UTF-8 bytes": (None, "Müller^Zoë".encode()),
    "Latin-1": ("ISO_IR 100", "Müller^Zoë".encode("latin-1")),
    "Latin-2": ("ISO_IR 101", "Dvořák^Jiří".encode("iso8859-2")),
    "Cyrillic": ("ISO_IR 144", "Ждановщина".encode("iso8859-5")),
    "Japanese": (
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "Japanese, half width": (
        ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
    ),
    "Korean": (["", "ISO 2022 IR 149"], b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030")),
    "UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小东".encode()),
    "Latin-1 bytes declared as UTF-8": ("ISO_IR 192", b"M\xfcller^Zo\xeb"),
    "UTF-8 bytes declared as Latin-1": ("ISO_IR 100", "Müller^Zoë".encode()),
    "Cyrillic bytes declared as Japanese": (["", "ISO 2022 IR 87"], "Ждановщина".encode("iso8859-5")),
    "GB18030 declared with another": (["GB18030", "ISO 2022 IR 87"], "王^小东".encode("gb18030")),
    "no character set of DICOM": ("UTF-8", "Müller^Zoë".encode()),
    "unknown": ("ISO_IR 999", b"M\xfcller"),
}


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
@pytest.mark.parametrize("name", CHARACTER_SETS)
def test_text_of_the_source_is_carried_to_the_byte(sources, tmp_path, name, syntax):
    declared, value = CHARACTER_SETS[name]
    value += b" " * (len(value) % 2)
    marks = {keyword: f"@@{number}".ljust(len(value), "@") for number, keyword in enumerate(TEXTS)}

    def change(dataset):
        if declared is not None:
            dataset.SpecificCharacterSet = declared
        elif "SpecificCharacterSet" in dataset:
            del dataset.SpecificCharacterSet
        for keyword, mark in marks.items():
            setattr(dataset, keyword, mark)
        dataset.OtherPatientIDsSequence = [Dataset()]
        dataset.OtherPatientIDsSequence[0].PatientID = marks["PatientID"]
        dataset.file_meta.TransferSyntaxUID = syntax

    with silencing("pydicom"):
        path = change_source(sources, tmp_path, change)
        stored = path.read_bytes()
        for mark in marks.values():
            assert mark.encode() in stored
            stored = stored.replace(mark.encode(), value)
        path.write_bytes(stored)
    paths = write(path, make_detection((192, 160), count=1), tmp_path / "out", kinds=("report", "segmentation"))
    assert len(paths) == 2
    with silencing("pydicom"):
        source = pydicom.dcmread(path)
        for result in map(pydicom.dcmread, paths):
            for keyword in TEXTS:
                assert result.get_item(keyword).value == value, keyword
            assert result.OtherPatientIDsSequence[0].get_item("PatientID").value == value
            assert result.get("SpecificCharacterSet") == source.get("SpecificCharacterSet") == declared
            assert str(result.PatientName) == str(source.PatientName)


TEXTS = ("PatientName", "PatientID", "StudyDescription", "AccessionNumber", "IssuerOfPatientID")


def test_arguments_are_not_changed(sources):
    source = extract_source(pydicom.dcmread(sources["awkward"]))
    before = source.to_json()
    case = Case(source, make_detection((192, 160)), RUN, "report", "key")
    build_result(case, build_report(hd, case))
    assert source.to_json() == before


@pytest.mark.parametrize("scored", [True, False])
def test_nothing_found_is_reported_and_has_no_segmentation(sources, tmp_path, scored):
    path = sources["R CC"]
    write(path, make_detection((192, 160)), tmp_path, kinds=DEFAULT_KINDS)
    assert (tmp_path / "segmentation.dcm").exists()
    detection = make_detection((192, 160), count=0)
    if not scored:
        detection = replace(detection, image_score=None, image_p_value=None)
    paths = write(path, detection, tmp_path)
    assert [p.stem for p in paths] == ["report", "capture", "heat_map", "presentation"]
    assert not (tmp_path / "segmentation.dcm").exists()  # the former run's finding is gone
    assert [find_errors(p) for p in paths] == [[]] * 4
    image, groups = read_groups(tmp_path / "report.dcm")
    assert groups == []
    assert find_number(image, FINDING_COUNT) == 0
    assert find_number(image, IMAGE_SCORE) == detection.image_score
    (outcome,) = (e.value for e in image.get_qualitative_evaluations() if e.name == SUMMARY)
    assert (outcome == WITHOUT_FINDINGS) == scored


def test_out_of_domain_and_not_calibrated_are_reported(sources, tmp_path):
    lines = ("spacing 0.05 mm; the model has learned from 0.07 mm", "manufacturer “Zoë\\Co” is unknown")
    detection = make_detection((192, 160), count=2, point=None, out_of_domain=lines)
    paths = write(sources["L MLO"], detection, tmp_path)
    assert [find_errors(p) for p in paths] == [[]] * 5
    image, groups = read_groups(tmp_path / "report.dcm")
    (domain,) = (e.value for e in image.get_qualitative_evaluations() if e.name == DOMAIN)
    assert domain == OUT_OF_DOMAIN
    assert len(groups) == 2
    assert all(find_number(group, P_VALUE) is None for group in groups)
    stored = (tmp_path / "report.dcm").read_bytes()
    assert b"out of domain: spacing 0.05 mm; the model has learned from 0.07 mm; manufacturer ?Zo?/Co? is" in stored
    assert b"not calibrated" in stored


def test_many_findings(sources, tmp_path):
    detection = make_detection((192, 160), count=MOST_SEGMENTS + 2)
    paths = write(sources["L CC"], detection, tmp_path)
    assert [find_errors(p) for p in paths] == [[]] * 5
    _, groups = read_groups(tmp_path / "report.dcm")
    assert [find_number(g, ANOMALY_SCORE) for g in groups] == [f.score for f in detection.findings]
    segmentation = hd.seg.segread(tmp_path / "segmentation.dcm")
    uid = pydicom.dcmread(sources["L CC"]).SOPInstanceUID
    labels = segmentation.get_pixels_by_source_instance([uid], combine_segments=True)[0]
    assert np.array_equal(labels, np.where(detection.labels <= MOST_SEGMENTS, detection.labels, 0))
    assert "30 most abnormal of 32" in segmentation.ContentDescription


def test_outlines_beyond_the_image_end_at_its_edge(sources, tmp_path):
    detection = make_detection((192, 160), count=1)
    outline = ((-3.0, -2.0), (5.0, 400.0), (300.0, 10.0))
    detection = replace(detection, findings=(replace(detection.findings[0], outline=outline),))
    write(sources["L CC"], detection, tmp_path, kinds=("report", "capture"))
    _, (group,) = read_groups(tmp_path / "report.dcm")
    assert group.roi.value.tolist() == [[0, 0], [160, 5.5], [10.5, 192], [0, 0]]


def test_what_cannot_be_written_is_refused_and_nothing_is_written(sources, tmp_path):
    detection = make_detection((192, 160))
    with pytest.raises(ImageError, match=r"\(191, 160\).*\(192, 160\)"):
        write(sources["L CC"], make_detection((191, 160)), tmp_path / "out")
    with pytest.raises(ImageError, match="shape"):
        write(sources["L CC"], detection, tmp_path / "out", anomaly_map=make_map((96, 80)))
    with pytest.raises(ValueError, match="needs the anomaly map"):
        write(sources["L CC"], detection, tmp_path / "out", anomaly_map=None)
    with pytest.raises(ValueError, match="unknown kind 'sr'"):
        write(sources["L CC"], detection, tmp_path / "out", kinds=("sr",))
    with pytest.raises(ValueError, match="labels go up to 3"):
        write(sources["L CC"], replace(detection, findings=detection.findings[:2]), tmp_path / "out")
    (tmp_path / "text.dcm").write_text("no image")
    with pytest.raises(ImageError, match="not a DICOM file"):
        write(tmp_path / "text.dcm", detection, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_as_one(sources, tmp_path):
    (tmp_path / f".{os.getpid()}.report.dcm").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        write(sources["L CC"], make_detection((192, 160)), tmp_path, kinds=("report",))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("start", [0, 132])
def test_a_file_without_preamble_has_the_same_results(sources, tmp_path, start):
    path = tmp_path / "source.dcm"
    path.write_bytes(sources["awkward"].read_bytes()[start:])
    for written in write(path, make_detection((192, 160), count=1), tmp_path / "out"):
        assert find_errors(written) == []
        assert CANARY.encode() in written.read_bytes()


def remove(*keywords):
    def change(dataset):
        for keyword in keywords:
            del dataset[keyword]

    return change


@pytest.mark.parametrize("wrong", ["absent", "", "1.2.abc", "1." + "2" * 70, "1..2", "KANARIE"])
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"])
def test_an_image_that_cannot_be_referred_to_has_no_results_and_says_why(sources, tmp_path, keyword, wrong):
    def change(dataset):
        if wrong == "absent":
            del dataset[keyword]
        else:
            dataset[keyword].value = wrong

    path = tmp_path / "changed.dcm"
    with silencing("pydicom"):
        dataset = pydicom.dcmread(sources["L CC"])
        change(dataset)
        dataset.save_as(path)
    with pytest.raises(DicomResultError, match=rf"changed\.dcm: no DICOM results.*{keyword}") as caught:
        write(path, make_detection((192, 160)), tmp_path / "out")
    assert caught.value.written == ()
    assert "KANARIE" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_image_without_a_patient_has_valid_objects(sources, tmp_path):
    module = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
              "ReferringPhysicianName", "AccessionNumber", "PatientOrientation")  # fmt: skip
    path = change_source(sources, tmp_path, remove(*module))
    for written in write(path, make_detection((192, 160)), tmp_path / "out"):
        assert find_errors(written) == []


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"LUTDescriptor": [4096, 0, 16]},
        {"LUTDescriptor": [4096, 0], "LUTData": b"\0\0"},
        {"LUTDescriptor": [0, 0, 16], "LUTExplanation": "leer"},
    ],
)
def test_a_table_of_values_without_content_is_passed_over(sources, tmp_path, table):
    def change(dataset):
        item = Dataset()
        for keyword, value in table.items():
            item.add_new(keyword, {"LUTDescriptor": "US", "LUTData": "OW", "LUTExplanation": "LO"}[keyword], value)
        dataset.VOILUTSequence = [item]
        dataset.VOILUTFunction = "linear"

    with silencing("pydicom"):
        path = change_source(sources, tmp_path, change)
    written = write(path, make_detection((192, 160), count=1), tmp_path / "out", kinds=("capture", "presentation"))
    assert [find_errors(each) for each in written] == [[], []]
    window = pydicom.dcmread(tmp_path / "out" / "presentation.dcm").SoftcopyVOILUTSequence[0]
    assert window.WindowCenter == pydicom.dcmread(path).WindowCenter


def test_what_one_object_cannot_be_made_of_does_not_stop_the_others(sources, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyError("Kanarie^Vogel")

    monkeypatch.setattr("unary.outputs.dicom.writing.build_segmentation", fail)
    with pytest.raises(DicomResultError, match=r"no DICOM segmentation \(KeyError\)") as caught:
        write(sources["L CC"], make_detection((192, 160)), tmp_path, kinds=DEFAULT_KINDS)
    assert [path.stem for path in caught.value.written] == ["report", "capture"]
    assert all(path.exists() for path in caught.value.written)
    assert "Kanarie" not in str(caught.value)


def test_notes_stand_in_the_report(sources, tmp_path):
    notes = ("the pixel spacing of 0.07 mm was given by hand", "größer")
    write(sources["L CC"], replace(make_detection((192, 160)), notes=notes), tmp_path, kinds=["report"])
    stored = (tmp_path / "report.dcm").read_bytes()
    assert notes[0].encode() in stored
    assert b"gr??er" in stored


def test_damaged_header_values_are_left_out_and_never_shown(sources, tmp_path, caplog, capsys, recwarn):
    dataset = pydicom.dcmread(sources["L CC"])
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName, dataset.PatientID = "Kanarie^Vogel=x=y=z=^^^^^^", "KANARIE-77"
    path = tmp_path / "damaged.dcm"
    dataset.PatientBirthDate, dataset.PatientWeight, dataset.StudyTime = "19601201", "70.5", "101010"
    dataset.save_as(path, enforce_file_format=True)
    stored = path.read_bytes()
    for good, bad in ((b"19601201", b"19KANARI"), (b"70.5", b"70,K"), (b"101010", b"10KANA")):
        assert stored.count(good) == 1
        stored = stored.replace(good, bad)
    path.write_bytes(stored)
    caplog.set_level(logging.DEBUG)
    paths = write(path, make_detection((192, 160)), tmp_path / "out")
    printed = capsys.readouterr()
    said = "\n".join([caplog.text, printed.out, printed.err, *(str(w.message) for w in recwarn)])
    assert "kana" not in said.lower()
    result = pydicom.dcmread(paths[0])
    assert result.PatientID == "KANARIE-77"
    assert (result.PatientBirthDate, result.StudyTime) == ("", "")
    assert "PatientWeight" not in result


def test_highdicom_is_named_when_it_is_missing(sources, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingPackageError, match=r"unary\[dicom\]"):
        write(sources["L CC"], make_detection((192, 160)), tmp_path)
