import json

from unary.datasets.phantom import PhantomConfig
from unary.experiments.demo import run_demo


def test_the_whole_chain_says_that_it_is_synthetic(tmp_path):
    out = tmp_path / "demo"
    lines = list(run_demo(out, phantom=PhantomConfig(rows=448, cols=384), patients=(8, 3), epochs=2, steps=10))
    printed = "\n".join(lines)
    assert "synthetic" in lines[0]
    for detector in ("wei2018", "laplacian"):
        found = json.loads((out / "metrics.json").read_text())["detectors"][detector]["tissue"]["patient"]["all"]
        assert f"{detector:18s} {'all':14s} AUROC {found['auroc']:.3f} (too few patients to tell" in printed
    heading = (
        "Wei et al. 2018 on synthetic images, not as published: 2 of 500 epochs, 2 runs, 16 negative and 6 positive"
    )
    assert heading in (out / "report.html").read_text()
    assert "Too few patients to tell" in (out / "evaluation" / "report.html").read_text().split('class="lead">')[1]
    for page in ("report.html", "evaluation/report.html"):
        assert "computer-made phantom" in (out / page).read_text()
    assert len(list((out / "phantoms").rglob("*.dcm"))) == 22
    assert len(list((out / "scores").glob("*/overlay.png"))) == 4
    assert len(list((out / "detections").glob("*/report.dcm"))) == 4
    assert not list(out.glob("*.checkpoint*"))
