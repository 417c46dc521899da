"""Metrics of segmentation masks: J and F of objects (Perazzi et al. 2016, DAVIS); IoU, accuracy and F of classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

_BOUNDARY_FRAC = 0.008


def jaccard(truth: Tensor, found: Tensor, void: Tensor | None = None) -> Tensor:
    """J: intersection over union of two masks, `|A ∩ B| / |A ∪ B|`; 1 where both are empty.

    Args:
        truth, found: bool `[... H W]`, ground truth and prediction.
        void: bool, broadcastable to the same shape: pixels that are ignored.

    Returns:
        float64 `[...]` in 0 .. 1.
    """
    if void is not None:
        truth, found = truth & ~void, found & ~void
    union = (truth | found).sum((-2, -1)).double()
    return torch.where(union > 0, (truth & found).sum((-2, -1)) / union, 1.0)


def boundary_f(truth: Tensor, found: Tensor, void: Tensor | None = None) -> Tensor:
    """F: harmonic mean of the precision and recall of the predicted boundary, `2PR / (P + R)`.

    A boundary pixel is matched if the other boundary is within 0.8 % of the image diagonal, rounded up to whole pixels.
    F is 0 if only one mask has a boundary, and 1 if neither has one. Arguments and result are those of `jaccard`.
    """
    if void is not None:
        truth, found = truth & ~void, found & ~void
    counts = boundary_counts(truth, found, math.ceil(_BOUNDARY_FRAC * math.hypot(*truth.shape[-2:])))
    return f_measure(counts)


def boundary_counts(truth: Tensor, found: Tensor, radius_px: int) -> Tensor:
    """How much of each of two boundaries is near the other; the counts of several images can be added, for one F.

    Args:
        truth, found: bool `[... H W]`, ground truth and prediction.
        radius_px: A boundary pixel is matched if the other boundary is within this Euclidean distance.

    Returns:
        int64 `[... 4]`: matched and all pixels of the predicted boundary, matched and all pixels of the true one.
    """
    true, predicted = _boundary(truth), _boundary(found)
    near_true, near_predicted = _dilated(true, radius_px), _dilated(predicted, radius_px)
    counted = [predicted & near_true, predicted, true & near_predicted, true]
    return torch.stack([each.sum((-2, -1)) for each in counted], -1)


def f_measure(counts: Tensor) -> Tensor:
    """`2PR / (P + R)` of `boundary_counts` `[... 4]`, float64 `[...]`; 0 if only one has a boundary, 1 if neither."""
    counts = counts.double()
    precision = torch.where(counts[..., 1] > 0, counts[..., 0] / counts[..., 1], 1.0)
    recall = torch.where(counts[..., 3] > 0, counts[..., 2] / counts[..., 3], 1.0)
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total, 0.0)


def class_counts(truth: Tensor, found: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class, for IoU and accuracy; the counts of several images can be added.

    Args:
        truth: uint8 `[H W]`; pixels with values of `num_classes` and above are ignored.
        found: uint8 `[H W]`, below `num_classes`.
        num_classes: K.

    Returns:
        int64 `[K 3]`: pixels that are both, in the ground truth, and in the prediction.
    """
    valid = truth < num_classes
    true, predicted = truth[valid].long(), found[valid].long()
    counted = [true[true == predicted], true, predicted]
    return torch.stack([each.bincount(minlength=num_classes) for each in counted], 1)


def class_iou(counts: Tensor) -> Tensor:
    """Intersection over union of each class over all pixels that were counted.

    Args:
        counts: `[... K 3]`, a sum of `class_counts`.

    Returns:
        float64 `[... K]` in 0 .. 1; NaN for classes without a pixel in the ground truth.
    """
    both, true, predicted = counts.double().unbind(-1)
    return torch.where(true > 0, both / (true + predicted - both), torch.nan)


def statistics(values: Tensor) -> tuple[float, float, float]:
    """Mean, recall (share of frames above 0.5) and decay (first quarter minus last) of a metric over time.

    Args:
        values: `[T]`, T ≥ 1, J or F of an object in each frame.

    Returns:
        Mean, recall and decay. Neighboring quarters share one frame, as in the official DAVIS evaluation.
    """
    ends = torch.linspace(0, len(values) - 1, 5, dtype=torch.float64).add(1e-10).round().long().tolist()  # ties go up
    first, last = values[: ends[1] + 1], values[ends[3] : ends[4] + 1]
    return float(values.mean()), float((values > 0.5).double().mean()), float(first.mean() - last.mean())


def _boundary(mask: Tensor) -> Tensor:
    """Pixels that differ from their right, lower, or lower right neighbor; edges are replicated."""
    mask = torch.cat([mask, mask[..., -1:]], dim=-1)  # [... H W+1]
    mask = torch.cat([mask, mask[..., -1:, :]], dim=-2)  # [... H+1 W+1]
    here, right, below, across = mask[..., :-1, :-1], mask[..., :-1, 1:], mask[..., 1:, :-1], mask[..., 1:, 1:]
    return (here != right) | (here != below) | (here != across)


def _dilated(mask: Tensor, radius_px: int) -> Tensor:
    """Dilation by a disk: all pixels within Euclidean distance `radius_px` of the mask.

    The disk is a stack of horizontal segments. Whether a segment touches the mask is the difference of two cumulative
    sums along the row, so the cost is linear in the radius.
    """
    height, width = mask.shape[-2:]
    counts = pad(mask, (radius_px + 1, radius_px, radius_px, radius_px)).cumsum(-1, dtype=torch.int32)
    near = torch.zeros_like(mask)
    for row in range(-radius_px, radius_px + 1):
        reach = math.isqrt(radius_px**2 - row**2)  # half the length of the segment
        above = counts[..., radius_px + row : radius_px + row + height, :]
        start, end = radius_px - reach, radius_px + reach + 1
        near |= above[..., end : end + width] > above[..., start : start + width]
    return near
