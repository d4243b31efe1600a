"""The commands about models: fit, evaluate, calibrate."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unary.cli.options import EXIT_PARTLY, Command, add_config_options, add_notes, find_options, read_config_options
from unary.errors import UnaryError
from unary.records import NOTICE, OperatingPoint

if TYPE_CHECKING:
    from unary.models.bundle import Model

NOT_CALIBRATED = "The model is not calibrated: nothing is guaranteed (unary calibrate)."


def _add_fit_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    from unary.detectors import DETECTORS
    from unary.models.fitting import FitConfig
    from unary.profiles import DEFAULT, PROFILES, find_profile

    chosen = argparse.ArgumentParser(parser.prog, add_help=False, allow_abbrev=False)  # these decide about the others
    chosen.add_argument("--profile", default=DEFAULT.name)
    chosen.add_argument("--detector")
    first, _ = chosen.parse_known_args(words)
    profile = find_profile(first.profile)
    name = first.detector or profile.detector
    detector = _build_default(name)
    parser.set_defaults(explain=_explain_unknown)
    parser.add_argument("manifest", type=Path, metavar="M.csv", help="normal images alone")
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL/")
    parser.add_argument("--profile", default=profile.name, help=f"{', '.join(PROFILES)} (default: {DEFAULT.name})")
    parser.add_argument(
        "--detector",
        default=name,
        metavar="NAME",
        help=f"{', '.join(DETECTORS)}, or your own as module:Class (default: {profile.detector}); "
        "with --help, its own options are shown",
    )
    add_config_options(parser, FitConfig())
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep the prepared images there, not in memory")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there already")
    if list(find_options(detector.config)):
        summary = (type(detector).__doc__ or "").strip().partition("\n")[0]
        add_config_options(parser.add_argument_group(f"options of {name}", summary.replace("%", "%%")), detector.config)


def _build_default(name: str) -> Any:
    """The detector of a name with its defaults."""
    from unary.detectors import find_detector_class

    detector = find_detector_class(name)()
    if not hasattr(type(detector.config), "__dataclass_fields__"):
        raise UnaryError(f"the config of {name} is no dataclass, so that it has no options")
    return detector


def _explain_unknown(unknown: Sequence[str], options: argparse.Namespace) -> None:
    """Raise an error that says which detectors have an option that the chosen one has not, if any have it."""
    from unary.detectors import DETECTORS

    given = next((word.partition("=")[0] for word in unknown if word.startswith("--")), "")
    flag = given.replace("--no-", "--", 1)
    owners = [
        name for name in DETECTORS if any(option.flag == flag for option in find_options(_build_default(name).config))
    ]
    if owners:
        raise UnaryError(f"{given} is no option of {options.detector}; it belongs to {', '.join(owners)}")


def _run_fit(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.models.bundle import require_model_folder, write_model
    from unary.models.fitting import FitConfig, fit
    from unary.training.distributed import is_first, joining_processes

    config, detector = read_config_options(options, FitConfig()), _read_detector(options)
    require_model_folder(options.out, overwrite=options.overwrite)
    out = Path(os.path.abspath(options.out))
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with joining_processes():
        manifest, profile, store = read_manifest(options.manifest), options.profile, options.store
        model = fit(manifest, config, detector=detector, profile=profile, checkpoint=checkpoint, store=store)
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
    config = read_config_options(options, default.config)
    for option in find_options(config):
        if option.path[-1] == "device":
            require_device(option.default, option.flag)
    return type(default)(config)


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
        _print_points(point for point in model.calibration.operating_points if point.unit == "patch")
    print(NOTICE)


def _print_points(points: Iterable[OperatingPoint]) -> None:
    from unary.models.calibration import describe_guarantee

    for point in points:
        print(f"operating point {point.name}: score above {point.threshold:.4g}. {describe_guarantee(point)}")


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

    out, overwrite = options.out or options.model, options.overwrite or options.out is None
    model = read_model(options.model)
    require_model_folder(out, overwrite=overwrite)
    model = calibrate_model(model, read_manifest(options.manifest), allow_seen=options.allow_seen)
    write_model(model, out, overwrite=overwrite)
    _print_points(() if model.calibration is None else model.calibration.operating_points)
    if options.allow_seen:
        print("Patients that the model was trained on were allowed: no guarantee holds.")
    print(NOTICE)
    return 0


COMMANDS = (
    Command("fit", "learn normal tissue from the negative images of a manifest", _add_fit_options, _run_fit),
    Command("evaluate", "score a labelled manifest and report how well", _add_evaluate_options, _run_evaluate),
    Command(
        "calibrate", "set a model's operating points on your own normal images", _add_calibrate_options, _run_calibrate
    ),
)
