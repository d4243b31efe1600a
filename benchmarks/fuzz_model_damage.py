"""The ways in which `fuzz_model.py` damages a folder of a model."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from fuzz_common import Rng, pick
from numpy.typing import NDArray

_DTYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "u1", "I16": "<i2"}
EXACT, SAME, SANE, OTHER = "exact", "same", "sane", "other"
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Sample:
    """One undamaged model and what it says of the picture."""

    name: str
    files: dict[str, bytes]
    document: dict[str, Any]
    weights: str
    said: dict[str, Any]


# Damage of model.json: the document is changed in place; what is returned says what a reader must do.


def list_leaves(value: Any, place: Place = ()) -> Iterator[Place]:
    """The places of all leaves of a document; an empty list or object is one."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items or not len(value):
        yield place
        return
    for key, part in items:
        yield from list_leaves(part, (*place, key))


def _choose_leaf(document: dict[str, Any], rng: Rng, kinds: tuple[type, ...] = (object,)) -> Place:
    """Any leaf; parts of the document that have many are not chosen more often."""
    by_part: dict[Any, list[Place]] = {}
    for place in list_leaves(document):
        if isinstance(_at(document, place), kinds) and place[0] not in ("sha256", "weights_sha256"):
            by_part.setdefault(place[:2], []).append(place)
    return pick(rng, by_part[pick(rng, tuple(by_part))])


def _at(document: Any, place: Place) -> Any:
    for key in place:
        document = document[key]
    return document


def _put(document: Any, place: Place, value: Any) -> None:
    _at(document, place[:-1])[place[-1]] = value


_ABSURD = (
    math.nan, math.inf, -math.inf, 1e9, -1e9, 1e300, -1e300, 10**400, 2**63, -(2**63), -1, None, "", "1", [], {}, [1],
    True, {"a": 1}, "x" * 100_000, [[[]]], "\0", "nan", 5e-324,
)  # fmt: skip


