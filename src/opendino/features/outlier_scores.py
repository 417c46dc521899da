"""Outliers among vectors: distance to the k-th neighbor, and the local outlier factor."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from opendino.features.nearest_neighbors import nearest


def other_neighbors(vectors: Tensor, k: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest other vectors of each vector.

    Args:
        vectors: float `[M D]`, each with a direction (see `nearest_neighbors.directed`).
        k: Number of neighbors, 1 to M - 1.
        rows: int64 `[Q]`, the vectors whose neighbors to search; None for all.

    Returns:
        Euclidean distances of the unit vectors `[Q k]`, ascending, in [0, 2], and rows of the neighbors int64 `[Q k]`.
    """
    rows = torch.arange(len(vectors), device=vectors.device) if rows is None else rows
    cosines, found = nearest(vectors, vectors[rows], k + 1)
    is_self = found == rows[:, None]
    is_self[:, -1] |= ~is_self.any(1)  # more than k exact copies came first: drop the last of them
    distances = (2 - 2 * cosines.clamp(-1, 1)).sqrt()
    return distances[~is_self].view(-1, k), found[~is_self].view(-1, k)


def outlier_scores(vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Two measures of how unusual each row is.

    Args:
        vectors: float `[M D]`, each with a direction.
        k: Number of neighbors, 1 to M - 1.

    Returns:
        Distance to the k-th neighbor `[M]` (of unit vectors, 0 to 2; large far from everything), and the local outlier
        factor `[M]` of Breunig et al. 2000: mean density around the neighbors divided by the density around the image,
        about 1 inside a cluster of any density and larger outside.
    """
    distances, rows = other_neighbors(vectors, k)
    reach = torch.maximum(distances, distances[:, -1][rows])  # reachability distance
    density = 1 / (reach.mean(1) + 1e-10)  # copies have distance 0
    return distances[:, -1], density[rows].mean(1) / density


def most_unusual(vectors: Tensor, k: int, by: Literal["distance", "lof"]) -> tuple[list[int], Tensor, Tensor]:
    """Rows in the order of a measure of `outlier_scores`, the most unusual first, and both measures `[M]`."""
    distance, factor = (each.cpu() for each in outlier_scores(vectors, k))
    return (distance if by == "distance" else factor).argsort(descending=True, stable=True).tolist(), distance, factor


def num_unusual(distance: Tensor, factor: Tensor, by: Literal["distance", "lof"]) -> tuple[int, float]:
    """Number of images above the `usual_limit` of a measure of `most_unusual`, and the limit."""
    scores = distance if by == "distance" else factor
    limit = usual_limit(scores)
    return int((scores > limit).sum()), limit


def usual_limit(scores: Tensor) -> float:
    """Largest usual value of a measure: its median times exp(3.5 s).

    s is the robust standard deviation of its logarithm: 1.4826 times the median absolute deviation (Iglewicz and
    Hoaglin 1993). Of a log-normal measure one value in 4,300 is larger.

    Args:
        scores: float `[M]`, ≥ 0. If half of them are equal, s is 0 and the limit is the median.
    """
    log = scores.double().clamp_min(1e-12).log()
    center = log.median()
    return float((center + 3.5 * 1.4826 * (log - center).abs().median()).exp())
