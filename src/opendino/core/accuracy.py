"""Accuracies with what is needed to interpret them: standard error, balanced accuracy, majority-class baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_TOP5 = "top-5 is not shown: with five classes or fewer it is always 100%"


@dataclass(frozen=True)
class Accuracy:
    """Classification accuracy in percent, and the numbers to compare it with.

    Attributes:
        top1: Top-1 accuracy over the queries, 0 to 100.
        top5: Top-5 accuracy, 0 to 100; None with five classes or fewer, where it is always 100.
        balanced_accuracy: Mean of the per-class recalls, 0 to 100; guessing gives 100 / C for any class sizes.
        majority: Share of the most frequent class among the queries: the top-1 of always predicting that class.
        num_queries: Number of classified images.
    """

    top1: float
    top5: float | None
    balanced_accuracy: float
    majority: float
    num_queries: int

    def __str__(self) -> str:
        return _format(self.top1, self.num_queries, self.balanced_accuracy)

    @property
    def sentence(self) -> str:
        """The accuracy with its 95 % interval and the share of the most frequent class."""
        low, high = interval(self.top1, self.num_queries)
        return (
            f"{self.top1:.1f}% on {self.num_queries:,} images (95% interval {low:.1f} to {high:.1f}%), balanced "
            f"{self.balanced_accuracy:.1f}%; always predicting the most frequent class gives {self.majority:.1f}%"
        )

    @property
    def standard_error(self) -> float:
        """Standard error of `top1`, in percentage points."""
        return standard_error(self.top1, self.num_queries)

    @property
    def fields(self) -> dict[str, Any]:
        """All values as a dict, for scripts and JSON."""
        return self.__dict__ | {"standard_error": self.standard_error}


def standard_error(percent: float, num: float) -> float:
    """Standard error of a proportion from `num` independent trials: 100 · sqrt(p (1 - p) / n), in percentage points.

    At p = 0 or 1 the formula gives 0, as if more trials could not change the result. There p = (p n + 1) / (n + 2) is
    used instead: one success and one failure are added.

    Args:
        percent: The proportion, 0 to 100.
        num: Number of trials; 0 gives NaN.
    """
    if not num:
        return math.nan
    p = percent / 100
    if p in (0, 1):
        p = (p * num + 1) / (num + 2)
    return 100 * math.sqrt(p * (1 - p) / num)


def interval(percent: float, num: int) -> tuple[float, float]:
    """95 % confidence interval (Wilson's) of a proportion from `num` independent trials, in percent.

    Args:
        percent: The proportion, 0 to 100.
        num: Number of trials; 0 gives 0 to 100.
    """
    if not num:
        return 0.0, 100.0
    p, z2 = percent / 100, 1.96**2
    center, spread = p + z2 / (2 * num), 1.96 * math.sqrt(p * (1 - p) / num + z2 / (4 * num**2))
    scale = 100 / (1 + z2 / num)
    return max(0.0, scale * (center - spread)), min(100.0, scale * (center + spread))


def chance_of_difference(one: float, other: float, num: int) -> float:
    """Difference between two accuracies (percent, `num` trials each) that chance explains: two standard errors."""
    return 2 * math.hypot(standard_error(one, num), standard_error(other, num)) if num else 0.0


BALANCED = {"knn": "balanced_accuracy", "accuracy": "accuracy_balanced"}
"""Kind of accuracy → the metric that holds its balanced accuracies, in a row of metrics.jsonl."""


def format_accuracies(found: Mapping[str, Any], kind: str = "knn") -> dict[str, str]:
    """Format a run's accuracies: name of the network → "81.2% ± 2.1, balanced 79.0%".

    Args:
        found: A row of a run's metrics, or its result. Rows of older versions have no standard error and no balanced
            accuracy; these are left out.
        kind: "knn", or "accuracy" for trained classifiers.
    """
    num, balanced = found.get("num_queries"), found.get(BALANCED[kind]) or {}
    return {name: _format(value, num, balanced.get(name)) for name, value in (found.get(kind) or {}).items()}


def _format(percent: float, num: float | None, balanced: float | None) -> str:
    text = f"{percent:.1f}%" + (f" ± {standard_error(percent, num):.1f}" if num else "")
    return text if balanced is None else f"{text}, balanced {balanced:.1f}%"


def knn_title(found: Mapping[str, Any]) -> str:
    """What the k-NN accuracy of an evaluation is called: whether its classes are just sub-folders."""
    return "k-NN" if folders_confirmed(found) else "k-NN by folders (unconfirmed)"


def baseline_text(found: Mapping[str, Any]) -> str:
    """One sentence that says how to read the output of `format_accuracies`; empty if the row lacks the numbers."""
    if not found.get("num_queries") or found.get("majority") is None:
        return ""
    unconfirmed = "" if folders_confirmed(found) else "; the classes are sub-folders, not confirmed by --labels folders"
    return (
        f"{found['num_queries']:,.0f} queries; ± is one standard error; balanced: mean over the classes; "
        f"always predicting the most frequent class gives {found['majority']:.1f}%{unconfirmed}"
    )


def folders_confirmed(found: Mapping[str, Any]) -> bool:
    """Whether the k-NN accuracy of an evaluation may decide a verdict: not if its classes are just sub-folders."""
    return (found.get("judged_on") or {}).get("confirmed", 1) != 0
