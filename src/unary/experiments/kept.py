"""Arrays of a finished run in a file of its own, so that an interrupted experiment goes on from them."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.files import replacing

logger = logging.getLogger(__name__)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays by name; the file is whole or not there."""
    with replacing(path) as partial:
        np.savez(partial, **arrays)


def read_arrays(path: Path, *names: str) -> tuple[NDArray[Any], ...] | None:
    """Return the arrays of these names, or None where there is no file or only a damaged one, which a warning names."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return tuple(stored[name] for name in names)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        logger.warning("%s: not readable (%s); this run is done again", path, error)
        return None
