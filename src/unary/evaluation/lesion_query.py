"""Which lesions are to be found, and what `unary.evaluation.froc` needs to know of an image for that question."""

from __future__ import annotations

from dataclasses import dataclass

from unary.evaluation.froc import ImageOutcome
from unary.evaluation.matching import Match, Target
from unary.profiles import OTHER, Reading, is_among
from unary.records import ManifestRow

ALL_LESIONS = "all"


@dataclass(frozen=True)
class LesionQuery:
    """A selection of lesions; by default all those of images labelled positive.

    Attributes
    ----------
    groups
        Groups of lesions, as the profile names them; None for all.
    clusters_only
        Whether single lesions of a clustered group are left out: single specks are common and mostly benign.
    assessments
        Categories whose images count, as in `unary.profiles.is_among`; None for the images labelled positive.
    complete_only
        Whether lesions of partially annotated images are left out.
    """

    groups: tuple[str, ...] | None = None
    clusters_only: bool = False
    assessments: tuple[str, ...] | None = None
    complete_only: bool = False

    def selects_image(self, row: ManifestRow) -> bool:
        """Return whether the lesions of an image count."""
        if self.complete_only and not row.complete:
            return False
        return row.label == "positive" if self.assessments is None else is_among(row.assessment, self.assessments)

    def selects(self, target: Target) -> bool:
        """Return whether a target of such an image is to be found."""
        return (self.groups is None or target.group in self.groups) and not (self.clusters_only and target.single)


def list_queries(reading: Reading) -> dict[str, LesionQuery]:
    """Return what is asked of every evaluation, by name: each group of lesions, clusters alone, and all together."""
    queries = {}
    for group in reading.groups:
        queries[group.name] = LesionQuery((group.name,))
        if group.clustered:
            queries[f"{group.name}_clusters"] = LesionQuery((group.name,), clusters_only=True)
    return {**queries, ALL_LESIONS: LesionQuery()}


def name_queries(reading: Reading) -> dict[str, str]:
    """Return the words for what `list_queries` names, and for lesions of no group."""
    titles = {}
    for group in reading.groups:
        titles[group.name] = f"{group.title}, by cluster" if group.clustered else group.title
        if group.clustered:
            titles[f"{group.name}_clusters"] = f"clusters of {group.title}"
    return {**titles, ALL_LESIONS: "all lesions", OTHER: "other lesions"}


def build_outcome(
    match: Match,
    query: LesionQuery = LesionQuery(),
    *,
    patient: str,
    normal: bool,
    complete: bool,
    ignore_others: bool = True,
) -> ImageOutcome:
    """Return what one detector did on one image.

    Which targets are to be found is the query's; that the image counts is for the caller to know
    (`LesionQuery.selects_image`). A finding that hits only lesions that are not to be found is neither right nor wrong,
    or false unless ``ignore_others``.

    """
    pairs = [(query.selects(target), ranks) for target, ranks in zip(match.targets, match.hits, strict=True)]
    excused = {rank for selected, ranks in pairs if selected or ignore_others for rank in ranks}
    return ImageOutcome(
        patient,
        normal,
        complete,
        tuple(score for rank, score in match.scores.items() if rank not in excused),
        tuple(max((match.scores[rank] for rank in ranks), default=None) for selected, ranks in pairs if selected),
    )
