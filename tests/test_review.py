"""The review page's server: what it lists, shows, keeps and gives back."""

import csv
import io
import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile
from starlette.applications import Starlette
from starlette.routing import Mount
from web import WebClient

from unary.cli.main import main
from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.clinic.review.app import build_review_app
from unary.clinic.review.export import build_judged_manifest
from unary.clinic.review.judgements import JudgementStore, select_standing
from unary.clinic.review.pyramid import PyramidCache, build_pyramid, read_heat_map
from unary.clinic.review.results import ResultIndex
from unary.clinic.web_access import build_access
from unary.datasets.manifest import read_manifest
from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.errors import UnaryError
from unary.images.reading import read_image
from unary.models.bundle import read_model
from unary.records import Image

OURS = {"x-unary": "1"}


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """Return a folder of images, four views of three patients, and one of their results."""
    base = tmp_path_factory.mktemp("review")
    config = PhantomConfig(rows=384, cols=320)
    options = {"patients_normal": 2, "patients_abnormal": 1, "images_per_patient": 4}
    write_phantom_dataset(base / "images", config=config, seed=4, **options)
    config = DetectConfig(maps=True, dicom=(), operating_point="2")
    model = read_model(model_folder)
    detect_files(model, [base / "images"], base / "results", config, model_folder=model_folder, progress=False)
    return base


@pytest.fixture
def site(made, tmp_path):
    """Return a copy of both that a test may change."""
    shutil.copytree(made / "results", tmp_path / "results")
    shutil.copytree(made / "images", tmp_path / "images")
    for path in (tmp_path / "results").glob("*/result.json"):
        path.write_text(path.read_text().replace(str(made), str(tmp_path)))
    return tmp_path


@pytest.fixture
def client(site):
    app = build_review_app([site / "results"], site / "said.sqlite", access=build_access("127.0.0.1"))
    yield WebClient(app, "http://127.0.0.1")
    app.state.page.close()


def list_images(client):
    return [image for study in client.get("/api/studies").json()["studies"] for image in study["images"]]


def look_again(client):
    client.app.state.page.index._looked = -10.0
    return client.get("/api/studies").json()


def count_images(known):
    return sum(len(study["images"]) for study in known["studies"])


def say(client, image, **said):
    return client.post("/api/judgements", json={"image": image["key"], "reader": "Dr A", **said}, headers=OURS)


def find_judged(client, *, least):
    """An image with so many findings or more."""
    return next(image for image in list_images(client) if image["findings"] >= least)


def test_studies_are_listed_by_their_most_abnormal_image(client):
    known = client.get("/api/studies").json()
    assert known["notice"] == "Research software. Not for diagnosis."
    assert [len(study["images"]) for study in known["studies"]] == [4, 4, 4]
    views = [{(image["laterality"], image["view"]) for image in study["images"]} for study in known["studies"]]
    assert views == [{(side, view) for side in "LR" for view in ("CC", "MLO")}] * 3
    firsts = [(study["images"][0]["image_p_value"], -study["images"][0]["image_score"]) for study in known["studies"]]
    assert firsts == sorted(firsts)
    again = client.get(f"/api/studies?since={known['version']}").json()
    assert again == {"version": known["version"], "same": True}


def test_tiles_are_the_stored_pixels_bit_by_bit(client, site):
    image = list_images(client)[0]
    meta = client.get(f"/api/images/{image['key']}").json()
    (path,) = (site / "images").rglob(meta["file"])
    stored = read_image(path).pixels
    assert meta["levels"][0] == list(stored.shape)
    assert (meta["offset"], meta["step"], meta["state"]) == (0, 1, "shown")
    answer = client.get(f"/api/images/{image['key']}/tiles/0/0/0")
    tile = np.frombuffer(answer.content, "<u2").reshape(384, 320)
    assert np.array_equal(tile, stored)
    for wrong in ("0/1/0", "9/0/0", "0/0/-1", "-1/0/0"):
        assert client.get(f"/api/images/{image['key']}/tiles/{wrong}").status_code == 404


