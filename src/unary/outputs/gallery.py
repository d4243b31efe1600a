"""Many patches beside each other, lesions framed: what a detector misses, and what alarms it falsely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unary.outputs.figures import draw_picture, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]

_INCHES, _TITLE, _FOOT, _GAP = 1.45, 0.34, 0.25, 0.06
_MARGIN_PX = 4.0  # between a lesion and its frame, so that the frame of a speck does not cover it


def plot_gallery(
    patches: NDArray[np.uint16], *, titles: Sequence[str], boxes: Sequence[Sequence[Box]], columns: int = 6
) -> Figure:
    """Lay out patches in rows, each in a grey window of its own (0.5th to 99.8th percentile).

    Patches are uint16, of shape (n, rows, cols), at least one, each with a title, never a patient's, and half-open
    boxes ``(r0, c0, r1, c1)`` in its pixels, drawn as frames a few pixels wider; parts outside it are cut off.
    """
    if not len(patches) == len(titles) == len(boxes) > 0:
        raise ValueError("there must be as many titles and lists of boxes as patches, and at least one")
    rows, columns = -(-len(patches) // columns), min(columns, len(patches))
    step_down, step_right = _INCHES + _TITLE, _INCHES + _GAP
    width, height = columns * step_right + _GAP, rows * step_down + _FOOT
    width = max(width, 3.0)  # wide enough for the notice
    with new_figure(width, height) as figure:
        for place, (patch, title, framed) in enumerate(zip(patches, titles, boxes, strict=True)):
            line, column = divmod(place, columns)
            left, bottom = _GAP + column * step_right, _FOOT + (rows - 1 - line) * step_down
            low, high = np.percentile(patch, [0.5, 99.8]).tolist()
            axes = draw_picture(figure, (left, bottom, _INCHES, _INCHES), patch, window=(low, high))
            for r0, c0, r1, c1 in framed:
                top, start = r0 - 0.5 - _MARGIN_PX, c0 - 0.5 - _MARGIN_PX
                below, end = r1 - 0.5 + _MARGIN_PX, c1 - 0.5 + _MARGIN_PX
                frame_cols, frame_rows = [start, end, end, start, start], [top, top, below, below, top]
                axes.plot(frame_cols, frame_rows, color="#E69F00", linewidth=0.8)
            axes.set(xlim=(-0.5, patch.shape[1] - 0.5), ylim=(patch.shape[0] - 0.5, -0.5))
            axes.set_title(title, fontsize=6.5, pad=2, parse_math=False)
    return figure
