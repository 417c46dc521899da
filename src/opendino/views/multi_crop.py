"""Multi-crop augmentation: from a batch of canvases and sampled view parameters to normalized views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opendino.core.compilation import compiled
from opendino.core.types import ViewSpec
from opendino.views import functional
from opendino.views.placement import Placement
from opendino.views.sampling import ViewParameters
from opendino.views.settings import AUGMENTATIONS


@torch.no_grad()
def multi_crop(canvas: Tensor, draws: dict[str, ViewParameters], spec: ViewSpec) -> dict[str, Tensor]:
    """Apply sampled view parameters: crop, the augmentations in their order, normalize.

    Args:
        canvas: uint8 or uint16 `[B C Sy Sx]`, each image in the top left corner of its canvas.
        draws: Result of `sampling.sample_views(spec, ...)`, on the device of the canvas.
        spec: Sizes of the crops, and normalization.

    Returns:
        Group name → float32 `[V B C *view_px]`, normalized.

    Raises:
        UsageError: An augmentation needs RGB, and the canvas has other channels.
    """
    views = {}
    for group in spec.groups:
        if not group.views:
            continue
        parameters = draws[group.name]
        box = parameters["crop"]["box"]
        none = torch.zeros_like(box[..., 0], dtype=torch.bool)
        placement, pixel_steps = Placement(box, none, none), {}
        for name, values in parameters.items():
            if name in ("crop", "mask"):  # the mask is for the network, see `patch_masks`
                continue
            module = AUGMENTATIONS[name]
            if hasattr(module, "place"):
                placement = module.place(placement, values)
            else:
                pixel_steps[name] = values, tuple(getattr(view, name) for view in group.views)
        x = placement.cut(canvas, group.view_px)  # [V, B, C, H, W]
        views[group.name] = _augment(x, pixel_steps, spec.mean, spec.std)
    return views


@compiled
def _augment(
    x: Tensor,
    steps: dict[str, tuple[dict[str, Tensor], tuple[Any, ...]]],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """Pixel operations on a group's crops; one function, so that they compile into one pass over memory."""
    x = functional.to_float(x)
    for name, (parameters, configs) in steps.items():
        x = AUGMENTATIONS[name].apply(x, parameters, configs)
    return functional.normalize(x, mean, std)
