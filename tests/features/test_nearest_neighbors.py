"""Exact search: any sizes, ties, types; the same as sorting everything."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opendino.features import nearest_neighbors
from opendino.features.nearest_neighbors import directed, nearest


def by_sorting(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Every cosine in float64, sorted, equal ones in the bank's order."""
    bank, queries = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (bank, queries))
    values, order = (queries @ bank.T).sort(dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


@pytest.fixture(params=[(1024, 2048, 16), (5, 32, 16), (7, 12, 4)], ids=["as it is", "small blocks", "smaller"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("_QUERIES", "_BANK", "_GROUP"), request.param, strict=True):
        monkeypatch.setattr(nearest_neighbors, name, value)
    monkeypatch.setattr(nearest_neighbors, "_SLAB", 3 * request.param[1])
    monkeypatch.setattr(nearest_neighbors, "_QUERY_SLAB", 4 * request.param[0])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("num", "asked", "k"), [(1, 1, 1), (3, 50, 3), (100, 33, 7), (331, 29, 331), (512, 4, 20)])
def test_it_finds_what_sorting_finds(num: int, asked: int, k: int) -> None:
    bank, queries = torch.randn(num, 6, dtype=torch.float64), torch.randn(asked, 6, dtype=torch.float64)
    values, found = nearest(bank, queries, k)
    wanted, order = by_sorting(bank, queries, k)
    assert torch.equal(found, order)
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-14)  # sums of six products, in another order


@pytest.mark.usefixtures("_blocks")
def test_equal_neighbors_come_in_the_order_of_the_bank() -> None:
    # Axes have unit length and exact products, so that all cosines are exactly -1, 0 or 1.
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    bank, queries = axes[torch.randint(0, 6, (300,))], axes[torch.randint(0, 6, (40,))]
    for k in (1, 10, 60, 299):
        values, found = nearest(bank, queries, k)
        wanted, order = by_sorting(bank, queries, k)
        assert torch.equal(values.double(), wanted)
        assert torch.equal(found, order)


def test_a_collapsed_bank_gives_its_first_images() -> None:
    values, found = nearest(torch.ones(5000, 4), torch.ones(3, 4), 20)
    assert torch.equal(found, torch.arange(20).expand(3, -1))
    assert torch.equal(values, values[:1, :1].expand_as(values))


def test_half_precision_features_are_compared_in_float32() -> None:
    bank, queries = torch.randn(200, 8).half(), torch.randn(9, 8).half()
    values, found = nearest(bank, queries, 5)
    wanted, order = by_sorting(bank, queries, 5)
    assert values.dtype == torch.float32
    assert torch.equal(found, order)
    torch.testing.assert_close(values.double(), wanted, rtol=0, atol=1e-6)  # float32


NOWHERE = [math.nan, math.inf, -math.inf, 0.0]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("value", NOWHERE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_has_no_direction_is_nobodys_neighbor_and_has_none(value: float, dtype: torch.dtype) -> None:
    bank, queries = torch.randn(300, 6).to(dtype), torch.randn(20, 6).to(dtype)
    lost = torch.rand(300) < 0.3
    lost[:7] = True  # whole blocks at the beginning too
    bank[lost] = value if value == 0 else torch.where(torch.arange(6) == 2, value, 1.0).to(dtype)
    queries[3] = bank[0]
    assert torch.equal(directed(bank), ~lost)
    num = int((~lost).sum())
    values, found = nearest(bank, queries, 300)
    others = torch.arange(20) != 3
    assert torch.equal(values[others].isfinite().sum(1), torch.full((19,), num))
    kept = (~lost).nonzero()[:, 0]
    wanted = nearest(bank[kept], queries[others], num)
    torch.testing.assert_close(values[others][:, :num], wanted[0], rtol=0, atol=1e-6)  # another order of sums
    assert not lost[found[others][:, :num]].any()
    assert (values[3] == -math.inf).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing_and_are_given_back(threads: int) -> None:
    bank, queries = torch.randn(3000, 8), torch.randn(50, 8)
    alone = nearest(bank, queries, 9)
    torch.set_num_threads(threads)
    try:
        several = nearest(bank, queries, 9)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone[1], several[1])
