"""Judgements as tables: all of them as CSV, and what they come to as a manifest with lesions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from unary.clinic.review.judgements import Judgement, select_standing
from unary.clinic.review.results import ReviewedImage
from unary.datasets.manifest import require_replaceable, write_manifest
from unary.errors import UnaryError
from unary.files import write_csv
from unary.records import Label, Lesion, Manifest, ManifestRow

JUDGEMENTS, MANIFEST, NORMALS = "judgements.csv", "manifest.csv", "normals.csv"


def export_judgements(judgements: Sequence[Judgement], images: Iterable[ReviewedImage], folder: Path) -> Manifest:
    """Write ``judgements.csv``, everything that was said, and ``manifest.csv``, what holds; return the latter.

    ``normals.csv`` has the negative images of the manifest, for `unary calibrate`; it is not written if there are none.

    Raises
    ------
    UnaryError
        If nothing was judged, or a file of that name is there that is no manifest.
    """
    if not judgements:
        raise UnaryError("nothing has been judged yet")
    for name in (MANIFEST, NORMALS):
        require_replaceable(folder / name)
    write_judgements(judgements, folder / JUDGEMENTS)
    manifest = build_judged_manifest(judgements, images)
    write_manifest(manifest, folder / MANIFEST)
    normals = tuple(row for row in manifest.rows if row.label == "negative")
    if normals:
        write_manifest(manifest.select(normals), folder / NORMALS)
    else:
        (folder / NORMALS).unlink(missing_ok=True)
    return manifest


def write_judgements(judgements: Sequence[Judgement], path: Path) -> None:
    """Write all that was said as a table, with a column ``standing`` for what still holds."""
    standing = {one.id for one in select_standing(judgements)}
    names = ["id", *(field.name for field in fields(Judgement) if field.name not in ("id", "points"))]
    rows = [
        [*(getattr(one, name) for name in names), _spell(one.points), "yes" if one.id in standing else "no"]
        for one in judgements
    ]
    write_csv(path, [*names, "points", "standing"], rows)


def _spell(points: Iterable[tuple[float, float]]) -> str:
    return "; ".join(f"{row!r} {col!r}" for row, col in points)


def build_judged_manifest(judgements: Sequence[Judgement], images: Iterable[ReviewedImage]) -> Manifest:
    """Return the images that were judged, and as lesions what readers agreed with or missed.

    Positive is an image with a finding that somebody agrees with and nobody doubts, or with something that was missed.
    Negative is one that was read whole, with all findings disagreed with. Otherwise the label is unknown. An image is
    complete if it was read whole and no reader is unsure of, or contradicts another on, any finding.
    """
    held: dict[str, list[Judgement]] = {}
    for one in select_standing(judgements):
        held.setdefault(one.image_sha256, []).append(one)
    current: dict[str, list[ReviewedImage]] = {}
    for image in images:
        current.setdefault(image.sha256, []).append(image)
    rows: list[ManifestRow] = []
    lesions: list[Lesion] = []
    taken: set[str] = set()
    for sha256, said in held.items():
        last = said[-1]
        name = last.image if last.image not in taken else f"{last.image}-{sha256[:8]}"
        taken.add(name)
        label, complete, found = _settle(said, current.get(sha256, ()), name)
        lesions += found
        rows.append(
            ManifestRow(
                path=Path(last.path).absolute(),
                image_id=name,
                patient_id=last.patient or last.study,
                label=label,
                laterality=last.laterality,
                view=last.view,
                complete=complete,
                spacing_mm=last.spacing_mm,
            )
        )
    return Manifest(tuple(rows), tuple(lesions))


def _settle(
    said: Sequence[Judgement], images: Sequence[ReviewedImage], name: str
) -> tuple[Label | None, bool, list[Lesion]]:
    """Label, completeness and lesions of one image."""
    verdicts: dict[tuple[str, int | None], list[Judgement]] = {}
    for one in said:
        if one.target == "finding":
            verdicts.setdefault((one.result, one.rank), []).append(one)
    kinds = {thing: {one.verdict for one in given} for thing, given in verdicts.items()}
    agreed = [given[-1] for thing, given in verdicts.items() if kinds[thing] == {"agree"}]
    marked = [*agreed, *(one for one in said if one.target == "missed" and one.kind is not None)]
    lesions = [Lesion(name, one.name, one.kind, one.points) for one in marked if one.kind is not None]
    doubtful = any(len(kind) > 1 or "unsure" in kind for kind in kinds.values())
    unjudged = any(
        (image.fingerprint, rank) not in verdicts for image in images for rank in range(1, image.findings + 1)
    )
    read = any(one.target == "image" for one in said)
    complete = read and not doubtful and not unjudged
    label: Label | None = "positive" if lesions else "negative" if complete else None
    return label, complete, lesions
