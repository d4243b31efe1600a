"""The pages that show images, in a browser: complete, self-contained, usable at every width. Skipped without Chromium.

Those of a folder of results, of an evaluation and of the bench; what a rerun leaves of them is asked without a browser.
"""

import dataclasses
import json
import re
import shutil
import urllib.parse
from html.parser import HTMLParser

import pytest
from test_report import build_detectors

from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.evaluation.evaluate import evaluate
from unary.experiments.bench import BenchConfig, run_bench
from unary.experiments.bench_report import build_bench_report
from unary.models.bundle import read_model
from unary.outputs.detection_page import write_detection_page
from unary.outputs.evaluation_pictures import EvaluationPictures
from unary.outputs.evaluation_report import write_evaluation
from unary.outputs.report import Report, build_results_section, write_report
from unary.patches.grid import GridConfig

HOSTILE, LONG = "<img src=x onerror=alert(1)>", "long" * 30
INDEX, FIRST = "report.html", "report-images-001.html"
ODD_PLURAL = re.compile(r"(?<![\d.,])1 (?:normal )?(?:finding|file|image|lesion|patche?|patient|fold|run|seed)s\b")


class Parsed(HTMLParser):
    """What a page holds: its anchors, the sources of its pictures, where its links lead, and its text."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.sources, self.links, self.text, self.tags = [], [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.tags.append((tag, known))
        self.ids += [known["id"]] if "id" in known else []
        self.sources += [known["src"]] if "src" in known else []
        self.links += [known["href"]] if "href" in known else []

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def made(phantoms, model_folder, tmp_path_factory):
    """Return a folder of images, one of a hostile name and one that is broken, and one of their results."""
    base = tmp_path_factory.mktemp("pages")
    (base / "images").mkdir()
    negative, positive = (
        [row.path for row in phantoms.rows if row.label == label] for label in ("negative", "positive")
    )
    names = {LONG: positive[4], "none": negative[2], "normal": positive[0], HOSTILE: positive[3]}
    for name, path in names.items():  # the first has one finding, the second has none
        shutil.copy(path, base / "images" / f"{name}.dcm")
    shutil.copy(positive[1], base / "images")
    (base / "images" / "broken.dcm").write_bytes(positive[0].read_bytes()[:3000])
    detect_images(base / "images", base / "results", model_folder)
    return base


def detect_images(images, out, model_folder, *, point="2"):
    config = DetectConfig(dicom=(), operating_point=point)
    return detect_files(read_model(model_folder), [images], out, config, model_folder=model_folder, progress=False)


@pytest.fixture(scope="module")
def results(made):
    return made / "results"


@pytest.fixture(scope="module")
def few(phantoms):
    """Return half of the phantoms."""
    chosen = ("P001", "P002", "P008", "P009")
    return phantoms.select(tuple(row for row in phantoms.rows if row.patient_id in chosen))


@pytest.fixture(scope="module")
def evaluation(few, model_folder, tmp_path_factory):
    """Return an evaluation by a model that has seen some of the images, the model, and the folder of its pictures."""
    out, model = tmp_path_factory.mktemp("evaluated"), read_model(model_folder)
    pictures = EvaluationPictures(out, model, images=len(few.rows))
    return evaluate(model, few, draw=pictures.draw, allow_seen=True, progress=False), model, out


@pytest.fixture(scope="module")
def evaluated(evaluation):
    """Return the folder of an evaluation."""
    found, model, out = evaluation
    write_evaluation(found, model, out, resamples=20, progress=False)
    return out


@pytest.fixture(scope="module")
def bench(few, tmp_path_factory):
    """Return the folder of a bench, with a page of detectors by two splits beside its own."""
    out = tmp_path_factory.mktemp("bench")
    config = BenchConfig(grid=GridConfig(64, 64), seeds=(0,), folds=2, resamples=20)
    found = run_bench(few, ("laplacian", "mean_brightness"), out, config, progress=False)
    report = build_bench_report(found)
    write_report(report, out / INDEX)
    section = build_results_section("Results", build_detectors())
    write_report(Report("By split", "The answer.", (section,), {}), out / "splits.html")
    return out


@pytest.fixture
def page(browser):
    """Return an empty page; what it shows must ask for nothing but files beside it, and complain of nothing."""
    context = browser.new_context(viewport={"width": 1000, "height": 600})
    page = context.new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    yield page
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    context.close()


def list_pages_of(folder):
    return sorted(path for path in folder.iterdir() if path.suffix == ".html")


def list_results(folder):
    return {path.parent.name for path in folder.glob("*/result.json")}


def list_dead_links(folder):
    """Every source and link of the pages in a folder that leads nowhere, or outside."""
    pages = {path.name: Parsed(path) for path in list_pages_of(folder)}
    dead = []
    for name, parsed in pages.items():
        for target in (*parsed.sources, *parsed.links):
            if target.startswith("data:image/"):
                continue
            where = urllib.parse.urlsplit(target)
            file = urllib.parse.unquote(where.path) or name
            there = not (where.scheme or where.netloc or file.startswith("/")) and (folder / file).exists()
            if not there or (where.fragment and where.fragment not in pages[file].ids):
                dead.append((name, target))
    return dead


def list_told(folder):
    """The results that the table of a folder's page tells of, and those that have a card."""
    told = [link.partition("#") for link in Parsed(folder / INDEX).links]
    cards = [
        each for path in sorted(folder.glob("report-images-*.html")) for each in Parsed(path).ids if "image-" in each
    ]
    return [anchor for file, _, anchor in told if file.startswith("report-images-") and anchor], cards


