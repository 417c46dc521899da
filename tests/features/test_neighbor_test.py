"""The two-sample test: counted by hand, uniform without a difference, and powerful with one."""

from __future__ import annotations

import pytest
import torch

from opendino.features.neighbor_test import neighbor_test, own_frac_of_parts
from opendino.features.outlier_scores import other_neighbors


def test_shares_by_hand() -> None:
    angles = torch.tensor([0.0, 0.1, 0.25, 1.0, 1.15, 0.32])  # the last one of B is beside A
    points = torch.stack([angles.cos(), angles.sin()], 1)
    found = neighbor_test(points[:3], points[3:], k=1, permutations=50)
    # nearest: 0 → 1, 1 → 0, 2 → last (0.07 away), 3 → 4, 4 → 3, last → 2
    assert found.own.tolist() == [1, 1, 0, 1, 1, 0]
    assert found.own_frac == pytest.approx((2 / 3, 2 / 3)) and found.expected_frac == pytest.approx((2 / 5, 2 / 5))


def test_p_is_the_share_of_all_exchanges() -> None:
    import itertools

    points = torch.randn(6, 2, dtype=torch.float64)
    points[3:] += 1.0
    unit = torch.nn.functional.normalize(points, dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2).topk(2).indices
    statistics = []
    for chosen in itertools.combinations(range(6), 3):
        own = [len({*near[i].tolist()} & {*chosen}) if i in chosen else 2 - len({*near[i].tolist()} & {*chosen})
               for i in range(6)]  # fmt: skip
        statistics.append((sum(own), chosen))
    observed = next(value for value, chosen in statistics if chosen == (3, 4, 5))
    above = sum(value > observed for value, _ in statistics) / len(statistics)
    least = sum(value >= observed for value, _ in statistics) / len(statistics)
    p = [neighbor_test(points[:3], points[3:], 2, 2000, seed).p for seed in range(5)]
    assert all(above - 0.04 < each < least + 0.04 for each in p) and least < 1


@pytest.mark.parametrize("sizes", [(40, 40), (80, 15)])
def test_p_is_uniform_without_a_difference(sizes: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = [
        neighbor_test(*torch.randn(sum(sizes), 3).split(sizes), k=5, permutations=59, seed=draw).p
        for draw in range(500)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_a_new_cluster_in_a_small_table_is_found() -> None:
    a, b = torch.randn(400, 8), torch.randn(40, 8)
    assert neighbor_test(a, b).p > 0.01
    b[:20, 0] += 6
    found = neighbor_test(a, b)
    assert found.p < 0.002 and found.own_frac[1] > 4 * found.expected_frac[1]
    assert found.own[400:420].mean() > 2 * found.own[420:].mean()


def test_more_neighbors_than_images() -> None:
    assert neighbor_test(torch.eye(3)[:1], torch.eye(3)[1:], k=10, permutations=9).own.tolist() == [0, 0.5, 0.5]


def test_parts_of_a_film_differ_from_the_rest_and_parts_of_shuffled_images_do_not() -> None:
    angles = torch.linspace(0, 1.5, 60)
    film = torch.stack([angles.cos(), angles.sin()], 1)
    assert own_frac_of_parts(other_neighbors(film[:6], 1)[1], 6, 3) == [
        1.0,
        1.0,
    ]  # 0 → 1, 1 → 0 or 2, 2 → 1; the same from 3 on
    parts = own_frac_of_parts(other_neighbors(film, 4)[1], 60, 9)
    assert len(parts) == 6 and min(parts) > 0.7
    shuffled = own_frac_of_parts(other_neighbors(film[torch.randperm(60)], 4)[1], 60, 9)
    assert max(shuffled) < 0.5


def test_a_part_is_compared_as_the_second_set_is() -> None:
    """The first set in the order of a film, then a second one that goes on like it: no part has neighbors in it."""
    torch.manual_seed(0)
    a, b = torch.randn(40, 8), torch.randn(10, 8)
    found = neighbor_test(a, b, 5, 9)
    parts = own_frac_of_parts(found.neighbors, 40, 10)
    for start, share in zip(range(0, 40, 10), parts, strict=True):  # as if that part were the second set
        rest = torch.cat([a[:start], a[start + 10 :], b])
        assert share == pytest.approx(neighbor_test(rest, a[start : start + 10], 5, 9).own_frac[1])
