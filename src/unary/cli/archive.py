"""The options of `unary detect` that go over an archive, and what it then does."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from unary.cli.answers import answer
from unary.cli.models import NOT_CALIBRATED
from unary.cli.options import NUMBER, add_option, choice_of, end_partly, keeping, whole_number
from unary.errors import UnaryError
from unary.records import NOTICE, count_words

if TYPE_CHECKING:
    from unary.clinic.archive import ArchivePlan, ArchiveSummary
    from unary.clinic.batch_detection import DetectConfig

_ENGINES = ("processes", "ray")
_OPTIONS = ("workers", "address", "gpus_per_worker", "threads_per_worker", "shard_size")
_STORES = ("store_timeout_s", "store_attempts")


def add_archive_options(parser: argparse.ArgumentParser) -> None:
    """Add them, in a group of their own."""
    group = parser.add_argument_group("archives", "a manifest in place of files, into tables (docs/scale.md)")
    add_option(group, "--engine", choice_of(_ENGINES), help="who works: processes of this computer, or actors of Ray")
    add_option(group, "--workers", whole_number(0), help="how many (default: one for each core)")
    group.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster; default: Ray is started here")
    add_option(group, "--gpus-per-worker", NUMBER, help="of Ray's GPUs; a fraction shares one")
    add_option(group, "--threads-per-worker", whole_number(1), help="default: the cores shared out among workers")
    add_option(group, "--shard-size", whole_number(1), help="images in a shard, on average (default: 200)")
    add_option(group, "--store-timeout-s", NUMBER, help="of fetching or writing one file of an object store (60)")
    add_option(group, "--store-attempts", whole_number(1), help="for one file of an object store (3)")
    group.add_argument("--retry", action="store_true", help="try images again that could not be read or reached")


def refuse_archive_options(options: argparse.Namespace) -> None:
    """Raise an error if one of them was given without an engine."""
    given = [name for name in (*_OPTIONS, *_STORES) if getattr(options, name) is not None]
    given += ["retry"] if options.retry else []
    if given:
        raise UnaryError(f"--{given[0].replace('_', '-')} goes with --engine {' or '.join(_ENGINES)} alone")
    if isinstance(options.out, str):
        raise UnaryError(f"--out {options.out}: a URL goes with --engine {' or '.join(_ENGINES)} alone")


def run_archive(options: argparse.Namespace, detect: DetectConfig) -> int:
    """Go over a manifest, and say what came of it."""
    from unary.clinic.archive import ArchiveConfig, detect_archive, plan_archive
    from unary.clinic.engines import EngineConfig
    from unary.clinic.storage import Patience

    if len(options.inputs) != 1 or options.inputs[0].is_dir():
        raise UnaryError("--engine goes over one manifest, a CSV of images; make one of a folder by `unary manifest`")
    try:
        engine = EngineConfig(options.engine, options.workers, options.address, options.gpus_per_worker or 0.0)
        patience = Patience(
            **{
                field: value
                for field, value in (("timeout_s", options.store_timeout_s), ("attempts", options.store_attempts))
                if value is not None
            }
        )
        config = ArchiveConfig(
            detect,
            engine,
            options.shard_size,
            options.threads_per_worker,
            patience,
            retry=options.retry,
            device=options.device,
        )
    except ValueError as error:
        raise UnaryError(str(error)) from error
    if options.dry_run:
        _print_plan(plan_archive(options.inputs[0], options.out, config, model_folder=options.model), options)
        return 0
    with keeping(options.out, "run.json"):
        summary = detect_archive(options.inputs[0], options.out, config, model_folder=options.model)
    _print_summary(summary, options.out)
    answer(options, {"command": "detect", "out": options.out, **asdict(summary), "without_result": summary.failed})
    return end_partly(summary.done, summary.failed)


def _print_plan(plan: ArchivePlan, options: argparse.Namespace) -> None:
    from unary.clinic.storage import show_place

    done = plan.images - plan.images_left
    print(
        f"{show_place(str(options.out))}: {count_words(plan.images_left, 'image')} in "
        f"{count_words(plan.shards_left, 'shard')} of up to some {plan.shard_size} images would be examined, "
        f"{done} of {plan.images} done before"
    )
    for name, damage in plan.damaged.items():
        print(f"shard {name} would be made anew: {damage}")
    print("Nothing was written.")
    answer(options, {"command": "detect", "dry_run": True, "out": options.out, **asdict(plan)})


def _print_summary(summary: ArchiveSummary, out: Path | str) -> None:
    from unary.clinic.shards import UNSETTLED
    from unary.clinic.storage import show_place
    from unary.models.calibration import describe_guarantee
    from unary.models.gate import describe_way

    why = " (failures.csv says why)" if summary.failures else ""
    print(
        f"{show_place(str(out))}: {count_words(summary.findings, 'finding')} in {count_words(summary.done, 'image')} "
        f"({summary.kept} of {summary.images} worked on before), {count_words(summary.failed, 'file')} without a "
        f"result{why}; {count_words(summary.shards, 'shard')}, {summary.made} made now"
    )
    for reason, count in sorted(summary.failures.items()):
        print(f"  {reason}: {count:,}")
    if summary.outside:
        differ = "image differs" if summary.outside == 1 else "images differ"
        print(f"{summary.outside} {differ} from those that the model has learned from; such scores mean little")
    if summary.missing_dicom:
        print(f"unary: {count_words(summary.missing_dicom, 'image')} without the DICOM results", file=sys.stderr)
    for line in describe_way(summary.failures):
        print(line)
    if any(reason in summary.failures for reason in UNSETTLED):
        print(f"To try those again that failed by {', '.join(UNSETTLED)}: the same command with --retry")
    for remark in summary.remarks:
        print(f"unary: warning: {remark}", file=sys.stderr)
    print(describe_guarantee(summary.point) if summary.point else NOT_CALIBRATED)
    print(NOTICE)
