"""Accuracy of class scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opendino.core.accuracy import Accuracy


def true_class_rank(scores: Tensor, truth: Tensor) -> Tensor:
    """Rank of the true class: number of classes with a larger score, or with an equal score and a lower number.

    Args:
        scores: float `[Q C]`.
        truth: int64 `[Q]`, true classes; one outside 0 … C - 1 counts as always wrong.

    Returns:
        int64 `[Q]`: 0 if the true class has the top score, C if it is out of range or a score is NaN.
    """
    num = scores.shape[1]
    known = (truth >= 0) & (truth < num)
    truth = truth.where(known, 0)[:, None]
    own = scores.gather(1, truth)
    lower = torch.arange(num, device=scores.device) < truth
    known &= ~scores.isnan().any(1)
    return ((scores > own) | ((scores == own) & lower)).sum(1).where(known, num)


def accuracy(scores: Tensor, truth: Tensor) -> Accuracy:
    """Accuracy of scores float `[Q C]` for true classes int64 `[Q]`; see `true_class_rank`."""
    return accuracy_of(true_class_rank(scores, truth), truth, scores.shape[1])


def accuracy_of(ranks: Tensor, truth: Tensor, num_classes: int, most: int = 5) -> Accuracy:
    """Accuracy from ranks of the true classes.

    Args:
        ranks: int64 `[Q]`, ranks from `true_class_rank`.
        truth: int64 `[Q]`, true classes of the queries, in any numbering.
        num_classes: C, number of classes that can be predicted.
        most: Number of classes that are ranked, if fewer than five.

    Returns:
        Percentages; NaN if there are no queries.
    """
    if not len(truth):
        return Accuracy(math.nan, None, math.nan, math.nan, 0)
    correct, num = ranks < 1, len(truth)
    _, own, counts = truth.unique(return_inverse=True, return_counts=True)
    recall = torch.bincount(own, correct.double()) / counts
    return Accuracy(
        top1=100 * int(correct.sum()) / num,
        top5=100 * int((ranks < min(5, most)).sum()) / num if num_classes > 5 else None,
        balanced_accuracy=100 * float(recall.mean()),
        majority=majority(truth),
        num_queries=num,
    )


def majority(truth: Tensor) -> float:
    """Share of the most frequent class in percent; NaN if `truth` is empty."""
    return 100 * int(truth.unique(return_counts=True)[1].max()) / len(truth) if len(truth) else math.nan
