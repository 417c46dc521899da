"""Accuracies, each with the numbers that say what it means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_TOP5 = "top-5 is not shown: of five classes or fewer every answer would be right"


@dataclass(frozen=True)
class Accuracy:
    """How often the true class was found, in percent, and what to compare that with.

    Attributes:
        top1: Share of the queries whose true class came first.
        top5: Share whose true class was among the first five; None where there are five classes or fewer: all answers
            would be right.
        balanced_accuracy: Mean over the queries' classes of the share found of each: 100 / C for guessing, however
            unequal the classes.
        majority: Share of the most frequent class among the queries: the top-1 of always answering that.
        num_queries: How many were classified.
    """

    top1: float
    top5: float | None
    balanced_accuracy: float
    majority: float
    num_queries: int

    def __str__(self) -> str:
        return _told(self.top1, self.num_queries, self.balanced_accuracy)

    @property
    def standard_error(self) -> float:
        """Of `top1`, in points."""
        return standard_error(self.top1, self.num_queries)

    @property
    def fields(self) -> dict[str, Any]:
        """All of it, for scripts."""
        return self.__dict__ | {"standard_error": self.standard_error}


def standard_error(percent: float, num: float) -> float:
    """Of a share of `num` independent trials, in points: 100 · sqrt(p (1 - p) / n).

    Of none or all of them that would be 0, as if more trials could not change it: then p is taken as if one more had
    gone well and one more had not.
    """
    if not num:
        return math.nan
    p = percent / 100
    if p in (0, 1):
        p = (p * num + 1) / (num + 2)
    return 100 * math.sqrt(p * (1 - p) / num)


def chance_of_difference(one: float, other: float, num: int) -> float:
    """How far apart two shares of `num` trials each, in percent, may be by chance: two standard errors, in points."""
    return 2 * math.hypot(standard_error(one, num), standard_error(other, num)) if num else 0.0


BALANCED = {"knn": "balanced_accuracy", "accuracy": "accuracy_balanced"}
"""Where a run's row of measurements holds the balanced accuracies of a kind."""


def shown(found: Mapping[str, Any], kind: str = "knn") -> dict[str, str]:
    """A run's accuracies for people: name of the network → "81.2% ± 2.1, balanced 79.0%", less what is not known.

    Args:
        found: A row of a run's measurements, or its result; those of older versions hold the bare accuracies.
        kind: "knn", or "accuracy" of classifiers.
    """
    num, balanced = found.get("num_queries"), found.get(BALANCED[kind]) or {}
    return {name: _told(value, num, balanced.get(name)) for name, value in (found.get(kind) or {}).items()}


def _told(percent: float, num: float | None, balanced: float | None) -> str:
    told = f"{percent:.1f}%" + (f" ± {standard_error(percent, num):.1f}" if num else "")
    return told if balanced is None else f"{told}, balanced {balanced:.1f}%"


def yardstick(found: Mapping[str, Any]) -> str:
    """What `shown` is to be compared with, a sentence; empty where it is not known."""
    if not found.get("num_queries") or found.get("majority") is None:
        return ""
    return (
        f"{found['num_queries']:,.0f} queries; ± is one standard error; balanced: mean over the classes; "
        f"always answering the most frequent class would give {found['majority']:.1f}%"
    )
