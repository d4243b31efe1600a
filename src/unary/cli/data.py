"""The commands about data: manifest, split."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unary.cli.options import NUMBER, Command, add_option, whole_number
from unary.datasets import READERS, read_data_set


def _add_manifest_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("kind", choices=[name.replace("_", "-") for name in READERS])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="M.csv")
    parser.add_argument("--only", choices=["negative", "positive"], help="keep the images of one label")
    parser.add_argument("--annotation", type=Path, metavar="CSV", help="which images list only part of their lesions")


def _run_manifest(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import write_manifest

    manifest, notices = read_data_set(options.kind, options.folder, annotation=options.annotation)
    if options.only is not None:
        manifest = manifest.select(tuple(row for row in manifest.rows if row.label == options.only))
    for notice in notices:
        print(f"unary: {notice}", file=sys.stderr)
    write_manifest(manifest, options.out)
    labels = [row.label or "unlabelled" for row in manifest.rows]
    counts = ", ".join(f"{labels.count(label)} {label}" for label in sorted(set(labels)))
    patients = len({row.patient_id for row in manifest.rows})
    print(f"{options.out}: {len(labels)} images ({counts}) of {patients} patients, {len(manifest.lesions)} lesions")
    return 0


def _add_split_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("manifest", type=Path, metavar="M.csv")
    parser.add_argument("--train", type=Path, required=True, metavar="T.csv")
    parser.add_argument("--test", type=Path, required=True, metavar="E.csv")
    add_option(
        parser, "--held-out", NUMBER, default=0.2, help="share of the normal patients that goes to the test side"
    )
    add_option(parser, "--seed", whole_number(0), default=0, help="of the draw")


def _run_split(options: argparse.Namespace) -> int:
    import numpy as np

    from unary.datasets.manifest import read_manifest, write_manifest
    from unary.datasets.splits import split_manifest

    train, test = split_manifest(read_manifest(options.manifest), options.held_out, np.random.default_rng(options.seed))
    for part, path in ((train, options.train), (test, options.test)):
        write_manifest(part, path)
        print(f"{path}: {len(part.rows)} images of {len({row.patient_id for row in part.rows})} patients")
    return 0


COMMANDS = (
    Command(
        "manifest", "list a data set's images, labels and lesions in one CSV", _add_manifest_options, _run_manifest
    ),
    Command(
        "split", "divide a manifest by patient into normals to fit and the rest to test", _add_split_options, _run_split
    ),
)
