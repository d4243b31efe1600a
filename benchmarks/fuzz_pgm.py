"""PGM files for `fuzz.py`, plain and binary, with every header that Netpbm reads, and their relatives P1, P3, P4, P6.

The strict reader follows Netpbm's own: a comment runs from ``#`` to a line's end, by CR or LF, anywhere before the last
number's end, also glued to a number; one white space separates it from binary pixels. It refuses values above the
maximum and whatever follows the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz_common import BYTES, Case, Grey, Rng, draw_name, draw_picture, judge_image, pick
from numpy.typing import NDArray

from unary.images.isolation import IsolatedReader

MAGICS = (b"P5", b"P2", b"P5", b"P2", b"P5", b"P2", b"P6", b"P5", b"P2", b"P4", b"P3", b"P1")
_BLANKS = b" \t\n\v\f\r"
_MAXIMA = (1, 2, 3, 7, 15, 100, 127, 254, 255, 256, 257, 1000, 1023, 4095, 16383, 32768, 65534, 65535)


@dataclass(frozen=True)
class Plan:
    """A picture as encoded: the tokens of the header, and the values, shape (rows, cols)."""

    magic: bytes
    maximum: int
    values: NDArray[np.int64]

    @property
    def name(self) -> str:
        """What the table calls it."""
        known = self.magic in (b"P2", b"P5")
        return self.magic.decode() + (f" up to {'8' if self.maximum < 256 else '16'} bits" if known else "")

    @property
    def tokens(self) -> list[bytes]:
        """The header's words."""
        rows, cols = self.values.shape
        numbers = [cols, rows] if self.magic in (b"P1", b"P4") else [cols, rows, self.maximum]
        return [self.magic, *(str(number).encode() for number in numbers)]


class PgmKind:
    """Forms in turn; a fifth of the cases are undamaged."""

    def __init__(self, reader: IsolatedReader) -> None:
        self.reader = reader

    def build_case(self, seed: int, number: int) -> Case:
        """Return the case of one number."""
        rng = np.random.default_rng((seed, number))
        magic = MAGICS[number % len(MAGICS)]
        maximum = int(pick(rng, _MAXIMA)) if rng.random() < 0.8 else int(rng.integers(1, 65536))
        maximum = 1 if magic in (b"P1", b"P4") else maximum
        plan = Plan(magic, maximum, draw_picture(rng, 0, maximum, largest=24))
        name = "another encoding" if rng.random() < 0.2 else pick(rng, [*STRUCTURAL, *BYTES])
        content = write_header(plan.tokens, rng) + write_values(plan, rng)
        if name in STRUCTURAL:
            content = STRUCTURAL[name](plan, rng)
        if name in BYTES or (name in STRUCTURAL and rng.random() < 0.1):
            content = BYTES.get(name, pick(rng, tuple(BYTES.values())))(content, rng) or b"\0"
        valid = name == "another encoding"
        file_name = "fuzzed.pgm" if valid else draw_name(rng, ".pgm")
        ordinary = valid and magic in (b"P2", b"P5")
        return Case(
            plan.name, name, {file_name: content}, Grey(plan.values.astype(np.float64), float(maximum)), ordinary
        )

    def judge(self, case: Case, folder: Path) -> tuple[str, str]:
        """As `judge_image`."""
        return judge_image(self.reader, case, folder, read_strictly)


def write_header(tokens: list[bytes], rng: Rng) -> bytes:
    """The words, divided by white space and comments of any kind, and the one white space in front of the pixels."""
    found = tokens[0]
    plain = rng.random() < 0.3
    for token in tokens[1:]:
        found += (b" " if plain else _draw_gap(rng)) + token
    last = b"\n" if plain else _BLANKS[(place := int(rng.integers(len(_BLANKS)))) : place + 1]
    return found + last


def _draw_gap(rng: Rng) -> bytes:
    """White space with comments in it; a comment may begin right after the word before."""
    gap, blank = b"", bytes([_BLANKS[int(rng.integers(len(_BLANKS)))]])
    for _ in range(int(rng.integers(0, 3))):
        said = pick(rng, (b"", b" made up", b" CREATOR: 5 5 255", b"#", b" P5\t1 1", b"x" * 3000, "Größe".encode()))
        gap += b"#" + said + pick(rng, (b"\n", b"\r", b"\r\n"))
    return pick(rng, (gap + blank, blank + gap, blank + gap + blank)) if gap else blank * int(rng.integers(1, 4))


