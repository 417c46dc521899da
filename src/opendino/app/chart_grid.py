"""Charts of metrics as Gradio's line plots.

The browser draws them: the page sends numbers only, and few, so that watching a run takes little from its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from opendino.visualize.drawing.panels import Chart, Line

_LEGEND_LETTERS = 44
"""Number of letters that fit in one line below a plot."""
_POINTS = 125
"""Parts of a line; more are not seen in a plot of 320 px, and the browser copies all points at each event."""


def build(charts: Sequence[Chart]) -> None:
    """Build a grid of plots, inside a function that `gr.render` calls again when the numbers change.

    A chart appears with its second step: Gradio's line plots show no single points.
    """
    with gr.Row(elem_classes="plots"):
        for chart in charts:
            if any(len(line.steps) > 1 for line in chart.lines.values()):
                gr.LinePlot(**options(chart))


def options(chart: Chart) -> dict[str, Any]:
    """Options of a `gr.LinePlot`.

    A plot keeps its place in the browser, and only its numbers change, as long as its key is the same. The key names
    everything else about it, because Gradio's plots keep the old numbers when a new title or color comes with new ones.
    """
    title, lines = chart.panel.title, dict(zip(_legend([*chart.lines]), chart.lines.values(), strict=True))
    colors = {name: line.color for name, line in lines.items()}
    return {
        "value": pd.concat([_points(name, line) for name, line in lines.items()], ignore_index=True),
        "x": "step", "y": "value", "y_title": chart.panel.label or title, "color": "line", "color_title": "",
        "color_map": colors, "title": title, "height": 280 if chart.panel.caption else 240, "min_width": 320,
        "caption": chart.panel.caption or None, "key": (title, *colors, *colors.values()), "preserved_by_key": [],
    }  # fmt: skip


def _legend(names: list[str]) -> list[str]:
    """The names of lines, the longest without their last words where all would not fit below a plot."""
    while sum(map(len, names)) > _LEGEND_LETTERS:
        longest = max((name for name in names if " " in name), key=len, default="")
        short = longest.rpartition(" ")[0]
        if not longest or short in names:
            break
        names = [short if name == longest else name for name in names]
    return names


def _points(name: str, line: Line) -> pd.DataFrame:
    """The points of a line; where it stands for a range, minimum and maximum: Gradio's plots have no bands."""
    size = max(1, -(-len(line.steps) // _POINTS))
    first = np.arange(0, len(line.steps), size)
    low, high = np.fmin.reduceat(line.low, first), np.fmax.reduceat(line.high, first)
    values = np.stack([low, np.where(high == low, np.nan, high)], axis=1).ravel()
    last = np.minimum(first + size, len(line.steps)) - 1
    steps, known = np.repeat(line.steps[last], 2), np.isfinite(values)
    return pd.DataFrame({"step": steps[known], "value": values[known], "line": name})
