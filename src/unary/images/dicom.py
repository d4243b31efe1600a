"""Reading a single grey image from DICOM.

The rules are the standard's, and those of what goes wrong in the field: polarity is undone, values are those of the
modality transform (HU, activity), padding is told apart from measurement, spacing is what the file states or None, and
the window that is stored for display is ignored. What cannot be read right is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from unary.errors import ImageError
from unary.images.attributes import MULTIFRAME_CLASSES, DicomHeader, SlicePlace
from unary.images.checks import build_refusal
from unary.images.decoding import decode_pixels, find_shape, read_format, reading_dicom, trim_words
from unary.images.elements import Elements, open_dicom
from unary.images.values import CT, PET, apply_modality, find_padding, find_units, is_inverted, note_meaning
from unary.records import Image

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# The X-ray classes that come in two kinds, with .1 at the end for the second (PS3.4 B.5).
_PRESENTATION = tuple(f"{_STORAGE}1.{number}" for number in (1, 2, 3))
_INTENTS = dict.fromkeys(_PRESENTATION, "FOR PRESENTATION")
_INTENTS |= {f"{kind}.1": "FOR PROCESSING" for kind in _PRESENTATION}
_RESCALED = {CT: "CT", PET: "PET"}
_MODALITIES = ("MG", "CR", "DX", "DR", "CT", "MR", "PT", "NM", "US", "OT", "XA", "RF", "SC", "IO", "PX", "RG")
_OTHER_MODALITIES = ("SR", "PR", "KO", "SEG", "REG", "DOC", "AU", "ECG", "RTSTRUCT", "RTPLAN", "RTDOSE")
# SNOMED CT (SCT), then the retired SNOMED codes (SRT) that are still found; PS3.16 CID 4010 and 4014.
_VIEWS = {
    "399348003": "AP", "R-10206": "AP",
    "272479007": "PA", "R-10214": "PA", "R-40888": "PA",
    "399173006": "LL", "R-10236": "LL",
    "399198007": "RL", "R-10232": "RL",
    "399162004": "CC", "R-10242": "CC",
    "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML",
    "399352003": "LM", "R-10228": "LM",
    "399099002": "LMO", "R-10230": "LMO",
    "399196006": "FB", "R-10244": "FB",
    "399188001": "SIO", "R-102D0": "SIO",
    "441555000": "ISO", "R-40AAA": "ISO",
    "399192008": "XCCL", "R-1024A": "XCCL",
    "399101009": "XCCM", "R-1024B": "XCCM",
}  # fmt: skip
_FAR_MM = 100_000.0  # from the origin of a scanner
PLACE_ELEMENTS = ("SeriesInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient")
_HEADER_ELEMENTS = [
    "Rows", "Columns", "PatientID", "ImageLaterality", "Laterality", "ViewCodeSequence", "ViewPosition",
    "SpecificCharacterSet", "SOPInstanceUID", *PLACE_ELEMENTS,
]  # fmt: skip


def read_header(path: Path) -> DicomHeader:
    """Read the size of a DICOM image and whose it is; takes about a millisecond; an `ImageError` if it is none."""
    with reading_dicom(path):
        elements = open_dicom(path, _HEADER_ELEMENTS)
        return DicomHeader(
            find_shape(elements),
            find_laterality(elements),
            find_view(elements),
            hash_patient(elements),
            elements.find_text("SOPInstanceUID"),
            find_place(elements),
        )


def hash_patient(elements: Elements) -> str | None:
    """Return the patient's key, `DicomHeader.patient_key`.

    Bytes that the declared character set does not have all decode alike, and are taken raw.
    """
    raw = elements.dataset.get_item("PatientID") if "PatientID" in elements else None
    patient = elements.find_text("PatientID")
    if patient is None or raw is None:
        return None
    undecodable = "\ufffd" in patient and isinstance(raw.value, bytes)
    return hashlib.sha256(raw.value if undecodable else patient.encode("utf-8")).hexdigest()[:12]


def find_place(elements: Elements) -> SlicePlace | None:
    """Return where a slice lies along its plane's normal (PS3.3 C.7.6.2.1.1); None where that is not or ill stated."""
    try:
        corner = np.array(elements.read_numbers("ImagePositionPatient", "three numbers are needed"))
        cosines = np.array(elements.read_numbers("ImageOrientationPatient", "six numbers are needed"))
    except ImageError:
        return None
    if corner.shape != (3,) or cosines.shape != (6,):
        return None
    if max(np.abs(cosines).max() / 2, np.abs(corner).max() / _FAR_MM) > 1:
        return None
    normal = np.cross(cosines[:3], cosines[3:])
    if not 0.9 < np.linalg.norm(normal) < 1.1:  # of two directions at a right angle
        return None
    x, y, z = (float(part) + 0.0 for part in normal.round(2))
    series, frame = elements.find_text("SeriesInstanceUID"), elements.find_text("FrameOfReferenceUID")
    return SlicePlace(series, frame, (x, y, z), float(corner @ normal))


