"""Detects collapses from a run's metrics and says how to fix them.

Four kinds, distinguished by metrics of every step (Caron et al. 2021, arXiv:2104.14294, section 5.3 and figure 7):
    uniform   the teacher's output is uniform over the prototypes: its entropy stays at ln K, the KL to the student at 0
    one-hot   the teacher assigns every image to the same prototype: the entropy of its mean output stays near 0
    constant  the teacher's output is the same for every image: its mean output has no more entropy than single ones
    dead      different images get the same features, or the same projections in the loss
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opendino.core import accuracy

PATIENCE = 50
"""Number of steps whose median must look collapsed; a tenth of the run if that is less, but at least ten."""

_UNIFORM_FRAC = 0.99
_ONE_HOT_FRAC = 0.05
_CONSTANT_FRAC = 0.002
_DEAD_STD = {"feature_spread": 0.01, "projection_spread": 0.05}
_OF_PATCHES = "patch_"
_SIGNS = ("entropy_frac", "marginal_frac", *_DEAD_STD)
SIGNS = (*_SIGNS, *(_OF_PATCHES + name for name in _SIGNS))
"""The metrics of a step that `diagnose` uses."""
EXAMINED = (
    "loss", "entropy_frac", "effective_rank", "knn", "balanced_accuracy", "majority", "num_queries", "judged_on",
)  # fmt: skip
"""The metrics that `examine` uses to decide whether a run has learned."""
COLLAPSES = ("uniform", "one-hot", "constant", "dead", "rank 1")
NOT_SHOWN = "not shown to have learned"
_RANK_ONE = 1.05
_NO_OPINION_FRAC = 0.98
Columns = Mapping[str, tuple[Any, ...]]
"""Metric name (nested: "knn.teacher") → (steps, values, ...), as `core.metrics_log.columns` returns it."""


@dataclass(frozen=True)
class Verdict:
    """A diagnosis of a run: a collapse, another problem, or healthy.

    Attributes:
        name: "uniform", "one-hot", "constant" or "dead"; from `examine` also the other names listed there.
        evidence: The metrics it is based on, one line.
        cure: What to change, one line; empty if nothing.
    """

    name: str
    evidence: str
    cure: str


class Monitor:
    """Diagnoses the medians of the last `patience` steps.

    Medians, because an unstable run jumps: the prototype that wins for every image may change from step to step.

    Args:
        total_steps: Length of the run; see `PATIENCE`.
    """

    def __init__(self, total_steps: int) -> None:
        self.patience = max(10, min(PATIENCE, total_steps // 10))
        self._rows: deque[dict[str, float]] = deque(maxlen=self.patience)

    def watch(self, row: Mapping[str, Any]) -> Verdict | None:
        """Add a step's metrics and return the current verdict, see `diagnose`. Missing and null metrics are ignored."""
        known = {name: value for name in SIGNS if (value := row.get(name)) is not None}
        self._rows.append({name: value for name, value in known.items() if math.isfinite(value)})
        if len(self._rows) < self.patience:
            return None
        columns = {name: [each[name] for each in self._rows if name in each] for name in SIGNS}
        return diagnose({name: statistics.median(values) for name, values in columns.items() if values})


def diagnose(row: Mapping[str, float]) -> Verdict | None:
    """Diagnose a collapse from the metrics of one step; None for healthy.

    Args:
        row: Any of `entropy_frac`, mean entropy of the teacher's outputs divided by ln K, 0 to 1; `marginal_frac`,
            entropy of its mean output divided by ln K, 0 to 1; `feature_spread` and `projection_spread`, standard
            deviation of L2-normalized features and projections over the images, 0 (all equal) to about 1. And the same
            of patches, with the prefix "patch_".
    """
    of_patches = {name.removeprefix(_OF_PATCHES): x for name, x in row.items() if name.startswith(_OF_PATCHES)}
    if (found := _diagnose(row)) or not of_patches:
        return found
    found = _diagnose(of_patches)
    return found and replace(found, evidence=f"of the patches, {found.evidence}")


def _diagnose(row: Mapping[str, float]) -> Verdict | None:
    entropy, marginal = row.get("entropy_frac"), row.get("marginal_frac")
    if marginal is not None and marginal < _ONE_HOT_FRAC:
        return Verdict(
            "one-hot",
            f"the entropy of the teacher's mean output is {marginal:.1%} of ln K",
            "One prototype wins for every image: keep centering on, lower center_momentum towards 0.9, "
            "or raise teacher_temp_start",
        )
    if entropy is not None and entropy > _UNIFORM_FRAC:
        return Verdict(
            "uniform",
            f"the teacher's entropy is {entropy:.1%} of ln K",
            "The teacher's output is uniform: keep sharpening on, lower teacher_temp (0.04, then 0.02) or the learning "
            "rate",
        )
    for what, least in _DEAD_STD.items():
        spread = row.get(what)
        if spread is not None and spread < least:
            return Verdict(
                "dead",
                f"the standard deviation of {what.partition('_')[0]}s over different images is only {spread:.4f}",
                "Lower the learning rate, lengthen its warm-up, or clip gradients harder (clip = 0.3); "
                "BYOL needs its predictor and a teacher that moves slowly",
            )
    # marginal - entropy is the mutual information of image and prototype, divided by ln K.
    if entropy is not None and marginal is not None and marginal - entropy < _CONSTANT_FRAC:
        return Verdict(
            "constant",
            f"the teacher's output carries {max(0.0, marginal - entropy):.2%} of ln K of information about the image",
            "The teacher's output is the same for every image: keep both centering and sharpening on",
        )
    return None


def examine(rows: Sequence[Mapping[str, Any]], total_steps: int) -> Verdict:
    """Diagnose a run from the rows of its metrics.jsonl, by the same rules that a run applies while it trains.

    Args:
        rows: Rows of steps and evaluations, in order.
        total_steps: Length of the run.

    Returns:
        A verdict named "constant images" or "duplicate images" if there is nothing to learn from; "uniform", "one-hot",
        "constant", "dead" or "rank 1" if the run is collapsed at the end; "skipped steps" if more than a tenth of the
        last hundred had a non-finite loss; "too early" after too few steps; "not shown to have learned" for a finished
        run; else "healthy".
    """
    monitor, steps = Monitor(total_steps), [row for row in rows if "loss" in row]
    standing, since = None, 0
    for row in steps:
        verdict = monitor.watch(row)
        if verdict is not None and (standing is None or standing.name != verdict.name):
            since = row["step"]
        standing = verdict
    done = steps[-1]["step"] if steps else 0
    columns = _columns(rows)
    found = useless_images(columns)
    if found is None and standing is not None:
        found = Verdict(standing.name, f"since step {since} of {total_steps}, {standing.evidence}", standing.cure)
    num_skipped = sum(not row.get("ok", True) for row in steps[-100:])
    if found is None and num_skipped > len(steps[-100:]) / 10:
        found = Verdict(
            "skipped steps",
            f"{num_skipped} of the last {len(steps[-100:])} steps had a non-finite loss and were skipped",
            "Lower --optim.lr or --optim.clip, or use --precision float32",
        )
    if found is None and len(steps) < monitor.patience:
        found = Verdict("too early", f"{len(steps)} of {total_steps} steps are too few to tell", "")
    return found or conclude(columns, done, total_steps)


def outcome(found: Verdict, collapse: str | None) -> str:
    """Result of a finished run: "learned", "not shown to have learned" or "collapsed: NAME"."""
    if collapse:
        return f"collapsed: {collapse}"
    return "learned" if found.name == "healthy" else NOT_SHOWN


def conclude(columns: Columns, done: int, total_steps: int) -> Verdict:
    """Diagnose a run whose steps show no collapse from its evaluations.

    Args:
        columns: The metrics in `EXAMINED`.
        done: Steps done.
        total_steps: Length of the run; only a finished run can be "not shown to have learned".

    Returns:
        A verdict named "constant images", "duplicate images", "rank 1", "not shown to have learned" or "healthy".
    """
    if found := useless_images(columns) or _rank_one(columns):
        return found
    learned, evidence = _by_evaluations(columns)
    if done < total_steps:
        return Verdict("healthy", f"no collapse in {done} of {total_steps} steps; {evidence}", "")
    if learned:
        return Verdict("healthy", f"after all {total_steps} steps {evidence}; no collapse", "")
    return Verdict(
        NOT_SHOWN,
        f"after all {total_steps} steps {evidence}",
        "Train longer; check with `opendino visualize crops` that the views do not share a shortcut (constant color, "
        "watermark); try a smaller network or a lower momentum; give more labeled images with --val",
    )


def _by_evaluations(columns: Columns) -> tuple[bool, str]:
    """Whether the run has learned, and the evidence: k-NN accuracy if its classes are known to be classes."""
    by_labels = _by_labels(columns)
    if by_labels and _last(columns, "judged_on.confirmed") != 0:
        return by_labels
    learned, evidence = _by_label_free_signs(columns)
    if by_labels:
        evidence += f". For information, with sub-folders as classes (--labels folders if they are): {by_labels[1]}"
        if color := _last(columns, "judged_on.color"):
            evidence += f"; {told_apart_by_color(color)}"
    return learned, evidence


def told_apart_by_color(percent: float) -> str:
    """Warning that sub-folders are told apart by color, with the accuracy of k-NN on color histograms in percent."""
    return f"folders are told apart by color alone ({percent:.0f}%): they may be dates, devices or batches"


def useless_images(columns: Columns) -> Verdict | None:
    """A verdict if almost all images are of one color ("constant images") or copies ("duplicate images"), else None."""
    seen = {name: _last(columns, f"judged_on.{name}") or 0 for name in ("images", "distinct", "flat")}
    if seen["flat"] > 0.9 * seen["images"]:
        return Verdict(
            "constant images",
            f"{seen['flat']:,.0f} of {seen['images']:,.0f} images checked have a single color each",
            "There is nothing to learn from them: check how they are read with `opendino visualize crops`",
        )
    if seen["distinct"] < 0.1 * seen["images"]:
        return Verdict(
            "duplicate images",
            f"only {seen['distinct']:,.0f} of {seen['images']:,.0f} images checked differ, the rest are exact copies",
            "Use images that differ; from a video take frames that are seconds apart",
        )
    return None


def _rank_one(columns: Columns) -> Verdict | None:
    rank = _last(columns, "effective_rank")
    if rank is None or rank >= _RANK_ONE:
        return None
    return Verdict(
        "rank 1",
        f"the features of all images lie on one line: their effective rank is {rank:.2f} "
        f"(at the start {columns['effective_rank'][1][0]:.2f})",
        "Check that the images differ (opendino visualize crops); lower the learning rate, or lengthen its warm-up",
    )


def _by_labels(columns: Columns) -> tuple[bool, str] | None:
    """Whether k-NN accuracy is significantly above that of the initial network, and the evidence; None if unlabeled."""
    names = [name.partition(".")[2] for name in columns if name.startswith("knn.")]
    first = next((name for name in ("start", "untrained") if name in names), None)
    if first is None:
        return None
    best, num = names[0], int(_last(columns, "num_queries") or 0)
    row: dict[str, Any] = {"num_queries": num}
    for kind in ("knn", "balanced_accuracy"):
        row[kind] = {name: value for name in (best, first) if (value := _last(columns, f"{kind}.{name}")) is not None}
    after, before = row["knn"][best], row["knn"][first]
    chance = accuracy.chance_of_difference(before, after, num)
    shown = accuracy.format_accuracies(row)
    evidence = f"k-NN is {shown[best]} ({'at the start' if first == 'start' else 'untrained'}: {shown[first]})"
    if num:
        evidence += f", on {num:,} queries (differences up to {chance:.1f} points may be chance; "
        evidence += f"most frequent class: {_last(columns, 'majority') or 0:.1f}%)"
    balanced = row["balanced_accuracy"]
    return after - before > chance and (len(balanced) < 2 or balanced[best] > balanced[first]), evidence


def _by_label_free_signs(columns: Columns) -> tuple[bool, str]:
    """Whether the label-free metrics look like learning, and the evidence; without labels there is no proof."""
    signs, against = [], False
    rank = columns.get("effective_rank")
    if rank is None or len(rank[1]) < 2:
        return False, "there are no evaluations to show it: --eval-images was 0, or there was only one evaluation"
    signs.append(f"effective rank {rank[1][0]:.1f} at the start, {rank[1][-1]:.1f} at the end")
    against = rank[1][-1] < rank[1][0]
    if entropy := _half_and_end(columns, "entropy_frac"):
        signs.append(f"the teacher's entropy {entropy[1]:.0%} of ln K")
        against |= entropy[1] >= _NO_OPINION_FRAC and entropy[1] > entropy[0] - 0.002
    if loss := _half_and_end(columns, "loss"):
        signs.append(f"loss {loss[0]:.2f} halfway, {loss[1]:.2f} at the end")
        against |= loss[1] > loss[0]
    return not against, f"without labels there are signs only: {', '.join(signs)}"


def _half_and_end(columns: Columns, name: str) -> tuple[float, float] | None:
    """Medians of a metric over a tenth of the run, halfway and at the end; None if it was not measured.

    Not at the start, where a healthy loss may rise together with the teacher's entropy and temperature.
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
