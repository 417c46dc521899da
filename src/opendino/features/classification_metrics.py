"""Accuracy of class scores, and agreement of two labelings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opendino.core.accuracy import Accuracy, standard_error


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


def balanced_accuracy(predicted: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean of the recalls in percent, and its standard error in percentage points, of labels int64 `[Q]`."""
    found, counts = truth.unique(return_counts=True)
    recalls = [100 * float((predicted[truth == label] == label).double().mean()) for label in found]
    errors = [standard_error(recall, num) for recall, num in zip(recalls, counts.tolist(), strict=True)]
    return sum(recalls) / len(recalls), math.hypot(*errors) / len(recalls)


def association(one: Tensor, other: Tensor) -> float:
    """Cramér's V of two labelings int64 `[M]`, -1 unknown: 0 if independent, 1 if one follows from the other."""
    known = (one >= 0) & (other >= 0)
    if not known.any():
        return 0.0
    (_, rows), (_, columns) = (each[known].unique(return_inverse=True) for each in (one, other))
    num = int(rows.max()) + 1, int(columns.max()) + 1
    counts = torch.bincount(rows * num[1] + columns, minlength=num[0] * num[1]).view(num).double()
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    squared = float(((counts - expected) ** 2 / expected).sum() / counts.sum())
    return math.sqrt(squared / (min(num) - 1)) if min(num) > 1 else 0.0
