"""Options of commands, many of them made from the frozen configs that they fill.

A config's field becomes an option of its name: ``hole_px`` becomes ``--hole-px``, and the field ``hole_px`` of a nested
config ``blind_spot`` becomes ``--blind-spot-hole-px``; a nested config called ``training`` needs no such prefix. The
field's type says how the text is read, the "Attributes" of the config's docstring what ``--help`` says.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from unary.errors import UnaryError

EXIT_FAILED, EXIT_PARTLY, EXIT_INTERRUPTED = 2, 3, 130
_NO_PREFIX = "training"


@dataclass(frozen=True)
class Command:
    """One command of ``unary``.

    Attributes
    ----------
    name, help
        As ``unary --help`` shows them.
    add_options
        Adds its options to a parser, given the words that follow the command; called for the command that is run alone,
        so that no other's configs are imported.
    run
        Does it, and returns the exit status.
    explain
        What is to be said of options that it does not have, given them and the parsed ones; None for nothing.
    """

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser, Sequence[str]], None]
    run: Callable[[argparse.Namespace], int]
    explain: Callable[[Sequence[str], argparse.Namespace], str | None] = lambda unknown, options: None


@dataclass(frozen=True)
class ConfigOption:
    """One field of a config, or of a config inside it.

    Attributes
    ----------
    flag
        Such as ``--blind-spot-hole-px``.
    path
        Names of the fields that lead to it, outermost first.
    kind
        Its type, as `typing.get_type_hints` gives it.
    default
        Of the config that the option is made from.
    help
        The field's description.
    """

    flag: str
    path: tuple[str, ...]
    kind: Any
    default: Any
    help: str


def find_options(config: Any, path: tuple[str, ...] = (), prefix: str = "--") -> Iterator[ConfigOption]:
    """Yield the options of a frozen dataclass, whose values are the defaults.

    Fields of types that no option can spell are left out: what is not `int`, `float`, `str`, `bool`, a `Literal`, a
    tuple of numbers, pairs of a name and a number, one of these or None, or another dataclass.

    Parameters
    ----------
    config
        An instance.
    path, prefix
        Of the config inside another one.
    """
    try:
        kinds = typing.get_type_hints(type(config))
    except NameError as error:
        raise UnaryError(f"the types of {type(config).__name__}'s fields cannot be found: {error}") from error
    helps = read_attributes(type(config))
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), (*path, field.name)
        if dataclasses.is_dataclass(value):
            inner = prefix if field.name == _NO_PREFIX else f"{prefix}{_spell(field.name)}-"
            yield from find_options(value, here, inner)
        elif _describe_kind(kinds[field.name]) is not None:
            flag = prefix + _spell(field.name)
            yield ConfigOption(flag, here, kinds[field.name], value, helps.get(field.name, ""))


def _spell(name: str) -> str:
    return name.replace("_", "-")


def read_attributes(kind: type) -> dict[str, str]:
    """Return the descriptions in the "Attributes" section of a numpydoc docstring, by name, each as one line.

    >>> read_attributes(ConfigOption)["path"]
    'Names of the fields that lead to it, outermost first.'
    """
    text = inspect.cleandoc(kind.__doc__ or "")
    _, found, section = text.partition("Attributes\n----------\n")
    helps: dict[str, str] = {}
    names: list[str] = []
    for line in section.split("\n\n")[0].splitlines() if found else []:
        if not line.startswith(" "):
            names = [name.strip() for name in line.partition(":")[0].split(",")]
            continue
        for name in names:
            helps[name] = f"{helps.get(name, '')} {line.strip()}".strip()
    return helps


def add_config_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup, config: Any, *, scope: str) -> None:
    """Add the options of a config, to be read by `read_config_options` with the same config and scope.

    Parameters
    ----------
    parser
        Or a group of it.
    config
        An instance, with the defaults.
    scope
        A word that tells several configs of one parser apart.

    Raises
    ------
    UnaryError
        If an option is there already.
    """
    for option in find_options(config):
        shown = None if option.default is None else _show(option)
        words = option.help.replace("``", "").replace("`", "").replace("%", "%%")
        settings: dict[str, Any] = {
            "dest": _find_place(scope, option),
            "default": argparse.SUPPRESS,
            "help": words if shown is None else f"{words} (default: {shown})".strip(),
        }
        if _strip_none(option.kind) is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings |= {"type": _make_reader(option), "metavar": _describe_kind(option.kind)}
        try:
            parser.add_argument(option.flag, **settings)
        except argparse.ArgumentError as error:
            raise UnaryError(
                f"the field {'.'.join(option.path)} of {type(config).__name__} would be the option {option.flag}, "
                "which the command has already; rename the field"
            ) from error


def read_config_options(options: argparse.Namespace, config: Any, *, scope: str) -> Any:
    """Return the config with what was given on the command line.

    Raises
    ------
    UnaryError
        If the config refuses it; the message names the options.
    """
    given = {option: vars(options)[_find_place(scope, option)] for option in find_given(options, config, scope=scope)}
    try:
        return _replace(config, {option.path: value for option, value in given.items()})
    except ValueError as error:
        flags, told = [option.flag for option in given], error
        for option, value in given.items():  # the one that is wrong by itself, if there is one
            try:
                _replace(config, {option.path: value})
            except ValueError as own:
                flags, told = [option.flag], own
                break
        raise UnaryError(f"{', '.join(flags)}: {told}") from error


def find_given(options: argparse.Namespace, config: Any, *, scope: str) -> list[ConfigOption]:
    """Return the options of a config that the command line has."""
    return [option for option in find_options(config) if _find_place(scope, option) in vars(options)]


def _find_place(scope: str, option: ConfigOption) -> str:
    return ".".join((scope, *option.path))


def _replace(config: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """The config with other values at these paths."""
    changes: dict[str, Any] = {}
    inside: dict[str, dict[tuple[str, ...], Any]] = {}
    for (name, *rest), value in values.items():
        if rest:
            inside.setdefault(name, {})[tuple(rest)] = value
        else:
            changes[name] = value
    nested = {name: _replace(getattr(config, name), part) for name, part in inside.items()}
    return dataclasses.replace(config, **changes, **nested)


def _make_reader(option: ConfigOption) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return read_value(option.flag, text, option.kind)

    return read


def read_value(flag: str, text: str, kind: Any) -> Any:
    """Return the value that an option's text stands for.

    Raises
    ------
    UnaryError
        If it stands for none of this kind; the message names the option.
    """
    try:
        return _read(text, kind)
    except ValueError:
        raise UnaryError(f"{flag} needs {_explain_kind(kind)}, not {text!r}") from None


def _read(text: str, kind: Any) -> Any:
    inner = _strip_none(kind)
    if inner is not kind:
        return None if text == "none" and text not in typing.get_args(inner) else _read(text, inner)
    if kind is float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    if typing.get_origin(kind) is Literal:
        choices = {str(value): value for value in typing.get_args(kind)}
        if text not in choices:
            raise ValueError(text)
        return choices[text]
    if typing.get_origin(kind) is tuple:
        return _read_tuple(text, typing.get_args(kind))
    return kind(text)


def _read_tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",")]
    if kinds[-1] is Ellipsis and _is_pair(kinds[0]):
        pairs = [part.rpartition("=") for part in parts]
        if any(not name for name, _, _ in pairs):
            raise ValueError(text)
        return tuple((name, _read(number, float)) for name, _, number in pairs)
    if kinds[-1] is Ellipsis:
        return tuple(_read(part, kinds[0]) for part in parts)
    if len(parts) != len(kinds):
        raise ValueError(text)
    return tuple(_read(part, kind) for part, kind in zip(parts, kinds, strict=True))


def _strip_none(kind: Any) -> Any:
    """X of ``X | None``; anything else as it is."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        if len(inner) == 1 and len(typing.get_args(kind)) == 2:
            return inner[0]
    return kind


