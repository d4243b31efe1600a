"""Which files a model can use, told before it is run: each is accepted, or refused with a named reason.

The header decides first, since it says what no pixel shows: an implant, a magnified view, a test object. Then the
pixels are decoded, in a process of their own. What is unusual but usable is noted; `AcceptanceConfig.strict` refuses it
too. An attribute that is absent is no reason to refuse, for many are absent in practice: a missing "implant present" is
not a "no", only unknown.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from unary.datasets.folder import find_images
from unary.errors import ImageError, Reason
from unary.files import replacing
from unary.images.attributes import Attributes, clean_text
from unary.images.isolation import IsolatedReader, show_path
from unary.images.isolation_process import ReadingLimits
from unary.records import Domain, Image

MAGNIFIED_FROM = 1.2  # contact mammograms have 1.0 to 1.1, magnified ones 1.5 to 2
_SPACING_TOLERANCE = 0.1
_BRIGHTNESS_TOLERANCE = 0.25
_SAMPLE_PX = 1_000_000


@dataclass(frozen=True)
class AcceptanceConfig:
    """What is asked of a file.

    Attributes
    ----------
    headers_only
        Do not decode the pixels: milliseconds instead of a second per file, and damage inside them stays unseen.
    secondary_capture
        Also take Secondary Capture objects whose modality is MG, as those of CBIS-DDSM are.
    spacing_needed
        Refuse images that do not state their pixel spacing.
    strict
        Also refuse what is only noted otherwise: synthetic and contrast-enhanced images, and whatever differs from the
        images that the model has learned from.
    """

    headers_only: bool = False
    secondary_capture: bool = False
    spacing_needed: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Check:
    """What was decided about one file.

    Attributes
    ----------
    reason, detail
        Why it was refused, as a code and as a sentence; None and empty when it is accepted.
    notes
        What is unknown or unusual, one line each.
    """

    path: Path
    accepted: bool
    reason: Reason | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()


def check_files(
    inputs: Sequence[Path],
    *,
    config: AcceptanceConfig | None = None,
    domain: Domain | None = None,
    limits: ReadingLimits | None = None,
    progress: bool = True,
) -> tuple[Check, ...]:
    """Check files, and the images in folders and all their sub-folders, in the order given.

    A bad file never stops the others. An input that does not exist, and a folder without images, is a refused file.

    Parameters
    ----------
    domain
        Of the model that is to be used; None checks without one.

    Raises
    ------
    UnaryError
        If the process that reads images cannot be started.
    """
    paths = dict.fromkeys(path for given in inputs for path in _list_images(given))
    with IsolatedReader(limits) as reader:
        bar = tqdm(paths, desc="checking", unit="image", delay=2, disable=None if progress else True)
        return tuple(check_file(path, reader, config=config, domain=domain) for path in bar)


def _list_images(given: Path) -> list[Path]:
    try:
        return (find_images(given) or [given]) if given.is_dir() else [given]
    except (OSError, ValueError):  # a name that no file can have; reading it says so
        return [given]


def check_file(
    path: Path, reader: IsolatedReader, *, config: AcceptanceConfig | None = None, domain: Domain | None = None
) -> Check:
    """Check one file.

    Returns
    -------
    Check
        With the first reason against it; further ones stand in the notes.
    """
    config = config or AcceptanceConfig()
    if path.is_dir():
        return Check(path, False, "NOT_READABLE", "no image (DICOM, PNG, TIFF, PGM) in this folder")
    try:
        attributes = reader.read_attributes(path)
        refusals = list(_find_refusals(attributes, config, domain))
        notes = list(_describe_unknown(attributes))
        flags = list(_find_flags(attributes))
        if not refusals and not config.headers_only:
            part = describe_image(reader.read(path))
        else:
            part = _describe_attributes(attributes)
        if domain is not None:
            flags.extend(("OUT_OF_DOMAIN", line) for line in _compare(part, domain))
    except ImageError as error:
        detail = str(error).removeprefix(f"{show_path(path)}: ")
        return Check(path, False, error.reason or "NOT_READABLE", detail)
    if config.strict:
        refusals, flags = refusals + flags, []
    notes += [line for _, line in flags]
    if not refusals:
        return Check(path, True, notes=tuple(notes))
    (reason, detail), *others = refusals
    return Check(path, False, reason, detail, (*(f"also {code}: {line}" for code, line in others), *notes))


def _find_refusals(
    attributes: Attributes, config: AcceptanceConfig, domain: Domain | None
) -> Iterator[tuple[Reason, str]]:
    """What the header says against using the image, what it is before how it was made."""
    if attributes.frames != 1 or attributes.kind == "tomosynthesis":
        yield "MULTIFRAME", f"{attributes.frames} frames; tomosynthesis and other multi-frame images are not supported"
    if attributes.kind is not None and not _is_mammography(attributes, config):
        yield "NOT_MG", _describe_kind(attributes)
    if not attributes.decodable:
        yield "UNSUPPORTED_SYNTAX", "no decoder for its transfer syntax"
    if attributes.quality_control:
        yield "QC_IMAGE", "an image of a test object or for calibration, not of a patient"
    if attributes.specimen:
        yield "SPECIMEN", "an image of a specimen, not of a breast"
    if attributes.implant:
        yield "IMPLANT", "the breast has an implant (Breast Implant Present, or a view with the implant displaced)"
    if attributes.magnified or (attributes.magnification or 1.0) >= MAGNIFIED_FROM:
        factor = "" if attributes.magnification is None else f", magnification factor {attributes.magnification:g}"
        yield "MAGNIFICATION", f"a magnification or spot compression view{factor}"
    if attributes.partial:
        yield "PARTIAL_VIEW", "it shows only a part of the breast"
    known = domain is not None and domain.intents and attributes.intent is not None
    if domain is not None and known and attributes.intent not in domain.intents:
        seen = f"{attributes.intent}, the model has seen {' and '.join(domain.intents)} alone"
        if attributes.intent == "FOR PROCESSING":
            yield "FOR_PROCESSING_MODEL_MISMATCH", f"presentation intent {seen}"
        else:
            yield "FOR_PRESENTATION_MODEL_MISMATCH", f"presentation intent {seen}"
    if config.spacing_needed and attributes.spacing_mm is None:
        yield "NO_SPACING", "the pixel spacing is not stated, and the model needs it"


def _is_mammography(attributes: Attributes, config: AcceptanceConfig) -> bool:
    if attributes.kind == "secondary capture":
        return config.secondary_capture and attributes.modality == "MG"
    return attributes.kind in ("mammogram", "tomosynthesis")


def _describe_kind(attributes: Attributes) -> str:
    if attributes.kind == "secondary capture" and attributes.modality == "MG":
        return "a secondary capture of modality MG, not a digital mammogram; such are accepted when asked for"
    return f"not a digital mammogram: {attributes.kind} object, modality {attributes.modality or 'unknown'}"


def _find_flags(attributes: Attributes) -> Iterator[tuple[Reason, str]]:
    """What makes an image unlike an ordinary mammogram, though it can be used."""
    if attributes.synthetic:
        yield "SYNTHETIC_2D", "computed from tomosynthesis: specks in it are rendered, not imaged"
    if attributes.contrast:
        yield "CONTRAST_ENHANCED", "from a contrast-enhanced examination"


def _describe_unknown(attributes: Attributes) -> Iterator[str]:
    if attributes.kind is None:
        yield "a raster: presentation intent, equipment, pixel spacing and kind of view are unknown"
        return
    values = {
        "presentation intent": attributes.intent,
        "manufacturer": attributes.manufacturer,
        "pixel spacing": attributes.spacing_mm,
    }
    missing = [name for name, value in values.items() if value is None]
    if missing:
        yield f"not stated: {', '.join(missing)}"
    if attributes.lossy:
        yield "has been compressed with loss"


def describe_domain(images: Iterable[Image]) -> Domain:
    """Return what images have in common; they are taken one by one, so that a generator need not keep them.

    >>> describe_domain([Image(np.eye(9, dtype=np.uint8), (0.0, 255.0), Path("a.png"))])
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


