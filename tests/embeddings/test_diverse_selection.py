"""k-center."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from opendino.embeddings.diverse_selection import k_center


def test_every_choice_is_the_farthest_and_the_radius_is_that_of_the_rest() -> None:
    vectors = normalize(torch.randn(200, 8), dim=1)
    chosen = list(itertools.islice(k_center(vectors), 30))
    apart = torch.cdist(vectors.double(), vectors.double(), compute_mode="donot_use_mm_for_euclid_dist")
    for number in range(1, 30):
        before = [row for row, _ in chosen[:number]]
        assert chosen[number][0] == int(apart[:, before].amin(1).argmax())
        # a cosine's error of 1e-7 in float32 is one of 1e-7 / radius in the radius
        assert chosen[number - 1][1] == pytest.approx(float(apart[:, before].amin(1).max()), abs=1e-6)
    radii = [radius for _, radius in chosen]
    assert radii == sorted(radii, reverse=True)


def test_one_of_each_cluster_then_none_twice() -> None:
    vectors = torch.eye(4).repeat_interleave(3, 0)
    rows = [row for row, _ in k_center(vectors, seed=3)]
    assert sorted(row // 3 for row in rows[:4]) == [0, 1, 2, 3]
    assert sorted(rows) == list(range(12))


def test_what_is_labeled_counts_and_is_not_chosen_again() -> None:
    vectors = torch.eye(4).repeat_interleave(3, 0)
    rows = [row for row, _ in k_center(vectors, start=[0, 3, 4])]
    assert sorted(row // 3 for row in rows[:2]) == [2, 3]
    assert sorted(rows) == [1, 2, 5, 6, 7, 8, 9, 10, 11]


def test_the_seed_decides_the_first() -> None:
    vectors = normalize(torch.randn(50, 4), dim=1)
    firsts = [next(k_center(vectors, seed=seed))[0] for seed in (0, 0, 1, 2)]
    assert firsts[0] == firsts[1] and len(set(firsts)) > 1