def test_right_breasts_are_mirrored_only_where_their_chest_wall_is_left(client):
    metas = [client.get(f"/api/images/{image['key']}").json() for image in list_images(client)]
    assert {(meta["laterality"], meta["chest_wall"], meta["mirrored"]) for meta in metas} == {
        ("R", "right", False),
        ("L", "left", False),
    }


def test_levels_are_means_and_values_that_do_not_fit_are_told_with_their_scale():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (1201, 777), dtype=np.uint16)
    pyramid = build_pyramid(Image.from_array(pixels))
    assert [level.shape for level in pyramid.levels] == [(1201, 777), (601, 389), (301, 195)]
    assert np.array_equal(pyramid.levels[0], pixels)
    block = pixels[:1200, :776].astype(float).reshape(600, 2, 388, 2).mean(axis=(1, 3))
    assert np.abs(pyramid.levels[1][:600, :388] - block).max() <= 0.5
    assert pyramid.levels[1][600, 388] == pixels[1200, 776]
    signed = build_pyramid(Image.from_array(np.array([[-1000, 3000], [0, 5]], np.int16)))
    assert (signed.offset + signed.step * signed.levels[0]).tolist() == [[-1000, 3000], [0, 5]]
    floats = rng.normal(size=(40, 30)).astype(np.float32) * 1e-3
    scaled = build_pyramid(Image.from_array(floats))
    assert np.abs(scaled.offset + scaled.step * scaled.levels[0] - floats).max() <= scaled.step


def test_padding_is_dark_and_sets_no_window():
    pixels = np.full((300, 300), 4000, np.uint16)
    pixels[:, :150] = np.arange(150) + 1000
    padding = pixels == 4000
    pyramid = build_pyramid(Image.from_array(pixels, padding=padding))
    assert pyramid.levels[0][0, 299] == 1000
    assert pyramid.window[1] < 1200


def test_the_window_spans_tissue_and_not_the_background():
    pixels = np.full((600, 500), 50, np.uint16)
    pixels[100:500, :300] = np.random.default_rng(0).integers(1000, 3000, (400, 300))
    pyramid = build_pyramid(Image.from_array(pixels))
    assert 500 < pyramid.window[0] < 1200
    assert 2400 < pyramid.window[1] <= 3000
    assert pyramid.chest_wall == "left"
    assert build_pyramid(Image.from_array(pixels[:, ::-1].copy())).chest_wall == "right"


