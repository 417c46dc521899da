"""Do two disjoint crops of one image find each other? A score of features that needs no labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from opendino.views import functional
from opendino.views.crop_resize import crop_resize

NUM_IMAGES = 256
"""Number of images that an online evaluation compares."""
_FACTORS = 0.6, 1.4  # of brightness and contrast
_AT_ONCE = 32  # images whose crops are float32 at a time


@torch.no_grad()
def disjoint_crops(images: Tensor, seed: int = 0) -> Tensor:
    """Cut two squares of half the side that share no pixel out of each image.

    One lies in the left half and one in the right half, or one above and one below.

    Args:
        images: uint8 or uint16 `[M C S S]`.
        seed: Seed of the places.

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
    found = torch.empty(2, *images.shape, dtype=images.dtype)
    for rows in _slices(num):
        no_flip = torch.zeros(2, rows.stop - rows.start, dtype=torch.bool)
        found[:, rows] = crop_resize(images[rows], box[:, rows], no_flip, side)
    return found


@torch.no_grad()
def in_gray(crops: Tensor, seed: int = 0) -> Tensor:
    """The crops in gray and of random brightness and contrast, each its own.

    Color and light differ from image to image: with them even a color histogram finds the other crop of an image.
    Images of other than three channels keep their channels, each with light of its own.

    Args:
        crops: uint8 or uint16 `[2 M C S S]`.
        seed: Seed of the light.

    Returns:
        Of the type and shape of the crops.
    """
    (_, num, channels, *_), (low, high) = crops.shape, _FACTORS
    in_color = channels == 3
    shape = (2, num, 4) if in_color else (2, num, channels, 4)
    factors = low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    found = torch.empty_like(crops)
    for rows in _slices(num):
        part, light = functional.to_float(crops[:, rows]), factors[:, rows]
        gray = functional.gray(part, torch.ones(part.shape[:2], dtype=torch.bool)) if in_color else part.unsqueeze(3)
        lit = functional.jitter_light(gray, light, torch.arange(4).expand_as(light).contiguous())
        found[:, rows] = (lit.view_as(part) * torch.iinfo(crops.dtype).max).round().to(crops.dtype)
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
    if len(one) < 2 or not (one.isfinite().all() and other.isfinite().all()):
        return float("nan")
    return 100 * float(match_scores(one, other).mean())


@torch.no_grad()
def match_scores(one: Tensor, other: Tensor) -> Tensor:
    """The same for each image: float64 `[M]` in 0 … 1. M ≥ 2."""
    num = len(one)
    cosines = normalize(one.double(), dim=1) @ normalize(other.double(), dim=1).T  # [M M]
    wins = torch.zeros(num, dtype=torch.float64)
    for rows in (cosines, cosines.T):
        own = rows.diagonal()[:, None]
        wins += (rows < own).sum(1) + ((rows == own).sum(1) - 1) / 2
    return wins / (2 * (num - 1))


def _slices(number: int) -> list[slice]:
    return [slice(first, min(first + _AT_ONCE, number)) for first in range(0, number, _AT_ONCE)]
