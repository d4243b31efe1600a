"""What is known of an image from its header: how it was made, and nothing of the patient. Values; no reader.

Whoever reads images itself needs `unary.images.headers` and `unary.images.dicom`, which import pydicom.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

_SECONDARY_CAPTURE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.[1-4])?")  # and its multi-frame kinds
# Objects whose frames carry spacing and rescale each for itself: enhanced CT, MR, PET, angiography, tomosynthesis,
# ultrasound volumes, whole slides, parametric maps.
MULTIFRAME_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{ending}"
    for ending in (
        "2.1", "2.2", "4.1", "4.3", "4.4", "6.2", "12.1.1", "12.2.1", "13.1.1", "13.1.2", "13.1.3", "13.1.4", "13.1.5",
        "30", "77.1.6", "128.1", "130",
    )
)  # fmt: skip


@dataclass(frozen=True)
class SlicePlace:
    """Where a slice lies: in which series and frame of reference, its plane's normal, and how far along it, in mm."""

    series_uid: str | None = field(repr=False)
    frame_uid: str | None = field(repr=False)
    normal: tuple[float, float, float]
    position_mm: float


@dataclass(frozen=True)
class DicomHeader:
    """What a manifest needs of a DICOM file, read without its pixels.

    Attributes
    ----------
    patient_key
        The first 12 hexadecimal digits of the SHA-256 of the Patient ID; None when there is none. It joins the images
        of a patient without showing the identifier, but it is not anonymous: who can list all identifiers can hash
        them too.
    instance_uid
        SOP Instance UID.
    place
        Of a slice; None where it is not stated.
    """

    shape: tuple[int, int]
    laterality: str | None
    view: str | None
    patient_key: str | None = field(repr=False)
    instance_uid: str | None = field(repr=False)
    place: SlicePlace | None = None


@dataclass(frozen=True)
class Acquisition:
    """How an image was acquired, as its header says; None where it does not.

    Attributes
    ----------
    station
        Pseudonym of the device: a hash of its manufacturer, model, serial number and station name.
    software
        Versions, joined by commas.
    intent
        As in `unary.records.Image`.
    processing
        Code or description of the processing by the device.
    exposure_mas
        Exposure in mAs: Exposure in uAs / 1000 where it is stated, else Exposure.
    kvp
        Peak voltage in kV.
    thickness_mm
        Of the compressed breast (Body Part Thickness).
    month
        Of the acquisition, as ``"2026-03"``.
    """

    manufacturer: str | None = None
    model_name: str | None = None
    station: str | None = None
    software: str | None = None
    intent: str | None = None
    processing: str | None = None
    exposure_mas: float | None = None
    kvp: float | None = None
    thickness_mm: float | None = None
    month: str | None = None


@dataclass(frozen=True)
class Attributes:
    """What is known of one image before its pixels are decoded; what is not told below is as in `unary.records.Image`.

    Attributes
    ----------
    raster
        Whether it is no DICOM object; then nothing else is known but ``shape`` and ``lossy``.
    sop_class
        What kind of DICOM object it is, a UID.
    modality
        DICOM's word for it, such as ``"CT"``; None when it is not a code of two to sixteen capitals.
    missing_decoder
        Why the transfer syntax cannot be decoded here, with the package that would; None where it can.
    bits
        Bits of a stored value.
    misstated_spacing
        Where the pixel spacing is unknown though something is stated: what, and why it cannot be used.
    magnification
        Estimated Radiographic Magnification Factor.
    units
        What the values of a CT or PET slice are, such as ``"HU"`` or ``"BQML"``; None for other images, and where it is
        not stated.
    lossy
        Whether it has been compressed with loss.
    flags
        The reasons of those `unary.profiles.profile.HeaderFlag` that the header bears. That one is missing is no proof
        of the contrary: many devices leave such elements out.
    place
        Of a slice; None where it is not stated.
    study
        `hash_uid` of the Study Instance UID: joins the images of a study.
    patient
        `DicomHeader.patient_key`.
    acquisition
        How it was acquired; None of rasters.
    """

    shape: tuple[int, int]
    raster: bool = False
    sop_class: str | None = None
    modality: str | None = None
    frames: int = 1
    missing_decoder: str | None = None
    intent: str | None = None
    manufacturer: str | None = None
    model_name: str | None = None
    spacing_mm: tuple[float, float] | None = None
    misstated_spacing: tuple[str, ...] = ()
    bits: int | None = None
    magnification: float | None = None
    units: str | None = None
    lossy: bool = False
    flags: tuple[str, ...] = ()
    place: SlicePlace | None = field(default=None, repr=False)
    laterality: str | None = None
    view: str | None = None
    study: str | None = field(default=None, repr=False)
    patient: str | None = field(default=None, repr=False)
    acquisition: Acquisition | None = field(default=None, repr=False)

    @property
    def is_capture(self) -> bool:
        """Whether it is a secondary capture: a screenshot, or a scanned film."""
        return _SECONDARY_CAPTURE.fullmatch(self.sop_class or "") is not None

    @property
    def is_multiframe(self) -> bool:
        """Whether it is an object of several frames, even if it holds just one."""
        return self.frames != 1 or self.sop_class in MULTIFRAME_CLASSES


def hash_uid(uid: str) -> str:
    """Return what stands for a UID in results, names, logs and metrics: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


def clean_text(text: str) -> str | None:
    """Return a maker's name as it may stand in a message: of at most 64 printable characters; None when none is left.

    >>> clean_text("HOLOGIC, Inc.\\n")
    'HOLOGIC, Inc.'
    """
    return "".join(letter for letter in text if letter.isprintable()).strip()[:64].rstrip() or None
