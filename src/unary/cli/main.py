"""The command line: parses, calls, prints."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib import metadata

from unary.cli import clinic, commissioning, data, experiments, models, monitoring, node, review, sending
from unary.cli.options import EXIT_FAILED, EXIT_INTERRUPTED, Command
from unary.errors import UnaryError
from unary.records import NOTICE

COMMANDS: tuple[Command, ...] = (
    *data.COMMANDS,
    *models.COMMANDS,
    *clinic.COMMANDS,
    *commissioning.COMMANDS,
    *monitoring.COMMANDS,
    *sending.COMMANDS,
    *node.COMMANDS,
    *review.COMMANDS,
    *experiments.COMMANDS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 when nothing could be done, 3 when a part was skipped, 130 when interrupted."""
    words = _join_negatives(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="unary: %(message)s", stream=sys.stderr)
    logging.getLogger("pydicom").setLevel(logging.ERROR)  # its warnings may quote a patient's data
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last: just a detector of one's own, module:Class, is to be found there
    try:
        parser = build_parser(words)
        options, unknown = parser.parse_known_args(words)
        if unknown:
            if "explain" in options:
                options.explain(unknown, options)
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        status: int = options.run(options)
    except UnaryError as error:
        print(f"unary: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        print(f"unary: error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("unary: interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for a command line: all commands, but the options, and imports, of the one alone that it names."""
    parser = argparse.ArgumentParser(
        prog="unary",
        description=f"One-class anomaly detection in medical images. {NOTICE}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"unary {metadata.version('unary')}. {NOTICE}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = commands.add_parser(command.name, help=command.help, description=command.help, allow_abbrev=False)
        own.set_defaults(run=command.run)
        if words and words[0] == command.name:
            command.add_options(own, words[1:])
    return parser


def _join_negatives(words: Sequence[str]) -> list[str]:
    """Put ``--window -160,240`` as ``--window=-160,240``: argparse takes such a value for an option."""
    joined: list[str] = []
    for word in words:
        if joined and re.fullmatch(r"--[\w-]+", joined[-1]) and re.fullmatch(r"-[\d.][\d.,e+-]*", word):
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined
