"""mIoU, pixel accuracy and boundary F over a set of images, with a standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opendino.datasets.mask_metrics import boundary_counts, class_counts, class_iou, f_measure

_RESAMPLES = 200


@dataclass(frozen=True)
class SegmentationScores:
    """Figures in percent, the mean over several heads; None where there is nothing to measure it on.

    Attributes:
        miou: Mean IoU of the classes that occur in the ground truth, over all pixels of all images.
        error: Standard error of `miou`: that over images, by bootstrap, and that over heads. None from one image.
        pixel_accuracy: Share of the pixels with the right class.
        boundary_f: Mean over classes of the boundary's F.
        iou: IoU of each class.
    """

    miou: float
    error: float | None
    pixel_accuracy: float
    boundary_f: float | None
    iou: list[float | None]


def counts(truth: Tensor, found: Tensor, num_classes: int, boundary_px: int) -> Tensor:
    """Pixels and boundary pixels of each class in one image; the counts of several images can be added.

    Args:
        truth: uint8 `[H W]`, classes 0 to K - 1; larger values are ignored.
        found: uint8 `[H W]`, classes 0 to K - 1.
        num_classes: K.
        boundary_px: Distance up to which boundaries agree, in pixels.

    Returns:
        int64 `[K 7]`: `class_counts`, then `boundary_counts`.
    """
    counted = torch.zeros(num_classes, 7, dtype=torch.int64)
    counted[:, :3] = class_counts(truth, found, num_classes)
    valid = truth < num_classes
    for label in counted[:, 1:3].sum(1).nonzero().flatten().tolist():
        counted[label, 3:] = boundary_counts(truth == label, (found == label) & valid, boundary_px)
    return counted


def scores(counted: Tensor, measured: Tensor, seed: int = 0) -> SegmentationScores:
    """Figures of several heads of one kind, and their mean.

    Args:
        counted: int64 `[heads images K 7]`, from `counts`.
        measured: bool `[heads images]`: whether a head is measured on an image; each on one or more.
        seed: Of the bootstrap.
    """
    own = counted.double() * measured[..., None, None]
    miou, accuracy, boundary, iou = _figures(own.sum(1))
    num_heads, num_images = measured.shape
    rng = np.random.Generator(np.random.Philox(key=[seed, 4]))
    times = torch.from_numpy(rng.multinomial(num_images, [1 / num_images] * num_images, _RESAMPLES)).double()
    resampled = _figures(torch.einsum("rn,hnkc->rhkc", times, own))[0].nanmean(1)  # [resamples]
    variance = float(resampled[resampled.isfinite()].var()) + float(miou.var(correction=0)) / max(1, num_heads - 1)
    return SegmentationScores(
        100 * float(miou.mean()),
        100 * math.sqrt(variance) if measured.any(0).sum() > 1 else None,
        100 * float(accuracy.mean()),
        _percent(boundary.nanmean()),
        [_percent(each) for each in iou.nanmean(0)],
    )


def _figures(counted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mIoU, pixel accuracy and boundary F `[...]`, and IoU `[... K]`, of sums of counts `[... K 7]`."""
    iou, (both, true, _) = class_iou(counted[..., :3]), counted[..., :3].sum(-2).unbind(-1)
    has_boundary = (counted[..., 1] > 0) & (counted[..., [4, 6]].sum(-1) > 0)
    boundary = torch.where(has_boundary, f_measure(counted[..., 3:]), torch.nan)
    return iou.nanmean(-1), both / true, boundary.nanmean(-1), iou


def _percent(value: Tensor) -> float | None:
    return 100 * float(value) if value.isfinite() else None
