"""Multi-crop augmentation: from a batch of canvases and sampled view parameters to normalized views."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opendino.core.compilation import compiled
from opendino.core.types import ViewSpec
from opendino.views import functional
from opendino.views.sampling import ViewParameters


@torch.no_grad()
def multi_crop(canvas: Tensor, draws: dict[str, ViewParameters], spec: ViewSpec) -> dict[str, Tensor]:
    """Apply sampled view parameters: crop, flip, jitter, gray, blur, solarize, normalize (BYOL, appendix B; DINO v1).

    Args:
        canvas: uint8 `[B 3 Sy Sx]`, each image in the top left corner of its canvas.
        draws: Result of `sampling.sample_views(spec, ...)`, on the device of the canvas.
        spec: Sizes of the crops, and normalization.

    Returns:
        Group name → float32 `[V B 3 H W]` with H = W = the group's `size_px`, normalized.
    """
    views = {}
    for group in spec.groups:
        if not group.views:
            continue
        d = draws[group.name]
        x = functional.crop_resize(canvas, d.box, d.flip, group.size_px)  # uint8 [V, B, 3, H, W]
        reach_px = math.ceil(5 * max(view.sigma_px[1] for view in group.views))
        views[group.name] = _color_augment(
            x, d.factors, d.order, d.gray, d.sigma, d.solarize, reach_px, spec.mean, spec.std
        )
    return views


@compiled
def _color_augment(
    x: Tensor,
    factors: Tensor,
    order: Tensor,
    gray: Tensor,
    sigma: Tensor,
    solarize: Tensor,
    reach_px: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """Color operations on a group's uint8 crops; one function, so that they compile into one pass over memory."""
    x = functional.gray(functional.jitter(x / 255, factors, order), gray)
    x = functional.solarize(functional.blur(x, sigma, reach_px), solarize)
    return functional.normalize(x, mean, std)
