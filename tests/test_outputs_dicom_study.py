"""The objects of a whole study: the CAD report that workstations mark, and the summary."""

import os
import shutil
import subprocess
from dataclasses import replace

import highdicom as hd
import numpy as np
import pydicom
import pytest
from test_outputs_dicom import (
    CANARY,
    IDENTITY,
    MOMENT,
    POINT,
    RUN,
    find_errors,
    iterate_items,
    make_awkward,
    make_detection,
)

from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import DicomResultError
from unary.files import hash_file
from unary.outputs.dicom import STUDY_KINDS, study_summary, study_writing
from unary.outputs.dicom import cad_report as cad
from unary.outputs.dicom.content import COMMENT
from unary.outputs.dicom.report import (
    DOMAIN,
    FINDING_COUNT,
    IMAGE_P_VALUE,
    IMAGE_SCORE,
    OUT_OF_DOMAIN,
    SUMMARY,
    WITH_FINDINGS,
    WITHOUT_FINDINGS,
)
from unary.outputs.dicom.run import hash_case
from unary.outputs.dicom.source import read_source
from unary.outputs.dicom.study import StudyImage, gather_study, read_stated_spacing
from unary.outputs.dicom.study_writing import write_study_objects
from unary.outputs.dicom.writing import write_dicom_results
from unary.records import NOTICE

SHAPE = (192, 160)
VIEWS = (("L", "MLO"), ("R", "CC"), ("L", "CC"), ("R", "MLO"))  # not as they are hung
TEMPLATE_VALIDATOR = shutil.which("DicomSRValidator")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Return the paths of the four views of a study, by side and view."""
    folder = tmp_path_factory.mktemp("study")
    found = {}
    for side, view in VIEWS:
        path = folder / f"{side}{view}.dcm"
        rng = np.random.default_rng(5)
        phantom = build_phantom(PhantomConfig(rows=SHAPE[0], cols=SHAPE[1]), rng=rng, view=view, laterality=side)
        write_phantom(phantom, path, image_id=f"{side}{view}", patient_id="P1")
        dataset = make_awkward(pydicom.dcmread(path))
        dataset.save_as(path, enforce_file_format=True)
        found[side + view] = path
    return found


def make_image(path, count=0, **changes):
    """Return an image that was examined, with so many findings."""
    detection = make_detection(SHAPE, count=count)
    image = StudyImage(
        read_source(path), f"{path.name:0>64}", "examined", read_stated_spacing(path), detection.findings,
        detection.image_score, detection.image_p_value, key=f"key of {path.name}",
    )  # fmt: skip
    return replace(image, **changes)


REFUSED = {"state": "refused", "reason": "IMPLANT", "detail": "the breast has an implant", "image_score": None,
           "image_p_value": None}  # fmt: skip
BROKEN = {**REFUSED, "state": "failed", "reason": "CORRUPT_PIXELS", "detail": "its pixels break off"}


def make_study(paths, name):
    """Return the images of a study by what became of them."""
    counts = {"LMLO": 2, "RCC": 3, "LCC": 0, "RMLO": 1}
    images = {view: make_image(path, counts[view]) for view, path in paths.items()}
    bare = {view: make_image(path) for view, path in paths.items()}
    lost = {"RCC": make_image(paths["RCC"], **REFUSED), "LCC": make_image(paths["LCC"], **BROKEN)}
    return {
        "with findings": images,
        "normal": bare,
        "partly, with findings": images | lost,
        "partly, without": bare | lost,
        "not at all": {
            view: make_image(path, **(REFUSED if view[1:] == "CC" else BROKEN)) for view, path in paths.items()
        },
        "nothing to score": {
            view: make_image(path, state="not scored", image_score=None) for view, path in paths.items()
        },
    }[name].values()


STUDIES = {  # what became of the images: summary, summary of detections
    "with findings": (WITH_FINDINGS, cad.ALL_SUCCEEDED),
    "normal": (WITHOUT_FINDINGS, cad.ALL_SUCCEEDED),
    "partly, with findings": (cad.SOME_WITH_FINDINGS, cad.SOME_SUCCEEDED),
    "partly, without": (cad.SOME_WITHOUT_FINDINGS, cad.SOME_SUCCEEDED),
    "not at all": (cad.NOTHING_SUCCEEDED, cad.NONE_SUCCEEDED),
    "nothing to score": (cad.NOTHING_SUCCEEDED, cad.NONE_SUCCEEDED),
}


@pytest.fixture(scope="module")
def written(paths, tmp_path_factory):
    """Return, by what became of the images, the folder of the study's objects."""
    folders = {}
    for name in STUDIES:
        folders[name] = tmp_path_factory.mktemp("objects")
        objects = write_study_objects(list(make_study(paths, name)), POINT, RUN, folders[name])
        assert [path.stem for path in objects] == list(STUDY_KINDS)
    return folders


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("kind", STUDY_KINDS)
def test_objects_are_valid(written, name, kind):
    assert find_errors(written[name] / f"{kind}.dcm") == []


