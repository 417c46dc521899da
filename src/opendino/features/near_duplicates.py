"""Find groups of near-duplicates by the cosine of their features, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from opendino.core.progress import track
from opendino.features.duplicate_threshold import EQUAL


@dataclass(frozen=True)
class Group:
    """A group of near-duplicates, connected directly or through other members.

    Attributes:
        indices: Rows of the feature table, ascending, at least two.
        similarity: For each image, the cosine to its nearest other member, at least the threshold.
    """

    indices: tuple[int, ...]
    similarity: tuple[float, ...]


@torch.no_grad()
def near_duplicates(features: Tensor, threshold: float, chunk: int = 2048) -> list[Group]:
    """Connected components of the graph that links vectors with cosine `threshold` or more.

    All pairs are compared in tiles of chunk × chunk. Pairs are merged into groups at once and not stored, so memory is
    that of the features and a few tiles, for any number of duplicates.

    Args:
        features: float `[M D]`, of any norm; vectors of zeros or with NaN match nothing.
        threshold: Cosine in (-1, 1]; of equal vectors it is 1 up to rounding, so 1 means `EQUAL`.
        chunk: Side of a tile.

    Returns:
        Groups, ordered by their first member.
    """
    features, threshold = normalize(features, dim=1).nan_to_num(0), min(threshold, EQUAL)
    parent = torch.arange(len(features), device=features.device)
    nearest = torch.full((len(features),), -2.0, device=features.device, dtype=features.dtype)
    for top in track(range(0, len(features), chunk), "images compared", len(features), chunk):
        for left in range(top, len(features), chunk):
            tile = features[top : top + chunk] @ features[left : left + chunk].T
            if top == left:
                tile.fill_diagonal_(-2)
            if float(tile.max()) < threshold:
                continue
            for start, best in ((top, tile.amax(1)), (left, tile.amax(0))):
                part = nearest[start : start + chunk]
                part.copy_(torch.maximum(part, best))
            rows, columns = (tile >= threshold).nonzero(as_tuple=True)
            parent = union(parent, rows + top, columns + left)
    members = (nearest >= threshold).nonzero()[:, 0]
    order = parent[members].argsort(stable=True)
    members, sizes = members[order].cpu(), parent[members].unique(return_counts=True)[1].tolist()
    similarity = nearest.cpu()[members].clamp_max(1)
    return (
        [
            Group(tuple(indices.tolist()), tuple(values.tolist()))
            for indices, values in zip(members.split(sizes), similarity.split(sizes), strict=True)
        ]
        if len(members)
        else []
    )


def union(parent: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Union-find on tensors: merge the groups of `a` and `b`; `parent` int64 `[M]` is the least member of a group."""
    while True:
        one, other = parent[a], parent[b]
        differ = one != other
        if not differ.any():
            return parent
        low, high = torch.minimum(one, other)[differ], torch.maximum(one, other)[differ]
        parent = parent.scatter_reduce(0, high, low, "amin")
        while not torch.equal(parent, grand := parent[parent]):
            parent = grand