def _absurd(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    place = _choose_leaf(document, rng)
    value = _at(document, place)
    new = pick(rng, _ABSURD)
    _put(document, place, new)
    # None stands for unknown where that is allowed; a whole number may be a legal one; text may be any.
    legal = new is None or isinstance(value, str) or (isinstance(new, (int, float)) and isinstance(value, (int, float)))
    odd = isinstance(new, float) and not math.isfinite(new)
    return SANE if (legal and not odd) or value in (None, [], {}) else SAME


def _scale(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    place = _choose_leaf(document, rng, (int, float))
    value = _at(document, place)
    factor = pick(rng, (0.5, 0.9, 0.999, 1.001, 1.1, 2, 10, -1, 0))
    _put(document, place, int(value * factor) if isinstance(value, int) and rng.random() < 0.8 else value * factor)
    return SANE


def _step(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    place = _choose_leaf(document, rng, (int, float))
    value = _at(document, place)
    _put(document, place, (not value) if isinstance(value, bool) else value + pick(rng, (-1, 1)))
    return SANE


def _edit_text(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    place = _choose_leaf(document, rng, (str,))
    value = _at(document, place)
    options = (
        value[:-1], value + "x", value.upper(), "none", "bright_region", "percentile", "general", "mammography",
        "laplacian", "os:system", "unary.detectors.laplacian:Laplacian", "no_such_module:Thing", "../../x", "wei2018",
        "0" * 64, "\u202e" + value, value + "\n", "json:loads", "unary.models.bundle:Model", "a.b:c:d", "this:x",
    )  # fmt: skip
    _put(document, place, pick(rng, options))
    return SANE


def _edit_detector(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    document["detector"] = pick(
        rng,
        (other["detector"], "os:system", "no_such:X", "", "laplacian", "fusion", "residual", "json:loads", "x" * 9999),
    )
    return SAME


def _drop(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    """A field of an object, or an element of a list, at any depth."""
    place = _choose_leaf(document, rng)
    place = place[: int(rng.integers(1, len(place) + 1))]
    del _at(document, place[:-1])[place[-1]]
    return SANE if isinstance(place[-1], int) or "versions" in place else SAME


def _add(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    place = _choose_leaf(document, rng)
    holder = _at(document, place[: int(rng.integers(0, len(place)))])
    if isinstance(holder, list):
        holder.insert(int(rng.integers(len(holder) + 1)), pick(rng, (*_ABSURD, copy.deepcopy(holder[-1]))))
        return SANE
    holder[pick(rng, ("extra", "", "level", "Format"))] = pick(rng, _ABSURD)
    return SANE


def _rearrange(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    """A list reversed, emptied, doubled or shuffled."""
    lists = [place[:-1] for place in list_leaves(document) if place and isinstance(place[-1], int)]
    place = pick(rng, sorted(set(lists), key=str))
    values = _at(document, place)
    values[:] = pick(
        rng, (values[::-1], [], values + values, [values[one] for one in rng.permutation(len(values))], values[:1])
    )
    return SANE


def _nest(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    deep: Any = []
    for _ in range(int(pick(rng, (3, 50, 500)))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    _put(document, _choose_leaf(document, rng), deep)
    return SAME


def _take_from_another(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    """A part of another model in the place of its own."""
    name = pick(rng, [key for key in document if key not in ("sha256", "notice", "format")])
    document[name] = copy.deepcopy(other[name])
    if name == "calibration":
        return OTHER
    return SANE if name in ("provenance", "domain", "findings", "profile", "weights_sha256") else SAME


def _edit_calibration(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    """A number of what sets the thresholds, or of a threshold."""
    found = [place for place in list_leaves(document) if place[0] == "calibration" and len(place) > 1]
    found = found or [("level",)]
    place = pick(rng, found)
    value = _at(document, place)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _put(document, place, pick(rng, (value * 2, value + 1, -value, 0, 1e9, math.nan, value * 1.01, -1e9)))
    else:
        _put(document, place, pick(rng, (None, True, False, "2", 1e9)))
    return SANE


def _edit_level(document: dict[str, Any], other: dict[str, Any], rng: Rng) -> str:
    place: Place = pick(
        rng, (("level",), ("peaks", -1), ("peaks", 0), ("findings", "merge_mm"), ("findings", "strongest"))
    )
    _put(
        document, place, pick(rng, (math.nan, math.inf, 1e9, -1e9, 0, -1, 1e300, 2 * float(_at(document, place)), None))
    )
    return SANE


LEAVES: dict[str, Callable[[dict[str, Any], dict[str, Any], Rng], str]] = {
    "an absurd leaf": _absurd,
    "a scaled number": _scale,
    "a number plus or minus 1": _step,
    "another text": _edit_text,
    "another detector": _edit_detector,
    "a field less": _drop,
    "a field more": _add,
    "a list in another order": _rearrange,
    "nested": _nest,
    "a part of another model": _take_from_another,
    "edit the calibration": _edit_calibration,
    "edit the level": _edit_level,
}


# Damage of the weights.

Header = dict[str, Any]


def split_weights(content: bytes) -> tuple[Header, bytearray]:
    """The header of a safetensors file and its data."""
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])


def join_weights(header: Header, body: bytes) -> bytes:
    """The file of a header and data, whether they fit or not."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    length = header.get("__length__", len(text))
    return struct.pack("<Q", int(length) % 2**64) + text + body


def _choose_tensor(header: Header, rng: Rng) -> str:
    return str(pick(rng, [name for name in header if not name.startswith("__")]))


def _view(header: Header, body: bytearray, name: str) -> NDArray[Any]:
    begin, end = header[name]["data_offsets"]
    return np.frombuffer(memoryview(body)[begin:end], _DTYPES[header[name]["dtype"]])


def _edit_values(header: Header, body: bytearray, rng: Rng) -> str:
    """Values that no training leaves: not finite, huge, all zero, of another sign, in another order."""
    values = _view(header, body, _choose_tensor(header, rng))
    if values.size == 0:
        return SAME
    one = int(rng.integers(values.size))
    way = int(rng.integers(9))
    with np.errstate(all="ignore"):
        if way < 4 and values.dtype.kind == "f":
            values[one] = (math.nan, math.inf, -math.inf, 1e30)[way]
        elif way == 4:
            values[:] = 0
        elif way == 5:
            values[:] = -values if values.dtype.kind in "fi" else 0
        elif way == 6:
            values[:] = values[rng.permutation(values.size)]
        elif way == 7:
            values[:] = values[::-1].copy()
        else:
            values[:] = (values * 1000).astype(values.dtype)
    return SAME


def _nudge_values(header: Header, body: bytearray, rng: Rng) -> str:
    values = _view(header, body, _choose_tensor(header, rng))
    with np.errstate(all="ignore"):
        values[:] = (values * pick(rng, (0.9, 0.999, 1.001, 1.1, 1.5))).astype(values.dtype)
    return SANE


def _flip_values(header: Header, body: bytearray, rng: Rng) -> str:
    for _ in range(int(rng.integers(1, 4))):
        body[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))
    return SANE


def _edit_header(header: Header, body: bytearray, rng: Rng) -> str:
    name = _choose_tensor(header, rng)
    entry = header[name]
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    changes: tuple[dict[str, Any], ...] = (
        {"dtype": pick(rng, ("F64", "F16", "I32", "U8", "BF16", "BOOL", "X", 7))},
        {"shape": shape[::-1]},
        {"shape": [int(np.prod(shape))]},
        {"shape": [*shape, 1]},
        {"shape": []},
        {"shape": [-1]},
        {"shape": [2**62, 8]},
        {"data_offsets": [begin, end + 4]},
        {"data_offsets": [end, begin]},
        {"data_offsets": [begin, begin]},
        {"data_offsets": [0, 2**63]},
        {"data_offsets": [-4, end]},
        {"data_offsets": "0"},
    )
    header[name] = entry | pick(rng, changes)
    return SAME


def _edit_names(header: Header, body: bytearray, rng: Rng) -> str:
    """A tensor less, twice, renamed, exchanged with another, or under the other detector's name."""
    name, other = _choose_tensor(header, rng), _choose_tensor(header, rng)
    way = int(rng.integers(6))
    if way == 0:
        del header[name]
    elif way == 1:
        header[name + "x"] = header.pop(name)
    elif way == 2:
        header[name], header[other] = header[other], header[name]
    elif way == 3:
        header["foreign"] = header[name]
    elif way == 4:
        header["detector.more"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
        body += bytes(4)
    else:
        swapped = name.replace("detector.", "?").replace("baseline.", "detector.").replace("?", "baseline.")
        header[swapped] = header.pop(name)
    return SAME


def _edit_length(header: Header, body: bytearray, rng: Rng) -> str:
    header["__length__"] = int(pick(rng, (0, 1, 7, 2**20, 2**31, 2**63, 2**64 - 1)))
    return SAME


def _change_size(header: Header, body: bytearray, rng: Rng) -> str:
    if rng.random() < 0.5:
        body += bytes(int(pick(rng, (1, 4, 1000))))
    else:
        del body[-int(rng.integers(1, min(len(body), 100))) :]
    return SAME


TENSORS: dict[str, Callable[[Header, bytearray, Rng], str]] = {
    "values of a tensor": _edit_values,
    "a tensor nudged": _nudge_values,
    "bits of tensors": _flip_values,
    "header of the weights": _edit_header,
    "names of tensors": _edit_names,
    "length of the header": _edit_length,
    "size of the weights": _change_size,
}


# Damage of the folder.

Files = dict[str, bytes]


def _lose_file(files: Files, sample: Sample, other: Sample, rng: Rng) -> None:
    del files[pick(rng, ("model.json", sample.weights))]


def _take_file(files: Files, sample: Sample, other: Sample, rng: Rng) -> None:
    if rng.random() < 0.5:
        files["model.json"] = other.files["model.json"]
    else:
        files[sample.weights] = other.files[other.weights]


def _write_oddly(files: Files, sample: Sample, other: Sample, rng: Rng) -> None:
    """The JSON in another encoding, with a key twice, or not JSON at all."""
    text = files["model.json"]
    twice = text.replace(b"{", b'{"level": 1e9,', 1)
    late = text.rstrip()[:-1] + b', "level": 0.5}'
    files["model.json"] = pick(
        rng,
        (
            b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), text + b"x", text * 2, twice, late, b"", b"{}",
            b"[]", b"null", b"4", b'"model"', b"{" * 5000, b"[" * 100_000, b"\0" + text, text.replace(b'"', b"'"),
            b'{"format": 4}', b'{"format": 3}', b'{"format": 1e400}', text.replace(b":", b": 1", 1), b"\xff\xfe\xfd",
            b"1" * 5000,
        ),
    )  # fmt: skip


def _add_files(files: Files, sample: Sample, other: Sample, rng: Rng) -> None:
    """What does not belong to the model must not change it."""
    files[pick(rng, ("readme.txt", "weights.safetensors", "model.json.bak", ".1234.model.json", other.weights))] = (
        rng.bytes(50)
    )


def _empty_file(files: Files, sample: Sample, other: Sample, rng: Rng) -> None:
    files[pick(rng, ("model.json", sample.weights))] = b""


FILES: dict[str, Callable[[Files, Sample, Sample, Rng], None]] = {
    "a file less": _lose_file,
    "a file of another model": _take_file,
    "model.json written oddly": _write_oddly,
    "files more": _add_files,
    "an empty file": _empty_file,
}
