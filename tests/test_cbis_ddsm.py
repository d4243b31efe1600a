import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from unary.datasets.cbis_ddsm import read_cbis_ddsm
from unary.datasets.manifest import label_of_birads
from unary.errors import ManifestError
from unary.images.reading import read_image, read_mask
from unary.patches.collection import collect_patches
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import MAMMOGRAPHY

HEADER = (
    "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,mass shape,assessment,"
    "pathology,subtlety,image file path,cropped image file path,ROI mask file path"
)


def write_dicom(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    dataset.Modality, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = "MG", 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits, bits - 1, 0
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture
def download(tmp_path):
    """Two images; the first has two lesions, the mask of the second lesion has changed places with its crop."""
    rng = np.random.default_rng(0)
    lines = []
    for case, patient, view, lesions in [
        ("Calc-Training_P_00005_RIGHT_CC", "P_00005", "CC", 2),
        ("Calc-Training_P_00007_LEFT_MLO", "P_00007", "MLO", 1),
    ]:
        pixels = rng.integers(0, 300, (200, 160), dtype=np.uint16)
        pixels[20:180, :120] += 20000
        write_dicom(tmp_path / "CBIS-DDSM" / case / "1.1" / f"{case}.img" / "1-1.dcm", pixels)
        for number in range(1, lesions + 1):
            mask = np.zeros((200, 160), np.uint8)
            mask[40 * number : 40 * number + 20, 50:70] = 255
            names = ("1-2.dcm", "1-1.dcm") if number == 1 else ("1-1.dcm", "1-2.dcm")
            series = tmp_path / "CBIS-DDSM" / f"{case}_{number}" / "1.2" / f"{case}_{number}.roi"
            write_dicom(series / names[0], mask)
            write_dicom(series / names[1], rng.integers(0, 9, (20, 20), dtype=np.uint16))
            side = case.split("_")[3]
            roi = f"{case}_{number}/1.2/{case}_{number}.roi"
            assessment = {("P_00005", 1): "2", ("P_00005", 2): "4"}.get((patient, number), "0")
            lines.append(
                f"{patient},3,{side},{view},{number},calcification,N/A,{assessment},BENIGN,3,"
                f'{case}/1.1/{case}.img/000000.dcm,{roi}/000001.dcm,"{roi}/000000.dcm\n"'
            )
    (tmp_path / "calc_case_description_train_set.csv").write_text("\n".join([HEADER, *lines]))
    return tmp_path


def test_lines_of_one_image_are_joined(download):
    manifest, notices = read_cbis_ddsm(download)
    rows = {row.image_id: row for row in manifest.rows}
    assert set(rows) == {"Calc-Training_P_00005_RIGHT_CC", "Calc-Training_P_00007_LEFT_MLO"}
    first, second = rows.values()
    assert (first.patient_id, first.laterality, first.view, first.density) == ("P_00005", "R", "CC", "3")
    assert (first.assessment, first.label) == ("4", "positive")
    assert (second.assessment, second.label) == (None, None)
    assert len(manifest.lesions_of(first.image_id)) == 2
    assert notices == ()


def test_swapped_mask_and_crop_are_told_apart_by_size(download):
    manifest, _ = read_cbis_ddsm(download)
    for row in manifest.rows:
        for number, lesion in enumerate(manifest.lesions_of(row.image_id), 1):
            mask = read_mask(lesion.mask_path)
            assert mask.shape == read_image(row.path).shape
            assert np.argwhere(mask).min(axis=0).tolist() == [40 * number, 50]


def test_masks_mark_patches(download):
    collection = collect_patches(
        read_cbis_ddsm(download)[0], PreparationConfig(), GridConfig(40, 40), MAMMOGRAPHY.reading
    )
    own = collection.image == 0
    held = collection.origins[own & collection.contains["calcification"]].tolist()
    assert held == [[40, 40], [80, 40]]


def test_missing_files_are_noticed(download):
    next((download / "CBIS-DDSM").glob("*P_00007_LEFT_MLO/*/*/*.dcm")).unlink()
    for path in (download / "CBIS-DDSM").glob("*P_00005_RIGHT_CC_2/*/*/*.dcm"):
        path.unlink()
    manifest, notices = read_cbis_ddsm(download)
    assert len(manifest.rows) == 1
    assert any("P_00007" in notice and "not on disk" in notice for notice in notices)
    assert any("abnormality 2" in notice for notice in notices)


def test_not_a_download(tmp_path, download):
    with pytest.raises(ManifestError, match="no table"):
        read_cbis_ddsm(tmp_path / "CBIS-DDSM")
    table = download / "calc_case_description_train_set.csv"
    text = table.read_text()
    table.write_text(text.replace("assessment", "score"))
    with pytest.raises(ManifestError, match="'assessment' is missing"):
        read_cbis_ddsm(download)
    table.write_text(text)
    for path in (download / "CBIS-DDSM").rglob("*.dcm"):
        path.unlink()
    with pytest.raises(ManifestError, match="none of them is on disk"):
        read_cbis_ddsm(download)


def test_folders_renamed_by_date_and_description(download):
    root = download / "CBIS-DDSM"
    expected = read_cbis_ddsm(download)[0]
    for case in sorted(root.iterdir()):
        (study,) = case.iterdir()
        (series,) = study.iterdir()
        series.rename(study / "1.000000-full mammogram images-38548")
        study.rename(case / "08-07-2016-DDSM-NA-96009")
    manifest, notices = read_cbis_ddsm(download)
    assert notices == ()
    assert [row.image_id for row in manifest.rows] == [row.image_id for row in expected.rows]
    for row in manifest.rows:
        assert read_image(row.path).shape == (200, 160)
        assert [np.argwhere(read_mask(lesion.mask_path)).min() for lesion in manifest.lesions_of(row.image_id)] == [
            min(40 * number, 50) for number in range(1, len(manifest.lesions_of(row.image_id)) + 1)
        ]


def test_suffixes_in_capitals_count(download):
    expected, _ = read_cbis_ddsm(download)
    for path in list(download.rglob("*.dcm")):
        path.rename(path.with_suffix(".DCM"))
    manifest, notices = read_cbis_ddsm(download)
    assert notices == ()
    assert [row.path for row in manifest.rows] == [row.path.with_suffix(".DCM") for row in expected.rows]
    assert len(manifest.lesions) == len(expected.lesions)


def test_an_image_whose_mask_is_missing_counts_as_incomplete(download):
    for path in (download / "CBIS-DDSM").glob("*P_00005_RIGHT_CC_2/*/*/*.dcm"):
        path.unlink()
    rows = {row.patient_id: row for row in read_cbis_ddsm(download)[0].rows}
    assert not rows["P_00005"].complete
    assert rows["P_00007"].complete


def add_mass(download, shape):
    """Add a table of masses with a copy of the first film."""
    case = "Mass-Training_P_00005_RIGHT_CC"
    rng = np.random.default_rng(1)
    write_dicom(download / "CBIS-DDSM" / case / "2.1" / "m.img" / "1-1.dcm", rng.integers(0, 9, shape, dtype=np.uint16))
    mask = np.zeros(shape, np.uint8)
    mask[100:150, 10:40] = 255
    write_dicom(download / "CBIS-DDSM" / f"{case}_1" / "2.2" / "m.roi" / "1-1.dcm", mask)
    line = (
        f"P_00005,3,RIGHT,CC,1,mass,OVAL,5,MALIGNANT,3,{case}/2.1/m.img/000000.dcm,{case}_1/2.2/m.roi/000000.dcm,"
        f"{case}_1/2.2/m.roi/000001.dcm"
    )
    (download / "mass_case_description_train_set.csv").write_text(
        f"{HEADER.replace('breast_density', 'breast density')}\n{line}\n"
    )


def test_masses_and_calcifications_of_one_film_are_joined(download):
    add_mass(download, (200, 160))
    manifest, notices = read_cbis_ddsm(download)
    assert notices == ()
    (row,) = [row for row in manifest.rows if row.patient_id == "P_00005"]
    assert (row.assessment, row.complete) == ("5", True)
    assert [lesion.name for lesion in manifest.lesions_of(row.image_id)] == ["Calcification", "Calcification", "Mass"]


def test_copies_of_unlike_size_stay_apart_and_incomplete(download):
    add_mass(download, (210, 160))
    manifest, notices = read_cbis_ddsm(download)
    rows = [row for row in manifest.rows if row.patient_id == "P_00005"]
    assert [row.complete for row in rows] == [False, False]
    assert [len(manifest.lesions_of(row.image_id)) for row in rows] == [2, 1]
    assert any("two sizes" in notice for notice in notices)


@pytest.mark.parametrize(
    ("assessments", "birads"), [("2,2", "2"), ("0,2", None), ("0,4", "4"), ("3,5", "5"), (",2", None), ("0,0", None)]
)
def test_what_is_not_assessed_is_not_taken_as_benign(download, assessments, birads):
    table = download / "calc_case_description_train_set.csv"
    first, second = assessments.split(",")
    text = table.read_text().replace("N/A,2,", f"N/A,{first},", 1).replace("N/A,4,", f"N/A,{second},", 1)
    table.write_text(text)
    row = read_cbis_ddsm(download)[0].rows[0]
    assert row.assessment == birads
    assert row.label == label_of_birads(birads)


def test_malformed_tables_are_named(download):
    table = download / "calc_case_description_train_set.csv"
    text = table.read_text()
    table.write_text(text.replace("P_00007,", ",", 1))
    with pytest.raises(ManifestError, match=r"train_set\.csv, line 6: a patient"):
        read_cbis_ddsm(download)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="UTF-16, not saved as UTF-8"):
        read_cbis_ddsm(download)


