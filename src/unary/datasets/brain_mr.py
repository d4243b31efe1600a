"""Brain MR slices in the published one-class split: ``train/normal``, ``test/normal`` and ``test/abnormal``.

1,000 normal slices to learn from; 600 normal ones and 600 with a tumour (glioma or meningioma) to test. No patient is
known, and pictures are there more than once, also on both sides of the split: see `unary.datasets.doubles`.
"""

from __future__ import annotations

from pathlib import Path

from unary.datasets.folder import read_classes
from unary.records import Label, Manifest, ManifestRow

_CLASSES: dict[str, Label] = {"train/normal": "negative", "test/normal": "negative", "test/abnormal": "positive"}


def read_brain_mr(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Read the data set into a manifest.

    Every picture counts as a patient of its own. ``image_id`` begins with ``train/`` or ``test/``, by which
    `is_for_training` tells the side of the published split.

    Returns
    -------
    tuple
        The manifest, copies included, and notices.

    Raises
    ------
    ManifestError
        If one of the three sub-folders is missing or empty.
    """
    rows, notices = read_classes(folder, _CLASSES)
    told = "no patient is known: each picture counts as one, so that intervals are too narrow"
    return Manifest(rows), (*notices, told)


def is_for_training(row: ManifestRow) -> bool:
    """Return whether a row of `read_brain_mr` is on the training side of the published split."""
    return row.image_id.startswith("train/")
