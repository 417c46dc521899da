"""Figures by matplotlib, the one file that imports it: without a screen, at the width of a paper, the same each time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from opendino.core import files
from opendino.core.errors import UserError
from opendino.visualise import _canvas

PLOTS = (".png", ".svg", ".pdf", ".html")
"""Endings of what a figure can be written to."""

_WIDTH_IN = 17 / 2.54
_STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 7.5, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7.5, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "svg.hashsalt": "opendino", "path.simplify_threshold": 0.3,
}  # fmt: skip


def panels(rows: int, columns: int, height_in: float) -> tuple[Any, Any]:
    """A figure 17 cm wide and its axes `[rows columns]`.

    Args:
        rows, columns: Of axes.
        height_in: Of the figure, in inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("Drawing needs matplotlib", 'pip install "opendino[show]"') from None
    with mpl.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Write a figure in the form that its ending says, at once or not at all; 300 dots an inch as PNG."""
    import matplotlib as mpl

    kind = path.suffix.removeprefix(".").lower()
    picture = io.BytesIO()
    undated = {"svg": {"Date": None}, "html": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with mpl.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure.savefig(picture, format="svg" if kind == "html" else kind, dpi=300, metadata=undated)
    content = picture.getvalue()
    files.write(path, _canvas.page(path.stem, content.decode()) if kind == "html" else content)
