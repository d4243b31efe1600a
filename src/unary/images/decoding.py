"""From a DICOM data set to its stored pixels, or to a reason why not: a decoder's success alone is no proof of them.

What pydicom and the codecs let pass is checked here: surplus or missing bytes, a stream of another size than the header
declares, values out of range. Codecs are the permissively licensed ones that pydicom finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import get_decoder

from unary.errors import Reason
from unary.images.checks import DAMAGE, build_refusal, silencing
from unary.images.codestream import Family, find_broken_fragment, find_fault, find_run_fault, find_stray

_UNDEFINED_LENGTH = 0xFFFFFFFF
# One decoder each, where pydicom would go on to the next if the first one refuses: of two OpenJPEGs, the second fills
# up what the first one finds damaged, and Pillow stretches 12 bits to 16. The faster pylibjpeg-rle ends the whole
# program on a damaged stream, since a Rust panic is no Exception.
_CODECS: dict[str, tuple[Family | None, str]] = {
    uid.RLELossless: (None, "pydicom"),
    uid.JPEGBaseline8Bit: ("JPEG", "gdcm"),
    uid.JPEGExtended12Bit: ("JPEG", "gdcm"),
    uid.JPEGLossless: ("lossless JPEG", "gdcm"),
    uid.JPEGLosslessSV1: ("lossless JPEG", "gdcm"),
    uid.JPEGLSLossless: ("JPEG-LS", "pyjpegls"),
    uid.JPEGLSNearLossless: ("JPEG-LS", "pyjpegls"),
    uid.JPEG2000Lossless: ("JPEG 2000", "gdcm"),
    uid.JPEG2000: ("JPEG 2000", "gdcm"),
    uid.HTJ2KLossless: ("JPEG 2000", "pylibjpeg"),
    uid.HTJ2KLosslessRPCL: ("JPEG 2000", "pylibjpeg"),
    uid.HTJ2K: ("JPEG 2000", "pylibjpeg"),
}


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


def decode_pixels(dataset: Dataset, path: Path) -> NDArray[Any]:
    """Return the stored pixels, shape (Rows, Columns), in the byte order of this machine.

    It is an `ImageError` if there is no decoder, if the pixels are not exactly as many as declared, or if anything
    around them, or in the header of a compressed stream, contradicts the DICOM header.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not is_decodable(dataset):
        raise build_refusal(path, f"no decoder for its transfer syntax ({_name_syntax(syntax)})", "UNSUPPORTED_SYNTAX")
    shape = (int(dataset.Rows), int(dataset.Columns))
    with reading_dicom(path, reason="CORRUPT_PIXELS"):
        fault = _find_surplus(dataset, shape) or _find_stray(dataset, path) or _find_stream_fault(dataset, shape)
        if fault is not None:
            raise build_refusal(path, fault, "CORRUPT_PIXELS")
        if syntax in _CODECS:
            # Nothing is cut off to the bits stored: here, unlike in plain pixels, too large a value is a sign of damage
            bits = dataset.BitsStored if dataset.PixelRepresentation else dataset.BitsAllocated
            dataset.pixel_array_options(decoding_plugin=_CODECS[syntax][1], bits_stored=bits)
        stored = dataset.pixel_array
    if stored.shape != shape:
        cause = f"it declares {shape} pixels but holds {stored.shape}; truncated or damaged"
        raise build_refusal(path, cause, "CORRUPT_PIXELS")
    native: NDArray[Any] = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind in "iu":
        low, high = find_limits(dataset)
        if native.min() < low or native.max() > high:
            cause = f"it holds values outside the {dataset.BitsStored} bits that it declares; damaged?"
            raise build_refusal(path, cause, "CORRUPT_PIXELS")
    return native


def _find_surplus(dataset: Dataset, shape: tuple[int, int]) -> str | None:
    """Plain pixels must be as many as declared: pydicom drops a surplus, with a false number of rows half the image."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in dataset:
        return None
    found = len(dataset.get_item("PixelData").value or b"")
    needed = -(-shape[0] * shape[1] * dataset.BitsAllocated // 8)
    if found in (needed, needed + needed % 2):
        return None
    return f"its header declares {needed} bytes of pixels, and {found} are there; truncated, damaged or a false size?"


def _find_stream_fault(dataset: Dataset, shape: tuple[int, int]) -> str | None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return None
    fault = find_broken_fragment(dataset.PixelData)
    if fault is not None:
        return fault
    frame, bits = get_frame(dataset.PixelData, 0, number_of_frames=1), int(dataset.BitsAllocated)
    family = _CODECS[syntax][0]
    if family is None:
        return find_run_fault(frame, pixels=shape[0] * shape[1], planes=bits // 8)
    return find_fault(frame, family, shape=shape, bits=bits)


def _find_stray(dataset: Dataset, path: Path) -> str | None:
    raw = dataset.get_item("PixelData")
    if not isinstance(raw, RawDataElement) or raw.value is None:
        return None
    encapsulated = raw.length == _UNDEFINED_LENGTH
    if not encapsulated and raw.length != len(raw.value):
        return "the file ends within the pixels; truncated?"
    syntax = dataset.file_meta.TransferSyntaxUID
    explicit, little = not syntax.is_implicit_VR, syntax.is_little_endian
    end = raw.value_tell + len(raw.value)
    return find_stray(path, end, explicit=explicit, little=little, encapsulated=encapsulated)


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
        available = syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)
    return available and not (syntax == uid.JPEGExtended12Bit and dataset.get("BitsStored") != 8)


def _name_syntax(syntax: Any) -> str:
    """The standard's name of a transfer syntax; a private or damaged one is not quoted."""
    name = getattr(syntax, "name", "")
    return name if name and name != str(syntax) else "a private or damaged one"


def check_bits(dataset: Dataset, path: Path) -> None:
    """Refuse bits that do not fit together; the high bit is one less than the bits stored (PS3.5 8.1.1)."""
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = dataset.get("HighBit")
    known = (8, 16) if dataset.file_meta.TransferSyntaxUID in _CODECS else (1, 8, 16, 32)
    if allocated not in known or not 0 < stored <= allocated or high not in (None, stored - 1):
        cause = f"{stored} bits stored, {allocated} allocated and {high} for the high bit do not fit together; damaged?"
        raise build_refusal(path, cause, "CORRUPT_PIXELS")
