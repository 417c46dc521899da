"""Charts of metrics as Gradio's line plots.

The browser draws them: the page sends numbers only, so that watching a run takes no time from its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from opendino.visualize.drawing.panels import Chart, Line

_MOST = 24
"""Number of plots on the page: an event can fill plots but not add any."""


def build() -> list[gr.LinePlot]:
    """Build a grid of plots, which stay hidden until they are filled."""
    with gr.Row(elem_classes="plots"):
        return [
            gr.LinePlot(x="step", y="value", color="line", color_title="", height=240, min_width=320, visible=False)
            for _ in range(_MOST)
        ]


def updates(charts: Sequence[Chart]) -> list[Any]:
    """Updates of all plots of a grid: the charts in order, then hidden ones. Further charts are left out."""
    shown = [_update(chart) for chart in charts[:_MOST]]
    return [*shown, *[gr.update(visible=False)] * (_MOST - len(shown))]


def _update(chart: Chart) -> dict[str, Any]:
    parts = [_points(name, line) for name, line in chart.lines.items()]
    return gr.update(
        value=pd.concat(parts, ignore_index=True),
        title=chart.panel.title,
        y_title=chart.panel.label or chart.panel.title,
        color_map={name: line.color for name, line in chart.lines.items()},
        visible=True,
    )


def _points(name: str, line: Line) -> pd.DataFrame:
    """The points of a line; where it stands for a range, minimum and maximum: Gradio's plots have no bands."""
    flat = line.high == line.low
    values = np.stack([np.where(flat, line.values, line.low), np.where(flat, np.nan, line.high)], axis=1).ravel()
    steps, known = np.repeat(line.steps, 2), np.isfinite(values)
    return pd.DataFrame({"step": steps[known], "value": values[known], "line": name})
