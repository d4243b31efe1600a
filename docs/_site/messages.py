"""The messages of the source, which the page on troubleshooting quotes: `python docs/_site/messages.py` lists them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "unary"
PAGE = Path(__file__).parents[1] / "howto" / "troubleshooting.md"
_GAP = "…"  # stands for what a message fills in


def read_messages() -> Iterator[str]:
    """Yield every text of the source but docstrings, an f-string with a gap for each value."""
    for path in sorted(SOURCE.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else _GAP for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def find_quotes(text: str) -> list[str]:
    """Return the messages that a page quotes: its headings of the third level."""
    return [quote.strip().strip("`") for quote in re.findall(r"^### (.*)$", text, re.MULTILINE)]


def find_unknown(text: str) -> list[str]:
    """Return the quotes of a page that no text of the source holds."""
    known = "\n".join(read_messages())
    return [quote for quote in find_quotes(text) if quote not in known]


if __name__ == "__main__":
    print(*sorted({text for text in read_messages() if len(text) > 40 and " " in text and "\n" not in text}), sep="\n")
