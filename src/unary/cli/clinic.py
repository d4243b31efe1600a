"""The commands that a hospital runs: check, detect, calibrate, send."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unary.errors import UnaryError

NOTICE = "Research software. Not for diagnosis."
EXIT_FAILED, EXIT_PARTLY = 2, 3
KINDS = ("report", "segmentation", "capture", "heat_map", "presentation")

Commands = argparse._SubParsersAction  # argparse has no public name for it


def add_detection_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``check``, ``detect``, ``calibrate`` and ``send`` to the parser."""
    check = commands.add_parser("check", help="say of each file whether it can be used, or why not; changes nothing")
    check.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    check.add_argument("--model", type=Path, metavar="MODEL/", help="check against what this model has learned from")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON too")
    check.add_argument("--headers-only", action="store_true", help="do not decode pixels")
    check.add_argument(
        "--allow-secondary-capture", action="store_true", help="accept secondary captures of modality MG (CBIS-DDSM)"
    )
    check.add_argument("--strict", action="store_true", help="refuse what is unusual or outside the model's domain")
    check.set_defaults(run=_run_check)
    _add_detect(commands)
    calibrate = commands.add_parser("calibrate", help="set a model's operating points on normal images of your own")
    calibrate.add_argument("model", type=Path, metavar="MODEL/")
    calibrate.add_argument("manifest", type=Path, metavar="M.csv", help="normal images of patients not trained on")
    calibrate.add_argument("--out", type=Path, metavar="MODEL/", help="default: the model itself is changed")
    calibrate.add_argument("--allow-seen", action="store_true", help="accept training patients; voids every promise")
    calibrate.set_defaults(run=_run_calibrate)
    send = commands.add_parser("send", help="send DICOM results to a PACS")
    send.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    where = send.add_mutually_exclusive_group(required=True)
    where.add_argument("--dimse", metavar="AET@HOST:PORT", help="by C-STORE")
    where.add_argument("--web", metavar="URL", help="by STOW-RS; password or token from UNARY_WEB_PASSWORD, _TOKEN")
    send.add_argument("--calling-title", default="UNARY", help="own AE title (default: %(default)s)")
    send.add_argument("--user", help="of the DICOMweb server")
    send.set_defaults(run=_run_send)


def _add_detect(commands: Commands[argparse.ArgumentParser]) -> None:
    detect = commands.add_parser("detect", help="find what departs from normal tissue, with place, size and p-value")
    detect.add_argument("model", type=Path, metavar="MODEL/")
    detect.add_argument("inputs", type=Path, nargs="+", metavar="FILE-OR-FOLDER")
    detect.add_argument("--out", type=Path, required=True, metavar="DIR/")
    detect.add_argument(
        "--operating-point",
        metavar="RATE",
        help="false findings per normal image: 0.1, 0.5, 1 or 2 (default: 1)",
    )
    detect.add_argument("--stride-px", type=int, help="step between windows of patch detectors (default: half a patch)")
    detect.add_argument(
        "--dicom",
        metavar="A,B,C",
        help=f"DICOM results, of {', '.join(KINDS)}; or none (default: report,segmentation,capture)",
    )
    detect.add_argument("--maps", action="store_true", help="write anomaly maps too: TIFF and heat map")
    detect.add_argument("--spacing-mm", type=float, help="pixel spacing of files that do not state it")
    detect.add_argument("--timeout-s", type=float, default=60.0, help="for reading one file (default: %(default)s)")
    detect.add_argument("--memory-mib", type=int, default=4096, help="for reading one file (default: %(default)s)")
    detect.set_defaults(run=_run_detect)


def _run_check(options: argparse.Namespace) -> int:
    from unary.clinic.acceptance import AcceptanceConfig, check_files, format_checks, write_checks

    domain, spacing_needed = None, False
    if options.model is not None:
        from unary.models.bundle import read_model

        model = read_model(options.model)
        domain = None if model.detection is None else model.detection.domain
        spacing_needed = model.preparation.working_spacing_mm is not None
    config = AcceptanceConfig(
        headers_only=options.headers_only,
        secondary_capture=options.allow_secondary_capture,
        spacing_needed=spacing_needed,
        strict=options.strict,
    )
    checks = check_files(options.inputs, config=config, domain=domain)
    print(format_checks(checks))
    if options.json is not None:
        write_checks(checks, options.json)
    accepted = sum(check.accepted for check in checks)
    if accepted == len(checks):
        return 0
    return EXIT_PARTLY if accepted else EXIT_FAILED


def _run_detect(options: argparse.Namespace) -> int:
    from unary.clinic.batch_detection import DetectConfig, detect_files
    from unary.images.isolation_process import ReadingLimits
    from unary.models.bundle import read_model
    from unary.models.calibration import describe_promise
    from unary.models.detection import choose_point

    dicom = None if options.dicom is None else tuple(kind for kind in options.dicom.split(",") if kind != "none")
    wrong = [kind for kind in dicom or () if kind not in KINDS]
    if wrong:
        raise UnaryError(f"--dicom knows {', '.join(KINDS)} and none, not {wrong[0]!r}")
    try:
        limits = ReadingLimits(timeout_s=options.timeout_s, memory_mib=options.memory_mib)
        config = DetectConfig(
            options.operating_point, options.stride_px, dicom, options.maps, options.spacing_mm, limits
        )
    except ValueError as error:
        raise UnaryError(str(error)) from error
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
    print(describe_promise(point) if point else "The model is not calibrated: nothing is promised (unary calibrate).")
    print(NOTICE)
    if not summary.failed:
        return 0
    return EXIT_PARTLY if summary.rows else EXIT_FAILED


def _run_calibrate(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import read_manifest
    from unary.models.bundle import read_model, write_model
    from unary.models.calibration import describe_promise
    from unary.models.commissioning import calibrate_model
    from unary.models.detection import require_settings

    model = calibrate_model(read_model(options.model), read_manifest(options.manifest), allow_seen=options.allow_seen)
    write_model(model, options.out or options.model)
    calibration = require_settings(model).calibration
    assert calibration is not None
    for point in calibration.operating_points:
        print(f"operating point {point.name}: score above {point.threshold:.4g}. {describe_promise(point)}")
    if options.allow_seen:
        print("Patients that the model was trained on were allowed: no promise holds.")
    print(NOTICE)
    return 0


def _run_send(options: argparse.Namespace) -> int:
    import os

    from unary.clinic.pacs import DeliveryError, DimseAddress, WebAddress, store_dimse, store_web

    paths = [path for given in options.inputs for path in (sorted(given.rglob("*.dcm")) if given.is_dir() else [given])]
    if not paths:
        raise UnaryError("no .dcm file among the inputs")
    try:
        if options.dimse is not None:
            title, _, rest = options.dimse.rpartition("@")
            host, _, port = rest.rpartition(":")
            if not (title and host and port.isdigit()):
                raise UnaryError(f"--dimse needs AET@HOST:PORT, got {options.dimse!r}")
            deliveries = store_dimse(paths, DimseAddress(host, int(port), title, options.calling_title))
        else:
            password, token = os.environ.get("UNARY_WEB_PASSWORD"), os.environ.get("UNARY_WEB_TOKEN")
            deliveries = store_web(paths, WebAddress(options.web, user=options.user, password=password, token=token))
    except ValueError as error:
        raise UnaryError(str(error)) from error
    except DeliveryError as error:
        print(f"unary: {error}", file=sys.stderr)
        stored = sum(delivery.stored for delivery in error.deliveries)
        return EXIT_PARTLY if stored else EXIT_FAILED
    print(f"{len(deliveries)} objects stored")
    return 0
