"""Choose images to label: k-center by farthest-point sampling, weighted by the uncertainty of a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from opendino.features.logistic_regression import with_strength

_STRENGTH = 1.0


def next_to_label(
    vectors: Tensor, labeled: Mapping[int, str], seed: int = 0, device: str | torch.device = "cpu"
) -> tuple[Iterator[tuple[int, float]], Tensor | None]:
    """The images to label next: diverse, and with labels of two classes those that a classifier is unsure of first.

    Args:
        vectors: float32 `[M D]`, L2-normalized, on the CPU.
        labeled: Row that is labeled already → its class, or "".
        seed: Random seed for the first row if none is labeled.
        device: Device of the products.

    Returns:
        (row, covering radius) as `k_center` yields them, and the uncertainty of every row; None if it was not used.
    """
    named = {row: name for row, name in labeled.items() if name}
    unsure = uncertainty(vectors, [*named], [*named.values()]) if len({*named.values()}) > 1 else None
    weights = None if unsure is None else unsure.to(device)
    return k_center(vectors.to(device), list(labeled), seed, weights), unsure


@torch.no_grad()
def k_center(
    vectors: Tensor, start: Sequence[int] = (), seed: int = 0, weights: Tensor | None = None
) -> Iterator[tuple[int, float]]:
    """Greedy k-center: repeatedly choose the row farthest from all chosen rows (Gonzalez 1985; Sener & Savarese 2018).

    The covering radius of any prefix is at most twice the smallest possible. Deterministic: ties go to the first row.
    Each choice costs one product `[M D]` · `[D]`; extra memory is `[M]`.

    Args:
        vectors: float32 `[M D]`, L2-normalized.
        start: Rows that are already chosen.
        seed: Random seed for the first row if `start` is empty.
        weights: float32 `[M]`, 0 or more: the row with the largest weight times distance is chosen instead.

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
            row = _next(nearest, weights)
        torch.maximum(nearest, vectors @ vectors[row], out=nearest)
        nearest[row] = torch.inf
        yield row, float((2 - 2 * nearest.min().clamp(-1, 1)).sqrt())


def _next(nearest: Tensor, weights: Tensor | None) -> int:
    """The row that is farthest from the chosen ones, from the cosines to them; the first of equal ones."""
    if weights is None:
        return int((nearest == nearest.min()).nonzero()[0])
    merit = weights * (2 - 2 * nearest.clamp(-1, 1)).sqrt()
    merit[nearest == torch.inf] = -1
    return int((merit == merit.max()).nonzero()[0])


def uncertainty(vectors: Tensor, rows: Sequence[int], classes: Sequence[str]) -> Tensor:
    """How unsure a logistic regression of some labeled rows is of every row.

    Its penalty is fixed: only the order matters here, and cross-validation would take many times as long.

    Args:
        vectors: float32 `[M D]`.
        rows: Labeled rows.
        classes: Their classes; two or more must occur.

    Returns:
        float32 `[M]`: 1 minus the difference of the two largest probabilities, so 1 where two classes are equally
        probable.
    """
    names = sorted(set(classes))
    labels = torch.tensor([names.index(name) for name in classes])
    weight, bias = with_strength(vectors[list(rows)], labels, len(names), _STRENGTH)
    largest = (vectors @ weight.T + bias).softmax(1).topk(2, 1).values
    return 1 - (largest[:, 0] - largest[:, 1])
