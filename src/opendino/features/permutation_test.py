"""p-value of a permutation test."""

from __future__ import annotations

import torch
from torch import Tensor


def p_value(observed: float, permuted: Tensor, generator: torch.Generator) -> float:
    """Share of permutations whose statistic is at least the observed one (Phipson & Smyth 2010).

    (1 + number above + U · number equal) / (1 + P), with U uniform in [0, 1): equal statistics are ordered at random.
    Where nothing is to be found, the p-value is uniform even if the statistic has few values, such as an accuracy of
    50 images; the smallest possible p-value is 1 / (1 + P).

    Args:
        observed: The statistic of the data; large values speak against chance.
        permuted: float `[P]`, the statistic of P ≥ 1 permutations, computed by the same code as `observed`.
        generator: Source of U.

    Returns:
        A probability in (0, 1].
    """
    # Sums in another order differ in the last bits: these statistics are equal too.
    slack = 1e-9 * max(1.0, abs(observed))
    above = int((permuted > observed + slack).sum())
    equal = int(((permuted - observed).abs() <= slack).sum())
    return (1 + above + float(torch.rand((), generator=generator)) * equal) / (1 + len(permuted))
