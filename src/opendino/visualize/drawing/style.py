"""The one style of all figures: colors, fonts and line widths for print; no display needed, the same bytes every time.

The only module that imports matplotlib, and only when something is drawn. It never uses pyplot, whose figures are
global and live until they are closed.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from opendino.core import atomic_write
from opendino.visualize.drawing import templates
from opendino.visualize.drawing.templates import Markup

# Palette of Okabe & Ito, safe for color-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
FIGURES = (".png", ".svg", ".pdf", ".html")
"""Suffixes of the file formats for figures."""

_WIDTH_IN = 17 / 2.54
_RC = {
    "font.size": 7.5, "axes.titlesize": 8.5, "axes.labelsize": 7.5, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.fontsize": 7, "legend.framealpha": 0.75,
    "legend.edgecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e4e4e7", "grid.linewidth": 0.5, "lines.linewidth": 1.1, "axes.formatter.useoffset": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "opendino",
}  # fmt: skip
_LOCK = threading.RLock()  # matplotlib's settings are global


def color(number: int) -> str:
    """Color number `number`, from 0: the palette, then a lighter palette, then the same again."""
    color = COLORS[number % len(COLORS)]
    return color if number // len(COLORS) % 2 == 0 else pale(color)


def pale(color: str) -> str:
    """A color "#RRGGBB" halfway to white."""
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(channel + 0.5 * (255 - channel)):02X}" for channel in channels)


def viridis(values: Tensor) -> np.ndarray:
    """Values `[...]` in [0, 1] → uint8 colors `[... 3]` from dark violet to yellow, safe for color-blind readers."""
    import matplotlib as mpl

    colors = mpl.colormaps["viridis"](values.double().numpy())[..., :3]
    return (255 * colors).round().astype(np.uint8)  # its own `bytes=True` rounds down


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Context manager that sets the style in matplotlib, for one thread at a time."""
    import matplotlib as mpl

    with _LOCK, mpl.rc_context(_RC):  # pyright: ignore[reportArgumentType]
        yield


def figure(rows: int, columns: int, height_in: float) -> tuple[Any, Any]:
    """A figure 17 cm wide and `height_in` inches high, and its axes `[rows columns]`; call it inside `applied`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Write a figure atomically in the format of the suffix; PNG has 300 dpi."""
    kind = path.suffix.removeprefix(".").lower()
    if kind == "html":
        atomic_write.write(path, templates.render("page.html", title=path.stem, svg=svg(figure)))
    else:
        atomic_write.write(path, _encoded(figure, kind))


def svg(figure: Any) -> Markup:
    """A figure as an SVG element, to be put into a page."""
    text = _encoded(figure, "svg").decode()
    return Markup(text[text.index("<svg") :])


def image(figure: Any) -> Image.Image:
    """A figure as an RGB image of 150 dpi."""
    return Image.open(io.BytesIO(_encoded(figure, "png", 150))).convert("RGB")


def _encoded(figure: Any, kind: str, dpi: int = 300) -> bytes:
    # No dates and no version in the files, so the same figure gives the same bytes.
    empty = {"svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate",)}.get(kind, ())
    content = io.BytesIO()
    with applied():
        figure.savefig(content, format=kind, dpi=dpi, metadata=dict.fromkeys(empty))
    return content.getvalue()
