"""Groups of near-duplicates among feature vectors, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Group:
    """Images linked by similarity, directly or through others of the group.

    Attributes:
        indices: Rows of the feature table, ascending, at least two.
        similarity: For each its cosine to the nearest other one of the group, at least the threshold.
    """

    indices: tuple[int, ...]
    similarity: tuple[float, ...]


@torch.no_grad()
def near_duplicates(features: Tensor, threshold: float, chunk: int = 2048) -> list[Group]:
    """The connected groups of vectors whose cosine is `threshold` or more.

    All pairs are compared, chunk · chunk at a time; of a pair nothing is kept but the group it makes, so memory is that
    of the features and a few tiles however many duplicates there are.

    Args:
        features: float `[M D]`, any lengths; vectors of zeros or with NaN resemble nothing.
        threshold: Cosine in (-1, 1].
        chunk: Side of a tile.

    Returns:
        By their first member.
    """
    features = normalize(features, dim=1).nan_to_num(0)
    parent = torch.arange(len(features), device=features.device)
    nearest = torch.full((len(features),), -2.0, device=features.device, dtype=features.dtype)
    for top in range(0, len(features), chunk):
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
            parent = _joined(parent, rows + top, columns + left)
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


def _joined(parent: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Union-find on tensors: `parent` int64 `[M]`, where every entry is the least member of its group, after a = b."""
    while True:
        one, other = parent[a], parent[b]
        differ = one != other
        if not differ.any():
            return parent
        low, high = torch.minimum(one, other)[differ], torch.maximum(one, other)[differ]
        parent = parent.scatter_reduce(0, high, low, "amin")
        while not torch.equal(parent, grand := parent[parent]):
            parent = grand
