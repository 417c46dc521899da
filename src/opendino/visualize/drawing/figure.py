"""Matplotlib figures at the width of a paper, deterministic and without a display; the only module with matplotlib."""

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
"""Suffixes of the file formats for figures."""

_WIDTH_IN = 17 / 2.54
_STYLE = {
    "font.size": 7.5, "axes.titlesize": 8.5, "axes.labelsize": 7.5, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7.5, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "svg.hashsalt": "opendino",
}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Context manager that sets the matplotlib style: font and line sizes for print.

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
    """A figure 17 cm wide and `height_in` inches high, and its axes `[rows columns]`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Write a figure atomically in the format of the suffix; PNG has 300 dpi."""
    kind = path.suffix.removeprefix(".").lower()
    buffer = io.BytesIO()
    # No dates in the files, so the same figure gives the same bytes.
    metadata = {"svg": {"Date": None}, "html": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with style():
        figure.savefig(buffer, format="svg" if kind == "html" else kind, dpi=300, metadata=metadata)
    content = buffer.getvalue()
    atomic_write.write(path, tile_grid.page(path.stem, content.decode()) if kind == "html" else content)