def open_page(page, path):
    """Open a page, and wait until all of its pictures are there."""
    page.goto(path.as_uri())
    page.evaluate("Promise.all([...document.images].map(img => { img.loading = 'eager'; return img.decode(); }))")


def find_overflow(page):
    """What is wider than the window, or than the box that it could be scrolled in, and cells that are cut off."""
    return page.evaluate("""() => {
        const hidden = each => each.closest('thead') && getComputedStyle(each.closest('thead')).position === 'absolute';
        const cut = [...document.querySelectorAll('.wide, table, .card, td, th')]
            .filter(each => each.checkVisibility() && !hidden(each))
            .filter(each => each.scrollWidth > each.clientWidth + 1 || each.getBoundingClientRect().right > innerWidth)
            .map(each => `${each.tagName}: ${each.textContent.trim().slice(0, 40)}`);
        const window = document.scrollingElement;
        return [...cut, ...(window.scrollWidth > window.clientWidth ? ['window'] : [])];
    }""")


# ---- what is there ----


def test_every_image_has_a_card_with_its_crops_and_a_row_that_leads_to_it(results):
    index, cards = Parsed(results / INDEX), Parsed(results / FIRST)
    told, shown = list_told(results)
    assert len(told) == len(list_results(results)) == 5
    assert sorted(told) == sorted(shown)
    assert list_dead_links(results) == []
    findings = {path.parent.name: json.loads(path.read_text())["findings"] for path in results.glob("*/result.json")}
    crops = [source for source in cards.sources if "/place-" in source]
    assert len(crops) == sum(map(len, findings.values())) > 8
    assert "broken.dcm" in index.text
    assert "4 of 5 images have findings" in index.text
    assert "1 file could not be examined" in index.text


def test_plural_forms_are_right_on_all_pages(results, evaluated, bench):
    cards = Parsed(results / FIRST).text
    assert len(re.findall(r"(?<!\d)1 finding, image score", cards)) == 2  # beside the name, and in the picture
    assert "no finding, image score" in cards
    for path in (*list_pages_of(results), *list_pages_of(evaluated), *list_pages_of(bench)):
        assert ODD_PLURAL.findall(Parsed(path).text) == []


def test_names_are_only_words_and_nothing_comes_from_outside(results, evaluated, bench):
    for folder in (results, evaluated, bench):
        for path in list_pages_of(folder):
            parsed = Parsed(path)
            assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)
            (policy,) = (attrs["content"] for tag, attrs in parsed.tags if tag == "meta" and "http-equiv" in attrs)
            assert policy.startswith("default-src 'none'; img-src data:")
            assert "http" not in policy
            assert [tag for tag, _ in parsed.tags if tag in ("link", "iframe", "object", "embed", "base", "form")] == []
            assert all(urllib.parse.urlsplit(source).scheme in ("", "data") for source in parsed.sources)
    assert f"{HOSTILE}.dcm" in Parsed(results / FIRST).text
    assert "x" not in Parsed(results / FIRST).sources


def test_the_pages_of_an_evaluation_lead_to_each_other(evaluated, few):
    told, shown = list_told(evaluated)
    assert len(set(told)) == len(shown) == len(few.rows)
    assert list_dead_links(evaluated) == []


