"""Draws charts over steps as one figure: three per row, lines with pale bands from their minimum to their maximum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from opendino.visualize.drawing import style
from opendino.visualize.drawing.panels import Chart

_COLUMNS = 3


def figure(charts: Sequence[Chart]) -> Any:
    """A matplotlib figure of at least one chart.

    If a color stands for the same name in all charts there is one legend below, else one in each chart with several
    lines.
    """
    columns = min(_COLUMNS, len(charts))
    rows = math.ceil(len(charts) / columns)
    with style.applied():
        figure, grid = style.figure(rows, columns, 1.75 * rows + 0.4)
        axes = grid.flatten()
        for axis in axes[len(charts) :]:
            axis.set_visible(False)
        for chart, axis in zip(charts, axes, strict=False):
            _draw(chart, axis)
        names = {(name, line.color) for chart in charts for name, line in chart.lines.items()}
        if len({color for _, color in names}) == len(names):
            shared = {name: each for axis in axes[: len(charts)] for each, name in zip(*_legend(axis), strict=True)}
            figure.legend(shared.values(), shared.keys(), loc="outside lower center", ncols=4)
        else:
            for chart, axis in zip(charts, axes, strict=False):
                if len(chart.lines) > 1:
                    axis.legend(loc="best", handlelength=1.2, borderpad=0.2, labelspacing=0.25)
    return figure


def _legend(axis: Any) -> tuple[list[Any], list[str]]:
    return axis.get_legend_handles_labels()


def _draw(chart: Chart, axis: Any) -> None:
    for name, line in chart.lines.items():
        if (line.high > line.low).any():
            axis.fill_between(line.steps, line.low, line.high, color=line.color, alpha=0.2, linewidth=0)
        few = {"marker": "o", "markersize": 2} if len(line.steps) < 12 else {}
        axis.plot(line.steps, line.values, color=line.color, label=name, **few)
    axis.set(title=chart.panel.title, xlabel="step", ylabel=chart.panel.label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if chart.panel.log and all((line.low > 0).all() for line in chart.lines.values()):
        axis.set_yscale("log")
