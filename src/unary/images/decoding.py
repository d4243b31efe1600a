"""From a DICOM data set to its stored pixels, or to a reason why not: a decoder's success alone is no proof of them.

What pydicom and the codecs let pass is checked here: a header whose parts do not fit together, surplus or missing
bytes, a stream of another size or sign than the header declares, values out of range. Codecs are the permissively
licensed ones that pydicom finds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import get_decoder

from unary.errors import Reason
from unary.images.checks import DAMAGE, build_refusal, check_size, silencing
from unary.images.codestream import (
    Family,
    find_broken_fragment,
    find_fault,
    find_run_fault,
    find_stray,
    read_depth,
)
from unary.images.elements import Elements

_UNDEFINED_LENGTH = 0xFFFFFFFF
# One decoder each, where pydicom would go on to the next if the first one refuses: of two OpenJPEGs, the second fills
# up what the first one finds damaged, and Pillow stretches 12 bits to 16. The faster pylibjpeg-rle ends the whole
# program on a damaged stream, since a Rust panic is no Exception.
_JPEG_LS = "pyjpegls" if sys.version_info < (3, 14) else "gdcm"  # the faster has no wheels for later Pythons
_CODECS: dict[str, tuple[Family | None, str]] = {
    uid.RLELossless: (None, "pydicom"),
    uid.JPEGBaseline8Bit: ("JPEG", "gdcm"),
    uid.JPEGExtended12Bit: ("JPEG", "gdcm"),
    uid.JPEGLossless: ("lossless JPEG", "gdcm"),
    uid.JPEGLosslessSV1: ("lossless JPEG", "gdcm"),
    uid.JPEGLSLossless: ("JPEG-LS", _JPEG_LS),
    uid.JPEGLSNearLossless: ("JPEG-LS", _JPEG_LS),
    uid.JPEG2000Lossless: ("JPEG 2000", "gdcm"),
    uid.JPEG2000: ("JPEG 2000", "gdcm"),
    uid.HTJ2KLossless: ("JPEG 2000", "pylibjpeg"),
    uid.HTJ2KLosslessRPCL: ("JPEG 2000", "pylibjpeg"),
    uid.HTJ2K: ("JPEG 2000", "pylibjpeg"),
}
_PACKAGES = {"gdcm": "python-gdcm", "pyjpegls": "pyjpegls", "pylibjpeg": "pylibjpeg pylibjpeg-openjpeg"}
_PLAIN = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)
_PIXELS = {"PixelData": (1, 8, 16, 32), "FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}


@dataclass(frozen=True)
class PixelFormat:
    """How a file stores its pixels: in which element, how many, and the bits of a value; floats use all theirs."""

    keyword: str
    shape: tuple[int, int]
    bits_allocated: int
    bits_stored: int
    signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest whole number that the bits stored allow."""
        bits = self.bits_stored
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if self.signed else (0, 2**bits - 1)


@contextmanager
def reading_dicom(path: Path, *, reason: Reason = "NOT_READABLE") -> Iterator[None]:
    """Keep pydicom silent, which quotes patients' names and dates, and translate what it raises."""
    try:
        with silencing("pydicom"):
            yield
    except InvalidDicomError as error:
        raise build_refusal(path, "not a DICOM file; another format under this name?", "NOT_READABLE") from error
    except (*DAMAGE, BytesLengthException) as error:
        kind = type(error).__name__
        cause = f"not readable as a DICOM image ({kind}); truncated, damaged or an unsupported compression?"
        raise build_refusal(path, cause, "MEMORY_LIMIT" if isinstance(error, MemoryError) else reason) from error


def find_shape(elements: Elements) -> tuple[int, int]:
    """Return Rows and Columns; what has neither is no image."""
    if "Rows" not in elements and "Columns" not in elements:
        cause = "a DICOM object without pixels (no Rows, no Columns); a report or annotation?"
        raise build_refusal(elements.path, cause, "NOT_AN_IMAGE")
    return elements.require_integer("Rows", 1, 65535), elements.require_integer("Columns", 1, 65535)


