"""The commands about models: fit, score, evaluate, calibrate."""

from __future__ import annotations

import argparse
import glob
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unary.cli.options import (
    EXIT_PARTLY,
    Command,
    add_config_options,
    add_notes,
    add_number,
    end_partly,
    find_given,
    find_options,
    read_config_options,
)
from unary.errors import UnaryError
from unary.records import NOTICE

if TYPE_CHECKING:
    from unary.models.bundle import Model

_FIT, _DETECTOR, LIMITS = "fit", "detector", "limits"
NOT_CALIBRATED = "The model is not calibrated: nothing is guaranteed (unary calibrate)."


def _add_fit_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    from unary.models.fitting import FitConfig
    from unary.profiles import DEFAULT, PROFILES, find_profile

    profile = find_profile(_find_word(words, "--profile") or DEFAULT)
    name = _find_word(words, "--detector") or profile.detector
    detector = _build_default(name)
    parser.add_argument("manifest", type=Path, metavar="M.csv", help="normal images alone")
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL/")
    parser.add_argument("--profile", default=profile.name, help=f"{', '.join(PROFILES)} (default: {DEFAULT.name})")
    parser.add_argument(
        "--detector",
        default=name,
        metavar="NAME",
        help=f"{_list_detectors()}, or your own as module:Class (default: {profile.detector}); "
        "with --help, its own options are shown",
    )
    add_config_options(parser, FitConfig(), scope=_FIT)
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep the prepared images there, not in memory")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there already")
    if list(find_options(detector.config)):
        summary = (type(detector).__doc__ or "").strip().partition("\n")[0]
        own = parser.add_argument_group(f"options of {name}", summary.replace("%", "%%"))
        add_config_options(own, detector.config, scope=_DETECTOR)


def _find_word(words: Sequence[str], flag: str) -> str | None:
    """The value of an option among words that are not parsed yet; the last one counts."""
    found = None
    for word, after in itertools.pairwise([*words, ""]):
        if word == flag:
            found = after
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found


def _build_default(name: str) -> Any:
    """The detector of a name with its defaults."""
    from unary.detectors import find_detector_class

    detector = find_detector_class(name)()
    if not hasattr(type(detector.config), "__dataclass_fields__"):
        raise UnaryError(f"the config of {name} is no dataclass, so that it has no options")
    return detector


def _list_detectors() -> str:
    from unary.detectors import DETECTORS

    return ", ".join(DETECTORS)


def _explain_unknown(unknown: Sequence[str], options: argparse.Namespace) -> str | None:
    """Say which detectors have an option that the chosen one has not."""
    from unary.detectors import DETECTORS

    flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
    if not flags:
        return None
    shown = flags[0].replace("--no-", "--", 1)
    owners = [
        name for name in DETECTORS if any(option.flag == shown for option in find_options(_build_default(name).config))
    ]
    if not owners:
        return None
    return f"{flags[0]} is no option of {options.detector}; it belongs to {', '.join(owners)}"


def _run_fit(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.models.bundle import require_model_folder, write_model
    from unary.models.fitting import FitConfig, fit
    from unary.training.distributed import is_first, joining_processes

    config = read_config_options(options, FitConfig(), scope=_FIT)
    detector = _read_detector(options)
    require_model_folder(options.out, overwrite=options.overwrite)
    out = Path(os.path.abspath(options.out))
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with joining_processes():
        model = fit(
            read_manifest(options.manifest),
            config,
            detector=detector,
            profile=options.profile,
            checkpoint=checkpoint,
            store=options.store,
        )
        if not is_first():
            return 0
    write_model(model, options.out, overwrite=options.overwrite)
    for file in checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}.*"):
        file.unlink(missing_ok=True)
    _print_model(model, options.out)
    if model.provenance.skipped:
        print(f"unary: {model.provenance.skipped} images of the manifest were skipped", file=sys.stderr)
        return EXIT_PARTLY
    return 0


def _read_detector(options: argparse.Namespace) -> Any:
    """The detector that was asked for, not fitted; a device that is not there is refused now."""
    from unary.training.devices import require_device

    default = _build_default(options.detector)
    given = find_given(options, default.config, scope=_DETECTOR)
    config = read_config_options(options, default.config, scope=_DETECTOR)
    for option in given:
        if option.path[-1] == "device":
            require_device(vars(options)[f"{_DETECTOR}.{'.'.join(option.path)}"], option.flag)
    return type(default)(config) if given else default