def number(dataset, code):
    """Return the value of the first NUM of a document with this concept."""
    found = [
        item.MeasuredValueSequence[0].FloatingPointValue
        for item in iterate_items(dataset)
        if item.get("ValueType") == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == code.value
    ]
    return found[0] if found else None


def codes(dataset, name):
    """Return the values of all CODE items with this concept."""
    return [
        item.ConceptCodeSequence[0].CodeValue
        for item in iterate_items(dataset)
        if item.get("ValueType") == "CODE" and item.ConceptNameCodeSequence[0].CodeValue == name.value
    ]


def texts(dataset, name):
    return [
        item.TextValue
        for item in iterate_items(dataset)
        if item.get("ValueType") == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == name.value
    ]


def find_place(root, place):
    """Return the content item at a place such as (1, 2, 3)."""
    item = root
    for index in place[1:]:
        item = item.ContentSequence[index - 1]
    return item


@pytest.mark.parametrize("name", STUDIES)
def test_the_cad_report_says_what_became_of_the_study(written, paths, name):
    report = pydicom.dcmread(written[name] / "cad_report.dcm")
    summary, detections = STUDIES[name]
    assert codes(report, SUMMARY) == [summary.value]
    assert codes(report, cad.DETECTIONS) == [detections.value]
    assert codes(report, cad.ANALYSES) == [cad.NOT_ATTEMPTED.value]
    (library,) = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "111028"]
    seen = [str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in library.ContentSequence]
    order = [str(pydicom.dcmread(paths[view]).SOPInstanceUID) for view in ("RCC", "LCC", "RMLO", "LMLO")]
    assert seen == order
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    listed = {
        str(item.ReferencedSOPInstanceUID)
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert listed == set(order)
    searched = [
        (group.ConceptNameCodeSequence[0].CodeValue, tuple(reference.ReferencedContentItemIdentifier)[2])
        for group in iterate_items(report)
        if group.get("ValueType") == "CONTAINER"
        and group.ConceptNameCodeSequence[0].CodeValue in (cad.SUCCESSFUL.value, cad.FAILED.value)
        for detection in group.ContentSequence
        for reference in detection.ContentSequence
        if "ReferencedContentItemIdentifier" in reference
    ]
    images = {image.name: image for image in make_study(paths, name)}
    expected = {
        (cad.SUCCESSFUL.value if images[view].was_examined else cad.FAILED.value, place)
        for place, view in enumerate(("RCC", "LCC", "RMLO", "LMLO"), 1)
    }
    assert set(searched) == expected
    assert len(searched) == 4


def test_a_finding_of_the_cad_report_has_the_place_of_the_detection_and_claims_no_disease(written, paths):
    report = pydicom.dcmread(written["with findings"] / "cad_report.dcm")
    singles = [
        item
        for item in iterate_items(report)
        if item.get("ValueType") == "CODE" and item.ConceptNameCodeSequence[0].CodeValue == cad.FINDING.value
    ]
    images = {image.name: image for image in make_study(paths, "with findings")}
    expected = [
        (image, finding) for view in ("RCC", "RMLO", "LMLO") for image in [images[view]] for finding in image.findings
    ]
    assert len(singles) == len(expected) == 6
    for single, (image, finding) in zip(singles, expected, strict=True):
        assert single.ConceptCodeSequence[0].CodeValue == "111099"
        scoords = {
            item.ConceptNameCodeSequence[0].CodeValue: item
            for item in single.ContentSequence
            if item.get("ValueType") == "SCOORD"
        }
        assert scoords.keys() == {cad.CENTER.value, cad.OUTLINE.value}
        points = np.reshape(scoords[cad.OUTLINE.value].GraphicData, (-1, 2))
        assert np.allclose(points[:-1, ::-1] - 0.5, np.clip(finding.outline, -0.5, np.array(SHAPE) - 0.5))
        assert np.array_equal(points[0], points[-1])
        x, y = scoords[cad.CENTER.value].GraphicData
        assert points[:, 0].min() < x < points[:, 0].max()
        assert points[:, 1].min() < y < points[:, 1].max()
        place = scoords[cad.CENTER.value].ContentSequence[0].ReferencedContentItemIdentifier
        shown = find_place(report, place).ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert shown == image.source.SOPInstanceUID
        (text,) = texts(single, cad.DESCRIPTION)
        for words in (
            f"score {finding.score:.6g}, no probability",
            f"p-value {finding.p_value:.4g}",
            finding.kind,
            NOTICE,
        ):
            assert words in text
        required = finding.kind == "unusual region"
        assert codes(single, cad.INTENT) == [(cad.REQUIRED if required else cad.OPTIONAL).value]
        assert "111012" not in str(single)  # certainty
        assert "111047" not in str(single)  # probability of cancer


def test_what_is_unusual_about_an_image_stands_with_its_findings(paths, tmp_path):
    image = make_image(paths["RCC"], 1, out_of_domain=("spacing 0.05 mm",), notes=("the spacing was given by hand",))
    write_study_objects([image], POINT, RUN, tmp_path)
    (text,) = texts(pydicom.dcmread(tmp_path / "cad_report.dcm"), cad.DESCRIPTION)
    summary = pydicom.dcmread(tmp_path / "study_summary.dcm")
    for words in ("out of domain: spacing 0.05 mm", "the spacing was given by hand"):
        assert words in text
        assert words in texts(summary, COMMENT)
    assert codes(summary, DOMAIN) == [OUT_OF_DOMAIN.value]


def test_findings_of_a_model_without_calibration_may_be_presented_and_need_not(paths, tmp_path):
    write_study_objects([make_image(paths["RCC"], 2)], None, RUN, tmp_path)
    report = pydicom.dcmread(tmp_path / "cad_report.dcm")
    assert set(codes(report, cad.INTENT)) == {cad.OPTIONAL.value}
    assert any("not calibrated" in text for text in texts(report, cad.PARAMETERS))
    assert find_errors(tmp_path / "cad_report.dcm") == []


def test_a_finding_has_the_tracking_identifier_of_its_own_image_s_objects(paths, sources_of_one, tmp_path):
    path, folder, key = sources_of_one
    image = make_image(path, 2, key=key)
    write_study_objects([image], POINT, RUN, tmp_path, kinds=("cad_report",))
    own = {uid for _, uid in hd.seg.segread(folder / "segmentation.dcm").get_tracking_ids()}
    report = pydicom.dcmread(tmp_path / "cad_report.dcm")
    said = {
        str(item.UID)
        for item in iterate_items(report)
        if item.get("ValueType") == "UIDREF" and item.ConceptNameCodeSequence[0].CodeValue == "112040"
    }
    assert said == own
    assert len(own) == 2


@pytest.fixture
def sources_of_one(paths, tmp_path):
    """Return an image, the folder of its own objects and their key."""
    detection = make_detection(SHAPE, count=2)
    write_dicom_results(paths["RCC"], detection, RUN, tmp_path / "own", kinds=("segmentation",))
    return paths["RCC"], tmp_path / "own", hash_case(hash_file(paths["RCC"]), detection, RUN)


def drop_references(item):
    """Leave out, in place, relations by reference, which highdicom does not know."""
    if "ContentSequence" in item:
        item.ContentSequence = [each for each in item.ContentSequence if "ReferencedContentItemIdentifier" not in each]
        for each in item.ContentSequence:
            drop_references(each)
        if not item.ContentSequence:
            del item.ContentSequence


@pytest.mark.parametrize("name", STUDIES)
def test_highdicom_reads_both_back(written, paths, name):
    summary = hd.sr.srread(written[name] / "study_summary.dcm")
    assert summary.content[0].name == study_summary.ROOT
    assert len(summary.get_evidence()) == 4
    report = pydicom.dcmread(written[name] / "cad_report.dcm")
    drop_references(report)
    (root,) = hd.sr.ContentSequence.from_sequence([report], is_root=True, is_sr=True)
    assert root.name == cad.ROOT
    found = hd.sr.utils.find_content_items(root, name=cad.OUTLINE, recursive=True)
    assert len(found) == sum(len(image.findings) for image in make_study(paths, name))
    assert all(np.array_equal(item.value[0], item.value[-1]) for item in found)


@pytest.mark.parametrize("name", STUDIES)
def test_the_summary_lists_every_image_with_what_became_of_it(written, paths, name):
    summary = pydicom.dcmread(written[name] / "study_summary.dcm")
    images = {image.name: image for image in make_study(paths, name)}
    containers = [item for item in summary.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "IMAGE"]
    assert [texts(item, study_summary.VIEW_NAME) for item in containers] == [["RCC"], ["LCC"], ["RMLO"], ["LMLO"]]
    for item in containers:
        image = images[texts(item, study_summary.VIEW_NAME)[0]]
        assert codes(item, study_summary.STATE) == [study_summary.STATES[image.state].value]
        assert number(item, IMAGE_SCORE) == image.image_score
        assert number(item, IMAGE_P_VALUE) == (
            image.image_p_value if image.was_examined or image.image_p_value else None
        )
        assert number(item, FINDING_COUNT) == (len(image.findings) if image.was_examined else None)
        if image.reason:
            (text,) = texts(item, study_summary.REASON)
            assert text == f"{image.state}, {image.reason}: {image.detail}"
    counted = {
        study_summary.IMAGES: 4,
        study_summary.EXAMINED: sum(image.state in ("examined", "not scored") for image in images.values()),
        study_summary.REFUSED: sum(image.state == "refused" for image in images.values()),
        study_summary.FAILED: sum(image.state == "failed" for image in images.values()),
        FINDING_COUNT: sum(len(image.findings) for image in images.values()),
    }
    assert {code: number(summary, code) for code in counted} == counted
    scores = [image.image_score for image in images.values() if image.image_score is not None]
    assert number(summary, study_summary.HIGHEST_SCORE) == (max(scores) if scores else None)
    assert codes(summary, SUMMARY) == [STUDIES[name][0].value]


@pytest.mark.parametrize("kind", STUDY_KINDS)
def test_every_object_names_model_point_and_notice_and_belongs_to_patient_and_study(written, paths, kind):
    path = written["with findings"] / f"{kind}.dcm"
    stored, found, source = path.read_bytes(), pydicom.dcmread(path), pydicom.dcmread(paths["RCC"])
    for text in (NOTICE, IDENTITY.sha256, IDENTITY.data_hash, "operating point: 1; threshold", "NOT FOR DIAGNOSIS"):
        assert text.encode() in stored, text
    for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "StudyDate", "AccessionNumber", "OtherPatientIDs"):
        assert found[keyword].value == source[keyword].value, keyword
    assert found.PatientName == CANARY
    assert found.Modality == "SR"
    assert (found.CompletionFlag, found.VerificationFlag) == ("COMPLETE", "UNVERIFIED")


