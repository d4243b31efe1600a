"""Pictures of one size for the image-level experiments, at one bandwidth if asked, and the controls.

Pictures that were gathered from several places differ in size and sharpness, and a detector may tell the places apart
instead of the disease. So each picture's bandwidth is measured, and all can be brought to that of the poorest. What a
picture tells before any detector looks at it (its size, brightness, spread, sharpness and bytes) is kept beside it.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.errors import ImageError, explain_unexpected
from unary.files import read_ahead
from unary.patches.collection import name_row, read_row
from unary.patches.preparation import PreparationConfig, prepare_image, resize_pixels
from unary.progress import show_progress
from unary.records import Image, ManifestRow

logger = logging.getLogger(__name__)

CONTROLS = ("image_size", "mean_brightness", "standard_deviation", "high_frequency", "file_bytes")
TOGETHER = "controls_together"
CONTRAST_SHARE = 0.99
"""The share of a picture's contrast that lies below its bandwidth."""
POOREST_PERCENTILE = 1.0
"""Of the bandwidths, so that one odd picture does not decide for all."""
PASSED = 0.1
"""What the low-pass leaves of an amplitude at the common bandwidth."""

_SPECTRUM_PX = 256
_AHEAD = 3
_TRIFLE = 1e-9


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one size, with what each tells by itself.

    Attributes
    ----------
    rows
        As they were given, with the picture in memory, uint8 of shape (side, side).
    controls
        By name in `CONTROLS`, shape (n,), float64. ``image_size``: rows times columns; ``mean_brightness`` and
        ``standard_deviation``: of the picture, in [0, 1]; ``high_frequency``: the share of its contrast above a quarter
        of the sampling frequency; ``file_bytes``. Size and bytes are those of the file, or, at one bandwidth, of the
        picture itself, as a PNG.
    bandwidths
        Shape (n,), cycles per picture side (`measure_bandwidth`): of the files, or, at one bandwidth, of what is left.
    skipped
        One line for each picture that cannot be used.
    """

    rows: tuple[ManifestRow, ...]
    controls: Mapping[str, NDArray[np.float64]]
    bandwidths: NDArray[np.float64]
    skipped: tuple[str, ...]

    def select(self, images: Set[str]) -> Pictures:
        """Return the pictures of these ids, in the same order."""
        kept = np.asarray([row.image_id in images for row in self.rows], bool)
        rows = tuple(row for row in self.rows if row.image_id in images)
        controls = {name: values[kept] for name, values in self.controls.items()}
        return Pictures(rows, controls, self.bandwidths[kept], self.skipped)


def read_pictures(
    rows: Sequence[ManifestRow], *, side_px: int, cutoff: float | None = None, progress: bool = True
) -> Pictures:
    """Read pictures and bring each to ``side_px`` both ways, at a common bandwidth if ``cutoff`` says one.

    What cannot be read, or shows one value alone, is named in a warning and left out; the others go on.

    Raises
    ------
    ImageError
        If not one picture can be used.
    """

    def read(row: ManifestRow) -> tuple[ManifestRow, dict[str, float], float] | ImageError:
        try:
            return _read_picture(row, side_px=side_px, cutoff=cutoff)
        except Exception as error:  # of a library, on this file
            return explain_unexpected(error, name_row(row))

    found: list[tuple[ManifestRow, dict[str, float], float]] = []
    skipped: list[str] = []
    title = "reading pictures" if cutoff is None else "one bandwidth"
    for one in show_progress(
        read_ahead(read, rows, ahead=_AHEAD), title=title, unit="picture", total=len(rows), shown=progress
    ):
        if isinstance(one, ImageError):
            skipped.append(str(one))
            logger.warning("skipped: %s", one)
        else:
            found.append(one)
    if not found:
        raise ImageError(f"none of {len(rows)} pictures could be used: {'; '.join(skipped[:3])}")
    facts = {name: np.asarray([own[name] for _, own, _ in found], np.float64) for name in CONTROLS}
    bandwidths = np.asarray([width for *_, width in found], np.float64)
    return Pictures(tuple(row for row, *_ in found), facts, bandwidths, tuple(skipped))


def _read_picture(
    row: ManifestRow, *, side_px: int, cutoff: float | None
) -> tuple[ManifestRow, dict[str, float], float]:
    image = read_row(row)
    low, high = image.value_range
    values = (image.pixels.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, _TRIFLE))
    picture = np.rint(255 * np.clip(bring_to_size(values, side_px, cutoff=cutoff), 0, 1)).astype(np.uint8)
    shown = dataclasses.replace(row, image=Image.from_array(picture), spacing_mm=None)
    prepare_image(read_row(shown), PreparationConfig(mask="none"))  # which refuses a picture that shows nothing
    facts = describe_picture(picture)
    if cutoff is None:
        facts["image_size"] = float(image.pixels.size)
        if row.path is not None:
            facts["file_bytes"] = float(row.path.stat().st_size)
    return shown, facts, measure_bandwidth(values if cutoff is None else picture.astype(np.float32))


def bring_to_size(values: NDArray[np.float32], side_px: int, *, cutoff: float | None = None) -> NDArray[np.float32]:
    """Return a picture, (rows, cols), stretched or shrunk to (side, side).

    With a ``cutoff``, in cycles per picture side, a Gaussian takes away first what is finer, so that pictures of any
    size have the same sharpness afterwards: it leaves a tenth (`PASSED`) of the amplitude there, and much less beyond.
    Without, shrinking takes away what the new grid cannot hold.
    """
    shape = (side_px, side_px)
    if cutoff is None:
        return resize_pixels(values, shape)
    spread = math.sqrt(math.log(1 / PASSED) / 2) / (math.pi * cutoff)  # of the Gaussian, in picture sides
    lengths = np.asarray(values.shape, float)
    own = np.maximum(lengths / side_px - 1, 0) / 2  # what shrinking adds by itself (`resize_pixels`)
    sigmas = np.sqrt(np.maximum(np.square(spread * lengths) - np.square(own), 0))
    return resize_pixels(ndimage.gaussian_filter(values, sigmas, mode="mirror"), shape)


def measure_bandwidth(values: NDArray[np.float32]) -> float:
    """Return the frequency below which 99 % of a picture's contrast lies, in cycles per picture side.

    Contrast is the variance about the mean, with the picture's borders faded out, on a grid of 256 x 256; a higher
    frequency than 128 is not told from it.
    """
    power = measure_spectrum(bring_to_size(values, _SPECTRUM_PX))
    share = np.cumsum(power[1:]) / max(float(power[1:].sum()), _TRIFLE)
    return min(float(np.searchsorted(share, CONTRAST_SHARE)) + 1, _SPECTRUM_PX / 2)


def measure_spectrum(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the power of a square picture by whole cycles per side, shape (side // 2 + 1,); the corners are left out.

    The mean is taken away, and the borders are faded out by a Hann window, for a picture does not go on around.
    """
    side = len(values)
    fade = np.hanning(side + 2)[1:-1]
    spectrum = np.fft.fft2((values - values.mean()) * np.outer(fade, fade))
    steps = np.fft.fftfreq(side) * side
    radius = np.rint(np.hypot(steps[:, None], steps)).astype(int)
    power = np.bincount(radius.ravel(), np.square(np.abs(spectrum)).ravel())
    return np.asarray(power[: side // 2 + 1], np.float64)


def find_common_bandwidth(bandwidths: NDArray[np.float64]) -> float:
    """Return the bandwidth that all but one in a hundred pictures have, in whole cycles per picture side.

    >>> find_common_bandwidth(np.array([40.0, 60.0, 80.0]))
    40.0
    """
    return float(max(math.floor(np.percentile(bandwidths, POOREST_PERCENTILE)), 1))


def describe_picture(picture: NDArray[np.uint8]) -> dict[str, float]:
    """Return the controls of a picture, (side, side), as `Pictures.controls` holds them; its bytes as a PNG."""
    import PIL.Image

    values = picture.astype(np.float32) / np.float32(255)
    power = measure_spectrum(values)
    stored = io.BytesIO()
    PIL.Image.fromarray(picture).save(stored, "PNG")
    return {
        "image_size": float(picture.size),
        "mean_brightness": float(values.mean()),
        "standard_deviation": float(values.std()),
        "high_frequency": float(power[len(power) // 2 :].sum() / max(float(power[1:].sum()), _TRIFLE)),
        "file_bytes": float(stored.tell()),
    }


def join_controls(controls: Mapping[str, NDArray[np.float64]], training: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how far the controls of each picture lie, all taken together, from those of the training pictures.

    The Mahalanobis distance, shape (n,): a one-class detector that knows nothing of what a picture shows. Size and
    bytes enter as logarithms; what is the same in all training pictures is left out.
    """
    columns = [np.log(values) if name in ("image_size", "file_bytes") else values for name, values in controls.items()]
    table = np.stack(columns, axis=1)
    table = table[:, np.ptp(table[training], axis=0) > _TRIFLE]
    if table.shape[1] == 0:
        return np.zeros(len(training))
    table = (table - table[training].mean(axis=0)) / table[training].std(axis=0)
    spread = np.atleast_2d(np.cov(table[training], rowvar=False)) + 1e-6 * np.eye(table.shape[1])
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", table, np.linalg.solve(spread, table.T).T)), np.float64)
