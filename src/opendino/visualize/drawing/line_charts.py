"""Draws charts over steps as one figure: three per row, lines with pale bands from their minimum to their maximum."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from opendino.visualize.drawing import style
from opendino.visualize.drawing.panels import Chart

_COLUMNS = 3
_ROW_IN, _LEGEND_LINE_IN = 1.75, 0.14
_TITLE_LETTERS, _LABEL_LETTERS, _NAME_LETTERS = 26, 20, 18
"""Number of letters that fit above a chart, beside it, and in one of the two columns of its legend."""


def figure(charts: Sequence[Chart]) -> Any:
    """A matplotlib figure of at least one chart.

    If a color stands for the same name in all charts there is one legend below, else one below each chart with several
    lines.
    """
    columns = min(_COLUMNS, len(charts))
    rows = math.ceil(len(charts) / columns)
    names = {(name, line.color) for chart in charts for name, line in chart.lines.items()}
    shared = len({color for _, color in names}) == len(names)
    lines = [0 if shared or len(chart.lines) == 1 else math.ceil(len(chart.lines) / 2) for chart in charts]
    below = sum(max(lines[start : start + columns]) for start in range(0, len(charts), columns))
    with style.applied():
        figure, grid = style.figure(rows, columns, _ROW_IN * rows + _LEGEND_LINE_IN * below + 0.4)
        axes = grid.flatten()
        for axis in axes[len(charts) :]:
            axis.set_visible(False)
        for chart, axis in zip(charts, axes, strict=False):
            _draw(chart, axis)
        if shared:
            entries = {name: each for axis in axes[: len(charts)] for each, name in zip(*_legend(axis), strict=True)}
            figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4)
        else:
            for axis, number in zip(axes, lines, strict=False):
                if number:
                    _legend_below(axis, figure)
    return figure


def _legend(axis: Any) -> tuple[list[Any], list[str]]:
    return axis.get_legend_handles_labels()


def _legend_below(axis: Any, figure: Any) -> None:
    """A legend of two columns below the ticks and the label of the x axis."""
    from matplotlib.transforms import ScaledTranslation

    handles, names = _legend(axis)
    names = [name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…" for name in names]
    place = axis.transAxes + ScaledTranslation(0, -0.33, figure.dpi_scale_trans)  # inches
    axis.legend(
        handles, names, loc="upper center", bbox_to_anchor=(0.4, 0), bbox_transform=place, ncols=2, handlelength=1,
        handletextpad=0.4, columnspacing=0.8, labelspacing=0.25, borderpad=0.2,
    )  # fmt: skip


def _draw(chart: Chart, axis: Any) -> None:
    for name, line in chart.lines.items():
        if (line.high > line.low).any():
            axis.fill_between(line.steps, line.low, line.high, color=line.color, alpha=0.2, linewidth=0)
        few = {"marker": "o", "markersize": 2} if len(line.steps) < 12 else {}
        axis.plot(line.steps, line.values, color=line.color, label=name, **few)
    title, label = textwrap.fill(chart.panel.title, _TITLE_LETTERS), textwrap.fill(chart.panel.label, _LABEL_LETTERS)
    axis.set(title=title, xlabel="step", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if chart.panel.log and all((line.low > 0).all() for line in chart.lines.values()):
        axis.set_yscale("log")
