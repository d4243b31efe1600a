"""Whether the parts of a model agree with each other: what no field shows by itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING

from unary.models.calibration import Calibration, check_points
from unary.profiles import PROFILES
from unary.records import Domain

if TYPE_CHECKING:
    from unary.models.bundle import Model

_MOST_PATCH_PX = 8192
_MOST_LENGTH = 10_000.0  # of anything, in mm or working pixels
_ROUNDING = 1e-6  # maps are float32


def check_model(model: Model) -> None:
    """Refuse a model whose numbers contradict each other, or are none that fitting gives, by naming the first.

    Raises
    ------
    ValueError
        If a length is out of range, the level is not that of the training images, the profile is not the one of its
        name, the domain's ranges do not ascend, or a stored score contradicts the level.
    CalibrationError
        If the stored scores do not set the operating points.
    """
    lengths = {**vars(model.profile.lengths), **vars(model.findings)}
    lengths |= {"size_px": model.grid.size_px / _MOST_PATCH_PX * _MOST_LENGTH, "stride_px": model.grid.stride_px}
    for name, length in lengths.items():
        if length is not None and length > _MOST_LENGTH:
            raise ValueError(f"{name} is out of range")
    if not (_ascends(model.peaks[::-1]) and model.peaks and model.level == model.peaks[-1]):
        raise ValueError(
            f"level must be the last of peaks, the falling highest values of training images; it is {model.level:g}"
        )
    if model.preparation.spacing_range_mm not in (None, model.profile.spacing_range_mm):
        raise ValueError("spacing_range_mm of the preparation must be that of the profile")
    _check_profile(model)
    _check_domain(model.domain)
    if model.calibration is not None:
        _check_scores(model.calibration, model.level)
        check_points(model.calibration)


def _check_profile(model: Model) -> None:
    known, version = PROFILES.get(model.profile.name), model.provenance.versions.get("unary")
    if version is None:
        raise ValueError("versions must say which unary fitted the model")
    if known is None or version != metadata.version("unary") or known == model.profile:
        return
    changed = next(name for name, value in vars(known).items() if value != getattr(model.profile, name))
    raise ValueError(
        f"the {changed} of the profile are not those of the profile {known.name} in unary {version}; a profile of your "
        "own needs a name of its own"
    )


def _check_domain(domain: Domain) -> None:
    positive: Callable[[float], bool] = lambda value: 0 < value <= _MOST_LENGTH  # noqa: E731
    for name, accepted in (("spacing_mm", positive), ("brightness", math.isfinite)):
        ends = getattr(domain, name)
        if ends is not None and not (_ascends(ends) and all(map(accepted, ends))):
            raise ValueError(f"{name} of the domain must be a range, from low to high, got {ends}")
    if not all(0 < bits <= 64 for bits in domain.bits):
        raise ValueError(f"bits of the domain must lie in 1 to 64, got {domain.bits}")
    if domain.bits and domain.brightness is not None and max(map(abs, domain.brightness)) > 2.0 ** max(domain.bits):
        raise ValueError(f"brightness of the domain must fit in {max(domain.bits)} bits, got {domain.brightness}")
    for name in ("intents", "manufacturers", "model_names", "bits", "modalities", "units"):
        values = getattr(domain, name)
        if list(values) != sorted(set(values)) or "" in values:
            raise ValueError(f"{name} of the domain must be distinct, sorted and not empty, got {values}")


def _check_scores(calibration: Calibration, level: float) -> None:
    """Findings are drawn above the level, and the image's score is that of the strongest."""
    for image in calibration.images:
        near = _ROUNDING * max(abs(level), abs(image.score), 1e-30)
        if image.findings and (image.score != image.findings[0] or image.findings[-1] < level - near):
            raise ValueError("a stored image's findings must begin with its score and lie above the level")
        if not image.findings and image.score > level + near:
            raise ValueError("a stored image without findings must not score above the level")


def _ascends(values: tuple[float, ...]) -> bool:
    return all(earlier <= later for earlier, later in itertools.pairwise(values))


def check_texts(content: object) -> None:
    """Refuse by a `ValueError` what JSON gave, if a text in it, which messages may quote, cannot be printed."""
    if isinstance(content, str) and not content.isprintable():
        raise ValueError("it holds text with characters that cannot be printed")
    if isinstance(content, dict):
        check_texts([*content, *content.values()])
    elif isinstance(content, list):
        for part in content:
            check_texts(part)
