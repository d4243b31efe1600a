"""Which places of evaluated images to look at: the strongest false alarms, lesions that were missed and found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unary.evaluation.evaluated_image import EvaluatedImage
from unary.evaluation.lesion_query import LesionQuery
from unary.evaluation.matching import Target
from unary.models.calibration import MOST_FINDINGS
from unary.outputs.views import Box
from unary.records import Finding, count_words

_PER_IMAGE = 2
_LESIONS = LesionQuery()


@dataclass(frozen=True, eq=False)
class Spot:
    """A place of an evaluated image to look at.

    Attributes
    ----------
    box
        Half-open, in stored pixels.
    title
        Never a patient's.
    rank
        Of the finding that is there; None where a lesion was missed.
    target
        Which lesion is there, by its place in the image's `Match.targets`; None at a false alarm.
    """

    image: EvaluatedImage
    box: Box
    title: str
    rank: int | None = None
    target: int | None = None


def select_findings(image: EvaluatedImage, threshold: float) -> list[Finding]:
    """Return the findings above a threshold, the highest score first, at most as many as are reported."""
    above = [finding for finding in image.findings if finding.score > threshold]
    return sorted(above, key=lambda finding: -finding.score)[:MOST_FINDINGS]


def is_found(image: EvaluatedImage, place: int, threshold: float) -> bool:
    """Return whether a target has a finding above a threshold."""
    score = image.score_target(place)
    return score is not None and score > threshold


def select_missed(image: EvaluatedImage, threshold: float, query: LesionQuery = _LESIONS) -> list[int]:
    """Return the targets without a finding above a threshold, the largest first, where an image's lesions count."""
    if image.normal or not query.selects_image(image.row):
        return []
    targets = image.match.targets
    missed = [k for k, each in enumerate(targets) if query.selects(each) and not is_found(image, k, threshold)]
    return sorted(missed, key=lambda place: -targets[place].area_mm2)


def find_box(target: Target) -> Box:
    """Return the half-open box around a target, in stored pixels."""
    low, high = target.outline.min(axis=0).tolist(), target.outline.max(axis=0).tolist()
    return low[0], low[1], high[0] + 1.0, high[1] + 1.0


def list_false_alarms(images: Sequence[EvaluatedImage], *, threshold: float, count: int) -> list[Spot]:
    """Return the strongest findings in normal images above a threshold, at most two of each."""
    found = [(image, each) for image in images if image.normal for each in image.findings if each.score > threshold]
    found.sort(key=lambda pair: -pair[1].score)
    return _thin(
        (
            Spot(
                image,
                finding.box,
                f"{image.row.image_id[-16:]}\nscore {finding.score:.3g}, rank {finding.rank}"
                + (", vascular" if finding.kind == "vascular pattern" else ""),
                rank=finding.rank,
            )
            for image, finding in found
        ),
        count,
    )


def list_lesions(
    images: Sequence[EvaluatedImage], query: LesionQuery, *, threshold: float, found: bool, count: int
) -> list[Spot]:
    """Return lesions that are missed, largest first, or found, highest score first; at most two of each image.

    A lesion is found when its best finding scores above the threshold.
    """
    listed: list[tuple[float, Spot]] = []
    for image in images:
        if image.normal or not query.selects_image(image.row):
            continue
        for number, target in enumerate(image.match.targets):
            score = image.score_target(number)
            if not query.selects(target) or is_found(image, number, threshold) is not found:
                continue
            said = f"score {score:.3g}" if score is not None else "not hit"
            title = f"{image.row.image_id[-16:]}\n{describe_target(target)}, {said}"
            ranks = sorted(image.match.hits[number], key=lambda rank: -image.match.scores[rank])
            spot = Spot(image, find_box(target), title, rank=ranks[0] if found else None, target=number)
            listed.append((-score if found and score is not None else -target.area_mm2, spot))
    listed.sort(key=lambda entry: entry[0])
    return _thin([place for _, place in listed], count)


def describe_target(target: Target) -> str:
    """Return what a target is, such as "cluster of 12" or "mass"."""
    count = len(target.lesions)
    if target.cluster:
        return f"cluster of {count}" if count > 1 else "cluster"
    return count_words(count, target.group) if count > 1 else target.group


def _thin(places: Iterable[Spot], count: int) -> list[Spot]:
    """The first few, at most two of each image."""
    taken = Counter[str]()
    chosen = []
    for place in places:
        taken[place.image.row.image_id] += 1
        if taken[place.image.row.image_id] <= _PER_IMAGE:
            chosen.append(place)
    return chosen[:count]
