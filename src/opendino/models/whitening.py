"""PCA whitening of features (Jégou & Chum 2012): directions in which all images vary alike stop dominating cosines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opendino.core.errors import UserError


@dataclass(frozen=True)
class Whitening:
    """x ↦ W (x − mean).

    Attributes:
        mean: float `[D]`.
        matrix: W, float `[D' D]`, the rows by falling variance.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features `[M D]` → `[M D']`, not scaled to unit length."""
        return (features - self.mean.to(features)) @ self.matrix.to(features).T


@torch.no_grad()
def fit(features: Tensor, centered: bool = True, eps: float = 1e-5) -> Whitening:
    """Learn a whitening: after it, the features it was learnt on have the identity as covariance.

    A variance below `eps` times the largest is taken as that, as in DINO v1, lest noise be blown up. Directions that no
    feature varies in are left out, so with fewer features than dimensions D' is at most M - 1 (M if not centered).
    All in float64.

    Args:
        features: float `[M D]`.
        centered: Whether the covariance is about the mean. DINO v1's copy detection takes it about the origin and
            subtracts the mean all the same.
        eps: Above 0.

    Raises:
        UserError: A single feature, or all are the same.
    """
    if len(features) < 2:
        raise UserError("Whitening cannot be learnt from a single image", "Give a folder with more images")
    table = features.double()
    mean = table.mean(0)
    spread = table - mean if centered else table
    variance, directions = torch.linalg.eigh(spread.T @ spread / len(table))  # ascending
    largest = float(variance[-1])
    if not largest > 1e-12 * float(table.square().mean()):
        raise UserError("Whitening cannot be learnt: all images have the same feature", "Give a folder of other images")
    kept = int((variance > 1e-12 * largest).sum())  # below is the rounding of float32 features
    variance, directions = variance.flip(0)[:kept], directions.flip(1)[:, :kept]
    matrix = directions.T / variance.clamp_min(eps * largest).sqrt()[:, None]
    return Whitening(mean.to(features.dtype), matrix.to(features.dtype))
