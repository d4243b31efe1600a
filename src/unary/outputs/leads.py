"""What reports say first, in words: from counts and intervals, by rules that stand here and nowhere else.

1. What was compared stands first: images or patches, how many of either side, and of how many patients.
2. With fewer than `FEW_PATIENTS` patients on either side nothing is claimed, and no figure is put into words.
3. A detector tells two sides apart only where the interval of its AUROC lies above chance.
4. One detector is better than another only where the paired interval of their difference lies above 0.
5. A control that is not beaten is named, whatever else is said; so is one that would be ahead turned over.
6. A run that is shorter, smaller or set otherwise than what it repeats is headed so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import FEW_PATIENTS
from unary.records import count_words

CHANCE = 0.5
CONTROLS = ("mean_brightness", "standard_deviation")
ENOUGH_RUNS = 3
"""Below, a spread over runs says nothing."""


@dataclass(frozen=True)
class Sides:
    """What is told apart, in the plural; ``unit`` is what has a score, in the singular."""

    positive: str
    negative: str
    unit: str


PATCHES = Sides("patches with a lesion", "normal patches", "patch")
IMAGES = Sides("images labelled positive", "images labelled negative", "image")


def is_few(found: Mapping[str, Any]) -> bool:
    """Return whether an entry of ``metrics.json`` rests on too few patients of either side for any claim."""
    return bool(min(found["n_positive_patients"], found["n_negative_patients"]) < FEW_PATIENTS)


def note_few(*patients: int) -> str:
    """Return a note where any of these sides has too few patients for any claim, else nothing.

    >>> note_few(10, 12), note_few(4, 12)
    ('', ' (too few patients to tell: 4 against 12)')
    """
    return (
        f" (too few patients to tell: {' against '.join(map(str, patients))})" if min(patients) < FEW_PATIENTS else ""
    )


def describe_auroc(found: Mapping[str, Any]) -> str:
    """Return the AUROC of an entry of ``metrics.json`` with its interval, to three decimals, or why it has none.

    >>> entry = {"auroc": 0.9, "auroc_ci95": [0.8, 0.95], "n_positive_patients": 12, "n_negative_patients": 10}
    >>> describe_auroc(entry), describe_auroc({**entry, "n_positive_patients": 1})
    ('0.900 (0.800 to 0.950)', '0.900 (too few patients to tell: 1 against 10)')
    """
    area, interval = f"{found['auroc']:.3f}", found["auroc_ci95"]
    if few := note_few(found["n_positive_patients"], found["n_negative_patients"]):
        return area + few
    return area + (" (no interval)" if interval is None else " ({:.3f} to {:.3f})".format(*interval))


def describe_sides(found: Mapping[str, Any], sides: Sides) -> str:
    """Return how many were compared, and of how many patients."""
    told = []
    for side, several in (("positive", sides.positive), ("negative", sides.negative)):
        count, patients = found[f"n_{side}"], count_words(found[f"n_{side}_patients"], "patient")
        words = several.replace(_plural(sides.unit), sides.unit) if count == 1 else several
        told.append(f"{count:,} {words} ({patients})")
    return " against ".join(told)


def describe_outcome(
    groups: Mapping[str, Mapping[str, Any]],
    *,
    subject: str,
    differences: Mapping[str, Estimate | None],
    sides: Sides = PATCHES,
    among: int = 1,
    controls: Collection[str] = CONTROLS,
) -> str:
    """Say in plain words what a detector can tell apart, and beside whom.

    Parameters
    ----------
    groups
        One group of ``metrics.json`` by detector, ``{NAME: {"auroc": x, ...}}``.
    subject
        The detector that is spoken of.
    differences
        The AUROC of the subject minus that of each other that it is set beside, with its paired interval; None where
        there is none.
    among
        Of how many detectors the subject has the highest AUROC; 1 where it was not chosen so.
    controls
        Names of those that know nothing of lesions.
    """
    found = groups[subject]
    compared = describe_sides(found, sides)
    if is_few(found):
        return (
            f"Too few patients to tell: {compared}. Below {FEW_PATIENTS} patients on either side nothing is claimed of "
            f"{subject} or of any other; the figures are of these {_plural(sides.unit)} alone."
        )
    interval = found["auroc_ci95"]
    above = interval is not None and interval[0] > CHANCE
    words = [f"Compared were {compared}.", _describe_level(subject, found, sides, among=among)]
    words += _describe_rivals(differences, controls, above=above)
    turned = {name: 1 - groups[name]["auroc"] for name in differences if name in controls}
    if found_too := [
        f"{name} ({area:.3f})" for name, area in turned.items() if area >= found["auroc"] and area > CHANCE
    ]:
        words.append(f"Turned over, {join_words(found_too)} would do as well or better, knowing nothing of lesions.")
    if above:
        share = 100 * found["sensitivity_at_specificity"]["0.95"]
        words.append(
            f"Let 95 % of the {sides.negative} pass, and {subject} flags {share:.0f} % of the {sides.positive}."
        )
    if sides.unit == "patch":
        words.append(
            "These are patches, not patients: an image holds many, so that even few false alarms per "
            "patch are many per image, and nothing here says how well anyone would be diagnosed."
        )
    return " ".join(words)


def describe_briefly(
    groups: Mapping[str, Mapping[str, Any]], *, subject: str, differences: Mapping[str, Estimate | None], sides: Sides
) -> str:
    """Say `describe_outcome` in one sentence, without a figure for every other detector; of enough patients alone."""
    found = groups[subject]
    level = _describe_level(subject, found, sides, among=1).removesuffix(".")
    interval = found["auroc_ci95"]
    verdicts: dict[str, list[str]] = {"better than": [], "not told apart from": [], "worse than": []}
    for name, difference in differences.items():
        verdicts[judge_difference(difference)].append(name)
    if interval is None or not interval[0] > CHANCE:  # to be better than what is worse than chance is nothing
        del verdicts["better than"]
    words = [f"{verdict} {join_words(names)}" for verdict, names in verdicts.items() if names]
    return f"{level}{'; it is ' if words else ''}{join_words(words)}."


def _plural(unit: str) -> str:
    return count_words(2, unit).split(" ", 1)[1]


def _describe_level(subject: str, found: Mapping[str, Any], sides: Sides, *, among: int) -> str:
    area, interval = f"an AUROC of {describe_auroc(found)}", found["auroc_ci95"]
    first = f"The highest of {among} detectors, {subject}," if among > 1 else f"The detector {subject}"
    if interval is None:
        return f"{first} has {area}: whether that is more than chance ({CHANCE:g}) is not known."
    if interval[0] > CHANCE:
        return f"{first} tells {sides.positive} from {sides.negative} with {area}, where chance is {CHANCE:g}."
    if interval[1] < CHANCE:
        return f"{first} has {area}: worse than chance ({CHANCE:g}), it ranks them the wrong way round."
    return f"{first} has {area}: it is not told apart from chance ({CHANCE:g})."


def _describe_rivals(
    differences: Mapping[str, Estimate | None], controls: Collection[str], *, above: bool
) -> list[str]:
    """A sentence each for those that are beaten, not told apart and better; and one for controls not beaten."""
    verdicts: dict[str, list[str]] = {"better than": [], "not told apart from": [], "worse than": []}
    unbeaten = []
    for name, difference in differences.items():
        verdict = judge_difference(difference)
        between = "no paired interval" if difference is None else _describe_difference(difference)
        verdicts[verdict].append(f"{name} ({between})")
        if verdict != "better than" and name in controls:
            unbeaten.append(name)
    if not above:  # to be better than what is worse than chance is nothing
        del verdicts["better than"]
    words = [f"It is {verdict} {join_words(names)}." for verdict, names in verdicts.items() if names]
    if unbeaten:
        what, beaten = ("a control that knows", "it") if len(unbeaten) == 1 else ("controls that know", "them")
        words.append(
            f"{join_words(unbeaten)}: {what} nothing of lesions; what does not beat {beaten} has shown nothing."
        )
    return words


def judge_difference(found: Estimate | None) -> str:
    """Return ``better than``, ``worse than``, or ``not told apart from`` where the interval holds 0 or is unknown."""
    if found is None or found.low is None or found.high is None or found.low <= 0 <= found.high:
        return "not told apart from"
    return "better than" if found.low > 0 else "worse than"


def _describe_difference(found: Estimate) -> str:
    between = "no interval" if found.low is None else f"{found.low:+.3f} to {found.high:+.3f}"
    return f"difference {found.value:+.3f}, {between}"


def describe_readings(
    whole: Mapping[str, Mapping[str, Any]],
    tissue: Mapping[str, Mapping[str, Any]],
    *,
    differences: Mapping[str, Estimate | None],
    air: float,
    against: tuple[Estimate, Estimate] | None,
    published: float,
) -> str:
    """Say where a published AUROC comes from, by what two readings of which patches are negative give.

    Parameters
    ----------
    whole, tissue
        One group of ``metrics.json`` by detector, of either reading; ``wei2018`` is spoken of.
    differences
        Its AUROC minus that of each control, of the whole images.
    air
        The share of air among the negatives of whole images, in [0, 1].
    against
        Its AUROC there against air alone, and against all other negatives; None where one of them is missing.
    published
        What the paper prints.
    """
    found, inside = whole["wei2018"], tissue["wei2018"]
    if few := next((entry for entry in (found, inside) if is_few(entry)), None):
        return (
            f"Too few patients to tell where the paper's AUROC of {published:g} comes from: "
            f"{describe_sides(few, PATCHES)}."
        )
    interval = found["auroc_ci95"]
    held = interval is not None and interval[0] <= published <= interval[1]
    verdict = "inside that interval" if held else "outside that interval" if interval else "and nothing tells how near"
    words = [
        f"With every patch of the images as negatives, {100 * air:.0f} % of which are air, the paper's network has an "
        f"AUROC of {describe_auroc(found)}; the paper prints {published:g}, {verdict}."
    ]
    unbeaten = [name for name, difference in differences.items() if judge_difference(difference) != "better than"]
    if unbeaten:
        told = join_words([f"{name} ({whole[name]['auroc']:.3f})" for name in unbeaten])
        words.append(f"Knowing nothing of lesions, these are not beaten by it: {told}.")
    if against is not None:
        only, rest = against
        words.append(
            f"Against air alone the network has {_describe_estimate(only)}, against all other negatives "
            f"{_describe_estimate(rest)}."
        )
        if only.low is not None and rest.high is not None and only.low > rest.high:
            words.append("What it tells apart there is tissue from air.")
    words.append(f"With patches of tissue as negatives it has {describe_auroc(inside)}.")
    return " ".join(words)


def _describe_estimate(found: Estimate) -> str:
    between = "no interval" if found.low is None else f"{found.low:.3f} to {found.high:.3f}"
    return f"{found.value:.3f} ({between})"


def join_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence.

    >>> join_words(["a"]), join_words(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def describe_seen(seen: int | None, patients: int) -> str:
    """Say how many of the patients of an evaluation the model had learned from; None where that cannot be known."""
    of_all = count_words(patients, "patient")
    if seen is None:
        return (
            f"Whether the model was fitted on any of these {of_all} cannot be told here, without the key for patients "
            "of the site that fitted it. If it was, every figure is flattered."
        )
    if seen == 0:
        return f"The model was fitted on none of these {of_all}, by their identifiers."
    return f"The model was fitted on {seen} of these {of_all}: every figure is flattered."


def describe_means(runs: int, what: str = "run") -> str:
    """Return what the figures are of.

    >>> describe_means(1), describe_means(3), describe_means(2, "fold")
    ('of one run', 'means over 3 runs', 'means over 2 folds')
    """
    return f"of one {what}" if runs == 1 else f"means over {count_words(runs, what)}"


def head_repetition(
    title: str,
    *,
    epochs: tuple[int, int],
    runs: int,
    images: tuple[tuple[int, int], tuple[int, int]] | None = None,
    changed: Sequence[str] = (),
    whole: str = "",
    instead: str = "as published",
) -> str:
    """Return the heading of a repeated experiment: ``whole`` is added where nothing is amiss, else what is.

    Epochs are those run and those of what is repeated; images, of either side, likewise, as ((negative, positive) here,
    the same there); ``changed`` names settings that differ; ``instead`` says what the run is not.

    >>> head_repetition("Wei et al. 2018", epochs=(500, 500), runs=3, whole=", reproduced")
    'Wei et al. 2018, reproduced'
    >>> head_repetition("Wei et al. 2018", epochs=(2, 500), runs=1)
    'Wei et al. 2018, not as published: 2 of 500 epochs, one run'
    """
    amiss = []
    if epochs[0] != epochs[1]:
        amiss.append(
            f"{epochs[0]} of {epochs[1]} epochs" if epochs[0] < epochs[1] else f"{epochs[0]} epochs, not {epochs[1]}"
        )
    if runs < ENOUGH_RUNS:
        amiss.append("one run" if runs == 1 else f"{runs} runs")
    if images is not None and images[0] != images[1]:
        here, there = images
        amiss.append(f"{here[0]} negative and {here[1]} positive images in place of {there[0]} and {there[1]}")
    if changed:
        amiss.append(f"other settings ({', '.join(changed)})")
    return f"{title}, not {instead}: {', '.join(amiss)}" if amiss else title + whole


def describe_one_class(
    title: str, areas: Mapping[str, Sequence[float]], controls: Mapping[str, float], *, names: Mapping[str, str]
) -> str:
    """Say what an autoencoder makes of one class against the rest.

    Parameters
    ----------
    title
        Of the data.
    areas
        The AUROC of every run, by class and, under ``mean``, over all classes.
    controls
        The mean AUROC of each control.
    names
        What the controls are called, in the middle of a sentence.
    """
    runs = list(areas["mean"])
    means = {name: sum(values) / len(values) for name, values in areas.items()}
    classes = [name for name in means if name != "mean"]
    best, worst = (choose(classes, key=means.__getitem__) for choose in (max, min))
    over = "in one run" if len(runs) == 1 else f"{min(runs):.3f} to {max(runs):.3f} in {len(runs)} runs"
    lead = (
        f"{title}, one class against the rest: an autoencoder that learned one class alone ranks test images of the "
        f"other classes above its own with a mean AUROC of {means['mean']:.3f} ({over}), where {CHANCE:g} is chance; "
        f"highest for {best} ({means[best]:.3f}), lowest for {worst} ({means[worst]:.3f})."
    )
    rivals = {f"{names[name]} alone ({area:.3f})": area for name, area in controls.items()}
    if len(runs) < ENOUGH_RUNS:
        few = "one run cannot" if len(runs) == 1 else f"{len(runs)} runs cannot"
        return f"{lead} Without a network: {join_words(list(rivals))}; {few} tell which is better."
    told: dict[str, list[str]] = {"above": [], "below": [], "now above, now below": []}
    for name, area in {"chance": CHANCE, **rivals}.items():
        told["above" if min(runs) > area else "below" if max(runs) < area else "now above, now below"].append(name)
    said = "; ".join(f"{where} {join_words(found)}" for where, found in told.items() if found)
    return f"{lead} Run by run it lies {said}."
