"""Pure functions of outputs that two or more methods share."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float32(x: Tensor) -> Tensor:
    """At least float32: softmax, normalization and losses are never computed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis: `[... K]` → `[...]`, between 0 and ln K."""
    return torch.special.entr(probabilities).sum(-1)


def feature_std(features: Tensor) -> Tensor:
    """How far the directions of features `[B D]` lie apart: the root of their total variance, a scalar.

    0 where all are the same, about 1 where they point everywhere.
    """
    return torch.nn.functional.normalize(to_float32(features), dim=-1).std(0).norm()
