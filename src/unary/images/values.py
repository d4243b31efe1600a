"""What the stored values of a DICOM image mean: which are padding, what the modality transform makes of them, polarity.

Rescale, modality tables and padding are those of PS3.3 C.11.1 and C.7.5.1.1.2; the sign of raw images is that of
C.8.11.3. Units are those of CT (C.8.2.1) and PET (C.8.9.1). A contradiction that can be resolved is noted, another one
is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException

from unary.errors import ImageError
from unary.images.checks import DAMAGE, build_refusal, convert_floats
from unary.images.decoding import PixelFormat
from unary.images.elements import Elements

CT, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.128"
UNIT_ELEMENTS = ("SOPClassUID", "RescaleType", "Units", "SUVType", "DecayCorrection", "CorrectedImage")
_UPTAKE = ("GML", "CM2ML")  # SUV by weight or lean mass, and by body surface
# Factors of makers from what is shown to what was measured: group, creator of the block, element, and a name.
_OWN_FACTORS = (
    (0x2005, "Philips MR Imaging DD 001", 0x0E, "Philips' scale slope of MR (2005,100E)"),
    (0x7053, "Philips PET Private Group", 0x00, "Philips' factor to SUV (7053,1000)"),
    (0x7053, "Philips PET Private Group", 0x09, "Philips' factor to Bq/ml (7053,1009)"),
)
_FLOAT_PADDING = {"FloatPixelData": "FloatPixelPadding", "DoubleFloatPixelData": "DoubleFloatPixelPadding"}


def find_padding(elements: Elements, words: NDArray[Any], form: PixelFormat) -> NDArray[np.bool_] | None:
    """Return the pixels that the file declares to be padding, of their words; None when there are none."""
    prefix = _FLOAT_PADDING.get(form.keyword, "PixelPadding")
    value, limit = f"{prefix}Value", f"{prefix}RangeLimit"
    if form.keyword in _FLOAT_PADDING and "PixelPaddingValue" in elements:
        elements.note(f"PixelPaddingValue goes with whole numbers, not with {form.keyword}: it is not used")
    if value not in elements and limit in elements:
        elements.note(f"{limit} stands without {value}: it is not used")
    if form.keyword in _FLOAT_PADDING and elements.holds_nan(value):
        padding = np.isnan(words)
        return padding if padding.any() else None
    try:
        ends = [elements.read_number(value), elements.read_number(limit)]
    except ImageError as error:
        elements.note(str(error).removeprefix(f"{elements.path}: ") + ", so that padding is unknown")
        return None
    if ends[0] is None:
        return None
    stated = [end for end in ends if end is not None]
    low, high = (min(stated), max(stated)) if words.dtype.kind == "f" else _fit_words(stated, elements, form)
    padding = (words >= low) & (words <= high)
    return padding if padding.any() else None


def _fit_words(stated: list[float], elements: Elements, form: PixelFormat) -> tuple[int, int]:
    """Return the lowest and highest word of padding, whatever sign its value representation gives the same bits."""
    span = 2**form.bits_allocated
    lowest, highest = (-span // 2, span // 2 - 1) if form.signed else (0, span - 1)
    ends = [int(end) + (span if end < lowest else -span if end > highest else 0) for end in stated]
    if not form.signed and min(stated) < 0 <= max(stated):  # from a negative number on: only the others can occur
        ends = [max(int(end), 0) for end in stated]
    possible = form.limits
    if min(ends) <= possible[0] and max(ends) >= possible[1]:  # not all is padding
        ends = [end for end in ends if possible[0] <= end <= possible[1]][:1] or ends
    if ends != stated:
        found = " to ".join(f"{end:g}" for end in stated)
        meant = " to ".join(map(str, ends))
        signed = "signed" if form.signed else "unsigned"
        elements.note(f"PixelPaddingValue is {found}, but PixelRepresentation says {signed}: it was taken as {meant}")
    return min(ends), max(ends)


def apply_modality(
    elements: Elements, stored: NDArray[Any], padding: NDArray[np.bool_] | None, form: PixelFormat
) -> tuple[NDArray[Any], tuple[float, float]]:
    """Return pixels after the modality table or rescale (PS3.3 C.11.1), and the range that the format can hold."""
    if stored.dtype.kind == "f" and padding is not None:
        stored = np.where(padding, 0 if padding.all() else stored[~padding].min(), stored)  # it may be no number
    tables = elements.read_items("ModalityLUTSequence")
    slope, intercept = elements.read_number("RescaleSlope"), elements.read_number("RescaleIntercept")
    if tables:
        if (slope, intercept) not in ((None, None), (1, 0)):
            elements.note("ModalityLUTSequence and RescaleSlope are both stated; the table was used")
        return _apply_table(tables[0], stored)
    if (slope is None) != (intercept is None):
        missing, taken = ("RescaleSlope", 1) if slope is None else ("RescaleIntercept", 0)
        elements.note(f"{missing} {elements.describe(missing)}; was taken as {taken}")
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if stored.dtype.kind == "f":
        scaled = stored if (slope, intercept) == (1, 0) else stored.astype(np.float64) * slope + intercept
        return convert_floats(scaled, elements.path)
    return _rescale(elements, stored, slope, intercept, form)


def _rescale(
    elements: Elements, stored: NDArray[Any], slope: float, intercept: float, form: PixelFormat
) -> tuple[NDArray[Any], tuple[float, float]]:
    low, high = form.limits
    if (slope, intercept) == (1.0, 0.0):
        return stored, (float(low), float(high))
    ends = sorted((low * slope + intercept, high * slope + intercept))
    if slope == 0 or not np.isfinite(ends).all() or max(map(abs, ends)) > np.finfo(np.float32).max:
        cause = (
            f"RescaleSlope {elements.describe('RescaleSlope')} and RescaleIntercept "
            f"{elements.describe('RescaleIntercept')}, which gives values that are all the same or not finite"
        )
        raise build_refusal(elements.path, cause, "CORRUPT_PIXELS")
    limits = (ends[0], ends[1])
    reach = abs(ends[0]) + abs(ends[1])  # room for the sum of both ends, from which MONOCHROME1 is inverted
    if slope == 1 and intercept.is_integer() and max(reach, abs(intercept)) <= np.iinfo(np.int32).max:
        pixels = np.add(stored, int(intercept), dtype=np.int32, casting="unsafe")
        return pixels.astype(np.int16 if reach <= np.iinfo(np.int16).max else np.int32, copy=False), limits
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept), limits


def _apply_table(table: Elements, stored: NDArray[Any]) -> tuple[NDArray[Any], tuple[float, float]]:
    """Look every value up: the first entry is for its descriptor's second number and below, the last for all above."""
    needed = "ModalityLUTSequence needs in it the number of entries, the first value mapped, and 8 to 16 bits"
    described = table.read_numbers("LUTDescriptor", needed)
    if len(described) != 3 or described[2] not in range(8, 17) or stored.dtype.kind == "f":
        table.refuse("LUTDescriptor", needed)
    count, first, bits = int(described[0]) or 2**16, int(described[1]), int(described[2])
    entries = _read_entries(table, count)
    if len(entries) < count:
        cause = f"LUTData has {len(entries)} values, LUTDescriptor says {count}; ModalityLUTSequence is incomplete"
        raise build_refusal(table.path, cause, "BAD_HEADER")
    if first > np.iinfo(stored.dtype).max:  # signed, but written as unsigned
        first -= 2**16
    places = np.clip(stored.astype(np.int64) - first, 0, count - 1)
    return entries[:count].astype(np.uint16)[places], (0.0, float(2**bits - 1))


