"""Structured logs, one JSON object a line, without patients' data.

The node's own lines hold an event, hashed UIDs, counts and reason codes. Packages underneath, whose lines quote names
and addresses with queries, are silenced; of an error that nobody has foreseen the kind is told, never the text.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

NOISY = (
    "pydicom", "pynetdicom", "urllib3", "requests", "charset_normalizer", "uvicorn", "starlette", "asyncio",
    "highdicom", "PIL", "matplotlib",
)  # fmt: skip


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; of an exception it tells the kind alone."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=True, default=str)


@contextmanager
def logging_as_json(level: int = logging.INFO) -> Iterator[None]:
    """Let all logs go to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    level_before = root.level
    root.setLevel(logging.WARNING)
    logging.getLogger("unary").setLevel(level)
    # Batches name files, which the node has named itself; their warnings repeat what the books say of each image.
    batch = logging.getLogger("unary.clinic.batch")
    batch.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.handlers = before
        root.setLevel(level_before)
        logging.getLogger("unary").setLevel(logging.NOTSET)
        batch.setLevel(logging.NOTSET)
