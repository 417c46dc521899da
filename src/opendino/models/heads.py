"""Heads on top of the backbone: DINO's projection head, BYOL's projector and predictor."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize


class ProjectionHead(nn.Module):
    """DINO's head: MLP to a bottleneck, L2 normalization, then a weight-normalized linear layer of K prototypes.

    See Caron et al. 2021, section 3.2 and appendix C. State-dict keys are those of DINO v1: mlp.0, mlp.2, mlp.4
    (mlp.0, .1, .3, .4, .6 with batch norm), last_layer.weight_g, last_layer.weight_v.

    Args:
        in_dim: D, width of the backbone features.
        out_dim: K, number of prototypes.
        hidden_dim: Width of the hidden layers.
        bottleneck_dim: Width of the L2-normalized layer.
        num_layers: Number of linear layers of the MLP, at least 1.
        batch_norm: Batch norm after each hidden layer, as DINO v1 uses for ResNets; rows then depend on each other.
        norm_last_layer: Fix the norm of prototypes at 1. If False it is learned: better results, less stable.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        assert num_layers >= 1
        widths = [in_dim] + [hidden_dim] * (num_layers - 1)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if batch_norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], bottleneck_dim))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = Prototypes(bottleneck_dim, out_dim, norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B D]` → logits `[B K]`, in [-1, 1] if prototypes are normalized.

        Call it once with the rows of all views: the head has as many weights as a small ViT.
        """
        return self.last_layer(self.bottleneck(features))

    def bottleneck(self, features: Tensor) -> Tensor:
        """Features `[B D]` → L2-normalized `[B bottleneck_dim]`, float32 or wider."""
        rows = self.mlp(features)
        to_float32 = rows.to(torch.promote_types(rows.dtype, torch.float32))  # half precision is too coarse here
        return normalize(to_float32, dim=-1, eps=1e-12)

    def drop_prototype_gradients(self) -> None:
        """Freeze the prototypes for this step: without a gradient the optimizer skips them, including weight decay."""
        for parameter in self.last_layer.parameters():
            parameter.grad = None


class Prototypes(nn.Module):
    """Linear layer without bias whose K rows are g · v / |v| (weight normalization, Salimans & Kingma 2016).

    Attributes:
        weight_g: `[K 1]`, norm of each prototype; starts at 1, fixed if `normed`.
        weight_v: `[K D]`, direction of each prototype.
    """

    def __init__(self, in_dim: int, num_prototypes: int, normed: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=not normed)
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, in_dim))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))  # PyTorch's default for a linear layer

    def forward(self, rows: Tensor) -> Tensor:
        """`[B D]` → `[B K]`."""
        return linear(rows, self.weight)

    @property
    def weight(self) -> Tensor:
        """The prototypes g · v / |v|, `[K D]`."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)  # pyright: ignore[reportPrivateImportUsage]


class MLPHead(nn.Sequential):
    """BYOL's projector and predictor: linear, batch norm, ReLU, linear without bias (Grill et al. 2020, section 3.3).

    `[B in_dim]` → `[B out_dim]`; rows depend on each other through batch norm.

    Args:
        in_dim: Width of the input.
        hidden_dim: Width of the hidden layer.
        out_dim: Width of the output.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__(
            nn.Linear(in_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim, bias=False),
        )
