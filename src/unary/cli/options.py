"""Options of commands, many of them made from the frozen configs that they fill.

A config's field becomes an option of its name: ``hole_px`` becomes ``--hole-px``, and the field ``hole_px`` of a nested
config ``blind_spot`` becomes ``--blind-spot-hole-px``; nested configs called ``training`` or ``network`` need none. The
field's type says how the text is read, the "Attributes" of the config's docstring what ``--help`` says.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import re
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Union

from unary.errors import UnaryError
from unary.files import is_url, locking
from unary.records import NOTICE

EXIT_FAILED, EXIT_PARTLY, EXIT_INTERRUPTED = 2, 3, 130
_NO_PREFIX = ("training", "network")


@dataclass(frozen=True)
class Command:
    """One command of ``unary``.

    ``add_options`` adds its options to a parser, given the words that follow the command; it is called for the command
    that is run alone, so that no other's configs are imported. ``run`` does it, and returns the exit status.
    """

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser, Sequence[str]], None]
    run: Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Form:
    """How a value is typed.

    ``metavar`` stands for it in ``--help``, and is empty for a switch; ``words`` say what is needed; ``read`` turns the
    text into the value, or raises ValueError or KeyError.
    """

    metavar: str
    words: str
    read: Callable[[str], Any]


def choice_of(values: Iterable[Any]) -> Form:
    """Return the form of one of a few values."""
    choices = {str(value): value for value in values}
    return Form("{" + ",".join(choices) + "}", f"one of {', '.join(choices)}", choices.__getitem__)


def whole_number(least: int) -> Form:
    """Return the form of a whole number that is not below ``least``, itself not negative."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise ValueError(text)
        return int(text)

    return Form("N", f"a whole number of at least {least}", read)


def read_path(text: str) -> Path:
    """Return a path; refuse an empty text, such as a variable that is not set: it would be the folder one is in."""
    if not text:
        raise UnaryError("an empty text in place of a path: a variable that is not set? The folder you are in is .")
    return Path(text)


def read_place(text: str) -> Path | str:
    """Return a path, or a URL such as ``s3://bucket/folder`` as it is."""
    return text if is_url(text) else read_path(text)


def _read_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _read_pair(text: str) -> tuple[str, float]:
    name, _, number = text.strip().rpartition("=")
    if not name:
        raise ValueError(text)
    return name, _read_finite(number)


def _split(text: str, *, read: Callable[[str], Any], length: int | None = None) -> tuple[Any, ...]:
    """Read values with commas between them, any number of them or so many."""
    values = tuple(map(read, text.split(",")))
    if length not in (None, len(values)):
        raise ValueError(text)
    return values


NUMBER = Form("X", "a finite number", _read_finite)
_FORMS = {
    bool: Form("", "", bool),
    int: Form("N", "a whole number", int),
    float: NUMBER,
    str: Form("TEXT", "a text", str),
    tuple[int, ...]: Form("X,...", "whole numbers separated by commas", partial(_split, read=int)),
    tuple[float, ...]: Form("X,...", "finite numbers separated by commas", partial(_split, read=_read_finite)),
    tuple[int, int]: Form("LOW,HIGH", "two whole numbers, as LOW,HIGH", partial(_split, read=int, length=2)),
    tuple[float, float]: Form(
        "LOW,HIGH", "two finite numbers, as LOW,HIGH", partial(_split, read=_read_finite, length=2)
    ),
    tuple[tuple[str, float], ...]: Form(
        "NAME=X,...", "names with a number, as NAME=X,NAME=X", partial(_split, read=_read_pair)
    ),
}


def _find_form(kind: Any) -> Form | None:
    """The form of a type: one of `_FORMS`, a `Literal`, or one of these or None; None for any other."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return choice_of(parts)
    others = [part for part in parts if part is not type(None)]
    if typing.get_origin(kind) not in (Union, types.UnionType) or len(others) != 1:
        return _FORMS.get(kind)
    form = _find_form(others[0])
    if form is None or "none" in typing.get_args(others[0]):
        return form
    read = form.read
    return dataclasses.replace(
        form, words=f"{form.words}, or none", read=lambda text: None if text == "none" else read(text)
    )


@dataclass(frozen=True)
class ConfigOption:
    """One field of a config, or of a config inside it: its option and description, and the config's own value.

    ``path`` names the fields that lead to it, outermost first.
    """

    flag: str
    path: tuple[str, ...]
    form: Form
    default: Any
    help: str


def find_options(config: Any, path: tuple[str, ...] = (), prefix: str = "--") -> Iterator[ConfigOption]:
    """Yield the options of a frozen dataclass, whose values are the defaults; fields that none can spell are left out.

    ``path`` and ``prefix`` are those of a config inside another one.
    """
    try:
        kinds = typing.get_type_hints(type(config))
    except NameError as error:
        raise UnaryError(f"the types of {type(config).__name__}'s fields cannot be found: {error}") from error
    helps = _read_attributes(type(config))
    for field in dataclasses.fields(config):
        value, here, flag = getattr(config, field.name), (*path, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from find_options(value, here, prefix if field.name in _NO_PREFIX else f"{flag}-")
        elif (form := _find_form(kinds[field.name])) is not None:
            yield ConfigOption(flag, here, form, value, helps.get(field.name, ""))


def _read_attributes(kind: type) -> dict[str, str]:
    """The descriptions in the "Attributes" section of a numpydoc docstring, by name, each as one line."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes\n----------\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^(\S.*)\n((?: .*\n?)*)", section, re.MULTILINE)
    return {
        name.strip(): " ".join(text.split()) for names, text in entries for name in names.partition(":")[0].split(",")
    }


