"""The one gate before a model: which images it may be applied to, by what their headers say.

`check`, `score` and `detect`, from the command line and from Python, all pass it, so that none takes what another
refuses. The header says what no pixel shows: an implant, a magnified view, a test object; the profile says what to look
for in it. What is unusual but usable is noted. An attribute that is absent is no reason to refuse, for many are absent
in practice: a missing "implant present" is not a "no", only unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from unary.errors import ImageError, Reason, UnaryError
from unary.images.attributes import Attributes
from unary.models.domain import compare_domain
from unary.patches.grid import GridConfig, tissue_origins
from unary.patches.preparation import PreparationConfig, PreparedImage
from unary.profiles import DEFAULT, Headers, Profile
from unary.records import Domain, Image, count_words

if TYPE_CHECKING:
    from unary.models.bundle import Model

ACCEPTABLE: tuple[Reason, ...] = (
    "NOT_MG", "SECONDARY_CAPTURE", "FOR_PROCESSING_MODEL_MISMATCH", "FOR_PRESENTATION_MODEL_MISMATCH",
    "UNITS_MODEL_MISMATCH", "IMPLANT", "MAGNIFICATION", "PARTIAL_VIEW", "QC_IMAGE", "LOCALIZER", "SPECIMEN",
    "SYNTHETIC_2D", "CONTRAST_ENHANCED", "OUT_OF_DOMAIN",
)  # fmt: skip
"""What may be let pass by name: the image can be examined; what the result means is another matter."""

ABSOLUTE_UNITS = ("HU", "GML", "CM2ML")
"""Beginnings of units that compare between patients: HU, and uptake (SUV) by weight or by surface."""

_WITH_INTENT = ("MG", "DX", "IO", "PX")  # others have no Presentation Intent Type (PS3.3 C.8.11.1)

Flag = tuple[Reason, str]
"""A reason and what it means in words."""


@dataclass(frozen=True)
class Gate:
    """What is asked of an image before a model examines it.

    Attributes
    ----------
    profile, domain, preparation
        The model's: which headers are accepted, what it has learned from, and how it prepares an image. Without a model
        there is no domain, and the preparation is the profile's, on the pixels as stored.
    spacing_mm
        Pixel spacing of files that do not state it; None leaves it unknown.
    accept
        Reasons, of `ACCEPTABLE`, that do not count; the result says that they were let pass.
    grid
        Where the model lays patches, of which an image must hold one; None without a model.
    strict
        Whether what is only noted otherwise is refused: what the profile notes, and whatever differs from the images
        that the model has learned from.
    """

    profile: Profile = DEFAULT
    domain: Domain | None = None
    preparation: PreparationConfig | None = None
    spacing_mm: float | None = None
    accept: tuple[Reason, ...] = ()
    strict: bool = False
    grid: GridConfig | None = None

    def __post_init__(self) -> None:
        for reason in self.accept:
            if reason not in ACCEPTABLE:
                raise UnaryError(f"{reason!r} cannot be accepted; these can: {', '.join(ACCEPTABLE)}")

    @property
    def preparing(self) -> PreparationConfig:
        """How an image is prepared to see whether it can be."""
        profile = self.profile
        return self.preparation or PreparationConfig(profile.mask, spacing_range_mm=profile.spacing_range_mm)


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one image: what stands against it, what of that was let pass, and what is unusual."""

    refusals: tuple[Flag, ...] = ()
    accepted: tuple[Flag, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def accepted_despite(self) -> tuple[Reason, ...]:
        """The reasons that were let pass."""
        return tuple(reason for reason, _ in self.accepted)


def describe_way(reasons: Iterable[str | None]) -> tuple[str, ...]:
    """Return a line that says how those refused for these reasons are let pass, if any of them can be.

    >>> describe_way(["IMPLANT", "BLANK"])
    ('To use those refused as IMPLANT all the same, and have the results say so: --accept IMPLANT',)
    """
    given = set(reasons)
    found = [reason for reason in ACCEPTABLE if reason in given]
    words = f"To use those refused as {' and '.join(found)} all the same, and have the results say so: --accept "
    return (words + ",".join(found),) if found else ()


def build_gate(model: Model, *, spacing_mm: float | None = None, accept: Sequence[Reason] = ()) -> Gate:
    """Return the gate of a model; a `UnaryError` if a reason cannot be accepted."""
    reasons = tuple(dict.fromkeys(accept))
    return Gate(model.profile, model.domain, model.preparation, spacing_mm, reasons, grid=model.grid)


def require_room(prepared: PreparedImage, grid: GridConfig | None, name: str) -> None:
    """Refuse by an `ImageError` an image too small for a patch: what it scored would compare with nothing."""
    if grid is None or min(prepared.shape) >= grid.size_px or len(tissue_origins(prepared.mask, grid)):
        return
    rows, cols = prepared.shape
    helps = "one that brings images of all sizes to one with --working-size-px"
    if max(rows, cols) >= grid.size_px:  # it is narrow, not small
        helps = "cut it to pieces that are less narrow"
    raise ImageError(
        f"{name}: its {rows} x {cols} working pixels hold no patch of {grid.size_px} x {grid.size_px} px with "
        f"{grid.min_tissue:.0%} of tissue; fit a model for such images with a smaller --size-px, or {helps}",
        reason="TOO_SMALL",
    )


def judge_header(attributes: Attributes, gate: Gate) -> Verdict:
    """Judge an image by its header; the first refusal counts: what the image is before how it was made."""
    found = list(_find_refusals(attributes, gate))
    flags = list(_find_flags(attributes, gate.profile.headers, refused=False))
    return _weigh(gate, found, flags, tuple(_describe_unknown(attributes)))


def judge_domain(image: Image | Attributes, gate: Gate) -> Verdict:
    """Judge an image, or its header alone, by how it differs from those that the model has learned from."""
    if gate.domain is None:
        return Verdict()
    # Another presentation intent, and other units, are judged by the header already.
    lines = compare_domain(image, replace(gate.domain, intents=(), units=()))
    return _weigh(gate, [], [("OUT_OF_DOMAIN", line) for line in lines], ())


def require_admission(attributes: Attributes, gate: Gate, name: str) -> Verdict:
    """Return what the gate says of a header, or raise an `ImageError` with the reason and that name."""
    verdict = judge_header(attributes, gate)
    if verdict.refusals:
        reason, detail = verdict.refusals[0]
        raise ImageError(f"{name}: {detail}", reason=reason)
    return verdict


def admit_image(image: Image, verdict: Verdict) -> Image:
    """Return an image that has passed, with what the gate has noted."""
    return replace(image, notes=tuple(dict.fromkeys((*image.notes, *verdict.notes))))


def complete_spacing(image: Image, gate: Gate) -> Image:
    """Return an image with the pixel spacing that it does not state itself, where one is given."""
    if image.spacing_mm is not None or gate.spacing_mm is None:
        return image
    note = f"the pixel spacing of {gate.spacing_mm:g} mm was given by hand, and sizes rest on it: none can be read"
    return replace(image, spacing_mm=(gate.spacing_mm, gate.spacing_mm), notes=(*image.notes, note))


def _weigh(gate: Gate, found: list[Flag], flags: list[Flag], notes: tuple[str, ...]) -> Verdict:
    """Refuse what is found, when strict the flags too, but for what is let pass; note the rest."""
    found, flags = (found + flags, []) if gate.strict else (found, flags)
    refusals = tuple(flag for flag in found if flag[0] not in gate.accept)
    accepted = tuple(flag for flag in found if flag[0] in gate.accept)
    passed = (f"accepted despite {reason}: {line}" for reason, line in accepted)
    return Verdict(refusals, accepted, (*passed, *notes, *(line for _, line in flags)))


def _find_refusals(attributes: Attributes, gate: Gate) -> Iterator[Flag]:
    """What the header says against using the image."""
    headers, domain, needed = gate.profile.headers, gate.domain, gate.preparing.working_spacing_mm
    if attributes.is_multiframe:
        frames = count_words(attributes.frames, "frame")
        kind = f"{frames}, SOPClassUID {attributes.sop_class or 'not stated'}"
        way = "export it as single-frame slices, or give its frames one by one as arrays (unary.Image.from_array)"
        yield "MULTIFRAME", f"{kind}: tomosynthesis, volumes and other multi-frame objects are not read; {way}"
    yield from _check_kind(attributes, headers)
    if attributes.missing_decoder is not None:
        yield "UNSUPPORTED_SYNTAX", attributes.missing_decoder
    yield from _find_flags(attributes, headers, refused=True)
    intent = attributes.intent
    if domain is not None and domain.intents and intent not in (None, *domain.intents):
        seen = f"presentation intent {intent}, the model has seen {' and '.join(domain.intents)} alone"
        raw = intent == "FOR PROCESSING"
        yield ("FOR_PROCESSING_MODEL_MISMATCH" if raw else "FOR_PRESENTATION_MODEL_MISMATCH"), seen
    if domain is not None and _differs_in_units(attributes, domain):
        stated = f"values in {attributes.units}" if attributes.units else f"values in no unit ({attributes.modality})"
        yield "UNITS_MODEL_MISMATCH", f"{stated}, the model has learned from {' and '.join(domain.units)} alone"
    if needed and attributes.spacing_mm is None and gate.spacing_mm is None:
        yield (
            "NO_SPACING",
            f"{'; '.join(attributes.misstated_spacing) or 'the pixel spacing is not stated'}, and the model needs the "
            f"pixel spacing to resample to {needed:g} mm; state it yourself: --spacing-mm, or spacing_mm in Python",
        )


def _differs_in_units(attributes: Attributes, domain: Domain) -> bool:
    """Whether values are known to mean something else than those that a model has learned from."""
    if attributes.raster or not domain.units:
        return False
    if attributes.units is None:
        return attributes.modality is not None and attributes.modality not in domain.modalities
    return attributes.units not in domain.units


def _check_kind(attributes: Attributes, headers: Headers) -> Iterator[Flag]:
    """Refuse what the profile does not list; an object of several frames has been refused for that already."""
    if attributes.raster or attributes.sop_class in headers.sop_classes or attributes.is_multiframe:
        return
    code, words = headers.refusal
    reason = cast(Reason, code)
    modality = attributes.modality or "not stated"
    if not attributes.is_capture:
        if headers.sop_classes:
            stated = f"its SOPClassUID is {attributes.sop_class or 'not stated'}, its modality {modality}"
            yield reason, f"{words}: {stated}; models of other images are fitted, and checked, with --profile general"
    elif attributes.modality in headers.capture_modalities:
        yield "SECONDARY_CAPTURE", f"a secondary capture of modality {modality}: a scanned film, or a screenshot"
    else:
        yield reason, f"{words}: a secondary capture, modality {modality}"


def _find_flags(attributes: Attributes, headers: Headers, *, refused: bool) -> Iterator[Flag]:
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
            "pixel spacing": attributes.spacing_mm is None and not attributes.misstated_spacing,
            "units": attributes.units is None and attributes.modality == "PT",
        }
        missing = [name for name, is_absent in absent.items() if is_absent]
        if missing:
            yield f"not stated: {', '.join(missing)}"
    units = attributes.units
    if units is not None and not units.startswith(ABSOLUTE_UNITS):
        activity = ": they depend on dose, time and weight, and no SUV is computed" if "BQML" in units else ""
        yield f"values in {units}, which are comparable within one examination alone{activity}"
    if attributes.lossy:
        yield "has been compressed with loss"