def _print_model(model: Model, out: Path) -> None:
    from unary.models.calibration import describe_guarantee
    from unary.models.examination import choose_point

    made = model.provenance
    print(f"{out}: {model.name}, {made.patches} patches of {made.images} images, profile {model.profile.name}")
    point = choose_point(model, None)
    if model.calibration is None or point is None:
        print(NOT_CALIBRATED)
    else:
        print(f"operating point {point.name}: {describe_guarantee(point)}")
        for other in model.calibration.operating_points:
            if other.unit == "patch":
                print(f"operating point {other.name}: score above {other.threshold:.4g}. {describe_guarantee(other)}")
    print(NOTICE)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add what files of unknown origin need: spacing, and limits of reading."""
    from unary.images.isolation_process import ReadingLimits

    add_number(parser, "--spacing-mm", default=None, help="pixel spacing of files that do not state it")
    add_config_options(parser.add_argument_group("limits of reading one file"), ReadingLimits(), scope=LIMITS)


def read_reading_options(options: argparse.Namespace) -> Any:
    """Return the limits of `add_reading_options`, after a look at the spacing."""
    from unary.images.isolation_process import ReadingLimits

    if options.spacing_mm is not None and not options.spacing_mm > 0:
        raise UnaryError(f"--spacing-mm must be positive, got {options.spacing_mm:g}")
    return read_config_options(options, ReadingLimits(), scope=LIMITS)


def _add_score_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL/")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR/")
    add_reading_options(parser)


def _run_score(options: argparse.Namespace) -> int:
    from unary.clinic.batch_scoring import score_files
    from unary.models.bundle import read_model

    limits = read_reading_options(options)
    summary = score_files(
        read_model(options.model),
        options.inputs,
        options.out,
        model_folder=options.model,
        spacing_mm=options.spacing_mm,
        limits=limits,
    )
    print(
        f"{options.out}: {len(summary.done)} images scored, {len(summary.kept)} done before, "
        f"{len(summary.failed)} skipped (failures.csv says why). {NOTICE}"
    )
    return end_partly(len(summary.rows), len(summary.failed))


def _add_evaluate_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL/")
    parser.add_argument("manifest", type=Path, metavar="M.csv")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR/")
    parser.add_argument("--allow-seen", action="store_true", help="accept patients that the model was trained on")
    add_notes(parser)


def _run_evaluate(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.evaluation.evaluate import evaluate
    from unary.models.bundle import read_model
    from unary.outputs.evaluation_report import write_evaluation

    model = read_model(options.model)
    evaluation = evaluate(model, read_manifest(options.manifest), allow_seen=options.allow_seen)
    for line in write_evaluation(evaluation, model, options.out, banners=tuple(options.note)):
        print(line)
    return EXIT_PARTLY if evaluation.skipped else 0


def _add_calibrate_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL/")
    parser.add_argument("manifest", type=Path, metavar="M.csv", help="normal images of patients not trained on")
    parser.add_argument("--out", type=Path, metavar="MODEL/", help="default: the model itself is changed")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there already, with --out")
    parser.add_argument("--allow-seen", action="store_true", help="accept training patients; voids every guarantee")


def _run_calibrate(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.models.bundle import read_model, require_model_folder, write_model
    from unary.models.calibrating import calibrate_model
    from unary.models.calibration import describe_guarantee

    out, overwrite = options.out or options.model, options.overwrite or options.out is None
    model = read_model(options.model)
    require_model_folder(out, overwrite=overwrite)
    model = calibrate_model(model, read_manifest(options.manifest), allow_seen=options.allow_seen)
    write_model(model, out, overwrite=overwrite)
    for point in () if model.calibration is None else model.calibration.operating_points:
        print(f"operating point {point.name}: score above {point.threshold:.4g}. {describe_guarantee(point)}")
    if options.allow_seen:
        print("Patients that the model was trained on were allowed: no guarantee holds.")
    print(NOTICE)
    return 0


COMMANDS = (
    Command(
        "fit",
        "learn normal tissue from the negative images of a manifest",
        _add_fit_options,
        _run_fit,
        _explain_unknown,
    ),
    Command("score", "score images: patch scores, anomaly maps, overlays", _add_score_options, _run_score),
    Command("evaluate", "score a labelled manifest and report how well", _add_evaluate_options, _run_evaluate),
    Command(
        "calibrate",
        "set a model's operating points on normal images of your own",
        _add_calibrate_options,
        _run_calibrate,
    ),
)
