"""Metrics of ranked lists as in image retrieval benchmarks: average precision, precision and recall at k."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

POSITIVE, NEGATIVE, JUNK = 1, 0, -1
"""Relevance of a database image to a query; junk images are ignored."""


def positive_ranks(similarity: Tensor, relevance: Tensor) -> Tensor:
    """Ranks of the positives in a query's ranked list, after junk images are removed.

    Ties are pessimistic: a positive ranks after all negatives of equal similarity. So a network that gives all images
    the same feature gets no credit for the order of the files.

    Args:
        similarity: float `[N]`, of the query to the database images.
        relevance: int `[N]` of `POSITIVE`, `NEGATIVE`, `JUNK`.

    Returns:
        int64 `[P]`, ranks from 0, ascending, on the CPU.
    """
    positives = similarity[relevance == POSITIVE].sort(descending=True).values
    negatives = similarity[relevance == NEGATIVE]
    # Count instead of sorting the full list: each negative pushes back the positives that do not exceed it.
    pushed = torch.searchsorted(positives.flip(0), negatives, right=True)
    pushes = torch.bincount(pushed, minlength=len(positives) + 1)[1:].flip(0).cumsum(0)
    return (torch.arange(len(positives), device=positives.device) + pushes).cpu()


def search(queries: Tensor, database: Tensor, relevance: Callable[[int], Tensor], chunk: int = 256) -> Iterator[Tensor]:
    """Yield `positive_ranks` of each query by cosine similarity, in order.

    Args:
        queries: float `[Q D]`, L2-normalized.
        database: float `[N D]`, L2-normalized, on the same device.
        relevance: Query number → relevance int `[N]`, on that device.
        chunk: Queries compared at a time; memory is chunk · N similarities.
    """
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ database.T
        for offset, row in enumerate(similarity):
            yield positive_ranks(row, relevance(start + offset))


def average_precision(ranks: Tensor, num_positives: int) -> float:
    """Average precision: area under the precision-recall curve by the trapezoidal rule.

    This is the rule of the evaluation code of Oxford, Paris, Holidays and Copydays. The j-th positive at rank r (both
    from 0) adds (j/r + (j+1)/(r+1)) / 2 · 1/P, with 0/0 = 1.

    Args:
        ranks: int `[≤ P]`, ranks from 0 of the positives that were found, ascending; the others add 0.
        num_positives: P, at least 1.

    Returns:
        Average precision in [0, 1].
    """
    ranks = ranks.double()
    found = torch.arange(len(ranks), dtype=torch.float64)
    before = torch.where(ranks == 0, 1.0, found / ranks.clamp_min(1))
    return float((before + (found + 1) / (ranks + 1)).sum()) / 2 / num_positives


def precision_at(ranks: Tensor, k: int) -> float:
    """Precision at k, as in revisited Oxford and Paris (Radenovic et al. 2018).

    If all positives are within the first r < k results, it is the precision at r: a query with two positives can reach
    1 at k = 10 too.

    Args:
        ranks: int `[P]`, ranks from 0 of all positives, ascending, at least one.
        k: Number of results, 1 or more.
    """
    among = min(int(ranks[-1]) + 1, k)
    return int((ranks < among).sum()) / among


def recall_at(ranks: Tensor, k: int) -> float:
    """Recall at k as in metric learning (Jégou et al. 2011): 1 if a positive is among the first k results, else 0."""
    return float(int(ranks[0]) < k)
