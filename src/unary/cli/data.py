"""The commands about data: manifest, split, phantom."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from unary.cli.options import (
    NUMBER,
    Command,
    add_config_options,
    add_option,
    read_config_options,
    read_path,
    whole_number,
)
from unary.datasets import READERS, read_data_set
from unary.errors import ManifestError, UnaryError
from unary.records import count_words


def _add_manifest_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument(
        "kind", choices=[name.replace("_", "-") for name in READERS], help="how the data set is laid out"
    )
    parser.add_argument("folder", type=read_path, metavar="DIR", help="where the data set is")
    parser.add_argument("--out", type=read_path, required=True, metavar="M.csv", help="the manifest to write")
    parser.add_argument("--only", choices=["negative", "positive"], help="keep the images of one label")
    add_option(parser, "--spacing-mm", NUMBER, help="pixel spacing of files that do not state it, such as PNG")
    parser.add_argument(
        "--annotation", type=read_path, metavar="CSV", help="which images list only part of their lesions"
    )


def _run_manifest(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import require_replaceable, write_manifest

    require_replaceable(options.out)
    if options.spacing_mm is not None and not options.spacing_mm > 0:
        raise UnaryError(f"--spacing-mm must be positive, got {options.spacing_mm:g}")
    manifest, notices = read_data_set(options.kind, options.folder, annotation=options.annotation)
    for notice in notices:
        print(f"unary: {notice}", file=sys.stderr)
    if options.spacing_mm is not None:
        rows = (row if row.spacing_mm else replace(row, spacing_mm=options.spacing_mm) for row in manifest.rows)
        manifest = manifest.select(tuple(rows))
    with_others = 0
    if options.only is not None:
        others = {row.patient_id for row in manifest.rows if row.label != options.only}
        manifest = manifest.select(tuple(row for row in manifest.rows if row.label == options.only))
        if not manifest.rows:
            raise ManifestError(f"{options.folder}: no image is labelled {options.only}")
        with_others = sum(row.patient_id in others for row in manifest.rows)
    write_manifest(manifest, options.out)
    labels = [row.label or "unlabelled" for row in manifest.rows]
    counts = ", ".join(f"{labels.count(label)} {label}" for label in sorted(set(labels)))
    images, lesions = count_words(len(labels), "image"), count_words(len(manifest.lesions), "lesion")
    patients = count_words(len({row.patient_id for row in manifest.rows}), "patient")
    print(f"{options.out}: {images} ({counts}) of {patients}, {lesions}")
    incomplete = sum(not row.complete for row in manifest.rows)
    for count, what in (
        (with_others, "kept of patients who also have others (`unary split` puts such patients to the test side)"),
        (incomplete, "not completely annotated: nothing outside the listed lesions is taken as normal"),
    ):
        if count:
            print(f"{count_words(count, 'image')} {what}")
    return 0


def _add_split_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("manifest", type=read_path, metavar="M.csv", help="all images")
    parser.add_argument("--train", type=read_path, required=True, metavar="T.csv", help="to write: normals to fit on")
    parser.add_argument("--test", type=read_path, required=True, metavar="E.csv", help="to write: the other patients")
    add_option(
        parser, "--held-out", NUMBER, default=0.2, help="share of the normal patients that goes to the test side"
    )
    add_option(parser, "--seed", whole_number(0), default=0, help="of the draw")


def _run_split(options: argparse.Namespace) -> int:
    import numpy as np

    from unary.datasets.manifest import read_manifest, require_replaceable, write_manifest
    from unary.datasets.splits import count_rows, describe_split, split_manifest

    outputs = {"--train": options.train, "--test": options.test}
    for name, path in outputs.items():
        require_replaceable(path)
        others = {"the manifest": options.manifest, **{key: value for key, value in outputs.items() if key != name}}
        for other, place in others.items():
            if path.resolve() == place.resolve():
                raise ManifestError(f"{name} {path} is {other} as well; name another file")
    train, test = split_manifest(read_manifest(options.manifest), options.held_out, np.random.default_rng(options.seed))
    for part, path in ((train, options.train), (test, options.test)):
        write_manifest(part, path)
        print(f"{path}: {count_rows(part.rows)}")
    for line in describe_split(train, test):
        print(line)
    return 0


def _add_phantom_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from unary.datasets.phantom import PhantomConfig

    parser.add_argument(
        "--out", type=read_path, required=True, metavar="DIR/", help="gets the images and their manifest, all.csv"
    )
    add_option(parser, "--normal", whole_number(0), default=12, help="patients without a lesion")
    add_option(parser, "--abnormal", whole_number(0), default=4, help="patients with one, the same in all their views")
    add_option(parser, "--images", whole_number(1), default=4, help="of each patient, 1 to 4: CC and MLO of both sides")
    add_option(parser, "--seed", whole_number(0), default=0, help="the same seed draws the same images")
    add_config_options(parser, PhantomConfig())


def _run_phantom(options: argparse.Namespace) -> int:
    from unary.datasets.manifest import require_replaceable, write_manifest
    from unary.datasets.phantom import PhantomConfig, write_phantom_dataset

    table, config = options.out / "all.csv", read_config_options(options, PhantomConfig())
    require_replaceable(table)
    try:
        manifest = write_phantom_dataset(
            options.out,
            patients_normal=options.normal,
            patients_abnormal=options.abnormal,
            config=config,
            seed=options.seed,
            images_per_patient=options.images,
        )
    except ValueError as error:
        raise UnaryError(str(error)) from error
    write_manifest(manifest, table)
    print(f"{options.out}: {count_words(len(manifest.rows), 'image')}, drawn, not taken: no patient is in them")
    print(f"{table}: their labels and lesions")
    return 0


COMMANDS = (
    Command(
        "manifest", "list a data set's images, labels and lesions in one CSV", _add_manifest_options, _run_manifest
    ),
    Command(
        "split", "divide a manifest by patient into normals to fit and the rest to test", _add_split_options, _run_split
    ),
    Command("phantom", "draw synthetic mammograms to try things on", _add_phantom_options, _run_phantom),
)
