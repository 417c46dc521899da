"""From a batch of canvases and its draw to views: the one function of this kind that a training loop calls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opendino.core.fusion import fused
from opendino.core.types import ViewSpec
from opendino.data import apply
from opendino.data.draw import GroupDraw


@torch.no_grad()
def crops(canvas: Tensor, draws: dict[str, GroupDraw], spec: ViewSpec) -> dict[str, Tensor]:
    """Crop and flip, jitter, grey, blur, solarise, normalise (BYOL, appendix B; DINO v1).

    Args:
        canvas: uint8 `[B 3 Sy Sx]`, each image in the top left corner of its canvas.
        draws: What `draw(spec, ...)` returned, on the canvas's device.
        spec: Sizes of the crops and normalisation of their pixels.

    Returns:
        Group name → float32 `[V B 3 H W]` with H = W = the group's `size_px`, normalised.
    """
    views = {}
    for group in spec.groups:
        if not group.views:
            continue
        d = draws[group.name]
        x = apply.crop_resize(canvas, d.box, d.flip, group.size_px)
        reach_px = math.ceil(5 * max(view.sigma_px[1] for view in group.views))
        views[group.name] = _colours(x, d.factors, d.order, d.grey, d.sigma, d.solarise, reach_px, spec.mean, spec.std)
    return views


@fused
def _colours(
    x: Tensor,
    factors: Tensor,
    order: Tensor,
    grey: Tensor,
    sigma: Tensor,
    solarise: Tensor,
    reach_px: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """What is done to the pixels of a group's crops, uint8; so that it can be one pass over them and not fifty."""
    x = apply.grey(apply.jitter(x / 255, factors, order), grey)
    x = apply.solarise(apply.blur(x, sigma, reach_px), solarise)
    return apply.normalise(x, mean, std)
