"""Multi-crop augmentation: from a batch of canvases and sampled view parameters to normalized views."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.compilation import compiled
from opendino.core.errors import UsageError
from opendino.core.types import ViewSpec
from opendino.views import functional, kernels
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
        pixel_steps = {
            name: (values, tuple(getattr(view, name) for view in group.views))
            for name, values in parameters.items()
            # the mask is for the network, see `patch_masks`
            if name not in ("crop", "mask") and not hasattr(AUGMENTATIONS[name], "place")
        }
        x = _placement(parameters).cut(canvas, group.view_px)  # [V, B, C, H, W]
        views[group.name] = _augment(x, pixel_steps, spec.mean, spec.std)
    return views


def crop_labels(canvas: Tensor, draws: dict[str, ViewParameters], spec: ViewSpec) -> dict[str, Tensor]:
    """The class of every pixel of the views: label maps cut where `multi_crop` cuts the images.

    Args:
        canvas: uint8 `[B Sy Sx]`, each label map in the top left corner of its canvas.
        draws: As for `multi_crop`.
        spec: Sizes of the crops.

    Returns:
        Group name → uint8 `[V B *view_px]`.

    Raises:
        UsageError: The views are rotated by any angle, which label maps cannot be.
    """
    if any("rotation" in parameters for parameters in draws.values()):
        raise UsageError(
            "Views of images with masks cannot be rotated by any angle",
            "Use --views.all.rotation.p 0, and quarter turns: --views.all.quarter_turns.p 1",
        )
    return {
        group.name: _placement(draws[group.name]).cut_labels(canvas, group.view_px)
        for group in spec.groups
        if group.views
    }


def _placement(parameters: ViewParameters) -> Placement:
    """Where the crops of a group read their pixels."""
    box = parameters["crop"]["box"]
    none = torch.zeros_like(box[..., 0], dtype=torch.bool)
    placement = Placement(box, none, none)
    for name, values in parameters.items():
        if name not in ("crop", "mask") and hasattr(AUGMENTATIONS[name], "place"):
            placement = AUGMENTATIONS[name].place(placement, values)
    return placement


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
        apply = _apply_to_drawn if kernels.by_index(x) else _apply
        x = apply(AUGMENTATIONS[name], x, parameters, configs)
    return functional.normalize_(x, mean, std)


def _apply(module: ModuleType, x: Tensor, parameters: dict[str, Tensor], configs: tuple[Any, ...]) -> Tensor:
    return module.apply(x, parameters, configs)


def _apply_to_drawn(module: ModuleType, x: Tensor, parameters: dict[str, Tensor], configs: tuple[Any, ...]) -> Tensor:
    """The same, only for the views that the augmentation changes; in place."""
    if not hasattr(module, "drawn"):
        return module.apply(x, parameters, configs)
    flat = {name: values.flatten(0, 1) for name, values in parameters.items()}

    def changed(some: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return module.apply(some[None], {name: values[None, rows] for name, values in flat.items()}, configs)[0]

    kernels.by_kind_(x.flatten(0, 1), module.drawn(parameters).flatten(), changed)
    return x
