"""TIFF 6.0 and BigTIFF: one page of samples, the same whatever compression, predictor, strips, tiles and byte order.

`tifffile` reads the tags and `imagecodecs` unpacks the segments (strips or tiles), whatever the version of Python. What
is read is a list of what comes out right; all else is refused by the tag and the value that say so. A segment must
unpack to as many bytes as the tags declare: one that is missing, short or too long is never filled up or cut off.
Compression that fills up by itself what is damaged (CCITT, JPEG) is not on the list.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.images.checks import build_refusal, check_size
from unary.images.samples import GREY_NEEDED, Samples, build_several, describe_orientation

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION = 258, 259, 262, 266, 274
_SAMPLES, _ROWS_PER_STRIP, _PLANAR, _PREDICTOR, _COLOUR_MAP, _SAMPLE_FORMAT = 277, 278, 284, 317, 320, 339
_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH, _DEPTH, _SUBFILE, _SUBIFDS = 256, 257, 322, 323, 32997, 254, 330
_STRIPS, _TILES = (273, 279), (324, 325)  # where they are, and their lengths
_INTEGERS = (1, 3, 4, 13, 16, 18)  # types of values: BYTE, SHORT, LONG, IFD, LONG8, IFD8
_CHANGING = {
    _BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, _PREDICTOR,
    _COLOUR_MAP, _SAMPLE_FORMAT, _WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH, _DEPTH, _SUBFILE, _SUBIFDS,
    *_STRIPS, *_TILES,
}  # fmt: skip
_WHITE_IS_ZERO, _RGB, _PALETTE = 0, 2, 3
_COLOURED = {5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "CFA", 34892: "LinearRaw"}
_PLAIN, _PACKBITS = 1, 32773
_DECODERS = {5: "lzw", 8: "zlib", 32946: "zlib", _PACKBITS: "packbits", 34925: "lzma", 50000: "zstd"}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_BITS = {_UNSIGNED: (*range(1, 17), 32), _SIGNED: (8, 16, 32), _FLOAT: (16, 32, 64)}
_DIFFERENCES, _FLOAT_DIFFERENCES = 2, 3


@dataclass(frozen=True)
class _Form:
    """What the tags say of the pixels; names as in TIFF 6.0. ``segment`` are the rows and columns of strip or tile."""

    rows: int
    cols: int
    samples: int
    bits: int
    sample_format: int
    photometric: int | None
    compression: int
    predictor: int
    fill_order: int
    planar: int
    segment: tuple[int, int]
    tiled: bool

    @property
    def highest(self) -> int | None:
        return 2**self.bits - 1 if self.sample_format == _UNSIGNED else None

    @property
    def contiguous(self) -> int:
        """Samples that lie side by side."""
        return self.samples if self.planar == 1 else 1


def read_tiff_shape(path: Path) -> tuple[int, int]:
    """Read rows and columns, or say why there will be no pixels."""
    with _opening(path) as (_, form):
        return form.rows, form.cols


def read_tiff(path: Path) -> Samples:
    """Read the samples of the one page; an orientation is noted, not applied."""
    with _opening(path) as (page, form):
        values, colours, highest = _decode(page, form), 3 if form.photometric == _RGB else 1, form.highest
        if form.photometric == _WHITE_IS_ZERO:
            values[..., 0] = values.dtype.type(highest) - values[..., 0]
        elif form.photometric == _PALETTE:
            values, colours, highest = _apply_palette(values, _get(page, _COLOUR_MAP, None), path), 3, 255
        return Samples(values, colours, highest, describe_orientation(_get(page, _ORIENTATION, None)))


@contextmanager
def _opening(path: Path) -> Iterator[tuple[Any, _Form]]:
    """Open a TIFF of one page whose form can be read."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = _find_page(file, path)
            form = _read_form(page)
            _check_form(form, path)
            yield page, form
    except tifffile.TiffFileError as error:
        raise build_refusal(path, f"not readable as TIFF ({error}); truncated or damaged?", "NOT_READABLE") from error


