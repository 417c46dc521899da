"""Linear discriminant analysis with shrinkage and equal priors: a linear probe in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_discriminant(
    features: Tensor, labels: Tensor, num_classes: int, shrinkage: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier for which all classes are equally frequent, as balanced accuracy counts them.

    Features are standardized; their pooled covariance within the classes is shrunk towards a multiple of the identity,
    so that there may be fewer images than features.

    Args:
        features: float `[M D]`.
        labels: int64 `[M]` in 0 … C - 1.
        num_classes: C. A class without images is never predicted.
        shrinkage: Share of the identity, in (0, 1].

    Returns:
        Weight `[D C]` and bias `[C]`, float64: scores are `features @ weight + bias`; -inf for a class without images.
    """
    mean, std = features.mean(0, dtype=torch.float64), features.double().std(0, correction=0)
    scale = std.where(std > 1e-12 * (1 + mean.abs()), 1)  # a constant feature
    x = (features.double() - mean) / scale  # [M D]
    counts = torch.bincount(labels, minlength=num_classes).double()  # [C]
    means = x.new_zeros(num_classes, x.shape[1]).index_add_(0, labels, x) / counts.clamp_min(1)[:, None]  # [C D]
    x -= means[labels]
    covariance = x.T @ x / len(x)  # [D D]
    average = covariance.diagonal().mean().clamp_min(1e-12)
    covariance = (1 - shrinkage) * covariance + shrinkage * average * torch.eye(len(covariance), dtype=x.dtype)
    weight = torch.linalg.solve(covariance, means.T)  # [D C]
    bias = -0.5 * (means * weight.T).sum(1)
    bias[counts == 0] = -torch.inf
    weight = weight / scale[:, None]
    return weight, bias - mean @ weight
