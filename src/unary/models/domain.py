"""What images have in common: their kind, units, equipment, presentation intent, spacing, bits and brightness.

A model keeps the domain of the images that it has learned from. To a detector of what is new, a new scanner is new; so
an image from outside the domain is told by name, apart from what its pixels score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from unary.images.attributes import Attributes, clean_text
from unary.records import Domain, Image

_SPACING_TOLERANCE = 0.1
_BRIGHTNESS_TOLERANCE = 0.25
_SAMPLE_PX = 1_000_000


def describe_image(image: Image | Attributes) -> Domain:
    """Return the domain of a single image; a header alone says nothing of bits and brightness.

    >>> describe_image(Image.from_array(np.eye(9, dtype=np.uint8)))
    Domain(intents=(), manufacturers=(), model_names=(), spacing_mm=None, bits=(8,), brightness=(1.0, 1.0), \
modalities=(), units=())
    """
    maker, model_name = clean_text(image.manufacturer or ""), clean_text(image.model_name or "")
    named = (image.intent, maker, model_name, image.modality, image.units)
    intents, makers, models, modalities, units = (() if text is None else (text,) for text in named)
    spacing = None if image.spacing_mm is None else (min(image.spacing_mm), max(image.spacing_mm))
    part = Domain(intents, makers, models, spacing, modalities=modalities, units=units)
    if isinstance(image, Attributes):
        return part
    low, high = image.value_range
    bits = (round(math.log2(high - low + 1)),) if image.pixels.dtype.kind in "iu" else ()
    sample = image.pixels if image.padding is None else image.pixels[~image.padding]
    sample = sample.reshape(-1)[:: max(1, sample.size // _SAMPLE_PX)]
    brightness = float(np.percentile(sample, 99)) if sample.size else None
    return replace(part, bits=bits, brightness=None if brightness is None else (brightness, brightness))


def join_domains(domains: Iterable[Domain]) -> Domain:
    """Return the smallest domain that contains all of these."""
    parts = list(domains)
    joined: dict[str, Any] = {
        name: tuple(sorted({value for part in parts for value in getattr(part, name)}))
        for name in ("intents", "manufacturers", "model_names", "bits", "modalities", "units")
    }
    joined |= {name: _span(getattr(part, name) for part in parts) for name in ("spacing_mm", "brightness")}
    return Domain(**joined)


def _span(ranges: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [ends for ends in ranges if ends is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def compare_domain(image: Image | Attributes, whole: Domain) -> Iterator[str]:
    """Yield one line for each way in which an image differs from those that a model has learned from.

    What either side does not know is no difference. Spacing may lie up to 10 % outside the known range, brightness up
    to 25 %.
    """
    part = describe_image(image)
    for what, separator, found, known in (
        ("modality {}", " and ", part.modalities, whole.modalities),
        ("values in {}", " and ", part.units, whole.units),
        ("presentation intent {}", " and ", part.intents, whole.intents),
        ("manufacturer {}", ", ", part.manufacturers, whole.manufacturers),
        ("equipment model {}", ", ", part.model_names, whole.model_names),
        ("{} bits per pixel", " and ", part.bits, whole.bits),
    ):
        if known and not set(found) <= set(known):
            yield f"{what.format(*found)}, the model has seen {separator.join(map(str, known))} alone"
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
