"""From a manifest to labelled patches: read, prepare, lay the grid, and say what each patch holds.

One unreadable image is reported and skipped; the others go on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unary.datasets.doubles import describe_copies
from unary.errors import ImageError, ManifestError, explain_unexpected
from unary.files import read_ahead
from unary.images.reading import read_image, read_mask
from unary.patches.grid import GridConfig, Origins, tissue_origins
from unary.patches.lesions import judge_patches, measure_lesion, rasterise_lesion
from unary.patches.patch_set import PatchSet, build_patch_set, join_patch_sets
from unary.patches.preparation import PreparationConfig, PreparedImage, prepare_image
from unary.patches.store import open_images, writing_images
from unary.profiles import Reading
from unary.progress import show_progress
from unary.records import Image, Lesion, Manifest, ManifestRow, count_words

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
STORE_NAME = "prepared.tif"


@dataclass(frozen=True, eq=False)
class PatchLabels:
    """What is known of n patches.

    Attributes
    ----------
    contains
        Shape (n,) each, bool, by group of lesions (`unary.profiles.Reading.group_names`): the patch contains a lesion
        of this group, by the rule of `unary.patches.lesions`.
    touches
        Shape (n,), bool: the patch shares a pixel with a lesion, or with tissue that may hide an unlisted one.
    sizes_mm
        Shape (n,) each, float64, by group: `unary.patches.lesions.measure_lesion` of the largest contained lesion; NaN
        where none is contained or the pixel spacing is unknown.
    """

    contains: dict[str, NDArray[np.bool_]]
    touches: NDArray[np.bool_]
    sizes_mm: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Collection:
    """Patches of the images of a manifest, in manifest order, with what is known of each.

    Attributes
    ----------
    patches
        The pixels, gathered on demand.
    rows
        The manifest rows of the images that could be used.
    image
        Shape (n,), int: position of each patch's image in ``rows``.
    origins
        Shape (n, 2), int32: where each patch lies on the working grid.
    contains, touches, sizes_mm
        As in `PatchLabels`.
    spacings_mm
        Shape (images, 2), float64: (between rows, between columns) of the stored pixels; NaN where unknown.
    skipped
        One line per image that could not be used, naming file and cause.
    data_hash
        `PatchSet.digest`: equal data, preparation and grid, equal hash.
    """

    patches: PatchSet
    rows: tuple[ManifestRow, ...]
    image: NDArray[np.int64]
    origins: Origins
    contains: dict[str, NDArray[np.bool_]]
    touches: NDArray[np.bool_]
    sizes_mm: dict[str, NDArray[np.float64]]
    spacings_mm: NDArray[np.float64]
    skipped: tuple[str, ...]
    data_hash: str

    def __len__(self) -> int:
        return len(self.patches)

    def column(self, name: str) -> NDArray[Any]:
        """Return a field of `unary.records.ManifestRow` per patch, shape (n,), as text; unknown is an empty string."""
        values = np.asarray([str(getattr(row, name) or "") for row in self.rows] or [""])
        return values[self.image]

    @property
    def lesional(self) -> NDArray[np.bool_]:
        """Shape (n,), bool: the patch contains any lesion."""
        lesional: NDArray[np.bool_] = np.logical_or.reduce(list(self.contains.values()))
        return lesional

    @property
    def normal_looking(self) -> NDArray[np.bool_]:
        """Shape (n,), bool: no lesion is near, in an image that has one elsewhere and is annotated completely."""
        per_image = np.bincount(self.image, weights=self.touches, minlength=len(self.rows)) > 0
        normal: NDArray[np.bool_] = per_image[self.image] & ~self.touches
        return normal


def read_row(row: ManifestRow) -> Image:
    """Return the image of one manifest row, in memory or read; its own pixel spacing wins over the manifest's.

    Raises
    ------
    ImageError
        If it cannot be read, or the row has neither an image nor a path.
    """
    if row.image is not None:
        image = row.image
    elif row.path is not None:
        image = read_image(row.path)
    else:
        raise ImageError(f"the row {row.image_id!r} of the manifest has neither a path nor an image")
    stated = row.spacing_mm
    if image.spacing_mm is None and stated is not None:
        return dataclasses.replace(image, spacing_mm=(stated, stated))
    if image.spacing_mm is not None and stated is not None and not np.allclose(image.spacing_mm, stated, rtol=0.01):
        own = " x ".join(f"{length:g}" for length in image.spacing_mm)
        note = f"its own pixel spacing, {own} mm, is taken, and not the {stated:g} mm of the manifest"
        image = dataclasses.replace(image, notes=(*image.notes, note))
    return image


def name_row(row: ManifestRow) -> str:
    """Return what messages call an image of a manifest."""
    return str(row.path or row.image_id)


def warn_of_notes(notes: Sequence[str]) -> None:
    """Warn of what was unusual about images, one line each, and say how many lines there are."""
    for note in notes:
        logger.warning("noted: %s", note)
    if len(notes) > 1:
        logger.warning("%d notes on images, see above; they are used all the same", len(notes))


def collect_patches(
    manifest: Manifest,
    preparation: PreparationConfig,
    grid: GridConfig,
    reading: Reading,
    *,
    store: Path | None = None,
    progress: bool = True,
) -> Collection:
    """Read every image of a manifest and collect its patches of tissue.

    Parameters
    ----------
    reading
        The profile's, which groups lesions.
    store
        A folder where the prepared images are written, one at a time, instead of being kept in memory: one TIFF,
        ``prepared.tif``, with a page per image (`unary.patches.store`). It must stay while the collection is used.
    progress
        Show a progress bar on standard error when it is a terminal and reading takes over two seconds.

    Raises
    ------
    ManifestError
        If not one image could be used; the first causes are quoted.
    """

    pictures: list[tuple[ManifestRow, bytes]] = []
    notes: list[str] = []

    def read(row: ManifestRow) -> Collection | ImageError:
        try:
            prepared = prepare_image(read_row(row), preparation)
            origins = tissue_origins(prepared.mask, grid)
            labels = label_patches(row, manifest.lesions_of(row.image_id), prepared, origins, grid.size_px, reading)
        except Exception as error:  # of a library, on this file
            return explain_unexpected(error, name_row(row))
        notes.extend(f"{name_row(row)}: {note}" for note in prepared.notes)
        pictures.append((row, hashlib.blake2b(np.ascontiguousarray(prepared.pixels).data).digest()))
        return Collection(
            build_patch_set(prepared.pixels, origins, size_px=grid.size_px, mask=prepared.mask),
            (row,),
            np.zeros(len(origins), np.int64),
            origins,
            labels.contains,
            labels.touches,
            labels.sizes_mm,
            np.asarray([prepared.stored_spacing_mm or (np.nan, np.nan)]),
            skipped=(),
            data_hash="",
        )

    found: list[Collection] = []
    skipped: list[str] = []
    with nullcontext() if store is None else writing_images(store / STORE_NAME) as write:
        for one in _read_all(read, manifest.rows, "reading images", progress=progress):
            if isinstance(one, ImageError):
                skipped.append(str(one))
                logger.warning("skipped: %s", one)
            else:
                found.append(one if write is None else _move_pixels(one, write))
    if not found:
        causes = "; ".join(skipped[:3]) or "the manifest is empty"
        raise ManifestError(f"none of {len(manifest.rows)} images could be used: {causes}")
    if skipped:
        logger.warning("%d of %d images were skipped", len(skipped), len(manifest.rows))
    warn_of_notes(notes)
    for notice in describe_copies(pictures):
        logger.warning("%s", notice)
    return _join(found, tuple(skipped), None if store is None else store / STORE_NAME)


def _read_all(
    read: Callable[[ManifestRow], Result], rows: Sequence[ManifestRow], title: str, *, progress: bool
) -> Iterable[Result]:
    """Read images ahead of need, and show a bar."""
    found = read_ahead(read, rows, ahead=3)
    return show_progress(found, total=len(rows), title=title, unit="image", shown=progress)


def _move_pixels(one: Collection, write: Callable[[NDArray[np.uint16]], None]) -> Collection:
    """Write the pixels of a single image and keep all else."""
    (image,) = one.patches.images
    write(image)
    patches = dataclasses.replace(one.patches, images=(np.empty((0, 0), np.uint16),))
    return dataclasses.replace(one, patches=patches)


def _join(found: Sequence[Collection], skipped: tuple[str, ...], store: Path | None) -> Collection:
    """Many collections of one image each as one, whose pixels lie in a store where there is one."""
    patches = join_patch_sets([one.patches for one in found])
    if store is not None:
        patches = dataclasses.replace(patches, images=open_images(store))
    groups = found[0].contains
    return Collection(
        patches,
        tuple(row for one in found for row in one.rows),
        np.repeat(np.arange(len(found)), [len(one) for one in found]),
        np.concatenate([one.origins for one in found]),
        {name: np.concatenate([one.contains[name] for one in found]) for name in groups},
        np.concatenate([one.touches for one in found]),
        {name: np.concatenate([one.sizes_mm[name] for one in found]) for name in groups},
        np.concatenate([one.spacings_mm for one in found]),
        skipped,
        patches.digest(),
    )


def resample_collection(
    collection: Collection, preparation: PreparationConfig, *, size_px: int, progress: bool = True
) -> Collection:
    """Return the same patches, in the same order, on a coarser or finer working grid.

    Every image is read again and prepared as told; each patch keeps its place, to half a pixel of the new grid, and
    what is known of it. A grid laid anew would not do: where its last column ends flush with another border, or the
    share of tissue falls on the other side of a limit, its patches are others.

    Parameters
    ----------
    collection
        Of patches on the stored grid, that is, prepared without a working spacing.
    preparation
        With a working spacing.
    size_px
        Side of a patch on the new grid.

    Raises
    ------
    ImageError
        If an image cannot be prepared so.
    """

    def read(row: ManifestRow) -> PreparedImage:
        return prepare_image(read_row(row), preparation)

    sets, moved = [], np.zeros_like(collection.origins)
    for number, prepared in enumerate(_read_all(read, collection.rows, "resampling", progress=progress)):
        own = collection.image == number
        last = np.maximum(np.asarray(prepared.shape) - size_px, 0)
        moved[own] = np.clip(np.rint(collection.origins[own] / np.asarray(prepared.scale)), 0, last)
        sets.append(build_patch_set(prepared.pixels, moved[own], size_px=size_px, mask=prepared.mask))
    patches = join_patch_sets(sets)
    return dataclasses.replace(collection, patches=patches, origins=moved, data_hash=patches.digest())


def label_patches(
    row: ManifestRow,
    lesions: Sequence[Lesion],
    prepared: PreparedImage,
    origins: Origins,
    size_px: int,
    reading: Reading,
) -> PatchLabels:
    """Say what patches of one image hold.

    Parameters
    ----------
    row
        Says whether all lesions of the image are listed.
    lesions
        Of this image.
    origins
        Shape (n, 2), int32: where the patches lie on the working grid.
    reading
        The profile's, which groups lesions.

    A lesion that has no pixel in the image leaves unknown where it is: any patch may touch it, and a warning says so.

    Raises
    ------
    ImageError
        If the mask of a lesion cannot be read, or is not of the stored image's shape.
    """
    contains = {name: np.zeros(len(origins), bool) for name in reading.group_names}
    # In a partly annotated image everything may be touched by a lesion that nobody listed.
    touches = np.full(len(origins), not row.complete)
    sizes = {name: np.full(len(origins), np.nan) for name in reading.group_names}
    outside = off = vast = 0
    for lesion in lesions:
        mask = read_lesion_mask(lesion.mask_path, prepared.stored_shape) if lesion.mask_path else None
        inside, corner = rasterise_lesion(lesion, prepared.shape, scale=prepared.scale, mask=mask)
        if not inside.any():
            outside += 1
        elif not _meets(inside, corner, prepared.mask):
            off += 1
        vast += 2 * int(inside.sum()) > prepared.mask.size
        held, touched = judge_patches(inside, corner, origins, size_px=size_px)
        group = reading.find_group(lesion.name)
        contains[group] |= held
        touches |= touched
        if prepared.stored_spacing_mm is not None:
            size = measure_lesion(lesion, prepared.stored_spacing_mm, mask=mask)
            sizes[group][held] = np.fmax(sizes[group][held], size)
    if outside:
        touches[:] = True
    for count, told in (
        (outside * row.complete, "outside the image, which counts as incomplete"),  # else it has been said
        (off, "off the tissue that was found, where no patch lies"),
        (vast, "over more than half of the image; is a mask inverted?"),
    ):
        if count:
            logger.warning("%s: %s %s", row.image_id, count_words(count, "lesion"), told)
    return PatchLabels(contains, touches, sizes)


def _meets(inside: NDArray[np.bool_], corner: tuple[int, int], mask: NDArray[np.bool_]) -> bool:
    """Whether a lesion has a pixel of tissue."""
    rows, cols = (slice(start, start + size) for start, size in zip(corner, inside.shape, strict=True))
    return bool((mask[rows, cols] & inside).any())


def read_lesion_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Read the mask of a lesion, bool, of the (rows, cols) that its image has as stored.

    Raises
    ------
    ImageError
        If it cannot be read, or has another shape.
    """
    mask: NDArray[np.bool_] = read_mask(path)
    if mask.shape != shape:
        raise ImageError(f"{path}: the lesion mask has the shape {mask.shape} but its image has {shape}")
    return mask