def add_config_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup, config: Any) -> None:
    """Add the options of a config, to be read by `read_config_options` with the same config.

    Raises
    ------
    UnaryError
        If an option is there already.
    """
    for option in find_options(config):
        words = option.help.replace("`", "").replace("%", "%%")
        try:
            add_option(parser, option.flag, option.form, help=words, default=option.default, dest=option.flag)
        except argparse.ArgumentError as error:
            raise UnaryError(
                f"the field {'.'.join(option.path)} of {type(config).__name__} would be the option {option.flag}, "
                "which the command has already; rename the field"
            ) from error


def add_option(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    flag: str,
    form: Form,
    *,
    help: str,
    default: Any = None,
    dest: str | None = None,
) -> None:
    """Add one option; the help states the default unless it is None."""
    shown = help if default is None else f"{help} (default: {_show(flag, default)})".strip()
    if form.metavar:
        read = partial(_read, flag, form)
        parser.add_argument(flag, dest=dest, default=default, help=shown, metavar=form.metavar, type=read)
    else:
        parser.add_argument(flag, dest=dest, default=default, help=shown, action=argparse.BooleanOptionalAction)


def _read(flag: str, form: Form, text: str) -> Any:
    try:
        return form.read(text)
    except (ValueError, KeyError):
        raise UnaryError(f"{flag} needs {form.words}, not {text!r}") from None


def _show(flag: str, value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    if isinstance(value, tuple):
        return ",".join("=".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)
    return str(value)


def read_config_options(options: argparse.Namespace, config: Any) -> Any:
    """Return the config with what was given on the command line.

    Raises
    ------
    UnaryError
        If the config refuses it; the message names the options.
    """
    found = {option: vars(options)[option.flag] for option in find_options(config)}
    given = {option: value for option, value in found.items() if value != option.default}
    try:
        return replace_values(config, {option.path: value for option, value in given.items()})
    except ValueError as error:
        for option, value in given.items():  # the one that is wrong by itself, if there is one
            try:
                replace_values(config, {option.path: value})
            except ValueError as own:
                raise UnaryError(f"{option.flag}: {own}") from error
        raise UnaryError(f"{', '.join(option.flag for option in given)}: {error}") from error


def replace_values(config: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """Return the config with other values at these paths."""
    changes: dict[str, Any] = {}
    for name in {path[0] for path in values}:
        inside = {path[1:]: value for path, value in values.items() if path[0] == name}
        changes[name] = inside[()] if () in inside else replace_values(getattr(config, name), inside)
    return dataclasses.replace(config, **changes)


def add_device(parser: argparse.ArgumentParser, words: str | None = None) -> None:
    """Add ``--device``, of networks that are applied by default."""
    default = "cpu" if words is None else None
    words = words or "where networks are applied: cpu, cuda, cuda:1 or mps (default: cpu)"
    parser.add_argument("--device", default=default, metavar="DEVICE", type=_read_device, help=words)


def _read_device(text: str) -> str:
    """A device by torch's notation; whether it is there shows where it is used, on another computer perhaps."""
    if text != "cpu":
        from unary.training.devices import check_device

        try:
            check_device(text)
        except ValueError as error:
            raise UnaryError(f"--device: {error}") from None
    return text


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


@contextmanager
def keeping(out: Path | str, table: str) -> Iterator[None]:
    """Say what an interrupt has left, also when it is another program's that ends or loses its terminal."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has one
    ends = [end for end in known if main_thread and signal.getsignal(end) == signal.SIG_DFL]
    for end in ends:
        signal.signal(end, stop)
    try:
        yield
    except KeyboardInterrupt:
        print(f"unary: {out}: what was done is there, and {table} lists it", file=sys.stderr)
        raise
    finally:
        for end in ends:
            signal.signal(end, signal.SIG_DFL)


_REPORTS = ("report.html", "metrics.json")


def _holds_results(out: Path) -> bool:
    """Whether a folder is of `unary detect` or `score` over files; an archive has no page that could be replaced."""
    try:
        record = json.loads((out / "run.json").read_text(encoding="utf-8"))
        return record["notice"] == NOTICE and "kind" not in record
    except (OSError, ValueError, KeyError, TypeError):
        return False


def holding_reports(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return the run of a command whose report goes into the folder ``--out``: no other process writes there meanwhile.

    A report or table there that is not unary's, whose own say that they are not for diagnosis, is an `UnaryError`.
    """

    def held(options: argparse.Namespace) -> int:
        with locking(options.out):
            if _holds_results(options.out):
                raise UnaryError(
                    f"{options.out}: it holds results of `unary detect` or `score`, whose report.html would be "
                    "replaced; choose another --out"
                )
            for path in (options.out / name for name in _REPORTS):
                if path.exists() and not (path.is_file() and NOTICE.encode() in path.read_bytes()):
                    raise UnaryError(f"{path}: unary has not written it and does not replace it; choose another --out")
            return run(options)

    return held
