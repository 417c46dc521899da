"""The charts of a run: one list of panels for `opendino visualize curves`, report.html and the page.

A metric that no panel names, such as one that only one method has, gets a panel with its own name. A new method needs
no change here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from opendino.core import accuracy, metrics_log
from opendino.visualize.drawing.style import COLORS, color, pale

Columns = Mapping[str, Sequence[np.ndarray]]
"""Metric ("knn.teacher" for a metric per network) → (steps, values), or a `metrics_log.Column`."""


@dataclass(frozen=True)
class Panel:
    """Metrics that are drawn in one chart.

    Attributes:
        title: Title of the chart.
        metrics: Metric in metrics.jsonl → name of its line. A metric per network has one line for each network.
        label: Label of the y axis, with the unit.
        log: Whether the y axis is logarithmic. The live page has linear axes only.
        caption: What it shows, and what is good, for the page and report.html.
    """

    title: str
    metrics: Mapping[str, str]
    label: str = ""
    log: bool = False
    caption: str = ""


PANELS = (
    Panel(
        "Loss",
        {"loss": "loss"},
        caption="What training lowers. Good: falls, then levels off; by itself it says nothing about the features.",
    ),
    Panel(
        "k-NN",
        {"knn": ""},
        "top-1 accuracy (%)",
        caption="Held-out images named by their neighbors. Good: ends well above the untrained network.",
    ),
    Panel(
        "Classifier",
        {"accuracy": ""},
        "top-1 accuracy (%)",
        caption="Held-out images named by the classifier. Good: above training on the labeled images alone.",
    ),
    Panel(
        "Crop matching",
        {"crop_match": ""},
        "% (50 is chance)",
        caption="How often two gray crops of an image find each other. Good: 10 points above the untrained network.",
    ),
    Panel(
        "Effective rank",
        {"effective_rank": "effective rank"},
        "dimensions",
        caption="Number of directions that the features use. 1 is a collapse; more is no sign of learning by itself.",
    ),
    Panel(
        "Entropy of targets",
        {"entropy_frac": "of an image", "marginal_frac": "of the mean"},
        "fraction of ln K",
        caption="How undecided the targets are. Good: the mean stays near 1 and an image falls below it.",
    ),
    Panel(
        "KL(target ‖ student)",
        {"kl": "KL"},
        "nats",
        caption="The part of the loss that the student can reduce. Good: falls but stays above 0.",
    ),
    Panel(
        "Spread",
        {"feature_spread": "features", "projection_spread": "projections"},
        "0 is a collapse",
        caption="How much the features of different images differ. Good: well above 0.",
    ),
    Panel("Learning rate", {"lr": "learning rate"}),
    Panel("Weight decay", {"weight_decay": "weight decay"}),
    Panel("Teacher's momentum", {"momentum": "momentum"}),
    Panel("Teacher's temperature", {"teacher_temp": "temperature"}),
    Panel("Gradient norm", {"grad_norm": "gradient norm"}, "before clipping", log=True),
    Panel("Throughput", {"images_per_second": "throughput"}, "images/s"),
    Panel(
        "Fraction of time",
        {"data_wait": "waiting for images", "mfu": "computing (MFU)"},
        "0 to 1",
        caption="Waiting for images: good near 0. Computing (MFU): FLOP/s of training by those of the device.",
    ),
)
_OF_TEACHER = {
    "loss": {
        "label": "nats",
        "caption": "How far the student is from the teacher on other crops. Good: falls, then levels off.",
    },
    "entropy_frac": {
        "title": "Teacher's entropy",
        "caption": "How undecided the teacher is. Good: the mean stays near 1 and an image falls below it.",
    },
    "kl": {"title": "KL(teacher ‖ student)"},
}
"""First metric of a panel → its words where the targets of a cross-entropy are the outputs of a teacher."""
_NOT_DRAWN = {
    "ok",  # whether the step was not skipped
    "teacher_entropy",  # entropy_frac times ln K
    "crop_match_color",  # only says whether color is lost
    "judged_on", "num_queries", "majority", "standard_error", "peak_memory_bytes", *accuracy.BALANCED.values(),
}  # fmt: skip

NETWORKS = {
    "teacher": ("teacher", COLORS[0]),
    "student": ("student", COLORS[1]),
    "baseline": ("on labels alone", COLORS[5]),
    "start": ("at the start", COLORS[2]),
    "untrained": ("untrained network", COLORS[2]),
    "pixels": ("raw pixels", COLORS[3]),
    "color": ("color histogram", COLORS[4]),
}
"""Network or baseline in the metrics → (its name in charts and tables, its color)."""

_STARTS = "start", "untrained"
_BUCKETS = 500
"""A line is drawn with at most this many points."""


class Line(NamedTuple):
    """A line of a chart with the range that it stands for.

    Attributes:
        steps: int64 `[T]`.
        values, low, high: float64 `[T]`: mean, minimum and maximum at each step; equal where nothing is averaged.
        color: "#RRGGBB".
    """

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    color: str


@dataclass(frozen=True)
class Chart:
    """A panel with its lines by name."""

    panel: Panel
    lines: Mapping[str, Line]


def charts(runs: Mapping[str, Columns], colors: Mapping[str, str] | None = None) -> list[Chart]:
    """The charts of the metrics that at least one run has.

    One run: all lines of a panel, and every network and baseline. Several runs: one chart per metric, with one line per
    run, of its main network (the first), and one of the network at its start, which equal runs share.

    Args:
        runs: Name of the run → its metrics.
        colors: Name of the run → its color in every chart; by default in the order of the palette. The main line of a
            single run has it too; by default it has the color of its network.
    """
    panels = [*PANELS, *_own_panels(runs.values())]
    panels = [_in_words(panel, runs.values()) for panel in panels]
    if len(runs) == 1:
        ((run, columns),) = runs.items()
        own = colors[run] if colors else None
        found = [Chart(panel, dict(_lines_of_run(panel, run, columns, own))) for panel in panels]
    else:
        colors = colors or {run: color(number) for number, run in enumerate(runs)}
        split = [each for panel in panels for each in _one_per_metric(panel)]
        found = [Chart(panel, dict(_lines_of_runs(panel, runs, colors))) for panel in split]
    return [chart for chart in found if chart.lines]


def _in_words(panel: Panel, runs: Iterable[Columns]) -> Panel:
    """The panel in the words of `_OF_TEACHER` if they hold for all runs that it shows."""
    first = next(iter(panel.metrics))
    shown = [_has_teacher(columns) for columns in runs if _keys(columns, first)]
    return replace(panel, **_OF_TEACHER[first]) if first in _OF_TEACHER and all(shown) else panel


def _has_teacher(columns: Columns) -> bool:
    """Whether the loss of a run is a cross-entropy with a teacher."""
    names = {name.partition(".")[2] or name for name in columns}
    return "entropy_frac" in names and bool(names & {"teacher", "momentum", "teacher_temp"})


def _own_panels(runs: Any) -> Iterator[Panel]:
    """A panel for each metric that no panel names."""
    known = {metric for panel in PANELS for metric in panel.metrics} | _NOT_DRAWN
    for name in dict.fromkeys(name for columns in runs for name in columns):
        if name not in known and name.partition(".")[0] not in known:
            words = name.replace("_", " ")
            yield Panel(words[0].upper() + words[1:], {name: words})


def _one_per_metric(panel: Panel) -> Iterator[Panel]:
    for metric, name in panel.metrics.items():
        title = panel.title if len(panel.metrics) == 1 else f"{panel.title}: {name}"
        yield Panel(title, {metric: name}, panel.label, panel.log, panel.caption)


def _lines_of_run(panel: Panel, run: str, columns: Columns, own: str | None) -> Iterator[tuple[str, Line]]:
    """The lines by name; the main one has the color `own`, which no other line of the panel has."""
    keys = {key: name for metric, name in panel.metrics.items() for key in _keys(columns, metric)}
    main_color = ""
    for place, (key, name) in enumerate(keys.items()):
        network = key.partition(".")[2] if key not in panel.metrics else ""
        shown, tint = NETWORKS.get(network, (network or name, color(place)))
        if place == 0:
            main_color, tint = tint, own or tint
        elif tint == own:
            tint = main_color
        yield shown if network or len(panel.metrics) > 1 else run, line(columns[key], tint)


def _lines_of_runs(panel: Panel, runs: Mapping[str, Columns], colors: Mapping[str, str]) -> Iterator[tuple[str, Line]]:
    (metric,) = panel.metrics
    for run, columns in runs.items():
        for key in _keys(columns, metric)[:1]:
            yield run, line(columns[key], colors[run])
    # The network at the start does not change during a run.
    starts = {
        run: (name, line(columns[key], pale(colors[run])))
        for run, columns in runs.items() for name in _STARTS if (key := f"{metric}.{name}") in columns
    }  # fmt: skip
    if len(starts) > 1 and len({(name, float(each.values[-1])) for name, each in starts.values()}) == 1:
        name, longest = max(starts.values(), key=lambda start: start[1].steps[-1])
        yield NETWORKS[name][0], longest._replace(color=COLORS[-1])
    else:  # short: a legend has one line
        yield from ((f"{run} {name}", each) for run, (name, each) in starts.items())


def _keys(columns: Columns, metric: str) -> list[str]:
    return [key for key in columns if key == metric or key.startswith(f"{metric}.")]


def line(column: Sequence[np.ndarray], color: str) -> Line:
    """A line of at most 500 points through a metric; long ones by the mean, minimum and maximum of buckets of steps.

    Minimum and maximum are not smoothed: no spike is lost.

    Args:
        column: (steps, values), `[T]` each with ascending steps, or a `metrics_log.Column`.
        color: "#RRGGBB".
    """
    steps, values, *extremes = column
    edges = np.unique(np.linspace(0, len(values), min(_BUCKETS, len(values)) + 1).astype(int))
    starts, counts = edges[:-1], np.diff(edges)
    lows, highs = extremes or (values, values)
    return Line(
        steps[(starts + edges[1:] - 1) // 2],
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(lows, starts),
        np.maximum.reduceat(highs, starts),
        color,
    )


def repeated(runs: Sequence[tuple[Sequence[int], Sequence[float]]], color: str) -> Line:
    """A line through the mean over repetitions, such as seeds, with their range.

    Args:
        runs: (steps, values) of each repetition; all have the steps of the shortest.
        color: "#RRGGBB".
    """
    number = min(len(steps) for steps, _ in runs)
    values = np.array([each[:number] for _, each in runs], float)  # [R, T]
    return Line(np.asarray(runs[0][0][:number]), values.mean(0), values.min(0), values.max(0), color)


def of_file(path: Any) -> dict[str, metrics_log.Column]:
    """All metrics that the charts draw, from a run's metrics.jsonl.

    Raises:
        OSError: There is no such file.
    """
    return metrics_log.columns(path, [metric for panel in PANELS for metric in panel.metrics], others=True)


def bars(row: Mapping[str, Any], kind: str = "knn") -> list[tuple[str, float, str, str]]:
    """(name, percent, color, text) of each network and baseline in a row of metrics, for pages/scores.html.

    Args:
        row: A row of metrics.jsonl; without accuracies the result is empty.
        kind: "knn", or "accuracy" of trained classifiers.
    """
    texts = accuracy.format_accuracies(row, kind)
    named = {network: NETWORKS.get(network, (network, COLORS[-1])) for network in texts}
    return [(named[each][0], row[kind][each], named[each][1], text) for each, text in texts.items()]
