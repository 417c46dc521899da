"""Principal components of patch features as colors, deterministic and shared by all images of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from opendino.core.errors import UserError

Foreground = Literal["off", "auto", "above", "below"]


@dataclass(frozen=True)
class PCABasis:
    """Projection of features to three components and to colors.

    Attributes:
        mean: float64 `[D]`.
        components: float64 `[3 D]`, orthonormal, by decreasing variance.
        low, high: float64 `[3]`, 1st and 99th percentiles of the components, which map to 0 and 255.
        explained: Explained variance ratio of each component.
        split: None, or (mean `[D]`, direction `[D]`): a patch x is foreground if (x - mean)·direction > 0.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor
    explained: tuple[float, ...]
    split: tuple[Tensor, Tensor] | None = None

    def foreground(self, patches: Tensor) -> Tensor:
        """Foreground mask of patches `[... D]`, bool `[...]`; all True without a split."""
        if self.split is None:
            return torch.ones(patches.shape[:-1], dtype=torch.bool)
        return (patches.double() - self.split[0]) @ self.split[1] > 0

    def colors(self, patches: Tensor) -> np.ndarray:
        """Patches `[... D]` → uint8 `[... 3]`; background is black."""
        found = (patches.double() - self.mean) @ self.components.T
        stretched = ((found - self.low) / (self.high - self.low).clamp_min(1e-30)).clamp(0, 1)
        return (stretched * self.foreground(patches)[..., None] * 255).round().to(torch.uint8).numpy()


def pca_colors_of(patches: Tensor, number: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Exact PCA: mean, first components and all variances, by eigendecomposition of the covariance in float64.

    The sign of a component is chosen so that its largest loading by absolute value is positive.

    Args:
        patches: `[M D]`, M > 1, D ≥ number.
        number: Number of components.

    Returns:
        Mean `[D]`, components `[number D]`, variances `[D]` in decreasing order; all float64.
    """
    centered = patches.double()
    mean = centered.mean(0)
    centered = centered - mean
    variances, vectors = torch.linalg.eigh(centered.T @ centered / (len(centered) - 1))
    components = vectors.T.flip(0)[:number]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return mean, components * largest.sign(), variances.flip(0).clamp_min(0)


def fit(images: list[Tensor], foreground: Foreground = "off") -> PCABasis:
    """Fit a basis to several images together.

    With a foreground, the sign of the first component of all patches separates foreground from background, and the
    three components are fitted to the foreground patches only, as in DINOv2 (Oquab et al. 2023). The sign of a
    component is arbitrary: "auto" chooses the side that is less frequent on the border of the images.

    Args:
        images: Patch features `[rows columns D]` of each image.
        foreground: "off", or the side of the first component that is the foreground.

    Raises:
        UserError: There are too few patches or features for three components.
    """
    patches = torch.cat([image.flatten(0, 1) for image in images]).double()  # [M, D]
    split = None
    if foreground != "off":
        mean, direction, _ = pca_colors_of(_check_size(patches), 1)
        split = mean, direction[0] * _side(images, mean, direction[0], foreground)
        patches = patches[(patches - split[0]) @ split[1] > 0]
    mean, components, variances = pca_colors_of(_check_size(patches))
    found = (patches - mean) @ components.T
    low, high = (torch.from_numpy(np.percentile(found.numpy(), share, axis=0)) for share in (1, 99))
    explained = (variances[:3] / variances.sum().clamp_min(1e-30)).tolist()
    return PCABasis(mean, components, low, high, tuple(explained), split)


def _side(images: list[Tensor], mean: Tensor, direction: Tensor, foreground: Foreground) -> int:
    """1 if the foreground is above the mean along the direction, -1 if below."""
    if foreground != "auto":
        return 1 if foreground == "above" else -1
    above = [(image.double() - mean) @ direction > 0 for image in images]
    inner = torch.cat([each[1:-1, 1:-1].flatten() for each in above])
    border = sum(int(each.sum()) for each in above) - int(inner.sum())
    border_size = sum(each.numel() for each in above) - len(inner)
    return 1 if not len(inner) or border / border_size <= inner.double().mean() else -1


def _check_size(patches: Tensor) -> Tensor:
    """The patches; checks that a PCA with three components is possible."""
    if len(patches) < 4 or patches.shape[1] < 3:
        raise UserError(
            f"{len(patches)} patches of {patches.shape[1]} features are too few for three components",
            "Use more or larger images, or another --foreground",
        )
    return patches