def read_dicom(path: Path) -> Image:
    """Read a single-frame grey image.

    Returns
    -------
    Image
        Pixels after the modality transform where there is one, MONOCHROME1 inverted; no window applied. Where values
        are only shifted (slope 1, a whole intercept, as in nearly all CT) they stay integers, exactly; otherwise a
        rescale gives float32.

    Raises
    ------
    ImageError
        If the file is no readable DICOM image, has several frames or colour, is compressed by deflate (a small file can
        unpack to gigabytes), does not decode to the size that it declares, or holds values that are not finite; if it
        is a CT or PET slice that does not say how to get HU or activity from what is stored.
    """
    with reading_dicom(path):
        elements = open_dicom(path)
        _check_kind(elements)
        photometric, intent = _read_photometric(elements), find_intent(elements)
        form = read_format(elements)
        words = decode_pixels(elements, form)
        padding = find_padding(elements, words, form)
        stored = trim_words(words, padding, elements, form)
        pixels, limits = apply_modality(elements, stored, padding, form)
        if is_inverted(elements, photometric, intent):
            pixels = np.subtract(pixels.dtype.type(sum(limits)), pixels)
        note_meaning(elements)
        return Image(
            pixels,
            limits,
            path,
            padding=padding,
            spacing_mm=find_spacing(elements),
            laterality=find_laterality(elements),
            view=find_view(elements),
            intent=intent,
            manufacturer=elements.find_text("Manufacturer"),
            model_name=elements.find_text("ManufacturerModelName"),
            instance_uid=elements.find_text("SOPInstanceUID"),
            modality=elements.find_code("Modality"),
            units=find_units(elements),
            notes=tuple(elements.notes),
        )


