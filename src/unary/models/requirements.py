"""What can be known before training is refused before training, with the option that helps."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unary.datasets.annotation import name_some
from unary.detectors import name_of
from unary.detectors.protocol import Detector
from unary.errors import TrainingError
from unary.images.attributes import Attributes
from unary.models.gate import ABSOLUTE_UNITS, Gate, judge_header
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.preparation import MOST_PIXELS, IntensityRule, PreparationConfig, find_working_shape
from unary.progress import show_progress
from unary.records import ManifestRow, count_words

logger = logging.getLogger(__name__)

FEWEST_PATIENTS_TO_HOLD_OUT = 5
_ALIKE = 1.25  # lengths that differ by less are taken as one
_TISSUE = 0.25  # of an image, roughly, that a store keeps at the least


def check_detector_here(detector: Detector) -> None:
    """Refuse a detector that cannot be trained on this machine, or in these processes, before any image is read.

    Raises
    ------
    TrainingError
        If its device cannot be used, or it is trained in one process and there are several.
    DetectorError
        If one of its parts may not take part.
    """
    from unary.training.devices import require_device
    from unary.training.distributed import is_joined
    from unary.training.engine import StepsConfig

    for part in _list_parts(detector):
        for config in _list_configs(part.config):
            if hasattr(config, "device"):
                require_device(config.device)
            if isinstance(config, StepsConfig) and is_joined():
                raise TrainingError(f"{name_of(part)} is trained in one process; start it without torchrun")


def _list_parts(detector: Detector) -> Iterator[Detector]:
    """The detector, or the detectors that it is made of."""
    if hasattr(detector, "build_parts"):
        for part in detector.build_parts():
            yield from _list_parts(part)
    else:
        yield detector


def _list_configs(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    if dataclasses.is_dataclass(config):
        yield config
        for field in dataclasses.fields(config):
            yield from _list_configs(getattr(config, field.name))


def warn_of_few_patients(count: int, held_out: float) -> None:
    """Say before training that nobody will be held out, where that is so."""
    if held_out == 0:
        why = "held_out is 0"
    elif count < FEWEST_PATIENTS_TO_HOLD_OUT:
        why = f"{FEWEST_PATIENTS_TO_HOLD_OUT} patients or more are needed for that, not {count}"
    else:
        return
    logger.warning(
        "nobody is held out, since %s: the model will have no operating points, and nothing is guaranteed of it, until "
        "`unary calibrate` sets them on other patients",
        why,
    )


def judge_headers(rows: Sequence[ManifestRow], gate: Gate, *, progress: bool) -> list[Attributes | None]:
    """Return what the files' headers say; None where they do not, or where there is no file.

    A warning counts those that the gate would refuse to examine by its reasons: whoever lists them vouches for them.
    """
    bar = show_progress(rows, title="reading headers", unit="image", shown=progress, leave=False)
    found = [None if row.path is None else _read_header(row.path, gate) for row in bar]
    refused: dict[str, list[str]] = {}
    for row, attributes in zip(rows, found, strict=True):
        if attributes is not None and (refusals := judge_header(attributes, gate).refusals):
            refused.setdefault(refusals[0][0], []).append(row.image_id)
    for reason, names in sorted(refused.items()):
        logger.warning(
            "%s would be refused as %s by check, score and detect, and taken here as listed: %s",
            count_words(len(names), "image"),
            reason,
            name_some(names),
        )
    return found


def check_units(
    rows: Sequence[ManifestRow], headers: Sequence[Attributes | None], intensity: IntensityRule | None
) -> None:
    """Refuse what would lose the meaning of values that have a unit, and warn of what may.

    ``intensity`` is how values are scaled, None where nothing was said. Then images in absolute units, such as
    Hounsfield units, are refused: the percentiles of each slice would make the same tissue another grey in every one.

    Raises
    ------
    TrainingError
        If so, or if a window is to be applied to images in several units.
    """
    found = [(row.image_id, row.image or header) for row, header in zip(rows, headers, strict=True)]
    known = [(name, source) for name, source in found if source is not None]
    stated = sorted({source.units for _, source in known if source.units is not None})
    kinds: dict[str, list[str]] = {}
    for name, source in known:
        if (kind := source.units or source.modality) is not None:
            kinds.setdefault(kind, []).append(name)
    absolute = [unit for unit in stated if unit.startswith(ABSOLUTE_UNITS)]
    if absolute and intensity is None:
        raise TrainingError(
            f"values are in {' and '.join(absolute)}, and which of them are black and white has to be said: --window "
            "LOW,HIGH (such as -1000,400 for lungs and -160,240 for soft tissue in HU, 0,10 in GML). Without, each "
            "image would be scaled by its own percentiles, and the same value be another grey in each; if that is "
            "meant, say --intensity percentile"
        )
    if stated and len(kinds) > 1:
        told = "; ".join(f"{kind}: {count_words(len(ids), 'image')}, {name_some(ids)}" for kind, ids in kinds.items())
        if intensity == "window":
            raise TrainingError(f"one window is given for images in several units or of several modalities: {told}")
        logger.warning("images are in several units or of several modalities, and do not compare: %s", told)
    if stated and intensity != "window":
        logger.warning(
            "values are in %s, and --intensity %s scales every image by itself: they do not compare between images; "
            "--window LOW,HIGH keeps them comparable",
            " and ".join(stated),
            intensity or "percentile",
        )


def warn_of_sizes(
    rows: Sequence[ManifestRow], headers: Sequence[Attributes | None], preparation: PreparationConfig
) -> None:
    """Say that images are as fine as they are stored, where their pixel spacings, or unknown ones' sizes, differ."""
    if (preparation.working_spacing_mm, preparation.working_size_px) != (None, None):
        return
    found = [(row, row.image or header) for row, header in zip(rows, headers, strict=True)]
    known = [(source.shape, source.spacing_mm, row.spacing_mm) for row, source in found if source is not None]
    spacings = [min(spacing) if spacing else own for _, spacing, own in known]
    sides = [max(shape) for shape, _, _ in known]
    stated = [spacing for spacing in spacings if spacing is not None]
    if stated and len(stated) == len(spacings):
        if max(stated) > _ALIKE * min(stated):
            logger.warning(
                "pixel spacings lie between %.3g and %.3g mm, and images are taken as stored, so that the same "
                "structure has several sizes in pixels; --working-spacing-mm X brings all to one",
                min(stated),
                max(stated),
            )
    elif sides and max(sides) > _ALIKE * min(sides):
        logger.warning(
            "images have longer sides of %d to %d px, their pixel spacing is not stated, and they are taken as stored: "
            "if all show the same field of view, --working-size-px N brings them to one size",
            min(sides),
            max(sides),
        )


