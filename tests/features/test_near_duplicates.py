"""Groups of near-duplicates: against all pairs, in tiles of any size, and in the odd cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opendino.features.near_duplicates import near_duplicates


def by_all_pairs(features: Tensor, threshold: float) -> list[tuple[int, ...]]:
    """Grow each group from its first member until nothing is near it."""
    unit = torch.nn.functional.normalize(features, dim=1)
    near = unit @ unit.T >= threshold
    groups, left = [], set(range(len(features)))
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {j for i in edge for j in near[i].nonzero()[:, 0].tolist()} - group
        left -= group
        if len(group) > 1:
            groups.append(tuple(sorted(group)))
    return groups


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_groups_are_those_of_all_pairs_for_tiles_of_any_size(chunk: int) -> None:
    features = torch.randn(120, 3, dtype=torch.float64)  # few dimensions: groups of many sizes, and long chains
    groups = near_duplicates(features, 0.98, chunk)
    assert [group.indices for group in groups] == by_all_pairs(features, 0.98)
    assert max(len(group.indices) for group in groups) > 5
    unit = torch.nn.functional.normalize(features, dim=1)
    near = (unit @ unit.T).fill_diagonal_(-1)
    for group in groups:
        assert torch.allclose(torch.tensor(group.similarity, dtype=torch.float64), near[list(group.indices)].amax(1))


def test_a_chain_is_one_group_and_length_does_not_matter() -> None:
    angle = torch.arange(50) * 0.1
    chain = torch.stack([angle.cos(), angle.sin()], 1) * torch.rand(50, 1).add(0.1)
    (group,) = near_duplicates(chain, 0.99, chunk=8)
    assert group.indices == tuple(range(50))
    assert group.similarity == pytest.approx([torch.tensor(0.1).cos().item()] * 50, abs=1e-6)
    assert near_duplicates(chain, 0.999) == []


def test_nothing_to_group() -> None:
    assert near_duplicates(torch.randn(1, 4), 0.5) == []
    assert near_duplicates(torch.randn(0, 4), 0.5) == []
    assert near_duplicates(torch.eye(4), 0.5) == []


def test_empty_features_and_nan_resemble_nothing() -> None:
    features = torch.tensor([[0.0, 0], [0, 0], [float("nan"), 1], [float("nan"), 1], [1, 0], [2, 0]])
    assert [group.indices for group in near_duplicates(features, 0.5)] == [(4, 5)]


@pytest.mark.parametrize("threshold", [1 - 1e-6, 1.0])
def test_all_the_same_is_one_group_with_cosine_one(threshold: float) -> None:
    (group,) = near_duplicates(
        torch.randn(1, 5, generator=torch.Generator().manual_seed(3)).expand(300, 5), threshold, 64
    )
    assert group.indices == tuple(range(300))
    assert group.similarity == pytest.approx([1.0] * 300, abs=1e-6)
    assert max(group.similarity) <= 1