def test_the_same_study_gives_the_same_bytes_in_whatever_order_and_another_another_identifier(written, paths, tmp_path):
    images = list(make_study(paths, "with findings"))
    write_study_objects(images[::-1], POINT, RUN, tmp_path / "again")
    for kind in STUDY_KINDS:
        before = (written["with findings"] / f"{kind}.dcm").read_bytes()
        assert (tmp_path / "again" / f"{kind}.dcm").read_bytes() == before
    others = {
        "an image less": (images[1:], POINT, RUN),
        "another score": ([replace(images[0], image_score=1.5), *images[1:]], POINT, RUN),
        "another reason": ([replace(images[0], state="refused", reason="IMPLANT"), *images[1:]], POINT, RUN),
        "another model": (images, POINT, replace(RUN, identity=replace(IDENTITY, sha256="0" * 64))),
        "another point": (images, replace(POINT, threshold=5.0), RUN),
        "another moment": (images, POINT, replace(RUN, moment=MOMENT.replace(microsecond=0))),
    }
    uids = {pydicom.dcmread(written["with findings"] / f"{kind}.dcm").SOPInstanceUID for kind in STUDY_KINDS}
    for name, arguments in others.items():
        write_study_objects(*arguments, tmp_path / name)
        uids |= {pydicom.dcmread(tmp_path / name / f"{kind}.dcm").SOPInstanceUID for kind in STUDY_KINDS}
    assert len(uids) == 2 * (1 + len(others))


