"""What every reader of a data set promises, asked of each over a small copy of its layout."""

import plistlib
import re
import shutil

import numpy as np
import PIL.Image
import pytest

from unary.datasets import read_data_set
from unary.datasets.annotation import find_place
from unary.datasets.manifest import BIRADS, label_of_birads, read_manifest, write_manifest
from unary.errors import ManifestError
from unary.images.reading import read_image, read_mask, read_shape
from unary.patches.collection import collect_patches
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import MAMMOGRAPHY


def lay_out_inbreast(root, images):
    (root / "AllDICOMs").mkdir()
    (root / "AllXML").mkdir()
    lines = ["File Name;ACR;Bi-Rads"]
    for number, (path, birads) in enumerate(zip(images, ["1", "5", "4a"], strict=True)):
        shutil.copy(path, root / "AllDICOMs" / f"{number}_p{number // 2}_MG_L_ML_ANON.dcm")
        lines.append(f"{number};2;{birads}")
    (root / "INbreast.csv").write_text("\n".join(lines))
    regions = [
        {"Name": "Calcification", "Point_px": ["(150.5, 200.0)"]},
        {"Name": "Mass", "Point_px": ["(50, 60)", "(90, 60)", "(90, 99)"]},
        {"Name": "Mass", "Point_px": ["(9000, 60)"]},
    ]
    (root / "AllXML" / "1.xml").write_bytes(plistlib.dumps({"Images": [{"ROIs": regions}]}))
    return "inbreast"


def lay_out_mias(root, images):
    (root / "Info.txt").write_text("mdb001 G NORM\nmdb002 D CALC M 120 180 20\nmdb003 F CIRC B 5000 20 9\n")
    for number, path in enumerate(images, 1):
        pixels = (read_image(path).pixels // 16).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(root / f"mdb{number:03d}.pgm")
    return "mias"


def lay_out_cbis_ddsm(root, images):
    lines = [
        "patient_id,breast_density,left or right breast,image view,abnormality type,assessment,image file path,"
        "cropped image file path,ROI mask file path"
    ]
    for number, (path, assessment) in enumerate(zip(images, "240", strict=True)):
        case = f"Mass-Test_P_{number:05d}_LEFT_MLO"
        (root / case / "1" / f"{number}.1").mkdir(parents=True)
        shutil.copy(path, root / case / "1" / f"{number}.1" / "1-1.dcm")
        roi = f"{case}_1/1/{number}.2"
        (root / roi).mkdir(parents=True)
        if number < 2:
            shutil.copy(path, root / roi / "1-1.dcm")
        lines.append(
            f"P_{number:05d},2,LEFT,MLO,mass,{assessment},{case}/1/{number}.1/000000.dcm,{roi}/000000.dcm,{roi}/1-1.dcm"
        )
    (root / "mass_case_description_test_set.csv").write_text("\n".join(lines))
    return "cbis_ddsm"


def copy_to(root, images, names):
    for path, name in zip(images, names, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / name)


def lay_out_folder(root, images):
    copy_to(root, images, ["normal/a.dcm", "normal/p/b.dcm", "abnormal/c"])
    return "folder"


def lay_out_brain_mr(root, images):
    copy_to(root, images, ["train/normal/a.dcm", "test/normal/a.dcm", "test/abnormal/b.dcm"])
    return "brain_mr"


def lay_out_chest_films(root, images):
    copy_to(
        root, images, ["normal/IM-0115-0001.dcm", "normal/NORMAL2-IM-0116-0001.dcm", "abnormal/person1_virus_6.dcm"]
    )
    return "chest_films"


LAYOUTS = [
    lay_out_inbreast,
    lay_out_mias,
    lay_out_cbis_ddsm,
    lay_out_folder,
    lay_out_brain_mr,
    lay_out_chest_films,
]


@pytest.fixture(params=LAYOUTS, ids=lambda lay_out: lay_out.__name__[8:])
def dataset(request, tmp_path, phantoms):
    """Return the folder, the manifest and the notices of one layout."""
    root = tmp_path / "data set"
    root.mkdir()
    kind = request.param(root, [row.path for row in phantoms.rows[:3]])
    return root, *read_data_set(kind, root)


def test_rows_are_unique_whole_and_say_what_they_may(dataset):
    _, manifest, notices = dataset
    assert len({row.image_id for row in manifest.rows}) == len(manifest.rows) == 3
    assert isinstance(notices, tuple)
    for row in manifest.rows:
        assert row.path.is_absolute()
        assert row.path.is_file()
        assert row.image_id
        assert row.patient_id
        assert row.laterality in (None, "L", "R")
        assert row.assessment in (None, *BIRADS)
        assert row.density in (None, "1", "2", "3", "4")


def test_labels_follow_birads_wherever_there_is_one(dataset):
    manifest = dataset[1]
    for row in manifest.rows:
        if row.assessment is not None:
            assert row.label == label_of_birads(row.assessment)
    assert {"negative", "positive"} <= {row.label for row in manifest.rows}


def test_every_lesion_lies_in_its_image_or_is_noticed(dataset):
    _, manifest, notices = dataset
    told = "\n".join(notices)
    rows = {row.image_id: row for row in manifest.rows}
    for lesion in manifest.lesions:
        shape = read_shape(rows[lesion.image_id].path)
        if find_place(lesion, shape) != "inside":
            assert lesion.image_id in told
            assert not rows[lesion.image_id].complete
        if lesion.kind == "mask":
            assert read_mask(lesion.mask_path).shape == shape
        assert MAMMOGRAPHY.reading.find_group(lesion.name) in ("calcification", "mass")


def test_what_is_read_can_be_written_read_again_and_moved(dataset, tmp_path):
    root, manifest, _ = dataset
    write_manifest(manifest, root / "m.csv")
    assert read_manifest(root / "m.csv") == manifest
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    again = read_manifest(moved / "m.csv")
    assert [row.image_id for row in again.rows] == [row.image_id for row in manifest.rows]
    assert all(row.path.is_relative_to(moved) for row in again.rows)
    write_manifest(again, tmp_path / "elsewhere.csv")
    assert read_manifest(tmp_path / "elsewhere.csv") == again


def test_reading_twice_gives_the_same_in_the_same_order(dataset, request):
    root, manifest, notices = dataset
    (name,) = re.findall(r"\[(\w+)\]", request.node.name)
    assert read_data_set(name, root) == (manifest, notices)


def test_patches_can_be_collected(dataset):
    collection = collect_patches(
        dataset[1], PreparationConfig(), GridConfig(64, 64), MAMMOGRAPHY.reading, progress=False
    )
    assert len(collection.rows) == 3
    assert len(collection.origins) > 0


def test_one_film_under_two_patients_is_refused_whatever_the_data_set(tmp_path, phantoms):
    for name in ("normal/p/a.dcm", "normal/q/b.dcm"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(phantoms.rows[0].path, tmp_path / name)
    with pytest.raises(ManifestError, match=r"one image under 2 patients.*normal/p/a\.dcm, normal/q/b\.dcm"):
        read_data_set("folder", tmp_path)
    shutil.move(tmp_path / "normal/q/b.dcm", tmp_path / "normal/p/b.dcm")
    manifest, notices = read_data_set("folder", tmp_path)
    assert [row.image_id for row in manifest.rows] == ["normal/p/a"]
    assert "1 image listed again, left out: normal/p/b.dcm (as normal/p/a.dcm)" in notices
