"""Do two sets of vectors differ? The nearest-neighbor two-sample test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opendino.core.progress import track
from opendino.features.outlier_scores import other_neighbors
from opendino.features.permutation_test import p_value

_AT_ONCE = 2**24  # neighbors compared at a time


@dataclass(frozen=True)
class TwoSampleTest:
    """Result of `neighbor_test`.

    Attributes:
        p: Probability of a difference this large or larger if both sets come from one distribution, in (0, 1].
        own_frac: For each of the two sets, the mean share of its images' neighbors that are of the same set, 0 to 1.
        expected_frac: What the two shares would be on average if the sets did not differ.
        own: float `[A + B]`, the share for each image.
        neighbors: int64 `[A + B k]`, the neighbors of each image among both.
    """

    p: float
    own_frac: tuple[float, float]
    expected_frac: tuple[float, float]
    own: Tensor
    neighbors: Tensor


@torch.no_grad()
def neighbor_test(a: Tensor, b: Tensor, k: int = 10, permutations: int = 1000, seed: int = 0) -> TwoSampleTest:
    """Compare two sets by the nearest neighbors of each image among both (Schilling 1986; Henze 1988).

    The statistic is the sum of the two shares of neighbors that are of the image's own set, so that a small set counts
    as much as a large one. Its distribution without a difference comes from exchanging images between the sets at
    random; the neighbors stay the same, so they are searched once.

    Args:
        a: float `[A D]`, each with a direction (see `nearest_neighbors.directed`); A ≥ 1.
        b: float `[B D]`, B ≥ 1, on the same device.
        k: Number of neighbors, at most A + B - 1.
        permutations: Number of random exchanges, at least 1.
        seed: Of the exchanges.
    """
    pooled = torch.cat([a, b])
    k = min(k, len(pooled) - 1)
    rows = other_neighbors(pooled, k)[1].cpu()  # [M k]
    in_b = torch.arange(len(pooled)) >= len(a)  # [M]
    own = (in_b[rows] == in_b[:, None]).float().mean(1)
    generator = torch.Generator().manual_seed(seed)
    num = max(1, _AT_ONCE // rows.numel())
    statistics = torch.cat(
        [
            _statistics(rows, in_b, part, generator)
            for part in track(torch.arange(permutations).split(num), "permutations", permutations, num)
        ]
    )
    observed = float(_shares(rows, in_b[None]).sum())
    shares = (float(own[~in_b].double().mean()), float(own[in_b].double().mean()))
    others = len(pooled) - 1
    expected = ((len(a) - 1) / others, (len(b) - 1) / others)
    return TwoSampleTest(p_value(observed, statistics, generator), shares, expected, own, rows)


def own_frac_of_parts(neighbors: Tensor, num: int, size: int) -> list[float]:
    """How alike are images that follow each other? Shares of own neighbors of consecutive parts of the first set.

    Args:
        neighbors: From `TwoSampleTest`, the images in their order: a part is compared as the second set is.
        num: A, number of images of the first set; A ≥ size.
        size: Number of images of a part; what is left at the end is no part.

    Returns:
        For each part the mean share of its images' neighbors among both sets that are of the part, 0 to 1.
    """
    part = torch.arange(len(neighbors)) // size
    part[num:] = -1
    own = (part[neighbors[:num]] == part[:num, None]).double().mean(1)
    return [float(own[start : start + size].mean()) for start in range(0, num - size + 1, size)]


def _statistics(rows: Tensor, in_b: Tensor, part: Tensor, generator: torch.Generator) -> Tensor:
    """The statistic `[P]` of as many random exchanges as `part` has elements."""
    exchanged = torch.stack([in_b[torch.randperm(len(in_b), generator=generator)] for _ in part])  # [P M]
    return _shares(rows, exchanged).sum(1)


def _shares(rows: Tensor, in_b: Tensor) -> Tensor:
    """Shares of own neighbors in A and in B, float64 `[P 2]`, for memberships bool `[P M]`."""
    own = (in_b[:, rows] == in_b[:, :, None]).sum(2).double() / rows.shape[1]  # [P M]
    b = in_b.double()
    return torch.stack([(own * (1 - b)).sum(1) / (1 - b).sum(1), (own * b).sum(1) / b.sum(1)], 1)
