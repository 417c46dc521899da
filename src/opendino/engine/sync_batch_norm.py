"""Synchronized BatchNorm (Peng et al. 2018, arXiv:1711.07240, section 3.3) on any device.

On CUDA it is torch's, converted by timm, which knows its BatchNorm layers with a built-in activation. torch's refuses
tensors on a CPU, where `SyncBatchNorm` takes its place.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from opendino.core import distributed


def convert(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm in a module by a synchronized one; parameters, buffers and their names stay.

    Args:
        module: Changed in place.
        device: Where it will be used.

    Returns:
        The module, or its replacement if it is itself a BatchNorm.
    """
    if device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm

        return convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm):
        return SyncBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, convert(child, device))
    return module


class SyncBatchNorm(_BatchNorm):
    """BatchNorm that takes mean and variance over the batches of all ranks in training, with gradients through both.

    Every rank must have the same batch size. Input `[B C ...]` → output of the same shape and dtype.

    Args:
        norm: The layer to replace; parameters and buffers are shared. timm's `BatchNormAct2d` keeps its activation.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.after = nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002, torch's name
        pass

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, torch's name
        """Normalize, scale and shift each channel; in eval mode with the running statistics."""
        if not (self.training and distributed.is_distributed()):
            return self.after(super().forward(input))
        axes = [axis for axis in range(input.ndim) if axis != 1]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        # Two all-reduces, mean before variance: E[x²] - E[x]² in one would lose precision.
        mean = _AllReduceMean.apply(x.mean(axes))  # [C]
        centered = x - self._per_channel(mean, x)
        variance = _AllReduceMean.apply(centered.square().mean(axes))  # [C]
        self._update_running_stats(mean, variance, x.numel() // x.shape[1] * distributed.world_size())
        normed = centered * self._per_channel((variance + self.eps).rsqrt(), x)
        if self.affine:
            normed = normed * self._per_channel(self.weight, x) + self._per_channel(self.bias, x)
        return self.after(normed.to(input.dtype))

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        cast(Tensor, self.num_batches_tracked).add_(1)
        share = 1 / cast(Tensor, self.num_batches_tracked).float() if self.momentum is None else self.momentum
        self.running_mean += share * (mean - self.running_mean)
        self.running_var += share * (variance * (count / (count - 1)) - self.running_var)

    @staticmethod
    def _per_channel(channels: Tensor, x: Tensor) -> Tensor:
        """Reshape `[C]` to `[C 1 ...]`, which broadcasts over `[B C ...]`."""
        return channels.view(-1, *[1] * (x.ndim - 2))


class _AllReduceMean(torch.autograd.Function):
    """Mean over ranks. Each rank's loss depends on all ranks' batches, so the gradient is a mean over ranks too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return distributed.all_reduce_mean(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return distributed.all_reduce_mean(grads[0].contiguous())
