"""The command line: parses, calls, prints."""

from __future__ import annotations

import argparse
import glob
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from unary.cli.clinic import EXIT_FAILED, EXIT_PARTLY, NOTICE, add_detection_commands
from unary.errors import UnaryError

if TYPE_CHECKING:
    from unary.patches.grid import GridConfig
    from unary.patches.preparation import PreparationConfig
    from unary.records import Manifest

EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 when nothing could be done, 3 when a part was skipped, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="unary: %(message)s", stream=sys.stderr)
    logging.getLogger("pydicom").setLevel(logging.ERROR)  # its warnings may quote a patient's data
    try:
        status: int = options.run(options)
    except UnaryError as error:
        print(f"unary: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        print(f"unary: error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("unary: interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


@contextmanager
def _checking_options() -> Iterator[None]:
    """Turn a configuration's complaint about a value into an error for the person who typed it."""
    try:
        yield
    except ValueError as error:
        raise UnaryError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; nothing heavy is imported to build it."""
    parser = argparse.ArgumentParser(
        prog="unary",
        description=f"One-class anomaly detection in medical images. {NOTICE}",
    )
    parser.add_argument("--version", action="version", version=f"unary {metadata.version('unary')}. {NOTICE}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_data_commands(commands)
    _add_model_commands(commands)
    add_detection_commands(commands)
    _add_experiment_commands(commands)
    return parser


Commands = argparse._SubParsersAction  # argparse has no public name for it


def _add_data_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    manifest = commands.add_parser("manifest", help="list a data set's images, labels and lesions in one CSV")
    manifest.add_argument("kind", choices=["inbreast", "cbis-ddsm", "mias", "folder"])
    manifest.add_argument("folder", type=Path, metavar="DIR")
    manifest.add_argument("--out", type=Path, required=True, metavar="M.csv")
    manifest.add_argument("--only", choices=["negative", "positive"], help="keep the images of one label")
    manifest.add_argument(
        "--annotation", type=Path, metavar="CSV", help="inbreast: which images list only part of their lesions"
    )
    manifest.set_defaults(run=_run_manifest)
    split = commands.add_parser(
        "split", help="divide a manifest by patient into normals to fit and the rest to evaluate"
    )
    split.add_argument("manifest", type=Path, metavar="M.csv")
    split.add_argument("--train", type=Path, required=True, metavar="T.csv")
    split.add_argument("--test", type=Path, required=True, metavar="E.csv")
    split.add_argument(
        "--held-out", type=float, default=0.2, help="share of the normal patients (default: %(default)s)"
    )
    split.add_argument("--seed", type=int, default=0)
    split.set_defaults(run=_run_split)


def _add_model_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    fit = commands.add_parser("fit", help="learn normal tissue from the negative images of a manifest")
    fit.add_argument("manifest", type=Path, metavar="M.csv")
    fit.add_argument("--out", type=Path, required=True, metavar="MODEL/")
    fit.add_argument(
        "--detector",
        choices=["fusion", "fusion_prior", "wei2018", "laplacian"],
        default="fusion",
        help="default: %(default)s, learned from normals alone; fusion_prior adds simulated calcifications",
    )
    fit.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="keep the prepared images there, not in memory (about 20 MB a mammogram; wei2018 and laplacian)",
    )
    _add_training_options(fit, epochs=500)
    _add_patch_options(fit)
    fit.set_defaults(size_px=None, stride_px=None)  # the detector's own: 128, or 64 for the fusions
    fit.set_defaults(run=_run_fit)
    score = commands.add_parser("score", help="score images: patch scores, anomaly maps, overlays")
    score.add_argument("model", type=Path, metavar="MODEL/")
    score.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    score.add_argument("--out", type=Path, required=True, metavar="DIR/")
    score.set_defaults(run=_run_score)
    evaluate = commands.add_parser("evaluate", help="score a labelled manifest and report how well")
    evaluate.add_argument("model", type=Path, metavar="MODEL/")
    evaluate.add_argument("manifest", type=Path, metavar="M.csv")
    evaluate.add_argument("--out", type=Path, required=True, metavar="DIR/")
    evaluate.add_argument("--allow-seen", action="store_true", help="accept patients that the model was trained on")
    _add_note_option(evaluate)
    evaluate.set_defaults(run=_run_evaluate)


def _add_experiment_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    reproduce = commands.add_parser("reproduce", help="rerun an experiment of Wei et al. 2018")
    reproduce.add_argument("experiment", choices=["wei2018", "mnist", "cifar10"])
    reproduce.add_argument("--data", type=Path, required=True, metavar="DIR")
    reproduce.add_argument("--out", type=Path, required=True, metavar="DIR")
    reproduce.add_argument("--epochs", type=int, help="default: the paper's 500; for mnist and cifar10, see the docs")
    reproduce.add_argument("--runs", type=_parse_count, help="independent runs (default: 3; mnist and cifar10: 10)")
    reproduce.add_argument("--seed", type=int, default=0, help="of the first run (default: %(default)s)")
    reproduce.add_argument("--annotation", type=Path, metavar="CSV", help="as for `unary manifest inbreast`")
    _add_device_options(reproduce)
    _add_note_option(reproduce)
    _add_patch_options(reproduce)
    reproduce.set_defaults(run=_run_reproduce)
    bench = commands.add_parser("bench", help="compare detectors on the same patches, cross-validated over patients")
    bench.add_argument("--data", type=Path, required=True, metavar="DIR-OR-M.csv")
    bench.add_argument("--out", type=Path, required=True, metavar="DIR")
    bench.add_argument(
        "--kind",
        choices=["inbreast", "cbis-ddsm", "mias", "folder", "manifest"],
        help="of the data (default: manifest for a file, inbreast for a folder)",
    )
    bench.add_argument("--annotation", type=Path, metavar="CSV", help="as for `unary manifest inbreast`")
    bench.add_argument("--detectors", metavar="A,B,C", help="default: all")
    bench.add_argument("--folds", type=_parse_count, default=3, help="at least 2 (default: %(default)s)")
    bench.add_argument("--runs", type=_parse_count, default=1, help="independent runs (default: %(default)s)")
    bench.add_argument("--seed", type=int, default=0, help="of the first run (default: %(default)s)")
    _add_note_option(bench)
    bench.set_defaults(run=_run_bench)
    demo = commands.add_parser("demo", help="the whole chain on synthetic mammograms, in minutes")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_run_demo)


def _parse_count(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, not {text!r}")
    return int(text)


def _add_note_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--note", action="append", default=[], metavar="TEXT", help="what must not be overlooked; heads the report"
    )


def _add_training_options(parser: argparse.ArgumentParser, *, epochs: int) -> None:
    parser.add_argument("--epochs", type=int, default=epochs, help="of wei2018 (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=200, help="of wei2018 (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of wei2018 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    _add_device_options(parser)


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="cpu", help="where wei2018 is trained: cpu, cuda, cuda:1 (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "tf32", "bfloat16"],
        default="float32",
        help="of wei2018's convolutions on a GPU; the others are faster and rounder (default: %(default)s)",
    )


def _add_patch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size-px", type=int, default=128, help="side of a patch (default: %(default)s)")
    parser.add_argument("--stride-px", type=int, default=128, help="step between patches (default: %(default)s)")
    parser.add_argument("--min-tissue", type=float, default=0.5, help="least share of tissue (default: %(default)s)")
    parser.add_argument("--mask", choices=["breast", "none"], default="breast", help="what counts as tissue")
    parser.add_argument("--intensity", choices=["percentile", "full_scale"], default="percentile")
    parser.add_argument(
        "--working-spacing-mm",
        type=float,
        help="resample to square pixels of this size first; `fit` takes 0.14 for the fusions where spacing is known",
    )


def _read_data_set(kind: str, folder: Path, annotation: Path | None) -> tuple[Manifest, tuple[str, ...]]:
    """Return the manifest of a data set, and notices."""
    from unary.datasets.cbis_ddsm import read_cbis_ddsm
    from unary.datasets.folder import read_folder
    from unary.datasets.inbreast import read_inbreast
    from unary.datasets.manifest import read_manifest
    from unary.datasets.mias import read_mias

    if annotation is not None and kind != "inbreast":
        raise UnaryError("--annotation goes with INbreast alone")
    if kind == "inbreast":
        return read_inbreast(folder, annotation=annotation)
    if kind == "manifest":
        return read_manifest(folder), ()
    return {"cbis-ddsm": read_cbis_ddsm, "mias": read_mias, "folder": read_folder}[kind](folder)


def _run_manifest(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import write_manifest

    manifest, notices = _read_data_set(options.kind, options.folder, options.annotation)
    if options.only is not None:
        manifest = manifest.select(tuple(row for row in manifest.rows if row.label == options.only))
    for notice in notices:
        print(f"unary: {notice}", file=sys.stderr)
    write_manifest(manifest, options.out)
    labels = [row.label or "unlabelled" for row in manifest.rows]
    counts = ", ".join(f"{labels.count(label)} {label}" for label in sorted(set(labels)))
    patients = len({row.patient_id for row in manifest.rows})
    print(f"{options.out}: {len(labels)} images ({counts}) of {patients} patients, {len(manifest.lesions)} lesions")
    return 0


def _run_split(options: argparse.Namespace) -> int:
    import numpy as np

    from unary.datasets.manifest import read_manifest, write_manifest
    from unary.datasets.splits import split_manifest

    train, test = split_manifest(read_manifest(options.manifest), options.held_out, np.random.default_rng(options.seed))
    for part, path in ((train, options.train), (test, options.test)):
        write_manifest(part, path)
        print(f"{path}: {len(part.rows)} images of {len({row.patient_id for row in part.rows})} patients")
    return 0


def _run_fit(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.models.bundle import require_model_folder, write_model
    from unary.models.calibration import describe_promise
    from unary.models.detection import DEFAULT_POINT
    from unary.models.pipeline import DENSE_SIZE_PX, FUSIONS, FitConfig, fit
    from unary.patches.preparation import PreparationConfig
    from unary.training.distributed import is_first, is_joined, joining_processes
    from unary.training.engine import TrainingConfig

    dense = options.detector in FUSIONS
    options.size_px = options.size_px or (DENSE_SIZE_PX if dense else 128)
    options.stride_px = options.stride_px or options.size_px
    preparation, grid = _read_patch_options(options)
    with _checking_options():
        training = TrainingConfig(
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            device=options.device,
            precision=options.precision,
        )
    require_model_folder(options.out)
    checkpoint = options.out.with_name(f"{options.out.name}.checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    chosen = None if preparation == PreparationConfig() else preparation
    config = FitConfig(options.detector, chosen, grid, training)
    with joining_processes():
        if is_joined() and options.detector != "wei2018":
            raise UnaryError("several processes train wei2018 alone; start the others without torchrun")
        model = fit(read_manifest(options.manifest), config, checkpoint=checkpoint, store=options.store)
        if not is_first():
            return 0
    write_model(model, options.out)
    for file in (checkpoint, *checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}.*")):
        file.unlink(missing_ok=True)
    thresholds = ", ".join(f"{value:.4g} at {float(level):.0%}" for level, value in model.thresholds.items())
    print(f"{options.out}: {model.name}, {model.provenance.patches} patches of {model.provenance.images} images")
    print(f"score thresholds by specificity on held-out normal patients: {thresholds}")
    calibration = None if model.detection is None else model.detection.calibration
    if calibration is not None:
        print(describe_promise(calibration.find_operating_point(DEFAULT_POINT)))
    print(NOTICE)
    if model.provenance.skipped:
        print(f"unary: {model.provenance.skipped} images of the manifest were skipped", file=sys.stderr)
        return EXIT_PARTLY
    return 0


def _run_score(options: argparse.Namespace) -> int:
    from unary.clinic.batch import score_files
    from unary.models.bundle import read_model

    summary = score_files(read_model(options.model), options.inputs, options.out, model_folder=options.model)
    print(
        f"{options.out}: {len(summary.done)} images scored, {len(summary.kept)} done before, "
        f"{len(summary.failed)} skipped (failures.csv says why). {NOTICE}"
    )
    if not summary.failed:
        return 0
    return EXIT_PARTLY if summary.rows else EXIT_FAILED


def _run_evaluate(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.evaluation.detection_evaluation import evaluate_detection
    from unary.models.bundle import read_model
    from unary.models.pipeline import evaluate
    from unary.outputs.evaluation_report import write_evaluation

    model, manifest = read_model(options.model), read_manifest(options.manifest)
    evaluation = evaluate(model, manifest, allow_seen=options.allow_seen)
    detection = evaluate_detection(model, manifest)
    for line in write_evaluation(evaluation, model, options.out, detection=detection, banners=tuple(options.note)):
        print(line)
    return EXIT_PARTLY if evaluation.collection.skipped or (detection is not None and detection.skipped) else 0


def _run_reproduce(options: argparse.Namespace) -> int:
    if options.experiment != "wei2018":
        from unary.experiments.small_images import reproduce_small_images

        document = reproduce_small_images(
            options.experiment,
            options.data,
            options.out,
            runs=options.runs or 10,
            epochs=options.epochs,
            seed=options.seed,
        )
        for name, classes in document["detectors"].items():
            print(f"{name:18s} mean AUROC over {len(classes) - 1} classes {classes['mean']['auroc']:.3f}")
        print(f"{options.out / 'report.html'}")
        return 0
    from unary.datasets.inbreast import read_inbreast
    from unary.experiments.wei2018 import Wei2018Config, run_wei2018
    from unary.experiments.wei2018_report import describe_result, write_wei2018_report
    from unary.training.engine import TrainingConfig

    preparation, grid = _read_patch_options(options)
    with _checking_options():
        config = Wei2018Config(
            training=TrainingConfig(
                epochs=500 if options.epochs is None else options.epochs,
                device=options.device,
                precision=options.precision,
            ),
            grid=grid,
            preparation=preparation,
            seeds=tuple(range(options.seed, options.seed + (options.runs or 3))),
        )
    manifest, notices = read_inbreast(options.data, annotation=options.annotation)
    result = run_wei2018(manifest, options.out, config, notices=(*options.note, *notices))
    write_wei2018_report(result, options.out / "report.html", banners=tuple(options.note))
    for line in describe_result(result):
        print(line)
    print(f"{options.out / 'report.html'}")
    return 0


def _run_bench(options: argparse.Namespace) -> int:
    from unary.experiments.bench import BenchConfig, run_bench
    from unary.experiments.bench_report import describe_bench, write_bench_report
    from unary.experiments.entrants import ENTRANTS

    known = {entrant.name: entrant for entrant in ENTRANTS}
    names = list(known)
    if options.detectors is not None:
        names = list(dict.fromkeys(name.strip() for name in options.detectors.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnaryError(f"no detector is called {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    seeds = tuple(range(options.seed, options.seed + options.runs))
    config = BenchConfig(folds=options.folds, seeds=seeds)
    kind = options.kind or ("manifest" if options.data.is_file() else "inbreast")
    manifest, notices = _read_data_set(kind, options.data, options.annotation)
    entrants = [known[name] for name in names]
    result = run_bench(manifest, options.out, config, entrants, notices=notices, banners=options.note)
    write_bench_report(result, options.out)
    for line in describe_bench(result):
        print(line)
    print(f"{options.out / 'report.html'}")
    print(NOTICE)
    return EXIT_PARTLY if result.data.fine.skipped or result.failures else 0


def _run_demo(options: argparse.Namespace) -> int:
    from unary.experiments.demo import run_demo

    for line in run_demo(options.out, seed=options.seed):
        print(line)
    return 0


def _read_patch_options(options: argparse.Namespace) -> tuple[PreparationConfig, GridConfig]:
    from unary.patches.grid import GridConfig
    from unary.patches.preparation import PreparationConfig

    with _checking_options():
        preparation = PreparationConfig(
            mask=options.mask, intensity=options.intensity, working_spacing_mm=options.working_spacing_mm
        )
        return preparation, GridConfig(options.size_px, options.stride_px, options.min_tissue)


if __name__ == "__main__":
    sys.exit(main())
