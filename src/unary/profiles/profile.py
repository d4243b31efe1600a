"""What a kind of image needs to be told apart by: the values that every other module reads instead of knowing."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

OTHER = "other"

TissueRule = Literal["bright_region", "none"]
"""How tissue is told from background: the largest bright region, or every pixel that is not padding."""

Concept = tuple[str, str, str]
"""A coded concept of a DICOM report: code value, coding scheme, meaning."""


@dataclass(frozen=True)
class Lengths:
    """Lengths that the anatomy sets, and their stand-ins in working pixels where the pixel spacing is unknown.

    Detectors of the working grid see an image at ``working_spacing_mm``, or with a longer side of ``working_size_px``
    (both None: as it is stored), in patches whose side is ``patch``. The outermost ``rim`` of tissue is never scored;
    regions nearer than ``merge`` are one finding.
    """

    working_spacing_mm: float | None
    patch_mm: float
    patch_px: int
    rim_mm: float
    rim_px: int
    merge_mm: float
    merge_px: float
    working_size_px: int | None = None

    def __post_init__(self) -> None:
        if None not in (self.working_spacing_mm, self.working_size_px):
            raise ValueError("working_spacing_mm and working_size_px exclude each other")
        for name, value in vars(self).items():
            if value is not None and (not 0 <= value < math.inf or (value == 0 and not name.startswith("rim"))):
                raise ValueError(f"{name} must be positive and finite, of a rim also 0; got {value}")


@dataclass(frozen=True)
class LesionGroup:
    """Lesions that are judged together.

    Attributes
    ----------
    name, title
        As tables and ``metrics.json`` call it, and as reports do, in the plural.
    beginnings
        A lesion belongs here if its name, or a word of it, begins so; lower case.
    clustered
        Whether neighbours are one target, reported once.
    size_limits_mm
        Two bounds that divide the group by size; None for no division.
    """

    name: str
    title: str
    beginnings: tuple[str, ...]
    clustered: bool = False
    size_limits_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """Two sets of images, by their assessment category, that an image score should tell apart.

    Of categories, ``"4"`` holds ``"4a"`` to ``"4c"`` too. With a ``group``, only images with a lesion of it take part,
    on both sides.
    """

    name: str
    title: str
    negative: tuple[str, ...]
    positive: tuple[str, ...]
    group: str | None = None


def is_among(assessment: str | None, categories: Collection[str]) -> bool:
    """Return whether an assessment is one of these categories, or a subdivision of one by a letter.

    >>> is_among("4a", ("4", "5")), is_among("4", ("4a",)), is_among(None, ("4",))
    (True, False, False)
    """
    return assessment is not None and (
        assessment in categories or (assessment[-1:].isalpha() and assessment[:-1] in categories)
    )


@dataclass(frozen=True)
class Reading:
    """How images of a kind are read by people: groups of lesions, and categories of assessment.

    Attributes
    ----------
    groups
        In the order of tables; a lesion of none of them is ``"other"``.
    assessments
        The categories that a manifest may state, such as those of a reporting standard; empty for any word.
    normal
        Categories of an image that shows nothing at all.
    subgroups
        Groups divided by category: name, title, group, categories.
    """

    groups: tuple[LesionGroup, ...] = ()
    assessments: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()
    subgroups: tuple[tuple[str, str, str, tuple[str, ...]], ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @property
    def group_names(self) -> tuple[str, ...]:
        """The names of all groups, the rest last."""
        return (*(group.name for group in self.groups), OTHER)

    def find_group(self, lesion: str) -> str:
        """Return the name of the group that a lesion's name belongs to."""
        text = lesion.strip().lower()
        for group in self.groups:
            if text.startswith(group.beginnings) or any(f" {start}" in text for start in group.beginnings):
                return group.name
        return OTHER


@dataclass(frozen=True)
class HeaderFlag:
    """Something that a DICOM header may say of an image, found by any of these signs.

    Attributes
    ----------
    reason, detail
        One of `unary.errors.REASONS`, and what it means, in words.
    refused
        Whether such images are refused; if not, it is noted, and refused by a strict check alone.
    keywords
        Elements that are there: coded ones must say YES, others must not be empty.
    codes, image_types
        Code values of views and of their modifiers; values of Image Type.
    patterns
        Elements, by keyword, and a regular expression that their text holds, in any case.
    magnified_from
        An Estimated Radiographic Magnification Factor of so much or more.
    """

    reason: str
    detail: str
    refused: bool = True
    keywords: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    image_types: tuple[str, ...] = ()
    patterns: tuple[tuple[str, str], ...] = ()
    magnified_from: float | None = None


@dataclass(frozen=True)
class Headers:
    """Which DICOM images are accepted.

    Attributes
    ----------
    sop_classes
        Accepted SOP Class UIDs; empty for all but secondary captures.
    capture_modalities
        Modalities whose secondary captures are accepted when asked for.
    refusal
        The reason code and the words for an object of another kind.
    flags
        Each reason once.
    """

    sop_classes: tuple[str, ...] = ()
    capture_modalities: tuple[str, ...] = ()
    refusal: tuple[str, str] = ("SECONDARY_CAPTURE", "not an image as its device made it")
    flags: tuple[HeaderFlag, ...] = ()


@dataclass(frozen=True)
class Codes:
    """What DICOM results say of the examination: its procedure, and the anatomic site of findings if known."""

    procedure: Concept
    site: Concept | None


@dataclass(frozen=True)
class Profile:
    """What is particular to a kind of image, which is chosen by its name; it travels with the model.

    ``noun`` is what reports call one such image, and ``detector`` the one of `unary.detectors.DETECTORS` that is fitted
    when none is asked for. A pixel spacing outside ``spacing_range_mm`` is most likely stated in another unit. With
    ``vessels``, findings that follow a calcified one are told from the others; with ``metal``, clips and markers are
    left out of the tissue.
    """

    name: str
    noun: str
    detector: str
    mask: TissueRule
    lengths: Lengths
    reading: Reading
    headers: Headers
    codes: Codes
    spacing_range_mm: tuple[float, float] = (0.0005, 20.0)
    vessels: bool = False
    metal: bool = False
