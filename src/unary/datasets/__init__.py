"""Data sets -> manifests, and how patients are divided. A new data set is one function, and one line here."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from unary.errors import ManifestError

if TYPE_CHECKING:
    from unary.records import Manifest

READERS: dict[str, str] = {
    "folder": "unary.datasets.folder:read_folder",
    "inbreast": "unary.datasets.inbreast:read_inbreast",
    "cbis_ddsm": "unary.datasets.cbis_ddsm:read_cbis_ddsm",
    "mias": "unary.datasets.mias:read_mias",
}
"""By name, the module and the function that makes a manifest of a data set's folder, with a line for each image that it
leaves out; imported when it is asked for."""

DEFAULT_DATA_SET = "inbreast"  # of the paper


def read_data_set(kind: str, path: Path, *, annotation: Path | None = None) -> tuple[Manifest, tuple[str, ...]]:
    """Return the manifest of a data set, and notices for the reader of its results.

    Parameters
    ----------
    kind
        A name of `READERS`, where ``-`` is as good as ``_``; or ``"manifest"``, for one that has been written.
    path
        Of the folder, or of the manifest.
    annotation
        A table that says which images list only part of their lesions, for data sets that have one.

    Raises
    ------
    ManifestError
        If there is no such data set, it cannot be read, or it has no use for the annotation.
    """
    places = {**READERS, "manifest": "unary.datasets.manifest:read_manifest"}
    place = places.get(kind.replace("-", "_"))
    if place is None:
        raise ManifestError(f"no data set is called {kind!r}; there are {', '.join(READERS)}")
    module, _, name = place.partition(":")
    read = getattr(importlib.import_module(module), name)
    if annotation is not None:
        if "annotation" not in inspect.signature(read).parameters:
            raise ManifestError(f"--annotation goes with {DEFAULT_DATA_SET} alone, not with {kind}")
        found: tuple[Manifest, tuple[str, ...]] = read(path, annotation=annotation)
        return found
    answer = read(path)
    return (answer, ()) if kind == "manifest" else answer
