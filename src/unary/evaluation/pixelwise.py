"""Anomaly maps judged pixel by pixel, in bounded memory.

An image may have ten million pixels, a test set billions, and their scores have neither a common unit nor known bounds,
so that no histogram with bins fixed beforehand serves every detector. Instead each image is reduced once, by rank:
sorted from the highest score down, pixels of one class are put into groups, and the middle pixel of each stands for its
group. A group holds at most 1/512 as many pixels as rank above it, and at most 1/4096 of all; there are fewer than
14,000 a class. So, of up to a thousand images,

- no increasing map of the scores changes anything, since the same pixels are chosen;
- images of fewer than 12,288 pixels a class are exact;
- the AUROC is off by at most 1/4096, and in the tests by less than 0.00001;
- the counts of true and false pixels above any threshold are off by at most 0.1 %, and so every precision by 0.2 %,
  however rare the positives: the top of the ranking is kept pixel by pixel. In the tests the average precision is off
  by less than 0.01 % of its value.

Of so many thousand images more, groups are as many times as large, at most 1/8 of what ranks above and 1/64 of all, so
that memory holds some ten million pixels, not billions; what one image's groups get wrong, the others' even out.

What a pixel can say is limited. Large lesions outvote small ones, and annotated outlines are looser than what a
detector marks. Whether lesions are found is answered by `unary.evaluation.froc`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.intervals import Estimate, average_resamples, draw_patients, estimate
from unary.evaluation.matching import Target
from unary.evaluation.roc import EvaluationError, OneClassError, ScoreError, auroc, average_precision

_TAIL, _BULK = 512, 4096
_FEWEST_TAIL, _FEWEST_BULK, _FEW_IMAGES = 8, 64, 1000
_BINS = 2000  # of either class, for the intervals
_FEWEST_BINS, _MOST_COUNTS = 100, 40_000_000  # of patients and bins of both classes, held at once


@dataclass(frozen=True, eq=False)
class PixelSample:
    """The pixels of one image, reduced by rank.

    Each of the chosen pixels, shape (n,), stands for as many as its weight. ``unscored`` are the positive pixels that
    have no score: a detector that does not look there cannot find them.
    """

    patient: str = field(repr=False)
    scores: NDArray[np.float64]
    positive: NDArray[np.bool_]
    weights: NDArray[np.float64]
    unscored: int


@dataclass(frozen=True)
class PixelSummary:
    """What a detector's maps are worth pixel by pixel, with 95 % intervals over patients.

    The pixels of all images count together; the chance level of the average precision is the share of positives.
    ``positives`` and ``negatives`` count pixels with a score, ``unscored`` positive ones without, which count nowhere.
    """

    auroc: Estimate
    average_precision: Estimate
    positives: int
    negatives: int
    unscored: int
    positive_patients: int
    negative_patients: int


def draw_truth(targets: Sequence[Target], shape: tuple[int, int], *, group: str | None = None) -> NDArray[np.bool_]:
    """Return which pixels of an image belong to a lesion, shape (rows, cols), bool.

    Of lesions of one group, or of all; a cluster is its specks, without the tissue between.
    """
    truth = np.zeros(shape, bool)
    for target in targets:
        if group is None or target.group == group:
            for inside, (row, col) in target.parts:
                truth[row : row + inside.shape[0], col : col + inside.shape[1]] |= inside
    return truth


def sample_pixels(
    scores: NDArray[np.floating[Any]],
    truths: Mapping[str, NDArray[np.bool_]],
    *,
    patient: str,
    complete: bool = True,
    images: int = 1,
) -> dict[str, PixelSample]:
    """Reduce the pixels of one image by rank, once for each of several groups of lesions.

    The pixels of no lesion at all are every group's negatives; those of lesions of another group are neither.

    Scores are of shape (rows, cols), higher is more abnormal, NaN where nothing was scored; ``truths`` say by group, in
    the same shape, which pixels belong to its lesions. Groups may overlap. Of an image that is not completely
    annotated, pixels outside the lesions are unknown, and left out. ``images`` says how many there are in all.

    Other shapes and infinite scores are a ScoreError.
    """
    if any(np.shape(truth) != scores.shape for truth in truths.values()):
        shapes = [np.shape(truth) for truth in truths.values()]
        raise ScoreError(f"every pixel needs a score and a truth, got shapes {scores.shape} and {shapes}")
    if np.isinf(scores).any():
        raise ScoreError(f"scores must be finite or NaN, but {np.count_nonzero(np.isinf(scores))} pixels are infinite")
    scored = ~np.isnan(scores)
    lesional = np.logical_or.reduce([np.zeros(scores.shape, bool), *truths.values()])
    rest = _reduce(scores[scored & ~lesional] if complete else scores[:0].ravel(), images)
    samples = {}
    for name, truth in truths.items():
        found = _reduce(scores[scored & truth], images)
        samples[name] = PixelSample(
            patient,
            np.concatenate([found[0], rest[0]]),
            np.arange(len(found[0]) + len(rest[0])) < len(found[0]),
            np.concatenate([found[1], rest[1]]),
            int(np.count_nonzero(truth & ~scored)),
        )
    return samples


def summarise_pixels(
    samples: Sequence[PixelSample], *, rng: np.random.Generator, resamples: int = 2000
) -> PixelSummary:
    """Return AUROC and average precision over the pixels of all images, with patient-clustered 95 % intervals.

    Patients are drawn as in `unary.evaluation.intervals`; without intervals for fewer than two on either side. For
    the intervals, and only there, scores are further put into some thousands of bins, whose pixels count as tied; of
    more than five thousand patients into fewer.

    Without positive or negative pixels there is a OneClassError.
    """
    if not samples:
        raise EvaluationError("there are no pixels to evaluate: no image was given")
    scores, positive, weights = (
        np.concatenate([getattr(sample, name) for sample in samples]) for name in ("scores", "positive", "weights")
    )
    counts = [int(weights[chosen].sum()) for chosen in (positive, ~positive)]
    if 0 in counts:
        raise OneClassError(f"both classes are needed, but there are {counts[0]} positive and {counts[1]} other pixels")
    values = auroc(scores, positive, weights=weights), average_precision(scores, positive, weights=weights)
    codes = np.unique([sample.patient for sample in samples], return_inverse=True)[1]
    owners = np.repeat(codes, [len(sample.scores) for sample in samples])

    def resample() -> NDArray[np.float64]:
        draws = draw_patients(owners, positive, resamples=resamples, rng=rng)
        table = _count_bins(scores, positive, weights, owners)
        return average_resamples(draws, [(table.shape[2], lambda drawn: _compute_areas(table, drawn))])

    patients = [len(np.unique(owners[chosen])) for chosen in (positive, ~positive)]
    areas = tuple(Estimate(value, None, None) for value in values)
    if min(patients) >= 2:
        areas = estimate(values, resample)
    unscored = sum(sample.unscored for sample in samples)
    return PixelSummary(areas[0], areas[1], counts[0], counts[1], unscored, *patients)


def _reduce(values: NDArray[np.floating[Any]], images: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One score per group of ranks, and how many pixels each stands for."""
    bounds = _bound_groups(len(values), max(1, images // _FEW_IMAGES))
    middle = (bounds[:-1] + bounds[1:]) // 2
    return np.sort(values)[::-1][middle].astype(np.float64), np.diff(bounds).astype(np.float64)


@functools.lru_cache(maxsize=64)
def _bound_groups(count: int, coarser: int) -> NDArray[np.int64]:
    """The first rank of each group of so many pixels, and where the last ends."""
    tail, bulk = max(_TAIL // coarser, _FEWEST_TAIL), max(_BULK // coarser, _FEWEST_BULK)
    parts, start, largest = [np.zeros(1, np.int64)], 0, count // bulk
    while start < count:
        size = (max(1, min(start // tail, largest)) - 1) | 1  # odd: an even group has no middle, only a bias
        end = count if size + 2 > largest else min(count, (size + 2) * tail)  # from where groups are larger
        parts.append(np.arange(start + size, end + size, size))
        start = int(parts[-1][-1])
    bounds = np.concatenate(parts)
    bounds[-1] = count
    bounds.flags.writeable = False
    return bounds


def _count_bins(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64], owners: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Pixels by class, patient and bin, shape (2, patients, bins); the first bin holds the lowest scores.

    Half of the bins' edges are spread evenly over the ranks of either class, half ever denser towards the top.
    """
    cuts, patients = [], int(owners.max()) + 1
    count = min(_BINS, max(_MOST_COUNTS // (4 * patients), _FEWEST_BINS)) // 2
    for chosen in (positive, ~positive):
        order = np.argsort(-scores[chosen], kind="stable")
        above = np.cumsum(weights[chosen][order])
        ranks = np.concatenate([np.geomspace(1, above[-1], count), np.linspace(1, above[-1], count)])
        cuts.append(scores[chosen][order][np.minimum(np.searchsorted(above, ranks), len(order) - 1)])
    edges = np.unique(np.concatenate(cuts))
    bins = np.searchsorted(edges, scores, side="right")
    place = (np.where(positive, 0, patients) + owners) * (len(edges) + 1) + bins
    table = np.bincount(place, weights=weights, minlength=2 * patients * (len(edges) + 1))
    return table.astype(np.float64).reshape(2, patients, len(edges) + 1)


def _compute_areas(table: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """AUROC and average precision of each row of draws, shape (rows, 2)."""
    gained, lost = draws @ table[0], draws @ table[1]
    below = np.cumsum(lost, axis=1) - lost / 2
    area = (gained * below).sum(axis=1) / (gained.sum(axis=1) * lost.sum(axis=1))
    true_calls, false_calls = (np.cumsum(each[:, ::-1], axis=1)[:, ::-1] for each in (gained, lost))
    precision = true_calls / np.maximum(true_calls + false_calls, 1e-300)
    return np.stack([area, (gained * precision).sum(axis=1) / gained.sum(axis=1)], axis=1)
