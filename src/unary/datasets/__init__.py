"""Data sets -> manifests, and how patients are divided. A new data set is one function, and one line here."""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unary.errors import ManifestError

if TYPE_CHECKING:
    from unary.records import Manifest

READERS: dict[str, str] = {
    "folder": "unary.datasets.folder:read_folder",
    "inbreast": "unary.datasets.inbreast:read_inbreast",
    "cbis_ddsm": "unary.datasets.cbis_ddsm:read_cbis_ddsm",
    "mias": "unary.datasets.mias:read_mias",
    "brain_mr": "unary.datasets.brain_mr:read_brain_mr",
    "chest_films": "unary.datasets.chest_films:read_chest_films",
}
"""By name, the module and the function that makes a manifest of a data set's folder, with a line for each image that it
leaves out; imported when it is asked for."""

DEFAULT_DATA_SET = "inbreast"  # of the paper


def read_data_set(kind: str, path: Path, *, annotation: Path | None = None) -> tuple[Manifest, tuple[str, ...]]:
    """Return the manifest of a data set, checked as every manifest is, and notices for the reader of its results.

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
        If there is no such data set, it cannot be read, it has no use for the annotation, or its images, labels or
        lesions contradict each other (`unary.datasets.manifest.check_manifest`).
    """
    from unary.datasets.manifest import check_manifest

    place = {**READERS, "manifest": "unary.datasets.manifest:read_manifest_noted"}.get(kind.replace("-", "_"))
    if place is None:
        raise ManifestError(f"no data set is called {kind!r}; there are {', '.join(READERS)}")
    module, _, name = place.partition(":")
    read: Any = getattr(importlib.import_module(module), name)
    if annotation is not None and "annotation" not in inspect.signature(read).parameters:
        raise ManifestError(f"--annotation goes with {DEFAULT_DATA_SET} alone, not with {kind}")
    manifest, notices = read(path) if annotation is None else read(path, annotation=annotation)
    if kind == "manifest":  # which is checked in reading
        return manifest, notices
    files = [os.path.relpath(row.path or row.image_id, path) for row in manifest.rows]
    manifest, more = check_manifest(manifest, files)
    return manifest, (*notices, *more)
