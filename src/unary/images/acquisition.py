"""Finding in a header how an image was acquired: enough to watch a scanner by, and nothing of the patient.

The station appears as a pseudonym, a hash of identifiers of which nobody can list all; of the date, the month.
What is missing, damaged or beyond belief is None.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from unary.errors import ImageError
from unary.images.attributes import Acquisition
from unary.images.dicom import find_intent
from unary.images.elements import Elements

ACQUISITION_ELEMENTS = (
    "Manufacturer", "ManufacturerModelName", "StationName", "DeviceSerialNumber", "SoftwareVersions",
    "PresentationIntentType", "AcquisitionDeviceProcessingDescription", "AcquisitionDeviceProcessingCode",
    "ExposureInuAs", "Exposure", "ExposureInmAs", "KVP", "BodyPartThickness", "AcquisitionDate",
    "ContentDate", "SeriesDate", "StudyDate", "SpecificCharacterSet",
)  # fmt: skip
_DATES = ("AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate")
_LONGEST = 64


def find_acquisition(elements: Elements) -> Acquisition:
    """Return what a header says of its acquisition; nothing in it is an error."""
    maker, model_name = _read_words(elements, "Manufacturer"), _read_words(elements, "ManufacturerModelName")
    own = [elements.find_text(name) or "" for name in ("DeviceSerialNumber", "StationName")]
    station = hash_identifier([maker or "", model_name or "", *own]) if any(own) else None
    names = ("AcquisitionDeviceProcessingCode", "AcquisitionDeviceProcessingDescription")
    micro = _read_number(elements, "ExposureInuAs", 1e7)
    plain = (_read_number(elements, name, 1e4) for name in ("ExposureInmAs", "Exposure"))
    return Acquisition(
        maker,
        model_name,
        station,
        _clean(", ".join(elements.read_texts("SoftwareVersions"))),
        find_intent(elements),
        next((found for name in names if (found := _read_words(elements, name))), None),
        next((found for found in (None if micro is None else micro / 1000, *plain) if found is not None), None),
        _read_number(elements, "KVP", 200.0),
        _read_number(elements, "BodyPartThickness", 400.0),
        _find_month(elements),
    )


def hash_identifier(parts: Sequence[str]) -> str:
    """Return a pseudonym of 12 hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _read_words(elements: Elements, keyword: str) -> str | None:
    return _clean(elements.find_text(keyword) or "")


def _clean(text: str) -> str | None:
    kept = "".join(letter for letter in text if letter.isprintable()).strip()
    return kept[:_LONGEST].rstrip() or None


def _read_number(elements: Elements, keyword: str, most: float) -> float | None:
    """A positive number of at most so much; None where something else stands there."""
    try:
        number = elements.read_number(keyword)
    except ImageError:
        return None
    return number if number is not None and 0 < number <= most else None


def _find_month(elements: Elements) -> str | None:
    for keyword in _DATES:
        found = re.fullmatch(r"(\d{4})\.?(\d{2})\.?\d{2}", elements.find_text(keyword) or "")
        if found is not None and 1 <= int(found[2]) <= 12:
            return f"{found[1]}-{found[2]}"
    return None
