"""Children's chest films (Kermany et al. 2018): ``normal`` and ``abnormal``, which is pneumonia.

The names hold the patient: ``person123_bacteria_456`` is of ``person123``, ``IM-0115-0001`` of ``IM-0115`` and
``NORMAL2-IM-0516-0001-0002`` of ``NORMAL2-IM-0516``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

from unary.datasets.annotation import count_names
from unary.datasets.folder import read_classes
from unary.records import Label, Manifest

RESERVED_SHARE = 3
"""One patient in so many is reserved for testing."""

_CLASSES: dict[str, Label] = {"normal": "negative", "abnormal": "positive"}
_PATIENT = re.compile(r"(person\d+)_|((?:NORMAL2-)?IM-\d+)-")


def read_chest_films(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Read the data set into a manifest, the patient by the name of each file.

    Returns
    -------
    tuple
        The manifest, and notices: what was left out, and names that hold no patient, whose image counts as one.

    Raises
    ------
    ManifestError
        If ``normal`` or ``abnormal`` is missing or empty.
    """
    rows, notices = read_classes(folder, _CLASSES)
    patients = [find_patient(Path(row.image_id).name) for row in rows]
    nameless = [row.image_id for row, patient in zip(rows, patients, strict=True) if patient is None]
    notices += count_names("image", nameless, "whose name holds no patient, and which counts as one")
    named = zip(rows, patients, strict=True)
    return Manifest(tuple(dataclasses.replace(row, patient_id=found or row.image_id) for row, found in named)), notices


def find_patient(name: str) -> str | None:
    """Return the patient in the name of a film, or None.

    >>> find_patient("person123_bacteria_456"), find_patient("NORMAL2-IM-0516-0001"), find_patient("film7")
    ('person123', 'NORMAL2-IM-0516', None)
    """
    found = _PATIENT.match(name)
    return None if found is None else found[1] or found[2]


def is_reserved(patient_id: str) -> bool:
    """Return whether a patient is of the third that nothing is chosen on: by a hash, the same on every machine.

    >>> [name for name in ("person1", "person2", "person3", "IM-0115", "IM-0117") if is_reserved(name)]
    ['person1', 'IM-0115']
    """
    return int(hashlib.sha256(patient_id.encode()).hexdigest(), 16) % RESERVED_SHARE == 0
