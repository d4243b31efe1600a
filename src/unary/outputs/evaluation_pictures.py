"""The images of an evaluation as its pages show them: each with its findings, its lesions, and what became of them.

Pictures are drawn while an image is evaluated, for its pixels are gone afterwards, and lie as files beside the page. Of
more images than a page is for, evenly spread ones are drawn; the tables beside it have all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unary.evaluation.evaluated_image import EvaluatedImage
from unary.evaluation.lesion_query import ALL_LESIONS, LesionQuery, list_queries
from unary.models.bundle import Model
from unary.models.examination import DEFAULT_POINT, ScoredImage
from unary.outputs.card_pages import name_page
from unary.outputs.cards import (
    Card,
    Look,
    Mark,
    Snapshot,
    Words,
    describe_findings_of,
    link_views,
    make_anchor,
    mark_findings,
    say_findings,
)
from unary.outputs.detection_places import (
    Spot,
    describe_target,
    find_box,
    is_found,
    list_false_alarms,
    list_lesions,
    select_findings,
    select_missed,
)
from unary.outputs.report import Cell, Link, Section, Table
from unary.outputs.views import Views, choose_scale, draw_views, write_views
from unary.profiles import Reading
from unary.records import Image, count_words

FOLDER = "pictures"
_MOST_IMAGES = 1000
_MOST_MISSED = 8  # lesions of an image
_SPOTS = 12
_OWN = re.compile(r"\d{5}-(view\.jpg|view_map\.png|place-\d+\.png)")
FOUND, MISSED, FALSE, ODD = "lesion found", "lesion missed", "false finding", "unlike the training images"
_UNJUDGED, _NOTHING = "a finding that is not judged", "nothing found, nothing listed"


def find_threshold(model: Model) -> float:
    """Return that of the default operating point; lowest of all for a model that has not been calibrated."""
    points = () if model.calibration is None else model.calibration.operating_points
    return next((point.threshold for point in points if point.name == DEFAULT_POINT), -math.inf)


def draw_evaluated(model: Model, evaluated: EvaluatedImage, image: Image, scored: ScoredImage) -> Views:
    """Draw an image that has been evaluated: its findings at the default operating point, then lesions missed there."""
    threshold = find_threshold(model)
    scale = choose_scale(model, scored, threshold if threshold > -math.inf else None)
    missed = select_missed(evaluated, threshold)[:_MOST_MISSED]
    places = [find_box(evaluated.match.targets[place]) for place in missed]
    return draw_views(image, scored, select_findings(evaluated, threshold), scale, places=places)


@dataclass(frozen=True)
class EvaluationPictures:
    """Draws images into ``folder``, beside the page, while they are evaluated: give `draw` to `evaluate`.

    ``images`` is how many there will be.
    """

    out: Path
    model: Model
    images: int

    def draw(self, number: int, evaluated: EvaluatedImage, image: Image, scored: ScoredImage) -> dict[str, Any] | None:
        """Draw one image, and return what its card needs; None of one that is left out, where there are too many."""
        every = -(-self.images // _MOST_IMAGES)
        if number % every:
            return None
        views, folder = draw_evaluated(self.model, evaluated, image, scored), self.out / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return write_views(views, folder, f"{number + 1:05d}-")


def remove_former_pictures(out: Path, drawn: Iterable[Mapping[str, Any]]) -> None:
    """Remove what earlier evaluations have drawn beside the page, and this one, whose pictures are given, has not."""
    shown = {
        name for each in drawn for name in (each["whole"], each["map"], *(place["file"] for place in each["places"]))
    }
    for path in (out / FOLDER).glob("*"):
        if _OWN.fullmatch(path.name) and path.name not in shown:
            path.unlink()


Show = Callable[[Sequence[Words]], dict[str, Any]]
"""Given what to say of the crops, return the fields of a card that are its pictures."""


def build_card(image: EvaluatedImage, model: Model, show: Show) -> Card:
    """Return the card of an image that `draw_evaluated` has drawn."""
    threshold, targets = find_threshold(model), image.match.targets
    findings, missed = select_findings(image, threshold), select_missed(image, threshold)[:_MOST_MISSED]
    told = _tell_hits(image)
    words = [
        Words(f"{said.below}; {told[finding.rank]}", said.inside)
        for finding, said in zip(findings, say_findings(findings), strict=True)
    ]
    words += [Words(f"Missed: {describe_target(targets[place])}", "missed") for place in missed]
    shown = show(words)
    facts = [describe_findings_of(len(findings), image.image_score), _describe_row(image)]
    if targets and _counts(image):
        found = sum(is_found(image, place, threshold) for place in range(len(targets)))
        facts.append(f"{found} of {count_words(len(targets), 'lesion')} found")
    return Card(
        anchor=make_anchor(image.row.image_id),
        heading=image.row.image_id,
        facts=tuple(facts),
        marks=(*_mark_lesions(image, threshold), *mark_findings(findings, shown["scale"], told)),
        notes=tuple(f"unlike the images that the model has learned from: {line}" for line in image.out_of_domain),
        **shown,
    )


def _counts(image: EvaluatedImage) -> bool:
    return LesionQuery().selects_image(image.row)


def _is_judged(image: EvaluatedImage) -> bool:
    """Whether what lies on no listed lesion is false: not of a partial list, nor of an abnormal image without one."""
    return image.row.complete and (image.row.label != "positive" or len(image.match.targets) > 0)


def _describe_row(image: EvaluatedImage) -> str:
    row = image.row
    known = [f"labelled {row.label}" if row.label else "without a label"]
    return ", ".join(known + ([f"assessment {row.assessment}"] if row.assessment else []))


def _tell_hits(image: EvaluatedImage) -> dict[int, str]:
    """What each finding lies on, by its rank."""
    on: dict[int, list[str]] = {finding.rank: [] for finding in image.findings}
    for target, ranks in zip(image.match.targets, image.match.hits, strict=True):
        for rank in ranks:
            on[rank].append(describe_target(target))
    nothing = "on no known lesion" if _is_judged(image) else "where nothing is listed, of a partial list or none"
    return {rank: f"on: {', '.join(words)}" if words else nothing for rank, words in on.items()}


def _mark_lesions(image: EvaluatedImage, threshold: float) -> list[Mark]:
    marks = []
    for place, target in enumerate(image.match.targets):
        outline = tuple((float(row), float(col)) for row, col in target.outline)
        look: Look = "lesion" if not _counts(image) else "found" if is_found(image, place, threshold) else "missed"
        marks.append(Mark(look, outline, describe_target(target)))
    return marks


def build_image_sections(
    images: Sequence[EvaluatedImage], model: Model, drawn: Mapping[str, dict[str, Any]]
) -> tuple[tuple[Section, ...], tuple[Card, ...]]:
    """Return sections with what alarms falsely, what is missed and found, and a table of all images; and their cards.

    The cards are in the order of their pages (`unary.outputs.card_pages`).
    """
    shown = [image for image in images if image.row.image_id in drawn]
    cards = {image.row.image_id: build_card(image, model, _link(drawn[image.row.image_id])) for image in shown}
    addresses = {name: f"{name_page(place)}#{card.anchor}" for place, (name, card) in enumerate(cards.items())}
    threshold = find_threshold(model)
    sections = [
        *_build_strips(shown, cards, addresses, threshold, model.profile.reading),
        Section("All images", (_explain(len(shown), len(images)),), (_tabulate(shown, addresses, threshold),)),
    ]
    return tuple(sections), tuple(cards.values())


def _link(written: Mapping[str, Any]) -> Show:
    return lambda words: link_views(written, (FOLDER,), words)


def _explain(shown: int, images: int) -> str:
    chosen = (
        "" if shown == images else f" Of {images:,} images {shown:,}, evenly spread, are shown; images.csv has all."
    )
    return (
        "A finding is false where it lies on no known lesion of an image whose lesions are all listed; lesions are to "
        "be found in images labelled positive. What lies on a benign lesion, or in an image whose list is partial or "
        f"missing, is not judged.{chosen} Colour and outline of a finding tell its score, on one scale in all "
        "images: from the level from which places are looked at to the highest score of a normal image that set the "
        "thresholds."
    )


def _tabulate(images: Sequence[EvaluatedImage], addresses: Mapping[str, str], threshold: float) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for image in images:
        findings, missed = select_findings(image, threshold), select_missed(image, threshold)
        lesions = len(image.match.targets) if _counts(image) else 0
        hit = {rank for ranks in image.match.hits for rank in ranks}
        false = sum(finding.rank not in hit for finding in findings) if _is_judged(image) else 0
        told = [FOUND] * (lesions > len(missed)) + [MISSED] * bool(missed) + [FALSE] * bool(false)
        rows.append(
            (
                Link(image.row.image_id, addresses[image.row.image_id]),
                image.row.label,
                len(findings),
                false,
                lesions,
                lesions - len(missed),
                image.image_score,
                image.image_p_value,
                "; ".join((told or [_UNJUDGED if findings else _NOTHING]) + [ODD] * bool(image.out_of_domain)),
            )
        )
    rows.sort(key=lambda row: -row[6] if isinstance(row[6], float) else math.inf)
    header = ("image", "label", "findings", "false", "lesions", "found", "image score", "p-value", "result")
    above = f"above the operating point {DEFAULT_POINT}" if threshold > -math.inf else "whatever they score"
    caption = f"Every image, the most abnormal first; findings {above}."
    return Table(caption, header, tuple(rows), filters=(MISSED, FOUND, FALSE, ODD))


def _build_strips(
    images: Sequence[EvaluatedImage],
    cards: Mapping[str, Card],
    addresses: Mapping[str, str],
    threshold: float,
    reading: Reading,
) -> Iterator[Section]:
    above = f"above the operating point {DEFAULT_POINT}" if threshold > -math.inf else "(there is no operating point)"
    alarms = list_false_alarms(images, threshold=threshold, count=_SPOTS)
    missed, found = (_choose_lesions(images, threshold, reading, found=which) for which in (False, True))
    parts = (
        ("What is missed", missed, f"Lesions without a finding {above}, the largest first."),
        ("What alarms falsely", alarms, f"The strongest findings in normal images {above}."),
        ("What is found", found, f"Some lesions with a finding {above}, the highest score first."),
    )
    for heading, spots, text in parts:
        snapshots = tuple(filter(None, (_snap(spot, cards, addresses, threshold) for spot in spots)))
        if snapshots:
            yield Section(heading, (text,), snapshots=snapshots)
        elif spots is alarms and any(image.normal for image in images):
            yield Section(heading, (f"No normal image has a finding {above}.",))


def _choose_lesions(images: Sequence[EvaluatedImage], threshold: float, reading: Reading, *, found: bool) -> list[Spot]:
    """Some of each group, clusters alone where a group has them: single specks are common; then any others."""
    queries = list_queries(reading)
    main = [queries[name] for name in queries if name != ALL_LESIONS and f"{name}_clusters" not in queries]
    listed = [
        spot
        for query in (*main, queries[ALL_LESIONS])
        for spot in list_lesions(images, query, threshold=threshold, found=found, count=_SPOTS // 2)
    ]
    return list({(spot.image.row.image_id, spot.target): spot for spot in listed}.values())[:_SPOTS]


def _snap(spot: Spot, cards: Mapping[str, Card], addresses: Mapping[str, str], threshold: float) -> Snapshot | None:
    """The crop of a place; None where it is not among those that were cut, of an image with many."""
    name = spot.image.row.image_id
    ranks = [finding.rank for finding in select_findings(spot.image, threshold)]
    missed = select_missed(spot.image, threshold)[:_MOST_MISSED]
    there = [("rank", rank) for rank in ranks] + [("target", target) for target in missed]
    wanted = ("target", spot.target) if spot.rank is None else ("rank", spot.rank)
    if wanted not in there:
        return None
    shown = cards[name].places[there.index(wanted)]
    return Snapshot(cards[name], shown, shown.words, addresses[name])
