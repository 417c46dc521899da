"""The verdict on a run: learned, not shown to learn, or collapsed (kind), against the network it started from.

Classes decide, by k-NN accuracy, where they are known to be classes. Without them, or where the queries are too few,
crops decide: how often is a crop nearer to the other crop of its image than to a crop of another image
(`features/crop_matching.py`)? docs/verdicts.md says on which runs the thresholds were set and how often they are wrong.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opendino.core import accuracy
from opendino.engine.collapse_detection import CURE, Collapse, Monitor

LEARNED, NOT_SHOWN = "learned", "not shown to learn"
_MEANING = {
    LEARNED: "its features are better than at the start",
    NOT_SHOWN: "not enough shows better features than at the start",
}
KNN_GAIN = 2.0
"""Points of k-NN accuracy above the start below which a run has not learned, however many queries there are."""
MATCH_GAIN = 10.0
"""Points of crop matching above the start that a run needs to be called learned without classes."""
COLOR_LOSS = 1.0
"""Points of crop matching in color that a run may lose: where classes differ in color, they are lost with it."""
UNDECIDED_ENTROPY = 0.98
"""A teacher with this share of ln K or more, and not falling, has no opinion about any image."""
RANK_ONE = 1.05
"""Effective rank below which the features of all images lie on one line."""
EXAMINED = (
    "loss", "ok", "entropy_frac", "effective_rank", "crop_match", "crop_match_color", "knn", "balanced_accuracy",
    "majority", "num_queries", "judged_on",
)  # fmt: skip
"""The metrics that `judge` uses."""
_STARTS = "start", "untrained"
_NAMES = {"start": "at the start", "untrained": "untrained network", "pixels": "raw pixels", "color": "color histogram"}
_FEWEST_TO_STALL = 6  # evaluations
_CURE = (
    "Train longer (the same command with more --minutes, or opendino resume RUN --epochs N); check with "
    "`opendino visualize crops` that the views do not share a shortcut (constant color, "
    "watermark); try another --optim.lr or a smaller --backbone"
)
_OTHER = (
    "Longer training is not likely to help: try another method (--method swav or lejepa, see `opendino list methods`), "
    "a higher or lower --optim.lr, or trained weights (--init MODEL); check the views with `opendino visualize crops`"
)
_KEEP = "Keep using the weights it started from, or train longer or with a lower --optim.lr"
"""The cure of a run with --init that has not become better."""
Columns = Mapping[str, tuple[Any, ...]]
"""Metric name (nested: "knn.teacher") → (steps, values, ...), as `core.metrics_log.columns` returns it."""


@dataclass(frozen=True)
class Verdict:
    """What a run came to so far.

    Attributes:
        name: "learned", "not shown to learn" or "collapsed (KIND)".
        evidence: The metrics it is based on, one sentence.
        cure: What to change, one line; empty if nothing.
        collapse: KIND, one of `collapse_detection.KINDS` or "rank 1"; None if the run is not collapsed.
        by_crops: Whether crop matching decided: there are no classes, or too few queries.
    """

    name: str
    evidence: str
    cure: str = ""
    collapse: str | None = None
    by_crops: bool = False


def of_rows(rows: Sequence[Mapping[str, Any]], total_steps: int, cures: Mapping[str, str] = {}) -> Verdict:
    """The verdict from the rows of a run's metrics.jsonl, in order, see `judge`; `cures` are those of the method."""
    monitor, collapse, since = Monitor(total_steps, cures), None, 0
    for row in rows:
        if "loss" in row:
            before, collapse = collapse, monitor.watch(row)
            if collapse is not None and (before is None or before.name != collapse.name):
                since = row["step"]
    if collapse is not None:
        collapse = replace(collapse, evidence=f"since step {since:,} of {total_steps:,}, {collapse.evidence}")
    return judge(_columns(rows), total_steps, collapse)


def judge(columns: Columns, total_steps: int, collapse: Collapse | None) -> Verdict:
    """The verdict on a run, finished or not.

    Args:
        columns: The metrics in `EXAMINED`.
        total_steps: Length of the run.
        collapse: What `collapse_detection.Monitor` says at the end of these metrics.
    """
    done = int(columns["loss"][0][-1]) if "loss" in columns else 0
    collapse = collapse or _rank_one(columns)
    name = f"collapsed ({collapse.name})" if collapse else NOT_SHOWN
    if problem := _useless_images(columns) or _skipped_steps(columns):
        return Verdict(name, *problem, collapse.name if collapse else None)
    if collapse:
        return Verdict(name, collapse.evidence + _even_so(columns), collapse.cure, collapse.name)
    learned, evidence, by_crops = _learned(columns)
    when = f"after all {total_steps:,} steps" if done >= total_steps else f"after {done:,} of {total_steps:,} steps"
    cure = "" if learned or done < total_steps else _cure(columns)
    name = LEARNED if learned else NOT_SHOWN
    return Verdict(name, f"{_MEANING[name]}; {when}, {evidence}", cure, by_crops=by_crops)


