"""The card of a model: true to the model, without a patient, kept and noticed."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

import unary
from unary.cli.main import main
from unary.datasets.manifest import write_manifest
from unary.files import hash_file
from unary.models import card
from unary.models.bundle import MODEL_FILE, read_model, require_model_folder, write_model
from unary.models.calibration import describe_guarantee
from unary.models.card import (
    CARD_FILE,
    Background,
    build_card,
    count_images,
    describe_command,
    find_card_hash,
    read_background,
)
from unary.models.card_words import WORDS
from unary.records import NOTICE, Image, ManifestRow

ROOT = Path(__file__).parents[1]
HASHES = {"sha256": "a" * 64, "weights_sha256": "b" * 64}


@pytest.fixture
def folder(model_folder, tmp_path):
    """Return a copy of a model's folder that may be written to."""
    return shutil.copytree(model_folder, tmp_path / "model")


def test_a_fitted_model_has_a_card_of_its_own(model_folder, normals):
    text = (model_folder / CARD_FILE).read_text(encoding="utf-8")
    model = read_model(model_folder)
    assert find_card_hash(text) == hash_file(model_folder / MODEL_FILE)
    assert NOTICE in text
    assert f"| Used | {len(normals.rows)} images of 6 patients |" in text
    assert "| Views | CC (6), MLO (6) |" in text
    assert "| Equipment | unary synthetic phantom (12) |" in text
    assert "| detector.neighbourhood_px | 16.0 |" in text
    assert f"| data (hash of the training patches) | {model.provenance.data_hash} |" in text
    for point in model.calibration.operating_points:
        assert describe_guarantee(point) in text
        assert f"| {point.name} | {point.threshold:.4g} |" in text
    (weights,) = model_folder.glob("weights-*")
    assert hash_file(weights) in text
    assert model.background.images[0] == ("Used", f"{len(normals.rows)} images of 6 patients")


def test_a_card_names_no_patient_and_no_day(model_folder, normals):
    text = (model_folder / CARD_FILE).read_text(encoding="utf-8")
    for row in normals.rows:
        assert row.patient_id not in text
        assert row.image_id not in text
        assert str(row.path) not in text
    assert not any(one in text for one in read_model(model_folder).provenance.seen.hashes)
    assert not re.search(r"\b(19|20)\d\d-?\d\d-?\d\d\b", text)


def test_a_card_is_read_back_whatever_it_holds(model_folder):
    model = read_model(model_folder)
    images = (("Views", "a | b, <i>c</i> & `d` (3)"), ("Equipment", "x\ny (1)"))
    background = Background(images, ("unary fit 'a b.csv' --out m", "unary calibrate m\nn.csv"))
    text = build_card(model, background, **HASHES)
    assert text == build_card(model, background, **HASHES)
    assert "<i>" not in text
    assert read_background(text) == Background(
        (images[0], ("Equipment", "x y (1)")), ("unary fit 'a b.csv' --out m", "unary calibrate m n.csv")
    )
    assert find_card_hash(text) == HASHES["sha256"]
    assert find_card_hash("# Model card: of somebody else") is None


def test_a_password_in_a_command_is_not_kept(monkeypatch):
    monkeypatch.setattr("sys.argv", ["unary", "fit", "a b.csv", "--track", "mlflow:http://me:secret@host:5000"])
    assert describe_command() == "unary fit 'a b.csv' --track mlflow:http://host:5000"


