"""Weighted k-nearest-neighbour classification (Wu et al. 2018, arXiv:1805.01978), the protocol of DINO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opendino.core.errors import UserError


@torch.no_grad()
def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[int, tuple[float, float]]:
    """Top-1 and top-5 accuracy in percent for each k.

    Features are L2-normalised; each of the k nearest neighbours votes for its class with exp(cosine / temperature).

    Args:
        bank: float `[M D]`, the labelled features.
        bank_labels: int64 `[M]`, any non-negative numbers.
        queries: float `[Q D]`.
        query_labels: int64 `[Q]`.
        k: Numbers of neighbours; more than M counts as M.
        temperature: T above 0.
        chunk: Queries compared at a time, which bounds memory to chunk · M similarities.

    Raises:
        UserError: An empty bank or no queries.
    """
    if not len(bank) or not len(queries):
        raise UserError(f"k-NN needs features on both sides, got {len(bank)} and {len(queries)}")
    classes, bank_labels = bank_labels.unique(return_inverse=True)
    bank = torch.nn.functional.normalize(bank, dim=1).T.contiguous()
    most = min(max(k), bank.shape[1])
    top = min(5, len(classes))
    hits = {each: [0, 0] for each in k}
    for start in range(0, len(queries), chunk):
        similarity = torch.nn.functional.normalize(queries[start : start + chunk], dim=1) @ bank
        nearest, indices = similarity.topk(most, dim=1)
        votes, voters = (nearest / temperature).exp(), bank_labels[indices]
        truth = query_labels[start : start + chunk, None]
        for each in k:
            scores = votes.new_zeros(len(votes), len(classes)).scatter_add_(1, voters[:, :each], votes[:, :each])
            # Stable, so that a tie goes to the lower class, as the original's sort.
            ranked = classes[scores.sort(dim=1, descending=True, stable=True).indices[:, :top]]
            right = ranked == truth
            hits[each][0] += int(right[:, 0].sum())
            hits[each][1] += int(right[:, :each].any(1).sum())  # of k voters at most k classes are ranked
    return {each: (100 * a / len(queries), 100 * b / len(queries)) for each, (a, b) in hits.items()}