def _read_header(path: Path, gate: Gate) -> Attributes | None:
    from unary.images.headers import read_attributes

    try:
        return read_attributes(path, gate.profile.headers)
    except Exception:  # of a library: whoever reads the pixels says so
        return None


def check_images(
    rows: Sequence[ManifestRow],
    headers: Sequence[Attributes | None],
    preparation: PreparationConfig,
    grid: GridConfig,
    *,
    fewest: int,
    store: Path | None,
) -> None:
    """Refuse images that cannot hold so many patches, or a store that cannot hold the images, by their headers alone.

    Raises
    ------
    TrainingError
        If so.
    """
    found = (_find_shape(row, header, preparation) for row, header in zip(rows, headers, strict=True))
    shapes = [shape for shape in found if shape is not None]
    if not shapes:  # whoever reads the images says why
        return
    most = sum(count * _count_patches(shape, grid) for shape, count in Counter(shapes).items())
    if most < fewest and len(shapes) == len(rows):
        largest = max(shapes, key=math.prod)
        raise TrainingError(
            f"{fewest} normal patches are needed, and {count_words(len(rows), 'image')} of at most {largest[0]} x "
            f"{largest[1]} working pixels can hold {most} of {grid.size_px} x {grid.size_px} px with "
            f"{grid.min_tissue:.0%} of tissue; give more or larger images, or a smaller --size-px, --stride-px or "
            "--min-tissue"
        )
    if store is not None:
        _check_room(store, 2 * sum(map(math.prod, shapes)), preparation)


def _find_shape(row: ManifestRow, header: Attributes | None, preparation: PreparationConfig) -> tuple[int, int] | None:
    """Rows and columns of the working grid; None where the header does not say, or not well."""
    source = row.image or header
    if source is None:
        return None
    own = None if row.spacing_mm is None else (row.spacing_mm, row.spacing_mm)
    shape = find_working_shape(source.shape, source.spacing_mm or own, preparation)
    return shape if shape is not None and math.prod(shape) <= MOST_PIXELS else None


def _count_patches(shape: tuple[int, int], grid: GridConfig) -> int:
    """How many patches an image has if all of it is tissue."""
    if min(shape) < 1:
        return 0
    inside = np.minimum(grid_origins(shape, grid) + grid.size_px, shape) - grid_origins(shape, grid)
    return int((inside.prod(axis=1, dtype=np.int64) >= grid.min_tissue * grid.size_px**2).sum())


def _check_room(store: Path, size: int, preparation: PreparationConfig) -> None:
    """Compare what is free with what the images take: all of them, or the part that is tissue."""
    place = next(folder for folder in (store.absolute(), *store.absolute().parents) if folder.is_dir())
    free, least = shutil.disk_usage(place).free, size if preparation.mask == "none" else _TISSUE * size
    if free < least:
        raise TrainingError(
            f"{store}: the prepared images take up to {size / 1e9:.1f} GB there, and {free / 1e9:.1f} GB are free; "
            "give another folder with --store, or make room"
        )


def check_patches(detector: Detector, normals: Any, *, held_out: int, images: int, size_px: int) -> None:
    """Refuse too few or unsuitable patches, once they have been counted and before any training.

    ``held_out`` is how many patches are held out, ``images`` how many images were read.

    Raises
    ------
    TrainingError
        If so.
    """
    helps = "--min-tissue, --stride-px or --size-px of less give more"
    if held_out:
        helps += f"; {count_words(held_out, 'patch')} of patients that are held out would be free with --held-out 0"
    if len(normals) < 2:
        raise TrainingError(
            f"only {len(normals)} normal patches were found in {count_words(images, 'image')}; are the images smaller "
            f"than {size_px} px, or is no tissue found? ({helps}; --mask none takes everything for tissue)"
        )
    if hasattr(detector, "check_patches"):
        try:
            detector.check_patches(normals)
        except TrainingError as error:
            raise TrainingError(f"{error} ({helps})") from error
