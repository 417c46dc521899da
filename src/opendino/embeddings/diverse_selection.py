"""Few images that stand for all: k-center by farthest point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def k_center(vectors: Tensor, start: Sequence[int] = (), seed: int = 0) -> Iterator[tuple[int, float]]:
    """Row after row the one that is farthest from all chosen before (Gonzalez 1985; Sener & Savarese 2018, core-set).

    However many are taken, their covering radius is at most twice the smallest possible. Deterministic: of equally far
    rows the first is taken. Each choice compares one row with all, `[M D]` · `[D]`; beside the vectors little is held.

    Args:
        vectors: float32 `[M D]` of unit length.
        start: Rows that count as chosen already.
        seed: Draws the first row where there are none.

    Yields:
        The row, and the covering radius with it: how far the farthest row is from its nearest chosen one, as Euclidean
        distance between vectors of unit length, from 0 to 2. Until all rows are chosen.
    """
    nearest = vectors.new_full((len(vectors),), -torch.inf)  # cosine to the nearest chosen; inf: is chosen
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
