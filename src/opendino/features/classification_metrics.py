"""What scores of classes are worth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opendino.core.accuracy import Accuracy


def place(scores: Tensor, truth: Tensor) -> Tensor:
    """How many classes come before the true one: those with a larger score, and lower ones with the same.

    Args:
        scores: float `[Q C]`.
        truth: int64 `[Q]`; anything outside 0 … C - 1 is a class that cannot be found.

    Returns:
        int64 `[Q]`, 0 for right at first, C where it cannot be found or the scores are not numbers.
    """
    num = scores.shape[1]
    known = (truth >= 0) & (truth < num)
    truth = truth.where(known, 0)[:, None]
    own = scores.gather(1, truth)
    lower = torch.arange(num, device=scores.device) < truth
    known &= ~scores.isnan().any(1)
    return ((scores > own) | ((scores == own) & lower)).sum(1).where(known, num)


def accuracy(scores: Tensor, truth: Tensor) -> Accuracy:
    """The accuracy of scores, `place`'s arguments."""
    return accuracy_of(place(scores, truth), truth, scores.shape[1])


def accuracy_of(places: Tensor, truth: Tensor, num_classes: int, most: int = 5) -> Accuracy:
    """The accuracy of places in a ranking.

    Args:
        places: int64 `[Q]`, as `place` returns them.
        truth: int64 `[Q]`, the queries' classes by any numbers.
        num_classes: C, how many can be answered.
        most: Classes that are ranked at all, if fewer than five.

    Returns:
        NaN for what needs queries where there are none.
    """
    if not len(truth):
        return Accuracy(math.nan, None, math.nan, math.nan, 0)
    right, num = places < 1, len(truth)
    _, own, counts = truth.unique(return_inverse=True, return_counts=True)
    recall = torch.bincount(own, right.double()) / counts
    return Accuracy(
        top1=100 * int(right.sum()) / num,
        top5=100 * int((places < min(5, most)).sum()) / num if num_classes > 5 else None,
        balanced_accuracy=100 * float(recall.mean()),
        majority=majority(truth),
        num_queries=num,
    )


def majority(truth: Tensor) -> float:
    """Share of the most frequent class, in percent; NaN of nothing."""
    return 100 * int(truth.unique(return_counts=True)[1].max()) / len(truth) if len(truth) else math.nan
