"""Brightness, contrast and sharpness of images, and whether they differ between two sets."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opendino.features.permutation_test import p_value

APPEARANCE = ("brightness", "contrast", "sharpness")
_AT_ONCE = 2**22  # ranks at a time


def appearance(image: Image.Image) -> tuple[float, float, float]:
    """Brightness, contrast and sharpness of a picture in gray, whose values are 0 to 1.

    That is the mean, the standard deviation, and the standard deviation of the Laplacian (Pech-Pacheco et al. 2000),
    which is 0 for an image of less than 3×3 px.
    """
    gray = np.asarray(image.convert("L"), np.float64) / 255  # [H W]
    if min(gray.shape) < 3:
        return float(gray.mean()), float(gray.std()), 0.0
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    return float(gray.mean()), float(gray.std()), float((around - 4 * gray[1:-1, 1:-1]).std())


def distributions_differ(a: Tensor, b: Tensor, permutations: int = 1000, seed: int = 0) -> float:
    """p-value of the two-sample test of Anderson and Darling (Pettitt 1976), by permutations.

    It sees differences at the ends of the distributions, such as a fifth of brighter images, better than tests of the
    mean or of Kolmogorov and Smirnov. Equal values are ordered at random.

    Args:
        a: float `[A]`, A ≥ 1.
        b: float `[B]`, B ≥ 1.
        permutations: Number of random exchanges, at least 1.
        seed: Of the exchanges and of the order of equal values.

    Returns:
        A probability in (0, 1]; uniform where both come from one distribution.
    """
    generator, total = torch.Generator().manual_seed(seed), len(a) + len(b)
    shuffled = torch.randperm(total, generator=generator)
    order = shuffled[torch.cat([a, b])[shuffled].argsort(stable=True)]
    in_a = order < len(a)  # [A + B] in the order of the values
    parts = torch.arange(permutations).split(max(1, _AT_ONCE // total))
    exchanged = [
        _statistic(torch.stack([in_a[torch.randperm(total, generator=generator)] for _ in part])) for part in parts
    ]
    return p_value(float(_statistic(in_a[None])), torch.cat(exchanged), generator)


def _statistic(in_a: Tensor) -> Tensor:
    """The statistic `[P]` of memberships in the order of the values, bool `[P N]`."""
    num_a, total = int(in_a[0].sum()), in_a.shape[1]
    rank = torch.arange(1, total, dtype=torch.float64)  # [N - 1]
    below = in_a[:, :-1].cumsum(1).double()  # of A, at or below each value
    return ((below * total - num_a * rank) ** 2 / (rank * (total - rank))).sum(1) / (num_a * (total - num_a))