def write_values(plan: Plan, rng: Rng) -> bytes:
    """The pixels as the form has them."""
    values = plan.values
    if plan.magic in (b"P1", b"P4"):
        values = 1 - values  # in these, 1 is black
    if plan.magic == b"P4":
        return np.packbits(values.astype(np.uint8), axis=1).tobytes()
    if plan.magic in (b"P3", b"P6"):
        values = np.repeat(values, 3, axis=1)
    if plan.magic in (b"P5", b"P6"):
        return values.astype(">u2" if plan.maximum > 255 else np.uint8).tobytes()
    if plan.magic == b"P1" and rng.random() < 0.5:
        return b"\n".join(b"".join(b"%d" % value for value in line) for line in values.tolist()) + b"\n"
    zeros = b"%05d" if plan.magic != b"P1" and rng.random() < 0.2 else b"%d"
    words = [zeros % value for value in values.ravel().tolist()]
    return write_words(words, rng)


def write_words(words: list[bytes], rng: Rng) -> bytes:
    """Words in lines, divided by one kind of white space."""
    blank = pick(rng, (b" ", b"\t", b"\n", b"\r\n", b"  "))
    length = int(rng.integers(1, 20))
    lines = (blank.join(words[start : start + length]) for start in range(0, len(words), length))
    return b"\n".join(lines) + pick(rng, (b"", b"\n", b"\n\n", b" "))


# The strict reader.


