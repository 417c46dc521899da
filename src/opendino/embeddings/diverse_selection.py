"""Choose images to label: first typical ones, then by k-center, weighted by the uncertainty of a classifier."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from opendino.features.logistic_regression import with_strength
from opendino.features.projection import clusters

_STRENGTH = 1.0
_NEIGHBORS, _CHUNK = 20, 1024
_MOST_CLUSTERS = 500  # as in TypiClust; more take long
_MOST_COMPARED = 4096  # rows of a cluster: all pairs of a large one would take a time that grows with its square


def next_to_label(
    vectors: Tensor, labeled: Mapping[int, str], num: int, seed: int = 0, device: str | torch.device = "cpu"
) -> tuple[Iterator[tuple[int, float]], Tensor | None]:
    """The images to label next: typical ones, later diverse ones that a classifier of the labels is unsure of.

    Args:
        vectors: float32 `[M D]`, L2-normalized, on the CPU.
        labeled: Row that is labeled already → its class, or "".
        num: Number of images, at most those without a label.
        seed: Random seed of the first batch.
        device: Device of the products.

    Returns:
        (row, covering radius) as `k_center` yields them, and the uncertainty of every row; None if it was not used.
    """
    if not labeled:
        return first_batch(vectors.to(device), num, seed), None
    named = {row: name for row, name in labeled.items() if name}
    unsure = uncertainty(vectors, [*named], [*named.values()]) if len({*named.values()}) > 1 else None
    weights = None if unsure is None else unsure.to(device)
    return itertools.islice(k_center(vectors.to(device), list(labeled), seed, weights), num), unsure


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


@torch.no_grad()
def typical(vectors: Tensor, num: int, start: Sequence[int] = (), seed: int = 0) -> list[int]:
    """The most typical row of each cluster, the largest clusters first (TypiClust, Hacohen et al. 2022).

    arXiv:2202.02794. There are as many clusters as rows chosen so far and now, so each new one is of a cluster without
    a chosen row. Typical is a row that is near its neighbors in the cluster, 20 at most; of a cluster of more than
    4,096 rows, a random sample of so many is compared.

    Args:
        vectors: float32 `[M D]`, L2-normalized.
        num: Number of rows to choose.
        start: Rows that are already chosen.
        seed: Random seed of the clusters.

    Returns:
        At most `num` rows: fewer if there are fewer clusters, e.g. of equal rows.
    """
    found = clusters(vectors, num + len(start), seed)  # 0 is the largest
    taken = set(found[list(start)].tolist())
    free = [number for number in range(int(found.max()) + 1) if number not in taken][:num]
    generator = torch.Generator().manual_seed(seed)
    members = [_sample((found == number).nonzero().flatten(), generator) for number in free]
    return [int(rows[_typicality(vectors[rows.to(vectors.device)]).argmax()]) for rows in members]


def first_batch(vectors: Tensor, num: int, seed: int = 0) -> Iterator[tuple[int, float]]:
    """Rows to label first, where nothing is labeled yet: typical ones, and from the 501st on the farthest.

    Args:
        vectors: float32 `[M D]`, L2-normalized.
        num: Number of rows, at most M.
        seed: Random seed of the clusters.

    Yields:
        (row, covering radius), as `k_center` does.
    """
    rows = typical(vectors, min(num, _MOST_CLUSTERS), seed=seed)
    nearest = vectors.new_full((len(vectors),), -torch.inf)  # [M], cosine to the nearest chosen row
    for row in rows:
        torch.maximum(nearest, vectors @ vectors[row], out=nearest)
        yield row, float((2 - 2 * nearest.min().clamp(-1, 1)).sqrt())
    yield from itertools.islice(k_center(vectors, rows), num - len(rows))


def _sample(rows: Tensor, generator: torch.Generator) -> Tensor:
    """At most 4,096 of the rows int64 `[N]`, chosen at random."""
    if len(rows) <= _MOST_COMPARED:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:_MOST_COMPARED]]


def _typicality(vectors: Tensor) -> Tensor:
    """Inverse of the mean distance to the nearest other rows, 20 at most: float32 `[M]` for rows `[M D]`."""
    num = min(_NEIGHBORS, len(vectors) - 1)
    parts = [(part @ vectors.T).topk(num + 1, 1).values[:, 1:] for part in vectors.split(_CHUNK)]  # without itself
    return 1 / (2 - 2 * torch.cat(parts).clamp(-1, 1)).sqrt().mean(1).clamp_min(1e-12) if num else torch.ones(1)


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
