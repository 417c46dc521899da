"""The order of an epoch is a permutation; for sources with shards, one that keeps few shards open."""

from __future__ import annotations

import numpy as np
import pytest

from opendino.data.sampler import Windowed, epoch_order, permutation

SIZES = [np.array(sizes) for sizes in ([7], [1, 1], [5, 0, 9, 4], [100] * 50, [3] * 200, [1000, 1, 1, 1] * 10)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("window", [1, 4, 32])
def test_every_image_comes_once(sizes: np.ndarray, window: int) -> None:
    order = Windowed(sizes, seed=3, epoch=1, window=window)
    assert len(order) == sizes.sum()
    assert sorted(order) == list(range(len(order)))


def test_it_is_a_function_of_seed_and_epoch_and_of_no_history() -> None:
    orders = {tuple(Windowed(SIZES[3], seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    whole, jumping = Windowed(SIZES[3], 0, 0), Windowed(SIZES[3], 0, 0)
    for place in (4999, 0, 2500, 17, 4998):
        assert jumping[place] == whole[place]
    assert whole[10:13] == [whole[10], whole[11], whole[12]]
    with pytest.raises(IndexError):
        whole[5000]


def test_no_more_blocks_are_open_than_the_window_holds() -> None:
    order, window = Windowed(np.full(200, 64), 0, 0, window=8), 8
    block = np.array(list(order)) // 64
    for start in range(0, len(block) - 64, 32):
        assert len(np.unique(block[start : start + 64])) <= window + 1, "a stretch of one part lies in two at most"
    first = {b: int(np.flatnonzero(block == b)[0]) for b in range(200)}
    last = {b: int(np.flatnonzero(block == b)[-1]) for b in range(200)}
    spread = [last[b] - first[b] for b in range(200)]
    wrapped = sum(s > (window + 1) * 64 for s in spread)
    assert wrapped == window - 1, "only the blocks that close the circle are read twice"


def test_the_first_images_are_as_mixed_as_the_others() -> None:
    block = np.array(list(Windowed(np.full(100, 160), 5, 0, window=16))) // 160
    kinds = [len(np.unique(block[start : start + 160])) for start in range(0, len(block), 160)]
    assert min(kinds) == max(kinds) == 16


def test_small_sets_are_mixed_throughout() -> None:
    order = np.array(list(Windowed(np.full(8, 500), 1, 0)))
    assert abs(np.corrcoef(order, np.arange(4000))[0, 1]) < 0.1


def test_some_images_only() -> None:
    blocks, members = np.array([10, 10, 10]), np.array([0, 3, 11, 12, 29])
    assert sorted(epoch_order(30, blocks, 0, 0, members)) == members.tolist()
    assert sorted(epoch_order(30, blocks[:0], 0, 0, members)) == members.tolist()


def test_without_blocks_it_is_the_plain_permutation() -> None:
    assert np.array_equal(epoch_order(50, np.zeros(0, np.int64), 4, 2), permutation(50, 4, 2))
