"""Brightness, contrast and sharpness of images, and whether they differ between two sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opendino.features.permutation_test import p_value

APPEARANCE = ("brightness", "contrast", "sharpness")
PERMUTATIONS = 10_000
"""Enough that a p-value of 0.05 changes by less than 0.005 with another seed."""
_AT_ONCE = 2**22  # memberships at a time


@dataclass(frozen=True)
class AppearanceTest:
    """Result of `appearance_test`.

    Attributes:
        p: For each measurement the probability that any of them differs this much or more if the sets come from one
            distribution, in (0, 1]; the smallest is the p-value of the whole test.
        high: For each measurement whether more values of B than of A are high; else more are low.
    """

    p: tuple[float, ...]
    high: tuple[bool, ...]


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


def appearance_test(a: Tensor, b: Tensor, permutations: int = PERMUTATIONS, seed: int = 0) -> AppearanceTest:
    """Test whether measurements of two sets of images differ, by permutations of the images.

    Two statistics of each measurement: that of Anderson and Darling (Pettitt 1976), which sees differences at the ends
    of the distributions, and the difference of the means. The smallest p-value of all is compared with the smallest of
    each permutation, so it needs no further correction, and statistics that say the same cost no power (Westfall &
    Young 1993). Equal values are ordered at random.

    Args:
        a: float `[A M]`, M measurements ≥ 0 of each image, A ≥ 1.
        b: float `[B M]`, B ≥ 1.
        permutations: Number of random exchanges of images, at least 1.
        seed: Of the exchanges and of the order of equal values.
    """
    generator, total = torch.Generator().manual_seed(seed), len(a) + len(b)
    values = torch.cat([a, b]).double()  # [N M]
    shuffled = torch.randperm(total, generator=generator)
    orders = shuffled[values[shuffled].argsort(dim=0, stable=True)]  # [N M]
    in_a = torch.arange(total) < len(a)
    found = [_statistics(in_a[None], values, orders)]
    for part in torch.arange(permutations).split(max(1, _AT_ONCE // total)):
        exchanged = torch.stack([in_a[torch.randperm(total, generator=generator)] for _ in part])
        found.append(_statistics(exchanged, values, orders))
    smallest = _ranks(torch.cat(found)).amin(2)  # [1 + P, M], over the statistics
    of_all = -smallest[1:].amin(1)
    # The same random order of equal p-values for each measurement, so that the smallest is the p-value of all.
    p = tuple(p_value(-float(own), of_all, generator.clone_state()) for own in smallest[0])
    ends = a.double().quantile(torch.tensor([0.1, 0.9], dtype=torch.float64), 0)  # [2 M]
    high = (b > ends[1]).double().mean(0) >= (b < ends[0]).double().mean(0)
    return AppearanceTest(p, tuple(high.tolist()))


def _statistics(in_a: Tensor, values: Tensor, orders: Tensor) -> Tensor:
    """The statistics `[P M 2]` of memberships bool `[P N]`; values and the orders that sort them `[N M]`."""
    sums = (in_a.double() @ (values - values.mean(0))).abs()  # [P M], in proportion to the differences of the means
    distances = torch.stack([anderson_darling(in_a[:, order]) for order in orders.T], 1)  # [P M]
    return torch.stack([distances, sums], 2)


def anderson_darling(in_a: Tensor) -> Tensor:
    """The two-sample statistic `[P]` of memberships in the order of the values, bool `[P N]`."""
    num_a, total = int(in_a[0].sum()), in_a.shape[1]
    rank = torch.arange(1, total, dtype=torch.float64)  # [N - 1]
    below = in_a[:, :-1].cumsum(1).double()  # of A, at or below each value
    return (below * total - num_a * rank).square_() @ (1 / (rank * (total - rank))) / (num_a * (total - num_a))


def _ranks(statistics: Tensor) -> Tensor:
    """Share of rows `[R ...]` whose statistic is at least as large, in (0, 1], for each row."""
    rows = len(statistics)
    # Sums in another order differ in the last bits: these statistics are equal.
    rounded = statistics / statistics.amax(0).clamp_min(1e-300)
    columns = rounded.mul(1e9).round().flatten(1).T.contiguous()  # [S R]
    ascending = columns.sort(1).values
    below = torch.searchsorted(ascending, columns)  # number of smaller ones
    return ((rows - below).double() / rows).T.reshape(statistics.shape)