def test_calibrating_makes_a_new_card_and_keeps_the_old(folder, normals, tmp_path, capsys):
    before = (folder / CARD_FILE).read_text(encoding="utf-8")
    manifest = tmp_path / "normals.csv"
    write_manifest(normals.select((normals.rows[0], normals.rows[-1])), manifest)
    words = ["calibrate", str(folder), str(manifest), "--allow-seen"]
    assert main(words) == 0
    after = (folder / CARD_FILE).read_text(encoding="utf-8")
    assert find_card_hash(after) == hash_file(folder / MODEL_FILE) != find_card_hash(before)
    assert "were allowed: nothing is guaranteed" in after
    assert "| Views | CC (6), MLO (6) |" in after, "what only the fit knew is carried over"
    assert len(read_background(after).commands) == 1
    (kept,) = folder.glob("MODEL_CARD-*.md")
    assert kept.read_text(encoding="utf-8") == before
    after_notes = after + "\nReviewed by the physicist.\n"
    (folder / CARD_FILE).write_text(after_notes, encoding="utf-8")
    assert main(words) == 0
    assert (folder / CARD_FILE).read_text(encoding="utf-8") == after_notes, "the same model has the same card"
    assert main([*words, "--out", str(tmp_path / "other")]) == 0
    assert "| Views | CC (6), MLO (6) |" in (tmp_path / "other" / CARD_FILE).read_text(encoding="utf-8")


def test_a_card_of_another_model_is_noticed(folder, caplog):
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    own = find_card_hash(text)
    (folder / f"MODEL_CARD-{own[:16]}.md").write_text(text, encoding="utf-8")
    (folder / CARD_FILE).write_text(text.replace(own, "0" * 64), encoding="utf-8")
    assert read_model(folder).background == Background()
    assert f"the card is not of the model beside it; that of this one is MODEL_CARD-{own[:16]}.md" in caplog.text
    caplog.clear()
    (folder / CARD_FILE).unlink()
    assert read_model(folder).background == Background()
    assert not caplog.text


def test_a_card_that_cannot_be_written_costs_no_model(model_folder, tmp_path, monkeypatch, caplog):
    def refuse(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card, "replacing", refuse)
    model = read_model(model_folder)
    write_model(model, tmp_path / "model")
    assert "the model is there, its card is not (No space left on device)" in caplog.text
    assert read_model(tmp_path / "model").calibration == model.calibration


def test_a_card_of_somebody_else_is_not_lost(folder, model_folder, tmp_path):
    (folder / CARD_FILE).write_text("# our own words\n", encoding="utf-8")
    model = dataclasses.replace(read_model(folder), calibration=None)
    write_model(model, folder, overwrite=True)
    (kept,) = folder.glob("MODEL_CARD-*.md")
    assert kept.read_text(encoding="utf-8") == "# our own words\n"
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / CARD_FILE).write_text("# our own words\n", encoding="utf-8")
    with pytest.raises(unary.UnaryError, match="not empty and holds no model"):
        require_model_folder(alone)


def test_images_are_counted_by_what_is_known(tmp_path):
    rows = [
        ManifestRow(None, f"i{number}", f"p{number // 2}", "negative", view=view)
        for number, view in enumerate(("CC", "CC", "MLO", None))
    ]
    known = Image.from_array([[1, 2], [3, 4]], spacing_mm=(0.05, 0.1))
    known = dataclasses.replace(known, manufacturer="Maker\x00 A", view="LM", modality="MG")
    facts = dict(count_images(rows, [None, known, known, known]))
    assert facts["Used"] == "4 images of 2 patients"
    assert facts["Views"] == "CC (2), LM (1), MLO (1)"
    assert facts["Modalities"] == "MG (3), not stated (1)"
    assert facts["Pixel spacing"] == "0.05 to 0.1 mm, stated by 3 images"
    assert "Sides" not in facts
    assert "Densities" not in facts


@pytest.mark.parametrize("name", WORDS)
def test_the_page_of_cards_says_what_cards_say(name):
    page = (ROOT / "docs/model_card.md").read_text(encoding="utf-8")
    section = " ".join(page.partition(f"## {name}\n")[2].partition("\n## ")[0].split())
    words = WORDS[name]
    assert words.what in section
    assert words.meant_for in section
    assert words.limits.lower() in section.lower()
    assert name in unary.DETECTORS
