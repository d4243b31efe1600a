"""What `make wheel` runs in an environment that holds the wheel alone: from phantoms to findings, and the types."""

import json
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import unary


def run(*words):
    subprocess.run([sys.executable, "-m", "unary.cli", *map(str, words)], check=True)


def main():
    assert "site-packages" in unary.__file__, unary.__file__
    assert resources.files("unary").joinpath("py.typed").is_file()
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        sizes = ("--rows", 384, "--cols", 320)
        run("phantom", "--out", here / "data", "--normal", 4, "--abnormal", 1, "--images", 2, *sizes)
        run("split", here / "data/all.csv", "--train", here / "train.csv", "--test", here / "test.csv")
        run("fit", here / "train.csv", "--detector", "laplacian", "--out", here / "model")
        run("detect", here / "model", here / "data/abnormal", "--dicom", "none", "--out", here / "results")
        results = [json.loads(path.read_text()) for path in here.glob("results/*/result.json")]
        assert len(results) == 2, results
        assert all(result["image_score"] is not None for result in results)
    print(f"unary {unary.__version__}: installed, and it works")


if __name__ == "__main__":
    main()
