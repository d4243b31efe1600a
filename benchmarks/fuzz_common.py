"""What all kinds of `fuzz.py` share: a damaged input, what became of it, damage by bytes, how an image is judged."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unary.errors import ImageError
from unary.images.isolation import IsolatedReader
from unary.images.isolation_process import ReadingLimits
from unary.profiles.mammography import MAMMOGRAPHY
from unary.records import Image

LIMITS = ReadingLimits(timeout_s=10, memory_mib=1024, file_mib=64, megapixels=100)
MEMORY_MIB = 3072  # of a worker, on top of what it has after starting
Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes
    ----------
    sample, mutation
        What was damaged, and how.
    files
        By name; the first is the one that is read.
    right
        What the undamaged input holds; None where it is to be refused.
    valid
        Whether this is undamaged and ordinary, so that a refusal is a failure.
    """

    sample: str
    mutation: str
    files: dict[str, bytes]
    right: Any
    valid: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one case; ``verdict`` is refused, equal, as stored, or begins with FAILED."""

    number: int
    sample: str
    mutation: str
    verdict: str
    reason: str
    seconds: float


class Kind(Protocol):
    """One kind of input. Everything about a case follows from the seed and its number."""

    def build_case(self, seed: int, number: int) -> Case:
        """Return the case of one number."""

    def judge(self, case: Case, folder: Path) -> tuple[str, str]:
        """Return the verdict on what lies in the folder, and the reason of a refusal or failure."""


@dataclass(frozen=True)
class Grey:
    """What an oracle finds: pixels, float64, and the largest value that they could have, None for floats."""

    pixels: NDArray[np.float64]
    maximum: float | None


@contextmanager
def limiting_memory() -> Iterator[None]:
    """Bound the address space of this process while the block runs."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_MIB * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def judge_image(
    reader: IsolatedReader,
    case: Case,
    folder: Path,
    read_strictly: Callable[[bytes], Grey],
    *,
    names: Sequence[str] = (),
) -> tuple[str, str]:
    """Judge the one file of a case by an oracle, whose ValueError refuses; ``names`` must not stand in a message.

    The header, which `unary check` reads, must not contradict the pixels, and its refusal keeps the same rules.
    """
    [(name, content)] = case.files.items()
    path = folder / name

    def refuse(error: ImageError) -> tuple[str, str]:
        told = any(patient in str(error) for patient in names)
        return ("FAILED: names the patient", "") if told else judge_refusal(str(error), error.reason, name, case)

    try:
        image = reader.read(path)
    except ImageError as error:
        verdict, shape = refuse(error), None
    else:
        verdict, shape = _judge_pixels(image, case.right, content, read_strictly), image.shape
    if verdict[0].startswith("FAILED"):
        return verdict
    try:
        attributes = reader.read_attributes(path, MAMMOGRAPHY.headers)
    except ImageError as error:
        return refuse(error) if shape is None else ("FAILED: pixels without a header", str(error))
    if shape is not None and attributes.shape != shape:
        return "FAILED: the header contradicts", f"{attributes.shape} {shape}"
    return verdict


def _judge_pixels(
    image: Image, right: Grey | None, content: bytes, read_strictly: Callable[[bytes], Grey]
) -> tuple[str, str]:
    found = image.pixels.astype(np.float64)
    if right is not None and np.array_equal(found, right.pixels) and right.maximum in (None, image.value_range[1]):
        return "equal", ""
    try:
        second = read_strictly(content)
    except ValueError as error:
        return "FAILED: second reader refuses", str(error)
    if second.pixels.shape != found.shape:
        return "FAILED: shapes differ", f"{second.pixels.shape} {found.shape}"
    if not np.allclose(second.pixels, found, rtol=1e-6, atol=1e-6 * np.abs(second.pixels).max()):
        return "FAILED: pixels differ", f"{np.mean(second.pixels != found):.3f} of them"
    if second.maximum not in (None, image.value_range[1]):
        return "FAILED: range differs", f"{second.maximum:g} {image.value_range[1]:g}"
    return "as stored", ""


