import dataclasses
from pathlib import Path

import numpy as np
import pytest

from unary.errors import ManifestError
from unary.images.reading import read_image
from unary.patches.collection import collect_patches
from unary.patches.grid import GridConfig, extract_patches, tissue_origins
from unary.patches.lesions import judge_patches, rasterise_lesion
from unary.patches.preparation import PreparationConfig, prepare_image
from unary.patches.store import is_stored
from unary.profiles import MAMMOGRAPHY

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