def test_the_heat_map_keeps_the_hottest_speck(tmp_path):
    values = np.full((2500, 1300), np.nan, np.float32)
    values[100:2000, 100:1200] = 1.0
    values[1777, 555] = 9.0
    tifffile.imwrite(tmp_path / "map.tiff", values)
    heat = read_heat_map(tmp_path, threshold=5.0)
    assert heat.shades.shape == (834, 434)
    assert np.argwhere(heat.shades == 255).tolist() == [[1777 // 3, 555 // 3]]
    assert (heat.low, heat.high) == (3.0, 9.0)
    assert np.count_nonzero(heat.shades) == 1
    assert read_heat_map(tmp_path / "none", threshold=1.0) is None
    (tmp_path / "map.tiff").write_bytes(b"II*\0nonsense")
    assert read_heat_map(tmp_path, threshold=1.0) is None


def test_verdicts_outlive_a_restart_and_each_reader_has_her_own(client, site):
    image = find_judged(client, least=1)
    said = say(client, image, target="finding", rank=1, verdict="agree").json()["judgements"]
    assert [(one["rank"], one["verdict"], one["reader"]) for one in said] == [(1, "agree", "Dr A")]
    say(client, image, target="finding", rank=1, verdict="unsure", reader="Dr B")
    say(client, image, target="finding", rank=1, verdict="disagree")
    other = JudgementStore(site / "said.sqlite")
    held = [(one.reader, one.verdict) for one in select_standing(other.list_all())]
    assert held == [("Dr B", "unsure"), ("Dr A", "disagree")]
    assert len(other.list_all()) == 3, "nothing that was said is lost"
    other.close()
    assert sqlite3.connect(site / "said.sqlite").execute("PRAGMA journal_mode").fetchone() == ("wal",)
    found = next(one for one in list_images(client) if one["key"] == image["key"])
    assert found["judged"] == 1


def test_a_verdict_is_taken_back_by_its_reader_alone(client):
    image = find_judged(client, least=1)
    (one,) = say(client, image, target="finding", rank=1, verdict="agree").json()["judgements"]
    path = f"/api/judgements/{one['id']}/withdrawal"
    other = client.post(path, json={"image": image["key"], "reader": "Dr B"}, headers=OURS)
    assert other.status_code == 404
    own = client.post(path, json={"image": image["key"], "reader": "Dr A"}, headers=OURS)
    assert own.json()["judgements"] == []
    assert client.post(path, json={"image": image["key"], "reader": "Dr A"}, headers=OURS).status_code == 404


@pytest.mark.parametrize(
    "said",
    [
        {"target": "finding", "rank": 999, "verdict": "agree"},
        {"target": "finding", "rank": 1, "verdict": "missed"},
        {"target": "finding", "rank": 1, "verdict": "agree", "reader": " "},
        {"target": "finding", "rank": 1, "verdict": "agree", "reader": "A\nB"},
        {"target": "finding", "rank": 1, "verdict": "agree", "name": "<b>"},
        {"target": "missed", "verdict": "missed"},
        {"target": "missed", "verdict": "missed", "kind": "point", "points": [[1, 2], [3, 4]]},
        {"target": "missed", "verdict": "missed", "kind": "contour", "points": [[1, 2], [3, 4]]},
        {"target": "missed", "verdict": "missed", "kind": "point", "points": [[5000, 2]]},
        {"target": "missed", "verdict": "missed", "kind": "point", "points": [[None, 2]]},
        {"target": "everything", "verdict": "agree"},
        {"target": "missed", "verdict": "missed", "kind": "contour", "points": [[1, 2]] * 20000},
    ],
)
def test_nonsense_is_no_judgement(client, said):
    image = find_judged(client, least=1)
    assert say(client, image, **said).status_code in (400, 404)
    assert client.app.state.page.store.last() == 0


def test_judgements_become_a_manifest(client, site, tmp_path):
    images = list_images(client)
    agreed = find_judged(client, least=2)
    quiet = next(image for image in images if image["key"] != agreed["key"] and image["findings"] >= 1)
    missed = next(image for image in images if image["key"] not in (agreed["key"], quiet["key"]))
    say(client, agreed, target="finding", rank=1, verdict="agree", name="cluster")
    say(client, agreed, target="finding", rank=2, verdict="disagree")
    for rank in range(1, quiet["findings"] + 1):
        say(client, quiet, target="finding", rank=rank, verdict="disagree")
    say(client, quiet, target="image", verdict="read")
    say(client, missed, target="missed", verdict="missed", kind="point", points=[[200.5, 100]], name="mass")
    contour = [[10, 10], [30, 12], [25, 40]]
    say(client, missed, target="missed", verdict="missed", kind="contour", points=contour, name="mass")
    archive = zipfile.ZipFile(io.BytesIO(client.get("/export/manifest.zip").content))
    assert sorted(archive.namelist()) == ["judgements.csv", "manifest.csv", "manifest.lesions.csv", "normals.csv"]
    archive.extractall(tmp_path / "export")
    manifest = read_manifest(tmp_path / "export" / "manifest.csv")
    rows = {row.image_id: row for row in manifest.rows}
    assert {name: (row.label, row.complete) for name, row in rows.items()} == {
        agreed["name"]: ("positive", False),
        quiet["name"]: ("negative", True),
        missed["name"]: ("positive", False),
    }
    assert all(row.path.is_file() for row in manifest.rows)
    outline = client.get(f"/api/images/{agreed['key']}").json()["findings"][0]["outline"]
    (lesion,) = manifest.lesions_of(agreed["name"])
    assert (lesion.name, lesion.kind, [list(point) for point in lesion.points]) == ("cluster", "contour", outline)
    point, drawn = manifest.lesions_of(missed["name"])
    assert (point.kind, point.points) == ("point", ((200.5, 100.0),))
    assert [list(each) for each in drawn.points] == contour


def test_readers_who_contradict_each_other_leave_an_image_open(client):
    image = find_judged(client, least=1)
    for rank in range(1, image["findings"] + 1):
        say(client, image, target="finding", rank=rank, verdict="disagree")
    say(client, image, target="image", verdict="read")
    page = client.app.state.page

    def settle():
        (row,) = build_judged_manifest(page.store.list_all(), page.index.list_images().values()).rows
        return row.label, row.complete

    assert settle() == ("negative", True)
    say(client, image, target="finding", rank=1, verdict="agree", reader="Dr B")
    assert settle() == (None, False)
    say(client, image, target="finding", rank=1, verdict="disagree", reader="Dr B")
    assert settle() == ("negative", True)


def test_the_manifest_is_what_evaluate_and_calibrate_take(client, site, model_folder, tmp_path, capsys):
    for image in (image for image in list_images(client) if image["view"] == "CC"):
        verdict = "agree" if image["name"].startswith("abnormal") else "disagree"
        for rank in range(1, image["findings"] + 1):
            say(client, image, target="finding", rank=rank, verdict=verdict)
        say(client, image, target="image", verdict="read")
    out = tmp_path / "export"
    assert main(["review", str(site / "results"), "--judgements", str(site / "said.sqlite"), "--export", str(out)]) == 0
    assert "6 images judged" in capsys.readouterr().out
    labels = [row.label for row in read_manifest(out / "manifest.csv").rows]
    assert set(labels) == {"positive", "negative"}
    assert main(["evaluate", str(model_folder), str(out / "manifest.csv"), "--out", str(tmp_path / "figures")]) == 0
    figures = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    assert "froc" in json.dumps(figures)
    calibrated = tmp_path / "calibrated"
    assert main(["calibrate", str(model_folder), str(out / "normals.csv"), "--out", str(calibrated)]) == 0
    assert read_model(calibrated).calibration is not None


def test_results_that_come_later_are_seen_without_a_restart(client, site):
    hidden = site / "results" / ".unary.partial"
    (folder, *_) = sorted(path for path in (site / "results").iterdir() if path.is_dir())
    shutil.move(folder, hidden)
    assert count_images(look_again(client)) == 11
    shutil.move(hidden, folder)
    assert count_images(look_again(client)) == 12
    found = json.loads((folder / "result.json").read_text())
    found["image_score"], found["moment"] = 1e9, "2030-01-01T00:00:00+00:00"
    (folder / "new.json").write_text(json.dumps(found))
    os.replace(folder / "new.json", folder / "result.json")
    scores = [image["image_score"] for study in look_again(client)["studies"] for image in study["images"]]
    assert 1e9 in scores


def test_roots_may_be_several_and_hold_a_node_s_studies(site, tmp_path):
    state = tmp_path / "state" / "studies"
    for number, folder in enumerate(sorted(path for path in (site / "results").iterdir() if path.is_dir())[:3]):
        shutil.copytree(folder, state / f"pseudonym-{number}" / "results" / folder.name)
    index = ResultIndex([tmp_path / "state", site / "results"])
    images = index.list_images().values()
    labels = {image.study_label for image in images}
    assert {"pseudonym-0", "pseudonym-1", "pseudonym-2"} < labels
    assert len(images) == 15
    assert len({image.key for image in images}) == 15


def test_what_is_no_result_is_counted_and_not_shown(client, site):
    for number, text in enumerate(("{}", "not json", '{"notice": "x"}', "[" * 100_000)):
        (site / "results" / f"bad{number}").mkdir()
        (site / "results" / f"bad{number}" / "result.json").write_text(text)
    good = json.loads(next((site / "results").glob("*/result.json")).read_text())
    edits = (
        {"made_from": [1]},
        {"image_score": float("nan")},
        {"operating_point": {}},
        {"findings": [{**good["findings"][0], "p_value": float("inf")}]},
    )
    for number, edit in enumerate(edits):
        (site / "results" / f"edited{number}").mkdir()
        (site / "results" / f"edited{number}" / "result.json").write_text(json.dumps({**good, **edit}))
    known = look_again(client)
    assert (len(known["studies"]), known["unreadable"]) == (3, 8)


def test_a_file_that_is_gone_or_another_is_said_so_and_never_shown(client, site):
    gone, changed, *_ = list_images(client)
    files = {image["key"]: client.get(f"/api/images/{image['key']}").json()["file"] for image in (gone, changed)}
    page = client.app.state.page
    page.cache._kept.clear()
    next((site / "images").rglob(files[gone["key"]])).unlink()
    path = next((site / "images").rglob(files[changed["key"]]))
    path.write_bytes(path.read_bytes()[:-2] + b"\1\1")
    for image, state in ((gone, "missing"), (changed, "changed")):
        meta = client.get(f"/api/images/{image['key']}").json()
        assert (meta["state"], meta["picture"]) == (state, True)
        assert "levels" not in meta
        assert len(meta["findings"]) == image["findings"]
        assert client.get(f"/api/images/{image['key']}/tiles/0/0/0").status_code == 404
        assert client.get(f"/api/images/{image['key']}/picture").content.startswith(b"\x89PNG")


def test_a_path_that_was_relative_is_found_from_above_the_results(client, site):
    image = list_images(client)[0]
    folder = client.app.state.page.index.find(image["key"]).folder
    found = json.loads((folder / "result.json").read_text())
    found["path"] = os.path.relpath(found["path"], site)
    (folder / "result.json").write_text(json.dumps(found))
    look_again(client)
    assert client.get(f"/api/images/{image['key']}").json()["state"] == "shown"


def test_pixels_in_memory_are_bounded(made):
    images = list(ResultIndex([made / "results"]).list_images().values())
    cache = PyramidCache([made / "results"], limit_mib=1)
    try:
        sizes = []
        for image in images[:6]:
            assert cache.get(image).levels[0].shape == (384, 320)
            sizes.append(cache.size_bytes)
        assert cache.get(images[5]) is cache.get(images[5])
    finally:
        cache.close()
    assert max(sizes) <= 2**20
    assert len(cache._kept) > 1


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/", "/static/main.js%00",
        "/api/images/../../etc/passwd", "/api/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/api/images//etc/passwd",
        "/api/images/0000000000000000", "/api/images/0000000000000000/picture", "/api/images/..%2f..%2fx/heat",
        "/export/../../said.sqlite",
    ],
)  # fmt: skip
def test_no_path_leads_out(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert b"root:" not in answer.content
    assert b"build_review_app" not in answer.content


def test_names_with_markup_are_text(model_folder, made, tmp_path):
    name = '<img src=x onerror="document.title=1">&\'.dcm'
    source = next((made / "images").rglob("*.dcm"))
    (tmp_path / "in").mkdir()
    shutil.copy(source, tmp_path / "in" / name)
    config = DetectConfig(dicom=())
    model = read_model(model_folder)
    detect_files(model, [tmp_path / "in"], tmp_path / "out", config, model_folder=model_folder, progress=False)
    app = build_review_app([tmp_path / "out"], tmp_path / "said.sqlite", access=build_access("127.0.0.1"))
    client = WebClient(app, "http://127.0.0.1")
    (image,) = list_images(client)
    answer = client.get(f"/api/images/{image['key']}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["file"] == name
    assert say(client, image, target="image", verdict="read", reader="<script>").status_code == 200
    said = client.get("/export/judgements.csv")
    assert "attachment" in said.headers["content-disposition"]
    (row,) = csv.DictReader(io.StringIO(said.text))
    assert (row["reader"], row["verdict"], row["standing"]) == ("<script>", "read", "yes")
    app.state.page.close()


def test_a_table_is_no_formula(client):
    say(client, list_images(client)[0], target="image", verdict="read", reader="=1+1")
    (row,) = csv.DictReader(io.StringIO(client.get("/export/judgements.csv").text))
    assert row["reader"] == "'=1+1"


def test_nothing_is_exported_before_something_was_judged(client, site, tmp_path, capsys):
    assert client.get("/export/manifest.zip").status_code == 400
    arguments = ["review", str(site / "results"), "--judgements", str(tmp_path / "none"), "--export", str(tmp_path)]
    assert main(arguments) == 2
    assert "nothing has been judged" in capsys.readouterr().err


def test_changes_come_from_the_page_alone(client):
    image = list_images(client)[0]
    body = {"image": image["key"], "reader": "Dr A", "target": "image", "verdict": "read"}
    for headers in ({}, {"x-unary": "1", "origin": "http://evil.example"}):
        assert client.post("/api/judgements", json=body, headers=headers).status_code == 403
    assert client.get("/api/studies", headers={"host": "evil.example"}).status_code == 421
    assert client.request("DELETE", "/api/judgements", headers=OURS).status_code == 405


def test_the_page_asks_for_nothing_but_its_own(client):
    page = client.get("/")
    assert "Not for diagnosis" in page.text
    static = Path(__file__).parents[1] / "src/unary/clinic/review/static"
    for path in static.iterdir():
        text = path.read_text()
        assert not [word for word in ("https://", "//cdn", "innerHTML", "eval(", " style=", "onclick=") if word in text]
        assert client.get(f"/static/{path.name}").status_code == (404 if path.name == "index.html" else 200)
    assert "<script>" not in page.text


def test_a_database_that_is_none_of_ours_is_left_alone(site):
    other = site / "other.sqlite"
    base = sqlite3.connect(other)
    base.execute("CREATE TABLE mine (x)")
    base.close()
    before = other.read_bytes()
    for path in (other, site / "images"):
        with pytest.raises(UnaryError):
            build_review_app([site / "results"], path, access=build_access("127.0.0.1"))
    assert other.read_bytes() == before


def test_logs_hold_no_name(client, caplog):
    with caplog.at_level(logging.DEBUG):
        image = list_images(client)[0]
        client.get(f"/api/images/{image['key']}")
        say(client, image, target="image", verdict="read", reader="Canary")
    own = [record.getMessage() for record in caplog.records if record.name.startswith(("unary", "uvicorn"))]
    assert not [line for line in own if "Canary" in line or image["name"] in line]


def test_serving_others_is_refused_without_token_and_tls(site, capsys):
    for arguments in (["--address", "192.0.2.1"], ["--key", "k.pem"], ["--port", "70000"]):
        assert main(["review", str(site / "results"), *arguments]) == 2
    assert "token" in capsys.readouterr().err
    assert main(["review", str(site / "nowhere")]) == 2


def test_below_a_mount_everything_is_found(client):
    app = Starlette(routes=[Mount("/review", client.app)])
    mounted = WebClient(app, "http://127.0.0.1")
    page = mounted.get("/review")
    assert page.url.path == "/review/"
    for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert mounted.get(f"/review/{link}").status_code in (200, 400), link
    image = list_images(client)[0]
    assert mounted.get(f"/review/api/images/{image['key']}").json()["key"] == image["key"]


def test_an_interrupt_ends_the_server_in_order(site):
    arguments = [sys.executable, "-m", "unary.cli", "review", str(site / "results"), "--port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split(" ")[0]
        answer = httpx.get(f"{url}api/studies", headers={"x-canary": "Canary"})
        assert len(answer.json()["studies"]) == 3
        assert "server" not in answer.headers
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    assert (site / "results" / "judgements.sqlite").is_file()
