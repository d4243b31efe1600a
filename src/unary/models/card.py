"""The card of a model, ``MODEL_CARD.md``: what it is for, what it has learned from, what is known of it, as text.

A card is made of what the model holds, and of a `Background` that it does not hold: its images, counted, and the
commands that made it. It names the hash of the ``model.json`` that it is of, and is no part of the model: the hash does
not cover it. It is for people, who may add to it; nothing but a later card reads it again. It holds no patient, no file
of an image and no date.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import inspect
import logging
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unary.errors import hide_credentials
from unary.files import replacing
from unary.images.attributes import Attributes, clean_text
from unary.models.calibration import describe_guarantee
from unary.models.card_words import FOR_ALL, NOT_FOR, WORDS
from unary.records import NOTICE, Domain, Image, ManifestRow, count_words

if TYPE_CHECKING:
    from unary.models.bundle import Model

logger = logging.getLogger(__name__)

CARD_FILE = "MODEL_CARD.md"
Facts = tuple[tuple[str, str], ...]
"""Terms with what holds of them."""

_HASH = re.compile(r"^    sha256 of model\.json: ([0-9a-f]{64})$", re.MULTILINE)
_DATA, _REPEAT = "What it has learned from", "How to repeat it"
_FEW_PATIENTS = 20


@dataclass(frozen=True)
class Background:
    """What a card says that the model itself does not keep.

    Attributes
    ----------
    images
        The images, counted by what is known of them (`count_images`).
    commands
        The command lines that fitted and calibrated the model, in order; those of a Python program are not known.
    """

    images: Facts = ()
    commands: tuple[str, ...] = ()


def count_images(rows: Sequence[ManifestRow], sources: Sequence[Attributes | Image | None]) -> Facts:
    """Count the images that were used, by what manifest and files say of them; what they do not say is "not stated"."""
    pairs = list(zip(rows, sources, strict=True))
    counted = {
        "Views": (row.view or getattr(source, "view", None) for row, source in pairs),
        "Sides": (row.laterality or getattr(source, "laterality", None) for row, source in pairs),
        "Assessments": (row.assessment for row in rows),
        "Densities": (row.density for row in rows),
        "Equipment": (_name_equipment(source) for _, source in pairs),
        "Presentation intents": (getattr(source, "intent", None) for _, source in pairs),
        "Modalities": (getattr(source, "modality", None) for _, source in pairs),
    }
    images = f"{count_words(len(rows), 'image')} of {count_words(len({row.patient_id for row in rows}), 'patient')}"
    facts = [("Used", images), *((name, _count(values)) for name, values in counted.items())]
    spacings = [ends for source in sources if source is not None and (ends := source.spacing_mm) is not None]
    if spacings:
        low, high = min(map(min, spacings)), max(map(max, spacings))
        facts.append(("Pixel spacing", f"{_span(low, high)} mm, stated by {count_words(len(spacings), 'image')}"))
    return tuple((name, text) for name, text in facts if text)


def _name_equipment(source: Attributes | Image | None) -> str | None:
    named = (getattr(source, name, None) for name in ("manufacturer", "model_name"))
    return " ".join(clean_text(text) or "" for text in named if text).strip() or None


def _count(values: Iterable[str | None]) -> str:
    """Counts of texts, the most frequent first; empty where nothing is stated of any image."""
    counts = Counter(values)
    if set(counts) <= {None}:
        return ""
    order = sorted(counts, key=lambda text: (text is None, -counts[text], text or ""))
    return ", ".join(f"{text or 'not stated'} ({counts[text]:,})" for text in order)


def _span(low: float, high: float) -> str:
    return f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"


def describe_training(model: Model) -> Facts:
    """Say what a model has learned from, as far as it keeps it itself."""
    made, calibration = model.provenance, model.calibration
    patients = count_words(made.seen.count, "patient")
    facts = [
        ("Images", f"{count_words(made.images, 'normal image')} of {patients}, those held out included"),
        ("Patches", f"{made.patches:,} trained on, {made.held_out_patches:,} of held-out patients"),
        ("Not usable", count_words(made.skipped, "image")),
    ]
    if calibration is not None:
        held = (
            f"{count_words(len(calibration.images), 'normal image')} of {count_words(calibration.patients, 'patient')}"
        )
        facts.append(("Operating points set on", held))
    return tuple(facts)


def describe_domain(domain: Domain) -> Iterator[tuple[str, str]]:
    """Yield what a domain says, and nothing of what is unknown."""
    texts = {
        "Manufacturers": domain.manufacturers,
        "Equipment models": domain.model_names,
        "Presentation intents": domain.intents,
        "Modalities": domain.modalities,
        "Units": domain.units,
        "Bits of a pixel": domain.bits,
    }
    for name, values in texts.items():
        if values:
            yield name, ", ".join(map(str, values))
    if domain.spacing_mm is not None:
        yield "Pixel spacing", f"{_span(*domain.spacing_mm)} mm"
    if domain.brightness is not None:
        yield "Bright pixels (99th percentile)", _span(*domain.brightness)


def describe_place(model: Model) -> str:
    """Say how large patches are, and on which grid."""
    spacing, side = model.preparation.working_spacing_mm, model.preparation.working_size_px
    place = "stored pixels" if spacing is None else f"pixels of {spacing:g} mm"
    place = place if side is None else f"pixels of an image with a longer side of {side}"
    return f"{model.grid.size_px} x {model.grid.size_px} {place}, every {model.grid.stride_px}"


def build_card(model: Model, background: Background, *, sha256: str, weights_sha256: str) -> str:
    """Return the card of the model whose ``model.json`` and weights have these hashes, in Markdown.

    Equal arguments give equal text.
    """
    parts = [
        f"# Model card: {model.name} for {model.profile.noun}s",
        f"> **{NOTICE}** {FOR_ALL}",
        "This card is of one model alone; its folder holds the file that has this hash:",
        f"    sha256 of model.json: {sha256}",
        "Of any other it says nothing. It was written by unary and is not read by it when the model is applied.",
        *_describe_use(model),
        f"## {_DATA}",
        "No patient is named, here or in the model, which keeps keyed hashes of patients alone.",
        _lay_out(("", ""), (*describe_training(model), *background.images)),
        "## Domain",
        "What the training images have in common, or 24 of them; of another image it is told how it differs.",
        _lay_out(("", ""), describe_domain(model.domain)),
        *_describe_figures(model),
        "## Limits",
        "\n".join(f"- {line}" for line in _list_limits(model)),
        "## Settings",
        _lay_out(("setting", "value"), _list_settings(model)),
        "## Identity",
        _lay_out(("", ""), _identify(model, weights_sha256)),
        f"## {_REPEAT}",
        _describe_repeating(model, background),
    ]
    return "\n\n".join(parts) + "\n"


def _describe_use(model: Model) -> list[str]:
    words = WORDS.get(model.name)
    what = words.what if words is not None else inspect.cleandoc(type(model.detector).__doc__ or "").split("\n\n")[0]
    meant = words.meant_for if words is not None else "Research on what departs from normal in such images."
    return ["## What it is, and what for", f"{' '.join(what.split())}", f"**For**: {meant}", f"**Not for**: {NOT_FOR}"]


def _describe_figures(model: Model) -> list[str]:
    calibration, heading = model.calibration, "## What is known of it"
    if calibration is None:
        return [heading, "It is not calibrated: it has no operating points, and nothing is guaranteed."]
    points = calibration.operating_points
    header = ("operating point", "score above", "asked for", "measured", "guaranteed", "bound on normal images alarmed")
    rows = [
        (
            point.name,
            f"{point.threshold:.4g}",
            f"{point.rate:.3g} {'per normal image' if point.unit == 'finding' else 'of the patches'}",
            f"{point.measured_rate:.3g}",
            "yes" if point.guaranteed else "no",
            "" if point.false_alarm_rate is None else f"{point.false_alarm_rate:.3g}",
        )
        for point in points
    ]
    condition = {
        "excluded": "None of these patients was trained on.",
        "allowed": "Patients that the model was trained on were allowed: nothing is guaranteed.",
        "unknown": "Whether any of them was trained on could not be told: what is guaranteed holds if none was.",
    }[calibration.overlap]
    return [
        heading,
        f"Measured on normal images of {calibration.patients} patients who set the operating points. {condition} "
        f"A p-value is never below {1 / (calibration.patients + 1):.3g}.",
        _lay_out(header, rows),
        "\n".join(f"- {point.name}: {describe_guarantee(point)}" for point in points),
        "A guarantee is an average over the draw of these patients and of the next normal one, who must be like them: "
        "the same kind of scanner, processing and population. It says nothing of a single image, and nothing of how "
        "many lesions are found: that is measured by `unary evaluate` and `unary commission`, on your own images.",
    ]


def _list_limits(model: Model) -> Iterator[str]:
    words, calibration = WORDS.get(model.name), model.calibration
    if words is not None:
        yield words.limits
    yield "Not validated clinically, for any use."
    yield (
        "Other scanners, processing, views, densities and populations than those above look abnormal without being so; "
        "what cannot be measured of an image cannot be noted."
    )
    if calibration is not None and calibration.patients < _FEW_PATIENTS:
        yield f"Operating points rest on {count_words(calibration.patients, 'patient')}: few."
    if model.preparation.working_spacing_mm is None:
        yield "The detector sees pixels as they are stored, or at one size of an image, whatever they measure in mm."


def _list_settings(model: Model) -> Iterator[tuple[str, str]]:
    yield "detector", model.name
    yield "profile", model.profile.name
    yield "patches", describe_place(model)
    yield "level of findings", f"{model.level:.6g}"
    config = getattr(model.detector, "config", None)
    parts = {"detector": config, "preparation": model.preparation, "grid": model.grid, "findings": model.findings}
    for name, part in parts.items():
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            yield from flatten({name: dataclasses.asdict(part)})


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested settings as text, with points between the names that lead to them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)


def _identify(model: Model, weights_sha256: str) -> Iterator[tuple[str, str]]:
    yield "data (hash of the training patches)", model.provenance.data_hash
    yield "weights (SHA-256)", weights_sha256
    yield "seed", str(model.provenance.seed)
    yield from model.provenance.versions.items()


def _describe_repeating(model: Model, background: Background) -> str:
    start = "Equal images, settings, seed and versions give an equal model on the same processor."
    if not background.commands:
        return f"{start} It was made from Python, by `unary.fit` with the settings and the seed above."
    lines = "\n".join(f"    {' '.join(command.splitlines())}" for command in background.commands)
    return f"{start} It was made by:\n\n{lines}"


def _lay_out(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;").replace("`", "&#96;")


def describe_command() -> str:
    """Return the command line of this process, as it would be typed again, but for a password in a URL."""
    return hide_credentials(shlex.join(["unary", *sys.argv[1:]]))


def find_card_hash(card: str) -> str | None:
    """Return the hash of the ``model.json`` that a card says that it is of; None where it is no card of unary's."""
    found = _HASH.search(card)
    return None if found is None else found.group(1)