def test_numbers_of_notes_are_explained_where_they_stand(bench):
    text = Parsed(bench / INDEX).text.split("The same with an interval for every figure")[1].split("ROC curves")[0]
    caption, rows = text.split("lesions", 1)
    explained = re.findall(r"\[(\d+)\] [a-z]", caption)
    assert explained == ["1", "2", "3"]
    assert sorted(set(re.findall(r"\[(\d+)\]", rows))) == explained


# ---- in a browser ----


def test_no_page_is_wider_than_the_window_and_no_column_is_cut_off(page, results, evaluated, bench):
    for path in (*list_pages_of(results), *list_pages_of(evaluated), *list_pages_of(bench)):
        open_page(page, path)
        for width in (400, 1280, 1400, 1920):
            page.set_viewport_size({"width": width, "height": 200})
            assert (path.name, width, find_overflow(page)) == (path.name, width, [])


def test_a_picture_enlarges_by_click_or_key_and_others_follow(page, results):
    open_page(page, results / FIRST)
    plates = page.locator(".plate")
    named = [" ".join(text.split()) for text in page.locator(".plate .name").all_text_contents()]
    shown, opened = page.locator("dialog .name"), page.locator("dialog[open]")
    plates.nth(1).click()
    assert opened.is_visible()
    seen = [" ".join(shown.text_content().split())]
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        seen.append(" ".join(shown.text_content().split()))
    assert seen == [named[place] for place in (1, 2, 3, 2, 1, 0, -1)]
    box = page.locator("dialog .stage").bounding_box()
    page.keyboard.press("+")
    assert page.locator("dialog .stage").bounding_box()["width"] > 1.4 * box["width"]
    page.keyboard.press("0")
    assert page.locator("dialog .stage").bounding_box() == box
    page.keyboard.press("Escape")
    assert opened.count() == 0
    assert page.evaluate("document.activeElement === [...document.querySelectorAll('.plate')].at(-1)")
    plates.nth(0).focus()
    page.keyboard.press("Enter")
    assert " ".join(shown.text_content().split()) == named[0]
    page.get_by_role("button", name="\u00d7").click()
    assert opened.count() == 0


def test_a_long_name_leaves_the_middle_of_a_crop_free(page, results):
    open_page(page, results / FIRST)
    crop = page.locator(".plate.place", has_text=LONG)
    name = crop.locator(".name").bounding_box()
    stage = crop.locator(".stage").bounding_box()
    assert name["y"] > stage["y"] + 0.6 * stage["height"]
    crop.click()
    file = page.locator("dialog .file")
    assert file.evaluate("file => file.scrollHeight <= file.clientHeight"), "all of it where there is room"


def test_findings_map_and_lesions_are_switched_off_and_on(page, evaluated):
    open_page(page, evaluated / FIRST)
    parts = {
        "show-findings": ".card .marks .finding, .card .tag",
        "show-map": ".card .glow",
        "show-lesions": ".card .marks .found, .card .marks .missed",
    }

    def count(selector):
        script = "what => [...document.querySelectorAll(what)].filter(each => each.getClientRects().length).length"
        return page.evaluate(script, selector)

    before = {name: count(selector) for name, selector in parts.items()}
    assert min(before.values()) > 2
    for name in parts:
        page.uncheck(f"#{name}")
        hidden = {each: 0 if each == name else number for each, number in before.items()}
        assert {each: count(selector) for each, selector in parts.items()} == hidden
        page.check(f"#{name}")
    page.locator(".plate.whole", has=page.locator(".glow")).first.click()
    assert count("dialog .glow") == 1
    page.locator("dialog").get_by_role("button", name="Map").click()
    assert count("dialog .glow") == 0
    assert not page.is_checked("#show-map")


def test_the_table_sorts_by_its_heads_and_filters_by_words(page, results):
    open_page(page, results / INDEX)
    table = page.locator("table.sortable")

    def column(place):
        return [text.strip() for text in table.locator(f"tbody tr:visible td:nth-child({place + 1})").all_inner_texts()]

    heads = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    score, name, result = (heads.index(each) for each in ("image score", "image", "result"))
    whole = column(score)
    assert whole == sorted(whole, key=float, reverse=True)
    table.locator("thead button").nth(score).click()
    table.locator("thead button").nth(score).click()
    assert column(score) == whole[::-1]
    assert table.locator("thead th").nth(score).get_attribute("aria-sort") == "ascending"
    table.locator("thead button").nth(name).click()
    assert column(name) == sorted(column(name), key=str.casefold)
    page.get_by_role("button", name="no finding").click()
    assert column(result) == ["no finding"]
    assert page.locator(".finder output").inner_text() == "1 of 5 shown"
    page.get_by_role("button", name="no finding").click()
    assert len(column(name)) == 5
    page.get_by_role("button", name="with findings").click()
    assert column(result) == ["with findings"] * 4
    page.fill(".finder input", "onerror WITH")
    page.locator(".finder output", has_text="1 of 5 shown").wait_for()
    assert "onerror" in column(name)[0]


