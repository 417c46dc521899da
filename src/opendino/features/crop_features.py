"""Compute features of crops that are in memory, for the online evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from opendino.core.contracts import Backbone
from opendino.views.functional import to_float

Values = tuple[float, ...]


@torch.no_grad()
def extract(
    backbone: Backbone, crops: Tensor, mean: Values, std: Values, device: torch.device, batch: int = 64
) -> Tensor:
    """Compute image features (`Features.cls`) of crops in eval mode; restores the network's mode afterwards.

    Args:
        backbone: Any backbone.
        crops: uint8 or uint16 `[M C H W]` on the CPU.
        mean, std: Per-channel normalization of pixels in [0, 1].
        device: Device of the backbone.
        batch: Images per forward pass.

    Returns:
        float32 `[M D]` on the CPU.
    """
    was_training = backbone.training
    backbone.eval()
    parts = [backbone([part])[0].float().cpu() for part in _normalized(crops, mean, std, device, batch)]
    backbone.train(was_training)
    return torch.cat([torch.empty(0, backbone.embed_dim), *parts])  # a rank may have no crops


@torch.no_grad()
def recalibrate_batch_norm(
    backbone: Backbone, crops: Tensor, mean: Values, std: Values, device: torch.device, batch: int = 64
) -> None:
    """Recompute the running statistics of BatchNorm from these images, for a fair test of an untrained network."""
    with measuring_batch_norm(backbone):
        for part in _normalized(crops, mean, std, device, batch):
            if len(part) > 1:  # no variance from one image
                backbone([part])


@contextlib.contextmanager
def measuring_batch_norm(backbone: Backbone) -> Iterator[None]:
    """Context manager: BatchNorm's running statistics become those of the images that pass inside; then eval mode."""
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # cumulative average instead of a moving one
    yield
    backbone.eval()


def pixels(crops: Tensor, side: int = 16) -> Tensor:
    """Baseline features: the pixels of each crop, resized.

    Args:
        crops: uint8 or uint16 `[M C H W]`.
        side: Image side in pixels after resizing (bilinear, antialiased).

    Returns:
        float32 `[M C·side·side]`, values in [0, 1].
    """

    def resize(part: Tensor) -> Tensor:
        return nn.functional.interpolate(to_float(part), (side, side), mode="bilinear", antialias=True).flatten(1)

    return torch.cat(
        [torch.empty(0, crops.shape[1] * side**2), *(resize(part) for part in crops.split(256) if len(part))]
    )


def _normalized(crops: Tensor, mean: Values, std: Values, device: torch.device, batch: int) -> Iterator[Tensor]:
    shift, scale = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    for part in (part for part in crops.split(batch) if len(part)):
        yield (to_float(part.to(device)) - shift) / scale
