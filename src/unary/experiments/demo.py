"""The whole chain on synthetic images: DICOM, manifest, fit, evaluate, score, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.clinic.batch_scoring import score_files
from unary.datasets.manifest import read_manifest, write_manifest
from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.datasets.splits import split_manifest
from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.fusion import Fusion, FusionConfig
from unary.detectors.wei2018.learning import TrainingConfig
from unary.evaluation.evaluate import evaluate
from unary.evaluation.metrics import ALL
from unary.experiments.wei2018 import PaperConfig, run_wei2018
from unary.experiments.wei2018_report import describe_result, write_wei2018_report
from unary.models.bundle import write_model
from unary.models.fitting import FitConfig, fit
from unary.outputs.evaluation_report import write_evaluation
from unary.patches.grid import GridConfig
from unary.records import NOTICE, count_words
from unary.training.engine import StepsConfig

BANNER = (
    "Synthetic data. Every image here is a computer-made phantom with planted lesions. The figures show that the chain "
    "works; they say nothing about real images."
)


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    phantom: PhantomConfig | None = None,
    patients: tuple[int, int] = (14, 6),
    epochs: int = 15,
    steps: int = 600,
) -> Iterator[str]:
    """Run the demonstration, yielding lines for a terminal.

    ``out`` gets ``phantoms/`` (DICOM), ``manifest.csv``, ``report.html``, ``metrics.json``, ``model/``,
    ``evaluation/``, ``scores/`` and ``detections/``. Of ``patients`` without and with lesions there are two images
    each; ``epochs`` are those of the paper's network, ``steps`` those of the default detector's learned part.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    yield f"unary demo: synthetic images only. {NOTICE}"
    images, (normal, abnormal) = phantom or PhantomConfig(), patients
    made = write_phantom_dataset(
        out / "phantoms", patients_normal=normal, patients_abnormal=abnormal, config=images, seed=seed
    )
    write_manifest(made, out / "manifest.csv")
    manifest = read_manifest(out / "manifest.csv")
    counted = f"{count_words(len(manifest.rows), 'phantom')} with {count_words(len(manifest.lesions), 'lesion')}"
    yield f"{counted} in {out / 'phantoms'}"
    training = TrainingConfig(epochs=epochs, batch_size=50)
    config = PaperConfig(training=training, grid=GridConfig(stride_px=64), seeds=(seed, seed + 1), held_out=0.3)
    result = run_wei2018(manifest, out, config, notices=[BANNER])
    write_wei2018_report(result, out / "report.html", banners=(BANNER,), title="Wei et al. 2018 on synthetic images")
    yield from (line for line in describe_result(result) if f" {ALL} " in line)
    normals, others = split_manifest(manifest, 0.3, seed)
    detector = Fusion(FusionConfig(blind_spot=BlindSpotConfig(training=StepsConfig(steps, batch_size=8))))
    checkpoint = out / "model.checkpoint"
    model = fit(normals, FitConfig(seed=seed, size_px=64, stride_px=32), detector=detector, checkpoint=checkpoint)
    write_model(model, out / "model", overwrite=True)
    for file in out.glob(f"{checkpoint.name}*"):
        file.unlink()
    write_evaluation(evaluate(model, others), model, out / "evaluation", banners=(BANNER,))
    shown = [row.path for row in others.rows if row.label == "positive" and row.path is not None][:4]
    score_files(model, shown, out / "scores", model_folder=out / "model")
    summary = detect_files(model, shown, out / "detections", DetectConfig(maps=True), model_folder=out / "model")
    findings = sum(row["findings"] for row in summary.rows)
    counted = f"{count_words(findings, 'finding')} in {count_words(len(summary.rows), 'image')}"
    yield f"{counted}: {out / 'detections'} (findings.png, report.dcm, ...)"
    yield f"{out / 'report.html'} ({time.monotonic() - started:.0f} s)"