def read_background(card: str) -> Background:
    """Return what a card of unary's tells that its model does not."""
    own = ("Images", "Patches", "Not usable", "Operating points set on")
    rows = re.findall(r"^\| (.+?) \| (.*) \|$", _find_section(card, _DATA), re.MULTILINE)
    facts = tuple((html.unescape(name), html.unescape(text)) for name, text in rows if not name.startswith("---"))
    kept = tuple(fact for fact in facts if fact[0] not in own)
    commands = re.findall(r"^    (.+)$", _find_section(card, _REPEAT), re.MULTILINE)
    return Background(kept, tuple(commands))


def _find_section(card: str, heading: str) -> str:
    return card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def write_card(model: Model, folder: Path, *, sha256: str, weights_sha256: str, command: str | None) -> None:
    """Write the card of a model that has just been written; a card that is of this model already stays as it is.

    Another card that is there is kept under a name with the hash of its model, or of itself where that is unknown. A
    card that cannot be written costs a warning: the model is there.
    """
    path = folder / CARD_FILE
    commands = (*model.background.commands, *([command] if command else []))
    background = dataclasses.replace(model.background, commands=commands)
    try:
        before = path.read_bytes() if path.is_file() else None
        if before is not None:
            known = find_card_hash(before.decode("utf-8", "replace"))
            if known == sha256:
                return
            path.replace(_name_kept(folder, known or hashlib.sha256(before).hexdigest()))
        with replacing(path) as partial:
            text = build_card(model, background, sha256=sha256, weights_sha256=weights_sha256)
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        logger.warning("%s: the model is there, its card is not (%s)", path, error.strerror or error)


def find_background(folder: Path, sha256: str) -> Background:
    """Return what the card in a model's folder tells beside the model; a warning names a card of another model."""
    path = folder / CARD_FILE
    try:
        card = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return Background()
    if find_card_hash(card) == sha256:
        return read_background(card)
    kept = _name_kept(folder, sha256)
    there = f"; that of this one is {kept.name}" if kept.is_file() else ""
    logger.warning("%s: the card is not of the model beside it%s", path, there)
    return Background()


def _name_kept(folder: Path, sha256: str) -> Path:
    return folder / f"MODEL_CARD-{sha256[:16]}.md"