class _Words:
    """Words of a header or of a plain raster, as Netpbm reads them."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def read_character(self) -> bytes:
        """The next one; a comment counts as the end of its line."""
        one = self.content[self.place : self.place + 1]
        self.place += 1
        if one == b"#":
            while one not in (b"\n", b"\r", b""):
                one = self.content[self.place : self.place + 1]
                self.place += 1
        return one

    def read_number(self, *, digits: int = 20) -> int:
        """The next number and the one character behind it; a ValueError if something else comes."""
        one = self.read_character()
        while one and one in _BLANKS:
            one = self.read_character()
        word = b""
        while one.isdigit() and len(word) < digits:
            word += one
            one = self.read_character() if digits > 1 else b" "
        if not word or (one and one not in _BLANKS):
            raise ValueError(f"a number was expected in front of byte {self.place}")
        return int(word)

    def require_end(self) -> None:
        """Nothing but white space and comments may follow."""
        while one := self.read_character():
            if one not in _BLANKS:
                raise ValueError("something follows the picture")


def read_strictly(content: bytes) -> Grey:
    """Return the stored values; of P1 and P4, 0 is black; a ValueError if a rule is broken or there is colour."""
    magic, words = content[:2], _Words(content)
    if magic not in MAGICS:
        raise ValueError("none of these formats")
    words.place = 2
    if not content[2:3] or content[2:3] not in _BLANKS + b"#":
        raise ValueError("no white space behind the first word")
    cols, rows = words.read_number(), words.read_number()
    bitmap = magic in (b"P1", b"P4")
    maximum = 1 if bitmap else words.read_number()
    channels = 3 if magic in (b"P3", b"P6") else 1
    if not (0 < rows * cols <= 1_000_000 and 0 < maximum < 65536):
        raise ValueError("a header that makes no sense")
    if magic in (b"P1", b"P2", b"P3"):
        count = rows * cols * channels
        values = np.array([words.read_number(digits=1 if bitmap else 20) for _ in range(count)], np.int64)
        words.require_end()
    else:
        values = _read_raw(content[words.place :], rows, cols * channels, maximum, bits=magic == b"P4")
    if values.max() > maximum:
        raise ValueError("values above the maximum")
    samples = values.reshape(rows, cols, channels)
    if (samples != samples[..., :1]).any():
        raise ValueError("in colour")
    grey = samples[..., 0].astype(np.float64)
    return Grey(1 - grey if bitmap else grey, float(maximum))


def _read_raw(raw: bytes, rows: int, cols: int, maximum: int, *, bits: bool) -> NDArray[np.int64]:
    if bits:
        length = math.ceil(cols / 8)
        if len(raw) != rows * length:
            raise ValueError("more or fewer pixels than declared")
        packed = np.frombuffer(raw, np.uint8).reshape(rows, length)
        return np.unpackbits(packed, axis=1)[:, :cols].astype(np.int64)
    kind = np.dtype(">u2" if maximum > 255 else np.uint8)
    if len(raw) != rows * cols * kind.itemsize:
        raise ValueError("more or fewer pixels than declared")
    return np.frombuffer(raw, kind).astype(np.int64)


# Damage.

_NUMBERS = (
    b"0", b"1", b"-1", b"2", b"255", b"256", b"65535", b"65536", b"70000", b"4294967296", b"99999999999999999999", b"",
    b"1e2", b"1.0", b"0x10", b"+8", b"abc", b"\xb2", "٣".encode(), b"\0", b"1_0", b"00008",
)  # fmt: skip


def _edit_number(plan: Plan, rng: Rng) -> bytes:
    tokens = list(plan.tokens)
    place = int(rng.integers(1, len(tokens)))
    near = str(max(int(tokens[place]) + int(pick(rng, (-2, -1, 1, 2))), 0)).encode()
    tokens[place] = near if rng.random() < 0.5 else pick(rng, _NUMBERS)
    return write_header(tokens, rng) + write_values(plan, rng)


def _edit_size(plan: Plan, rng: Rng) -> bytes:
    tokens = list(plan.tokens)
    rows, cols = plan.values.shape
    size = pick(
        rng, ((rows, cols), (cols * 2, rows // 2), (cols, rows - 1), (cols, rows + 1), (cols + 1, rows), (1, rows))
    )
    tokens[1:3] = [str(side).encode() for side in size]
    return write_header(tokens, rng) + write_values(plan, rng)


def _edit_maximum(plan: Plan, rng: Rng) -> bytes:
    """Another maximum over the same values: of another width in bytes, or below some of them."""
    tokens = list(plan.tokens)
    tokens[-1] = str(int(pick(rng, (*_MAXIMA, plan.maximum - 1, plan.maximum + 1)))).encode()
    return write_header(tokens, rng) + write_values(plan, rng)


def _exceed(plan: Plan, rng: Rng) -> bytes:
    values = plan.values.copy()
    place = tuple(int(rng.integers(side)) for side in values.shape)
    most = 1 if plan.magic == b"P4" else (255 if plan.maximum < 256 else 65535)
    values[place] = min(plan.maximum + int(pick(rng, (1, 2, 100))), most) if plan.magic in (b"P5", b"P6") else 70_000
    values = values if plan.magic not in (b"P1", b"P4") else plan.values
    return write_header(plan.tokens, rng) + write_values(Plan(plan.magic, plan.maximum, values), rng)


def _edit_magic(plan: Plan, rng: Rng) -> bytes:
    tokens = list(plan.tokens)
    tokens[0] = pick(rng, (*MAGICS, b"P7", b"Pf", b"PF", b"P0", b"P", b"p5", b"P55", b"\nP5", b"\xef\xbb\xbfP5", b"BM"))
    return write_header(tokens, rng) + write_values(plan, rng)


def _edit_blanks(plan: Plan, rng: Rng) -> bytes:
    """Gaps that are missing, odd, or of two characters in front of the pixels."""
    parts = list(plan.tokens)
    gaps = [_draw_gap(rng) for _ in parts[1:]] + [b"\n"]
    gaps[int(rng.integers(len(gaps)))] = pick(
        rng, (b"", b"\0", b"\xa0", b"\r\n", b"\n\n", b"# a\n", b"#", b"\x85", b",", b"\n# behind\n", b" # behind\r")
    )
    header = b"".join(word + gap for word, gap in zip(parts, gaps, strict=True))
    return header + write_values(plan, rng)


def _edit_values(plan: Plan, rng: Rng) -> bytes:
    """A word of plain pixels changed, repeated or left out; a byte of binary ones."""
    if plan.magic not in (b"P2", b"P3"):
        return write_header(plan.tokens, rng) + (pick(rng, list(BYTES.values()))(write_values(plan, rng), rng))
    words = [b"%d" % value for value in plan.values.ravel().tolist() for _ in range(1 if plan.magic == b"P2" else 3)]
    place = int(rng.integers(len(words)))
    replaced = [pick(rng, (*_NUMBERS, b"# why\n7", b"7# why\n", b"# not ended"))]
    words[place : place + 1] = pick(rng, (replaced, [], [words[place]] * 2))
    return write_header(plan.tokens, rng) + write_words(words, rng)


def _add_picture(plan: Plan, rng: Rng) -> bytes:
    content = write_header(plan.tokens, rng) + write_values(plan, rng)
    other = write_header(plan.tokens, rng) + write_values(plan, rng)
    return content + pick(rng, (other, b"\n" + other, other[: rng.integers(1, len(other))], b"\n", b"7\n", b"# end\n"))


def _lose_pixels(plan: Plan, rng: Rng) -> bytes:
    values = write_values(plan, rng)
    return write_header(plan.tokens, rng) + values[: len(values) - int(rng.integers(1, min(len(values), 30) + 1))]


STRUCTURAL: dict[str, Callable[[Plan, Rng], bytes]] = {
    "edit a number": _edit_number,
    "edit the size": _edit_size,
    "edit the maximum": _edit_maximum,
    "exceed the maximum": _exceed,
    "edit the first word": _edit_magic,
    "edit white space": _edit_blanks,
    "edit the values": _edit_values,
    "add a picture": _add_picture,
    "lose pixels": _lose_pixels,
}
