"""How soon the review page shows an image, and how smoothly it moves it, in a browser without a graphics card.

Phantoms of 3328 x 2560 pixels, four views a study, are served by ``unary review`` in a process of its own, and looked
at in Chromium: the time from asking for the page to the first image on the screen, of a server that has just begun and
of one that has run for five seconds; from choosing another study, whose images have or have not been read ahead, to its
first image; and the frames a second while a pointer drags an image that fills the window, while the window is changed,
and while four are shown. Prints a table and, last, one JSON line. Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.models.bundle import read_model, write_model
from unary.models.fitting import FitConfig, fit

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_FIRST_S, _FRAMES = 1.0, 30.0  # what is asked for
_SHOWN = "count => document.querySelectorAll('.pane:not([hidden])[data-state=shown]').length >= count"
_COUNT = """() => {
    window.stamps = [];
    const pane = [...document.querySelectorAll('.pane')].find(one => !one.hidden && one.classList.contains('active'))
        ?? document.querySelector('.pane');
    let last = pane.dataset.draws;
    const watch = now => {
        if (pane.dataset.draws !== last) { last = pane.dataset.draws; window.stamps.push(now); }
        window.watching = requestAnimationFrame(watch);
    };
    watch(performance.now());
}"""


def write_results(base: Path, *, rows: int, cols: int, studies: int) -> Path:
    """Write phantoms and the results of a model that learns nothing."""
    small = PhantomConfig(rows=384, cols=320)
    normals = write_phantom_dataset(base / "small", patients_normal=4, patients_abnormal=0, config=small, seed=1)
    write_model(fit(normals, FitConfig(held_out=0.5), detector="laplacian", progress=False), base / "model")
    config = PhantomConfig(rows=rows, cols=cols, spacing_mm=0.07)
    options: dict[str, Any] = {"patients_normal": 0, "patients_abnormal": studies, "images_per_patient": 4}
    write_phantom_dataset(base / "images", config=config, seed=2, **options)
    model = read_model(base / "model")
    wanted = DetectConfig(maps=True, dicom=())
    detect_files(model, [base / "images"], base / "results", wanted, model_folder=base / "model", progress=False)
    return base / "results"


def serve(results: Path, judgements: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the page, and return its process and address."""
    arguments = ["review", str(results), "--port", "0", "--judgements", str(judgements)]
    process = subprocess.Popen([sys.executable, "-m", "unary.cli", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split(" ")[0]


def measure_first(
    playwright: Any, chromium: str, results: Path, judgements: Path, *, size: tuple[int, int], pause_s: float
) -> float:
    """Seconds from asking for the page, of a server that has listened for ``pause_s``, to the first image."""
    process, url = serve(results, judgements)
    try:
        time.sleep(pause_s)
        with playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS)) as browser:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.goto("about:blank")
            page.goto(url)
            page.wait_for_function(_SHOWN, arg=1, timeout=60_000)
            return float(page.evaluate("() => Number(document.documentElement.dataset.firstImageMs)")) / 1000
    finally:
        process.terminate()
        process.wait(20)


def measure_frames(page: Any, *, seconds: float, button: str = "left") -> float:
    """Frames a second while a pointer drags over the active image."""
    box = page.locator(".pane.active canvas, .pane:visible canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button=button)
    page.evaluate(_COUNT)
    begun, step = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        step += 1
        reach = 8 * min(step % 40, 40 - step % 40)
        page.mouse.move(x + reach * 0.7, y + reach)
    stamps = page.evaluate("() => { cancelAnimationFrame(window.watching); return window.stamps; }")
    page.mouse.up(button=button)
    return 1000 * (len(stamps) - 1) / (stamps[-1] - stamps[0]) if len(stamps) > 2 else 0.0


def measure_page(playwright: Any, chromium: str, url: str, size: tuple[int, int], seconds: float) -> dict[str, float]:
    """What is measured of a page that is open."""
    with playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS)) as browser:
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(url)
        page.wait_for_function(_SHOWN, arg=4, timeout=60_000)
        page.wait_for_timeout(2000)
        found = {}
        for name, which in (("a study that has not been read, s", -1), ("next study, s", 1)):
            page.locator("#study-list button").nth(which).click()
            page.wait_for_timeout(200)
            page.wait_for_function(_SHOWN, arg=4, timeout=60_000)
            found[name] = float(page.evaluate("() => Number(document.documentElement.dataset.studyMs)")) / 1000
        found["pan, four views"] = measure_frames(page, seconds=seconds)
        page.keyboard.press("4")
        page.wait_for_timeout(1500)
        found["pan, whole image"] = measure_frames(page, seconds=seconds)
        found["window, whole image"] = measure_frames(page, seconds=seconds, button="right")
        page.keyboard.press("z")
        page.wait_for_timeout(2000)
        found["pan, 1:1"] = measure_frames(page, seconds=seconds)
        page.keyboard.press("h")
        page.wait_for_timeout(500)
        found["pan, 1:1 with heat map"] = measure_frames(page, seconds=seconds)
        return found


def measure(folder: Path, *, repeats: int, size: tuple[int, int], seconds: float) -> dict[str, float]:
    """Measure a folder of results of three studies or more."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is needed")
    judgements = folder.parent / "said.sqlite"
    with sync_playwright() as playwright:
        first = {
            pause: [
                measure_first(playwright, chromium, folder, judgements, size=size, pause_s=pause)
                for _ in range(repeats)
            ]
            for pause in (0.0, 5.0)
        }
        process, url = serve(folder, judgements)
        try:
            time.sleep(2)
            others = [measure_page(playwright, chromium, url, size, seconds) for _ in range(repeats)]
        finally:
            process.terminate()
            process.wait(20)
    found = {
        "first image of a server that has just begun, s": statistics.median(first[0.0]),
        "first image of a server that has run, s": statistics.median(first[5.0]),
    }
    return found | {name: statistics.median(one[name] for one in others) for name in others[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="measure these, of four-view studies, in place of phantoms")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each drag")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 800), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = options.results or write_results(Path(folder), rows=3328, cols=2560, studies=3)
        found = measure(results, repeats=options.repeats, size=tuple(options.size), seconds=options.seconds)
    for name, value in found.items():
        wanted = _FIRST_S if name.endswith(", s") else _FRAMES
        sound = value <= wanted if name.endswith(", s") else value >= wanted
        unit = "s" if name.endswith(", s") else "frames/s"
        print(f"{name.removesuffix(', s'):46} {value:7.2f} {unit:9} {'' if sound else f'(wanted: {wanted:g})'}")
    about = {"cpus": os.cpu_count(), "machine": platform.machine(), "size": list(options.size)}
    print(json.dumps({"review_page": found, **about}))


if __name__ == "__main__":
    main()