def told_apart_by_color(percent: float) -> str:
    """Warning that sub-folders are told apart by color, with the accuracy of k-NN on color histograms in percent."""
    return f"folders are told apart by color alone ({percent:.0f}%): they may be dates, devices or batches"


def _learned(columns: Columns) -> tuple[bool, str, bool]:
    """Whether the run has learned, the evidence, and whether it is that of crops."""
    if not _evaluated(columns):
        return False, "no evaluation shows that it has learned (see --eval-images and --eval-every)", False
    by_crops, by_classes = _by_crops(columns), _by_classes(columns)
    if by_classes is None:
        return *by_crops, True
    gain, chance, evidence = by_classes
    if _last(columns, "judged_on.confirmed") == 0:
        evidence = f"for information, with sub-folders as classes (--labels folders if they are): {evidence}"
        if color := _last(columns, "judged_on.color"):
            evidence += f"; {told_apart_by_color(color)}"
        return by_crops[0], f"{by_crops[1]}; {evidence}", True
    if KNN_GAIN <= gain <= chance:
        return by_crops[0], f"{evidence}; {by_crops[1]}", True
    return gain >= KNN_GAIN, evidence, False


def _cure(columns: Columns) -> str:
    """What to do about a finished run that is not shown to have learned."""
    if _from_trained_weights(columns):
        return _KEEP
    cure = _OTHER if _stalled(columns) else _CURE
    return cure if _by_classes(columns) else f"{cure}; give labeled images with --val"


