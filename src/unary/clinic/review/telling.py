"""What the page is told of studies, images and judgements, as JSON holds it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from unary.clinic.review.judgements import Judgement, JudgementStore, select_standing
from unary.clinic.review.pyramid import TILE_PX, Pyramid
from unary.clinic.review.results import ResultDocument, ReviewedImage


def _rank_image(image: ReviewedImage) -> tuple[float, float]:
    """What sorts images: the rarest first, among equally rare ones the highest score, what has none last."""
    rarity = 1.1 if image.image_p_value is None else image.image_p_value
    return rarity, float("inf") if image.image_score is None else -image.image_score


def gather_studies(images: Iterable[ReviewedImage]) -> list[list[ReviewedImage]]:
    """Return studies by their most abnormal image, and the images of each in the same order."""
    studies: dict[str, list[ReviewedImage]] = {}
    for image in images:
        studies.setdefault(image.study, []).append(image)
    ordered = [sorted(study, key=_rank_image) for study in studies.values()]
    return sorted(ordered, key=lambda study: (_rank_image(study[0]), study[0].key))


def tell_image(image: ReviewedImage) -> dict[str, Any]:
    """Return what lists say of an image."""
    names = ("key", "name", "laterality", "view", "image_score", "image_p_value", "moment")
    return {name: getattr(image, name) for name in names}


def tell_study(study: Sequence[ReviewedImage], said: dict[str, list[Judgement]]) -> dict[str, Any]:
    """Return a study's images, and how far they have been judged; ``said`` is what holds, by the hash of the file."""
    images = []
    for image in study:
        own = said.get(image.sha256, [])
        judged = {one.rank for one in own if one.target == "finding" and one.result == image.fingerprint}
        known = {"findings": image.findings, "judged": len(judged), "read": any(one.target == "image" for one in own)}
        known["missed"] = sum(one.target == "missed" for one in own)
        images.append({**tell_image(image), **known, "version": image.fingerprint})
    return {"key": study[0].study, "label": study[0].study_label, "images": images}


def tell_pyramid(pyramid: Pyramid, image: ReviewedImage) -> dict[str, Any]:
    """Return how an image's pixels are asked for, what they mean, and how they are hung."""
    side = image.laterality or pyramid.laterality
    return {
        "levels": [level.shape for level in pyramid.levels],
        "tile": TILE_PX,
        "offset": pyramid.offset,
        "step": pyramid.step,
        "window": pyramid.window,
        "spacing_mm": pyramid.spacing_mm,
        "laterality": side,
        "view": image.view or pyramid.view,
        "chest_wall": pyramid.chest_wall,
        # As radiologists hang them: right breasts on the left of the screen with their chest wall to the right.
        "mirrored": pyramid.chest_wall == {"R": "left", "L": "right"}.get(side or "", "neither"),
    }


def find_threshold(document: ResultDocument) -> float | None:
    """Return the score above which something is a finding; None of a model that is not calibrated."""
    return None if document.operating_point is None else float(document.operating_point["threshold"])


def tell_judgements(store: JudgementStore, image: ReviewedImage) -> list[dict[str, Any]]:
    """Return what holds of an image; of findings, only of those of this very result."""
    names = ("id", "moment", "reader", "target", "rank", "verdict", "name", "kind", "points", "comment")
    return [
        {name: getattr(one, name) for name in names}
        for one in select_standing(store.list_all(image.sha256))
        if one.target != "finding" or one.result == image.fingerprint
    ]
