"""The review page in a browser: open, hang, zoom, switch, judge, export, reload. Skipped where there is no Chromium."""

import base64
import io
import re
import shutil
import threading
import zipfile

import numpy as np
import PIL.Image
import pytest

from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.clinic.review.app import build_review_app
from unary.clinic.review.serving import Listening, open_socket
from unary.clinic.web_access import build_access
from unary.datasets.manifest import read_manifest
from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.images.reading import read_image
from unary.models.bundle import read_model, write_model
from unary.models.fitting import FitConfig, fit

TOKEN = "a-token-of-more-than-twenty-letters"


class Serving:
    """A page that is served, in a thread, on a free port of this machine."""

    def __init__(self, roots, judgements, *, token=None):
        import uvicorn

        access = build_access("127.0.0.1", token=token)
        app = build_review_app(roots, judgements, access=access)
        self.socket = open_socket(Listening(port=0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def made(normals, tmp_path_factory):
    """Return a folder with images of two patients, four views each, and their results."""
    base = tmp_path_factory.mktemp("page")
    model = fit(normals, FitConfig(held_out=0.5), detector="laplacian", progress=False)
    write_model(model, base / "model")
    config = PhantomConfig(rows=448, cols=384, spacing_mm=0.4)
    options = {"patients_normal": 1, "patients_abnormal": 1, "images_per_patient": 4}
    write_phantom_dataset(base / "images", config=config, seed=4, **options)
    config = DetectConfig(maps=True, dicom=(), operating_point="2")
    model = read_model(base / "model")
    detect_files(model, [base / "images"], base / "results", config, model_folder=base / "model", progress=False)
    return base


@pytest.fixture
def page(browser, made, tmp_path):
    """Return an open page; it must ask nobody but its server, and complain of nothing."""
    with Serving([made / "results"], tmp_path / "said.sqlite") as serving:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(serving.url)
        wait_shown(page, 4)
        yield page
        assert page.complaints == []
        assert {url for url in page.asked if not url.startswith((serving.url, "blob:"))} == set()
        context.close()


def wait_shown(page, count):
    script = "count => document.querySelectorAll('.pane:not([hidden])[data-state=shown]').length === count"
    page.wait_for_function(script, arg=count, timeout=15_000)


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def read_screen(page, pane):
    """What the canvas of a pane holds: its red, (rows, cols)."""
    page.wait_for_timeout(150)
    script = "pane => document.querySelectorAll('.pane')[pane].querySelector('canvas').toDataURL('image/png')"
    content = base64.b64decode(page.evaluate(script, pane).partition(",")[2])
    return np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))[..., 0]


def name_reader(page, name):
    page.fill("#reader", name)
    page.press("#reader", "Enter")


def test_four_views_hang_as_radiologists_hang_them(page):
    names = page.locator(".pane .name b").all_inner_texts()
    assert names == ["R CC", "L CC", "R MLO", "L MLO"]
    for pane in (0, 2):  # chest walls meet in the middle
        right, left = read_screen(page, pane), read_screen(page, pane + 1)
        assert right[100:-100, -20:].mean() > 3 * right[100:-100, :20].mean() + 5
        assert left[100:-100, :20].mean() > 3 * left[100:-100, -20:].mean() + 5
    press(page, "2")
    assert page.locator(".pane:visible .name b").all_inner_texts() == ["R CC", "L CC"]
    press(page, "3")
    assert page.locator(".pane:visible .name b").all_inner_texts() == ["R MLO", "L MLO"]
    press(page, "4")
    assert page.locator(".pane:visible").count() == 1
    assert "Not for diagnosis" in page.locator("#notice").inner_text()


