"""What the commands that a hospital runs import before there is an image: little, and no torch."""

import subprocess
import sys

import pytest

from unary.images.reading import read_image

HEAVY = ("torch", "pydicom", "highdicom", "matplotlib", "skimage.transform._warps", "pandas", "pyarrow", "onnx",
         "onnxruntime", "imagecodecs", "PIL.Image", "tifffile")  # fmt: skip


def list_imported(code):
    """Return which of the heavy packages code imports, in a process of its own."""
    told = f"{code}\nimport sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "code",
    [
        "import unary.clinic.batch_detection, unary.clinic.batch_scoring",
        "import unary.clinic.writing_process, unary.clinic.known_files",
        "import unary.models.examination, unary.models.bundle, unary.models.exported",
        "import unary.outputs.heat_map, unary.outputs.detection_figures, unary.outputs.dicom.run",
        "import unary.patches.collection, unary.patches.store",
        "import unary.training.threads, unary.training.context, unary.training.devices",
        "from unary.cli.main import main\ntry: main(['detect', '--help'])\nexcept SystemExit: pass",
        "from unary.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    assert list_imported(code) == []


def test_whoever_reads_images_knows_dicom_and_no_torch():
    assert set(list_imported("import unary.images.headers")) == {"pydicom", "PIL.Image"}, "pydicom brings PIL"


def test_an_image_is_examined_without_what_reads_or_writes_dicom(model_folder, phantoms, tmp_path):
    pixels = read_image(phantoms.rows[0].path).pixels
    head = f"P5 {pixels.shape[1]} {pixels.shape[0]} 65535\n".encode()
    (tmp_path / "one.pgm").write_bytes(head + pixels.astype(">u2").tobytes())
    arguments = ["detect", str(model_folder), str(tmp_path / "one.pgm"), "--out", str(tmp_path / "out"),
                 "--dicom", "none", "--spacing-mm", "0.2"]  # fmt: skip
    imported = list_imported(f"from unary.cli.main import main\nassert main({arguments!r}) == 0")
    assert "matplotlib" in imported, "which draws findings.png"
    assert not {"torch", "pydicom", "highdicom", "onnxruntime"} & set(imported)
