"""What the feature of an image rests on, patch by patch: the CLS token's attention, or its equivalent without one."""

from __future__ import annotations

import torch
from torch import Tensor

from opendino.models.load import Model


def of_cls(model: Model, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the CLS token takes from the patches in the last block; registers and CLS itself are left out.

    Args:
        model: A vision transformer, ours or timm's.
        images: float `[B 3 H W]`, normalized.
        grid: (rows, columns) of its patches.

    Returns:
        float32 `[B heads rows columns]` on the host; sums to less than 1 by what CLS and registers get.

    Raises:
        NotImplementedError: The network has no self-attention, or no CLS token.
    """
    attention = model.attention(images)
    num_patches = grid[0] * grid[1]
    if attention.shape[-1] == num_patches:
        raise NotImplementedError(f"{model.backbone.name} has no CLS token whose attention could be looked at")
    return attention[:, :, 0, -num_patches:].unflatten(-1, grid).float().cpu()


def of_mean(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The share of each position in a pooled feature: for networks that average their last map, such as ResNets.

    With z the mean of the N features x, a position's share is x·z / (N z·z): all shares sum to 1, and a position has
    much of it where its feature is long and points where the image's does. Negative shares count as 0.

    Args:
        patches: float `[B N D]`, as in `Features`.
        grid: (rows, columns), rows · columns = N.

    Returns:
        float32 `[B 1 rows columns]` on the host: one "head".
    """
    patches = patches.double()
    pooled = patches.mean(1, keepdim=True)
    shares = (patches * pooled).sum(-1) / (len(patches[0]) * pooled.square().sum(-1)).clamp_min(1e-30)
    return shares.clamp_min(0).unflatten(-1, grid)[:, None].float().cpu()


def keep_mass(attention: Tensor, mass: float = 0.6) -> Tensor:
    """The fewest patches that together hold at least `mass` of the attention, as DINO v1 shows them.

    Args:
        attention: float `[... N]`, not negative; need not sum to 1.
        mass: Share in 0 .. 1.

    Returns:
        bool `[... N]`.
    """
    ascending, order = attention.double().sort(dim=-1)
    below = ascending.cumsum(-1) / ascending.sum(-1, keepdim=True)
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, below > 1 - mass)