def _check_kind(elements: Elements) -> None:
    """Refuse what is no single grey image, before anything is decoded."""
    path = elements.path
    modality = elements.find_code("Modality") or ("" if elements.find_text("Modality") else "OT")
    if modality not in _MODALITIES:
        # A value that is not one of these may be anything, in a damaged header even a name: not to be quoted.
        named = f"{modality}" if modality in _OTHER_MODALITIES else elements.describe("Modality").removeprefix("is ")
        cause = f"a grey image is needed, not an object of Modality {named}; a report, a segmentation or an annotation?"
        raise build_refusal(path, cause, "NOT_AN_IMAGE")
    if not any(keyword in elements for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        cause = "a DICOM object without pixels (no PixelData); truncated, a false TransferSyntaxUID, or a report?"
        raise build_refusal(path, cause, "CORRUPT_PIXELS" if "Rows" in elements else "NOT_AN_IMAGE")
    frames, kind = read_frames(elements), elements.find_text("SOPClassUID") or ""
    if frames != 1 or kind in MULTIFRAME_CLASSES or "SharedFunctionalGroupsSequence" in elements:
        cause = (
            f"it has {frames} frames (NumberOfFrames), or is of a kind that can have several (enhanced CT, MR or PET, "
            "tomosynthesis); one image to a file is read: export it as single-frame slices, or give its frames one by "
            "one as arrays, `unary.Image.from_array(frame, spacing_mm=...)`"
        )
        raise build_refusal(path, cause, "MULTIFRAME")
    missing = [name for name in ("RescaleSlope", "RescaleIntercept") if elements.read_number(name) is None]
    if kind in _RESCALED and missing and not elements.read_items("ModalityLUTSequence"):
        cause = f"a {_RESCALED[kind]} slice without {' and '.join(missing)}; what its values mean is unknown"
        raise build_refusal(path, cause, "NO_RESCALE")


def _read_photometric(elements: Elements) -> str:
    """Return MONOCHROME1 or MONOCHROME2; small letters and spaces within are put right."""
    text, keyword = elements.find_text("PhotometricInterpretation"), "PhotometricInterpretation"
    code = "".join((text or "").split()).upper()
    if code not in ("MONOCHROME1", "MONOCHROME2"):
        needed = "MONOCHROME1 or MONOCHROME2 is needed"
        if text is None:
            elements.refuse(keyword, f"{needed}, for it says whether low values are dark or bright")
        known = code != "MONOCHROME" and elements.describe(keyword) == f"is {text}"
        elements.refuse(keyword, needed, "COLOUR" if known else "BAD_HEADER")
    if code != text:
        elements.note(f"{keyword} is not written as it should be and was read as {code}")
    return code


def read_frames(elements: Elements) -> int:
    """Return Number of Frames, 1 where it is not stated."""
    frames = elements.read_integer("NumberOfFrames")
    if frames is not None and frames < 1:
        elements.refuse("NumberOfFrames", "1 is needed")
    return 1 if frames is None else frames


def find_intent(elements: Elements) -> str | None:
    """Return the Presentation Intent Type, which the SOP class says too where it matters most."""
    return _INTENTS.get(elements.find_text("SOPClassUID") or "") or elements.find_code("PresentationIntentType")


def find_spacing(elements: Elements) -> tuple[float, float] | None:
    """Return the spacing in mm (row, col), or None when it is unknown.

    In the order of trust: in the patient, at the detector, on the scanned film. A Pixel Spacing that only repeats the
    detector's, with no calibration stated, is the detector's (PS3.3 10.7.1.3), and the magnification still has to be
    undone. What cannot be used, and a Pixel Spacing that no magnification makes of the detector's, is noted.
    """
    pixel, detector = elements.find_pair("PixelSpacing"), elements.find_pair("ImagerPixelSpacing")
    if pixel is not None and (pixel != detector or elements.find_text("PixelSpacingCalibrationType")):
        if detector is not None and not all(1 / 4 < a / b < 1.1 for a, b in zip(pixel, detector, strict=True)):
            stated = f"PixelSpacing {elements.describe('PixelSpacing')}, which was used, and ImagerPixelSpacing "
            elements.note(f"{stated}{elements.describe('ImagerPixelSpacing')}: no magnification makes one of the other")
        return pixel
    if detector is None:
        return elements.find_pair("NominalScannedPixelSpacing")
    magnification = find_magnification(elements)
    return None if magnification is None else (detector[0] / magnification, detector[1] / magnification)


def find_magnification(elements: Elements) -> float | None:
    """Return the magnification factor, 1 where it is not stated; None, with a note, where something else stands."""
    keyword = "EstimatedRadiographicMagnificationFactor"
    try:
        factor = elements.read_number(keyword)
    except ImageError:
        factor = 0.0
    if factor is not None and factor <= 0:
        elements.note(f"{keyword} {elements.describe(keyword)}; a positive number is needed: the spacing is unknown")
        return None
    return 1.0 if factor is None else factor


def find_laterality(elements: Elements) -> str | None:
    """Return the side of this image, else of the series: L, R or None."""
    side = elements.find_code("ImageLaterality") or elements.find_code("Laterality")
    return side if side in ("L", "R") else None


def find_view(elements: Elements) -> str | None:
    """Return the view, `unary.records.Image.view`, by its code, else as the header words it."""
    codes = [item.find_text("CodeValue") for item in elements.read_items("ViewCodeSequence")]
    return next((_VIEWS[code] for code in codes if code in _VIEWS), elements.find_code("ViewPosition"))