def test_what_the_tables_say_twice_or_strangely_is_counted(download):
    table = download / "calc_case_description_train_set.csv"
    expected = read_cbis_ddsm(download)[0]
    lines = table.read_text()
    again = lines[lines.rindex("P_00007,") :]
    table.write_text(lines + "\n" + again)
    write_dicom(download / "CBIS-DDSM" / "other" / "1-1.dcm", np.zeros((4, 4), np.uint8))
    manifest, notices = read_cbis_ddsm(download)
    assert manifest == expected
    assert notices == (
        "1 DICOM file that no table names, left out: 1-1.dcm",
        "1 line of the tables repeated, each counted once",
    )
    table.write_text(lines.replace("calcification,N/A,0", "calcification,N/A,high", 1).replace("LEFT,", "BOTH,", 1))
    notices = read_cbis_ddsm(download)[1]
    assert any("unknown assessment" in notice for notice in notices)
    assert any("neither left nor right" in notice for notice in notices)


def test_one_mask_does_not_stand_for_two_abnormalities(download):
    table = download / "calc_case_description_train_set.csv"
    name = "Calc-Training_P_00005_RIGHT_CC"
    table.write_text(table.read_text().replace(f"{name}_2", f"{name}_1"))
    manifest, notices = read_cbis_ddsm(download)
    row = manifest.rows[0]
    assert len(manifest.lesions_of(row.image_id)) == 1
    assert not row.complete
    assert any("for abnormality 2 (2 file(s), none of them fit)" in notice for notice in notices)
