"""What images have in common: their equipment, presentation intent, spacing, bits and brightness.

A model keeps the domain of the images that it has learned from. To a detector of what is new, a new scanner is new; so
an image from outside the domain is told by name, apart from what its pixels score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from unary.images.attributes import Attributes, clean_text
from unary.records import Domain, Image

_SPACING_TOLERANCE = 0.1
_BRIGHTNESS_TOLERANCE = 0.25
_SAMPLE_PX = 1_000_000


def describe_domain(images: Iterable[Image]) -> Domain:
    """Return what images have in common; they are taken one by one, so that a generator need not keep them.

    >>> describe_domain([Image.from_array(np.eye(9, dtype=np.uint8))])
    Domain(intents=(), manufacturers=(), model_names=(), spacing_mm=None, bits=(8,), brightness=(1.0, 1.0))
    """
    return join_domains(describe_image(image) for image in images)


def describe_image(image: Image) -> Domain:
    """Return the domain of a single image: what `join_domains` joins, small enough to keep for each image."""
    low, high = image.value_range
    sample = image.pixels if image.padding is None else image.pixels[~image.padding]
    sample = sample.reshape(-1)[:: max(1, sample.size // _SAMPLE_PX)]
    brightness = float(np.percentile(sample, 99)) if sample.size else None
    return Domain(
        intents=_as_tuple(image.intent),
        manufacturers=_as_tuple(clean_text(image.manufacturer or "")),
        model_names=_as_tuple(clean_text(image.model_name or "")),
        spacing_mm=None if image.spacing_mm is None else (min(image.spacing_mm), max(image.spacing_mm)),
        bits=(round(math.log2(high - low + 1)),) if image.pixels.dtype.kind in "iu" else (),
        brightness=None if brightness is None else (brightness, brightness),
    )


def describe_attributes(attributes: Attributes) -> Domain:
    """Return the domain of a single image as far as its header says it; `describe_image` says more."""
    spacing = attributes.spacing_mm
    return Domain(
        intents=_as_tuple(attributes.intent),
        manufacturers=_as_tuple(attributes.manufacturer),
        model_names=_as_tuple(attributes.model_name),
        spacing_mm=None if spacing is None else (min(spacing), max(spacing)),
    )


def _as_tuple(text: str | None) -> tuple[str, ...]:
    return () if text is None else (text,)


def join_domains(domains: Iterable[Domain]) -> Domain:
    """Return the smallest domain that contains all of these."""
    parts = list(domains)
    return Domain(
        intents=tuple(sorted({name for part in parts for name in part.intents})),
        manufacturers=tuple(sorted({name for part in parts for name in part.manufacturers})),
        model_names=tuple(sorted({name for part in parts for name in part.model_names})),
        spacing_mm=_span(part.spacing_mm for part in parts),
        bits=tuple(sorted({bits for part in parts for bits in part.bits})),
        brightness=_span(part.brightness for part in parts),
    )


def _span(ranges: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [ends for ends in ranges if ends is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def compare_domain(image: Image, domain: Domain) -> tuple[str, ...]:
    """Return one line for each way in which an image differs from those that a model has learned from.

    What either side does not know is no difference. Spacing may lie up to 10 % outside the known range, brightness up
    to 25 %.
    """
    part = describe_image(image)
    lines = list(compare_parts(part, domain))
    if part.intents and domain.intents and not set(part.intents) <= set(domain.intents):
        lines.insert(
            0, f"presentation intent {part.intents[0]}, the model has seen {' and '.join(domain.intents)} alone"
        )
    return tuple(lines)


def compare_parts(part: Domain, whole: Domain) -> Iterator[str]:
    """Yield one line for each difference but that of the presentation intent.

    Parameters
    ----------
    part
        The domain of one image.
    whole
        That of the images that a model has learned from.
    """
    for what, found, known in (
        ("manufacturer", part.manufacturers, whole.manufacturers),
        ("equipment model", part.model_names, whole.model_names),
    ):
        if known and not set(found) <= set(known):
            yield f"{what} {', '.join(found)}, the model has seen {', '.join(known)} alone"
    if whole.bits and not set(part.bits) <= set(whole.bits):
        bits = " and ".join(map(str, whole.bits))
        yield f"{part.bits[0]} bits per pixel, the model has seen {bits} alone"
    for what, ends, limits, tolerance, unit in (
        ("pixel spacing", part.spacing_mm, whole.spacing_mm, _SPACING_TOLERANCE, " mm"),
        ("bright pixels (99th percentile)", part.brightness, whole.brightness, _BRIGHTNESS_TOLERANCE, ""),
    ):
        if ends is None or limits is None:
            continue
        low, high = limits[0] - tolerance * abs(limits[0]), limits[1] + tolerance * abs(limits[1])
        outside = [value for value in ends if not low - 1e-9 <= value <= high + 1e-9]
        if outside:
            yield f"{what} {outside[0]:.4g}{unit}, the model has seen {limits[0]:.4g} to {limits[1]:.4g}{unit}"
