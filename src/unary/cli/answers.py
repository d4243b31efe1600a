"""What a command answers to a script (``--json``), and what it would do without doing it (``--dry-run``)."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unary.cli.options import read_path
from unary.files import replacing
from unary.records import NOTICE

_STANDARD_OUTPUT = "-"


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, for a command that gives its answer to `answer`."""
    words = "write the answer as JSON too; - puts it on standard output, and all words on standard error"
    parser.add_argument("--json", type=_read_target, metavar="FILE", help=words)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add ``--dry-run``."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")


def answer(options: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """Answer a script: the content is written when the command has ended, if it was asked for.

    A `Path` becomes text, and a number that is not finite null, which JSON has no word for.
    """
    options.answer = content


@contextlib.contextmanager
def answering(options: argparse.Namespace) -> Iterator[None]:
    """Write the answer of the command that runs in the block where ``--json`` says, if it has one."""
    target = getattr(options, "json", None)
    if target == _STANDARD_OUTPUT:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    else:
        yield
    content = getattr(options, "answer", None)
    if target is None or content is None:
        return
    text = json.dumps(_make_plain({"notice": NOTICE, **content}), indent=2, allow_nan=False) + "\n"
    if target == _STANDARD_OUTPUT:
        sys.stdout.write(text)
    else:
        with replacing(target) as partial:
            partial.write_text(text, encoding="utf-8")


def _read_target(text: str) -> Path | str:
    return text if text == _STANDARD_OUTPUT else read_path(text)


def _make_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _make_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
