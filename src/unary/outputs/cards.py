"""What a page shows of one image: a card with the whole image, what is marked in it, and its places at full resolution.

Pictures are named by where they lie beside the page, or are inside it (`embed`); outlines are drawn by the page.
"""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from unary.outputs.heat_map import say_image_score
from unary.outputs.views import Scale, Views
from unary.records import Finding, count_words

Look = Literal["finding", "vascular", "found", "missed", "lesion"]
_SMALL = 0.012  # of the image's long side: what is smaller gets a ring, or nobody would see it


@dataclass(frozen=True)
class Mark:
    """An outline over an image: a finding, with the colour of its score and its rank, or a known lesion.

    Vertices are (row, col) of the stored image; ``words`` say what it is.
    """

    look: Look
    outline: tuple[tuple[float, float], ...] = field(repr=False)
    words: str
    label: str = ""
    colour: str | None = None


@dataclass(frozen=True)
class Place:
    """A crop beside the whole image: where its picture is, its box in stored pixels, what to say of it.

    ``label`` is what stands in the picture, beside the image's name.
    """

    source: str = field(repr=False)
    box: tuple[int, int, int, int]
    words: str
    label: str
    factor: int = 1


@dataclass(frozen=True)
class Words:
    """What is said below a crop, and in it."""

    below: str
    inside: str


@dataclass(frozen=True)
class Card:
    """One image on a page.

    Attributes
    ----------
    anchor
        Unique on its page; made by `make_anchor`.
    heading
        The name of the image, never a patient's.
    facts
        What was found, in words: the first stands in every picture beside the name.
    whole, glow
        Sources of the whole image and of what lies over it in colour; ``glow`` is None where nothing glows.
    shape
        Rows and columns of the stored image.
    reach
        How many of them, in its pixels, ``whole`` and ``glow`` cover: whole blocks, so a little more.
    scale
        Of the colours; None where there are none.
    drawn
        Whether marks are drawn into ``whole`` already, as in pictures of former versions.
    link
        Where to go from the heading: words and address.
    """

    anchor: str
    heading: str
    facts: tuple[str, ...]
    whole: str = field(repr=False)
    glow: str | None = field(repr=False)
    shape: tuple[int, int]
    reach: tuple[float, float]
    marks: tuple[Mark, ...] = ()
    places: tuple[Place, ...] = ()
    scale: Scale | None = None
    notes: tuple[str, ...] = ()
    drawn: bool = False
    link: tuple[str, str] | None = None


@dataclass(frozen=True)
class Snapshot:
    """One place of an image apart from its card, which is at ``address``."""

    card: Card
    place: Place
    words: str
    address: str


def make_anchor(name: str) -> str:
    """Return a fragment of an address for a name.

    >>> make_anchor("P1 L/CC")
    'image-P1_20L_2FCC'
    """
    return "image-" + re.sub(
        r"[^A-Za-z0-9.-]", lambda found: "_" + found[0].encode("utf-8", "replace").hex().upper(), name
    )


def name_file(*parts: str) -> str:
    """Return the address of a file beside the page, by the folders that lead to it."""
    return "/".join(urllib.parse.quote(part.encode("utf-8", "surrogateescape"), safe="") for part in parts)