def _read_entries(table: Elements, count: int) -> NDArray[Any]:
    """Return the entries of a table, which some write as bytes, some two to a word."""
    data = table.read_words("LUTData")
    if isinstance(data, bytes):
        order = "<" if table.dataset.is_little_endian is not False else ">"
        return np.frombuffer(data, f"{order}u2" if len(data) >= 2 * count else np.uint8)
    return np.asarray(data, np.int64) % 2**16


def is_inverted(elements: Elements, photometric: str, intent: str | None) -> bool:
    """Return whether low values are dense tissue, so that all have to be inverted.

    Photometric Interpretation says how to show an image. Raw ones are shown by nobody, and state besides whether more
    radiation gives larger values (Pixel Intensity Relationship Sign 1): then air is bright as MONOCHROME2 shows it.
    """
    shape = elements.find_code("PresentationLUTShape")
    usual = {"IDENTITY": "MONOCHROME2", "INVERSE": "MONOCHROME1"}.get(shape or "")
    if usual is not None and usual != photometric:
        elements.note(
            f"PresentationLUTShape {shape} contradicts PhotometricInterpretation {photometric}, which was used"
        )
    _note_inverting_display(elements)
    relation = elements.find_code("PixelIntensityRelationship")
    try:
        sign = elements.read_integer("PixelIntensityRelationshipSign")
    except ImageError:
        sign = 0
    if intent != "FOR PROCESSING":
        if intent is None and sign == 1 and photometric == "MONOCHROME2":
            elements.note(
                "PixelIntensityRelationshipSign is 1, air is bright, but PresentationIntentType does not say FOR "
                "PROCESSING: it was not inverted"
            )
        return photometric == "MONOCHROME1"
    if sign not in (1, -1):
        elements.note(
            f"PixelIntensityRelationshipSign {elements.describe('PixelIntensityRelationshipSign')} in a FOR PROCESSING "
            f"image: whether air or tissue is bright was taken from PhotometricInterpretation {photometric}"
        )
        return photometric == "MONOCHROME1"
    if sign == 1 and photometric == "MONOCHROME2":
        elements.note(
            f"PixelIntensityRelationshipSign is 1 (PixelIntensityRelationship {relation or 'not stated'}): more "
            "radiation gives larger values, air is bright in this FOR PROCESSING image; it was inverted"
        )
    elif sign == -1 and photometric == "MONOCHROME1":
        elements.note(
            "PixelIntensityRelationshipSign is -1 (air has the lowest values), PhotometricInterpretation MONOCHROME1 "
            "shows those white: they contradict each other in this FOR PROCESSING image; it was inverted as MONOCHROME1"
        )
    return sign == 1 or photometric == "MONOCHROME1"


