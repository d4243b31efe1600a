"""Slices of one series: how many there are, and whether one is missing, there twice, or shown by another series too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, pairwise

import numpy as np

from unary.datasets.annotation import name_some
from unary.images.attributes import SlicePlace
from unary.records import count_words

_SAME_MM = 0.01  # places that differ by less are one
_GAP = 1.5  # of the usual step
_SHARED = 0.5  # of the slices of the shorter series

Slice = tuple[float, str]
"""Where it lies along the normal of its plane, in mm, and what messages call it."""


def describe_series(places: Sequence[SlicePlace | None], names: Sequence[str]) -> tuple[str, ...]:
    """Return what is to be said of the series that images belong to; nothing where there is no series of slices.

    Slices are images of their own, whatever their order; but a gap or a copy says that a set is not what it was meant
    to be, and two reconstructions of one scan show every slice twice.

    Parameters
    ----------
    places
        Of the images; None for what is no slice.
    names
        What messages call the images.
    """
    found: dict[tuple[str, tuple[float, ...], str | None], list[Slice]] = {}
    for place, name in zip(places, names, strict=True):
        if place is not None and place.series_uid is not None:
            found.setdefault((place.series_uid, place.normal, place.frame_uid), []).append((place.position_mm, name))
    series = {key: sorted(slices) for key, slices in found.items() if len(slices) > 1}
    if not series:
        return ()
    sizes = ", ".join(str(len(slices)) for slices in series.values())
    notices = [f"{len(series)} series of slices, of {sizes} slices"]
    for slices in series.values():
        notices += _describe_steps(slices)
    frames: dict[tuple[str, tuple[float, ...]], list[list[Slice]]] = {}
    for (_, normal, frame), slices in series.items():
        if frame is not None:
            frames.setdefault((frame, normal), []).append(slices)
    for one, other in chain.from_iterable(combinations(several, 2) for several in frames.values()):
        notices += _describe_shared(one, other)
    return tuple(notices)


def _describe_steps(slices: list[Slice]) -> Iterator[str]:
    """What is missing from a series of slices in order, or there twice."""
    called = f"the series of {slices[0][1]} ({count_words(len(slices), 'slice')})"
    twice = [name for (before, _), (place, name) in pairwise(slices) if place - before < _SAME_MM]
    if twice:
        yield f"{called} has {count_words(len(twice), 'slice')} at the place of another: {name_some(twice)}"
    steps = [place - before for (before, _), (place, _) in pairwise(slices) if place - before >= _SAME_MM]
    usual = float(np.median(steps)) if steps else 0.0
    gaps = [
        f"{place - before:.4g} mm between {first} and {second}"
        for (before, first), (place, second) in pairwise(slices)
        if place - before > _GAP * usual > 0
    ]
    if gaps:
        yield f"{called} has gaps, where slices are {usual:.4g} mm apart: {name_some(gaps)}; are slices missing?"


def _describe_shared(slices: list[Slice], more: list[Slice]) -> Iterator[str]:
    """That two series show the same places."""
    places = np.array([place for place, _ in more])
    shared = sum(bool((np.abs(places - place) < _SAME_MM).any()) for place, _ in slices)
    if shared >= _SHARED * min(len(slices), len(more)):
        yield (
            f"the series of {slices[0][1]} and of {more[0][1]} show {count_words(shared, 'slice')} at the same places: "
            "two reconstructions of one scan? Take one of them, or the model knows every slice in two kinds"
        )