def embed(picture: bytes) -> str:
    """Return a JPEG or PNG as a source that is inside the page."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def mark_findings(findings: Iterable[Finding], scale: Scale, told: Mapping[int, str] | None = None) -> list[Mark]:
    """Return the outlines of findings, numbered by rank; ``told`` is what is known of some by their rank."""
    marks = []
    for finding in findings:
        words = describe_finding(finding) + (f"; {said}" if (said := (told or {}).get(finding.rank)) else "")
        look: Look = "finding" if finding.kind == "unusual region" else "vascular"
        outline = tuple((float(row), float(col)) for row, col in finding.outline)
        marks.append(Mark(look, outline, words, str(finding.rank), scale.colour(finding.score)))
    return marks


def describe_finding(finding: Finding) -> str:
    """Return rank and score of a finding, with what else is known of it.

    >>> describe_finding(Finding(1, 4.0, 0.05, (0, 0, 1, 1), (), (0, 0), 1, 2.0, 3.04))
    'Finding 1: score 4, p = 0.05, 3.0 mm across'
    """
    words = [f"Finding {finding.rank}: score {finding.score:.3g}"]
    if finding.p_value is not None:
        words.append(f"p = {finding.p_value:.2g}")
    if finding.diameter_mm is not None:
        words.append(f"{finding.diameter_mm:.1f} mm across")
    if finding.kind != "unusual region":
        words.append(finding.kind)
    return ", ".join(words)


def describe_findings_of(count: int, image_score: float | None) -> str:
    """Return what stands in a picture: how many findings, and the score of the image.

    >>> describe_findings_of(1, 3.14159), describe_findings_of(0, None)
    ('1 finding, image score 3.14', 'no finding, not scored')
    """
    return f"{count_words(count, 'finding') if count else 'no finding'}, {say_image_score(image_score)}"


def say_findings(findings: Iterable[Finding]) -> list[Words]:
    """Return what is said of the crops of findings."""
    return [Words(describe_finding(each), f"Finding {each.rank}, score {each.score:.3g}") for each in findings]


def embed_views(views: Views, words: Sequence[Words]) -> dict[str, Any]:
    """Return the fields of a card whose pictures are inside the page."""
    return {
        "whole": embed(views.whole),
        "glow": None if views.glow is None else embed(views.glow),
        "places": tuple(
            Place(embed(crop.png), crop.box, said.below, said.inside, crop.factor)
            for crop, said in zip(views.crops, words, strict=True)
        ),
        "shape": views.shape,
        "reach": views.reach,
        "scale": views.scale,
    }


def link_views(written: Mapping[str, Any], folder: Sequence[str], words: Sequence[Words]) -> dict[str, Any]:
    """Return the fields of a card whose pictures are files, from what `unary.outputs.views.write_views` returned."""
    places = tuple(
        Place(name_file(*folder, each["file"]), tuple(each["box"]), said.below, said.inside, each["factor"])
        for each, said in zip(written["places"], words, strict=True)
    )
    return {
        "whole": name_file(*folder, written["whole"]),
        "glow": None if written["map"] is None else name_file(*folder, written["map"]),
        "places": places,
        "shape": tuple(written["shape"]),
        "reach": tuple(written["reach"]),
        "scale": Scale(**written["scale"]),
    }


def has_lesions(cards: Iterable[Card]) -> bool:
    """Return whether any lesion is known, so that it can be switched off."""
    return any(mark.look in ("found", "missed", "lesion") for card in cards for mark in card.marks)


def draw_path(outline: ArrayLike) -> str:
    """Return a closed outline of (row, col) as SVG draws it, in coordinates of pixel edges, to a tenth of a pixel."""
    points = np.round(np.asarray(outline, np.float64) + 0.5, 1)
    return "M" + "L".join(f"{col:g} {row:g}" for row, col in points.tolist()) + "Z"


def lay_whole(card: Card, box: Sequence[float]) -> str:
    """Return as CSS where a picture of the whole image lies, of which a box in stored pixels is seen."""
    rows, cols = box[2] - box[0], box[3] - box[1]
    sides = (("width", card.reach[1] / cols), ("height", card.reach[0] / rows))
    corner = (("left", -box[1] / cols), ("top", -box[0] / rows))
    return ";".join(f"{name}:{100 * share:.3f}%" for name, share in (*sides, *corner))


def find_ring(outline: ArrayLike, shape: tuple[int, int]) -> tuple[float, float, float] | None:
    """Return (x, y, radius) of a ring around an outline that is too small to be seen in the whole image, or None."""
    points = np.asarray(outline, np.float64) + 0.5
    least = _SMALL * max(shape)
    if float(np.ptp(points, axis=0).max()) >= least:
        return None
    row, col = points.mean(axis=0).tolist()
    return round(col, 1), round(row, 1), round(least, 1)


def find_label(outline: ArrayLike, shape: tuple[int, int]) -> tuple[float, float]:
    """Return where the number of an outline stands, in percent from the left and from the top, inside the image."""
    points = np.asarray(outline, np.float64) + 0.5
    left = 100 * float(points[:, 1].max()) / shape[1]
    top = 100 * float(points[:, 0].min()) / shape[0]
    return round(min(max(left, 0.0), 96.0), 2), round(min(max(top, 3.0), 100.0), 2)
