"""The commands that a hospital runs: check, detect, send."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unary.cli.models import NOT_CALIBRATED, add_reading_options, read_reading_options
from unary.cli.options import Command, end_partly
from unary.errors import UnaryError
from unary.records import NOTICE


def _add_check_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from unary.profiles import DEFAULT, PROFILES

    parser.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", type=Path, metavar="MODEL/", help="check against what this model has learned from")
    which.add_argument(
        "--profile", metavar="NAME", help=f"kind of image: {', '.join(PROFILES)} (default: {DEFAULT.name})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON too")
    parser.add_argument("--headers-only", action="store_true", help="do not decode pixels")
    parser.add_argument(
        "--allow-secondary-capture",
        action="store_true",
        help="accept secondary captures of the profile's modalities too, such as scanned films",
    )
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


def _add_detect_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from unary.outputs.dicom import DEFAULT_KINDS, KINDS

    parser.add_argument("model", type=Path, metavar="MODEL/")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR/")
    parser.add_argument(
        "--operating-point",
        metavar="RATE",
        help="false findings per normal image: 0.1, 0.5, 1 or 2 (default: 1)",
    )
    parser.add_argument(
        "--dicom",
        metavar="A,B,C",
        help=f"DICOM results, of {', '.join(KINDS)}; or none (default: {','.join(DEFAULT_KINDS)})",
    )
    parser.add_argument("--maps", action="store_true", help="write anomaly maps too: TIFF and heat map")
    add_reading_options(parser)


def _read_point(text: str | None) -> str | float | None:
    """The name of an operating point; ``1.0`` is as good as ``1``."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _read_kinds(text: str | None) -> Any:
    """The kinds of DICOM results; None where nothing was said."""
    from unary.outputs.dicom import KINDS

    if text is None:
        return None
    kinds = tuple(kind for kind in text.split(",") if kind != "none")
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong:
        raise UnaryError(f"--dicom knows {', '.join(KINDS)} and none, not {wrong[0]!r}")
    return kinds


def _run_detect(options: argparse.Namespace) -> int:
    from unary.clinic.batch_detection import DetectConfig, detect_files
    from unary.models.bundle import read_model
    from unary.models.calibration import describe_guarantee
    from unary.models.examination import choose_point

    kinds, limits = _read_kinds(options.dicom), read_reading_options(options)
    name = _read_point(options.operating_point)
    config = DetectConfig(name, kinds, options.maps, options.spacing_mm, limits)
    model = read_model(options.model)
    point = choose_point(model, name)
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
    from unary.clinic.pacs import DeliveryError

    given = options.inputs
    paths = [path for one in given for path in (sorted(one.rglob("*.dcm")) if one.is_dir() else [one])]
    if not paths:
        raise UnaryError("no .dcm file among the inputs")
    try:
        deliveries = _send(paths, options)
    except ValueError as error:
        raise UnaryError(f"{'--web' if options.dimse is None else '--dimse'}: {error}") from error
    except DeliveryError as error:
        print(f"unary: {error}", file=sys.stderr)
        stored = sum(delivery.stored for delivery in error.deliveries)
        return end_partly(stored, len(error.deliveries) - stored)
    print(f"{len(deliveries)} objects stored")
    return 0


def _send(paths: list[Path], options: argparse.Namespace) -> tuple[Any, ...]:
    """Send files by the way that was asked for."""
    import os

    from unary.clinic.pacs import DimseAddress, WebAddress, store_dimse, store_web

    if options.dimse is None:
        if options.calling_title is not None:
            raise UnaryError("--calling-title goes with --dimse alone")
        password, token = os.environ.get("UNARY_WEB_PASSWORD"), os.environ.get("UNARY_WEB_TOKEN")
        return store_web(paths, WebAddress(options.web, user=options.user, password=password, token=token))
    if options.user is not None:
        raise UnaryError("--user goes with --web alone")
    title, _, rest = options.dimse.rpartition("@")
    host, _, port = rest.rpartition(":")
    if not (title and host and port.isdigit()):
        raise UnaryError(f"--dimse needs AET@HOST:PORT, not {options.dimse!r}")
    return store_dimse(paths, DimseAddress(host, int(port), title, options.calling_title or "UNARY"))


COMMANDS = (
    Command(
        "check", "say of each file whether it can be used, or why not; changes nothing", _add_check_options, _run_check
    ),
    Command(
        "detect", "find what departs from normal tissue, with place, size and p-value", _add_detect_options, _run_detect
    ),
    Command("send", "send DICOM results to a PACS", _add_send_options, _run_send),
)
