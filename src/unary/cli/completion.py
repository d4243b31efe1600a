"""``unary completion SHELL``: a script by which a shell completes commands, options and their values, by itself.

The script is static, so that no key press waits for Python. It knows every option of every command; of `fit`, those of
all detectors.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence

from unary.cli.options import Command, read_path
from unary.errors import require

SHELLS = ("bash", "zsh", "fish", "tcsh")


def _add_completion_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("shell", choices=SHELLS, help="which shell the script is for")


def _run_completion(options: argparse.Namespace) -> int:
    shtab = require("shtab", extra="completion")
    parser = build_whole_parser()
    for action in _walk(parser):
        _mark(action, file=shtab.FILE, folder=shtab.DIRECTORY)
    print(shtab.complete(parser, options.shell))
    return 0


def build_whole_parser() -> argparse.ArgumentParser:
    """Return a parser that has the options of every command, for show: it reads nothing."""
    from unary.cli.main import COMMANDS, build_parser

    whole, _ = build_parser([])
    (commands,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    for command in COMMANDS:
        own = commands.choices[command.name]
        for words in _list_variants(command.name):
            _, full = build_parser([command.name, *words])
            assert full is not None
            for action in full._actions:
                if not _has(own, action):
                    own._add_action(action)
    return whole


def _list_variants(name: str) -> Iterator[Sequence[str]]:
    """The words behind a command upon which its options depend."""
    if name == "fit":
        from unary.detectors import DETECTORS

        yield from (["--detector", detector] for detector in DETECTORS)
    elif name == "reproduce":
        yield ["wei2018"]
    else:
        yield []


def _has(parser: argparse.ArgumentParser, action: argparse.Action) -> bool:
    if action.option_strings:
        return any(flag in parser._option_string_actions for flag in action.option_strings)
    return any(known.dest == action.dest for known in parser._actions if not known.option_strings)


def _walk(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _walk(inner)


def _mark(action: argparse.Action, *, file: object, folder: object) -> None:
    """Say what stands for an action's value: a file, a folder, or one of a few words."""
    from unary.detectors import DETECTORS
    from unary.profiles import PROFILES

    named = {"--detector": tuple(DETECTORS), "--profile": tuple(PROFILES)}
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if action.type is read_path:
        action.complete = folder if metavar.endswith("/") or metavar == "DIR" else file  # type: ignore[attr-defined]
    elif values := re.fullmatch(r"\{(.+)\}", metavar):
        action.choices = tuple(values.group(1).split(","))
    elif flag := next((flag for flag in action.option_strings if flag in named), None):
        action.choices = named[flag]


COMMANDS = (
    Command(
        "completion",
        "print what lets a shell complete commands, options, detectors and files",
        _add_completion_options,
        _run_completion,
    ),
)
