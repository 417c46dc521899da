"""p-values of permutation tests: counted by hand, and uniform where the statistic has few values."""

from __future__ import annotations

import pytest
import torch

from opendino.features.permutation_test import p_value


def test_it_counts_what_is_above_and_a_part_of_what_is_equal() -> None:
    permuted = torch.tensor([0.0, 1, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    assert p_value(5.0, permuted, generator) == pytest.approx(1 / 6)
    assert p_value(2.5, permuted, generator) == pytest.approx(2 / 6)
    drawn = [p_value(1.0, permuted, generator) for _ in range(200)]
    assert 3 / 6 <= min(drawn) < 3.1 / 6 and 4.9 / 6 < max(drawn) <= 5 / 6


def test_it_is_uniform_for_a_coin() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(1)
    coins = torch.randint(0, 2, (400, 100), generator=generator).double()
    found = [p_value(float(row[0]), row[1:], generator) for row in coins]
    assert stats.kstest(found, "uniform").pvalue > 0.01
