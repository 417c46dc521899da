"""Principal components of patch features as colors, the same each time and for all images looked at together."""

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
    """From features to three components, and to colors.

    Attributes:
        mean: float64 `[D]`.
        components: float64 `[3 D]`, orthonormal, of falling variance.
        low, high: float64 `[3]`, the components' 1st and 99th percentiles, which become 0 and 255.
        explained: Shares of the variance.
        split: None, or mean `[D]` and direction `[D]`: a patch is foreground where (x - mean)·direction > 0.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor
    explained: tuple[float, ...]
    split: tuple[Tensor, Tensor] | None = None

    def foreground(self, patches: Tensor) -> Tensor:
        """Which patches `[... D]` are, bool `[...]`; all of them without a split."""
        if self.split is None:
            return torch.ones(patches.shape[:-1], dtype=torch.bool)
        return (patches.double() - self.split[0]) @ self.split[1] > 0

    def colors(self, patches: Tensor) -> np.ndarray:
        """Patches `[... D]` → uint8 `[... 3]`; what is no foreground is black."""
        found = (patches.double() - self.mean) @ self.components.T
        stretched = ((found - self.low) / (self.high - self.low).clamp_min(1e-30)).clamp(0, 1)
        return (stretched * self.foreground(patches)[..., None] * 255).round().to(torch.uint8).numpy()


def pca_colors_of(patches: Tensor, number: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, first components and all variances of features, in float64 through the covariance: nothing is random.

    A component's sign is chosen so that its largest loading, by absolute value, is positive.

    Args:
        patches: `[M D]`, M > 1, D ≥ number.
        number: Of components.

    Returns:
        `[D]`, `[number D]`, `[D]` falling.
    """
    centered = patches.double()
    mean = centered.mean(0)
    centered = centered - mean
    variances, vectors = torch.linalg.eigh(centered.T @ centered / (len(centered) - 1))
    components = vectors.T.flip(0)[:number]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return mean, components * largest.sign(), variances.flip(0).clamp_min(0)


def fit(images: list[Tensor], foreground: Foreground = "off") -> PCABasis:
    """A basis for several images together.

    With a foreground the first component of all patches tells it from the rest by its sign, and the components are
    those of its patches alone (the figure of DINOv2, Oquab et al. 2023). The sign itself means nothing: "auto" takes
    the side that has the smaller share of the images' outermost patches.

    Args:
        images: Patch features `[rows columns D]` each.
        foreground: Whether there is one, and on which side of the first component.

    Raises:
        UserError: Fewer patches than components.
    """
    patches = torch.cat([image.flatten(0, 1) for image in images]).double()
    split = None
    if foreground != "off":
        mean, direction, _ = pca_colors_of(_enough(patches), 1)
        split = mean, direction[0] * _side(images, mean, direction[0], foreground)
        patches = patches[(patches - split[0]) @ split[1] > 0]
    mean, components, variances = pca_colors_of(_enough(patches))
    found = (patches - mean) @ components.T
    low, high = (torch.from_numpy(np.percentile(found.numpy(), share, axis=0)) for share in (1, 99))
    explained = (variances[:3] / variances.sum().clamp_min(1e-30)).tolist()
    return PCABasis(mean, components, low, high, tuple(explained), split)


def _side(images: list[Tensor], mean: Tensor, direction: Tensor, foreground: Foreground) -> int:
    if foreground != "auto":
        return 1 if foreground == "above" else -1
    above = [(image.double() - mean) @ direction > 0 for image in images]
    inner = torch.cat([each[1:-1, 1:-1].flatten() for each in above])
    rim = sum(int(each.sum()) for each in above) - int(inner.sum())
    rim_size = sum(each.numel() for each in above) - len(inner)
    return 1 if not len(inner) or rim / rim_size <= inner.double().mean() else -1


def _enough(patches: Tensor) -> Tensor:
    if len(patches) < 4 or patches.shape[1] < 3:
        raise UserError(
            f"{len(patches)} patches of {patches.shape[1]} features have no three components",
            "Give more or larger images, or another --foreground",
        )
    return patches