def test_every_pixel_is_shown_by_its_16_bits(page, made):
    press(page, "4", "o")
    wait_shown(page, 1)
    press(page, "z")
    page.wait_for_timeout(300)
    name = page.locator("#about div").first.inner_text()
    stored = read_image(next((made / "images").rglob(f"{name.split('__')[-1]}.dcm"))).pixels
    screen = read_screen(page, 0)
    values = page.locator(".pane .values").first.inner_text()
    assert values.startswith("100 %")
    level, width = (int(re.search(rf"{letter} (-?\d+)", values)[1]) for letter in "LW")
    row = screen.shape[0] // 2 - 60
    starts = range(0, screen.shape[1] - 120, 40)
    col = max(starts, key=lambda start: screen[row : row + 120, start : start + 120].std())
    around = (slice(row, row + 120), slice(col, col + 120))
    shown = screen[around].astype(float)
    expected = np.clip((stored.astype(float) - (level - width / 2)) / width * 255, 0, 255)
    places = np.lib.stride_tricks.sliding_window_view(expected, (8, 8))
    r, c = np.unravel_index(np.abs(places - shown[56:64, 56:64]).max(axis=(2, 3)).argmin(), places.shape[:2])
    there = expected[r - 20 : r + 20, c - 20 : c + 20]
    assert there.std() > 5, "there is something to see"
    assert np.abs(there - shown[36:76, 36:76]).max() <= 1.5, "it is the stored pixels, one by one"
    press(page, "Shift+ArrowUp", "Shift+ArrowLeft")
    other = page.locator(".pane .values").first.inner_text()
    assert other != values
    assert not np.array_equal(read_screen(page, 0), screen)
    press(page, "w", "i")
    inverted = read_screen(page, 0)
    assert np.abs(inverted[around].astype(float) + shown - 255)[36:76, 36:76].max() <= 1


