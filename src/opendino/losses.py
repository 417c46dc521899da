"""Functions of network outputs that several methods share."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, for softmax, normalization and losses; float64 is unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis, `[... K]` → `[...]`; 0 … ln K."""
    return torch.special.entr(probabilities).sum(-1)


def feature_std(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalized features `[B D]`: the square root of their total variance, a scalar.

    0 if all features are equal (collapse), about 1 if their directions are spread evenly.
    """
    return torch.nn.functional.normalize(to_float32(features), dim=-1).std(0).norm()