def test_images_of_two_patients_are_never_in_one_object(paths, tmp_path):
    dataset = pydicom.dcmread(paths["LCC"])
    dataset.PatientID = "P2"
    dataset.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    images = [make_image(paths["RCC"]), make_image(tmp_path / "other.dcm")]
    with pytest.raises(ValueError, match="one study and one patient"):
        gather_study(images, POINT, RUN, "cad_report")
    with pytest.raises(ValueError, match="one study and one patient"):
        write_study_objects([], POINT, RUN, tmp_path)


def test_one_object_that_cannot_be_made_does_not_stop_the_other(paths, tmp_path, monkeypatch):
    def fail(_):
        raise KeyError("Kanarie^Vogel")

    monkeypatch.setitem(study_writing._BUILD, "cad_report", fail)
    with pytest.raises(DicomResultError, match=r"no DICOM cad_report \(KeyError\)") as caught:
        write_study_objects([make_image(paths["RCC"])], POINT, RUN, tmp_path)
    assert [path.name for path in caught.value.written] == ["study_summary.dcm"]
    assert "Kanarie" not in str(caught.value)
    with pytest.raises(ValueError, match="unknown kind 'report'"):
        write_study_objects([make_image(paths["RCC"])], POINT, RUN, tmp_path, kinds=("report",))


@pytest.mark.skipif(TEMPLATE_VALIDATOR is None, reason="no DicomSRValidator: apt-get install pixelmed-apps")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal", "partly, with findings"])
def test_the_cad_report_follows_its_template(written, name):
    limits = " ".join(f"-Djdk.xml.xpath{each}Limit=0" for each in ("TotalOp", "ExprOp", "ExprGrp"))
    command = [TEMPLATE_VALIDATOR, written[name] / "cad_report.dcm"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "JAVA_TOOL_OPTIONS": limits}
    )
    said = done.stdout + done.stderr
    assert "Found Root Template TID_4000" in said
    assert "Root Template Validation Complete" in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []
