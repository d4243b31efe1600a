"""Which files a model can use, told before it is run: each is accepted, or refused with a named reason.

The header decides first, since it says what no pixel shows: an implant, a magnified view, a test object. The profile
says what to look for in it. Then the pixels are decoded, in a process of their own. What is unusual but usable is
noted; `AcceptanceConfig.strict` refuses it too. An attribute that is absent is no reason to refuse, for many are absent
in practice: a missing "implant present" is not a "no", only unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from tqdm import tqdm

from unary.datasets.folder import list_files
from unary.errors import ImageError, Reason
from unary.files import replacing
from unary.images.attributes import Attributes
from unary.images.isolation import IsolatedReader, show_path
from unary.images.isolation_process import ReadingLimits
from unary.models.domain import compare_domain
from unary.profiles import DEFAULT, Headers, Profile, find_profile
from unary.records import Domain

_WITH_INTENT = ("MG", "DX", "IO", "PX")  # others have no Presentation Intent Type (PS3.3 C.8.11.1)
_COMPARABLE_UNITS = ("HU", "BQML", "GML", "CM2ML")  # HU, activity, and uptake by weight or by surface


@dataclass(frozen=True)
class AcceptanceConfig:
    """What is asked of a file.

    Attributes
    ----------
    headers_only
        Do not decode the pixels: milliseconds instead of a second per file, and damage inside them stays unseen.
    secondary_capture
        Also take Secondary Capture objects of the profile's modalities: scanned films, and screenshots too.
    spacing_needed
        Refuse images that do not state their pixel spacing.
    strict
        Also refuse what is only noted otherwise: what the profile notes, and whatever differs from the images that the
        model has learned from.
    """

    headers_only: bool = False
    secondary_capture: bool = False
    spacing_needed: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Check:
    """What was decided about one file: why it was refused, as a code and a sentence, if it was, and what is unusual.

    ``notes`` has one line for each thing that is unknown or unusual.
    """

    path: Path
    accepted: bool
    reason: Reason | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()


def check_files(
    inputs: Sequence[Path],
    profile: str | Profile = DEFAULT,
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
    profile, domain
        Which headers are accepted, and what the model that is to be used has learned from: ``model.profile`` and
        ``model.domain``. None checks without a model.

    Raises
    ------
    UnaryError
        If there is no profile of that name, or the process that reads images cannot be started.
    """
    profile = find_profile(profile)
    paths = dict.fromkeys(path for given in inputs for path in _list_images(given))
    with IsolatedReader(limits) as reader:
        bar = tqdm(paths, desc="checking", unit="image", delay=2, disable=None if progress else True)
        return tuple(check_file(path, reader, profile, config=config, domain=domain) for path in bar)


def _list_images(given: Path) -> list[Path]:
    try:
        return (list_files(given)[0] or [given]) if given.is_dir() else [given]
    except (OSError, ValueError):  # a name that no file can have; reading it says so
        return [given]


def check_file(
    path: Path,
    reader: IsolatedReader,
    profile: Profile = DEFAULT,
    *,
    config: AcceptanceConfig | None = None,
    domain: Domain | None = None,
) -> Check:
    """Check one file, as `check_files` does; the first reason against it counts, further ones stand in the notes."""
    config = config or AcceptanceConfig()
    if path.is_dir():
        return Check(path, False, "NOT_READABLE", "no image (DICOM, PNG, TIFF, PGM, JPEG) in this folder")
    try:
        attributes = reader.read_attributes(path, profile.headers)
        refusals = list(_find_refusals(attributes, profile.headers, config, domain))
        notes = list(_describe_unknown(attributes))
        flags = list(_find_flags(attributes, profile.headers, refused=False))
        image = attributes if refusals or config.headers_only else reader.read(path)
        if domain is not None:
            # Another presentation intent has been refused for that already.
            flags.extend(("OUT_OF_DOMAIN", line) for line in compare_domain(image, replace(domain, intents=())))
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
    attributes: Attributes, headers: Headers, config: AcceptanceConfig, domain: Domain | None
) -> Iterator[tuple[Reason, str]]:
    """What the header says against using the image, what it is before how it was made."""
    if attributes.is_multiframe:
        yield "MULTIFRAME", f"{attributes.frames} frames; tomosynthesis and other multi-frame images are not supported"
    yield from _check_kind(attributes, headers, config)
    if not attributes.decodable:
        yield "UNSUPPORTED_SYNTAX", "no decoder for its transfer syntax"
    yield from _find_flags(attributes, headers, refused=True)
    intent = attributes.intent
    if domain is not None and domain.intents and intent not in (None, *domain.intents):
        seen = f"presentation intent {intent}, the model has seen {' and '.join(domain.intents)} alone"
        raw = intent == "FOR PROCESSING"
        yield ("FOR_PROCESSING_MODEL_MISMATCH" if raw else "FOR_PRESENTATION_MODEL_MISMATCH"), seen
    if config.spacing_needed and attributes.spacing_mm is None:
        yield "NO_SPACING", "the pixel spacing is not stated, and the model needs it"


def _check_kind(attributes: Attributes, headers: Headers, config: AcceptanceConfig) -> Iterator[tuple[Reason, str]]:
    """Refuse what the profile does not list; an object of several frames has been refused for that already."""
    if attributes.raster or attributes.sop_class in headers.sop_classes or attributes.is_multiframe:
        return
    code, words = headers.refusal
    reason = cast(Reason, code)
    modality = attributes.modality or "unknown"
    if not attributes.is_capture:
        if headers.sop_classes:
            yield reason, f"{words}: another kind of object, modality {modality}"
    elif attributes.modality not in headers.capture_modalities:
        yield reason, f"{words}: a secondary capture, modality {modality}"
    elif not config.secondary_capture:
        yield reason, f"a secondary capture of modality {modality}, {words}; such are accepted when asked for"


def _find_flags(attributes: Attributes, headers: Headers, *, refused: bool) -> Iterator[tuple[Reason, str]]:
    """What the profile looks for in a header, and has found: what is refused, or what is only noted."""
    for flag in headers.flags:
        if flag.reason in attributes.flags and flag.refused == refused:
            known = flag.magnified_from is not None and attributes.magnification is not None
            factor = f", magnification factor {attributes.magnification:g}" if known else ""
            yield cast(Reason, flag.reason), flag.detail + factor


def _describe_unknown(attributes: Attributes) -> Iterator[str]:
    if attributes.raster:
        yield "a raster: presentation intent, equipment, pixel spacing and kind of view are unknown"
    else:
        absent = {
            "presentation intent": attributes.intent is None and attributes.modality in _WITH_INTENT,
            "manufacturer": attributes.manufacturer is None,
            "pixel spacing": attributes.spacing_mm is None,
            "units": attributes.units is None and attributes.modality == "PT",
        }
        missing = [name for name, is_absent in absent.items() if is_absent]
        if missing:
            yield f"not stated: {', '.join(missing)}"
    if attributes.units not in (None, *_COMPARABLE_UNITS):
        yield f"values in {attributes.units}, which are comparable within one examination alone"
    if attributes.lossy:
        yield "has been compressed with loss"


def _count(checks: Sequence[Check]) -> tuple[int, dict[str, int]]:
    """How many were accepted, and how many refused for each reason, by its name."""
    reasons = Counter(check.reason for check in checks if check.reason)
    return sum(check.accepted for check in checks), dict(sorted(reasons.items()))


def format_checks(checks: Sequence[Check]) -> str:
    """Return one line per file, its notes indented below it, and a line that counts."""
    lines = []
    for check in checks:
        verdict = "accepted" if check.accepted else f"refused  {check.reason}:"
        lines.append(f"{verdict} {show_path(check.path)}" + (f": {check.detail}" if check.detail else ""))
        lines.extend(f"    {note}" for note in check.notes)
    accepted, refused = _count(checks)
    counts = ", ".join([f"{accepted} accepted", *(f"{count} {reason}" for reason, count in refused.items())])
    return "\n".join([*lines, f"{len(checks)} files: {counts}"])


def write_checks(checks: Sequence[Check], path: Path) -> None:
    """Write the same as JSON; a file already there is replaced."""
    accepted, refused = _count(checks)
    files = [{**asdict(check), "path": str(check.path)} for check in checks]
    with replacing(path) as partial:
        content = {"accepted": accepted, "refused": refused, "files": files}
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