def _find_page(file: Any, path: Path) -> Any:
    """Return the one page; smaller copies of it that it brings along, as pyramids do, do no harm."""
    page = file.pages[0]
    planes = int((file.stk_metadata or {}).get("NumberPlanes", 1)) if file.is_stk else 1
    stacked = int((file.imagej_metadata or {}).get("images", 1))
    shaped = [math.prod(item["shape"]) // max(page.size, 1) for item in file.shaped_metadata or () if "shape" in item]
    count = max(len(file.pages), planes, stacked, *shaped, _get(page, _DEPTH, 1))
    if count > 1:
        raise build_several(path, f"it holds {count} pages")
    if page.is_reduced or not all(part.is_reduced for part in page.pages or ()):
        cause = "its first page is a preview, or another full picture lies beside it (NewSubfileType, SubIFDs)"
        raise build_several(path, cause)
    return page


def _get(page: Any, code: int, default: Any) -> Any:
    """Return the value of a tag; of one that has a value for each sample, the value if all are equal."""
    value = page.tags.valueof(code, default)
    several = isinstance(value, tuple) and code in (_BITS_PER_SAMPLE, _SAMPLE_FORMAT)
    return value[0] if several and len(set(value)) == 1 else value


def _read_form(page: Any) -> _Form:
    """Read the tags; the library leaves out those that it cannot parse, but here their defaults could be wrong."""
    codes = [code for code in _list_codes(page) if code in _CHANGING]
    for code in codes:
        if codes.count(code) > 1:
            raise ValueError(f"tag {code} is there twice")
        if code not in page.tags or page.tags[code].dtype not in _INTEGERS:
            raise ValueError(f"tag {code} is damaged")
    rows, cols, tiled = int(_get(page, _LENGTH, 0)), int(_get(page, _WIDTH, 0)), _TILE_WIDTH in page.tags
    tile = (int(_get(page, _TILE_LENGTH, 0)), int(_get(page, _TILE_WIDTH, 0)))
    photometric = _get(page, _PHOTOMETRIC, None)
    return _Form(
        rows=rows,
        cols=cols,
        samples=int(_get(page, _SAMPLES, 1)),
        bits=_get(page, _BITS_PER_SAMPLE, 1),
        sample_format=_get(page, _SAMPLE_FORMAT, _UNSIGNED),
        photometric=None if photometric is None else int(photometric),
        compression=int(_get(page, _COMPRESSION, _PLAIN)),
        predictor=int(_get(page, _PREDICTOR, 1)),
        fill_order=int(_get(page, _FILL_ORDER, 1)),
        planar=int(_get(page, _PLANAR, 1)),
        segment=tile if tiled else (min(int(_get(page, _ROWS_PER_STRIP, rows)), rows), cols),
        tiled=tiled,
    )


def _list_codes(page: Any) -> list[int]:
    """Return the codes of a page's tags, as they stand in its directory."""
    file, form = page.parent.filehandle, page.parent.tiff
    file.seek(page.offset)
    (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    entries = file.read(count * form.tagsize)
    if any(file.read(form.offsetsize)):
        raise ValueError("a further page is declared and is not there")
    return [struct.unpack_from(f"{form.byteorder}H", entries, i * form.tagsize)[0] for i in range(count)]


def _check_form(form: _Form, path: Path) -> None:
    """Refuse by name what is not on the list of what comes out right."""
    check_size(form.rows, form.cols, path)
    check_size(*form.segment, path)
    if form.photometric in _COLOURED:
        name = f"PhotometricInterpretation {form.photometric}, {_COLOURED[form.photometric]}"
        raise build_refusal(path, f"it is in colour ({name}); {GREY_NEEDED}", "COLOUR")
    if form.samples - (3 if form.photometric == _RGB else 1) not in (0, 1):
        cause = f"SamplesPerPixel is {form.samples} with PhotometricInterpretation {form.photometric}"
        raise build_refusal(path, f"{cause}; {GREY_NEEDED}; an opacity may lie beside it", "COLOUR")
    fault = _find_fault(form)
    if fault is not None:
        raise build_refusal(path, f"{fault}; such a TIFF is not read, save it in another way", "UNSUPPORTED_SYNTAX")


def _find_fault(form: _Form) -> str | None:
    whole, compressed = form.sample_format in (_UNSIGNED, _SIGNED), form.compression in {*_DECODERS} - {_PACKBITS}
    predictable = (form.predictor == _DIFFERENCES and whole and form.bits in (8, 16, 32)) or (
        form.predictor == _FLOAT_DIFFERENCES and form.sample_format == _FLOAT
    )
    photometric = "not stated" if form.photometric is None else form.photometric
    kind = f"SampleFormat {form.sample_format} and {form.bits} bits"
    if form.photometric not in (0, 1, 2, 3):
        return f"PhotometricInterpretation is {photometric}; 0 to 3 are read"
    if form.compression not in (_PLAIN, *_DECODERS):
        return f"Compression is {form.compression}; none, LZW, deflate, PackBits, LZMA and Zstandard are read"
    if form.bits not in _BITS.get(form.sample_format, ()):
        return (
            f"BitsPerSample is {form.bits} with SampleFormat {form.sample_format}; unsigned integers of 1 to 16 and 32 "
            "bits, signed ones of 8, 16 and 32 and floats of 16, 32 and 64 are read"
        )
    if form.sample_format != _UNSIGNED and form.photometric in (_WHITE_IS_ZERO, _PALETTE):
        return f"PhotometricInterpretation is {photometric} with {kind}, which does not say what value is white"
    if form.photometric == _PALETTE and form.bits > 16:
        return f"PhotometricInterpretation is {photometric}, a palette, with {kind}"
    if form.predictor != 1 and not (compressed and predictable):
        return f"Predictor is {form.predictor} with Compression {form.compression}, {kind}"
    if form.fill_order not in (1, 2):
        return f"FillOrder is {form.fill_order}; 1 and 2 are read"
    return None if form.planar in (1, 2) else f"PlanarConfiguration is {form.planar}; 1 and 2 are read"


def _decode(page: Any, form: _Form) -> NDArray[Any]:
    """Return the samples, shape (rows, cols, samples)."""
    (rows, cols), file = form.segment, page.parent.filehandle
    down, across = -(-form.rows // rows), -(-form.cols // cols)
    count = down * across * (form.samples // form.contiguous)
    offsets, lengths = (page.tags.valueof(code) or () for code in (_TILES if form.tiled else _STRIPS))
    if not len(offsets) == len(lengths) == count:
        raise ValueError(f"{len(offsets)} strips or tiles with {len(lengths)} lengths, {count} are needed")
    _check_places(page, offsets, lengths)
    kind = np.dtype({_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f"}[form.sample_format] + str(_count_bytes(form.bits)))
    pixels = np.empty((form.rows, form.cols, form.samples), kind)
    for index, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        file.seek(offset)
        data = file.read(length)
        if not offset or not length or len(data) != length:
            raise ValueError(f"strip or tile {index + 1} of {count} is missing, or is not there to its end")
        plane, place = divmod(index, down * across)
        row, col = place // across * rows, place % across * cols
        height = rows if form.tiled else min(rows, form.rows - row)
        values = _unpack(data, form, height, kind.newbyteorder(page.parent.byteorder))
        target = pixels[row : row + rows, col : col + cols, plane : plane + form.contiguous]
        target[...] = values[: target.shape[0], : target.shape[1]]
    return pixels


def _check_places(page: Any, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    """Refuse segments that overlap each other, the header or the directory: one of the places is wrong."""
    places = sorted([*zip(offsets, lengths, strict=True), (0, 8), (page.offset, 2)])
    for (place, length), (after, _) in pairwise(places):
        if place + length > after:
            raise ValueError(f"two strips or tiles overlap at byte {after}")


def _count_bytes(bits: int) -> int:
    return 1 if bits <= 8 else 2 if bits <= 16 else bits // 8


def _unpack(data: bytes, form: _Form, height: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Return the samples of one segment, shape (rows, cols, samples side by side)."""
    import imagecodecs

    run = form.segment[1] * form.contiguous
    needed = height * -(-run * form.bits // 8)
    if form.fill_order == 2:
        data = bytes(imagecodecs.bitorder_decode(data))
    if form.compression != _PLAIN:
        data = getattr(imagecodecs, f"{_DECODERS[form.compression]}_decode")(data, out=needed + 1)
    if len(data) != needed:
        raise ValueError(f"a strip or tile unpacks to {len(data)} bytes, the tags declare {needed}")
    native = kind.newbyteorder("=")
    if form.bits not in (8, 16, 32, 64):
        return imagecodecs.packints_decode(data, native, form.bits, runlen=run).reshape(height, -1, form.contiguous)
    stored = np.frombuffer(data, native if form.predictor == _FLOAT_DIFFERENCES else kind)
    values = stored.reshape(height, -1, form.contiguous).astype(native, copy=False)
    if form.predictor == _DIFFERENCES:
        return imagecodecs.delta_decode(values, axis=-2)
    return imagecodecs.floatpred_decode(values, axis=-2) if form.predictor == _FLOAT_DIFFERENCES else values


def _apply_palette(indices: NDArray[Any], palette: Any, path: Path) -> NDArray[Any]:
    """Return the 8-bit colours, shape (rows, cols, 3 or 4), of a palette, which holds them in 16 bits each."""
    table = np.array(palette, np.uint16).reshape(3, -1).T
    used = np.unique(indices[..., 0])
    if used[-1] >= len(table):
        raise ValueError(f"a pixel has the colour {used[-1]} of a palette of {len(table)}")
    eight = (table >> 8).astype(np.uint8)
    factors = [f for f in (257, 256) if (eight[used].astype(np.int64) * f == table[used]).all()]
    if not factors:
        raise build_refusal(path, "it has a palette (ColorMap) of more than 8 bits, which is not read", "COLOUR")
    if indices.shape[2] > 1:
        raise build_refusal(path, f"it has a palette and an opacity; {GREY_NEEDED}", "COLOUR")
    colours: NDArray[np.uint8] = eight[indices[..., 0]]
    return colours
