"""The commands that a hospital runs, on files of any origin: check, score, detect, send."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unary.cli.models import NOT_CALIBRATED
from unary.cli.options import (
    NUMBER,
    Command,
    Form,
    add_config_options,
    add_option,
    choice_of,
    end_partly,
    read_config_options,
)
from unary.errors import UnaryError
from unary.records import NOTICE

if TYPE_CHECKING:
    from unary.clinic.pacs import DimseAddress, WebAddress


def _add_check_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from unary.profiles import DEFAULT, PROFILES

    parser.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", type=Path, metavar="MODEL/", help="check against what this model has learned from")
    kinds = f"kind of image: {', '.join(PROFILES)} (default: {DEFAULT.name})"
    which.add_argument("--profile", metavar="NAME", help=kinds)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON too")
    parser.add_argument("--headers-only", action="store_true", help="do not decode pixels")
    captures = "accept secondary captures of the profile's modalities too, such as scanned films"
    parser.add_argument("--allow-secondary-capture", action="store_true", help=captures)
    parser.add_argument("--strict", action="store_true", help="refuse what is unusual or outside the model's domain")


def _run_check(options: argparse.Namespace) -> int:
    from unary.clinic.acceptance import AcceptanceConfig, check_files, format_checks, write_checks
    from unary.profiles import DEFAULT, find_profile

    profile, domain, spacing_needed = find_profile(options.profile or DEFAULT), None, False
    if options.model is not None:
        from unary.models.bundle import read_model

        model = read_model(options.model)
        profile, domain = model.profile, model.domain
        spacing_needed = model.preparation.working_spacing_mm is not None
    config = AcceptanceConfig(
        headers_only=options.headers_only,
        secondary_capture=options.allow_secondary_capture,
        spacing_needed=spacing_needed,
        strict=options.strict,
    )
    checks = check_files(options.inputs, profile, config=config, domain=domain)
    print(format_checks(checks))
    if options.json is not None:
        write_checks(checks, options.json)
    accepted = sum(check.accepted for check in checks)
    return end_partly(accepted, len(checks) - accepted)


def _add_score_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add what running a model over files needs, whatever is written of them."""
    from unary.images.isolation_process import ReadingLimits

    parser.add_argument("model", type=Path, metavar="MODEL/")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR/")
    add_option(parser, "--spacing-mm", NUMBER, help="pixel spacing of files that do not state it")
    add_config_options(parser.add_argument_group("limits of reading one file"), ReadingLimits())


def _read_limits(options: argparse.Namespace) -> Any:
    """The limits of reading, after a look at the spacing."""
    from unary.images.isolation_process import ReadingLimits

    if options.spacing_mm is not None and not options.spacing_mm > 0:
        raise UnaryError(f"--spacing-mm must be positive, got {options.spacing_mm:g}")
    return read_config_options(options, ReadingLimits())


def _run_score(options: argparse.Namespace) -> int:
    from unary.clinic.batch_scoring import score_files
    from unary.models.bundle import read_model

    limits, spacing_mm, folder = _read_limits(options), options.spacing_mm, options.model
    model = read_model(folder)
    summary = score_files(model, options.inputs, options.out, model_folder=folder, spacing_mm=spacing_mm, limits=limits)
    print(
        f"{options.out}: {len(summary.done)} images scored, {len(summary.kept)} done before, "
        f"{len(summary.failed)} skipped (failures.csv says why). {NOTICE}"
    )
    return end_partly(len(summary.rows), len(summary.failed))


def _add_detect_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    from unary.outputs.dicom import DEFAULT_KINDS, KINDS

    def read_kinds(text: str) -> tuple[Any, ...]:
        return () if text == "none" else tuple(map(choice_of(KINDS).read, text.split(",")))

    _add_score_options(parser, words)
    rates = "false findings per normal image: 0.1, 0.5, 1 or 2 (default: 1)"
    parser.add_argument("--operating-point", metavar="RATE", type=_read_point, help=rates)
    kinds = Form("A,B,C", f"some of {', '.join(KINDS)}, or none", read_kinds)
    shown = f"DICOM results, of {', '.join(KINDS)}; or none (default: {','.join(DEFAULT_KINDS)})"
    add_option(parser, "--dicom", kinds, help=shown)
    parser.add_argument("--maps", action="store_true", help="write anomaly maps too: TIFF and heat map")


