"""What results show in a notebook: complete, self-contained, bounded, and without a patient."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re

import numpy as np
import PIL.Image
import pytest

import unary
from unary.evaluation.evaluate import evaluate
from unary.models.bundle import read_model
from unary.outputs.notebook import LONG_SIDE_PX, Display, show_detection
from unary.records import NOTICE, Image


@pytest.fixture(scope="module")
def shown(model_folder, phantoms):
    """Return objects by name, and the row of their image."""
    model = read_model(model_folder)
    row = next(row for row in phantoms.rows if row.label == "positive")
    image = unary.read_image(row.path)
    scored, detection = unary.score(model, image), unary.detect(model, image, operating_point=2)
    part = phantoms.select((row, next(row for row in phantoms.rows if row.label == "negative")))
    objects = {
        "image": image,
        "scored": scored,
        "detection": detection,
        "both": unary.show(scored, detection),
        "model": model,
        "evaluation": evaluate(model, part, allow_seen=True, progress=False),
    }
    return objects, row


NAMES = ["image", "scored", "detection", "both", "model", "evaluation"]


def _pictures(page):
    return [
        PIL.Image.open(io.BytesIO(base64.b64decode(found)))
        for found in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_display_is_self_contained_and_names_no_patient(name, shown):
    objects, row = shown
    page = objects[name]._repr_html_()
    words = re.sub(r"base64,[^\"]+", "", page)
    assert NOTICE in words
    assert not re.search(r"<script|<style|<link|<iframe|url\(|https?:|\son\w+=", words)
    assert all(source.startswith("data:image/png") for source in re.findall(r'src="([^"]*)"', words))
    for text in (words, repr(objects[name])):
        assert row.patient_id not in text
        assert row.image_id not in text
        assert row.path.name not in text
        assert str(objects["image"].instance_uid) not in text
        assert not re.search(r"\b(19|20)\d{6}\b|\d+(\.\d+){5,}", text)
    assert all(max(picture.size) <= LONG_SIDE_PX + 1 for picture in _pictures(page))
    assert len(page) < 1_500_000


def test_findings_are_a_table_and_a_picture(shown):
    objects, _ = shown
    detection = objects["detection"]
    assert detection.findings
    for name in ("detection", "both"):
        page = html.unescape(objects[name]._repr_html_())
        for finding in detection.findings:
            assert f"{finding.score:.4g}" in page
            assert f"{finding.box[0]}\u2013{finding.box[2] - 1}" in page
        assert "3 normal patients are too few for a guarantee" in page
        assert len(_pictures(page)) == 1
    (picture,) = _pictures(objects["both"]._repr_html_())
    channels = np.asarray(picture.convert("RGB"), int)
    assert (np.ptp(channels, axis=2) > 100).sum() > 50, "what was found is in colour"


def test_nothing_found_is_said_without_a_picture(shown):
    nothing = dataclasses.replace(shown[0]["detection"], findings=(), notes=("<b>odd</b> & more",))
    page = nothing._repr_html_()
    assert "No finding above the operating point 2" in page
    assert "&lt;b&gt;odd&lt;/b&gt; &amp; more" in page
    assert not _pictures(page)
    uncalibrated = dataclasses.replace(nothing, operating_point=None, image_p_value=None, image_score=None)
    assert "the model is not calibrated, nothing is guaranteed" in uncalibrated._repr_html_()


def test_scores_and_findings_of_other_images_are_not_shown_together(shown):
    objects, _ = shown
    scored, detection = objects["scored"], objects["detection"]
    other = dataclasses.replace(detection, labels=np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match="of an image of"):
        unary.show(scored, other)
    moved = tuple(dataclasses.replace(finding, score=finding.score + 1) for finding in detection.findings)
    with pytest.raises(ValueError, match="not of these scores"):
        unary.show(scored, dataclasses.replace(detection, findings=moved))


def test_a_model_tells_what_it_promises(shown):
    model = shown[0]["model"]
    page = model._repr_html_()
    for point in model.calibration.operating_points:
        assert f"{point.threshold:.4g}" in page
    assert f"{model.provenance.images} normal images of {model.provenance.seen.count} patients" in page
    bare = dataclasses.replace(model, calibration=None)._repr_html_()
    assert "Not calibrated" in bare
    fed = dataclasses.replace(model, calibration=dataclasses.replace(model.calibration, overlap="allowed"))
    assert "nothing is guaranteed" in fed._repr_html_()


def test_an_evaluation_tells_areas_and_lesions_found(shown):
    evaluation = shown[0]["evaluation"]
    page = evaluation._repr_html_()
    assert "by patch" in page
    assert "mean_brightness" in page
    assert "false findings per normal image" in page
    assert "may have been fitted on patients of this evaluation" in page
    alone = dataclasses.replace(evaluation, patches=None, images=None, seen=0)._repr_html_()
    assert "AUROC" not in alone
    assert "may have been fitted" not in alone


def test_large_and_odd_images_are_reduced():
    image = Image.from_array(np.arange(3000 * 900, dtype=np.float32).reshape(3000, 900))
    (picture,) = _pictures(image._repr_html_())
    assert picture.size == (225, 750)
    assert np.asarray(picture)[0, 0] < np.asarray(picture)[-1, -1]
    (flat,) = _pictures(Image.from_array(np.full((5, 7), 9, np.uint8))._repr_html_())
    assert flat.size == (7, 5)


def test_ipython_takes_what_is_shown(shown):
    formatters = pytest.importorskip("IPython.core.formatters", reason="displays are made for IPython")
    data, _ = formatters.DisplayFormatter().format(shown[0]["both"])
    assert set(data) == {"text/plain", "text/html"}
    assert data["text/html"] == shown[0]["both"]._repr_html_()


def test_a_browser_shows_it_and_asks_for_nothing(shown, browser, tmp_path):
    page_file = tmp_path / "page.html"
    parts = "<hr>".join(shown[0][name]._repr_html_() for name in NAMES)
    page_file.write_text(f'<meta charset="utf-8">{parts}', encoding="utf-8")
    page = browser.new_page(viewport={"width": 900, "height": 800})
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(page_file.as_uri())
    widths = page.eval_on_selector_all("img", "all => all.map(each => each.naturalWidth)")
    too_wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    page.close()
    assert len(widths) == 4
    assert min(widths) > 0
    assert not too_wide
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []


def test_a_display_is_plain_text_too(shown):
    assert isinstance(shown[0]["both"], Display)
    assert "png" not in repr(shown[0]["both"]).lower().replace("picture", "")
    assert show_detection(shown[0]["detection"]).heading.startswith(f"{len(shown[0]['detection'].findings)} finding")
