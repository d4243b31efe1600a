"""The command that watches scanners: monitor."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from unary.cli.options import Command, read_path
from unary.errors import UnaryError
from unary.records import NOTICE


def _add_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    results = "folders of results of `unary detect`, or folders that hold such"
    parser.add_argument("results", type=read_path, nargs="+", metavar="RESULTS/", help=results)
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR/", help="gets the report")
    limits = "what you set: false_alarm, average_run_length, prevalence, [baseline], [limits.NAME] (docs/monitoring.md)"
    parser.add_argument("--limits", type=read_path, metavar="LIMITS.toml", help=limits)
    constancy = "the images are of one phantom, sent again and again; needs a [baseline]"
    parser.add_argument("--constancy", action="store_true", help=constancy)


def _run(options: argparse.Namespace) -> int:
    from unary.clinic.monitoring import monitor_results
    from unary.evaluation.monitoring_limits import MonitorLimits, read_limits
    from unary.files import locking
    from unary.outputs.monitoring_report import HTML_FILE, JSON_FILE, write_monitoring

    limits = MonitorLimits() if options.limits is None else read_limits(options.limits)
    if options.constancy and limits.baseline is None:
        raise UnaryError('--constancy needs a baseline: --limits with [baseline], first and last, such as "2026-01"')
    monitoring = monitor_results(options.results, limits, constancy=options.constancy)
    with locking(options.out):
        for path in (options.out / HTML_FILE, options.out / JSON_FILE):
            if path.exists() and not (path.is_file() and NOTICE.encode() in path.read_bytes()):
                raise UnaryError(f"{path}: unary has not written it and does not replace it; choose another --out")
        for line in write_monitoring(monitoring, options.out):
            print(line)
    print(NOTICE)
    return 0


COMMANDS = (Command("monitor", "watch scanners by results: alarms, drift, constancy", _add_options, _run),)