def _read_point(text: str) -> str | float:
    """The name of an operating point; ``1.0`` is as good as ``1``."""
    try:
        return float(text)
    except ValueError:
        return text


def _run_detect(options: argparse.Namespace) -> int:
    from unary.clinic.batch_detection import DetectConfig, detect_files
    from unary.models.bundle import read_model
    from unary.models.calibration import describe_guarantee
    from unary.models.examination import choose_point

    limits = _read_limits(options)
    config = DetectConfig(options.operating_point, options.dicom, options.maps, options.spacing_mm, limits)
    model = read_model(options.model)
    point = choose_point(model, options.operating_point)
    summary = detect_files(model, options.inputs, options.out, config, model_folder=options.model)
    findings = sum(row["findings"] for row in summary.rows)
    outside = sum(bool(row["out_of_domain"]) for row in summary.rows)
    print(
        f"{options.out}: {findings} findings in {len(summary.rows)} images ({len(summary.kept)} of them done before), "
        f"{len(summary.failed)} files without a result (failures.csv says why)"
    )
    if outside:
        print(f"{outside} images differ from those that the model has learned from; their scores mean little")
    print(describe_guarantee(point) if point else NOT_CALIBRATED)
    print(NOTICE)
    return end_partly(len(summary.rows), len(summary.failed))


def _add_send_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--dimse", metavar="AET@HOST:PORT", help="by C-STORE")
    where.add_argument("--web", metavar="URL", help="by STOW-RS; password or token from UNARY_WEB_PASSWORD, _TOKEN")
    parser.add_argument("--calling-title", metavar="AET", help="own title, with --dimse (default: UNARY)")
    parser.add_argument("--user", help="of the DICOMweb server, with --web")


def _run_send(options: argparse.Namespace) -> int:
    from unary.clinic.pacs import DeliveryError, store_files

    paths = [path for given in options.inputs for path in (sorted(given.rglob("*.dcm")) if given.is_dir() else [given])]
    if not paths:
        raise UnaryError("no .dcm file among the inputs")
    try:
        deliveries = store_files(paths, _read_address(options))
    except ValueError as error:
        raise UnaryError(f"{'--web' if options.dimse is None else '--dimse'}: {error}") from error
    except DeliveryError as error:
        print(f"unary: {error}", file=sys.stderr)
        stored = sum(delivery.stored for delivery in error.deliveries)
        return end_partly(stored, len(error.deliveries) - stored)
    print(f"{len(deliveries)} objects stored")
    return 0


def _read_address(options: argparse.Namespace) -> DimseAddress | WebAddress:
    from unary.clinic.pacs import DimseAddress, WebAddress

    if options.dimse is None:
        if options.calling_title is not None:
            raise UnaryError("--calling-title goes with --dimse alone")
        password, token = os.environ.get("UNARY_WEB_PASSWORD"), os.environ.get("UNARY_WEB_TOKEN")
        return WebAddress(options.web, user=options.user, password=password, token=token)
    if options.user is not None:
        raise UnaryError("--user goes with --web alone")
    found = re.fullmatch(r"(.+)@(.+):(\d+)", options.dimse)
    if found is None:
        raise UnaryError(f"--dimse needs AET@HOST:PORT, not {options.dimse!r}")
    title, host, port = found.groups()
    return DimseAddress(host, int(port), title, options.calling_title or "UNARY")


COMMANDS = (
    Command(
        "check", "say of each file whether it can be used, or why not; changes nothing", _add_check_options, _run_check
    ),
    Command("score", "score images: patch scores, anomaly maps, overlays", _add_score_options, _run_score),
    Command(
        "detect", "find what departs from normal tissue, with place, size and p-value", _add_detect_options, _run_detect
    ),
    Command("send", "send DICOM results to a PACS", _add_send_options, _run_send),
)
