"""What became of one file that was to be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from unary.clinic.pacs_files import Parcel

# Out of resources (PS3.4 table B.2-1), processing failure and resource limitation (PS3.7 annex C).
_TRANSIENT = {*range(0xA700, 0xA800), 0x0110, 0x0213}
_WARNINGS = {
    0x0001: "elements were discarded", 0x0107: "an attribute has an error", 0x0116: "a value is out of range",
    0xB000: "elements were changed", 0xB006: "elements were discarded", 0xB007: "it does not match its SOP class",
}  # fmt: skip
_FAILURES = {
    0x0105: "no such attribute", 0x0106: "invalid attribute value", 0x0110: "processing failure",
    0x0112: "no such object", 0x0115: "invalid argument value", 0x0117: "invalid object",
    0x0118: "no such SOP class", 0x0119: "class and instance conflict", 0x0120: "missing attribute",
    0x0121: "missing attribute value", 0x0122: "this kind of object is not taken", 0x0124: "not authorised",
    0x0210: "duplicate invocation", 0x0211: "unrecognised operation", 0x0212: "mistyped argument",
    0x0213: "resource limitation", 0xC122: "this transfer syntax is not taken",
}  # fmt: skip
_RANGES = {0xA7: "out of resources", 0xA9: "it does not match its SOP class", 0xC0: "cannot be understood"}
_DUPLICATE = 0x0111


@dataclass(frozen=True)
class Delivery:
    """What became of one file.

    Attributes
    ----------
    stored
        Whether the PACS has confirmed that it holds it.
    attempts
        How often it was sent, or the peer was called for it.
    note
        Why it is not stored, or a warning that came with the confirmation; empty otherwise.
    transient
        Whether it is not stored, but a later attempt may succeed without a change.
    """

    parcel: Parcel
    stored: bool = False
    attempts: int = 0
    note: str = ""
    transient: bool = True

    def accept(self, note: str = "") -> Delivery:
        """Return it as stored."""
        return replace(self, stored=True, note=note, transient=False)

    def refuse(self, note: str, *, transient: bool = False) -> Delivery:
        """Return it as not stored."""
        return replace(self, note=note, transient=transient)

    def judge(self, status: int) -> Delivery:
        """Return it as the status of a C-STORE says, or the reason that STOW-RS gives (PS3.4 B.2.3, PS3.18 I.2)."""
        if status == 0:
            return self.accept()
        if status >> 12 == 0xB or status in _WARNINGS:
            return self.accept(f"warning 0x{status:04X}, {_WARNINGS.get(status, 'see its conformance statement')}")
        if status == _DUPLICATE:
            held = f"the PACS has an object of its SOP Instance UID already (0x{status:04X}), which was not compared"
            # That of a result of unary stands for its content.
            return self.accept(held) if self.parcel.own else self.refuse(held)
        word = (
            _FAILURES.get(status) or _RANGES.get(status >> 8) or ("cannot be understood" if status >> 12 == 0xC else "")
        )
        return self.refuse(f"refused with 0x{status:04X}{word and ', ' + word}", transient=status in _TRANSIENT)

    def count_attempts(self) -> str:
        """Words for how often it was tried."""
        times = {0: "not tried", 1: ""}.get(self.attempts, f"{self.attempts} attempts")
        return f" ({times})" if times else ""


class Interrupted(KeyboardInterrupt):
    """Sending was interrupted; ``deliveries`` tells of each file what had become of it by then."""

    def __init__(self, deliveries: tuple[Delivery, ...]) -> None:
        super().__init__()
        self.deliveries = deliveries


Send = Callable[[list[Delivery]], Iterator[Delivery]]
"""Try each once; yield each when its outcome is known."""
