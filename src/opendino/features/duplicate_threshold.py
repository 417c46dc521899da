"""The cosine above which two images are near-duplicates, from the neighbors in the set itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from opendino.features.outlier_scores import other_neighbors

EQUAL = 1 - 1e-6
"""Cosine of two equal vectors, up to rounding in float32."""

_SAMPLE = 4096  # images whose neighbors are searched
_OUTER = 20  # the density around an image is that of its 20 nearest neighbors
_INNER = 5  # neighbors nearer than the fifth are not used: they may be copies
_FEWEST = 50  # in smaller sets only equal vectors are duplicates


@dataclass(frozen=True)
class Cosines:
    """How similar images of a set are, and the threshold that follows from it.

    Attributes:
        threshold: Two images with this cosine or more are near-duplicates.
        nearest: 5 %, 50 % and 95 % quantile, and maximum, of the cosine of an image to its nearest other image.
        random: Median cosine of two random images.
    """

    threshold: float
    nearest: tuple[float, float, float, float]
    random: float


@torch.no_grad()
def cosine_distribution(features: Tensor, seed: int = 0) -> Cosines:
    """Choose the threshold at which chance would give about one pair.

    Where nothing is copied, neighbors lie like random points of a density in m dimensions: within distance r of an
    image there are about c · r^m others. m follows from how much farther the 20th neighbor is than the fifth
    (MacKay & Ghahramani 2005; neighbors nearer than that may be copies and are not used), c from the median distance
    of the 20th. The threshold t solves M · c · t^m = 1: among all M images about one has another within t by chance.
    A set of similar images, or features that tell little apart, so has a higher threshold, not more duplicates.

    Args:
        features: float `[M D]`, M ≥ 2, each with a direction (see `nearest_neighbors.directed`).
        seed: Of the sample: neighbors of at most 4,096 images are searched, among all images.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(features), generator=generator)[:_SAMPLE].to(features.device)
    distances = other_neighbors(features, min(_OUTER, len(features) - 1), sample)[0].double()  # [Q 20]
    shares = torch.tensor([0.05, 0.5, 0.95, 1], dtype=torch.float64, device=features.device)
    five, half, most, largest = (1 - distances[:, 0] ** 2 / 2).quantile(shares).tolist()
    random = cosine_similarity(features[sample], features[sample.roll(1)]).median()
    return Cosines(_threshold(distances, len(features)), (five, half, most, largest), float(random))


def _threshold(distances: Tensor, num_images: int) -> float:
    """The threshold from the distances to the nearest 20 others, `[Q 20]`."""
    # Where five or more are equal there is no density to measure.
    distances = distances[distances[:, min(_INNER, distances.shape[1]) - 1] > math.sqrt(2 - 2 * EQUAL)]
    if num_images < _FEWEST or not len(distances):
        return EQUAL
    inner, outer = distances[:, _INNER - 1], distances[:, -1]
    ratio = float((outer / inner).log().mean())
    dimension = sum(1 / j for j in range(_INNER, _OUTER)) / max(ratio, 1e-3)
    # c = 20 / outer^m around an image; M · c · t^m = 1
    radius = float(outer.median()) * (_OUTER * num_images) ** (-1 / dimension)
    return min(1 - radius**2 / 2, EQUAL)
