"""What the objects of a whole study are made of: its images, and what became of each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset

from unary.errors import ImageError, Reason
from unary.images.decoding import reading_dicom
from unary.images.dicom import find_spacing
from unary.images.elements import open_dicom
from unary.outputs.dicom import StudyKind
from unary.outputs.dicom.header import find_order, name_view
from unary.outputs.dicom.run import Run
from unary.records import Finding, OperatingPoint

State = Literal["examined", "not scored", "refused", "failed"]

# What goes wrong with an image; all other reasons say that it is none for the model.
_FAILURES: frozenset[Reason] = frozenset(
    ("NOT_READABLE", "CORRUPT_PIXELS", "TIMEOUT", "MEMORY_LIMIT", "CRASH", "UNEXPECTED")
)
_SPACING = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelSpacingCalibrationType",
            "EstimatedRadiographicMagnificationFactor")  # fmt: skip


@dataclass(frozen=True)
class StudyImage:
    """One image of a study and what became of it.

    Attributes
    ----------
    source
        Its header, from `unary.outputs.dicom.source.read_source`.
    sha256
        Of the bytes of its file.
    state
        ``examined``; ``not scored``: examined, and nothing of it could be scored; ``refused``: it is no image for the
        model; ``failed``: something went wrong.
    spacing_mm
        Of rows and columns, as the file states it.
    findings, image_score, image_p_value, out_of_domain, notes
        As in `unary.records.Detection`.
    reason, detail
        Why it was refused or failed: a code and a sentence.
    key
        That of its own objects (`unary.outputs.dicom.header.hash_case`); empty where it has none.
    """

    source: Dataset = field(repr=False)
    sha256: str
    state: State
    spacing_mm: tuple[float, float] | None = None
    findings: tuple[Finding, ...] = ()
    image_score: float | None = None
    image_p_value: float | None = None
    out_of_domain: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""
    key: str = ""

    @property
    def was_examined(self) -> bool:
        """Whether it has a score."""
        return self.state == "examined"

    @property
    def name(self) -> str:
        """Side and view, such as ``RCC``, or ``image`` where neither is known."""
        return name_view(self.source) or "image"


@dataclass(frozen=True)
class StudyCase:
    """What an object of a study is made of. Its images are in the order of hanging: see `gather_study`."""

    images: tuple[StudyImage, ...]
    point: OperatingPoint | None
    run: Run
    kind: StudyKind
    key: str
    number: int = 1

    @property
    def source(self) -> Dataset:
        """The header of the first image, whose patient and study are the object's."""
        return self.images[0].source

    @property
    def examined(self) -> tuple[StudyImage, ...]:
        """The images that have a score."""
        return tuple(image for image in self.images if image.was_examined)

    @property
    def left(self) -> tuple[StudyImage, ...]:
        """The images that have none."""
        return tuple(image for image in self.images if not image.was_examined)


def gather_study(images: Sequence[StudyImage], point: OperatingPoint | None, run: Run, kind: StudyKind) -> StudyCase:
    """Return the case of a study: its images by view, and the key that stands for all of it in identifiers.

    Raises
    ------
    ValueError
        If there is no image, or they are of several studies or patients.
    """
    if len({identify_study(image.source) for image in images}) != 1:
        raise ValueError(f"images of one study and one patient are needed, got {len(images)} of others or none")
    ordered = tuple(sorted(images, key=lambda image: (find_order(image.source), image.sha256)))
    parts = [
        (image.sha256, image.state, image.findings, image.image_score, image.image_p_value, image.out_of_domain,
         image.notes, image.reason, image.detail, image.key)
        for image in ordered
    ]  # fmt: skip
    key = hashlib.sha256(repr((parts, point, run.identity, run.codes, run.moment.isoformat())).encode()).hexdigest()
    return StudyCase(ordered, point, run, kind, key)


def identify_study(source: Dataset) -> str:
    """Return a hash that tells studies apart, and patients that share a Study Instance UID by mistake."""
    patient = source.get_item("PatientID").value  # as it is stored: not decoded
    parts = (str(source.StudyInstanceUID), patient if isinstance(patient, bytes) else str(patient or "").encode())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def name_state(reason: str) -> State:
    """Say of a reason why an image has no result whether it was refused or failed."""
    return "failed" if reason in _FAILURES or not reason else "refused"


def read_stated_spacing(path: Path) -> tuple[float, float] | None:
    """Return the pixel spacing that a file states, or None."""
    try:
        with reading_dicom(path):
            return find_spacing(open_dicom(path, _SPACING))
    except ImageError:
        return None
