"""A map of images: a colored point for each, and some of the images themselves at their places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opendino.visualize.drawing import style, tile_grid

_CELLS = 15
"""The map is divided into this many cells on each side; an image is as large as one."""
_THUMB_PX = 64
_MARGIN = 0.05
"""Empty border around the points, as a share of their range."""
_COLORS = (*style.COLORS[:6], style.COLORS[6])
_REST = style.COLORS[7]
_SIDE_IN = 17 / 2.54
_LEGEND_IN = 0.22
"""Height of a line of the legend, in inches."""
_PER_LINE = 4


def shown_rows(points: Tensor) -> list[int]:
    """Rows of the points whose images are shown: close to the centers of cells, and none over another.

    Args:
        points: float `[M 2]` in [0, 1].
    """
    places = points * _CELLS
    cells = places.long().clamp(0, _CELLS - 1)
    off_center = (places - cells - 0.5).norm(dim=1)
    best: dict[tuple[int, int], int] = {}
    for row in off_center.argsort(stable=True).tolist():
        best.setdefault((int(cells[row, 0]), int(cells[row, 1])), row)
    found: list[int] = []
    for row in best.values():
        if not found or bool(((places[found] - places[row]).abs().amax(1) >= 1).all()):
            found.append(row)
    return sorted(found)


def colors(names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Group → (its color, its number of images), the largest first; small groups beyond the seventh share gray.

    Args:
        names: The group of each image; "" without one.
    """
    counts = Counter(names)
    named = [(name, count) for name, count in counts.most_common() if name]
    found = {name: (color, count) for (name, count), color in zip(named, _COLORS, strict=False)}
    rest = len(names) - sum(count for _, count in found.values())
    if rest:
        found["others" if found else "images"] = (_REST if found else _COLORS[0], rest)
    return found


def figure(points: Tensor, names: Sequence[str], thumbnails: Mapping[int, Image.Image], *, legend: bool = True) -> Any:
    """Draw a map.

    Args:
        points: float `[M 2]` in [0, 1]; the second axis points up.
        names: The group of each image, M names, "" without one.
        thumbnails: Row → image to show at its place.
        legend: Whether to list the groups below; without it the map fills the figure, see `rows_in_box`.

    Returns:
        A matplotlib figure, 17 cm wide.
    """
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    known = colors(names)
    rest = known.get("others") or known.get("images") or (_REST, 0)
    tints = [known.get(name, rest)[0] for name in names]
    below = _LEGEND_IN * (1 + (len(known) - 1) // _PER_LINE) if legend else 0.0
    with style.applied():
        figure = Figure(figsize=(_SIDE_IN, _SIDE_IN + below))
        axis = figure.add_axes((0, below / (_SIDE_IN + below), 1, _SIDE_IN / (_SIDE_IN + below)))
        axis.set(xlim=(-_MARGIN, 1 + _MARGIN), ylim=(-_MARGIN, 1 + _MARGIN), xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        places = points.numpy()
        area = float(np.clip(6000 / max(1, len(places)), 1, 14))
        # pixels in vector formats too: a file with a million circles would open nowhere
        axis.scatter(places[:, 0], places[:, 1], s=area, c=tints, linewidths=0, alpha=0.85, rasterized=True)
        for row, image in thumbnails.items():
            picture = OffsetImage(np.asarray(tile_grid.square(image, _THUMB_PX)), zoom=0.9 * _fit())
            frame = {"edgecolor": tints[row], "linewidth": 1.4, "boxstyle": "square,pad=0.05"}
            axis.add_artist(AnnotationBbox(picture, places[row], bboxprops=frame, pad=0.05))
        if legend:
            _add_legend(figure, known)
    return figure


def rows_in_box(points: Tensor, box: Sequence[float]) -> list[int]:
    """Rows of the points within a box that was drawn on a map without a legend.

    Args:
        points: float `[M 2]` in [0, 1], as drawn.
        box: (left, top, right, bottom) as fractions of the picture, from its upper left corner.
    """
    left, top, right, bottom = (-_MARGIN + each * (1 + 2 * _MARGIN) for each in box)
    x, y = points[:, 0], 1 - points[:, 1]
    return torch.nonzero((x >= left) & (x <= right) & (y >= top) & (y <= bottom))[:, 0].tolist()


def _fit() -> float:
    """Zoom at which thumbnails fit into their cells: pixels of an image to points of 1/72 inch."""
    cell_in = _SIDE_IN / (1 + 2 * _MARGIN) / _CELLS
    return cell_in * 72 / _THUMB_PX


def _add_legend(figure: Any, known: Mapping[str, tuple[str, int]]) -> None:
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], color=color, marker="o", linestyle="", markersize=4) for color, _ in known.values()]
    labels = [f"{name} ({count:,})" for name, (_, count) in known.items()]
    figure.legend(dots, labels, loc="lower left", ncols=_PER_LINE, frameon=False, borderpad=0, handletextpad=0.2)
