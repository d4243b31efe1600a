"""The command line: parses, calls, prints."""

from __future__ import annotations

import argparse
import difflib
import itertools
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from importlib import metadata

from unary.cli import (
    clinic,
    commissioning,
    completion,
    data,
    experiments,
    export,
    models,
    monitoring,
    node,
    review,
    sending,
)
from unary.cli.answers import answering
from unary.cli.examples import EXAMPLES, FIRST_STEPS, GROUPS
from unary.cli.options import EXIT_FAILED, EXIT_INTERRUPTED, Command
from unary.errors import UnaryError
from unary.records import NOTICE

logger = logging.getLogger(__name__)

COMMANDS: tuple[Command, ...] = (
    *data.COMMANDS,
    *models.COMMANDS,
    *export.COMMANDS,
    *clinic.COMMANDS,
    *commissioning.COMMANDS,
    *monitoring.COMMANDS,
    *sending.COMMANDS,
    *node.COMMANDS,
    *review.COMMANDS,
    *experiments.COMMANDS,
    *completion.COMMANDS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 when nothing could be done, 3 when a part was skipped, 130 when interrupted."""
    words = _join_negatives(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="unary: %(message)s", stream=sys.stderr)
    logging.getLogger("pydicom").setLevel(logging.ERROR)  # its warnings may quote a patient's data
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it tells of every try; who asked tells of the outcome
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last: just a detector of one's own, module:Class, is to be found there
    if words in ([], ["--help"], ["-h"]):
        print(_describe_commands())
        return 0
    try:
        _require_command(words[0])
        parser, own = build_parser(words)
        _require_options(words[1:], own)
        options, unknown = parser.parse_known_args(words)
        if unknown:
            if "explain" in options:
                options.explain(unknown, options)
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        logging.getLogger("unary").setLevel(options.level)
        status = _run(options)
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


def _run(options: argparse.Namespace) -> int:
    """Run the command; tell whoever wants to know where results will be, and how long it took."""
    out, begun = getattr(options, "out", None), time.monotonic()
    if out is not None and not getattr(options, "dry_run", False):
        logger.info("results will be in %s", out)
    with answering(options):
        status: int = options.run(options)
    logger.info("ended after %.1f s, exit status %d", time.monotonic() - begun, status)
    return status


def _describe_commands() -> str:
    """What ``unary`` alone prints: every command in a line, by group, and the first steps."""
    helps = {command.name: command.help for command in COMMANDS}
    listed = [name for names in GROUPS.values() for name in names]
    others = tuple(name for name in helps if name not in listed)
    width = max(map(len, helps))
    lines = [f"unary {metadata.version('unary')}: one-class anomaly detection in medical images. {NOTICE}"]
    for title, names in (*GROUPS.items(), ("others", others)):
        if names:
            lines += ["", f"{title}:", *(f"  {name:{width}}  {helps[name]}" for name in names)]
    lines += ["", "first steps:", *(f"  {step}" for step in FIRST_STEPS), "", "unary COMMAND --help says more."]
    return "\n".join(lines)


def _suggest(word: str, known: Iterable[str]) -> str:
    """The question whether another word was meant, empty where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else ""


def _require_command(word: str) -> None:
    names = [command.name for command in COMMANDS]
    if not word.startswith("-") and word not in names:
        hint = _suggest(word, names) or f"; there are {', '.join(names)}"
        raise UnaryError(f"there is no command {word!r}{hint}")


def _require_options(words: Sequence[str], own: argparse.ArgumentParser | None) -> None:
    """Refuse an option that is nearly one of the command's, before argparse misses what was meant by it."""
    if own is None or any(isinstance(action, argparse._SubParsersAction) for action in own._actions):
        return
    known = [flag for action in own._actions for flag in action.option_strings if flag.startswith("--")]
    for word in itertools.takewhile(lambda word: word != "--", words):
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known and (hint := _suggest(flag, known)):
            raise UnaryError(f"{own.prog} has no option {flag}{hint}")


def build_parser(words: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """Return the parser for a command line: all commands, but the options, and imports, of the one that it names.

    That one's own parser comes with it.
    """
    parser = argparse.ArgumentParser(
        prog="unary",
        description=f"One-class anomaly detection in medical images. {NOTICE}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"unary {metadata.version('unary')}. {NOTICE}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    named = None
    for command in COMMANDS:
        own = commands.add_parser(
            command.name,
            help=command.help,
            description=command.help,
            epilog=f"example: {EXAMPLES[command.name]}",
            allow_abbrev=False,
        )
        own.set_defaults(run=command.run)
        if words and words[0] == command.name:
            named = own
            command.add_options(own, words[1:])
            _add_level(own)
    return parser, named


def _add_level(parser: argparse.ArgumentParser) -> None:
    """Add how much is told on standard error."""
    parser.set_defaults(level=logging.NOTSET)  # that of the root logger, which is to warn
    how = parser.add_argument_group("what is told meanwhile").add_mutually_exclusive_group()
    how.add_argument(
        "--quiet", dest="level", action="store_const", const=logging.ERROR, help="no progress and no notes"
    )
    how.add_argument(
        "--verbose", dest="level", action="store_const", const=logging.INFO, help="where results will be, and more"
    )


def _join_negatives(words: Sequence[str]) -> list[str]:
    """Put ``--window -160,240`` as ``--window=-160,240``: argparse takes such a value for an option."""
    joined: list[str] = []
    for word in words:
        if joined and re.fullmatch(r"--[\w-]+", joined[-1]) and re.fullmatch(r"-[\d.][\d.,e+-]*", word):
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined
