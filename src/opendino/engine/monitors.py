"""Is the run well? Names a collapse, and its cure.

Four ways to fail, told apart by numbers every step leaves behind (Caron et al. 2021, section 5.3 and figure 7):
    uniform   the teacher says the same of every prototype: its entropy sits at ln K, the KL to the student at 0
    one-hot   the teacher gives every image to the same prototype: the entropy of its mean output sits near 0
    constant  the teacher says the same of every image, whatever that is: its mean output has no more entropy than each
    dead      different images come out the same: their features, or the projections that the loss compares
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PATIENCE = 50
"""Steps over which the median must look collapsed; a tenth of the run where that is shorter, but never below ten."""

_UNIFORM_FRAC = 0.99
_ONE_HOT_FRAC = 0.05
_CONSTANT_FRAC = 0.002
_DEAD_SPREAD = {"feature_spread": 0.01, "projection_spread": 0.05}
SIGNS = ("entropy_frac", "marginal_frac", *_DEAD_SPREAD)
"""The numbers of a step's row that a diagnosis is made of."""


@dataclass(frozen=True)
class Verdict:
    """What a run suffers from, or that it is well.

    Attributes:
        name: "uniform", "one-hot", "constant" or "dead"; of a whole run also what `examine` says.
        evidence: The numbers, one line.
        cure: What to change, one line.
    """

    name: str
    evidence: str
    cure: str


class Monitor:
    """Watches a run's rows: the diagnosis of the medians over the last `patience` of them.

    Medians, since an unstable run jumps: a prototype that wins everywhere now may have lost to another a step later.
    """

    def __init__(self, total_steps: int) -> None:
        self.patience = max(10, min(PATIENCE, total_steps // 10))
        self._rows: deque[dict[str, float]] = deque(maxlen=self.patience)

    def watch(self, row: Mapping[str, Any]) -> Verdict | None:
        """The verdict after one more step's numbers, see `diagnose`. What is missing or null is passed over."""
        known = {name: value for name in SIGNS if (value := row.get(name)) is not None}
        self._rows.append({name: value for name, value in known.items() if math.isfinite(value)})
        if len(self._rows) < self.patience:
            return None
        columns = {name: [each[name] for each in self._rows if name in each] for name in SIGNS}
        return diagnose({name: statistics.median(values) for name, values in columns.items() if values})


def diagnose(row: Mapping[str, float]) -> Verdict | None:
    """What one step's numbers look like; None for healthy.

    Args:
        row: `entropy_frac`, the teacher's entropy over ln K; `marginal_frac`, the entropy of its mean output over
            ln K; `feature_spread`, the standard deviation of L2-normalised features, 0 (all equal) to about 1.
    """
    entropy, marginal = row.get("entropy_frac"), row.get("marginal_frac")
    if marginal is not None and marginal < _ONE_HOT_FRAC:
        return Verdict(
            "one-hot",
            f"the teacher's mean output has {marginal:.1%} of the entropy it could have",
            "One prototype wins for every image: keep centring on, lower center_momentum towards 0.9, "
            "or raise teacher_temp_start",
        )
    if entropy is not None and entropy > _UNIFORM_FRAC:
        return Verdict(
            "uniform",
            f"the teacher's entropy is {entropy:.1%} of ln K",
            "The teacher says nothing: keep sharpening on, lower teacher_temp (0.04, then 0.02) or the learning rate",
        )
    for what, least in _DEAD_SPREAD.items():
        spread = row.get(what)
        if spread is not None and spread < least:
            return Verdict(
                "dead",
                f"{what.partition('_')[0]}s of different images differ by a standard deviation of {spread:.4f}",
                "Lower the learning rate, lengthen its warm-up, or clip gradients harder (clip = 0.3); "
                "BYOL needs its predictor and a teacher that moves slowly",
            )
    if entropy is not None and marginal is not None and marginal - entropy < _CONSTANT_FRAC:
        return Verdict(
            "constant",
            f"the teacher's outputs share {max(0.0, marginal - entropy):.2%} of ln K with which image it sees",
            "The teacher says the same of every image: keep centring and sharpening both on",
        )
    return None


def examine(rows: Sequence[Mapping[str, Any]], total_steps: int) -> Verdict:
    """What the rows of a run's metrics.jsonl say of it, by the same rules that a run applies to itself.

    Args:
        rows: In order; rows of steps and of evaluations.
        total_steps: Length of the run.

    Returns:
        "uniform", "one-hot", "constant" or "dead" where a collapse stands at the end; else "void steps" (a tenth of the
        last hundred had no finite loss), "not learning" (no better than the network was at first), "too early"
        (too few steps to tell) or "healthy".
    """
    monitor, steps = Monitor(total_steps), [row for row in rows if "loss" in row]
    standing, since = None, 0
    for row in steps:
        verdict = monitor.watch(row)
        if verdict is not None and (standing is None or standing.name != verdict.name):
            since = row["step"]
        standing = verdict
    done = steps[-1]["step"] if steps else 0
    if standing is not None:
        return Verdict(standing.name, f"since step {since} of {total_steps}, {standing.evidence}", standing.cure)
    void = sum(not row.get("ok", True) for row in steps[-100:])
    if void > len(steps[-100:]) / 10:
        return Verdict(
            "void steps",
            f"{void} of the last {len(steps[-100:])} steps had a loss that is not finite, and changed nothing",
            "Lower --optim.lr or --optim.clip, or take --precision float32",
        )
    if len(steps) < monitor.patience:
        return Verdict("too early", f"{len(steps)} of {total_steps} steps are too few to tell", "")
    knn = next((row["knn"] for row in reversed(rows) if row.get("knn")), {})
    best, first = next(iter(knn.values()), 0.0), knn.get("start", knn.get("untrained"))
    name = "at the start" if "start" in knn else "untrained"
    if done == total_steps and first is not None and best <= first:
        return Verdict(
            "not learning",
            f"after all {total_steps} steps k-NN is {best:.1f} %, and was {first:.1f} % {name}",
            "Train longer; see whether the views share what you are after, and not a colour or a stamp (show crops); "
            "try a smaller network or a lower momentum",
        )
    shown = f"k-NN {best:.1f} % against {first:.1f} % {name}; " if first is not None else ""
    return Verdict("healthy", f"{shown}no collapse in {done} of {total_steps} steps", "")
