"""Schedules: pure functions of a position in time, in float64 like the original's tables.

Agreement with DINO v1's recorded tables is tested in tests/story/test_golden.py.
"""

from __future__ import annotations

import math


def cosine(step: int, base: float, final: float, total: int, warmup: int = 0) -> float:
    """Linear warm-up from 0 to `base` (endpoint included), then a half cosine from `base` towards `final`.

    Two properties of DINO v1 are kept: the peak occurs twice (last warm-up step, first cosine step), and `final`
    is approached but not reached, since the cosine is sampled at i/n for i = 0 … n-1.

    Args:
        step: Position, 0 … total - 1.
        base: Value at the peak.
        final: Value the cosine tends to.
        total: Length of the run in the units of `step`.
        warmup: Length of the warm-up in the same units; 0 for none.
    """
    if step < warmup:
        return base * step / (warmup - 1) if warmup > 1 else 0.0
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def ramp(position: int, start: float, end: float, length: int) -> float:
    """Linear from `start` to `end` over `length` positions, both included, then constant (τ_t of DINO v1)."""
    if position >= length:
        return end
    return start + (end - start) * position / (length - 1) if length > 1 else start
