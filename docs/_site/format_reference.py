"""Tables of the fields of dataclasses: ``{unary-fields} unary.records.Finding`` in a page."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def describe_fields(kind: type) -> list[tuple[str, str, str]]:
    """Return name, type and description of every field of a dataclass, the last from "Attributes" of its docstring."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes\n----------\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^(\S.*)\n((?: .*\n?)*)", section, re.MULTILINE)
    texts = {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}
    return [
        (field.name, show_type(typing.get_type_hints(kind)[field.name]), texts.get(field.name, ""))
        for field in dataclasses.fields(kind)
    ]


def show_type(kind: Any) -> str:
    """Return a type as JSON has it: no module names, ``list`` for tuples."""
    text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "None")
    text = re.sub(r"\btuple\b", "list", text)
    return "list (array)" if text.startswith(("ndarray", "list[Any, dtype")) else text


class Fields(SphinxDirective):
    """The fields of one dataclass, by its full name."""

    required_arguments = 1

    def run(self) -> list[Any]:
        """Return the table."""
        module, _, name = self.arguments[0].rpartition(".")
        lines = ["| field | type | what it is |", "|---|---|---|"]
        for field, kind, text in describe_fields(getattr(importlib.import_module(module), name)):
            shown = re.sub(r"``([^`]*)``", r"`\1`", text).replace("|", r"\|")
            lines.append(f"| `{field}` | `{kind.replace('|', 'or')}` | {shown} |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("unary-fields", Fields)
    return {"parallel_read_safe": True}
