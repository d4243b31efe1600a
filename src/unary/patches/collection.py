"""From a manifest to labelled patches: read, prepare, lay the grid, and say what each patch holds.

One unreadable image is reported and skipped; the others go on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unary.datasets.manifest import lesion_group
from unary.errors import ImageError, ManifestError
from unary.images.reading import read_image, read_mask
from unary.patches.grid import GridConfig, Origins, tissue_origins
from unary.patches.patch_set import PatchSet, build_patch_set, join_patch_sets
from unary.patches.lesions import judge_patches, measure_lesion, rasterise_lesion
from unary.patches.preparation import PreparationConfig, PreparedImage, prepare_image
from unary.patches.store import open_images, release_pages, writing_images
from unary.records import Image, Lesion, Manifest, ManifestRow

logger = logging.getLogger(__name__)

GROUPS = ("calcification", "mass", "asymmetry", "distortion", "other")
STORE_NAME = "prepared.tif"
_AHEAD = 3


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
        Shape (n, 2), int32: (row, col) of each patch on the working grid.
    contains
        Shape (n,) each, bool: the patch contains a lesion of this group, by the rule of `unary.patches.lesions`.
    touches
        Shape (n,), bool: the patch shares a pixel with a lesion, or with tissue that may hide an unlisted one.
    sizes_mm
        Shape (n,) each, float64, by group: the longer side in mm of the largest contained lesion, as its outline
        gives it (`unary.patches.lesions.measure_lesion`); NaN where none is contained or the pixel spacing is unknown.
    spacings_mm
        Shape (images, 2), float64: (between rows, between columns) of the stored pixels; NaN where unknown.
    skipped
        One line per image that could not be used, naming file and cause.
    data_hash
        SHA-256 over the prepared pixels and origins: equal data and preparation, equal hash.
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
        """Return a manifest column per patch, shape (n,); unknown values are empty strings."""
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


@dataclass(frozen=True, eq=False)
class _Unit:
    """What one image contributes."""

    patches: PatchSet
    origins: Origins
    contains: dict[str, NDArray[np.bool_]]
    touches: NDArray[np.bool_]
    sizes_mm: dict[str, NDArray[np.float64]]
    spacing_mm: tuple[float, float]


def read_row(row: ManifestRow) -> Image:
    """Read the image of one manifest row; the file's own pixel spacing wins over the manifest's.

    Raises
    ------
    ImageError
        As `read_image`.
    """
    image: Image = read_image(row.path)
    if image.spacing_mm is None and row.spacing_mm is not None:
        image = dataclasses.replace(image, spacing_mm=(row.spacing_mm, row.spacing_mm))
    return image


def read_prepared(row: ManifestRow, config: PreparationConfig) -> PreparedImage:
    """Read and prepare the image of one manifest row.

    Raises
    ------
    ImageError
        As `read_row` and `prepare_image`.
    """
    return prepare_image(read_row(row), config)


def collect_patches(
    manifest: Manifest,
    preparation: PreparationConfig,
    grid: GridConfig,
    *,
    store: Path | None = None,
    progress: bool = True,
) -> Collection:
    """Read every image of a manifest and collect its patches of tissue.

    Parameters
    ----------
    manifest
        Images and lesions.
    preparation, grid
        How images are prepared and where patches lie.
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
    units: list[_Unit] = []
    rows: list[ManifestRow] = []
    skipped: list[str] = []
    bar = tqdm(
        _read_ahead(manifest, preparation, grid),
        total=len(manifest.rows),
        desc="reading images",
        unit="image",
        delay=2,
        disable=None if progress else True,
    )
    with nullcontext() if store is None else writing_images(store / STORE_NAME) as write:
        for row, unit in zip(manifest.rows, bar, strict=True):
            if isinstance(unit, ImageError):
                skipped.append(str(unit))
                logger.warning("skipped: %s", unit)
                continue
            rows.append(row)
            units.append(unit if write is None else _move_pixels(unit, write))
    if not units:
        causes = "; ".join(skipped[:3]) or "the manifest is empty"
        raise ManifestError(f"none of {len(manifest.rows)} images could be used: {causes}")
    if skipped:
        logger.warning("%d of %d images were skipped", len(skipped), len(manifest.rows))
    return _join(units, rows, skipped, store=store)


def _move_pixels(unit: _Unit, write: Callable[[NDArray[np.uint16]], None]) -> _Unit:
    """Write the pixels and keep all else."""
    (image,) = unit.patches.images
    write(image)
    return dataclasses.replace(unit, patches=dataclasses.replace(unit.patches, images=(image[:0].copy(),)))


