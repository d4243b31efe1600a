import json
import re

from unary.datasets.phantom import PhantomConfig
from unary.experiments.demo import DemoConfig, run_demo

SMALL = DemoConfig(PhantomConfig(rows=448, cols=384), learned=3, thresholds=5, normal=2, abnormal=2, steps=10, epochs=2)


def test_the_whole_chain_says_that_it_is_synthetic(tmp_path):
    out = tmp_path / "demo"
    lines = list(run_demo(out, SMALL, progress=False))
    assert "synthetic" in lines[0]
    assert f"{out / 'report.html'} (" in lines[-1]
    page = (out / "report.html").read_text()
    for each in (page, (out / "evaluation" / "report.html").read_text()):
        assert "computer-made phantom" in each
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert len(headings) >= 4
    assert page.count('<article class="card"') == 4, "the four views come first"
    assert page.index('<article class="card"') < page.index("<table")
    found = json.loads((out / "metrics.json").read_text())
    assert {"fusion", "wei2018", "laplacian"} <= set(json.dumps(found).replace('"', " ").split())
    assert len(list((out / "phantoms").rglob("*.dcm"))) == 4 + 12
    assert len(list((out / "detections").glob("*/report.dcm"))) == 4
    assert not list(out.glob("*.checkpoint*"))
