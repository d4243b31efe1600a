"""From a DICOM data set to its stored pixels, or to a reason why not: a decoder's success alone is no proof of them.

What pydicom and the codecs let pass is checked here: surplus or missing bytes, a stream of another size than the header
declares, values out of range. Codecs are the permissively licensed ones that pydicom finds.
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from unary.errors import ImageError, Reason
from unary.images.codestream import Family, find_broken_fragment, find_fault, find_run_fault, find_stray

_UNDEFINED_LENGTH = 0xFFFFFFFF
# One decoder each, where pydicom would go on to the next if the first one refuses: of two OpenJPEGs, the second fills
# up what the first one finds damaged, and Pillow stretches 12 bits to 16. The faster pylibjpeg-rle ends the whole
# program on a damaged stream, since a Rust panic is no Exception.
_CODECS: dict[str, tuple[Family | None, str]] = {
    RLELossless: (None, "pydicom"),
    JPEGBaseline8Bit: ("JPEG", "gdcm"),
    JPEGExtended12Bit: ("JPEG", "gdcm"),
    JPEGLossless: ("lossless JPEG", "gdcm"),
    JPEGLosslessSV1: ("lossless JPEG", "gdcm"),
    JPEGLSLossless: ("JPEG-LS", "pyjpegls"),
    JPEGLSNearLossless: ("JPEG-LS", "pyjpegls"),
    JPEG2000Lossless: ("JPEG 2000", "gdcm"),
    JPEG2000: ("JPEG 2000", "gdcm"),
    HTJ2KLossless: ("JPEG 2000", "pylibjpeg"),
    HTJ2KLosslessRPCL: ("JPEG 2000", "pylibjpeg"),
    HTJ2K: ("JPEG 2000", "pylibjpeg"),
}
# What pydicom and the codecs raise on files that are damaged in one way or another; RecursionError is a RuntimeError.
_DECODING_ERRORS = (
    AttributeError, KeyError, ValueError, TypeError, IndexError, NotImplementedError, RuntimeError, EOFError,
    MemoryError, OSError, ArithmeticError, struct.error, BytesLengthException,
)  # fmt: skip


@contextmanager
def reading_dicom(path: Path, *, reason: Reason = "NOT_READABLE") -> Iterator[None]:
    """Keep pydicom silent, whose warnings and log quote patients' names and dates, and translate what it raises."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InvalidDicomError as error:
        raise ImageError(f"{path}: not a DICOM file; another format under this name?", reason="NOT_READABLE") from error
    except _DECODING_ERRORS as error:
        raise ImageError(
            f"{path}: not readable as a DICOM image ({type(error).__name__}); truncated, damaged or an unsupported "
            "compression?",
            reason="MEMORY_LIMIT" if isinstance(error, MemoryError) else reason,
        ) from error
    finally:
        log.setLevel(level)


def decode_pixels(dataset: Dataset, path: Path) -> NDArray[Any]:
    """Return the stored pixels, shape (Rows, Columns), in the byte order of this machine.

    Raises
    ------
    ImageError
        If there is no decoder, if the pixels are not exactly as many as declared, or if anything around them, or in the
        header of a compressed stream, contradicts the DICOM header.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not is_decodable(dataset):
        raise ImageError(
            f"{path}: no decoder for its transfer syntax ({_name_syntax(syntax)})", reason="UNSUPPORTED_SYNTAX"
        )
    shape = (int(dataset.Rows), int(dataset.Columns))
    with reading_dicom(path, reason="CORRUPT_PIXELS"):
        fault = _find_surplus(dataset, shape) or _find_stray(dataset, path)
        if fault is None and syntax.is_encapsulated:
            fault = find_broken_fragment(dataset.PixelData)
        family, plugin = _CODECS.get(syntax, (None, None))
        if fault is None and syntax.is_encapsulated:
            frame, bits = get_frame(dataset.PixelData, 0, number_of_frames=1), int(dataset.BitsAllocated)
            if family is None:
                fault = find_run_fault(frame, pixels=shape[0] * shape[1], planes=bits // 8)
            else:
                fault = find_fault(frame, family, shape=shape, bits=bits)
        if fault is not None:
            raise ImageError(f"{path}: {fault}", reason="CORRUPT_PIXELS")
        if plugin is not None:
            # Nothing is cut off to the bits stored: here, unlike in plain pixels, too large a value is a sign of damage
            bits = dataset.BitsStored if dataset.PixelRepresentation else dataset.BitsAllocated
            dataset.pixel_array_options(decoding_plugin=plugin, bits_stored=bits)
        stored = dataset.pixel_array
    if stored.shape != shape:
        raise ImageError(
            f"{path}: it declares {shape} pixels but holds {stored.shape}; truncated or damaged",
            reason="CORRUPT_PIXELS",
        )
    native: NDArray[Any] = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind in "iu":
        low, high = find_limits(dataset)
        if native.min() < low or native.max() > high:
            raise ImageError(
                f"{path}: it holds values outside the {dataset.BitsStored} bits that it declares; damaged?",
                reason="CORRUPT_PIXELS",
            )
    return native


def _find_surplus(dataset: Dataset, shape: tuple[int, int]) -> str | None:
    """Plain pixels must be as many as declared: pydicom drops a surplus, with a false number of rows half the image."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in dataset:
        return None
    found, needed = (
        len(dataset.get_item("PixelData").value or b""),
        -(-shape[0] * shape[1] * dataset.BitsAllocated // 8),
    )
    if found in (needed, needed + needed % 2):
        return None
    return f"its header declares {needed} bytes of pixels, and {found} are there; truncated, damaged or a false size?"


def _find_stray(dataset: Dataset, path: Path) -> str | None:
    raw = dataset.get_item("PixelData")
    if not isinstance(raw, RawDataElement) or raw.value is None:
        return None
    encapsulated = raw.length == _UNDEFINED_LENGTH
    if not encapsulated and raw.length != len(raw.value):
        return "the file ends within the pixels; truncated?"
    syntax = dataset.file_meta.TransferSyntaxUID
    return find_stray(
        path,
        raw.value_tell + len(raw.value),
        explicit=not syntax.is_implicit_VR,
        little=syntax.is_little_endian,
        encapsulated=encapsulated,
    )


def find_limits(dataset: Dataset) -> tuple[int, int]:
    """Return the lowest and the highest stored value that the bits stored allow."""
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def is_decodable(dataset: Dataset) -> bool:
    """Return whether there is a decoder for the transfer syntax; none is free for lossy JPEG of 12 bits."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _CODECS:
        available = _CODECS[syntax][1] in get_decoder(syntax).available_plugins
    else:
        available = syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
    return available and not (syntax == JPEGExtended12Bit and dataset.get("BitsStored") != 8)


def _name_syntax(syntax: Any) -> str:
    """The standard's name of a transfer syntax; a private or damaged one is not quoted."""
    name = getattr(syntax, "name", "")
    return name if name and name != str(syntax) else "a private or damaged one"


def check_bits(dataset: Dataset, path: Path) -> None:
    """Refuse bits that do not fit together; the high bit is one less than the bits stored (PS3.5 8.1.1).

    Raises
    ------
    ImageError
        If they do not.
    """
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = dataset.get("HighBit")
    known = (8, 16) if dataset.file_meta.TransferSyntaxUID in _CODECS else (1, 8, 16, 32)
    if allocated not in known or not 0 < stored <= allocated or high not in (None, stored - 1):
        raise ImageError(
            f"{path}: {stored} bits stored, {allocated} allocated and {high} for the high bit do not fit together; "
            "damaged?",
            reason="CORRUPT_PIXELS",
        )
