"""What a reader sends, checked, and the judgement that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from unary.clinic.review.judgements import LESION_NAMES, VERDICTS, Judgement, Target, Verdict, tell_moment
from unary.clinic.review.pyramid import Pyramid
from unary.clinic.review.results import ResultDocument, ReviewedImage
from unary.errors import UnaryError

_MOST_POINTS = 2000


class NotThereError(UnaryError):
    """What was asked for is not there."""


@dataclass(frozen=True)
class Said:
    """What the page sends when a reader has judged."""

    image: str
    target: Target
    verdict: Verdict
    reader: str
    rank: int | None = None
    name: str = "lesion"
    kind: Literal["contour", "point"] | None = None
    points: tuple[tuple[float, float], ...] = ()
    comment: str = ""


def read_said(body: bytes) -> Said:
    """Return what a reader has said, checked; an UnaryError says what is wrong with it."""
    try:
        said = msgspec.json.decode(body, type=Said)
    except msgspec.MsgspecError as error:
        raise UnaryError(f"not a judgement: {error}") from error
    if said.verdict not in VERDICTS[said.target]:
        raise UnaryError(f"of a {said.target} one says {' or '.join(VERDICTS[said.target])}, not {said.verdict}")
    reader = said.reader.strip()
    if not (0 < len(reader) <= 80 and reader.isprintable()):
        raise UnaryError("the reader's name is needed, of at most 80 printable characters")
    if said.name not in LESION_NAMES:
        raise UnaryError(f"name must be one of {', '.join(LESION_NAMES)}")
    if len(said.comment) > 1000 or len(said.points) > _MOST_POINTS:
        raise UnaryError("a comment of 1000 characters and an outline of 2000 points at most")
    drawn = len(said.points) == 1 if said.kind == "point" else said.kind == "contour" and len(said.points) >= 3
    if said.target == "missed" and not drawn:
        raise UnaryError("a place that was missed is a point, or a contour of three points or more")
    return said


def build_judgement(said: Said, image: ReviewedImage, document: ResultDocument, pyramid: Pyramid | None) -> Judgement:
    """Return the judgement to keep; a finding's outline is that of its result, whatever the page has sent.

    Raises
    ------
    UnaryError
        If there is no such finding, or a point lies outside the image.
    """
    finding = next((one for one in document.findings if one.rank == said.rank), None)
    kind, points = said.kind, said.points
    if said.target == "finding":
        if finding is None:
            raise NotThereError("no such finding")
        kind, points = "contour", finding.outline
    elif said.target == "image":
        kind, points = None, ()
    rows, cols = document.stored_shape
    if any(not (-1 <= row <= rows and -1 <= col <= cols) for row, col in points):
        raise UnaryError(f"a point lies outside the image of {rows} x {cols} pixels")
    spacing = document.stored_spacing_mm
    return Judgement(
        moment=tell_moment(),
        reader=said.reader.strip(),
        image=image.name,
        file=document.file,
        path=image.path if pyramid is None or pyramid.path is None else str(pyramid.path.absolute()),
        image_sha256=image.sha256,
        result=image.fingerprint,
        model_sha256=image.model_sha256,
        study=image.study,
        patient=None if pyramid is None else pyramid.patient,
        laterality=image.laterality,
        view=image.view,
        spacing_mm=None if spacing is None or spacing[0] != spacing[1] else spacing[0],
        target=said.target,
        rank=said.rank if said.target == "finding" else None,
        verdict=said.verdict,
        name=said.name,
        kind=kind,
        points=points,
        score=None if finding is None else finding.score,
        p_value=None if finding is None else finding.p_value,
        comment=said.comment,
    )
