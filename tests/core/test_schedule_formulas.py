"""Schedules at their ends and between; the recorded tables of DINO v1 are compared in tests/story/test_golden.py."""

from __future__ import annotations

import itertools
import math

import pytest

from opendino.core.schedule_formulas import ramp, warmup_cosine


def test_warm_up_starts_at_zero_and_the_peak_occurs_twice() -> None:
    values = [warmup_cosine(step, 8.0, 1.0, 20, warmup=5) for step in range(20)]
    assert values[:6] == [0.0, 2.0, 4.0, 6.0, 8.0, 8.0]
    assert all(later < earlier for earlier, later in itertools.pairwise(values[5:]))
    assert 1.0 < values[-1] < 1.1  # approached, not reached


@pytest.mark.parametrize(("base", "final"), [(0.04, 0.4), (0.996, 1.0), (5e-4, 1e-6)])
def test_without_warm_up_it_is_a_half_cosine(base: float, final: float) -> None:
    assert warmup_cosine(0, base, final, 10) == pytest.approx(base, rel=1e-12)
    assert warmup_cosine(5, base, final, 10) == pytest.approx((base + final) / 2, rel=1e-12)
    assert warmup_cosine(9, base, final, 10) == pytest.approx(
        final + (base - final) * math.sin(math.pi / 20) ** 2, rel=1e-12
    )


def test_runs_of_one_step_and_warm_ups_of_one_step_are_defined() -> None:
    assert warmup_cosine(0, 3.0, 1.0, 1) == 3.0
    assert warmup_cosine(0, 3.0, 1.0, 10, warmup=1) == 0.0
    assert warmup_cosine(1, 3.0, 1.0, 10, warmup=1) == 3.0
    assert warmup_cosine(0, 3.0, 1.0, 1, warmup=1) == 0.0


def test_a_constant_stays_constant() -> None:
    assert {warmup_cosine(step, 0.3, 0.3, 7) for step in range(7)} == {0.3}


def test_a_ramp_includes_both_ends_then_stays() -> None:
    assert [ramp(i, 1.0, 3.0, 5) for i in range(7)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0]
    assert [ramp(i, 1.0, 3.0, 1) for i in range(3)] == [1.0, 3.0, 3.0]
    assert ramp(0, 1.0, 3.0, 0) == 3.0
