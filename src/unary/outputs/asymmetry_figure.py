"""One breast against the other as a picture: where it is the brighter one, in spreads of the pair's differences.

A figure of its own, beside what a model finds and never laid over it: it is no score, and has no threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unary.models.asymmetry import Asymmetry, describe_asymmetry
from unary.outputs.figures import add_colour_bar, new_image_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS, _OPACITY = "viridis", 0.5
_LOWEST, _HIGHEST = 1.0, 4.0  # spreads; the scale ends higher where a place does
_BAR = 1.15  # inches beside the image


def plot_asymmetry(found: Asymmetry) -> Figure:
    """Draw where a breast is brighter than the other by a spread or more, with the places that are named, numbered."""
    grey = found.prepared.pixels.astype(np.float32)
    excess = np.nan_to_num(found.excess, nan=-np.inf)
    top = max([_HIGHEST, *(each.excess for each in found.places)])
    shown = grey[found.prepared.mask]
    title = describe_asymmetry(found)
    with new_image_figure(grey.shape, grey, shown, right=_BAR, foot=0.3, title=title) as (figure, axes, extent):
        axes.imshow(
            np.clip(excess, _LOWEST, top),
            cmap=_COLOURS,
            vmin=_LOWEST,
            vmax=top,
            alpha=np.where(excess > _LOWEST, _OPACITY, 0.0),
            extent=extent,
            interpolation="nearest",
        )
        for number, each in enumerate(found.places, 1):
            row, col = (np.asarray(each.place) + 0.5) / np.asarray(found.prepared.scale) - 0.5
            axes.text(col, row, str(number), fontsize=9, color="#FFFFFF", ha="center", va="center", weight="bold")
        width, height = figure.get_size_inches()
        bar = ((width - _BAR + 0.15) / width, 0.5 / height, 0.1 / width, 0.4 * axes.get_position().height)
        add_colour_bar(figure, bar, colours=_COLOURS, limits=(_LOWEST, top), name="spreads", extend="neither")
    return figure
