"""The exceptions that unary raises on purpose.

Everything a user can cause derives from `UnaryError`, so that one ``except`` reports bad input in one clear line and
leaves programming errors alone. Messages say what must hold, what came, which file, and the likely cause.
"""

from __future__ import annotations

import importlib
import math
import re
import traceback
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

Reason = Literal[
    "NOT_READABLE",
    "NOT_AN_IMAGE",
    "NOT_MG",
    "SECONDARY_CAPTURE",
    "MULTIFRAME",
    "COLOUR",
    "UNSUPPORTED_SYNTAX",
    "CORRUPT_PIXELS",
    "BAD_HEADER",
    "BLANK",
    "TOO_LARGE",
    "TOO_SMALL",
    "TIMEOUT",
    "MEMORY_LIMIT",
    "CRASH",
    "UNEXPECTED",
    "FOR_PROCESSING_MODEL_MISMATCH",
    "FOR_PRESENTATION_MODEL_MISMATCH",
    "UNITS_MODEL_MISMATCH",
    "NO_RESCALE",
    "NO_SPACING",
    "IMPLAUSIBLE_SPACING",
    "IMPLANT",
    "MAGNIFICATION",
    "PARTIAL_VIEW",
    "QC_IMAGE",
    "LOCALIZER",
    "SPECIMEN",
    "SYNTHETIC_2D",
    "CONTRAST_ENHANCED",
    "OUT_OF_DOMAIN",
]
REASONS: tuple[Reason, ...] = get_args(Reason)  # each is explained in docs/input.md


class UnaryError(Exception):
    """Base of all errors about input, data or use; the message is meant for a person."""


class ImageError(UnaryError):
    """One image cannot be read or cannot be used; other images are not affected.

    Attributes
    ----------
    reason
        The cause for a program to act on; None where none of `REASONS` fits.
    """

    def __init__(self, message: str, *, reason: Reason | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class DicomResultError(ImageError):
    """Of an image's DICOM results, those cannot be made that the message says; what was found in it is not affected.

    Attributes
    ----------
    written
        The results that were made all the same.
    """

    def __init__(self, message: str, written: tuple[Path, ...] = ()) -> None:
        super().__init__(message)
        self.written = written


def explain_unexpected(error: Exception, name: str) -> ImageError:
    """Return what becomes of one image when a library raises something on it.

    The kind of the error and its place are told, not its text: that may quote a patient's data. unary's own errors stay
    as they are.
    """
    if isinstance(error, ImageError):
        return error
    if isinstance(error, UnaryError):
        return ImageError(f"{name}: {str(error).removeprefix(f'{name}: ')}", reason="UNEXPECTED")
    if isinstance(error, MemoryError) or any(words in str(error) for words in ("allocate memory", "out of memory")):
        return ImageError(f"{name}: there is not enough memory for it", reason="MEMORY_LIMIT")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({'/'.join(Path(frames[-1].filename).parts[-2:])}, line {frames[-1].lineno})" if frames else ""
    return ImageError(f"{name}: an unexpected {type(error).__name__}{place}; please report it", reason="UNEXPECTED")


def hide_credentials(text: str) -> str:
    """Return a text without the names and passwords that stand in URLs.

    >>> hide_credentials("to http://me:secret@host:80/a@b, quickly")
    'to http://host:80/a@b, quickly'
    """
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


class ManifestError(UnaryError):
    """A manifest or a data-set folder is malformed or contradicts itself."""


class ProfileError(UnaryError):
    """A profile is asked for that does not exist."""


class DetectorError(UnaryError):
    """A detector is unknown, is not fitted, or cannot do what is asked of it."""


class SplitError(UnaryError):
    """A split would put one patient on two sides, or would leave a side empty."""


class TrainingError(UnaryError):
    """Training cannot start or has diverged."""


class CalibrationError(UnaryError):
    """Operating points cannot be set, or one is asked for that the model does not have."""


class BundleError(UnaryError):
    """A model folder is incomplete, foreign or damaged."""


class CompilerError(UnaryError):
    """A C source of this package cannot be compiled, kept or loaded here."""


class MissingPackageError(UnaryError):
    """An optional package is needed for what was asked."""


def require(package: str, *, extra: str) -> ModuleType:
    """Import an optional package by name, or say which of unary's extras (`MissingPackageError`) installs it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"the package {package!r} is needed for this but is not installed; run: pip install 'unary[{extra}]'"
        ) from error


def require_positive(config: object, *names: str) -> None:
    """Refuse by a `ValueError` fields that are not positive and finite, numbers or tuples of some; None may pass."""
    for name in names:
        value = getattr(config, name)
        parts = value if isinstance(value, tuple) else (value,)
        positive = [isinstance(part, Real) and 0 < float(part) < math.inf for part in parts]
        if value is not None and not (positive and all(positive)):
            raise ValueError(f"{name} must be positive and finite, got {value}")