def read_format(elements: Elements) -> PixelFormat:
    """Return how the pixels are stored, each attribute checked; pydicom then decodes by the same values."""
    found = [keyword for keyword in _PIXELS if keyword in elements]
    if len(found) != 1:
        cause = f"it holds {' and '.join(found) or 'no pixels'}; one element of pixels is needed; truncated?"
        raise build_refusal(elements.path, cause, "CORRUPT_PIXELS")
    keyword, shape, dataset = found[0], find_shape(elements), elements.dataset
    check_size(*shape, elements.path)
    samples = elements.read_integer("SamplesPerPixel")
    if samples is None:
        elements.note(f"SamplesPerPixel {elements.describe('SamplesPerPixel')}; grey images have 1")
    elif samples != 1:
        elements.refuse("SamplesPerPixel", "a grey image has 1", "COLOUR")
    if elements.syntax in _PLAIN and elements.dataset.get_item(keyword).length == _UNDEFINED_LENGTH:
        cause = f"TransferSyntaxUID says plain pixels ({elements.syntax.name}), but they are compressed"
        raise build_refusal(elements.path, cause, "CORRUPT_PIXELS")
    allocated = elements.require_integer("BitsAllocated", 1, 64)
    known = (8, 16) if elements.syntax in _CODECS else _PIXELS[keyword]
    if allocated not in known:
        words = ", ".join(map(str, known))
        elements.refuse("BitsAllocated", f"for {keyword} one of {words} can be read", "CORRUPT_PIXELS")
    stored, signed = (allocated, False) if keyword != "PixelData" else _read_bits(elements, allocated)
    checked = {
        "Rows": shape[0],
        "Columns": shape[1],
        "SamplesPerPixel": 1,
        "BitsAllocated": allocated,
        "PhotometricInterpretation": "MONOCHROME2",
        "NumberOfFrames": 1,
    }
    if keyword == "PixelData":
        checked |= {"BitsStored": stored, "HighBit": stored - 1, "PixelRepresentation": int(signed)}
    dataset.pop("PlanarConfiguration", None)  # which means nothing in grey
    for name, value in checked.items():
        if name in dataset:  # its value representation may be another one
            del dataset[name]
        setattr(dataset, name, value)
    return PixelFormat(keyword, shape, allocated, stored, signed)


def _read_bits(elements: Elements, allocated: int) -> tuple[int, bool]:
    """Return the bits stored, and whether values are signed; the high bit is one less (PS3.5 8.1.1)."""
    high = elements.read_integer("HighBit")
    stored = elements.read_integer("BitsStored")
    if stored is None:
        if high is None:
            elements.refuse("BitsStored", "how many bits a value has is needed, and HighBit does not say so either")
        stored = high + 1
        elements.note(f"BitsStored {elements.describe('BitsStored')}; was taken as {stored}, from HighBit")
    if not 0 < stored <= allocated:
        elements.refuse("BitsStored", f"1 to {allocated}, BitsAllocated, are possible", "CORRUPT_PIXELS")
    if high not in (None, stored - 1):
        needed = f"with BitsStored {stored} it has to be {stored - 1}; are values shifted, or is the header damaged?"
        elements.refuse("HighBit", needed, "CORRUPT_PIXELS")
    return stored, elements.require_integer("PixelRepresentation", 0, 1) == 1


def decode_pixels(elements: Elements, form: PixelFormat) -> NDArray[Any]:
    """Return pixels as they lie in their words, shape (Rows, Columns), in the byte order of this machine.

    Bits beyond those stored are still in them: overlays of old devices, or padding; `trim_words` takes them out. It is
    an `ImageError` if there is no decoder, if the pixels are not exactly as many as declared, or if anything around
    them, or in the header of a compressed stream, contradicts the DICOM header.
    """
    path, dataset = elements.path, elements.dataset
    missing = find_missing_decoder(elements)
    if missing is not None:
        raise build_refusal(path, missing, "UNSUPPORTED_SYNTAX")
    with reading_dicom(path, reason="CORRUPT_PIXELS"):
        fault = _find_surplus(elements, form) or _find_stray(elements)
        if fault is not None:
            raise build_refusal(path, fault, "CORRUPT_PIXELS")
        frame = _join_fragments(elements, form) if elements.syntax.is_encapsulated else None
        if form.keyword == "PixelData":
            options: dict[str, Any] = {"bits_stored": form.bits_allocated}
            if elements.syntax in _CODECS:
                options["decoding_plugin"] = _CODECS[elements.syntax][1]
            dataset.pixel_array_options(**options)
        words = dataset.pixel_array
    if words.shape != form.shape:
        cause = f"it declares {form.shape} pixels but holds {words.shape}; truncated or damaged"
        raise build_refusal(path, cause, "CORRUPT_PIXELS")
    native: NDArray[Any] = words.astype(words.dtype.newbyteorder("="), copy=False)
    family = _CODECS[elements.syntax][0] if elements.syntax in _CODECS else None
    if frame is not None and family is not None:
        fault = _find_sign_fault(native, form, *read_depth(frame, family))
        if fault is not None:
            raise build_refusal(path, fault, "CORRUPT_PIXELS")
    return native


def trim_words(
    words: NDArray[Any], padding: NDArray[np.bool_] | None, elements: Elements, form: PixelFormat
) -> NDArray[Any]:
    """Return the values that the bits stored make of the words.

    In plain pixels whatever lies in the bits above is no part of a value. A codec knows no such bits: there, too large
    a value that is no padding is a sign of damage.
    """
    low, high = form.limits
    if words.dtype.kind == "f" or (words.min() >= low and words.max() <= high):
        return words
    top, above = words >> (form.bits_stored - 1) & 1, words >> form.bits_stored
    ones = 2 ** (8 * words.dtype.itemsize - form.bits_stored) - 1
    if not form.signed and padding is None and (above == top * above.dtype.type(ones)).all():
        cause = (
            f"PixelRepresentation is 0, unsigned, but all bits above the {form.bits_stored} of BitsStored repeat the "
            "highest of these, as in negative values: which of both is right is unknown"
        )
        raise build_refusal(elements.path, cause, "CORRUPT_PIXELS")
    if elements.syntax in _CODECS:
        whole = (words >= low) & (words < 2**form.bits_stored)  # negative ones may come without their upper bits
        if not (whole if padding is None else whole | padding).all():
            cause = f"it holds values outside the {form.bits_stored} bits that BitsStored declares; damaged?"
            raise build_refusal(elements.path, cause, "CORRUPT_PIXELS")
    unused = words.dtype.itemsize * 8 - form.bits_stored
    trimmed: NDArray[Any] = (words << unused) >> unused
    return trimmed


