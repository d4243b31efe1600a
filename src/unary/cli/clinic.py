"""The commands that a hospital runs, on files of any origin: check, score, detect."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unary.cli.answers import add_dry_run, add_json, answer
from unary.cli.archive import add_archive_options, refuse_archive_options, run_archive
from unary.cli.models import NOT_CALIBRATED
from unary.cli.options import (
    NUMBER,
    Command,
    Form,
    add_config_options,
    add_device,
    add_option,
    choice_of,
    end_partly,
    keeping,
    read_config_options,
    read_path,
    read_place,
)
from unary.errors import UnaryError
from unary.records import NOTICE, count_words

if TYPE_CHECKING:
    from unary.clinic.batch import BatchSummary
    from unary.clinic.file_work import Job
    from unary.images.isolation import IsolatedReader


def _add_check_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from unary.profiles import DEFAULT, PROFILES

    parser.add_argument(
        "inputs", type=read_path, nargs="+", metavar="FILE-OR-FOLDER", help="images; folders as a whole"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model", type=read_path, metavar="MODEL/", help="check against what this model has learned from"
    )
    kinds = f"kind of image: {', '.join(PROFILES)} (default: {DEFAULT.name})"
    which.add_argument("--profile", metavar="NAME", help=kinds)
    add_json(parser)
    parser.add_argument("--headers-only", action="store_true", help="do not decode pixels")
    _add_gate_options(parser)
    parser.add_argument("--strict", action="store_true", help="refuse what is unusual or outside the model's domain")


def _add_gate_options(parser: argparse.ArgumentParser) -> None:
    from unary.models.gate import ACCEPTABLE

    add_option(parser, "--spacing-mm", NUMBER, help="pixel spacing of files that do not state it")
    reasons = Form(
        "REASON,...",
        f"some of {', '.join(ACCEPTABLE)}",
        lambda text: tuple(map(choice_of(ACCEPTABLE).read, text.split(","))),
    )
    add_option(parser, "--accept", reasons, help=f"let pass what is refused for these reasons: {reasons.words}")


def _read_gate_options(options: argparse.Namespace) -> dict[str, Any]:
    """The spacing, after a look at it, and the reasons that are let pass."""
    if options.spacing_mm is not None and not options.spacing_mm > 0:
        raise UnaryError(f"--spacing-mm must be positive, got {options.spacing_mm:g}")
    return {"spacing_mm": options.spacing_mm, "accept": options.accept or ()}


def _run_check(options: argparse.Namespace) -> int:
    from unary.clinic.acceptance import check_files, describe_checks, format_checks
    from unary.models.gate import Gate, build_gate
    from unary.profiles import DEFAULT, find_profile

    own = _read_gate_options(options)
    if options.model is not None:
        from unary.models.bundle import read_model

        gate = build_gate(read_model(options.model), **own)
    else:
        gate = Gate(find_profile(options.profile or DEFAULT), **own)
    gate = dataclasses.replace(gate, strict=options.strict)
    checks = check_files(options.inputs, gate, headers_only=options.headers_only)
    print(format_checks(checks))
    answer(options, {"command": "check", **describe_checks(checks)})
    return end_partly(checks.accepted, len(checks.files) - checks.accepted)


def _add_score_options(parser: argparse.ArgumentParser, _: Sequence[str], *, out: Any = read_path) -> None:
    """Add what running a model over files needs, whatever is written of them."""
    from unary.images.isolation_process import ReadingLimits

    parser.add_argument("model", type=read_path, metavar="MODEL/", help="a folder that `unary fit` wrote")
    parser.add_argument(
        "inputs", type=read_path, nargs="+", metavar="FILE-OR-FOLDER", help="images; folders as a whole"
    )
    parser.add_argument("--out", type=out, required=True, metavar="DIR/", help="gets a folder for each image")
    _add_gate_options(parser)
    add_device(parser)
    parser.add_argument(
        "--verify", action="store_true", help="read files again though they look as when their results were made"
    )
    add_json(parser)
    add_dry_run(parser)
    add_config_options(parser.add_argument_group("limits of reading one file"), ReadingLimits())


def _read_limits(options: argparse.Namespace) -> Any:
    from unary.images.isolation_process import ReadingLimits

    return read_config_options(options, ReadingLimits())


def _start_reading(out: Path, limits: Any) -> IsolatedReader:
    """A reader whose process starts while the model is read, if there is no former run, which may need none."""
    from unary.clinic.result_folder import RECORD
    from unary.images.isolation import IsolatedReader

    reader = IsolatedReader(limits)
    if not (out / RECORD).exists():
        reader.start()
    return reader


def _run_score(options: argparse.Namespace) -> int:
    from unary.clinic.batch import describe_summary
    from unary.clinic.batch_scoring import build_job, score_files
    from unary.models.bundle import read_model

    limits, own, folder = _read_limits(options), _read_gate_options(options), options.model
    if options.dry_run:
        return _plan(options, build_job(read_model(folder, device=options.device), model_folder=folder, **own), limits)
    with _start_reading(options.out, limits) as reader:
        model = read_model(folder, device=options.device)
        with keeping(options.out, "summary.csv"):
            summary = score_files(
                model, options.inputs, options.out, model_folder=folder, reader=reader, verify=options.verify, **own
            )
    print(
        f"{options.out}: {count_words(len(summary.done), 'image')} scored, {len(summary.kept)} done before, "
        f"{len(summary.failed)} skipped{_name_failures(summary)}. {NOTICE}"
    )
    _print_remarks(summary)
    answer(options, {"command": "score", "out": options.out, **describe_summary(summary)})
    return end_partly(len(summary.rows), len(summary.failed))


def _plan(options: argparse.Namespace, job: Job, limits: Any) -> int:
    """Say what a run would do."""
    from unary.clinic.planning import describe_plan, format_plan, plan_batch

    plan = plan_batch(options.inputs, options.out, job, limits=limits)
    print(format_plan(plan))
    answer(options, {"command": job.command, **describe_plan(plan)})
    return end_partly(len(plan.files) - plan.count("refuse"), plan.count("refuse"))


def _name_failures(summary: BatchSummary) -> str:
    return " (failures.csv says why)" if summary.failed else ""


def _print_remarks(summary: BatchSummary) -> None:
    """Say what was left out, what was unusual, and what else is in the folder."""
    from unary.datasets.folder import describe_left_out
    from unary.models.gate import describe_way

    others = summary.held - len(summary.rows)
    for line in describe_way(failure.reason for failure in summary.failed):
        print(line)
    if summary.left_out:
        print(describe_left_out(summary.left_out))
    if summary.replaced:
        print(f"{count_words(summary.replaced, 'earlier result')} replaced: another model, other options, or edited")
    if others:
        print(f"{count_words(others, 'other result')} of earlier runs in the folder; summary.csv lists all")
    for note, names in summary.notes.items():
        more = f" and {count_words(len(names) - 1, 'other')}" if len(names) > 1 else ""
        print(f"unary: note: {names[0]}{more}: {note}", file=sys.stderr)
    for remark in summary.remarks:
        print(f"unary: warning: {remark}", file=sys.stderr)


def _add_detect_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    from unary.outputs.dicom import DEFAULT_KINDS, KINDS, STUDY_KINDS

    def read_kinds(text: str) -> tuple[Any, ...]:
        return () if text == "none" else tuple(map(choice_of((*KINDS, *STUDY_KINDS)).read, text.split(",")))

    _add_score_options(parser, words, out=read_place)
    rates = "false findings per normal image: 0.1, 0.5, 1 or 2 (default: 1)"
    parser.add_argument("--operating-point", metavar="RATE", type=_read_point, help=rates)
    names = ", ".join(KINDS)
    kinds = Form("A,B,C", f"some of {names}, {', '.join(STUDY_KINDS)}, or none", read_kinds)
    of_studies = f"of each study {' and '.join(STUDY_KINDS)}"
    shown = f"DICOM results: of each image {names}; {of_studies}; or none (default: {','.join(DEFAULT_KINDS)})"
    add_option(parser, "--dicom", kinds, help=shown)
    parser.add_argument("--maps", action="store_true", help="write anomaly maps too: TIFF and heat map")
    add_archive_options(parser)


def _read_point(text: str) -> str | float:
    """The name of an operating point; ``1.0`` is as good as ``1``."""
    try:
        return float(text)
    except ValueError:
        return text


def _run_detect(options: argparse.Namespace) -> int:
    from unary.clinic.batch import describe_summary
    from unary.clinic.batch_detection import PAGE_FILE, DetectConfig, build_job, detect_files
    from unary.models.bundle import read_model
    from unary.models.calibration import describe_guarantee
    from unary.models.examination import choose_point

    limits, own = _read_limits(options), _read_gate_options(options)
    config = DetectConfig(
        options.operating_point, options.dicom, options.maps, limits=limits, verify=options.verify, **own
    )
    if options.engine is not None:
        return run_archive(options, config)
    refuse_archive_options(options)
    if options.dry_run:
        model, moment = read_model(options.model, device=options.device), datetime.now().astimezone()
        return _plan(options, build_job(model, config, model_folder=options.model, moment=moment), limits)
    with _start_reading(options.out, limits) as reader:
        model = read_model(options.model, device=options.device)
        point = choose_point(model, options.operating_point)
        with keeping(options.out, "summary.csv"):
            summary = detect_files(
                model, options.inputs, options.out, config, model_folder=options.model, reader=reader
            )
    findings = sum(row["findings"] for row in summary.rows)
    outside = sum(bool(row["out_of_domain"]) for row in summary.rows)
    print(
        f"{options.out}: {count_words(findings, 'finding')} in {count_words(len(summary.rows), 'image')} "
        f"({len(summary.kept)} of them done before), {count_words(len(summary.failed), 'file')} without a result"
        f"{_name_failures(summary)}"
    )
    if outside:
        differ = "image differs" if outside == 1 else "images differ"
        print(f"{outside} {differ} from those that the model has learned from; such scores mean little")
    for row in summary.rows:
        if row["dicom_missing"]:
            print(
                f"unary: {row['image']}: DICOM results are missing: {row['dicom_missing']}",
                file=sys.stderr,
            )
    _print_remarks(summary)
    print(describe_guarantee(point) if point else NOT_CALIBRATED)
    if (options.out / PAGE_FILE).is_file():
        print(options.out / PAGE_FILE)
    print(NOTICE)
    found = {"operating_point": None if point is None else dataclasses.asdict(point), **describe_summary(summary)}
    answer(options, {"command": "detect", "out": options.out, **found})
    return end_partly(len(summary.rows), len(summary.failed))


COMMANDS = (
    Command(
        "check", "say of each file whether it can be used, or why not; changes nothing", _add_check_options, _run_check
    ),
    Command("score", "score images: patch scores, anomaly maps, overlays", _add_score_options, _run_score),
    Command(
        "detect", "find what departs from normal tissue, with place, size and p-value", _add_detect_options, _run_detect
    ),
)