def _note_inverting_display(elements: Elements) -> None:
    """Note a table for display, otherwise not used, that shows low values bright."""
    for item in elements.read_items("VOILUTSequence"):
        entries = _read_entries(item, 1)
        if len(entries) > 1 and entries[0] > entries[-1]:
            elements.note(
                "VOILUTSequence shows low values bright; it is not applied, and what is dense was taken from "
                "PhotometricInterpretation"
            )


def find_units(elements: Elements) -> str | None:
    """Return what the values of a CT or PET slice are; None for other objects, and where it is not stated.

    Of CT, HU unless it says otherwise (PS3.3 C.11.1.1.2). Of PET, Units, with the kind of an SUV that is not one by
    weight, and with what it has not been corrected for: activities that are compared must not differ in that.
    """
    kind = elements.find_text("SOPClassUID")
    if kind == CT:
        return elements.find_code("RescaleType") or "HU"
    units = elements.find_code("Units") if kind == PET else None
    if units is None:
        return None
    if units in _UPTAKE:
        by = elements.find_code("SUVType") or "BW"
        return units if by == "BW" or units != "GML" else f"{units} by {by}"
    corrections, decay = {text.upper() for text in elements.read_texts("CorrectedImage")}, _find_decay(elements)
    missing = ["attenuation"] if corrections and "ATTN" not in corrections else []
    missing += ["decay"] if decay == "NONE" else []
    if missing:
        return f"{units} without {' and '.join(missing)} correction"
    return f"{units} decay-corrected to the injection" if decay == "ADMIN" else units


def _find_decay(elements: Elements) -> str | None:
    """To which time decay was corrected: START (of the series), ADMIN (of the drug), NONE; None where unknown."""
    stated = elements.find_code("DecayCorrection")
    corrections = {text.upper() for text in elements.read_texts("CorrectedImage")}
    return "NONE" if stated is None and corrections and "DECY" not in corrections else stated


def note_meaning(elements: Elements) -> None:
    """Note factors that a file states beside its rescale, which are not applied, and corrections that contradict."""
    if elements.read_items("RealWorldValueMappingSequence"):
        elements.note("RealWorldValueMappingSequence is stated; it is not applied, values are those after rescale")
    for group, creator, element, name in _OWN_FACTORS:
        try:
            found = elements.dataset.private_block(group, creator)[element].value
        except (*DAMAGE, BytesLengthException):
            continue
        if found not in (None, "", 0, 1):
            elements.note(f"{name} is stated; it is not applied, values are those after rescale")
    corrections = {text.upper() for text in elements.read_texts("CorrectedImage")}
    decay = elements.find_code("DecayCorrection")
    if decay in ("START", "ADMIN") and corrections and "DECY" not in corrections:
        elements.note(f"DecayCorrection is {decay}, but CorrectedImage does not list DECY: taken as corrected")
    if decay == "NONE" and "DECY" in corrections:
        elements.note("DecayCorrection is NONE, but CorrectedImage lists DECY: taken as not corrected")
