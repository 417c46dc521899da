"""Lines over steps: several panels side by side, several runs a line."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opendino.core import files
from opendino.core.errors import UsageError, UserError

# Okabe & Ito's palette, told apart by people of every colour vision; beyond eight, other strokes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_STROKES = ("-", "--", ":")

Curve = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title, ylabel: Text.
        curves: Name of a line → its repetitions, e.g. one (steps, values) a seed; drawn thin, their mean thick.
        level: A dashed line across, e.g. ln K, and its name.
    """

    title: str
    ylabel: str
    curves: Mapping[str, Sequence[Curve]]
    level: tuple[float, str] | None = None


def draw(panels: Sequence[Panel], path: Path, xlabel: str = "step") -> None:
    """Draw panels side by side under one legend into a `.png`, `.svg` or `.pdf`.

    Raises:
        UsageError: Another ending.
        UserError: matplotlib is not installed.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise UsageError(f"'{path}' is no picture", "End its name in .png, .svg or .pdf")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("Drawing needs matplotlib", 'pip install "opendino[show]"') from None
    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    axes: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    styles = {
        name: {"color": COLOURS[i % len(COLOURS)], "linestyle": _STROKES[i // len(COLOURS) % len(_STROKES)]}
        for i, name in enumerate(names)
    }
    for panel, axis in zip(panels, axes, strict=True):
        for name, curves in panel.curves.items():
            for steps, values in curves:
                axis.plot(steps, values, linewidth=0.4, alpha=0.5, **styles[name])
            steps = curves[0][0]
            if all(len(each[0]) == len(steps) for each in curves):
                axis.plot(steps, np.mean([values for _, values in curves], axis=0), linewidth=1.6, **styles[name])
        if panel.level is not None:
            axis.axhline(panel.level[0], color="grey", linewidth=0.8, linestyle=(0, (4, 4)))
            axis.annotate(
                panel.level[1], (1, panel.level[0]), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
        axis.set(title=panel.title, xlabel=xlabel, ylabel=panel.ylabel)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [axes[0].plot([], [], linewidth=1.6, label=name, **styles[name])[0] for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    picture = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None  # the same picture, the same bytes
    figure.savefig(picture, format=kind, dpi=150, metadata=metadata)
    files.write(path, picture.getvalue())
