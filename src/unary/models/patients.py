"""Whom a model has seen, without saying whom: hashes of patients' identifiers under a key that no model holds.

Hospital numbers are so few that a plain hash of one is found again by trying them all. Here every hash takes a secret
key of 32 bytes (HMAC-SHA-256, RFC 2104), which stays at the site: in the file that ``UNARY_PATIENT_KEY`` names, else in
``$XDG_DATA_HOME/unary/patients.key``, else in ``~/.local/share/unary/patients.key``. A model keeps the hashes and a
name of the key, from which the key cannot be found. Whoever has the key can tell whether the model has seen a patient;
without it nobody can, and evaluations and calibrations say so.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from unary.errors import UnaryError
from unary.files import write_durably

logger = logging.getLogger(__name__)

VARIABLE = "UNARY_PATIENT_KEY"
_KEY_BYTES = 32


@dataclass(frozen=True)
class PatientKey:
    """The site's secret, and what models call it."""

    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """Of the key, shape of 16 hexadecimal digits; it tells keys apart and reveals nothing of them."""
        return hmac.new(self.secret, b"unary: the name of this key", hashlib.sha256).hexdigest()[:16]

    def hash_patients(self, patients: Iterable[str]) -> tuple[str, ...]:
        """Return the sorted hashes of distinct patient identifiers."""
        found = (hmac.new(self.secret, patient.encode(), hashlib.sha256) for patient in set(patients))
        return tuple(sorted(one.hexdigest() for one in found))


@dataclass(frozen=True)
class SeenPatients:
    """The patients that a model was fitted on, those held out included.

    Attributes
    ----------
    count
        How many.
    key
        The name of the `PatientKey` of the hashes; None where none could be kept at the site.
    hashes
        Sorted; none without a key.
    """

    count: int
    key: str | None
    hashes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.key is not None and not re.fullmatch("[0-9a-f]{16}", self.key):
            raise ValueError("key must be 16 hexadecimal digits")
        if list(self.hashes) != sorted(set(self.hashes)) or len(self.hashes) != (self.count if self.key else 0):
            raise ValueError("hashes must be as many as patients, distinct and sorted; without a key there are none")
        if not all(re.fullmatch("[0-9a-f]{64}", one) for one in self.hashes):
            raise ValueError("hashes must be SHA-256, 64 hexadecimal digits each")


def find_key_file() -> Path | None:
    """Return where the site's key is, or is to be; None where the system names no home."""
    named, data = os.environ.get(VARIABLE), os.environ.get("XDG_DATA_HOME")
    if named:
        return Path(named)
    try:
        return (Path(data) if data else Path.home() / ".local" / "share") / "unary" / "patients.key"
    except RuntimeError:  # no home
        return None


def read_key() -> PatientKey | None:
    """Return the site's key; None where there is none.

    Raises
    ------
    UnaryError
        If the file is there and is no key, or must not be read.
    """
    path = find_key_file()
    try:
        text = "" if path is None else path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise UnaryError(f"{path}: the site's key for patients cannot be read ({error.strerror})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UnaryError(f"{path}: not readable as a key for patients ({error}); {VARIABLE} names another") from error
    if path is None:
        return None
    if not re.fullmatch(f"[0-9a-f]{{{2 * _KEY_BYTES}}}", text):
        raise UnaryError(
            f"{path}: a key for patients is {2 * _KEY_BYTES} hexadecimal digits, and this is none; move it away for a "
            f"new one, which knows no earlier model, or name another in {VARIABLE}"
        )
    if os.name == "posix" and path.stat().st_mode & 0o077:
        logger.warning("%s: others may read the site's key for patients; chmod 600 %s", path, path)
    return PatientKey(bytes.fromhex(text))


def make_key() -> PatientKey | None:
    """Return the site's key, and make one where there is none; None, and a warning, where none can be kept.

    Raises
    ------
    UnaryError
        As `read_key`.
    """
    path = find_key_file()
    found = read_key()
    if found is not None:
        return found
    try:
        if path is None:
            raise OSError("there is no home directory")
        new = path.with_name(f"{path.name}.{os.getpid()}")
        write_durably(new, f"{secrets.token_hex(_KEY_BYTES)}\n".encode(), mode=0o600)
        try:
            with suppress(FileExistsError):  # another process was first, and its key is the one
                os.link(new, path)
        finally:
            new.unlink()
    except OSError as error:
        logger.warning(
            "no key for patients can be kept at %s (%s): the model will not be able to tell whom it has seen; name a "
            "file that can be written in %s",
            path or "~",
            error.strerror or error,
            VARIABLE,
        )
        return None
    return read_key()


def note_patients(patients: Collection[str], key: PatientKey | None) -> SeenPatients:
    """Return what a model keeps of the patients that it was fitted on."""
    distinct = set(patients)
    if key is None:
        return SeenPatients(len(distinct), None, ())
    return SeenPatients(len(distinct), key.name, key.hash_patients(distinct))


def count_seen(seen: SeenPatients, patients: Iterable[str]) -> int | None:
    """Return how many of these patients a model has seen; None, and a warning, where that cannot be told here.

    Raises
    ------
    UnaryError
        As `read_key`.
    """
    key = read_key() if seen.key is not None else None
    if key is not None and key.name == seen.key:
        return len(set(key.hash_patients(patients)) & set(seen.hashes))
    logger.warning("%s", describe_unknown(seen))
    return None


def describe_unknown(seen: SeenPatients) -> str:
    """Say that it cannot be told here whether a model has seen certain patients, and why."""
    why = "it was fitted without a key for patients"
    if seen.key is not None:
        why = f"the key for patients of the site that fitted it ({seen.key}) is not here, see {VARIABLE}"
    return f"whether the model has seen these patients cannot be told here: {why}"
