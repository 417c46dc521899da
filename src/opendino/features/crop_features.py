"""Crops in memory → features, while a run trains."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from opendino.core.contracts import Backbone

RGB = tuple[float, float, float]


@torch.no_grad()
def extract(backbone: Backbone, crops: Tensor, mean: RGB, std: RGB, device: torch.device, batch: int = 64) -> Tensor:
    """The image features (`Features.cls`) of crops, in eval mode; the network's mode is put back as it was.

    Args:
        backbone: Any.
        crops: uint8 `[M 3 H W]` on the host.
        mean, std: Normalization of pixels in [0, 1].
        device: Where the backbone is.
        batch: Images at a time.

    Returns:
        float32 `[M D]` on the host.
    """
    was_training = backbone.training
    backbone.eval()
    parts = [backbone([part])[0].float().cpu() for part in _normalized(crops, mean, std, device, batch)]
    backbone.train(was_training)
    return torch.cat([torch.empty(0, backbone.embed_dim), *parts])  # a rank's share may be empty


@torch.no_grad()
def recalibrate_batch_norm(
    backbone: Backbone, crops: Tensor, mean: RGB, std: RGB, device: torch.device, batch: int = 64
) -> None:
    """Let BatchNorm take its statistics from these images alone, so that an untrained network is judged fairly."""
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches, not a moving one
    for part in _normalized(crops, mean, std, device, batch):
        if len(part) > 1:  # BatchNorm cannot learn a variance from one image
            backbone([part])


def pixels(crops: Tensor, side: int = 16) -> Tensor:
    """The baseline any feature must beat: the pixels themselves, shrunk.

    Args:
        crops: uint8 `[M 3 H W]`.
        side: Pixels a side after shrinking with antialias.

    Returns:
        float32 `[M 3·side·side]`, values in [0, 1].
    """

    def shrink(part: Tensor) -> Tensor:
        return nn.functional.interpolate(part.float() / 255, (side, side), mode="bilinear", antialias=True).flatten(1)

    return torch.cat([torch.empty(0, 3 * side**2), *(shrink(part) for part in crops.split(256) if len(part))])


def _normalized(crops: Tensor, mean: RGB, std: RGB, device: torch.device, batch: int) -> Iterator[Tensor]:
    shift, scale = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
    for part in (part for part in crops.split(batch) if len(part)):
        yield (part.to(device).float() / 255 - shift) / scale