def _stalled(columns: Columns) -> bool:
    """Whether crop matching rose in the last third of the evaluations by less than a tenth of all it has risen."""
    values: Sequence[float] = next((columns[name][1] for name in columns if name.startswith("crop_match.")), [])
    if len(values) < _FEWEST_TO_STALL:
        return False
    return values[-1] - values[(len(values) - 1) * 2 // 3] < (values[-1] - values[0]) / 10


def _even_so(columns: Columns) -> str:
    """That a collapsed run's features are better than at its start, to be added to the evidence; empty if not."""
    by_classes = _by_classes(columns)
    if by_classes is None or _last(columns, "judged_on.confirmed") == 0:
        return ""
    gain, chance, evidence = by_classes
    return f"; even so, {evidence}" if gain >= KNN_GAIN and gain > chance else ""


def _by_crops(columns: Columns) -> tuple[bool, str]:
    """Whether the run has learned by the measures that need no labels, and the evidence."""
    scores = {name: _last(columns, name) for name in columns if name.startswith("crop_match.")}
    match = {name.partition(".")[2]: score for name, score in scores.items() if score is not None}
    signs, learned = [], False
    if (first := next((name for name in _STARTS if name in match), None)) is not None:
        best, *_ = match
        others = ", ".join(f"{_NAMES[name]} {match[name]:.1f}%" for name in (first, "pixels", "color") if name in match)
        gain = match[best] - match[first]
        learned = gain >= MATCH_GAIN
        signs.append(
            f"crops of one image find each other in {match[best]:.1f}% of comparisons "
            f"({others}; chance 50%{_missing(columns, gain)})"
        )
        color = [_last(columns, f"crop_match_color.{name}") for name in (best, first)]
        if color[0] is not None and color[1] is not None:
            signs.append(f"in color in {color[0]:.1f}% ({_NAMES[first]} {color[1]:.1f}%)")
            learned &= color[1] - color[0] <= COLOR_LOSS
    if entropy := _half_and_end(columns, "entropy_frac"):
        signs.append(f"the teacher's entropy is {entropy[1]:.1%} of its maximum, ln K ({entropy[0]:.1%} halfway)")
        learned &= entropy[1] < UNDECIDED_ENTROPY or entropy[1] <= entropy[0] - 0.002
    if "effective_rank" in columns:
        rank = columns["effective_rank"][1]
        signs.append(f"the effective rank is {rank[-1]:.1f} ({rank[0]:.1f} at the start)")
    return learned, ", ".join(signs)


def _missing(columns: Columns, gain: float) -> str:
    """How far crop matching, which rose by `gain` points, is from showing that a run has learned; empty if it does."""
    if gain >= MATCH_GAIN:
        return ""
    needed = f"; {MATCH_GAIN:g} points more than at the start would show learning"
    if _stalled(columns):
        return f"{needed}, and it has not risen in the last third of the run"
    if gain < 1:
        return needed
    return f"{needed}, at the pace so far after about {max(1.1, MATCH_GAIN / gain):.1f} times as many steps"


def _by_classes(columns: Columns) -> tuple[float, float, str] | None:
    """Gain of k-NN accuracy over the start, what chance explains of it, and the evidence; None without classes.

    The gain is 0 at most where balanced accuracy has not risen: then one class is only answered more often.
    """
    names = [name.partition(".")[2] for name in columns if name.startswith("knn.")]
    first = next((name for name in _STARTS if name in names), None)
    if first is None:
        return None
    best, num = names[0], int(_last(columns, "num_queries") or 0)
    row: dict[str, Any] = {"num_queries": num}
    for kind in ("knn", "balanced_accuracy"):
        row[kind] = {name: value for name in (best, first) if (value := _last(columns, f"{kind}.{name}")) is not None}
    after, before, balanced = row["knn"][best], row["knn"][first], row["balanced_accuracy"]
    chance = accuracy.chance_of_difference(before, after, num)
    shown = accuracy.format_accuracies(row)
    evidence = f"k-NN is {shown[best]} ({_NAMES[first]}: {shown[first]})"
    if num:
        evidence += f", on {num:,} queries (differences up to {chance:.1f} points may be chance; "
        evidence += f"most frequent class: {_last(columns, 'majority') or 0:.1f}%)"
    gain = after - before
    return min(gain, 0.0) if len(balanced) == 2 and balanced[best] <= balanced[first] else gain, chance, evidence


def _useless_images(columns: Columns) -> tuple[str, str] | None:
    """Evidence and cure if almost all images are of one color or copies of each other, else None."""
    images, distinct, flat = (_last(columns, f"judged_on.{name}") or 0 for name in ("images", "distinct", "flat"))
    if flat > 0.9 * images:
        return (
            f"{flat:,.0f} of {images:,.0f} images checked have a single color each",
            "There is nothing to learn from them: check how they are read with `opendino visualize crops`",
        )
    if distinct < 0.1 * images:
        return (
            f"only {distinct:,.0f} of {images:,.0f} images checked differ, the rest are exact copies",
            "Use images that differ; from a video take frames that are seconds apart",
        )
    return None


def _skipped_steps(columns: Columns) -> tuple[str, str] | None:
    """Evidence and cure if more than a tenth of the last hundred steps had a non-finite loss, else None."""
    last = [float(value) for value in columns["ok"][1][-100:]] if "ok" in columns else [1.0]
    skipped = sum(1 - value for value in last)
    if skipped <= len(last) / 10:
        return None
    return (
        f"{skipped:.0f} of the last {len(last)} steps had a non-finite loss and were skipped",
        "Lower --optim.lr or --optim.clip, or use --precision float32",
    )


def _rank_one(columns: Columns) -> Collapse | None:
    if not _evaluated(columns) or (rank := _last(columns, "effective_rank")) is None or rank >= RANK_ONE:
        return None
    first = columns["effective_rank"][1][0]
    return Collapse(
        "rank 1",
        f"the features of all images lie on one line: their effective rank is {rank:.2f} ({first:.2f} at the start)",
        f"Check that the images differ (opendino visualize crops). {CURE}",
    )


def _from_trained_weights(columns: Columns) -> bool:
    """Whether the run started from trained weights (--init)."""
    return any(name.endswith(".start") for name in columns)


def _evaluated(columns: Columns) -> bool:
    """Whether there was an evaluation after the first step."""
    return "effective_rank" in columns and columns["effective_rank"][0][-1] > 0


def _half_and_end(columns: Columns, name: str) -> tuple[float, float] | None:
    """Medians of a metric over a tenth of the run, halfway and at the end; None if it was not measured.

    Not at the start, where the entropy of a healthy run may rise together with the teacher's temperature.
    """
    if name not in columns:
        return None
    values = columns[name][1]
    half, tenth = len(values) // 2, max(1, len(values) // 10)
    return statistics.median(values[half : half + tenth]), statistics.median(values[-tenth:])


def _last(columns: Columns, name: str) -> float | None:
    return float(columns[name][1][-1]) if name in columns else None


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """As `core.metrics_log.columns`, from rows in memory."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name in EXAMINED:
            value = row.get(name)
            parts = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
            for key, each in parts.items():
                if isinstance(each, int | float) and math.isfinite(each):
                    steps, values = found.setdefault(key, ([], []))
                    steps.append(row["step"])
                    values.append(each)
    return found
