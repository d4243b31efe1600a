"""The reference of the command line, made from the parsers themselves: ``{unary-commands}`` in a page."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from unary.cli.main import COMMANDS, build_parser
from unary.detectors import DETECTORS


@dataclass(frozen=True)
class Part:
    """A command, or a kind of it such as ``manifest inbreast``: its words, what it does, and its parser."""

    words: tuple[str, ...]
    help: str
    parser: argparse.ArgumentParser


def find_parts() -> Iterator[Part]:
    """Yield every command and every kind of it, in the order of ``unary --help``."""
    for command in COMMANDS:
        parser = _choices(build_parser([command.name])[0])[command.name]
        yield from _open(Part((command.name,), command.help, parser))


def find_detector_options() -> Iterator[tuple[str, str, list[argparse.Action]]]:
    """Yield each detector's name, its summary, and the options that ``unary fit`` has for it alone."""
    for name in DETECTORS:
        parser = _choices(build_parser(["fit", "--detector", name])[0])["fit"]
        for group in parser._action_groups:
            if group.title == f"options of {name}":
                yield name, group.description or "", list(group._group_actions)


def find_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return what a command takes, but for ``--help``, kinds of commands and what belongs to one detector."""
    own = {
        id(action)
        for group in parser._action_groups
        if (group.title or "").startswith("options of ")
        for action in group._group_actions
    }
    left_out = (argparse._HelpAction, argparse._SubParsersAction)
    return [each for each in parser._actions if not isinstance(each, left_out) and id(each) not in own]


def describe(action: argparse.Action) -> str:
    """Return what ``--help`` says of an option, as Markdown."""
    text = (action.help or "") % {"default": action.default, "prog": "unary"}
    return re.sub(r"([<>*_|\[\]])", r"\\\1", text).replace("--", r"\--")


def name(action: argparse.Action) -> str:
    """Return how an option is typed."""
    values = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    values = " ".join(values) if isinstance(values, tuple) else str(values)
    if not action.option_strings:
        return values or action.dest
    takes = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
    return f"{', '.join(action.option_strings)} {values or action.dest.upper() if takes else ''}".strip()


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _open(part: Part) -> Iterator[Part]:
    yield part
    helps = {
        each.dest: each.help or ""
        for action in part.parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for each in action._choices_actions
    }
    for word, parser in _choices(part.parser).items():
        yield from _open(Part((*part.words, word), helps.get(word, ""), parser))


def write_markdown() -> str:
    """Return the whole reference as Markdown."""
    lines: list[str] = []
    for part in find_parts():
        lines += ["", f"{'#' * (1 + len(part.words))} unary {' '.join(part.words)}", ""]
        lines += [f"{_sentence(part.help)}", "", "```text", _usage(part.parser), "```", ""]
        lines += _table(find_options(part.parser))
        if part.words == ("fit",):
            lines += ["", "The options of each detector follow; `--detector NAME` chooses it.", ""]
            for detector, summary, actions in find_detector_options():
                lines += ["", f"### unary fit \\--detector {detector}", "", summary, "", *_table(actions)]
    return "\n".join(lines)


def _usage(parser: argparse.ArgumentParser) -> str:
    usage = re.sub(r"^usage: ", "", parser.format_usage().strip())
    return re.sub(r"\s+", " ", usage) if len(usage) < 200 else usage


def _sentence(text: str) -> str:
    return (text[:1].upper() + text[1:]).rstrip(".") + "." if text else ""


def _table(actions: list[argparse.Action]) -> list[str]:
    if not actions:
        return []
    rows = [f"| `{name(each).replace('|', ',')}` | {describe(each)} |" for each in actions]
    return ["| option | what it says |", "|---|---|", *rows]


class CommandReference(SphinxDirective):
    """All commands with all options."""

    def run(self) -> list[Any]:
        """Return the sections."""
        return self.parse_text_to_nodes(write_markdown(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("unary-commands", CommandReference)
    return {"parallel_read_safe": True}
