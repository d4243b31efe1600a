"""Whether lesions can lie where they are said to: in their image, on some area, once, and with all of their image's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from unary.errors import ImageError, ManifestError
from unary.images.isolation import show_text
from unary.images.reading import read_shape
from unary.progress import show_progress
from unary.records import Lesion, Manifest, ManifestRow, count_words

Shape = tuple[int, int]
Place = Literal["inside", "leaving", "outside"]

_NAMED = 10


def find_place(lesion: Lesion, shape: Shape) -> Place:
    """Return whether a lesion lies in an image of this (row, col) shape, leaves it by more than a pixel, or is outside.

    Of a circle the centre counts, and of a mask nothing. Data sets put the origin at a pixel's centre or at its corner;
    either is inside.
    """
    if lesion.kind == "mask":
        return "inside"
    points, size = np.asarray(lesion.points, float), np.asarray(shape)
    low, high = points.min(axis=0), points.max(axis=0)
    if lesion.kind == "box":
        outside = (low >= size) | (high <= 0)
    else:
        radius = lesion.radius_px or 0.0
        outside = (low - radius > size) | (high + radius < -0.5)
    if outside.any():
        return "outside"
    return "inside" if ((low >= -0.5) & (high <= size)).all() else "leaving"


def has_area(lesion: Lesion) -> bool:
    """Return whether an outline encloses anything; points and masks are not asked for it."""
    if lesion.kind == "circle":
        return bool(lesion.radius_px)
    if lesion.kind not in ("box", "contour"):
        return True
    rows, cols = np.asarray(lesion.points, float).T
    if lesion.kind == "box":
        return bool(np.ptp(rows) > 0 and np.ptp(cols) > 0)
    return bool(abs(rows @ np.roll(cols, -1) - cols @ np.roll(rows, -1)) > 0)


def name_some(names: Iterable[str]) -> str:
    """Return the first ten names, each once, as a text."""
    found = list(dict.fromkeys(map(show_text, names)))
    return ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")


def count_names(noun: str, names: Iterable[str], what: str) -> tuple[str, ...]:
    """Return a notice that says how many and which, or none.

    >>> count_names("image", ["a", "b"], "without a lesion")
    ('2 images without a lesion: a, b',)
    """
    found = list(names)
    return (f"{count_words(len(found), noun)} {what}: {name_some(found)}",) if found else ()


def check_lesions(
    manifest: Manifest, *, shapes: Mapping[str, Shape] | None = None, progress: bool = True
) -> tuple[Manifest, tuple[str, ...]]:
    """Say which lesions are not where they can be, by the sizes in the images' headers.

    ``shapes`` are the sizes by ``image_id`` where they are known already; then no header is read.

    An image counts as incomplete where the place of a lesion is not known (outside the image, a mask of another size),
    and where it is labelled positive without a lesion although the manifest lists lesions of others. A lesion that is
    listed twice is kept once.

    Returns
    -------
    tuple
        The manifest, and a notice for every kind of oddity, which names images.

    Raises
    ------
    ManifestError
        If more than half of the lesions lie outside their images, for the others are then likely to be misplaced too;
        or if all coordinates are fractions.
    """
    lesions = tuple(dict.fromkeys(manifest.lesions))
    if shapes is None:
        shapes = _read_shapes(manifest.rows, lesions, progress=progress)
    judged = [lesion for lesion in lesions if shapes.get(lesion.image_id) is not None]
    places = {lesion: find_place(lesion, shapes[lesion.image_id]) for lesion in judged if lesion.kind != "mask"}
    outside = [lesion for lesion, place in places.items() if place == "outside"]
    if 2 * len(outside) > len(places):
        raise ManifestError(_refuse_outside(outside, len(places), shapes))
    if places and all(0 <= value <= 1 for lesion in places for point in lesion.points for value in point):
        raise ManifestError("no lesion has a coordinate above 1: are they fractions of the image? pixels are needed")
    masks = {lesion: _try_shape(lesion) for lesion in judged if lesion.kind == "mask"}
    listed = {lesion.image_id for lesion in lesions}
    complete = [row.image_id for row in manifest.rows if row.complete and row.label == "positive"]
    bare = [name for name in complete if lesions and name not in listed]
    benign = [row.image_id for row in manifest.rows if row.label == "negative" and row.image_id in listed]
    twice = [lesion for lesion, times in Counter(manifest.lesions).items() if times > 1]
    incomplete = "the rest of these images is not taken as normal (complete: no)"
    leaving = [lesion for lesion, place in places.items() if place == "leaving"]
    notices = (
        _tell("lesion", outside, "outside the image", incomplete),
        _tell("lesion", leaving, "across the border of the image", "kept"),
        _tell(
            "lesion",
            (one for one, shape in masks.items() if shape not in (None, shapes[one.image_id])),
            "with a mask of another size than the image",
            "these images cannot be used",
        ),
        _tell(
            "lesion",
            (one for one in lesions if not has_area(one)),
            "without any area",
            "each counts as the pixels that it lies on",
        ),
        _tell("lesion", twice, "listed more than once", "each counts once"),
        _tell(
            "image",
            benign,
            "labelled negative with lesions",
            "they are taken as benign, and what they touch as not normal",
        ),
        _tell("image", bare, "labelled positive without a listed lesion", incomplete),
    )
    unplaced = {*bare, *(lesion.image_id for lesion in outside)}
    rows = tuple(dataclasses.replace(row, complete=False) if row.image_id in unplaced else row for row in manifest.rows)
    return Manifest(rows, lesions), tuple(notice for notice in notices if notice)


def _tell(noun: str, found: Iterable[Lesion | str], what: str, so: str) -> str:
    """One kind of oddity with its images; empty if there is none."""
    images = [one if isinstance(one, str) else one.image_id for one in found]
    return f"{count_words(len(images), noun)} {what}: {name_some(images)}; {so}" if images else ""


def _read_shapes(rows: tuple[ManifestRow, ...], lesions: tuple[Lesion, ...], *, progress: bool) -> dict[str, Shape]:
    """The sizes of the images that have lesions; whoever reads the images says which cannot be read."""
    needed = {lesion.image_id for lesion in lesions}
    chosen = [row for row in rows if row.image_id in needed]
    shapes = {}
    for row in show_progress(chosen, title="sizes", unit="image", shown=progress):
        try:
            if row.image is not None:
                shapes[row.image_id] = row.image.shape
            elif row.path is not None:
                shapes[row.image_id] = read_shape(row.path)
        except ImageError:
            continue
    return shapes


def _try_shape(lesion: Lesion) -> Shape | None:
    try:
        return None if lesion.mask_path is None else read_shape(lesion.mask_path)
    except ImageError:
        return None


def _refuse_outside(outside: list[Lesion], count: int, shapes: Mapping[str, Shape]) -> str:
    first = outside[0]
    (row, col), shape = first.points[0], shapes[first.image_id]
    turned = [
        dataclasses.replace(lesion, points=tuple((second, first) for first, second in lesion.points))
        for lesion in outside
    ]
    if all(find_place(lesion, shapes[lesion.image_id]) == "inside" for lesion in turned):
        cause = "points are 'row col': were row and column exchanged?"
    else:
        cause = "were they drawn on images of another resolution, or are row and column exchanged?"
    return (
        f"{len(outside)} of {count_words(count, 'lesion')} "
        f"{'lies outside its image' if count == 1 else 'lie outside their images'}: "
        f"{name_some(lesion.image_id for lesion in outside)} (of {show_text(first.image_id)}, row {row:g}, "
        f"col {col:g} in an image of {shape[0]} rows and {shape[1]} columns); {cause}"
    )
