"""k-center."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from opendino.embeddings import diverse_selection
from opendino.embeddings.diverse_selection import k_center, typical, uncertainty


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


def test_the_most_typical_row_of_each_cluster_the_largest_first() -> None:
    sizes, spread = (40, 30, 20), torch.linspace(0, 0.3, 40)[:, None]
    clusters = [torch.eye(3)[n] + spread[:size] * torch.eye(3)[(n + 1) % 3] for n, size in enumerate(sizes)]
    clusters = [normalize(rows, dim=1) for rows in clusters]
    vectors = torch.cat(clusters)  # on three arcs: the middle of an arc is nearest to its neighbors
    first = [0, 40, 70]
    rows = typical(vectors, 3)
    assert [sum(row >= start for start in first) - 1 for row in rows] == [0, 1, 2]
    for row, start, own in zip(rows, first, clusters, strict=True):
        mean = torch.cdist(own, own).topk(min(21, len(own)), largest=False).values.sum(1)
        assert float(mean[row - start]) == pytest.approx(float(mean.min()), rel=1e-3)
    more = typical(vectors, 2, start=[5])
    assert len(more) == 2 and all(row >= 40 for row in more), "the first cluster has a row already"
    assert len(typical(torch.eye(4).repeat_interleave(3, 0), 9)) == 4, "equal rows are one cluster"


def test_the_seed_decides_the_first() -> None:
    vectors = normalize(torch.randn(50, 4), dim=1)
    firsts = [next(k_center(vectors, seed=seed))[0] for seed in (0, 0, 1, 2)]
    assert firsts[0] == firsts[1] and len(set(firsts)) > 1


def test_weights_multiply_the_distance() -> None:
    vectors = normalize(torch.randn(60, 5), dim=1)
    weights = torch.rand(60)
    rows = [row for row, _ in itertools.islice(k_center(vectors, [7], weights=weights), 10)]
    chosen = [7]
    for row in rows:
        merit = weights * torch.cdist(vectors, vectors[chosen]).amin(1)
        assert row not in chosen and float(merit[row]) == pytest.approx(float(merit.max()), rel=1e-3)
        chosen.append(row)
    nothing = torch.zeros(60)
    assert sorted(row for row, _ in k_center(vectors, [7], weights=nothing)) == [*range(7), *range(8, 60)]


def test_a_classifier_is_unsure_between_its_classes() -> None:
    angles = torch.linspace(0, 1.5, 31)
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    found = uncertainty(vectors, [0, 1, 2, 3, 27, 28, 29, 30], ["a"] * 4 + ["b"] * 4)
    assert found.shape == (31,) and float(found.min()) >= 0 and float(found.max()) <= 1
    assert 12 <= int(found.argmax()) <= 18 and float(found[[0, 30]].max()) < 0.5 < float(found[15])


def test_a_large_cluster_is_compared_with_a_sample_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    whole = diverse_selection._typicality

    def counted(vectors: torch.Tensor) -> torch.Tensor:
        compared.append(len(vectors))
        return whole(vectors)

    monkeypatch.setattr(diverse_selection, "_MOST_COMPARED", 100)
    monkeypatch.setattr(diverse_selection, "_typicality", counted)
    angle = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.2  # densest at 0
    rows = typical(torch.stack([angle.cos(), angle.sin()], 1), 1)
    assert compared == [100] and abs(float(angle[rows[0]])) < 0.15
    assert rows == typical(torch.stack([angle.cos(), angle.sin()], 1), 1), "the seed decides"
