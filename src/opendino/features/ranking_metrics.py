"""How good a ranked list is: average precision and precision at k, as the benchmarks of image retrieval count them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

POSITIVE, NEGATIVE, JUNK = 1, 0, -1
"""What an image of the database is to a query; junk counts as absent."""


def positive_ranks(similarity: Tensor, relevance: Tensor) -> Tensor:
    """Where the positives come in a query's list, junk taken out of it first.

    Ties count against: a positive comes after every negative that is as similar. So a network to which all images are
    the same gets no credit for the order of the files.

    Args:
        similarity: float `[N]`, of the query to the images of the database.
        relevance: int `[N]` of `POSITIVE`, `NEGATIVE`, `JUNK`.

    Returns:
        int64 `[P]`, from 0, ascending; on the host.
    """
    positives = similarity[relevance == POSITIVE].sort(descending=True).values
    negatives = similarity[relevance == NEGATIVE]
    # A count in place of a sort of the whole list: each negative pushes back the positives that do not exceed it.
    pushed = torch.searchsorted(positives.flip(0), negatives, right=True)
    pushes = torch.bincount(pushed, minlength=len(positives) + 1)[1:].flip(0).cumsum(0)
    return (torch.arange(len(positives), device=positives.device) + pushes).cpu()


def search(queries: Tensor, database: Tensor, relevance: Callable[[int], Tensor], chunk: int = 256) -> Iterator[Tensor]:
    """`positive_ranks` of every query by the cosine, in order.

    Args:
        queries: float `[Q D]`, of unit length.
        database: float `[N D]`, of unit length, on the same device.
        relevance: Number of a query → int `[N]`, on that device.
        chunk: Queries compared at a time, which bounds memory to chunk · N similarities.
    """
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ database.T
        for offset, row in enumerate(similarity):
            yield positive_ranks(row, relevance(start + offset))


def average_precision(ranks: Tensor, num_positives: int) -> float:
    """Area under precision over recall by trapezoids, as in the evaluators of Oxford, Paris, Holidays and Copydays.

    The j-th positive, at rank r, both from 0, adds (j/r + (j+1)/(r+1)) / 2 · 1/P, with 0/0 taken as 1.

    Args:
        ranks: int `[≤ P]` from 0, ascending, of the positives that were found; the others add nothing.
        num_positives: P, at least 1.

    Returns:
        In [0, 1].
    """
    ranks = ranks.double()
    found = torch.arange(len(ranks), dtype=torch.float64)
    before = torch.where(ranks == 0, 1.0, found / ranks.clamp_min(1))
    return float((before + (found + 1) / (ranks + 1)).sum()) / 2 / num_positives


def precision_at(ranks: Tensor, k: int) -> float:
    """Share of positives among the first k, as in the revisited Oxford and Paris (Radenovic et al. 2018).

    Where the last positive comes earlier than k, at r, it is the share among the first r: a query with two positives
    can reach 1 at k = 10 too.

    Args:
        ranks: int `[P]` from 0, ascending, all positives, at least one.
        k: 1 or more.
    """
    among = min(int(ranks[-1]) + 1, k)
    return int((ranks < among).sum()) / among


def recall_at(ranks: Tensor, k: int) -> float:
    """1 if there is a positive among the first k, else 0 (the recall@k of metric learning, Jégou et al. 2011)."""
    return float(int(ranks[0]) < k)
