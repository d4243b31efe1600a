"""The commands that rerun and compare: reproduce, bench, demo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from unary.cli.options import (
    EXIT_PARTLY,
    Command,
    add_config_options,
    add_notes,
    add_option,
    choice_of,
    holding_reports,
    read_config_options,
    read_path,
    whole_number,
)
from unary.cli.tracking import add_tracking_options, track_metrics, tracking
from unary.datasets import DEFAULT_DATA_SET, READERS, read_data_set
from unary.records import NOTICE

_PARTS = ("training", "grid")  # of the paper's configuration, whose fields are options


def _add_reproduce_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    experiments = parser.add_subparsers(required=True, metavar="EXPERIMENT", dest="experiment")
    paper = experiments.add_parser("wei2018", help=f"section 5, on {DEFAULT_DATA_SET}", allow_abbrev=False)
    _add_common_options(paper, runs=3)
    paper.add_argument("--annotation", type=read_path, metavar="CSV", help="as for `unary manifest`")
    add_notes(paper)
    if words and words[0] == "wei2018":
        from unary.experiments.wei2018 import PaperConfig

        for name in _PARTS:
            add_config_options(paper.add_argument_group(name), getattr(PaperConfig(), name))
    for name, title in (("mnist", "section 4.1, on MNIST"), ("cifar10", "section 4.2, on CIFAR-10")):
        small = experiments.add_parser(name, help=title, allow_abbrev=False)
        _add_common_options(small, runs=10)
        add_option(small, "--epochs", whole_number(1), help="of each training (default: see the docs)")
    for name, title in (("brainmri", "whole brain MR slices"), ("chestxray", "whole chest films")):
        pictures = experiments.add_parser(name, help=f"{title}, by the general profile", allow_abbrev=False)
        _add_common_options(pictures, runs=3)
        if name == "chestxray":
            told = "films to test, where not a third of the patients is (normal/ and abnormal/, as in --data)"
            pictures.add_argument("--test", type=read_path, metavar="DIR", help=told)
        add_notes(pictures)


def _add_common_options(parser: argparse.ArgumentParser, *, runs: int, data: str = "DIR") -> None:
    parser.add_argument("--data", type=read_path, required=True, metavar=data, help="where the images are")
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR", help="gets figures, tables and report")
    add_option(parser, "--runs", whole_number(1), default=runs, help="independent runs")
    add_option(parser, "--seed", whole_number(0), default=0, help="of the first run")


def _run_reproduce(options: argparse.Namespace) -> int:
    if options.experiment == "wei2018":
        return _run_wei2018(options)
    if options.experiment in ("brainmri", "chestxray"):
        return _run_image_level(options)
    return _run_small_images(options)


def _run_image_level(options: argparse.Namespace) -> int:
    from unary.experiments.image_level import ImageLevelConfig, run_image_level
    from unary.experiments.image_level_report import describe_image_level, write_image_level_report
    from unary.experiments.image_level_sets import open_brain_mr, open_chest_films

    config = ImageLevelConfig(seeds=tuple(range(options.seed, options.seed + options.runs)))
    if options.experiment == "brainmri":
        data = open_brain_mr(options.data)
    else:
        data = open_chest_films(options.data, options.test)
    result = run_image_level(data, options.out, config, banners=options.note)
    write_image_level_report(result, options.out / "report.html")
    for line in describe_image_level(result):
        print(line)
    print(f"{options.out / 'report.html'}")
    print(NOTICE)
    return EXIT_PARTLY if result.meta["skipped"] or result.failures else 0


def _run_small_images(options: argparse.Namespace) -> int:
    from unary.experiments.small_images import reproduce_small_images

    document = reproduce_small_images(
        options.experiment, options.data, options.out, runs=options.runs, epochs=options.epochs, seed=options.seed
    )
    for name, classes in document["detectors"].items():
        print(f"{name:18s} mean AUROC over {len(classes) - 1} classes {classes['mean']['auroc']:.3f}")
    print(f"{options.out / 'report.html'}")
    return 0


def _run_wei2018(options: argparse.Namespace) -> int:
    from unary.experiments.wei2018 import PaperConfig, run_wei2018
    from unary.experiments.wei2018_report import describe_result, write_wei2018_report
    from unary.training.devices import require_device

    seeds = tuple(range(options.seed, options.seed + options.runs))
    given = {name: read_config_options(options, getattr(PaperConfig(), name)) for name in _PARTS}
    config = PaperConfig(**given, seeds=seeds)
    require_device(config.training.device, "--device")
    manifest, notices = read_data_set(DEFAULT_DATA_SET, options.data, annotation=options.annotation)
    result = run_wei2018(manifest, options.out, config, notices=(*options.note, *notices))
    write_wei2018_report(result, options.out / "report.html", banners=tuple(options.note))
    for line in describe_result(result):
        print(line)
    print(f"{options.out / 'report.html'}")
    return 0


def _add_bench_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from unary.profiles import DEFAULT, PROFILES

    _add_common_options(parser, runs=1, data="DIR-OR-M.csv")
    kinds = [*(name.replace("_", "-") for name in READERS), "manifest"]
    told = f"of the data (default: manifest for a file, {DEFAULT_DATA_SET} for a folder)"
    add_option(parser, "--kind", choice_of(kinds), help=told)
    add_option(parser, "--profile", choice_of(PROFILES), default=DEFAULT.name, help="kind of image")
    parser.add_argument("--annotation", type=read_path, metavar="CSV", help="as for `unary manifest`")
    parser.add_argument(
        "--detectors", metavar="A,B,C", help="rows of the bench, your own as module:Class (default: all that it lists)"
    )
    add_option(parser, "--folds", whole_number(1), default=3, help="at least 2")
    add_notes(parser)
    add_tracking_options(parser)


def _run_bench(options: argparse.Namespace) -> int:
    from unary.experiments.bench import BenchConfig, run_bench
    from unary.experiments.bench_report import describe_bench, write_bench_report
    from unary.experiments.contenders import find_contenders, list_contenders
    from unary.profiles import find_profile

    contenders = list_contenders()
    if options.detectors is not None:
        contenders = find_contenders(list(dict.fromkeys(name.strip() for name in options.detectors.split(","))))
    seeds = tuple(range(options.seed, options.seed + options.runs))
    config = BenchConfig(profile=find_profile(options.profile), folds=options.folds, seeds=seeds)
    kind = options.kind or ("manifest" if options.data.is_file() else DEFAULT_DATA_SET)
    manifest, notices = read_data_set(kind, options.data, annotation=options.annotation)
    with tracking(options, f"bench-{options.out.resolve().name}") as tracker:
        result = run_bench(manifest, contenders, options.out, config, notices=notices, banners=options.note)
        write_bench_report(result, options.out)
        track_metrics(tracker, options, options.out)
    for line in describe_bench(result):
        print(line)
    print(f"{options.out / 'report.html'}")
    print(NOTICE)
    return EXIT_PARTLY if result.data.fine.skipped or result.failures else 0


def _add_demo_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR", help="gets figures, tables and report")
    add_option(parser, "--seed", whole_number(0), default=0, help="of the images and of the training")


def _run_demo(options: argparse.Namespace) -> int:
    from unary.experiments.demo import run_demo

    for line in run_demo(options.out, seed=options.seed):
        print(line)
    return 0


COMMANDS = (
    Command(
        "reproduce", "rerun an experiment of Wei et al. 2018", _add_reproduce_options, holding_reports(_run_reproduce)
    ),
    Command(
        "bench",
        "compare detectors on the same patches, cross-validated over patients",
        _add_bench_options,
        holding_reports(_run_bench),
    ),
    Command("demo", "the whole chain on synthetic images, in minutes", _add_demo_options, holding_reports(_run_demo)),
)
