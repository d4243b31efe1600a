"""What a report on whole pictures says first, by the rules of `unary.outputs.leads`, and beside published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import FEW_PATIENTS
from unary.outputs.leads import describe_auroc, is_few, judge_difference
from unary.records import count_words

_MATTERS = 0.02
"""The share of negatives that have been learned from, above that of positives, from which it must be said."""


@dataclass(frozen=True)
class PictureOutcome:
    """What came of whole pictures in one condition, to be put into words.

    ``condition`` begins a sentence; ``found`` is the subject's entry of ``metrics.json``; ``control`` is the best of
    the controls, in words, with its AUROC in its better direction, and ``difference`` the subject's AUROC minus that.
    """

    condition: str
    found: Mapping[str, Any]
    control: str
    control_auroc: float
    difference: Estimate | None


def describe_pictures(
    subject: str,
    outcomes: Sequence[PictureOutcome],
    *,
    what: tuple[str, str],
    unit: str,
    published: tuple[str, float] | None = None,
) -> str:
    """Say whether a detector of whole pictures knows more than its best control, condition by condition.

    Parameters
    ----------
    outcomes
        At least one; the published figure is compared with the first.
    what
        The positive and the negative pictures, in the plural.
    unit
        What is resampled, such as a patient.
    published
        The highest published figure for the same split, and whose it is.
    """
    first = outcomes[0].found
    sides = " against ".join(
        f"{first[f'n_{side}']:,} {words} ({count_words(first[f'n_{side}_patients'], unit)})"
        for side, words in zip(("positive", "negative"), what, strict=True)
    )
    if is_few(first):
        return (
            f"Too few to tell: {sides}. Below {FEW_PATIENTS} on either side nothing is claimed of {subject} or of any "
            "other."
        )
    words, unbeaten = [f"Compared were {sides}."], 0
    for one in outcomes:
        verdict = judge_difference(one.difference)
        between = _describe_difference(one.difference)
        unbeaten += verdict != "better than"
        words.append(
            f"{one.condition}, {subject} has an AUROC of {describe_auroc(one.found)}; the best control, {one.control}, "
            f"has {one.control_auroc:.3f}, and {subject} is {verdict} it ({between})."
        )
    if unbeaten:
        words.append("Where it does not beat its best control, it has shown nothing that the file does not tell.")
    if published is not None:
        words.append(_describe_published(subject, first, *published))
    return " ".join(words)


def _describe_published(subject: str, found: Mapping[str, Any], method: str, area: float) -> str:
    said = f"The highest of the published figures for this split is {area:.3f} ({method}, without an interval)"
    interval = found["auroc_ci95"]
    if interval is None:
        return f"{said}; whether {subject} is above it is not known."
    place = "above" if interval[0] > area else "below" if interval[1] < area else "around"
    told = {"above": "lies above it", "below": "lies below it", "around": "holds it"}[place]
    return f"{said}; the interval of {subject}, with the files as they are, {told}."


def _describe_difference(found: Estimate | None) -> str:
    if found is None or found.low is None:
        return "no paired interval"
    return f"difference {found.value:+.3f}, {found.low:+.3f} to {found.high:+.3f}"


def describe_learned(negative: tuple[int, int], positive: tuple[int, int], *, nothing_new: bool = False) -> str:
    """Say how many test pictures of either side, of how many, have as good as been learned from.

    Empty where they are too few on the negative side to matter, or as many on the other; but not where ``nothing_new``
    says that, without near copies, a side would have no picture left.

    >>> describe_learned((1, 100), (0, 100))
    ''
    """
    learned, other = (count / of for count, of in (negative, positive))
    flatters = learned - other >= _MATTERS
    if not flatters and not nothing_new:
        return ""
    told = (
        f"Of the {negative[1]:,} negative test pictures {negative[0]:,} are copies or near copies of training "
        f"pictures, of the {positive[1]:,} positive ones {positive[0]:,}"
    )
    if flatters:
        told += ": figures of all test pictures, published ones included, flatter whatever remembers"
    if nothing_new:
        told += (
            ". Without copies and near copies, of training or of other test pictures, one side has no picture left: "
            "nothing here tells how new pictures would fare"
        )
    return f"{told}."
