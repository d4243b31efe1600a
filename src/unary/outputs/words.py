"""The words that reports, lines and pictures share: titles of groups, explanations, numbers with their intervals."""

from __future__ import annotations

import math

from unary.evaluation.image_level import BY_LABEL
from unary.evaluation.intervals import Estimate
from unary.evaluation.lesion_query import name_queries
from unary.evaluation.metrics import ALL, NORMAL_LOOKING
from unary.profiles import DEFAULT, OTHER, Reading

IMAGE_GROUP = "image"
SPLIT_TITLES = {
    "patch": "Split by patch (as in the paper)",
    "patient": "Split by patient (the honest one)",
}
MEANINGS = {
    "wei2018": (
        "The detector of the paper: a convolutional autoencoder that has seen normal patches only. Its score is the "
        "root mean square of what it fails to reconstruct."
    ),
    "laplacian": (
        "A control without learning: a blob filter (Laplacian of Gaussian) with local normalisation, averaged over "
        "the few strongest pixels. A learned detector that does not beat it has no claim."
    ),
    "mean_brightness": "A control: the mean brightness of the patch, and nothing else.",
    "standard_deviation": "A control: the standard deviation of the patch's pixels, and nothing else.",
    "normal_looking": (
        "A control: patches without a lesion, but from images with one, play the positives. An AUROC near 0.5 is the "
        "wish. What lies above it measures how far the images differ (scanner, density, exposure) rather than disease, "
        "and the same advantage is hidden in every other row."
    ),
    "image": (
        "Whole images: the detector by the score of the most abnormal place of its map, the same as of its findings; "
        "baseline and controls, which know no findings, by their highest patch."
    ),
    "patch": (
        "Test patches are a random share of all normal patches. Other patches of the same image were trained on, "
        "which flatters a detector that remembers images."
    ),
    "patient": "All patches of the test patients were kept out of training. This is what a new patient would meet.",
}


def name_groups(reading: Reading) -> dict[str, str]:
    """Return the titles of groups of patches and images, in the order of tables."""
    titles = {ALL: "all lesions", **{name: title for name, title, *_ in reading.subgroups}}
    titles |= {group.name: group.title for group in reading.groups}
    titles |= {OTHER: "other lesions", IMAGE_GROUP: "whole images, by label"}
    titles[NORMAL_LOOKING] = "control: normal-looking patches of images with lesions"
    return {name: title[0].upper() + title[1:] for name, title in titles.items()}


GROUP_TITLES = name_groups(DEFAULT.reading)
"""Those of the default profile."""


def name_figures(reading: Reading) -> dict[str, str]:
    """Return what the figures of `unary.evaluation.summary.EvaluationSummary` are of, in lower case."""
    comparisons = {comparison.name: comparison.title for comparison in reading.comparisons}
    return {**name_queries(reading), **comparisons, BY_LABEL: "label negative against positive"}


def with_interval(found: Estimate) -> str:
    """Return a value with its interval, to two decimals, or more below 0.1 and just below 1.

    >>> with_interval(Estimate(0.5, 0.0123, None)), with_interval(Estimate(0.5, 0.0123, 0.75))
    ('0.50', '0.50 [0.0123, 0.75]')
    >>> with_interval(Estimate(0.999937, 0.9951, 1.0))
    '0.99994 [0.995, 1.00]'
    """
    between = "" if found.low is None or found.high is None else f" [{_shorten(found.low)}, {_shorten(found.high)}]"
    return _shorten(found.value) + between


def _shorten(value: float) -> str:
    if 0 < abs(value) < 0.1:
        return f"{value:.3g}"
    digits = -math.floor(math.log10(1 - value)) if 0.99 < value < 1 else 2  # what is not all is never told as all
    return f"{value:.{digits}f}"
