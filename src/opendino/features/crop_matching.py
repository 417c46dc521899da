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
    """Cut two squares of half the side that share no pixel out of each image.

    One lies in the left half and one in the right half, or one above and one below.

    Args:
        images: uint8 `[M 3 S S]`.
        seed: Seed of the places.

    Returns:
        uint8 `[2 M 3 S S]`, resized to the side of the image.
    """
    num, side = len(images), images.shape[-1]
    half, rng = max(1, side // 2), torch.Generator().manual_seed(seed)
    corner = torch.randint(side - half + 1, (2, num, 2), generator=rng)  # [2 M 2]: top, left
    axis = torch.randint(2, (num,), generator=rng)
    for number, place in enumerate((0, side - half)):
        corner[number, torch.arange(num), axis] = place
    box = torch.cat([corner, torch.full_like(corner, half)], 2).int()
    found = torch.empty(2, *images.shape, dtype=torch.uint8)
    for rows in torch.arange(num).split(_AT_ONCE):
        no_flip = torch.zeros(2, len(rows), dtype=torch.bool)
        found[:, rows] = functional.crop_resize(images[rows], box[:, rows], no_flip, side)
    return found


@torch.no_grad()
def in_gray(crops: Tensor, seed: int = 0) -> Tensor:
    """The crops in gray and of random brightness and contrast, each its own.

    Color and light differ from image to image: with them even a color histogram finds the other crop of an image.

    Args:
        crops: uint8 `[2 M 3 S S]`.
        seed: Seed of the light.

    Returns:
        uint8 `[2 M 3 S S]`.
    """
    low, high = _FACTORS
    factors = low + (high - low) * torch.rand(*crops.shape[:2], 4, generator=torch.Generator().manual_seed(seed))
    found = torch.empty_like(crops)
    for rows in torch.arange(crops.shape[1]).split(_AT_ONCE):
        gray = functional.gray(crops[:, rows] / 255, torch.ones(2, len(rows), dtype=torch.bool))
        lit = functional.jitter_light(gray, factors[:, rows], torch.arange(4).expand(2, len(rows), 4))
        found[:, rows] = (lit * 255).round().to(torch.uint8)
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
