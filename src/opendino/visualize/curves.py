"""Training curves: loss, entropy, KL, rank, k-NN, schedules and throughput over steps; one line per run.

A line shows the mean of each bucket of steps, and a pale band its minimum and maximum, so no spike is lost in long
runs.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import ArrayLike

from opendino.core import metrics_log
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Checked
from opendino.core.types import Report
from opendino.visualize.drawing import figure as _plot
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.tile_grid import COLORS

_LINE_STYLES = ("-", "--", ":")  # beyond eight colors
_COLUMNS = 3
BUCKETS = 500

Curve = tuple[ArrayLike, ArrayLike]
"""Steps and values, `[T]` each."""

# Metrics in the order of the panels: column → (title, label of the y axis).
PANELS = {
    "loss": ("Loss", "nats"),
    "teacher_entropy": ("Teacher's entropy", "nats"),
    "kl": ("KL(teacher ‖ student)", "nats"),
    "effective_rank": ("Effective rank", "dimensions"),
    "knn": ("k-NN", "accuracy (%)"),
    "accuracy": ("Classifier", "accuracy (%)"),
    "feature_spread": ("Spread of features", ""),
    "projection_spread": ("Spread of projections", ""),
    "lr": ("Learning rate", ""),
    "weight_decay": ("Weight decay", ""),
    "momentum": ("Teacher's momentum", ""),
    "teacher_temp": ("Teacher's temperature", ""),
    "images_per_second": ("Throughput", "images/s"),
    "data_wait": ("Waiting for images", "share of time"),
}


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


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title, ylabel: Title and label of the y axis.
        curves: Name of a line → repetitions, e.g. one (steps, values) per seed; drawn thin, with a thick mean.
        level: A dashed horizontal line, e.g. ln K, and its label.
        bands: Name of a line → (steps, minimum, maximum), drawn as a pale band.
    """

    title: str
    ylabel: str
    curves: Mapping[str, Sequence[Curve]]
    level: tuple[float, str] | None = None
    bands: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)


def show(config: Config) -> Report:
    """Draw the metrics of the runs.

    Raises:
        UserError: A run does not exist or has no metrics yet, or matplotlib is not installed.
    """
    path, began = tile_grid.out(config.out, _plot.PLOTS), time.monotonic()
    runs = {name: _columns(folder) for name, folder in _unique_names(config.runs).items()}
    panels = of_runs(runs)
    if not panels:
        raise UserError(f"{', '.join(config.runs)} has not measured anything yet", "Wait for its first logged step")
    draw(panels, path)
    last = {name: {key: float(each.values[-1]) for key, each in columns.items()} for name, columns in runs.items()}
    steps = {name: int(max(each.steps[-1] for each in columns.values())) for name, columns in runs.items()}
    lines = [f"{name}: {steps[name]:,} steps, loss {last[name].get('loss', math.nan):.3f}" for name in runs]
    fields = {"paths": [str(path)], "steps": steps, "last": last, "panels": [panel.title for panel in panels]}
    return Report("\n".join([*lines, f"→ {path}"]), fields | {"seconds": time.monotonic() - began})


def of_runs(runs: Mapping[str, Mapping[str, Sequence[np.ndarray]]]) -> list[Panel]:
    """Panels for the metrics that at least one run has.

    Args:
        runs: Name of the run → column → (steps, values) or a `metrics_log.Column`. Columns are named as in `PANELS`,
            with the network after a dot for "knn" and "accuracy", e.g. "knn.teacher". One run shows all networks and
            baselines; several runs show only their main network, which is the first.
    """
    panels = []
    for column, (title, ylabel) in PANELS.items():
        curves: dict[str, list[Curve]] = {}
        bands: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for run, columns in runs.items():
            keys = [key for key in columns if key.partition(".")[0] == column]
            for key in keys if len(runs) == 1 else keys[:1]:
                name = key.partition(".")[2] if len(runs) == 1 else run
                steps, values, *extremes = columns[key]
                steps, low, mean, high = thinned(steps, values, BUCKETS, extremes)
                curves[name or run] = [(steps, mean)]
                if (high > low).any():
                    bands[name or run] = steps, low, high
        if curves:
            panels.append(Panel(title, ylabel, curves, bands=bands))
    return panels


def thinned(
    steps: np.ndarray, values: np.ndarray, buckets: int, extremes: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, ...]:
    """Downsample to at most `buckets` buckets of about equal size: middle step, minimum, mean and maximum of each.

    Minimum and maximum are not smoothed, so the extremes of the whole series are kept.

    Args:
        steps: `[T]`, ascending.
        values: float64 `[T]`.
        buckets: Maximum number of buckets, above 0.
        extremes: Minimum and maximum `[T]` of the values, if `values` are means.

    Returns:
        (steps, minimum, mean, maximum), each `[min(T, buckets)]`.
    """
    edges = np.unique(np.linspace(0, len(values), min(buckets, len(values)) + 1).astype(int))
    starts, counts = edges[:-1], np.diff(edges)
    middle = steps[(starts + edges[1:] - 1) // 2]
    lows, highs = extremes or (values, values)
    low, high = np.minimum.reduceat(lows, starts), np.maximum.reduceat(highs, starts)
    return middle, low, np.add.reduceat(values, starts) / counts, high


def draw(panels: Sequence[Panel], path: Path, xlabel: str = "step") -> None:
    """Draw panels, three per row, with one legend, into a `.png`, `.svg`, `.pdf` or `.html` file.

    Raises:
        UsageError: The path has another suffix.
        UserError: matplotlib is not installed.
    """
    path = tile_grid.out(str(path), _plot.PLOTS)
    with _plot.style():
        _plot.save(_figure(panels, xlabel), path)


def _figure(panels: Sequence[Panel], xlabel: str) -> Any:
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = _plot.panels(rows, columns, 1.75 * rows + 0.4)
    axes = grid.flatten()
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    styles = {
        name: {"color": COLORS[i % len(COLORS)], "linestyle": _LINE_STYLES[i // len(COLORS) % len(_LINE_STYLES)]}
        for i, name in enumerate(names)
    }
    for panel, axis in zip(panels, axes, strict=False):
        for name, (steps, low, high) in panel.bands.items():
            axis.fill_between(steps, low, high, color=styles[name]["color"], alpha=0.2, linewidth=0)
        for name, curves in panel.curves.items():
            for steps, values in curves if len(curves) > 1 else ():
                axis.plot(steps, values, linewidth=0.4, alpha=0.5, **styles[name])
            steps = np.asarray(curves[0][0])
            if all(np.shape(each) == steps.shape for each, _ in curves):
                mean = np.mean([np.asarray(values) for _, values in curves], axis=0)
                marker = {"marker": "o", "markersize": 2} if len(steps) < 12 else {}
                axis.plot(steps, mean, linewidth=1.1, **marker, **styles[name])
        if panel.level is not None:
            axis.axhline(panel.level[0], color="gray", linewidth=0.8, linestyle=(0, (4, 4)))
            axis.annotate(
                panel.level[1], (1, panel.level[0]), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
        axis.set(title=panel.title, xlabel=xlabel, ylabel=panel.ylabel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = [axes[0].plot([], [], linewidth=1.1, label=name, **styles[name])[0] for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


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
        return metrics_log.columns(folder / "metrics.jsonl", list(PANELS))
    except OSError:
        raise UserError(
            f"'{folder}' is not a run folder: it has no metrics.jsonl",
            "Name a run folder, or start a run: opendino train DATA",
        ) from None
