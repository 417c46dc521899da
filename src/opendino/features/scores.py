"""What scores of classes are worth."""

from __future__ import annotations

import torch
from torch import Tensor


def place(scores: Tensor, truth: Tensor) -> Tensor:
    """How many classes come before the true one: those with a larger score, and lower ones with the same.

    Args:
        scores: float `[Q C]`.
        truth: int64 `[Q]`; anything outside 0 … C - 1 is a class that cannot be found.

    Returns:
        int64 `[Q]`, 0 for right at first, C where it cannot be found or the scores are not numbers.
    """
    num = scores.shape[1]
    known = (truth >= 0) & (truth < num)
    truth = truth.where(known, 0)[:, None]
    own = scores.gather(1, truth)
    lower = torch.arange(num, device=scores.device) < truth
    known &= ~scores.isnan().any(1)
    return ((scores > own) | ((scores == own) & lower)).sum(1).where(known, num)


def accuracy(scores: Tensor, truth: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent, of `place`'s arguments; NaN where there is nothing to classify."""
    places = place(scores, truth)
    return tuple(100 * float((places < min(top, scores.shape[1])).double().mean()) for top in (1, 5))  # type: ignore[return-value]
