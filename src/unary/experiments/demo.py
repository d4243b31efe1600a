"""The whole chain on synthetic images: draw, learn, find, count how often it is wrong, compare.

Three detectors learn from the same normal phantoms, set their thresholds on the same others and are tried on the same
third: unary's default, the network of Wei et al. 2018, and a filter that learns nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.datasets.manifest import write_manifest
from unary.datasets.phantom import (
    Laterality,
    LesionChoice,
    PhantomConfig,
    build_phantom,
    write_phantom,
    write_phantom_dataset,
)
from unary.datasets.phantom_tissue import View, draw_traits
from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.fusion import Fusion, FusionConfig
from unary.detectors.protocol import Detector
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.evaluation.evaluate import evaluate
from unary.evaluation.evaluated_image import evaluate_image
from unary.experiments.common import describe_run
from unary.experiments.demo_report import BANNER, DemoResult, compare_detectors, document_demo, write_demo_report
from unary.files import replacing
from unary.models.bundle import Model, write_model
from unary.models.examination import examine_image
from unary.models.fitting import FitConfig, fit
from unary.outputs.cards import Card, embed_views
from unary.outputs.evaluation_pictures import EvaluationPictures, build_card, draw_evaluated
from unary.outputs.evaluation_report import write_evaluation
from unary.patches.collection import read_row
from unary.records import NOTICE, Lesion, Manifest, ManifestRow, count_words
from unary.training.engine import StepsConfig

_HUNG: tuple[tuple[Laterality, View], ...] = (("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO"))
_PLANTED: Mapping[Laterality, LesionChoice] = {"R": "mass", "L": "calcifications"}


@dataclass(frozen=True)
class DemoConfig:
    """How much is drawn and learned; small, so that it takes minutes.

    Attributes
    ----------
    phantom
        Of every image.
    learned, thresholds, normal, abnormal
        How many patients, with one image each, are learned from, set the thresholds, and are tried: normal ones, and
        ones with a lesion.
    steps
        Of the training of the default detector's learned part.
    epochs
        Of the training of the paper's network.
    """

    phantom: PhantomConfig = field(default_factory=lambda: PhantomConfig(rows=896, cols=736))
    learned: int = 12
    thresholds: int = 15
    normal: int = 10
    abnormal: int = 10
    steps: int = 250
    epochs: int = 15


def run_demo(out: Path, config: DemoConfig = DemoConfig(), *, seed: int = 0, progress: bool = True) -> Iterator[str]:
    """Run the demonstration, yielding lines for a terminal.

    ``out`` gets ``report.html``, which tells it all, ``metrics.json``, ``phantoms/`` (DICOM), ``manifest.csv``,
    ``model/``, ``evaluation/`` and ``detections/``.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    yield f"unary demo: synthetic images only. {NOTICE}"
    patients = {
        "patients_normal": config.learned + config.thresholds + config.normal,
        "patients_abnormal": config.abnormal,
    }
    drawn = write_phantom_dataset(out / "phantoms", **patients, images_per_patient=1, config=config.phantom, seed=seed)
    write_manifest(drawn, out / "manifest.csv")
    views = draw_four_views(out / "phantoms" / "four_views", config.phantom, seed=seed)
    count = len(drawn.rows) + len(views.rows)
    yield f"{count_words(count, 'phantom')}, with lesions in {config.abnormal + len(views.rows)}: {out / 'phantoms'}"
    normal = [row for row in drawn.rows if row.label == "negative"]
    kept = config.learned + config.thresholds
    fitted, tried = drawn.select(tuple(normal[:kept])), drawn.select((*normal[kept:], *drawn.rows[len(normal) :]))
    models = fit_detectors(fitted, config, seed=seed, progress=progress)
    model = models["fusion"]
    write_model(model, out / "model", overwrite=True)
    pictures = EvaluationPictures(out / "evaluation", model, images=len(tried.rows))
    evaluations = {
        name: evaluate(each, tried, draw=pictures.draw if each is model else None, progress=progress)
        for name, each in models.items()
    }
    write_evaluation(evaluations["fusion"], model, out / "evaluation", banners=(BANNER,), progress=progress)
    summary = detect_files(
        model,
        [row.path for row in views.rows if row.path is not None],
        out / "detections",
        DetectConfig(maps=True),
        model_folder=out / "model",
        progress=progress,
    )
    findings = sum(row["findings"] for row in summary.rows)
    yield f"{count_words(findings, 'finding')} in {count_words(len(summary.rows), 'view')}: {out / 'detections'}"
    meta = describe_run("demo") | {"seed": seed, "config": dataclasses.asdict(config)}
    result = DemoResult(model, draw_cards(model, views), compare_detectors(models, evaluations), meta)
    with replacing(out / "metrics.json") as partial:
        partial.write_text(json.dumps(document_demo(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    seconds = time.monotonic() - started
    yield write_demo_report(result, out / "report.html", seconds=seconds)
    yield f"{out / 'report.html'} ({seconds:.0f} s)"


def draw_four_views(folder: Path, config: PhantomConfig, *, seed: int) -> Manifest:
    """Draw four views of one more patient: calcifications in the left breast, a mass in the right one."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 4])
    traits, patient = draw_traits(rng), "V001"
    rows: list[ManifestRow] = []
    lesions: list[Lesion] = []
    for side, view in _HUNG:
        name = f"{patient}_{side}_{view}"
        kind = _PLANTED[side]
        phantom = build_phantom(config, rng=rng, lesions=kind, view=view, laterality=side, image_id=name, traits=traits)
        path = folder.resolve() / f"{name}.dcm"
        write_phantom(phantom, path, image_id=name, patient_id=patient, seed=seed)
        lesions.extend(phantom.lesions)
        row = ManifestRow(path, name, patient, label="positive", laterality=side, view=view, assessment="5")
        rows.append(replace(row, spacing_mm=config.spacing_mm))
    return Manifest(tuple(rows), tuple(lesions))


def fit_detectors(normals: Manifest, config: DemoConfig, *, seed: int, progress: bool = True) -> dict[str, Model]:
    """Fit the three on the same images, of which the same set the thresholds of each."""
    held_out = config.thresholds / (config.learned + config.thresholds)
    steps = StepsConfig(config.steps, batch_size=8)
    paper = FitConfig(seed=seed, held_out=held_out, stride_px=64)
    fine = replace(paper, size_px=64)
    training = TrainingConfig(epochs=config.epochs, batch_size=50)
    wanted: dict[str, tuple[FitConfig, str | Detector]] = {
        "fusion": (fine, Fusion(FusionConfig(blind_spot=BlindSpotConfig(training=steps)))),
        "wei2018": (paper, Wei2018(Wei2018Config(training=training))),
        "laplacian": (fine, "laplacian"),
    }
    return {
        name: fit(normals, chosen, detector=detector, progress=progress) for name, (chosen, detector) in wanted.items()
    }


def draw_cards(model: Model, views: Manifest) -> tuple[Card, ...]:
    """Examine views whose lesions are known, and return their cards with all pictures inside."""
    cards = []
    for row in views.rows:
        image = read_row(row)
        scored = examine_image(model, image)
        evaluated, _ = evaluate_image(model, row, views.lesions_of(row.image_id), scored)
        drawn = draw_evaluated(model, evaluated, image, scored)
        cards.append(build_card(evaluated, model, functools.partial(embed_views, drawn)))
    return tuple(cards)