def _describe_attributes(attributes: Attributes) -> Domain:
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
    lines = list(_compare(part, domain))
    if part.intents and domain.intents and not set(part.intents) <= set(domain.intents):
        lines.insert(
            0, f"presentation intent {part.intents[0]}, the model has seen {' and '.join(domain.intents)} alone"
        )
    return tuple(lines)


def _compare(part: Domain, whole: Domain) -> Iterator[str]:
    """All differences but the presentation intent's."""
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


def format_checks(checks: Sequence[Check]) -> str:
    """Return one line per file, its notes indented below it, and a line that counts."""
    lines = []
    for check in checks:
        verdict = "accepted" if check.accepted else f"refused  {check.reason}:"
        lines.append(f"{verdict} {show_path(check.path)}" + (f": {check.detail}" if check.detail else ""))
        lines.extend(f"    {note}" for note in check.notes)
    reasons = Counter(check.reason for check in checks if check.reason)
    refused = "".join(f", {count} {reason}" for reason, count in sorted(reasons.items()))
    lines.append(f"{len(checks)} files: {sum(check.accepted for check in checks)} accepted{refused}")
    return "\n".join(lines)


def write_checks(checks: Sequence[Check], path: Path) -> None:
    """Write the same as JSON; a file already there is replaced."""
    content = {
        "accepted": sum(check.accepted for check in checks),
        "refused": dict(sorted(Counter(check.reason for check in checks if check.reason).items())),
        "files": [
            {
                "path": str(check.path),
                "accepted": check.accepted,
                "reason": check.reason,
                "detail": check.detail,
                "notes": list(check.notes),
            }
            for check in checks
        ],
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
