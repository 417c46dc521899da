"""Do two disjoint crops of one image find each other? A score of features that needs no labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from opendino.views import functional

NUM_IMAGES = 256
"""Number of images that an online evaluation compares."""
_FACTORS = 0.6, 1.4  # of brightness and contrast
_AT_ONCE = 32  # images whose crops are float32 at a time


@torch.no_grad()
def disjoint_crops(images: Tensor, seed: int = 0) -> Tensor:
    """Cut two squares of half the side that share no pixel out of each image, without color and of random light.

    Without color means gray for three channels, and light of its own for each channel otherwise.

    One lies in the left half and one in the right half, or one above and one below. Color and brightness differ from
    image to image, so with them any network, and even a color histogram, would find the other crop.

    Args:
        images: uint8 or uint16 `[M C S S]`.
        seed: Seed of the places and of the light.

    Returns:
        `[2 M C S S]` of the type of the images, resized to the side of the image.
    """
    num, side = len(images), images.shape[-1]
    half, rng = max(1, side // 2), torch.Generator().manual_seed(seed)
    corner = torch.randint(side - half + 1, (2, num, 2), generator=rng)  # [2 M 2]: top, left
    axis = torch.randint(2, (num,), generator=rng)
    for number, place in enumerate((0, side - half)):
        corner[number, torch.arange(num), axis] = place
    box = torch.cat([corner, torch.full_like(corner, half)], 2).int()
    in_color, (low, high) = images.shape[1] == 3, _FACTORS
    factors = low + (high - low) * torch.rand(2, num, *([] if in_color else images.shape[1:2]), 4, generator=rng)
    white = torch.iinfo(images.dtype).max
    found = torch.empty(2, *images.shape, dtype=images.dtype)
    for first in range(0, num, _AT_ONCE):
        rows = slice(first, min(first + _AT_ONCE, num))
        count = rows.stop - first
        no, yes = torch.zeros(2, count, dtype=torch.bool), torch.ones(2, count, dtype=torch.bool)
        crops = functional.to_float(functional.crop_resize(images[rows], box[:, rows], no, side))
        crops = functional.gray(crops, yes) if in_color else crops.unsqueeze(3)  # channels as images of their own
        light = factors[:, rows]
        crops = functional.jitter_light(crops, light, torch.arange(4).expand_as(light).contiguous())
        found[:, rows] = (crops.view(2, count, *images.shape[1:]) * white).round().to(images.dtype)
    return found


@torch.no_grad()
def match_rate(one: Tensor, other: Tensor) -> float:
    """How often the other crop of the same image is nearer by cosine than a crop of another image, in percent.

    Over all pairs of an image and another one, in both directions; a tie counts as half. 50 is chance, 100 is perfect.

    Args:
        one, other: float `[M D]`, features of the two crops of each image.

    Returns:
        NaN for fewer than two images, and if a feature is not finite.
    """
    num = len(one)
    if num < 2 or not (one.isfinite().all() and other.isfinite().all()):
        return float("nan")
    cosines = normalize(one.double(), dim=1) @ normalize(other.double(), dim=1).T  # [M M]
    wins = torch.zeros((), dtype=torch.float64)
    for rows in (cosines, cosines.T):
        own = rows.diagonal()[:, None]
        wins += (rows < own).sum() + ((rows == own).sum() - num) / 2
    return 100 * float(wins / (2 * num * (num - 1)))
