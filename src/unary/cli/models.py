"""The commands about models: fit, evaluate, calibrate."""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unary.cli.answers import add_dry_run, add_json, answer
from unary.cli.options import (
    EXIT_PARTLY,
    Command,
    add_config_options,
    add_device,
    add_notes,
    add_option,
    find_options,
    holding_reports,
    read_config_options,
    read_path,
    read_place,
    replace_values,
    whole_number,
)
from unary.cli.tracking import add_tracking_options, track_metrics, track_model_folder, tracking
from unary.errors import BundleError, UnaryError
from unary.records import NOTICE, Manifest, OperatingPoint, count_words

if TYPE_CHECKING:
    from unary.clinic.shard_results import ArchiveResults
    from unary.models.bundle import Model
    from unary.models.fitting import FitConfig

_RESULTS = "take what `unary detect --engine` has stored of the images, and examine none of them again"
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
    parser.add_argument("manifest", type=read_path, metavar="M.csv", help="normal images alone")
    parser.add_argument("--out", type=read_path, required=True, metavar="MODEL/", help="the model, a folder to write")
    parser.add_argument("--profile", default=profile.name, help=f"{', '.join(PROFILES)} (default: {DEFAULT.name})")
    parser.add_argument(
        "--detector",
        default=name,
        metavar="NAME",
        help=f"{', '.join(DETECTORS)}, or your own as module:Class (default: {profile.detector}); "
        "with --help, its own options are shown",
    )
    add_config_options(parser, FitConfig())
    parser.add_argument("--store", type=read_path, metavar="DIR", help="keep the prepared images there, not in memory")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there already")
    flags = [option.flag for option in find_options(detector.config) if option.path[-1] == "device"]
    if flags and "--device" not in flags:  # those of parts
        add_device(parser, f"where networks are trained, in place of {', '.join(flags)}")
    add_tracking_options(parser)
    add_json(parser)
    add_dry_run(parser)
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
    own = [option.flag for option in find_options(_build_default(options.detector).config)]
    meant = [each for each in own if given and each.endswith(f"-{flag[2:]}")]
    if meant:
        raise UnaryError(f"{given} is no option of {options.detector}; is one of these meant: {', '.join(meant)}?")
    if owners:
        raise UnaryError(f"{given} is no option of {options.detector}; it belongs to {', '.join(owners)}")