def test_without_scripts_all_images_and_tables_are_there(browser, results):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((results / INDEX).as_uri())
    assert page.locator("table").first.locator("tbody tr:visible").count() == 5
    assert not page.locator(".finder").is_visible()
    page.locator("table tbody a").nth(2).click()
    page.wait_for_url(re.compile(re.escape(FIRST)), wait_until="load")
    assert page.locator(".card:visible").count() == 5
    pictures = page.locator("img")
    assert [pictures.nth(k).evaluate("img => img.naturalWidth > 0") for k in range(pictures.count())].count(False) == 0
    page.uncheck("#show-map")
    assert page.locator(".glow:visible").count() == 0
    context.close()


# ---- what a rerun leaves ----


def test_a_rerun_with_more_or_fewer_images_leaves_true_pages(made, results, model_folder, tmp_path):
    out, images = tmp_path / "results", tmp_path / "images"
    shutil.copytree(results, out)
    shutil.copytree(made / "images", images)
    removed, *others = sorted(images.iterdir(), reverse=True)
    for path in (removed, *others[:2]):
        path.unlink()
    (gone,) = (path.parent for path in out.glob("*/result.json") if path.parent.name == removed.stem)
    shutil.rmtree(gone)
    assert detect_images(images, out, model_folder).done == ()  # what is there of images that are not given stays
    told, cards = list_told(out)
    assert len(told) == len(list_results(out)) == 4
    assert sorted(told) == sorted(cards)
    assert list_dead_links(out) == []
    page = (out / INDEX).stat()
    assert detect_images(images, out, model_folder).done == ()
    assert (out / INDEX).stat().st_mtime_ns == page.st_mtime_ns, "nothing has changed, and nothing is written"
    shutil.copy(made / "images" / removed.name, images / "again.dcm")
    assert len(detect_images(images, out, model_folder).done) == 1
    assert any("again" in anchor for anchor in list_told(out)[0])
    assert list_dead_links(out) == []


def test_an_evaluation_without_pictures_leaves_no_pages_of_a_former_one(evaluation, evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    found, model, _ = evaluation
    write_evaluation(dataclasses.replace(found, pictures={}), model, tmp_path, resamples=20, progress=False)
    assert [path.name for path in list_pages_of(tmp_path)] == [INDEX]
    assert list_told(tmp_path) == ([], [])
    assert list_dead_links(tmp_path) == []


def test_of_a_folder_whose_results_are_gone_no_page_tells(made, results, model_folder, tmp_path):
    out = tmp_path / "results"
    shutil.copytree(results, out)
    for name in list_results(out):
        shutil.rmtree(out / name)
    detect_images(made / "images" / "broken.dcm", out, model_folder)
    assert not (out / FIRST).exists()
    assert list_told(out) == ([], [])
    assert list_dead_links(out) == []
    assert "broken.dcm" in Parsed(out / INDEX).text


def test_many_images_have_pages_of_a_hundred_and_a_small_index(results, tmp_path):
    one = results / "none"
    for number in range(250):
        shutil.copytree(one, tmp_path / f"image-{number:03d}")
    write_detection_page(tmp_path / INDEX)
    pages = [len(Parsed(path).ids) for path in sorted(tmp_path.glob("report-images-*.html"))]
    with_toggles = len({"section-1", "provenance", "show-findings", "show-map"})
    assert [ids - with_toggles for ids in pages] == [100, 100, 50]
    assert len(list_told(tmp_path)[0]) == 250
    assert list_dead_links(tmp_path) == []
    assert (tmp_path / INDEX).stat().st_size < 200_000
    assert "Images 101 to 200 of 250" in Parsed(tmp_path / "report-images-002.html").text
    for number in range(100, 250):
        shutil.rmtree(tmp_path / f"image-{number:03d}")
    write_detection_page(tmp_path / INDEX)
    assert [path.name for path in sorted(tmp_path.glob("report-images-*.html"))] == [FIRST]
    assert list_dead_links(tmp_path) == []