def _is_pair(kind: Any) -> bool:
    return bool(typing.get_args(kind) == (str, float))


def _describe_kind(kind: Any) -> str | None:
    """What stands for a value in ``--help``; None for a type that no option can spell."""
    kind = _strip_none(kind)
    plain = {int: "N", float: "X", str: "TEXT", bool: ""}
    if kind in plain:
        return plain[kind]
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is not tuple or not parts:
        return None
    if parts[-1] is Ellipsis:
        return "NAME=X,..." if _is_pair(parts[0]) else "X,..." if parts[0] in (int, float) else None
    return "LOW,HIGH" if parts in ((int, int), (float, float)) else None


def _explain_kind(kind: Any) -> str:
    inner = _strip_none(kind)
    tail = "" if inner is kind or "none" in typing.get_args(inner) else ", or none"
    if typing.get_origin(inner) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(inner)))}{tail}"
    shown = {"N": "a whole number", "X": "a finite number", "X,...": "finite numbers separated by commas"}
    shown |= {"LOW,HIGH": "two finite numbers, as LOW,HIGH", "NAME=X,...": "names with a number, as NAME=X,NAME=X"}
    if int in typing.get_args(inner):
        shown |= {"X,...": "whole numbers separated by commas", "LOW,HIGH": "two whole numbers, as LOW,HIGH"}
    return shown[str(_describe_kind(inner))] + tail


def _show(option: ConfigOption) -> str:
    """A default as it would be typed."""
    value = option.default
    if isinstance(value, bool):
        return option.flag if value else re.sub("^--", "--no-", option.flag)
    if isinstance(value, tuple):
        return ",".join("=".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)
    return str(value)


def add_whole_number(
    parser: argparse.ArgumentParser, flag: str, *, default: int | None, help: str, least: int = 0
) -> None:
    """Add an option for a whole number of at least ``least``; the help states the default unless it is None."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise UnaryError(f"{flag} needs a whole number of at least {least}, not {text!r}")
        return int(text)

    shown = help if default is None else f"{help} (default: {default})"
    parser.add_argument(flag, type=read, default=default, metavar="N", help=shown)


def add_number(parser: argparse.ArgumentParser, flag: str, *, default: float | None, help: str) -> None:
    """Add an option for a finite number; the help states the default unless it is None."""
    shown = help if default is None else f"{help} (default: {default:g})"
    parser.add_argument(flag, type=lambda text: read_value(flag, text, float), default=default, metavar="X", help=shown)


def add_choice(
    parser: argparse.ArgumentParser, flag: str, choices: Sequence[str], *, default: str | None = None, help: str
) -> None:
    """Add an option that takes one of a few words."""
    kind = Literal[tuple(choices)]  # type: ignore[valid-type]
    parser.add_argument(
        flag,
        type=lambda text: read_value(flag, text, kind),
        default=default,
        metavar="{" + ",".join(choices) + "}",
        help=help if default is None else f"{help} (default: {default})",
    )


def add_notes(parser: argparse.ArgumentParser) -> None:
    """Add ``--note``."""
    parser.add_argument(
        "--note", action="append", default=[], metavar="TEXT", help="what must not be overlooked; heads the report"
    )


def end_partly(done: int, left_out: int) -> int:
    """Return the exit status where a part of the work was left out."""
    if not left_out:
        return 0
    return EXIT_PARTLY if done else EXIT_FAILED
