"""The commands of a node: run it, and check its audit log."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from unary.cli.answers import add_json, answer
from unary.cli.options import Command, read_path
from unary.records import NOTICE


def _add_serve_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("config", type=read_path, metavar="NODE.toml", help="what it listens to, and where results go")
    parser.add_argument("--check", action="store_true", help="check the file and what it names; start nothing")


def _run_serve(options: argparse.Namespace) -> int:
    from unary.clinic.node.config import read_config

    config = read_config(options.config)
    from unary.clinic.node.logs import logging_as_json
    from unary.clinic.node.service import check_config, serve_until_told
    from unary.models.bundle import read_model

    if options.check:
        print(*check_config(config, read_model(config.model)), sep="\n")
        print(f"{options.config}: nothing is wrong with it. {NOTICE}")
        return 0
    with logging_as_json():
        serve_until_told(config)
    return 0


def _add_audit_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("file", type=read_path, metavar="FILE", help="audit.jsonl of a node's state folder")
    add_json(parser)


def _run_audit(options: argparse.Namespace) -> int:
    from unary.clinic.node.audit import check_audit

    head = check_audit(options.file)
    print(f"{options.file}: {head.number} lines, each follows the one before; the last has the hash {head.sha256}")
    answer(options, {"command": "audit-check", "file": options.file, "lines": head.number, "sha256": head.sha256})
    return 0


COMMANDS = (
    Command(
        "serve", "take images from the network, examine them and send the results on", _add_serve_options, _run_serve
    ),
    Command("audit-check", "say whether a node's audit log is as it was written", _add_audit_options, _run_audit),
)
