import dataclasses
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from unary.datasets.manifest import build_manifest
from unary.errors import ImageError, ManifestError
from unary.images.reading import read_image
from unary.patches.collection import (
    collect_patches,
    label_patches,
    read_lesion_mask,
    read_row,
    resample_collection,
)
from unary.patches.grid import GridConfig, extract_patches, tissue_origins
from unary.patches.lesions import judge_patches, rasterise_lesion
from unary.patches.patch_set import cut_window, find_window
from unary.patches.preparation import PreparationConfig, prepare_image
from unary.patches.store import is_stored
from unary.profiles import GENERAL, MAMMOGRAPHY, LesionGroup, Reading
from unary.records import Image, Lesion, ManifestRow

GRID = GridConfig(64, 32)
READING = MAMMOGRAPHY.reading


def test_patches_are_those_of_each_image(phantoms):
    collection = collect_patches(phantoms, PreparationConfig(), GRID, READING)
    assert [row.image_id for row in collection.rows] == [row.image_id for row in phantoms.rows]
    for number in (0, len(collection.rows) - 1):
        row = collection.rows[number]
        prepared = prepare_image(read_image(row.path), PreparationConfig())
        own = collection.image == number
        origins = tissue_origins(prepared.mask, GRID)
        assert (collection.origins[own] == origins).all()
        expected = extract_patches(prepared.pixels, origins, size_px=64)
        assert (collection.patches.gather(np.flatnonzero(own)) == expected).all()
        assert set(collection.column("patient_id")[own]) == {row.patient_id}


def test_lesions_mark_patches_by_the_rule(phantoms):
    collection = collect_patches(phantoms, PreparationConfig(), GRID, READING)
    label = collection.column("label")
    assert collection.lesional[label == "positive"].any()
    assert not collection.touches[label == "negative"].any()
    assert not (collection.lesional & ~collection.touches).any()
    assert not (collection.normal_looking & (collection.touches | (label == "negative"))).any()
    for number, row in enumerate(collection.rows):
        own = collection.image == number
        held = np.zeros(int(own.sum()), bool)
        shape = read_image(row.path).shape
        for lesion in phantoms.lesions_of(row.image_id):
            held |= judge_patches(*rasterise_lesion(lesion, shape), collection.origins[own], size_px=64)[0]
        assert (collection.lesional[own] == held).all()


def test_an_incomplete_image_has_no_normal_looking_patch(phantoms):
    rows = tuple(dataclasses.replace(row, complete=row.label == "negative") for row in phantoms.rows)
    collection = collect_patches(dataclasses.replace(phantoms, rows=rows), PreparationConfig(), GRID, READING)
    assert not collection.normal_looking.any()
    assert collection.lesional.any()


def test_one_bad_file_is_skipped_by_name_and_the_hash_follows_the_data(phantoms, tmp_path, caplog):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(phantoms.rows[0].path.read_bytes()[:5000])
    bad = dataclasses.replace(phantoms.rows[0], path=broken, image_id="broken")
    few = phantoms.select(phantoms.rows[:2])
    collection = collect_patches(few.select((*few.rows, bad)), PreparationConfig(), GRID, READING)
    assert len(collection.rows) == 2
    assert len(collection.skipped) == 1
    assert "broken.dcm" in collection.skipped[0]
    assert "1 of 3 images were skipped" in caplog.text
    same = collect_patches(few, PreparationConfig(), GRID, READING)
    other = collect_patches(few, PreparationConfig(high_value=0.7), GRID, READING)
    assert collection.data_hash == same.data_hash != other.data_hash


def test_nothing_usable_is_an_error(phantoms):
    row = dataclasses.replace(phantoms.rows[0], path=Path("/nowhere/gone.dcm"))
    with pytest.raises(ManifestError, match=r"none of 1 images could be used: .*gone\.dcm"):
        collect_patches(phantoms.select((row,)), PreparationConfig(), GRID, READING)