def _run_fit(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.files import locking
    from unary.models.bundle import require_model_folder, write_model
    from unary.models.card import describe_command
    from unary.models.fitting import FitConfig, fit
    from unary.patches.collection import STORE_NAME
    from unary.training.distributed import is_first, joining_processes

    config, detector = read_config_options(options, FitConfig()), _read_detector(options)
    require_model_folder(options.out, overwrite=options.overwrite)
    out = Path(os.path.abspath(options.out))
    if options.store is not None and out in (store := Path(os.path.abspath(options.store)), *store.parents):
        raise UnaryError(f"--store {options.store}: the prepared images need a folder outside that of the model, {out}")
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if options.dry_run:
        return _plan_fit(options, config, detector, checkpoint)
    with ExitStack() as held:
        held.enter_context(joining_processes())
        if is_first():
            for folder in filter(None, (out, options.store)):
                held.enter_context(locking(folder))
            _require_writable(out.parent)
            _forget_partials(out.parent, checkpoint.name)
            if options.store is not None:
                _forget_partials(options.store, STORE_NAME)
        manifest, places = read_manifest(options.manifest), {"checkpoint": checkpoint, "store": options.store}
        if not is_first():
            fit(manifest, config, detector=detector, profile=options.profile, **places)
            return 0
        state = checkpoint.with_name(f"{checkpoint.name}.tracking")
        tracker = held.enter_context(tracking(options, f"fit-{out.name}", state=state))
        model = fit(manifest, config, detector=detector, profile=options.profile, tracker=tracker, **places)
        try:
            write_model(model, out, overwrite=options.overwrite, held=True, command=describe_command())
        except BundleError as error:
            raise BundleError(f"{error}. {_describe_checkpoints(checkpoint)}") from error
        track_model_folder(tracker, options, out)
        for file in _find_checkpoints(checkpoint):
            file.unlink(missing_ok=True)
    _print_model(model, options.out)
    answer(options, {"command": "fit", "out": options.out, **_describe_model(model, options.out)})
    if model.provenance.skipped:
        skipped = count_words(model.provenance.skipped, "image")
        print(
            f"unary: {skipped} of the manifest {'was' if model.provenance.skipped == 1 else 'were'} skipped",
            file=sys.stderr,
        )
        return EXIT_PARTLY
    return 0


def _plan_fit(options: argparse.Namespace, config: FitConfig, detector: Any, checkpoint: Path) -> int:
    """Say what would be learned from."""
    from unary.datasets.manifest import read_manifest
    from unary.detectors import name_of
    from unary.models.fitting import plan_fit

    manifest = read_manifest(options.manifest)
    plan = plan_fit(manifest, config, detector=detector, profile=options.profile, store=options.store)
    images, unread = len(plan.manifest.rows), sum(header is None for header in plan.headers)
    print(
        f"{options.out}: {name_of(plan.detector)} would learn from {count_words(images, 'image')} of "
        f"{count_words(plan.patients, 'patient')}, of which {config.held_out:.0%} would be held out to set the "
        f"operating points; patches of {plan.grid.size_px} x {plan.grid.size_px} working pixels, "
        f"{plan.grid.stride_px} apart"
    )
    if unread:
        print(f"{count_words(unread, 'image')} without a header that can be read; unary check says why")
    states = _find_checkpoints(checkpoint)
    if states:
        print(f"an interrupted training would go on: {', '.join(map(str, states))}")
    print("Nothing was written.")
    found = {"images": images, "patients": plan.patients, "unreadable": unread, "resumes": bool(states)}
    settings = {"preparation": asdict(plan.preparation), "grid": asdict(plan.grid), "fit": asdict(config)}
    answer(options, {"command": "fit", "dry_run": True, "out": options.out, **found, **settings})
    return 0


def _describe_model(model: Model, folder: Path) -> dict[str, Any]:
    """A model for a script."""
    from unary.models.bundle import identify_model

    points = () if model.calibration is None else model.calibration.operating_points
    made = model.provenance
    return {
        "model": asdict(identify_model(model, folder)),
        "images": made.images,
        "patches": made.patches,
        "held_out_patches": made.held_out_patches,
        "skipped": made.skipped,
        "operating_points": [asdict(point) for point in points],
    }


def _find_checkpoints(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}.*"))


def _describe_checkpoints(checkpoint: Path) -> str:
    """Say what is left of a training whose model could not be written."""
    files = _find_checkpoints(checkpoint)
    if not files:
        return "Nothing of it is kept; it is fitted again by the same command"
    return (
        f"No training is lost: its state is in {', '.join(map(str, files))}; remove the cause and run the same command "
        "again, which goes on from there"
    )


def _require_writable(folder: Path) -> None:
    """Refuse a folder in which the state of training could not be kept, before hours are spent on it."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UnaryError(
            f"{folder}: the state of training is kept there while it lasts, and nothing can be written "
            f"({error.strerror or error}); choose another place for --out"
        ) from error


def _forget_partials(folder: Path, name: str) -> None:
    """Remove what earlier processes have left half-written, while no other may be writing it."""
    for path in folder.glob(f".*.{glob.escape(name)}*"):
        if re.fullmatch(rf"\.\d+\.{re.escape(name)}(\..*)?", path.name):
            path.unlink(missing_ok=True)


def _read_detector(options: argparse.Namespace) -> Any:
    """The detector that was asked for, not fitted; a device that is not there is refused now."""
    from unary.training.devices import require_device

    default = _build_default(options.detector)
    config = read_config_options(options, default.config)
    for_all = getattr(options, "device", None)
    for option in find_options(config):
        if option.path[-1] == "device":
            require_device(for_all or option.default, "--device" if for_all else option.flag)
            config = replace_values(config, {option.path: for_all or option.default})
    return type(default)(config)


def _print_model(model: Model, out: Path) -> None:
    from unary.models.calibration import describe_guarantee
    from unary.models.examination import choose_point

    made = model.provenance
    learned = f"{count_words(made.images, 'image')}, trained on {count_words(made.patches, 'patch')}"
    print(f"{out}: {model.name}, {learned}, profile {model.profile.name}")
    point = choose_point(model, None)
    if model.calibration is None or point is None:
        print(NOT_CALIBRATED if made.held_out_patches else f"Nobody was held out. {NOT_CALIBRATED}")
    else:
        print(f"held out: {count_words(model.calibration.patients, 'normal patient')}, who set what follows")
        print(f"operating point {point.name}: {describe_guarantee(point)}")
        _print_points(point for point in model.calibration.operating_points if point.unit == "patch")
    print(NOTICE)


def _print_points(points: Iterable[OperatingPoint]) -> None:
    from unary.models.calibration import describe_guarantee

    for point in points:
        print(f"operating point {point.name}: score above {point.threshold:.4g}. {describe_guarantee(point)}")


def _add_evaluate_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("model", type=read_path, metavar="MODEL/", help="a folder that `unary fit` wrote")
    parser.add_argument("manifest", type=read_path, metavar="M.csv", help="images with labels and lesions")
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR/", help="gets report and tables")
    parser.add_argument("--allow-seen", action="store_true", help="accept patients that the model was trained on")
    parser.add_argument("--results", type=read_place, metavar="DIR/", help=_RESULTS)
    add_device(parser)
    words = "processes that examine images side by side: for thousands of small ones, as many as there are processors"
    add_option(parser, "--workers", whole_number(1), default=1, help=words)
    add_notes(parser)
    add_tracking_options(parser)


def _run_evaluate(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.evaluation.evaluate import evaluate
    from unary.models.bundle import read_model
    from unary.outputs.evaluation_pictures import EvaluationPictures
    from unary.outputs.evaluation_report import write_evaluation

    model, banners = read_model(options.model, device=options.device), tuple(options.note)
    with tracking(options, f"evaluate-{options.out.resolve().name}") as tracker:
        if options.results is None:
            manifest, known = read_manifest(options.manifest), {"allow_seen": options.allow_seen}
            pictures = EvaluationPictures(options.out, model, images=len(manifest.rows))
            evaluation = evaluate(model, manifest, draw=pictures.draw, workers=options.workers, **known)
        else:
            from unary.clinic.stored_figures import ABSENT, evaluate_from_results

            manifest, results = _read_stored(options)
            evaluation = evaluate_from_results(model, manifest, results, allow_seen=options.allow_seen)
            banners = (*banners, ABSENT)
            print(ABSENT)
        for line in write_evaluation(evaluation, model, options.out, banners=banners):
            print(line)
        track_metrics(tracker, options, options.out)
        track_model_folder(tracker, options, options.model)
    return EXIT_PARTLY if evaluation.skipped else 0


def _read_stored(options: argparse.Namespace) -> tuple[Manifest, ArchiveResults]:
    """The manifest, checked by what is stored of its images, and the stored results, which must be of the model."""
    from unary.clinic.shard_results import read_results
    from unary.clinic.stored_figures import match_manifest, require_same_scoring
    from unary.datasets.manifest import read_listing

    results = read_results(options.results)
    require_same_scoring(results, options.model)
    return match_manifest(read_listing(options.manifest), results), results


def _add_calibrate_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("model", type=read_path, metavar="MODEL/", help="a folder that `unary fit` wrote")
    parser.add_argument("manifest", type=read_path, metavar="M.csv", help="normal images of patients not trained on")
    parser.add_argument("--out", type=read_path, metavar="MODEL/", help="default: the model itself is changed")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there already, with --out")
    parser.add_argument("--allow-seen", action="store_true", help="accept training patients; voids every guarantee")
    add_tracking_options(parser)
    parser.add_argument("--results", type=read_place, metavar="DIR/", help=_RESULTS)
    add_device(parser)
    add_json(parser)


def _run_calibrate(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.files import locking
    from unary.models.bundle import MODEL_FILE, read_model, require_model_folder, write_model
    from unary.models.calibrating import calibrate_model
    from unary.models.card import describe_command
    from unary.models.tracked import track_model

    out, overwrite = options.out or options.model, options.overwrite or options.out is None
    require_model_folder(out, overwrite=overwrite)
    model = read_model(options.model, device=options.device)
    with locking(out), tracking(options, f"calibrate-{out.resolve().name}") as tracker:
        if options.out is None:  # as it is now that nobody else changes it
            model = read_model(options.model, device=options.device)
        if options.results is None:
            model = calibrate_model(model, read_manifest(options.manifest), allow_seen=options.allow_seen)
        else:
            from unary.clinic.stored_figures import calibrate_from_results

            manifest, results = _read_stored(options)
            model = calibrate_from_results(model, manifest, results, allow_seen=options.allow_seen)
        kept = write_model(model, out, overwrite=overwrite, held=True, command=describe_command())
        if tracker is not None:
            track_model(tracker, model)
        track_model_folder(tracker, options, out)
    _print_calibration(model)
    answer(options, {"command": "calibrate", "out": out, **_describe_model(model, out)})
    if kept is not None:
        print(f"what was there before: {kept}; put it in the place of {MODEL_FILE} to have it back")
    print(NOTICE)
    return 0


def _print_calibration(model: Model) -> None:
    from unary.models.patients import describe_unknown

    calibration = model.calibration
    assert calibration is not None
    images, patients = (
        count_words(len(calibration.images), "image"),
        count_words(calibration.patients, "normal patient"),
    )
    print(f"calibrated on {images} of {patients}")
    _print_points(calibration.operating_points)
    if calibration.overlap == "allowed":
        print("Patients that the model was trained on were allowed: no guarantee holds.")
    if calibration.overlap == "unknown":
        unknown = describe_unknown(model.provenance.seen)
        print(f"What is guaranteed holds of patients that the model has not seen; {unknown}")


COMMANDS = (
    Command("fit", "learn normal tissue from the negative images of a manifest", _add_fit_options, _run_fit),
    Command(
        "evaluate",
        "score a labelled manifest and report how well",
        _add_evaluate_options,
        holding_reports(_run_evaluate),
    ),
    Command(
        "calibrate", "set a model's operating points on your own normal images", _add_calibrate_options, _run_calibrate
    ),
)