def test_zoom_pan_and_overlays(page):
    press(page, "4", "o")
    wait_shown(page, 1)
    plain = read_screen(page, 0)
    press(page, "o")
    outlined = read_screen(page, 0)
    assert (outlined != plain).mean() > 1e-4
    press(page, "o", "h")
    heated = read_screen(page, 0)
    assert (heated != plain).mean() > 1e-3
    press(page, ",", ",", ",", ",", ",", ",")
    assert np.array_equal(read_screen(page, 0), plain)
    box = page.locator(".pane:visible canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.wheel(0, -600)
    assert not np.array_equal(read_screen(page, 0), plain)
    zoomed = read_screen(page, 0)
    page.mouse.down()
    page.mouse.move(x + 40, y + 30)
    page.mouse.up()
    panned = read_screen(page, 0)
    moved, still = panned[130:400, 140:500].astype(float), zoomed[100:370, 100:460]
    assert np.abs(moved - still).mean() < 0.2 < 1 < np.abs(zoomed[130:400, 140:500] - moved).mean()
    press(page, "g")
    assert not np.array_equal(read_screen(page, 0), panned)
    press(page, "g", "f")
    assert np.array_equal(read_screen(page, 0), plain)


def test_judging_exporting_and_reloading(page, tmp_path):
    page.locator("#findings .go").first.click()
    press(page, "a")
    assert "name first" in page.locator("#status").inner_text()
    name_reader(page, "Dr <b>A</b>")
    page.select_option("#lesion-name", "cluster")
    page.locator("#findings .go").first.click()
    press(page, "a")
    page.wait_for_selector("#findings [data-verdict=agree][aria-pressed=true]")
    press(page, "m")
    box = page.locator(".pane.active canvas").bounding_box()
    side = 1 if page.locator(".pane.active").get_attribute("data-side") == "R" else 0
    x = box["x"] + box["width"] * (0.8 if side else 0.2)
    page.mouse.move(x, box["y"] + box["height"] / 2)
    page.mouse.down()
    for dx, dy in ((15, 0), (30, 10), (15, 30), (0, 15)):
        page.mouse.move(x + dx, box["y"] + box["height"] / 2 + dy)
    page.mouse.up()
    page.wait_for_selector("#missed li")
    press(page, "m")
    page.mouse.click(x, box["y"] + box["height"] / 2)
    page.wait_for_function("() => document.querySelectorAll('#missed li').length === 2")
    assert "Dr <b>A</b>" in page.locator("#missed").inner_text()
    press(page, "e")
    page.wait_for_selector("#read[aria-pressed=true]")
    page.reload()
    wait_shown(page, 4)
    assert page.input_value("#reader") == "Dr <b>A</b>"
    page.wait_for_selector("#findings [data-verdict=agree][aria-pressed=true]")
    assert page.locator("#missed li").count() == 2
    page.locator("#missed button").first.click()
    page.wait_for_function("() => document.querySelectorAll('#missed li').length === 1")
    with page.expect_download() as download:
        page.get_by_text("Manifest (ZIP)").click()
    zipfile.ZipFile(download.value.path()).extractall(tmp_path / "export")
    manifest = read_manifest(tmp_path / "export" / "manifest.csv")
    assert [row.label for row in manifest.rows] == ["positive"]
    assert sorted((lesion.name, lesion.kind) for lesion in manifest.lesions) == [
        ("cluster", "contour"),
        ("cluster", "point"),
    ]


def test_keys_do_all_of_it_and_the_help_says_so(page):
    press(page, "?")
    assert page.locator("#help").is_visible()
    assert page.locator("#help kbd").count() > 25
    press(page, "Escape")
    assert not page.locator("#help").is_visible()
    first = page.locator("#study-list [aria-current]").inner_text()
    press(page, "ArrowDown")
    wait_shown(page, 4)
    assert page.locator("#study-list [aria-current]").inner_text() != first
    press(page, "ArrowUp", "t")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    press(page, "t", "k", "l")
    assert not page.locator("#panel").is_visible()
    assert not page.locator("#studies").is_visible()
    press(page, "k", "l", "r")
    assert page.evaluate("document.activeElement.id") == "reader"


def list_contrasts(page):
    """The contrast of every text that stands on a plain ground of the page, by WCAG, with the text."""
    script = """() => {
        const bright = ([r, g, b]) => [r, g, b].map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
        const parse = text => text.match(/[\\d.]+/g).map(Number);
        const found = [];
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            const element = walker.currentNode.parentElement;
            if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('.pane')) continue;
            let ground = element;
            while (ground && parse(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
            const pair = [getComputedStyle(element).color, getComputedStyle(ground ?? document.body).backgroundColor];
            const [light, dark] = pair.map(parse).map(bright).sort((a, b) => b - a);
            found.push([(light + 0.05) / (dark + 0.05), walker.currentNode.data.trim()]);
        }
        return found;
    }"""
    return page.evaluate(script)


@pytest.mark.parametrize("width", [400, 1280])
def test_text_stands_out_in_light_and_dark_and_nothing_runs_out_of_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    name_reader(page, "Dr A")
    page.locator("#findings [data-verdict=agree]").first.click()
    page.wait_for_selector("#findings [data-verdict=agree][aria-pressed=true]")
    page.wait_for_timeout(250)
    for _ in range(2):
        contrasts = list_contrasts(page)
        assert len(contrasts) > 30
        assert [text for ratio, text in contrasts if ratio < 4.5] == []
        page.locator("#findings .go").first.focus()
        press(page, "t")
        page.wait_for_timeout(250)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    notice = page.locator("#notice").bounding_box()
    assert notice["x"] >= 0
    assert notice["y"] + notice["height"] <= 800
    press(page, "Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_new_results_appear_by_themselves_and_the_token_opens_the_page(browser, made, tmp_path):
    copied = tmp_path / "results"
    shutil.copytree(made / "results", copied)
    one = sorted(path for path in copied.iterdir() if path.name.startswith("normal"))
    for path in one:
        path.rename(tmp_path / path.name)
    with Serving([copied], tmp_path / "said.sqlite", token=TOKEN) as serving:
        context = browser.new_context()
        page = context.new_page()
        page.goto(serving.url)
        assert page.url.endswith("/login")
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        page.wait_for_selector(".bad")
        page.fill("#token", TOKEN)
        page.press("#token", "Enter")
        wait_shown(page, 4)
        assert page.locator("#study-list button").count() == 1
        for path in one:
            (tmp_path / path.name).rename(path)
        page.wait_for_function("() => document.querySelectorAll('#study-list button').length === 2", timeout=15_000)
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/login")
        context.close()
