"""Training curves: loss, entropy, KL, rank, k-NN, schedules and throughput over steps; one line per run.

A line shows the mean of each bucket of steps, and a pale band its minimum and maximum, so no spike is lost in long
runs.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from opendino.core import metrics_log
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Checked
from opendino.core.types import Report
from opendino.visualize.drawing import line_charts, panels, style, tile_grid


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino visualize curves`."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folders, finished or running."""
    out: str = "curves.png"
    """Output file: .png, .svg, .pdf or .html."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise UsageError("No run was named", "Name one or more run folders")


def show(config: Config) -> Report:
    """Draw the metrics of the runs.

    Raises:
        UserError: A run does not exist or has no metrics yet.
    """
    path, began = tile_grid.out(config.out, style.FIGURES), time.monotonic()
    runs = {name: _columns(folder) for name, folder in _unique_names(config.runs).items()}
    charts = panels.charts(runs)
    if not charts:
        raise UserError(f"{', '.join(config.runs)} has not measured anything yet", "Wait for its first logged step")
    style.save(line_charts.figure(charts), path)
    last = {name: {key: float(each.values[-1]) for key, each in columns.items()} for name, columns in runs.items()}
    steps = {name: int(max(each.steps[-1] for each in columns.values())) for name, columns in runs.items()}
    lines = [f"{name}: {steps[name]:,} steps, loss {last[name].get('loss', math.nan):.3f}" for name in runs]
    fields = {"paths": [str(path)], "steps": steps, "last": last, "panels": [chart.panel.title for chart in charts]}
    return Report("\n".join([*lines, f"→ {path}"]), fields | {"seconds": time.monotonic() - began})


def _unique_names(runs: Sequence[str]) -> dict[str, Path]:
    """Run folders by name: the shortest suffixes of their paths that are unique."""
    folders = list(dict.fromkeys(Path(run).expanduser().absolute() for run in runs))
    for length in itertools.count(1):
        named = {"/".join(folder.parts[-length:]): folder for folder in folders}
        if len(named) == len(folders):
            return named
    raise AssertionError  # the whole paths are unique


def _columns(folder: Path) -> dict[str, metrics_log.Column]:
    """The metrics of a run by column."""
    try:
        return panels.of_file(folder / "metrics.jsonl")
    except OSError:
        raise UserError(
            f"'{folder}' is not a run folder: it has no metrics.jsonl",
            "Name a run folder, or start a run: opendino train DATA",
        ) from None
