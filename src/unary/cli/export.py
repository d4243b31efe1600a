"""The command that writes a model as an ONNX graph."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unary.cli.options import EXIT_PARTLY, Command, read_path
from unary.records import NOTICE, Image, count_words

if TYPE_CHECKING:
    from unary.models.bundle import Model
    from unary.models.export_parity import Parity


def _add_export_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("model", type=read_path, metavar="MODEL/", help="a folder that `unary fit` wrote")
    parser.add_argument(
        "--out", type=read_path, required=True, metavar="DIR/", help="gets the graph and what goes with it"
    )
    images = "files, folders or a manifest of images to compare graph and model on, beside synthetic pictures"
    parser.add_argument("--images", type=read_path, nargs="+", default=[], metavar="FILE-OR-FOLDER", help=images)
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model that is there already")


def _run_export(options: argparse.Namespace) -> int:
    from unary.models.export_parity import LIMIT
    from unary.models.exporting import export_model

    failed: list[str] = []
    found = export_model(
        options.model,
        options.out,
        images=lambda model: _read_images(model, options.images, failed),
        overwrite=options.overwrite,
    )
    print(f"largest differences of graph and model, relative to the largest value of each (limit {LIMIT:g}):")
    for parity in found.parities:
        print(f"  {_describe(parity)}")
    for message in failed:
        print(f"unary: skipped: {message}", file=sys.stderr)
    size = f"{found.graph_bytes / 1e6:.1f} MB"
    print(
        f"{options.out}: {found.detector} as a graph of {size}, compared on {count_words(len(found.parities), 'image')}"
    )
    print(NOTICE)
    return EXIT_PARTLY if failed else 0


def _describe(parity: Parity) -> str:
    from unary.models.export_parity import describe_parity

    same = "same findings" if not parity.findings else "; ".join(parity.findings)
    return f"{describe_parity(parity)}; {same}"


def _read_images(model: Model, inputs: Sequence[Path], failed: list[str]) -> Iterator[tuple[str, Image]]:
    """Yield what can be examined of files, folders and manifests, one at a time; note why others cannot."""
    from unary.clinic.file_work import Job, explain_failure, inspect_file, load_image
    from unary.images.isolation import IsolatedReader, show_path
    from unary.models.gate import build_gate

    if not inputs:
        return
    with IsolatedReader() as reader:
        for path, spacing_mm in _list_files(inputs):
            job = Job(
                "export", lambda image, source: lambda folder: ({}, {}), {}, build_gate(model, spacing_mm=spacing_mm)
            )
            try:
                image = load_image(inspect_file(path, "", job, reader), job, reader)
            except Exception as error:
                failed.append(str(explain_failure(error, path)))
                continue
            yield show_path(path), image


def _list_files(inputs: Sequence[Path]) -> Iterator[tuple[Path, float | None]]:
    """Yield files, and the pixel spacing that a manifest states of them."""
    from unary.clinic.inputs import list_inputs
    from unary.datasets.manifest import read_manifest

    for given in inputs:
        if given.suffix.lower() == ".csv":
            yield from ((row.path, row.spacing_mm) for row in read_manifest(given).rows if row.path is not None)
        else:
            yield from ((path, None) for path in list_inputs([given]).names)


COMMANDS = (
    Command("export", "write a model as an ONNX graph, checked against the model", _add_export_options, _run_export),
)