def test_a_store_changes_where_pixels_lie_and_nothing_else(phantoms, tmp_path):
    few = phantoms.select(phantoms.rows[:4])
    memory = collect_patches(few, PreparationConfig(), GRID, READING)
    stored = collect_patches(few, PreparationConfig(), GRID, READING, store=tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["prepared.tif"]
    assert all(is_stored(image) for image in stored.patches.images)
    assert (stored.patches.gather(slice(None)) == memory.patches.gather(slice(None))).all()
    assert stored.data_hash == memory.data_hash
    assert (stored.origins == memory.origins).all()
    assert (stored.touches == memory.touches).all()


def test_a_collection_keeps_the_window_that_a_detector_sees_in_use(phantoms):
    few = phantoms.select(phantoms.rows[:3])
    collection = collect_patches(few, PreparationConfig(), GRID, READING)
    for pixels, mask, origins, which in collection.patches.views():
        row = collection.rows[collection.image[which[0]]]
        prepared = prepare_image(read_image(row.path), PreparationConfig())
        window = find_window(prepared.mask, tissue_origins(prepared.mask, GRID), size_px=64)
        assert np.array_equal(pixels, cut_window(prepared.pixels, window))
        assert np.array_equal(mask, cut_window(prepared.mask, window))
        assert np.array_equal(origins + np.array([window[0].start, window[1].start]), collection.origins[which])


def test_images_in_memory_make_the_same_patches_as_their_files(phantoms):
    few = phantoms.select(phantoms.rows[:3])
    files = collect_patches(few, PreparationConfig(), GRID, READING)
    manifest = build_manifest([read_image(row.path) for row in few.rows], labels=[row.label for row in few.rows])
    memory = collect_patches(manifest, PreparationConfig(), GRID, READING)
    assert memory.data_hash == files.data_hash
    assert (memory.spacings_mm == files.spacings_mm).all()
    arrays = build_manifest([read_image(row.path).pixels for row in few.rows])
    plain = collect_patches(arrays, PreparationConfig(), GRID, GENERAL.reading)
    assert plain.data_hash == files.data_hash
    assert np.isnan(plain.spacings_mm).all()
    assert list(plain.contains) == ["other"]


def test_an_image_in_memory_wins_over_a_path_and_its_spacing_over_the_rows(phantoms):
    pixels = np.arange(64.0).reshape(8, 8)
    row = dataclasses.replace(phantoms.rows[0], image=Image.from_array(pixels), spacing_mm=0.3)
    assert (read_row(row).pixels == pixels).all()
    assert read_row(row).spacing_mm == (0.3, 0.3)
    known = dataclasses.replace(row, image=Image.from_array(pixels, spacing_mm=(0.1, 0.2)))
    assert read_row(known).spacing_mm == (0.1, 0.2)
    assert not read_row(row).notes
    assert read_row(known).notes == (
        "its own pixel spacing, 0.1 x 0.2 mm, is taken, and not the 0.3 mm of the manifest",
    )
    with pytest.raises(ImageError, match="'empty' of the manifest has neither a path nor an image"):
        read_row(ManifestRow(None, "empty", "p"))


def test_labels_follow_the_groups_of_the_profile():
    pixels = np.random.default_rng(0).integers(100, 4000, (64, 64), dtype=np.uint16)
    prepared = prepare_image(Image.from_array(pixels, spacing_mm=0.5), PreparationConfig(mask="none"))
    origins = tissue_origins(prepared.mask, GridConfig(32, 32))
    reading = Reading(groups=(LesionGroup("nodule", "nodules", ("nodul",)),))
    lesions = (
        Lesion("a", "Nodule, solid", "box", ((2, 2), (10, 14))),
        Lesion("a", "Nodule", "box", ((4, 4), (9, 9))),
        Lesion("a", "Fracture", "box", ((30, 40), (50, 44))),
    )
    row = ManifestRow(None, "a", "p")
    found = label_patches(row, lesions, prepared, origins, 32, reading)
    assert {name: held.tolist() for name, held in found.contains.items()} == {
        "nodule": [True, False, False, False],
        "other": [False, False, False, True],
    }
    assert found.touches.tolist() == [True, True, False, True]
    assert found.sizes_mm["nodule"][0] == 6.0, "the larger of two"
    assert np.isnan(found.sizes_mm["nodule"][1:]).all()
    partly = label_patches(dataclasses.replace(row, complete=False), lesions, prepared, origins, 32, reading)
    assert partly.touches.all()


def test_a_lesion_that_no_patch_can_hold_is_named(caplog):
    pixels = np.random.default_rng(0).integers(2000, 4000, (64, 64), dtype=np.uint16)
    pixels[:, 40:] = 0
    prepared = prepare_image(Image.from_array(pixels), PreparationConfig())
    origins = tissue_origins(prepared.mask, GridConfig(16, 16))
    row = ManifestRow(None, "film", "p", "positive")
    inside, off, outside = (Lesion("film", "Mass", "point", (at,)) for at in ((20.0, 10.0), (20.0, 60.0), (99.0, 10.0)))
    found = label_patches(row, (inside,), prepared, origins, 16, READING)
    assert found.touches.sum() == 1
    assert not caplog.text
    assert label_patches(row, (inside, off), prepared, origins, 16, READING).touches.sum() == 1
    assert "film: 1 lesion off the tissue that was found" in caplog.text
    assert label_patches(row, (inside, outside), prepared, origins, 16, READING).touches.all(), "nobody knows where"
    assert "film: 1 lesion outside the image, which counts as incomplete" in caplog.text
    label_patches(row, (Lesion("film", "Mass", "box", ((0, 0), (60, 60))),), prepared, origins, 16, READING)
    assert "film: 1 lesion over more than half of the image; is a mask inverted?" in caplog.text


def test_one_picture_under_two_patients_is_named_whatever_its_file(phantoms, tmp_path, caplog):
    image = read_image(phantoms.rows[0].path)
    for name, level in (("a", 1), ("b", 9)):
        PIL.Image.fromarray(image.pixels.astype(np.uint16)).save(tmp_path / f"{name}.png", compress_level=level)
    assert (tmp_path / "a.png").stat().st_size != (tmp_path / "b.png").stat().st_size
    manifest = build_manifest([tmp_path / "a.png", tmp_path / "b.png", *(row.path for row in phantoms.rows[1:3])])
    collect_patches(manifest, PreparationConfig(), GRID, READING)
    assert "the same picture under different patients" in caplog.text
    assert "a = b" in caplog.text


def test_a_lesion_mask_has_the_shape_of_its_image(tmp_path):
    inside = np.zeros((20, 30), np.uint8)
    inside[4:9, 5:7] = 255
    PIL.Image.fromarray(inside).save(tmp_path / "mask.png")
    assert np.array_equal(read_lesion_mask(tmp_path / "mask.png", (20, 30)), inside > 0)
    with pytest.raises(ImageError, match=r"mask\.png: the lesion mask has the shape \(20, 30\) but its image has"):
        read_lesion_mask(tmp_path / "mask.png", (30, 20))


def test_the_same_patches_on_a_coarser_grid(phantoms):
    few = phantoms.select(phantoms.rows[-3:])
    fine = collect_patches(few, PreparationConfig(), GRID, READING)
    spacing = read_image(few.rows[0].path).spacing_mm[0]
    coarse = resample_collection(fine, PreparationConfig(working_spacing_mm=2 * spacing), size_px=32)
    assert np.abs(coarse.origins * 2 - fine.origins).max() <= 1
    assert (coarse.image == fine.image).all()
    assert (coarse.touches == fine.touches).all()
    assert coarse.data_hash != fine.data_hash
    small, large = coarse.patches.gather(slice(None)), fine.patches.gather(slice(None))
    means = large.reshape(len(large), 32, 2, 32, 2).mean(axis=(2, 4))
    assert np.corrcoef(small.ravel(), means.ravel())[0, 1] > 0.98