def judge_refusal(message: str, reason: str | None, name: str, case: Case) -> tuple[str, str]:
    """A refusal names the file, on one line, is no crash, and is not of what is ordinary."""
    if reason in ("CRASH", "TIMEOUT"):
        return f"FAILED: {reason}", message
    if name not in message or "\n" in message or len(message) > 1500:
        return "FAILED: the message", message[:300]
    if case.valid:
        return "FAILED: refused though ordinary", message
    return "refused", str(reason)


def draw_name(rng: Rng, suffix: str) -> str:
    """The name of the file: now and then with the suffix of another format, or in capitals."""
    others = (suffix.upper(), ".png", ".tif", ".tiff", ".pgm", ".jpg", ".dcm")
    return "fuzzed" + (suffix if rng.random() < 0.97 else others[rng.integers(len(others))])


def draw_picture(rng: Rng, low: int, high: int, *, largest: int = 40) -> NDArray[np.int64]:
    """A gradient with noise that uses the whole range; never of one value alone."""
    rows, cols = (int(size) for size in rng.integers(2, largest, size=2))
    steps = np.add.outer(np.linspace(0, 0.5, rows), np.linspace(0, 0.5, cols)) + rng.normal(0, 0.1, (rows, cols))
    picture = np.clip(np.rint(low + (high - low) * steps), low, high).astype(np.int64)
    picture[0, 0], picture[-1, -1] = low, high
    return picture


def pick(rng: Rng, options: Sequence[Any]) -> Any:
    """One of several, whatever their types."""
    return options[int(rng.integers(len(options)))]


def flip(content: bytes, rng: Rng, begin: int = 0, end: int | None = None, *, most: int = 8) -> bytes:
    """Flip some bits between two places."""
    found, end = bytearray(content), len(content) if end is None else end
    for place in rng.integers(begin, max(end, begin + 1), size=rng.integers(1, most + 1)):
        if place < len(found):
            found[place] ^= 1 << int(rng.integers(8))
    return bytes(found)


def _scramble(content: bytes, rng: Rng) -> bytes:
    start, size = int(rng.integers(len(content))), int(rng.integers(1, 64))
    return content[:start] + rng.bytes(min(size, len(content) - start)) + content[start + size :]


def _truncate(content: bytes, rng: Rng) -> bytes:
    return content[: rng.integers(len(content))]


def _cut_tail(content: bytes, rng: Rng) -> bytes:
    return content[: -int(rng.integers(1, 20))]


def _append(content: bytes, rng: Rng) -> bytes:
    extra = int(pick(rng, (1, 2, 4, 8, 100, 10_000)))
    return content + pick(rng, (b"\0" * extra, rng.bytes(extra), content, b"\n" * extra))


def _insert(content: bytes, rng: Rng) -> bytes:
    place = int(rng.integers(len(content)))
    return content[:place] + rng.bytes(int(rng.integers(1, 20))) + content[place:]


def _duplicate(content: bytes, rng: Rng) -> bytes:
    begin = int(rng.integers(len(content)))
    return content[: begin + int(rng.integers(1, 60))] + content[begin:]


def _remove(content: bytes, rng: Rng) -> bytes:
    begin = int(rng.integers(len(content)))
    return content[:begin] + content[begin + int(rng.integers(1, 30)) :]


def _zero(content: bytes, rng: Rng) -> bytes:
    begin = int(rng.integers(len(content)))
    size = min(int(rng.integers(1, 60)), len(content) - begin)
    return content[:begin] + bytes(size) + content[begin + size :]


def _flip_head(content: bytes, rng: Rng) -> bytes:
    return flip(content, rng, 0, min(64, len(content)), most=3)


def _scramble_head(content: bytes, rng: Rng) -> bytes:
    head = min(int(rng.integers(1, 33)), len(content))
    return rng.bytes(head) + content[head:]


BYTES: dict[str, Callable[[bytes, Rng], bytes]] = {
    "flip bits": flip,
    "flip bits of the head": _flip_head,
    "scramble": _scramble,
    "scramble the head": _scramble_head,
    "truncate": _truncate,
    "cut the tail": _cut_tail,
    "append": _append,
    "insert": _insert,
    "duplicate": _duplicate,
    "remove": _remove,
    "zero": _zero,
}
"""Damage that knows nothing of the format; the content must not be empty."""
