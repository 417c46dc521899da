"""How well a mask agrees with the truth: J, overlap of regions, and F, of boundaries (Perazzi et al. 2016, DAVIS)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

_BOUNDARY_FRAC = 0.008


def jaccard(truth: Tensor, found: Tensor, void: Tensor | None = None) -> Tensor:
    """J: intersection over union; 1 where both masks are empty.

    Args:
        truth, found: bool `[... H W]`.
        void: bool, the same shape or one that broadcasts to it; pixels that do not count.

    Returns:
        float64 `[...]` in 0 .. 1.
    """
    if void is not None:
        truth, found = truth & ~void, found & ~void
    union = (truth | found).sum((-2, -1)).double()
    return torch.where(union > 0, (truth & found).sum((-2, -1)) / union, 1.0)


def boundary_f(truth: Tensor, found: Tensor, void: Tensor | None = None) -> Tensor:
    """F: harmonic mean of how much of each boundary lies near the other.

    Near is within 0.8 % of the image's diagonal, rounded up to whole pixels. Where only one boundary exists F is 0,
    where none does it is 1. Arguments and result as `jaccard`.
    """
    if void is not None:
        truth, found = truth & ~void, found & ~void
    radius_px = math.ceil(_BOUNDARY_FRAC * math.hypot(*truth.shape[-2:]))
    true, drawn = _boundary(truth), _boundary(found)
    precision = _share(drawn, _dilated(true, radius_px))
    recall = _share(true, _dilated(drawn, radius_px))
    both = precision + recall
    return torch.where(both > 0, 2 * precision * recall / both, 0.0)


def statistics(values: Tensor) -> tuple[float, float, float]:
    """Mean, recall (share of frames above 0.5) and decay (first quarter minus last) of an object over time.

    Args:
        values: `[T]`, T ≥ 1. Quarters share the frame at which they meet, as in the official evaluator.
    """
    ends = torch.linspace(0, len(values) - 1, 5, dtype=torch.float64).add(1e-10).round().long().tolist()  # ties go up
    first, last = values[: ends[1] + 1], values[ends[3] : ends[4] + 1]
    return float(values.mean()), float((values > 0.5).double().mean()), float(first.mean() - last.mean())


def _boundary(mask: Tensor) -> Tensor:
    """Pixels that differ from the next to the right, below, or both; beyond the edge all goes on as it was."""
    mask = torch.cat([mask, mask[..., -1:]], dim=-1)
    mask = torch.cat([mask, mask[..., -1:, :]], dim=-2)
    here, right, below, across = mask[..., :-1, :-1], mask[..., :-1, 1:], mask[..., 1:, :-1], mask[..., 1:, 1:]
    return (here != right) | (here != below) | (here != across)


def _dilated(mask: Tensor, radius_px: int) -> Tensor:
    """All pixels within `radius_px` of the mask, by Euclid: row by row of the disk, by running counts along each."""
    height, width = mask.shape[-2:]
    counts = pad(mask, (radius_px + 1, radius_px, radius_px, radius_px)).cumsum(-1, dtype=torch.int32)
    near = torch.zeros_like(mask)
    for row in range(-radius_px, radius_px + 1):
        reach = math.isqrt(radius_px**2 - row**2)
        above = counts[..., radius_px + row : radius_px + row + height, :]
        start, end = radius_px - reach, radius_px + reach + 1
        near |= above[..., end : end + width] > above[..., start : start + width]
    return near


def _share(boundary: Tensor, near: Tensor) -> Tensor:
    """Share of a boundary that lies near the other; 1 of an empty one."""
    length = boundary.sum((-2, -1)).double()
    return torch.where(length > 0, (boundary & near).sum((-2, -1)) / length, 1.0)
