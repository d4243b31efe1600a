"""Run the tutorials, and keep what they print: `python docs/_site/tutorials.py [NAME ...]` writes it anew.

A tutorial is a page with code cells. ``docs/tutorials/outputs/NAME.txt`` holds what its cells print; a test runs the
cells and compares, numbers to within 2 %: so an example whose output has changed fails.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from myst_nb.core.read import read_myst_markdown_notebook
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "tutorials"
OUTPUTS = TUTORIALS / "outputs"
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def find_tutorials() -> list[Path]:
    """Return the pages with code cells."""
    return [path for path in sorted(TUTORIALS.glob("*.md")) if "{code-cell}" in path.read_text(encoding="utf-8")]


def run_tutorial(page: Path) -> str:
    """Run the cells of a page in an empty folder and return what they print, cell by cell; raise where one fails."""
    notebook: Any = read_myst_markdown_notebook(page.read_text(encoding="utf-8"))
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    printed = [_read_text(cell) for cell in notebook.cells if cell.cell_type == "code"]
    return "\n---\n".join(text for text in printed if text) + "\n"


def _read_text(cell: Any) -> str:
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(output.text)
        elif output.output_type == "execute_result":
            parts.append(output.data.get("text/plain", ""))
    return "\n".join(part.rstrip() for part in parts)


def find_change(before: str, now: str, *, tolerance: float = 0.02) -> str | None:
    """Return the first line that says something else than before; numbers may differ a little, words may not.

    >>> find_change("score 1.00 of 3", "score 1.01 of 3"), find_change("score 1.00", "score 1.10")
    (None, "'score 1.00' has become 'score 1.10'")
    """
    old, new = before.splitlines(), now.splitlines()
    for one, other in zip(old, new, strict=False):
        numbers = [[float(word) for word in _NUMBER.findall(line)] for line in (one, other)]
        same = len(numbers[0]) == len(numbers[1]) and all(
            abs(a - b) <= tolerance * max(abs(a), abs(b)) for a, b in zip(*numbers, strict=True)
        )
        if not same or _NUMBER.sub("#", one) != _NUMBER.sub("#", other):
            return f"{one!r} has become {other!r}"
    return None if len(old) == len(new) else f"{len(old)} lines have become {len(new)}"


if __name__ == "__main__":
    OUTPUTS.mkdir(exist_ok=True)
    for tutorial in find_tutorials():
        if len(sys.argv) == 1 or tutorial.stem in sys.argv[1:]:
            (OUTPUTS / f"{tutorial.stem}.txt").write_text(run_tutorial(tutorial), encoding="utf-8")
            print(f"{tutorial.stem}: run")
