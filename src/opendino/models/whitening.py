"""PCA whitening of features (Jégou & Chum 2012), so that high-variance directions do not dominate the cosine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opendino.core.errors import UserError


@dataclass(frozen=True)
class Whitening:
    """A whitening transform: x → W (x - mean).

    Attributes:
        mean: float `[D]`.
        matrix: W, float `[D' D]`, rows by descending variance.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features `[M D]` → `[M D']`, not L2-normalized."""
        return (features - self.mean.to(features)) @ self.matrix.to(features).T


@torch.no_grad()
def fit(features: Tensor, centered: bool = True, eps: float = 1e-5) -> Whitening:
    """Fit a PCA whitening: the whitened training features have the identity as covariance.

    Variances are clamped to at least `eps` times the largest, as in DINO v1, so that noise is not amplified. Directions
    without variance are dropped, so with fewer features than dimensions D' is at most M - 1 (M if not centered).
    Computed in float64.

    Args:
        features: float `[M D]`.
        centered: Subtract the mean before the covariance. DINO v1's copy detection does not, but still subtracts it
            when the transform is applied.
        eps: Smallest variance as a fraction of the largest, above 0.

    Raises:
        UserError: There are fewer than two features, or all are equal.
    """
    if len(features) < 2:
        raise UserError("Whitening cannot be learned from a single image", "Give a folder with more images")
    rows = features.double()
    mean = rows.mean(0)
    deviations = rows - mean if centered else rows
    variance, directions = torch.linalg.eigh(deviations.T @ deviations / len(rows))  # ascending
    largest = float(variance[-1])
    if not largest > 1e-12 * float(rows.square().mean()):
        raise UserError(
            "Whitening cannot be learned: all images have the same feature", "Give a folder of other images"
        )
    kept = int((variance > 1e-12 * largest).sum())  # smaller ones are rounding errors of float32 features
    variance, directions = variance.flip(0)[:kept], directions.flip(1)[:, :kept]
    matrix = directions.T / variance.clamp_min(eps * largest).sqrt()[:, None]
    return Whitening(mean.to(features.dtype), matrix.to(features.dtype))