def _join(units: Sequence[_Unit], rows: list[ManifestRow], skipped: list[str], *, store: Path | None) -> Collection:
    patches = join_patch_sets([unit.patches for unit in units])
    if store is not None:
        patches = dataclasses.replace(patches, images=open_images(store / STORE_NAME))
    origins = np.concatenate([unit.origins for unit in units])
    return Collection(
        patches,
        tuple(rows),
        np.repeat(np.arange(len(units)), [len(unit.origins) for unit in units]),
        origins,
        {name: np.concatenate([unit.contains[name] for unit in units]) for name in GROUPS},
        np.concatenate([unit.touches for unit in units]),
        {name: np.concatenate([unit.sizes_mm[name] for unit in units]) for name in GROUPS},
        np.asarray([unit.spacing_mm for unit in units]),
        tuple(skipped),
        _hash_patches(patches, origins),
    )


def _hash_patches(patches: PatchSet, origins: Origins) -> str:
    digest = hashlib.sha256(origins.tobytes())
    for number in np.unique(patches.index[:, 0]):
        image = patches.images[number]
        digest.update(np.ascontiguousarray(image).data)
        release_pages([image])
    return digest.hexdigest()


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
    progress
        As in `collect_patches`.

    Raises
    ------
    ImageError
        If an image cannot be prepared so.
    """
    sets, moved = [], np.zeros_like(collection.origins)
    bar = tqdm(collection.rows, desc="resampling", unit="image", delay=2, disable=None if progress else True)
    for number, row in enumerate(bar):
        prepared = read_prepared(row, preparation)
        own = collection.image == number
        last = np.maximum(np.asarray(prepared.shape) - size_px, 0)
        moved[own] = np.clip(np.rint(collection.origins[own] / np.asarray(prepared.scale)), 0, last)
        sets.append(build_patch_set(prepared.pixels, moved[own], size_px=size_px))
    patches = join_patch_sets(sets)
    return dataclasses.replace(collection, patches=patches, origins=moved, data_hash=_hash_patches(patches, moved))


def _read_ahead(manifest: Manifest, preparation: PreparationConfig, grid: GridConfig) -> Iterator[_Unit | ImageError]:
    """Yield the images in order while one thread reads a few ahead.

    One, because pydicom's warnings, which may quote a patient's data, can only be silenced for a whole process.
    """

    def read(row: ManifestRow) -> _Unit | ImageError:
        try:
            return _read_unit(row, manifest.lesions_of(row.image_id), preparation, grid)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(1) as pool:
        window = [pool.submit(read, row) for row in manifest.rows[:_AHEAD]]
        for row in [*manifest.rows[_AHEAD:], *[None] * len(window)]:
            yield window.pop(0).result()
            if row is not None:
                window.append(pool.submit(read, row))


def _read_unit(
    row: ManifestRow, lesions: tuple[Lesion, ...], preparation: PreparationConfig, grid: GridConfig
) -> _Unit:
    prepared = read_prepared(row, preparation)
    origins = tissue_origins(prepared.mask, grid)
    contains = {name: np.zeros(len(origins), bool) for name in GROUPS}
    # In a partly annotated image everything may be touched by a lesion that nobody listed.
    touches = np.full(len(origins), not row.complete)
    sizes = {name: np.full(len(origins), np.nan) for name in GROUPS}
    spacing = prepared.stored_spacing_mm
    for lesion in lesions:
        mask = _read_lesion_mask(lesion.mask_path, prepared.stored_shape) if lesion.mask_path else None
        inside, corner = rasterise_lesion(lesion, prepared.shape, scale=prepared.scale, mask=mask)
        held, touched = judge_patches(inside, corner, origins, size_px=grid.size_px)
        group = lesion_group(lesion.name)
        contains[group] |= held
        touches |= touched
        if spacing is not None:
            size = measure_lesion(lesion, spacing, mask=mask)
            sizes[group][held] = np.fmax(sizes[group][held], size)
    patches = build_patch_set(prepared.pixels, origins, size_px=grid.size_px)
    return _Unit(patches, origins, contains, touches, sizes, spacing or (np.nan, np.nan))


def _read_lesion_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = read_mask(path)
    if mask.shape != shape:
        raise ImageError(f"{path}: the lesion mask has the shape {mask.shape} but its image has {shape}")
    return mask
