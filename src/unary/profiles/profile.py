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

    Attributes
    ----------
    working_spacing_mm
        Pixel spacing at which detectors of the working grid see an image; None leaves images as they are stored.
    patch_mm, patch_px
        Side of a patch on that grid.
    rim_mm, rim_px
        The outermost tissue that is never scored; 0 for none.
    merge_mm, merge_px
        Regions of a map nearer to each other than this are one finding.
    """

    working_spacing_mm: float | None
    patch_mm: float
    patch_px: int
    rim_mm: float
    rim_px: int
    merge_mm: float
    merge_px: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None:
                continue
            if not 0 <= value < math.inf or (value == 0 and not name.startswith("rim")):
                raise ValueError(f"{name} must be positive and finite, of a rim also 0; got {value}")


@dataclass(frozen=True)
class LesionGroup:
    """Lesions that are judged together.

    Attributes
    ----------
    name
        As tables and ``metrics.json`` call it.
    title
        As reports call it, in the plural.
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

    Attributes
    ----------
    name, title
        As in `LesionGroup`.
    negative, positive
        Categories; ``"4"`` holds ``"4a"`` to ``"4c"`` too.
    group
        Only images with a lesion of this group take part, on both sides; None for all images.
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
    if assessment is None:
        return False
    return assessment in categories or (assessment[-1:].isalpha() and assessment[:-1] in categories)


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
    comparisons
        What an image score should tell apart.
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
    reason
        One of `unary.errors.REASONS`.
    detail
        What it means, in words.
    refused
        Whether such images are refused; if not, it is noted, and refused by a strict check alone.
    keywords
        Elements that are there: coded ones must say YES, others must not be empty.
    codes
        Code values of views and of their modifiers.
    image_types
        Values of Image Type.
    patterns
        Elements, by keyword, and a regular expression that their text holds, in any case.
    magnified_from
        An Estimated Radiographic Magnification Factor of so much or more.
    """

    reason: str
    detail: str
    refused: bool
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
        What else the header may say; each reason once.
    """

    sop_classes: tuple[str, ...] = ()
    capture_modalities: tuple[str, ...] = ()
    refusal: tuple[str, str] = ("SECONDARY_CAPTURE", "not an image as its device made it")
    flags: tuple[HeaderFlag, ...] = ()


@dataclass(frozen=True)
class Codes:
    """What DICOM results say of the examination.

    Attributes
    ----------
    procedure
        The procedure that is reported.
    site
        The anatomic site of findings; None where it is not known.
    """

    procedure: Concept
    site: Concept | None


@dataclass(frozen=True)
class Profile:
    """What is particular to a kind of image; it travels with the model.

    Attributes
    ----------
    name
        By which it is chosen.
    noun
        What one such image is called in reports, singular.
    detector
        The name of the detector that is fitted when none is asked for (`unary.detectors.DETECTORS`).
    mask
        How tissue is found.
    lengths
        What the anatomy sets.
    reading
        Lesions and categories.
    headers
        Which DICOM images are accepted.
    codes
        What DICOM results say.
    """

    name: str
    noun: str
    detector: str
    mask: TissueRule
    lengths: Lengths
    reading: Reading
    headers: Headers
    codes: Codes
