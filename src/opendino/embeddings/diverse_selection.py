"""Diverse subset selection: k-center by farthest-point sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def k_center(vectors: Tensor, start: Sequence[int] = (), seed: int = 0) -> Iterator[tuple[int, float]]:
    """Greedy k-center: repeatedly choose the row farthest from all chosen rows (Gonzalez 1985; Sener & Savarese 2018).

    The covering radius of any prefix is at most twice the smallest possible. Deterministic: ties go to the first row.
    Each choice costs one product `[M D]` · `[D]`; extra memory is `[M]`.

    Args:
        vectors: float32 `[M D]`, L2-normalized.
        start: Rows that are already chosen.
        seed: Random seed for the first row if `start` is empty.

    Yields:
        (row, covering radius) until all rows are chosen. The covering radius is the largest Euclidean distance of a row
        to its nearest chosen row, in [0, 2].
    """
    nearest = vectors.new_full((len(vectors),), -torch.inf)  # [M], cosine to the nearest chosen row; inf: chosen
    for row in start:
        torch.maximum(nearest, vectors @ vectors[row], out=nearest)
    nearest[list(start)] = torch.inf
    for number in range(len(vectors) - len(set(start))):
        if number == 0 and not len(start):
            row = int(torch.randint(len(vectors), (), generator=torch.Generator().manual_seed(seed)))
        else:
            row = int((nearest == nearest.min()).nonzero()[0])
        torch.maximum(nearest, vectors @ vectors[row], out=nearest)
        nearest[row] = torch.inf
        yield row, float((2 - 2 * nearest.min().clamp(-1, 1)).sqrt())
