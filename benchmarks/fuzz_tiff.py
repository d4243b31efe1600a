"""TIFF files for `fuzz.py`, and damage; encoded by `fuzz_tiff_encoder.py`, judged by `fuzz_tiff_oracle.py`."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_common import BYTES, Case, Rng, draw_name, flip, judge_image, pick
from fuzz_tiff_encoder import (
    COMPRESSIONS,
    COUNTS,
    LONG,
    OFFSETS,
    SHORT,
    TEXT,
    UNDEFINED,
    Draft,
    Plan,
    build_draft,
    draw_plan,
    encode_lzw,
    encode_packbits,
    encode_zstd,
    lay_out,
    pack_values,
)
from fuzz_tiff_oracle import DEFLATE, LZMA, LZW, OLD_DEFLATE, PACKBITS, ZSTD, read_strictly

from unary.images.isolation import IsolatedReader

_SHORT, _LONG, _TEXT, _RATIONAL, _UNDEFINED, _LONG8 = 3, 4, 2, 5, 7, 16


class TiffKind:
    """Compressions in turn; a fifth of the cases are undamaged."""

    def __init__(self, reader: IsolatedReader) -> None:
        self.reader = reader

    def build_case(self, seed: int, number: int) -> Case:
        """Return the case of one number."""
        rng = np.random.default_rng((seed, number))
        plan = draw_plan(rng, tuple(COMPRESSIONS)[number % len(COMPRESSIONS)])
        draft = build_draft(plan, rng)
        name = "another encoding" if rng.random() < 0.2 else pick(rng, [*STRUCTURAL, *BYTES])
        if name in STRUCTURAL:
            STRUCTURAL[name](draft, plan, rng)
        content = lay_out(draft, rng)
        if name in BYTES or (name in STRUCTURAL and rng.random() < 0.1):
            content = BYTES.get(name, pick(rng, tuple(BYTES.values())))(content, rng) or b"\0"
        valid = name == "another encoding"
        suffix = pick(rng, (".tif", ".tiff"))
        file_name = f"fuzzed{suffix}" if valid else draw_name(rng, suffix)
        return Case(plan.name, name, {file_name: content}, plan.right, valid and plan.is_ordinary)

    def judge(self, case: Case, folder: Path) -> tuple[str, str]:
        """As `judge_image`."""
        return judge_image(self.reader, case, folder, read_strictly)


# Damage: a draft is changed in place before it is laid out.

_NUMBERS = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 16, 17, 24, 31, 32, 33, 64, 128, 255, 256, 4096, 32767, 32768, 32773, 32946,
    34712, 34925, 50000, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1,
)  # fmt: skip
_IMPORTANT = (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 322, 323, 324, 325, 338, 339, 320)


def _edit_tag(draft: Draft, plan: Plan, rng: Rng) -> None:
    """Another value of a tag that matters; of several, all or one."""
    known = [place for place, tag in enumerate(draft.tags) if tag[0] in _IMPORTANT]
    place = int(pick(rng, known))
    tag, kind, values = draft.tags[place]
    near = int(values[0]) + int(pick(rng, (-2, -1, 1, 2)))
    value = near if rng.random() < 0.4 else int(pick(rng, _NUMBERS))
    if tag in OFFSETS:
        draft.offsets[int(rng.integers(len(values)))] = value
    elif rng.random() < 0.5:
        draft.tags[place] = (tag, kind, [value] * len(values))
    else:
        changed = list(values)
        changed[int(rng.integers(len(values)))] = value
        draft.tags[place] = (tag, kind, changed)


def _edit_type(draft: Draft, plan: Plan, rng: Rng) -> None:
    """Another type of a tag, over the same numbers or the same bytes."""
    place = int(rng.integers(len(draft.tags)))
    tag, kind, values = draft.tags[place]
    other = int(pick(rng, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 99)))
    raw = [pack_values(values, kind, draft.order)]
    draft.tags[place] = (tag, other, values if rng.random() < 0.5 or tag in OFFSETS else raw)


def _edit_count(draft: Draft, plan: Plan, rng: Rng) -> None:
    tag, _, values = draft.tags[int(rng.integers(len(draft.tags)))]
    draft.counts[tag] = len(values) + int(pick(rng, (-1, 1, 2))) if rng.random() < 0.5 else int(pick(rng, _NUMBERS))


def _edit_size(draft: Draft, plan: Plan, rng: Rng) -> None:
    rows, cols = plan.samples.shape[:2]
    size = pick(
        rng, ((cols, rows), (rows - 1, cols), (rows + 1, cols), (rows, cols - 1), (rows // 2, cols * 2), (10**5, 10**5))
    )
    for tag, value in ((257, size[0]), (256, size[1])):
        _set_tag(draft, tag, [value], LONG)


def _set_tag(draft: Draft, tag: int, values: list[Any], kind: int = SHORT) -> None:
    draft.tags = sorted([one for one in draft.tags if one[0] != tag] + [(tag, kind, values)])


def _remove_tag(draft: Draft, plan: Plan, rng: Rng) -> None:
    del draft.tags[int(rng.integers(len(draft.tags)))]


def _repeat_tag(draft: Draft, plan: Plan, rng: Rng) -> None:
    place = int(rng.integers(len(draft.tags)))
    tag, kind, values = draft.tags[place]
    number = int(pick(rng, _NUMBERS)) if not isinstance(values[0], bytes) else 0
    draft.tags.insert(place + int(rng.integers(2)), (tag, kind, values if rng.random() < 0.3 else [number]))


def _add_tag(draft: Draft, plan: Plan, rng: Rng) -> None:
    tag, kind, values = pick(
        rng,
        (
            (270, TEXT, [b"ImageJ=1.53\nimages=7\nslices=7\n\0"]),
            (270, TEXT, [b'{"shape": [3, 4, 5]}\0']),
            (270, TEXT, [b'<?xml version="1.0"?><OME><Image/></OME>\0']),
            (330, LONG, [8]),
            (32997, LONG, [2]),
            (32998, LONG, [2]),
            (347, UNDEFINED, [rng.bytes(20)]),
            (33628, LONG, [1, 2, 3]),
            (34412, UNDEFINED, [rng.bytes(40)]),
            (65200, UNDEFINED, [rng.bytes(12)]),
            (50838, LONG, [4, 8]),
            (42113, TEXT, [b"0\0"]),
            (34735, SHORT, [1, 1, 0, 0]),
            (50706, 1, [1, 4, 0, 0]),
            (288, LONG, [0]),
            (37724, UNDEFINED, [rng.bytes(30)]),
            (33550, 12, [1.0, 1.0, 0.0]),
            (254, LONG, [int(pick(rng, (1, 2, 4)))]),
            (int(rng.integers(0, 65536)), int(rng.integers(0, 20)), [int(rng.integers(0, 256))] * 5),
        ),
    )
    draft.tags = sorted([one for one in draft.tags if one[0] != tag] + [(tag, kind, values)], key=lambda one: one[0])


def _shuffle_tags(draft: Draft, plan: Plan, rng: Rng) -> None:
    draft.tags = [draft.tags[place] for place in rng.permutation(len(draft.tags))]


def _edit_type_of_samples(draft: Draft, plan: Plan, rng: Rng) -> None:
    """The same bytes under other bits, another sample format or photometric interpretation."""
    tag, values = pick(
        rng,
        (
            (258, (1, 2, 4, 8, 12, 16, 24, 32, 64)),
            (339, (1, 2, 3, 4, 5, 6)),
            (262, (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 32803, 34892)),
            (259, (1, 2, 3, 4, 5, 6, 7, 8, 99, 32773, 32946, 34712, 34887, 34925, 50000, 50001)),
            (317, (1, 2, 3, 4, 34892)),
            (266, (1, 2)),
            (274, tuple(range(10))),
            (284, (1, 2)),
        ),
    )
    count = plan.samples.shape[2] if tag in (258, 339) else 1
    _set_tag(draft, tag, [int(pick(rng, values))] * count)


def _edit_segment(draft: Draft, plan: Plan, rng: Rng) -> None:
    """A segment cut, lengthened, flipped, emptied, or exchanged; its length in the tag follows, or not."""
    place = int(rng.integers(len(draft.segments)))
    segment = draft.segments[place]
    other = draft.segments[int(rng.integers(len(draft.segments)))]
    before = [len(one) for one in draft.segments]
    draft.segments[place] = pick(
        rng,
        (
            lambda: segment[: int(rng.integers(len(segment) + 1))],
            lambda: segment[:-1],
            lambda: segment + rng.bytes(int(pick(rng, (1, 2, 10)))),
            lambda: flip(segment, rng, most=3),
            lambda: flip(segment, rng, len(segment) - 4, most=2),
            lambda: flip(segment, rng, 0, 4, most=2),
            lambda: b"",
            lambda: other,
            lambda: rng.bytes(len(segment)),
        ),
    )()
    counts = [len(one) for one in draft.segments] if rng.random() < 0.7 else before
    _set_tag(draft, COUNTS[plan.tiled], counts, LONG)


def _bomb(draft: Draft, plan: Plan, rng: Rng) -> None:
    """A segment that unpacks to far more than its pixels."""
    draft.segments[0] = _build_bomb(plan.compression)
    _set_tag(draft, COUNTS[plan.tiled], [len(one) for one in draft.segments], LONG)
    if rng.random() < 0.3:
        _set_tag(draft, 257, [2**20], LONG)


@lru_cache
def _build_bomb(compression: int) -> bytes:
    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.compress(bytes(60_000_000))
    if compression == LZMA:
        return lzma.compress(bytes(60_000_000), preset=0)
    data = bytes(200_000)
    if compression == ZSTD:
        return encode_zstd(data)
    return encode_lzw(data) if compression == LZW else encode_packbits(data) if compression == PACKBITS else data


def _lose_segment(draft: Draft, plan: Plan, rng: Rng) -> None:
    """Fewer segments than the picture needs, or one place too many; or one place twice."""
    del draft.segments[int(rng.integers(len(draft.segments)))]
    draft.segments += [b"\0" * 9] * int(pick(rng, (0, 0, 2)))
    _set_tag(draft, COUNTS[plan.tiled], [len(one) for one in draft.segments], LONG)
    _set_tag(draft, OFFSETS[plan.tiled], [0] * len(draft.segments), LONG)


def _link(draft: Draft, plan: Plan, rng: Rng) -> None:
    """A second page: itself, the header, the end, or nonsense."""
    draft.following = int(pick(rng, (8, 16, 2, 100, 10**6, 2**31)))


def _edit_version(draft: Draft, plan: Plan, rng: Rng) -> None:
    draft.version = int(pick(rng, (0, 41, 43, 44, 85, 20306)))


def _mark_byte_order(draft: Draft, plan: Plan, rng: Rng) -> None:
    """Segments in the other byte order, which nothing tells."""
    draft.order = ">" if draft.order == "<" else "<"


STRUCTURAL: dict[str, Callable[[Draft, Plan, Rng], None]] = {
    "edit a tag": _edit_tag,
    "edit a tag's type": _edit_type,
    "edit a tag's count": _edit_count,
    "edit the size": _edit_size,
    "remove a tag": _remove_tag,
    "repeat a tag": _repeat_tag,
    "add a tag": _add_tag,
    "shuffle tags": _shuffle_tags,
    "another kind of samples": _edit_type_of_samples,
    "edit a segment": _edit_segment,
    "bomb": _bomb,
    "lose a segment": _lose_segment,
    "a second page": _link,
    "another version": _edit_version,
    "another byte order": _mark_byte_order,
}
