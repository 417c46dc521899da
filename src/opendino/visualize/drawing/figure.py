"""Figures by matplotlib, which is imported here alone: without a screen, at a paper's width, the same each time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opendino.core import atomic_write
from opendino.core.errors import UserError
from opendino.visualize.drawing import tile_grid

PLOTS = (".png", ".svg", ".pdf", ".html")
"""Endings of what a figure can be written to."""

_WIDTH_IN = 17 / 2.54
_STYLE = {
    "font.size": 7.5, "axes.titlesize": 8.5, "axes.labelsize": 7.5, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7.5, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "svg.hashsalt": "opendino",
}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Entered to draw: sizes that can be read on paper.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError("Drawing needs matplotlib", 'pip install "opendino[show]"') from None
    with mpl.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        yield


def panels(rows: int, columns: int, height_in: float) -> tuple[Any, Any]:
    """A figure 17 cm wide and so many inches high, and its axes `[rows columns]`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Write a figure in the form that its ending says, at once or not at all; 300 dots an inch as PNG."""
    kind = path.suffix.removeprefix(".").lower()
    picture = io.BytesIO()
    undated = {"svg": {"Date": None}, "html": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with style():
        figure.savefig(picture, format="svg" if kind == "html" else kind, dpi=300, metadata=undated)
    content = picture.getvalue()
    atomic_write.write(path, tile_grid.page(path.stem, content.decode()) if kind == "html" else content)
