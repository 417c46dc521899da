"""Attention maps: which patches the image feature depends on, for networks with and without a CLS token."""

from __future__ import annotations

import torch
from torch import Tensor

from opendino.models.load import Model


def cls_attention(model: Model, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention of the CLS token to the patches in the last block, without CLS itself and registers.

    Args:
        model: A vision transformer, ours or timm's.
        images: float `[B C H W]`, normalized.
        grid: (rows, columns) of its patches.

    Returns:
        float32 `[B heads rows columns]` on the CPU. Each map sums to less than 1: CLS and registers get the rest.

    Raises:
        NotImplementedError: The network has no self-attention, or no CLS token.
    """
    attention = model.attention(images)
    num_patches = grid[0] * grid[1]
    if attention.shape[-1] == num_patches:
        raise NotImplementedError(f"{model.backbone.name} has no CLS token, so it has no CLS attention")
    return attention[:, :, 0, -num_patches:].unflatten(-1, grid).float().cpu()


def contribution_to_mean(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Contribution of each position to the average-pooled feature, for networks such as ResNets.

    With z the mean of the N features x, the contribution of a position is x·z / (N z·z). Contributions sum to 1; one
    is large if its feature is long and has the direction of z. Negative ones are set to 0.

    Args:
        patches: float `[B N D]`, as in `Features`.
        grid: (rows, columns) with rows · columns = N.

    Returns:
        float32 `[B 1 rows columns]` on the CPU: one "head".
    """
    patches = patches.double()
    pooled = patches.mean(1, keepdim=True)  # [B 1 D]
    contributions = (patches * pooled).sum(-1) / (len(patches[0]) * pooled.square().sum(-1)).clamp_min(1e-30)
    return contributions.clamp_min(0).unflatten(-1, grid)[:, None].float().cpu()


def keep_mass(attention: Tensor, mass: float = 0.6) -> Tensor:
    """Mask of the fewest patches that hold at least `mass` of the attention, as in the figures of DINO v1.

    Args:
        attention: float `[... N]`, not negative; need not sum to 1.
        mass: Fraction in [0, 1].

    Returns:
        bool `[... N]`, True for kept patches.
    """
    ascending, order = attention.double().sort(dim=-1)
    below = ascending.cumsum(-1) / ascending.sum(-1, keepdim=True)
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, below > 1 - mass)