def _find_surplus(elements: Elements, form: PixelFormat) -> str | None:
    """Plain pixels must be as many as declared: pydicom drops a surplus, with a false number of rows half the image."""
    if elements.syntax.is_encapsulated or form.keyword != "PixelData":
        return None
    found = len(elements.dataset.get_item("PixelData").value or b"")
    needed = -(-form.shape[0] * form.shape[1] * form.bits_allocated // 8)
    if found in (needed, needed + needed % 2):
        return None
    return (
        f"Rows {form.shape[0]}, Columns {form.shape[1]} and BitsAllocated {form.bits_allocated} declare {needed} bytes "
        f"of pixels, and {found} are there; truncated, damaged or a false size?"
    )


def _join_fragments(elements: Elements, form: PixelFormat) -> bytes:
    """Make one fragment of the only frame, whatever a table of offsets says of it, and return it, with no fault."""
    dataset, family = elements.dataset, _CODECS[elements.syntax][0]
    if dataset.get_item("PixelData").length != _UNDEFINED_LENGTH:
        cause = f"TransferSyntaxUID says compressed pixels ({elements.syntax.name}), but they are plain"
        raise build_refusal(elements.path, cause, "CORRUPT_PIXELS")
    value, frame = dataset.PixelData, b""
    fault = find_broken_fragment(value)
    if fault is None:
        _, *fragments = generate_fragments(value)
        frame = b"".join(fragments)
        if family is None:
            fault = find_run_fault(frame, pixels=form.shape[0] * form.shape[1], planes=form.bits_allocated // 8)
        else:
            fault = find_fault(frame, family, shape=form.shape, bits=form.bits_allocated)
    if fault is not None:
        raise build_refusal(elements.path, fault, "CORRUPT_PIXELS")
    dataset.PixelData = encapsulate([frame], has_bot=False)
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            del dataset[keyword]
    return frame


def _find_sign_fault(words: NDArray[Any], form: PixelFormat, bits: int, signed: bool) -> str | None:
    """Return why it is unknown which values of a stream are negative: those whose highest bit of all is set, or none.

    Unsigned streams of signed values are usual, and bring the same words as plain pixels, if they have all the bits.
    """
    if not (words.view(f"u{words.dtype.itemsize}") & (1 << (bits - 1))).any():
        return None
    if signed and not form.signed:
        return (
            "PixelRepresentation is 0, unsigned, but the compressed stream is signed and holds negative values: which "
            "of both is right is unknown"
        )
    if form.signed and not signed and bits < form.bits_stored:
        return (
            f"PixelRepresentation is 1, signed, and BitsStored is {form.bits_stored}, but the compressed stream has "
            f"unsigned values of {bits} bits: which of them are negative is unknown"
        )
    return None


def _find_stray(elements: Elements) -> str | None:
    raw = elements.dataset.get_item("PixelData") if "PixelData" in elements else None
    if not isinstance(raw, RawDataElement) or raw.value is None:
        return None
    encapsulated = raw.length == _UNDEFINED_LENGTH
    if not encapsulated and raw.length != len(raw.value):
        return "the file ends within the pixels; truncated?"
    end = raw.value_tell + len(raw.value)
    explicit, little = not raw.is_implicit_VR, raw.is_little_endian
    if explicit == elements.syntax.is_implicit_VR:
        found = "explicit" if explicit else "implicit"
        elements.note(f"TransferSyntaxUID is {elements.syntax.name}, but value representations are {found}")
    return find_stray(elements.path, end, explicit=explicit, little=little, encapsulated=encapsulated)


def find_missing_decoder(elements: Elements) -> str | None:
    """Return why the transfer syntax cannot be decoded here, or None; no free decoder has lossy JPEG of 12 bits."""
    syntax = elements.syntax
    name = _name_syntax(syntax)
    if syntax in _PLAIN:
        return None
    if syntax not in _CODECS or (syntax == uid.JPEGExtended12Bit and elements.read_integer("BitsStored") != 8):
        return f"no decoder for its transfer syntax (TransferSyntaxUID: {name})"
    plugin = _CODECS[syntax][1]
    if plugin in get_decoder(syntax).available_plugins:
        return None
    return f"no decoder for its transfer syntax ({name}) is installed; run: pip install {_PACKAGES[plugin]}"


def _name_syntax(syntax: uid.UID) -> str:
    """The standard's name of a transfer syntax; a private or damaged one is not quoted."""
    name = getattr(syntax, "name", "")
    return name if name and name != str(syntax) else "a private or damaged one"
