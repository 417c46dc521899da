"""Schedules as pure functions of the step, in float64 like the tables of DINO v1.

tests/story/test_golden.py compares them with the recorded tables of DINO v1.
"""

from __future__ import annotations

import math


def warmup_cosine(step: int, base: float, final: float, total: int, warmup: int = 0) -> float:
    """Linear warm-up from 0 to `base` (both included), then half a cosine period from `base` towards `final`.

    As in DINO v1, `base` occurs twice (last warm-up step, first cosine step), and `final` is not reached: the cosine is
    sampled at i/n for i = 0 … n-1.

    Args:
        step: Current step, 0 … total - 1.
        base: Peak value.
        final: Value that the cosine approaches.
        total: Length of the run in units of `step`.
        warmup: Length of the warm-up in units of `step`; 0 for none.
    """
    if step < warmup:
        return base * step / (warmup - 1) if warmup > 1 else 0.0
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def ramp(position: int, start: float, end: float, length: int) -> float:
    """Linear from `start` to `end` over `length` positions (both included), then constant: τ_t of DINO v1."""
    if position >= length:
        return end
    return start + (end - start) * position / (length - 1) if length > 1 else start
